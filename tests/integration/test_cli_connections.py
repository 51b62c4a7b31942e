"""`amp conn`, `amp config`, `amp plan` and `amp doctor`, as they are typed."""

from __future__ import annotations

import json

import pytest

from amp.devserver import LocalAmp
from tests.support.command_line import amp

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture(scope='module')
def server():
    with LocalAmp.simulate(seed=8, blocks=300, logs_per_block=4) as running:
        yield running


def test_a_name_is_added_used_shown_and_removed(tmp_path, server):
    own = {'AMP_CONFIG': str(tmp_path / 'user.toml')}
    added = amp('conn', 'add', 'mine', 'duckdb:///chain.db', cwd=tmp_path, **own)
    assert added.returncode == 0, added.stderr
    assert amp('conn', 'test', 'mine', cwd=tmp_path, **own).returncode == 0
    loaded = amp(
        'load', server.url, 'SELECT * FROM eth_rpc.blocks', '--to', 'mine', '-t', 'blocks', cwd=tmp_path, **own
    )
    assert loaded.returncode == 0, loaded.stderr
    shown = amp('config', 'show', '--origin', cwd=tmp_path, **own).stdout.decode()
    assert 'url = duckdb:///chain.db' in shown
    assert 'amp.toml' in shown
    assert amp('conn', 'remove', 'mine', cwd=tmp_path, **own).returncode == 0
    gone = amp('conn', 'test', 'mine', cwd=tmp_path, **own)
    assert gone.returncode == 3
    assert b"no connection 'mine'" in gone.stderr


def test_a_secret_is_never_written_in_clear(tmp_path):
    for arguments in (('pg', 'postgresql://me:hush@host/db'), ('pg', '--loader', 'postgresql', '-s', 'password=hush')):
        refused = amp('conn', 'add', *arguments, cwd=tmp_path)
        assert refused.returncode == 3
        assert b'not written to a file in clear' in refused.stderr
        assert b'hush' not in refused.stderr
    assert not (tmp_path / 'amp.toml').exists()


def test_a_plan_touches_nothing(tmp_path, server):
    sql = 'SELECT block_num, address, data FROM eth_rpc.logs'
    done = amp('plan', server.url, sql, '--to', 'duckdb:///chain.db', '-t', 'logs', '--json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [c['there'] for c in plan['columns']] == ['UBIGINT', 'BLOB', 'BLOB']
    assert plan['estimated_rows'] == 1_200
    assert (plan['exists'], plan['blocks'][0]['end']) == (False, 299)
    assert not list(tmp_path.iterdir())
    told = amp('plan', server.url, sql, '--to', 'duckdb:///chain.db', '-t', 'logs', cwd=tmp_path).stdout.decode()
    assert 'about 1,200 in all blocks' in told


def test_the_doctor_finds_what_is_wrong_and_says_what_to_do(tmp_path, server):
    own = {'AMP_CONFIG': str(tmp_path / 'user.toml')}
    well = amp('doctor', '--source', server.url, '--to', 'duckdb:///chain.db', cwd=tmp_path, **own)
    assert well.returncode == 0, well.stdout
    assert b'answered in' in well.stdout
    ill = amp('doctor', '--source', 'grpc://127.0.0.1:1', '--to', 'duckdb:////no/where/x.db', cwd=tmp_path, **own)
    assert ill.returncode == 1
    assert ill.stdout.count(b'WRONG') == 2
    assert ill.stdout.count(b'->') == 2
