"""Broken networks between the client and a local Amp: real sockets that are reset, cut, silent or slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from amp.client import Client
from amp.devserver import LocalAmp
from amp.errors import ConnectError, SourceError
from tests.support.command_line import amp as command
from tests.support.command_line import one_sentence
from tests.support.faults import Run, wait_until
from tests.support.following import SQL
from tests.support.tcp_proxy import TcpProxy, schedule

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

# Not one of the names of this machine between whose ends gRPC sends no pings.
ELSEWHERE = '127.0.0.2'


@pytest.fixture
def amp() -> Iterator[LocalAmp]:
    with LocalAmp.simulate(seed=5, blocks=40, logs_per_block=20, microbatch_max_blocks=10) as server:
        server.faults.split(50)
        yield server


@pytest.fixture
def proxy(amp: LocalAmp) -> Iterator[TcpProxy]:
    host, _, port = amp.url.removeprefix('grpc://').partition(':')
    with TcpProxy(host, int(port), listen=ELSEWHERE) as network:
        yield network


def following(amp: LocalAmp, proxy: TcpProxy, folder: Path, keepalive: float) -> Run:
    source = f'grpc://{proxy.host}:{proxy.port}'
    return Run(amp, 'duckdb', {'path': str(folder / 'chain.db')}, source=source, keepalive=keepalive)


@pytest.fixture
def run(amp: LocalAmp, proxy: TcpProxy, tmp_path: Path) -> Run:
    return following(amp, proxy, tmp_path, 1.0)


@pytest.fixture
def patient_run(amp: LocalAmp, proxy: TcpProxy, tmp_path: Path) -> Run:
    """Pings are answered within three seconds also by a busy machine."""
    return following(amp, proxy, tmp_path, 3.0)


@pytest.mark.parametrize(
    ('kind', 'direction', 'after'),
    [
        ('reset', 'received', 2_000),
        ('reset', 'received', 60_000),
        ('reset', 'sent', 10),
        ('cut', 'received', 0),
        ('cut', 'received', 60_000),
        pytest.param('cut', 'received', 9, marks=pytest.mark.slow),
        pytest.param('cut', 'received', 20_001, marks=pytest.mark.slow),
        pytest.param('reset', 'received', 70_000, marks=pytest.mark.slow),
        pytest.param('reset', 'sent', 0, marks=pytest.mark.slow),
    ],
)
def test_a_connection_that_breaks_within_an_answer(run, proxy, kind, direction, after):
    def again() -> None:
        proxy.arm(kind, direction, after)
        run.mine(20)

    run.follow(again)
    wait_until(lambda: proxy.done[kind] == 1)
    run.check()


def test_a_server_that_falls_silent_in_the_middle_of_an_answer_is_left(run, proxy):
    def fall_silent() -> None:
        proxy.arm('stall', 'received', 10_000)
        run.mine(20)

    run.follow(fall_silent)
    assert proxy.done['stall'] == 1
    assert any('ping timeout' in str(retry.error) for retry in run.retries), run.retries
    run.check()


def test_silence_at_the_tip_is_no_failure(patient_run, proxy):
    """Nothing comes for longer than every limit that there is, on a connection whose other end answers pings."""
    silent = threading.Event()

    def wait() -> None:
        silent.wait(6.5)
        patient_run.mine(1)

    patient_run.follow(wait)
    assert not [retry for retry in patient_run.retries if 'ping timeout' in str(retry.error)]
    patient_run.check()


def test_a_slow_network_is_no_failure(patient_run, proxy):
    def slowly() -> None:
        proxy.drip(60_000)
        patient_run.mine(10)

    patient_run.follow(slowly)
    assert not patient_run.retries
    patient_run.check()


def test_a_server_that_restarts_behind_a_network_that_stays(run, amp, proxy):
    def restart() -> None:
        amp.stop()
        run.mine(3)
        threading.Timer(0.5, amp.start).start()

    run.follow(restart)
    assert run.retries
    run.check()


@pytest.mark.parametrize('seed', [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_reorgs_through_a_network_that_breaks_by_a_schedule(run, proxy, seed):
    def begin() -> None:
        proxy.misbehave(schedule(seed, sent=100, received=2_000, most=25), stall_seconds=0.2)
        run.mine(4)

    reorgs = [lambda depth=depth: run.reorg(depth) for depth in (2, 11, 5, 14, 1)]
    run.follow(begin, *[step for reorg in reorgs for step in (reorg, lambda: run.mine(6))])
    assert proxy.done.total() >= 5, proxy.done
    run.check()


# What a person reads


def test_one_answer_that_breaks_off_is_one_sentence(amp, proxy):
    url = f'grpc://{proxy.host}:{proxy.port}'
    with Client(url) as client:
        assert client.sql(SQL).to_arrow().num_rows == 800
        for kind in ('reset', 'cut'):
            proxy.arm(kind, 'received', 5_000)
            with pytest.raises(SourceError, match=rf'{proxy.host}:{proxy.port}') as raised:
                client.sql(SQL).to_arrow()
            assert isinstance(raised.value, ConnectError), raised.value
            assert raised.value.retryable
        assert tried_until_it_works(client).num_rows == 800, 'the client goes on'


def tried_until_it_works(client: Client) -> pa.Table:
    """Whoever is told that an error is retryable tries again: a call may ride on a connection that is just being lost."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.sql(SQL).to_arrow()
        except ConnectError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise


def test_a_server_that_never_answers_is_one_sentence(amp, proxy):
    proxy.arm('stall', 'received', 0)
    with Client(f'grpc://{proxy.host}:{proxy.port}', connect_timeout=1.0) as client:
        with pytest.raises(ConnectError, match='did not answer in time'):
            client.sql(SQL).to_arrow()


def test_the_command_line_tells_of_it_in_one_sentence_and_keeps_nothing(amp, proxy, tmp_path):
    proxy.arm('reset', 'received', 20_000)
    url = f'grpc://{proxy.host}:{proxy.port}'
    done = command('load', url, SQL, '--to', 'duckdb:///chain.db', '--table', 'logs', cwd=tmp_path)
    assert done.returncode in {4, 75}, done.stderr
    assert 'broke off' in one_sentence(done)
    done = command('load', url, SQL, '--to', 'duckdb:///chain.db', '--table', 'logs', cwd=tmp_path)
    assert done.returncode == 0
    assert b'800 in' in done.stderr
