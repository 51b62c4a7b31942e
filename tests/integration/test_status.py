"""What status says of the streams of a destination, and of how far the server is ahead."""

from __future__ import annotations

import json
import subprocess
import sys

import duckdb
import pytest
from typer.testing import CliRunner, Result

from amp.cli.app import app
from amp.client import Client
from amp.devserver import LocalAmp
from amp.errors import ConfigError, DestinationError, QueryError
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.status import as_table, open_destination, server_coverage, status_of
from amp.streaming.types import BlockRange
from tests.support.following import SQL, until_head

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=9, blocks=200, logs_per_block=1, microbatch_max_blocks=10) as server:
        yield server


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / 'chain.db')


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ['status', *arguments])


def test_a_stream_its_window_and_its_lag(amp, path):
    until_head(amp, f'duckdb:///{path}', retention=25)
    until_head(amp, f'duckdb:///{path}', name='second')
    hash_of_position = amp.block_hash(199)
    amp.mine(7)
    with DuckDBLoader({'path': path}) as loader, Client(amp.url) as client:
        first, second = status_of(loader, client)
    assert (first.info.key.name, second.info.key.name) == ('logs', 'second')
    assert first.history == (BlockRange(amp.network, 0, 199, hash_of_position, '0x' + '0' * 64),)
    assert first.gaps == ()
    assert (first.window_entries, first.window_blocks) == (4, 40)
    assert second.window_blocks > first.window_blocks
    assert first.lag == {amp.network: 7}
    told = first.to_dict()
    assert told['position'] == {amp.network: {'number': 199, 'hash': hash_of_position}}
    assert (told['epoch'], told['head'], told['query']) == (1, {amp.network: 206}, SQL)
    assert told['committed_at'] is not None
    json.dumps(told)


def test_gaps_are_told_from_the_first_block_of_the_stream(amp, path):
    until_head(amp, f'duckdb:///{path}')
    with duckdb.connect(path) as connection:
        [(text,)] = connection.execute('SELECT document FROM _amp_streams').fetchall()
        document = json.loads(text)
        document['segments'].clear()
        del document['entries'][2]
        connection.execute('UPDATE _amp_streams SET document = ?', [json.dumps(document)])
    with DuckDBLoader({'path': path}) as loader:
        [status] = status_of(loader)
    assert [(gap.start, gap.end) for gap in status.gaps] == [(0, 59), (80, 89)]
    assert status.lag is None


def test_a_server_that_does_not_answer_is_told_and_the_rest_is_shown(amp, path):
    until_head(amp, f'duckdb:///{path}')
    shown = command(f'duckdb:///{path}', '--source', 'grpc://127.0.0.1:1')
    assert shown.exit_code == 0
    assert f'{amp.network} 199' in shown.stdout
    assert 'lag       not known: cannot reach the Amp server' in shown.stdout


def test_the_command(amp, path):
    until_head(amp, f'duckdb:///{path}')
    amp.mine(3)
    shown = command(f'duckdb:///{path}', '--source', amp.url)
    assert (shown.exit_code, shown.stderr) == (0, '')
    assert f'3 blocks behind (the server has {amp.network} 202)' in shown.stdout
    assert 'gaps      none' in shown.stdout
    [event] = [json.loads(line) for line in command(f'duckdb:///{path}', '--json').stdout.splitlines()]
    assert (event['event'], event['table'], event['lag'], event['gaps']) == ('stream', 'logs', None, [])
    assert command(f'duckdb:///{path}', '--table', 'other').stdout == ''


def test_the_command_in_a_process_of_its_own(amp, path):
    until_head(amp, f'duckdb:///{path}')
    arguments = [sys.executable, '-m', 'amp', 'status', f'duckdb:///{path}', '--json']
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout)['position'][amp.network]['number'] == 199


def test_looking_makes_nothing(path, tmp_path):
    for text in (f'duckdb:///{path}', f'duckdb:///{tmp_path}/no/folder.db'):
        with pytest.raises(DestinationError, match='there is nothing at'), open_destination(text):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no connection 'somewhere'"), open_destination('somewhere'):
        pass
    assert command('somewhere').exit_code == 3


def test_a_destination_without_streams(path):
    duckdb.connect(path).close()
    shown = command(f'duckdb:///{path}')
    assert (shown.exit_code, shown.stdout, shown.stderr) == (0, '', 'no streams here yet\n')


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT * FROM eth_rpc.logs',
        'SELECT * FROM eth_rpc.logs;',
        'SELECT * FROM eth_rpc.logs SETTINGS stream = true',
        'select * from eth_rpc.logs\n  settings stream=true ;',
        'SELECT * FROM eth_rpc.logs -- all of them',
        "SELECT 'settings stream = true' AS s, _block_num FROM eth_rpc.logs",
    ],
)
def test_the_coverage_of_queries_of_every_make(amp, sql):
    with Client(amp.url) as client:
        [coverage] = server_coverage(client, sql)
        assert (coverage.start, coverage.end, coverage.hash) == (0, *amp.head)
        assert client.sql(f'SELECT count(*) AS n FROM {as_table(sql)}').to_arrow().column('n')[0].as_py() == 200


def test_a_query_that_the_server_refuses_now_is_told(amp, path):
    until_head(amp, f'duckdb:///{path}')
    with duckdb.connect(path) as connection:
        connection.execute("UPDATE _amp_streams SET query = 'SELECT nothing FROM eth_rpc.logs'")
    with DuckDBLoader({'path': path}) as loader, Client(amp.url) as client:
        [status] = status_of(loader, client)
        with pytest.raises(QueryError):
            server_coverage(client, 'SELECT nothing FROM eth_rpc.logs')
    assert status.coverage is None
    assert 'nothing' in status.server
