"""Rows that were joined with labels are verified against the server's rows, joined again in the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from amp.client import Client
from amp.devserver import LocalAmp
from amp.errors import IntegrityError
from amp.loaders.findings import Report
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.label_record import LabelRecord
from amp.loaders.types import LabelJoinConfig
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig
from tests.support.command_line import amp as run_amp
from tests.support.following import QUICK, at_head

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

SQL = 'SELECT block_num, log_index, address FROM eth_rpc.logs'
LEFT = LabelJoinConfig('tokens', 'address', 'address', how='left')
TWICE = LabelJoinConfig('tokens', 'address', 'address', many=True, prefix='token_')


@pytest.fixture(scope='module')
def local() -> Iterator[LocalAmp]:
    with LocalAmp.simulate(seed=3, blocks=40, microbatch_max_blocks=8) as server:
        yield server


@pytest.fixture
def folder(local: LocalAmp, tmp_path: Path) -> Path:
    """Labels for half of the contracts of the chain."""
    write_labels(local, tmp_path, every=2)
    return tmp_path


def write_labels(local: LocalAmp, folder: Path, every: int, times: int = 1) -> None:
    contracts = sorted(local.canonical('logs')['address'].unique().to_pylist())
    lines = [f'0x{address.hex()},T{n},{n}\n' for n, address in enumerate(contracts[::every])]
    (folder / 'tokens.csv').write_text('address,symbol,decimals\n' + ''.join(lines) * times)


def stream(local: LocalAmp, folder: Path, join: Any = 'tokens', **options: Any) -> int:
    """Follow up to the head; the rows that came."""
    rows = 0
    with Client(local.url, label_dir=folder) as client:
        client.add_label('tokens', 'tokens.csv')
        loaded = client.sql(SQL).load(
            f'duckdb:///{folder}/chain.db', 'logs', stream=True, label_config=join, retry=QUICK, **options
        )
        with closing(loaded) as results:
            for result in results:
                rows += result.rows_loaded
                if 'position' not in result.metadata or at_head(local, result):
                    break
    return rows


def verified(local: LocalAmp, folder: Path, label: str | None = None) -> Report:
    with DuckDBLoader({'path': str(folder / 'chain.db')}) as loader, Client(local.url, label_dir=folder) as client:
        if label is not None:
            client.add_label('tokens', label)
        [report] = verify(loader, 'logs', source=client)
    return report


def tamper(folder: Path, sql: str) -> None:
    with duckdb.connect(str(folder / 'chain.db')) as connection:
        connection.execute(sql)


@pytest.mark.parametrize('join', ['tokens', LEFT, [TWICE]])
def test_rows_with_labels_are_the_servers_and_one_that_is_gone_is_missed(
    local: LocalAmp, folder: Path, join: Any
) -> None:
    write_labels(local, folder, every=2, times=2 if join == [TWICE] else 1)
    rows = stream(local, folder, join)
    all_rows = local.canonical('logs').num_rows
    assert (rows == all_rows) is (join is LEFT)
    report = verified(local, folder)
    assert (report.findings, report.notes) == ([], [])
    assert (report.rows, report.compared[0].end) == (rows, local.head[0])
    tamper(folder, 'DELETE FROM logs WHERE rowid = (SELECT min(rowid) FROM logs)')
    [finding] = verified(local, folder).findings
    assert finding.counts['missing'] == 1
    tamper(folder, 'UPDATE logs SET decimals = 77 WHERE rowid = (SELECT max(rowid) FROM logs)' if join != [TWICE] else
           'UPDATE logs SET token_decimals = 77 WHERE rowid = (SELECT max(rowid) FROM logs)')  # fmt: skip
    assert sum(f.counts['extra'] for f in verified(local, folder).findings) == 1


def test_a_label_that_is_gone_or_has_changed_is_said(local: LocalAmp, folder: Path) -> None:
    rows = stream(local, folder)
    (folder / 'tokens.csv').rename(folder / 'as-it-was.csv')
    report = verified(local, folder)
    assert (report.findings, report.compared, report.rows) == ([], (), rows)
    assert 'is not here' in report.notes[0]
    assert '--label tokens=FILE' in report.notes[0]
    assert verified(local, folder, 'as-it-was.csv').compared
    write_labels(local, folder, every=3)
    assert 'has changed since' in verified(local, folder).notes[0]
    assert 'is not what it was' in verified(local, folder, 'tokens.csv').notes[0]


def test_a_left_join_needs_no_label_to_be_verified(local: LocalAmp, folder: Path) -> None:
    stream(local, folder, LEFT)
    (folder / 'tokens.csv').unlink()
    report = verified(local, folder)
    assert report.compared
    assert report.ok
    tamper(folder, 'DELETE FROM logs WHERE rowid = (SELECT min(rowid) FROM logs)')
    [finding] = verified(local, folder).findings
    assert finding.counts == {'missing': 1, 'extra': 0, 'twice': 0}


@pytest.mark.parametrize('join', ['tokens', LEFT])
def test_a_stream_that_went_on_with_other_labels_says_so(local: LocalAmp, folder: Path, join: Any) -> None:
    stream(local, folder, join)
    write_labels(local, folder, every=3)
    local.mine(3)
    stream(local, folder, join)
    report = verified(local, folder)
    assert report.ok
    if join is LEFT:
        assert report.compared
    else:
        assert 'not all joined with the same labels' in report.notes[0]
        assert not report.compared


def test_a_stream_that_goes_on_or_begins_anew_knows_its_labels(local: LocalAmp, folder: Path) -> None:
    stream(local, folder)
    local.mine(3)
    local.reorg(5)
    stream(local, folder)
    assert verified(local, folder).compared
    write_labels(local, folder, every=3)
    stream(local, folder, mode='overwrite', resume=False)
    report = verified(local, folder)
    assert report.compared
    assert report.ok


def test_the_lanes_of_a_backfill_know_their_labels(local: LocalAmp, folder: Path) -> None:
    with Client(local.url, label_dir=folder) as client:
        client.add_label('tokens', 'tokens.csv')
        client.sql(SQL).load(
            f'duckdb:///{folder}/chain.db',
            'logs',
            label_config='tokens',
            parallel_config=ParallelConfig(2, 'eth_rpc.logs', partition_size=10, reorg_buffer=0),
        )
    with DuckDBLoader({'path': str(folder / 'chain.db')}) as loader, Client(local.url, label_dir=folder) as client:
        reports = verify(loader, 'logs', source=client)
    assert reports
    for report in reports:
        assert (report.findings, report.notes) == ([], [])
        assert report.compared


def test_the_command(local: LocalAmp, folder: Path) -> None:
    stream(local, folder)
    (folder / 'tokens.csv').rename(folder / 'moved.csv')
    asked = ('verify', f'duckdb:///{folder}/chain.db', '--source', local.url)
    told = run_amp(*asked, cwd=folder)
    assert told.returncode == 0
    assert b'nothing was compared with the server' in told.stderr
    again = run_amp(*asked, '--label', f'tokens={folder}/moved.csv', cwd=folder)
    assert again.returncode == 0, again.stderr
    assert b'none lost, none twice, none orphaned' in again.stdout
    assert run_amp('verify', f'duckdb:///{folder}/chain.db', '--label', 'tokens=x', cwd=folder).returncode == 2


def test_what_is_stored_holds_no_row_of_the_label(local: LocalAmp, folder: Path) -> None:
    stream(local, folder)
    with duckdb.connect(str(folder / 'chain.db')) as connection:
        [(document,)] = connection.execute('SELECT document FROM _amp_streams').fetchall()
    text = json.loads(document)['labels']
    [join] = json.loads(text)['joins']
    assert (join['label_name'], join['file'], join['how']) == ('tokens', 'tokens.csv', 'inner')
    assert str(folder) not in document
    assert '"T1"' not in document
    assert LabelRecord.from_json(text).to_json() == text
    with pytest.raises(IntegrityError, match='does not parse'):
        LabelRecord.from_json('{"joins": [{"file": 1}]}')
