"""`amp query` as a user runs it: the formats, the pipe, and everything that can be wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp
from tests.support.command_line import AMP, amp, environment, exit_code, one_sentence
from tests.support.faults import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.integration

LOGS = 'SELECT * FROM eth_rpc.logs ORDER BY block_num, log_index'
BLOCKS = 'SELECT * FROM eth_rpc.blocks'


@pytest.fixture(scope='module')
def server() -> Iterator[LocalAmp]:
    with LocalAmp.simulate(seed=5, blocks=40) as local:
        yield local


def test_parquet_and_arrow_are_what_the_server_holds(server: LocalAmp, tmp_path: Path) -> None:
    logs = server.canonical('logs')
    for name in ('logs.parquet', 'logs.arrow'):
        done = amp('query', server.url, LOGS, '--output', name, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, b''), done.stderr
        assert f'{len(logs)} rows'.encode() in done.stderr
    assert pq.read_table(tmp_path / 'logs.parquet').equals(logs)
    assert pa.ipc.open_file(tmp_path / 'logs.arrow').read_all().equals(logs)
    assert {path.name for path in tmp_path.iterdir()} == {'logs.parquet', 'logs.arrow'}

    piped = amp('query', server.url, LOGS, '--format', 'arrow')
    assert pa.ipc.open_stream(piped.stdout).read_all().equals(logs)
    piped = amp('query', server.url, LOGS, '--format', 'parquet')
    assert pq.read_table(pa.BufferReader(piped.stdout)).equals(logs)
    assert piped.stderr == b''


def test_text_formats_hold_the_same_rows(server: LocalAmp) -> None:
    logs = server.canonical('logs')
    hashes = ['0x' + value.hex() for value in logs['tx_hash'].to_pylist()]

    piped = amp('query', server.url, LOGS)
    assert piped.stderr == b''
    lines = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [line['tx_hash'] for line in lines] == hashes
    assert list(lines[0]) == logs.schema.names
    assert lines[0]['timestamp'] == '2023-11-14T22:13:20Z'

    assert json.loads(amp('query', server.url, LOGS, '-f', 'json').stdout) == lines

    header, *rows = csv.reader(io.StringIO(amp('query', server.url, LOGS, '-f', 'csv').stdout.decode(), newline=''))
    assert header == logs.schema.names
    assert [row[header.index('tx_hash')] for row in rows] == hashes

    table = amp('query', server.url, BLOCKS, '-f', 'table', '-n', '3').stdout.decode().splitlines()
    assert table[0].split() == server.canonical('blocks').schema.names
    assert len(table) == 2 + 3


def test_an_empty_result_is_a_result(server: LocalAmp) -> None:
    nothing = LOGS.replace('ORDER', 'WHERE false ORDER')
    assert amp('query', server.url, nothing).stdout == b''
    assert amp('query', server.url, nothing, '-f', 'json').stdout == b'[]\n'
    assert amp('query', server.url, nothing, '-f', 'csv').stdout.startswith(b'_block_num,block_hash')
    assert pq.read_table(pa.BufferReader(amp('query', server.url, nothing, '-f', 'parquet').stdout)).schema.equals(
        server.canonical('logs').schema
    )


def test_sql_from_a_file_and_stdin_and_the_server_from_the_environment(server: LocalAmp, tmp_path: Path) -> None:
    (tmp_path / 'q.sql').write_text('SELECT 1 AS one')
    for arguments in (['@q.sql'], ['-']):
        done = amp('query', *arguments, cwd=tmp_path, stdin=b'SELECT 1 AS one', AMP_URL=server.url)
        assert json.loads(done.stdout) == {'one': 1}
    limited = amp('query', server.url, LOGS, '--limit', '7')
    assert len(limited.stdout.splitlines()) == 7


def test_a_terminal_gets_a_table(server: LocalAmp) -> None:
    reader, terminal = pty.openpty()
    with subprocess.Popen(
        [*AMP, 'query', server.url, LOGS], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=environment()
    ) as process:
        os.close(terminal)
        told = b''
        while chunk := _read(reader):
            told += chunk
        assert process.wait(30) == 0
    os.close(reader)
    assert b'0x' in told
    assert '…'.encode() in told
    assert b'the first 40 rows' in told


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # the end of a terminal
        return b''


def test_a_closed_pipe_ends_quietly(server: LocalAmp) -> None:
    with subprocess.Popen(
        [*AMP, 'query', server.url, 'SELECT * FROM eth_rpc.logs', '--stream'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        json.loads(process.stdout.readline())
        process.stdout.close()
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            server.mine(1)  # a stream notices with the next rows that nobody reads them
            time.sleep(0.05)
        assert process.wait(30) == 0
        assert process.stderr.read() == b''


def test_a_stream_tells_of_a_reorg_and_ends_with_ctrl_c() -> None:
    with LocalAmp.simulate(seed=6, blocks=10, logs_per_block=1) as local:
        with subprocess.Popen(
            [*AMP, 'query', local.url, 'SELECT block_num, block_hash FROM eth_rpc.logs', '--stream', '-f', 'csv'],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(11)]
            local.reorg(3)
            lines += [process.stdout.readline() for _ in range(4)]
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=120)
        assert process.returncode == 130
        assert [line.partition(b',')[0] for line in lines[-4:]] == [b'7', b'8', b'9', b'10']
        assert b'reorg: rows of simnet 7-10' in told


def test_ctrl_c_completes_the_file_of_a_stream_and_drops_that_of_a_query(tmp_path: Path) -> None:
    with LocalAmp.simulate(seed=6, blocks=10, logs_per_block=1) as local:
        first = pa.BufferOutputStream()
        with pa.ipc.new_file(first, local.canonical('logs').schema) as writer:
            writer.write_table(local.canonical('logs'))
            length = first.tell()
        for arguments, left in ((['--stream'], ['logs.arrow']), ([], [])):
            stalled = local.faults.stall(at_block=5) if not arguments else None
            with subprocess.Popen(
                [*AMP, 'query', local.url, 'SELECT * FROM eth_rpc.logs', '-o', 'logs.arrow', *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                env=environment(),
            ) as process:
                if stalled is not None:
                    stalled.wait(60)
                else:
                    wait_until(lambda: any(path.stat().st_size >= length for path in tmp_path.iterdir()))
                    local.mine(5)
                    # The first rows are written when the next ones follow them; of those an interrupt may leave none.
                    wait_until(lambda: any(path.stat().st_size > length for path in tmp_path.iterdir()))
                process.send_signal(signal.SIGINT)
                out, told = process.communicate(timeout=120)
            assert (process.returncode, out, told) == (130, b'', b'')
            assert [path.name for path in tmp_path.iterdir()] == left
            if left:
                found = pa.ipc.open_file(tmp_path / 'logs.arrow').read_all()
                assert found.num_rows in {10, 15}
                assert found.equals(local.canonical('logs').slice(0, found.num_rows))
                (tmp_path / 'logs.arrow').unlink()


@pytest.mark.parametrize(
    ('sql', 'part'),
    [
        ('SELECT * FROM nope.logs', 'nope'),
        ('SELECT * FROM eth_rpc.nope', 'nope'),
        ('SELECT nope FROM eth_rpc.logs', 'nope'),
        ('SELEC 1', 'SQL parse error'),
    ],
)
def test_what_the_server_refuses(server: LocalAmp, tmp_path: Path, sql: str, part: str) -> None:
    done = amp('query', server.url, sql, '-o', 'out.csv', cwd=tmp_path)
    assert done.returncode == 4
    assert part in one_sentence(done)
    assert b'\nhint: ' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_servers_that_are_not_there_or_do_not_let_us_in() -> None:
    done = amp('query', f'grpc://127.0.0.1:{free_port()}', 'SELECT 1')
    assert done.returncode == 4
    assert 'cannot reach' in one_sentence(done)
    with LocalAmp.simulate(blocks=1, token='right') as guarded:
        done = amp('query', guarded.url, 'SELECT 1', '--token', 'wrong-secret')
        assert done.returncode == 4
        assert 'wrong-secret' not in one_sentence(done)
        assert amp('query', guarded.url, 'SELECT 1', AMP_AUTH_TOKEN='right').returncode == 0


def test_a_server_that_goes_away_leaves_no_file(tmp_path: Path) -> None:
    with LocalAmp.simulate(seed=7, blocks=2000, logs_per_block=20) as local:
        local.faults.cut(after_batches=1)
        done = amp('query', local.url, 'SELECT * FROM eth_rpc.logs', '-o', 'logs.csv', cwd=tmp_path)
    assert done.returncode == 4
    one_sentence(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'code'),
    [
        (['query', 'gprc://host', 'SELECT 1'], 3),
        (['query', 'SELECT 1'], 2),
        (['query', 'grpc://host', '@nowhere.sql'], 2),
        (['query', 'grpc://host', ' '], 2),
        (['query', 'grpc://host', 'SELECT 1', '--format', 'xml'], 2),
        (['query', 'grpc://host', 'SELECT 1', '-o', 'file.unknown'], 2),
        (['query', 'grpc://host', 'SELECT 1', '--stream', '-f', 'parquet'], 2),
        (['nonsense'], 2),
    ],
)
def test_what_cannot_be_meant(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('AMP_URL', raising=False)
    assert exit_code(*arguments) == code
    told = capfd.readouterr()
    assert told.out == ''
    assert told.err
    assert 'Traceback' not in told.err
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(server: LocalAmp, tmp_path: Path) -> None:
    done = amp('query', server.url, LOGS, '-o', str(tmp_path / 'no' / 'logs.csv'))
    assert done.returncode == 5
    assert 'No such file' in one_sentence(done)
    done = amp('query', server.url, LOGS, '-o', '/proc/logs.parquet')
    assert done.returncode == 5
    one_sentence(done)
    with Path('/dev/full').open('wb') as full:
        process = subprocess.run(
            [*AMP, 'query', server.url, LOGS], stdout=full, stderr=subprocess.PIPE, check=False, env=environment()
        )
    assert process.returncode == 5
    assert b'error: cannot write to standard output: No space left on device\n' in process.stderr
    assert amp('query', server.url, LOGS, '-f', 'csv', '-o', '/dev/full').returncode == 5


def test_debug_shows_the_traceback() -> None:
    for arguments, extra in ((['--debug'], {}), ([], {'AMP_DEBUG': '1'})):
        done = amp('query', 'gprc://host', 'SELECT 1', *arguments, **extra)
        assert b'Traceback' in done.stderr


def test_version_and_the_loaders() -> None:
    assert amp('--version').stdout.startswith(b'amp ')
    rows = [json.loads(line) for line in amp('loaders', '--json').stdout.splitlines()]
    assert {'duckdb', 'postgresql'} <= {row['loader'] for row in rows}
    assert b'exactly-once' in amp('loaders').stdout
