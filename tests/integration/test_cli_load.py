"""`amp load`, `amp stream` and `amp serve` as a user runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from amp.devserver import LocalAmp
from tests.support.command_line import AMP, amp, end, environment, exit_code, one_sentence, until

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

LOGS = 'SELECT * FROM eth_rpc.logs'


@pytest.fixture
def server() -> Iterator[LocalAmp]:
    with LocalAmp.simulate(seed=8, blocks=30) as local:
        yield local


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*AMP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=environment()
    )


def count(path: Path, table: str) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        row = connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()
    assert row is not None
    return int(row[0])


def test_load_once_overwrite_and_upsert(server: LocalAmp, tmp_path: Path) -> None:
    file = tmp_path / 'chain.db'
    done = amp('load', server.url, LOGS, '--to', 'duckdb:///chain.db', '--table', 'logs', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b''), done.stderr
    assert b'300 in' in done.stderr
    assert count(file, 'logs') == 300
    options = ('--to', 'duckdb:///chain.db', '-t', 'logs', '--json')
    done = amp('load', server.url, LOGS, *options, '--mode', 'overwrite', cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event['event'] for event in events] == ['start', 'commit', 'summary']
    assert events[-1]['rows'] == 300
    keys = ('-m', 'upsert', '-k', 'tx_hash', '-k', 'log_index')
    assert amp('load', server.url, LOGS, *options, *keys, cwd=tmp_path).returncode == 0
    assert count(file, 'logs') == 300


def test_a_stream_undoes_a_reorg_stops_and_goes_on(server: LocalAmp, tmp_path: Path) -> None:
    command = ('stream', server.url, LOGS, '--to', 'duckdb:///chain.db', '-t', 'logs', '--json')
    process = start(*command, cwd=tmp_path)
    until(process, lambda event: event.get('total_rows') == 300)
    server.reorg(4)
    assert until(process, lambda event: event['event'] == 'reorg')['rows_undone'] >= 40
    head = server.head
    assert head is not None
    until(process, lambda event: bool(event.get('position')) and event['position']['simnet']['hash'] == head[1])
    code, events = end(process)
    assert code == 130
    assert events[-1]['event'] == 'summary'
    assert (events[-1]['interrupted'], events[-1]['reorgs']) == (True, 1)
    assert count(tmp_path / 'chain.db', 'logs') == 310

    server.mine(5)
    process = start(*command, cwd=tmp_path)
    assert until(process, lambda event: event['event'] == 'commit')['rows'] == 50
    assert end(process, signal.SIGTERM)[0] == 130
    assert count(tmp_path / 'chain.db', 'logs') == 360


@pytest.mark.parametrize(
    ('arguments', 'code', 'part'),
    [
        (['--to', 'duckd:///x.db', '-t', 'logs'], 3, "'duckd'"),
        (['--to', 'nowhere', '-t', 'logs'], 3, "'nowhere'"),
        (['--to', 'duckdb:///x.db', '-t', 'logs', '-o', 'bogus=1'], 3, 'bogus'),
        (['--to', 'duckdb:////proc/x.db', '-t', 'logs'], 5, '/proc/x.db'),
    ],
)
def test_destinations_that_cannot_be(
    server: LocalAmp, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    for streaming in ([], ['--stream']):
        done = amp('load', server.url, LOGS, *arguments, *streaming, cwd=tmp_path)
        assert done.returncode == code
        assert part in one_sentence(done)
        assert b'\nhint: ' in done.stderr
        assert done.stderr.count(b'failed: ') <= 1, 'what the log says too is told once'


@pytest.mark.parametrize(
    'arguments',
    [
        ['-t', 'logs'],
        ['--to', 'duckdb:///x.db', '-t', 'logs', '--mode', 'replace'],
        ['--to', 'duckdb:///x.db', '-t', 'logs', '--mode', 'upsert'],
        ['--to', 'duckdb:///x.db', '-t', 'logs', '--name', 'one'],
        ['--to', 'duckdb:///x.db', '-t', 'logs', '-o', 'nothing'],
    ],
)
def test_usage(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code('load', 'grpc://host', LOGS, *arguments) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_says_what_to_install(server: LocalAmp, tmp_path: Path) -> None:
    # As on a machine without the driver: its import fails just so.
    code = "import sys; sys.modules['duckdb'] = None; sys.argv[0] = 'amp'; from amp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, '-c', code, 'load', server.url, LOGS, '--to', 'duckdb:///x.db', '-t', 'logs'],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode == 3
    assert "'duckdb'" in one_sentence(done)
    assert b"hint: pip install 'amp-python[duckdb]'" in done.stderr


def test_an_error_is_an_event_too(server: LocalAmp, tmp_path: Path) -> None:
    done = amp('load', server.url, LOGS, '--to', 'duckd:///x.db', '-t', 'logs', '--json', cwd=tmp_path)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last['event'], last['exit_code'], last['retryable']) == ('error', 3, False)
    done = amp('load', 'grpc://127.0.0.1:1', LOGS, '--to', 'duckdb:///x.db', '-t', 'logs', '--json', cwd=tmp_path)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last['event'], last['exit_code'], last['retryable']) == ('error', 4, True)


def test_serve_says_where_it_is_and_stops(tmp_path: Path) -> None:
    process = start('serve', '--simulate', '4', '--blocks', '20', '--block-time', '0', '--port', '0', cwd=tmp_path)
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip()
    with LocalAmp.simulate(seed=4, blocks=20) as same:
        expected = same.canonical('blocks').num_rows
    assert json.loads(amp('query', url, 'SELECT count(*) AS n FROM eth_rpc.blocks').stdout) == {'n': expected}
    port = url.rpartition(':')[2]
    taken = amp('serve', '--simulate', '4', '--port', port)
    assert taken.returncode != 0
    one_sentence(taken)
    assert end(process, signal.SIGTERM) == (130, [])
    assert amp('serve').returncode == 2
    empty = amp('serve', '--parquet', str(tmp_path), '--port', '0')
    assert empty.returncode == 3
    one_sentence(empty)
