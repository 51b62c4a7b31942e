"""What amp does about failures, seen at real ones: the breaker, the limiter, the size of batches, the bytes in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import amp.loaders.redis.connect as redis_connect
from amp.client import Client
from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from amp.loaders.session import stream_query
from amp.streaming.iterator import StreamingResultIterator
from tests.support.faults import QUICK, At, Run, hook, wait_until
from tests.support.following import position
from tests.support.places import PLACES, Place
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(redis_connect, '_LONGEST_SILENCE', 2.0)
    with PLACES[request.param](request.getfixturevalue, tmp_path) as found:
        yield found
        hook(monkeypatch, None)


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        'place', [pytest.param(n, marks=getattr(pytest.mark, n)) for n in names], indirect=True
    )


def dialled(proxy: TcpProxy) -> int:
    return proxy.done['refused']


@on('redis')
def test_an_open_breaker_leaves_the_server_alone_and_one_probe_finds_out_that_it_is_back(place: Place) -> None:
    breaker = {'failure_threshold': 2, 'recovery_ms': 3_000}
    config = {**place.through, 'resilience': {'circuit_breaker': breaker}}
    batch = pa.record_batch({'x': [1, 2, 3]})
    with create_loader(place.loader, config) as loader:
        assert loader.load_batch(batch, place.table).success
        place.proxy.refuse()
        place.proxy.cut()
        for _ in range(2):
            assert 'connection to Redis' in str(loader.load_batch(batch, place.table).error)
        assert loader.attempts.breaker.state == 'open'
        before = dialled(place.proxy)
        refused = loader.load_batch(batch, place.table)
        assert 'failed 2 times in a row' in str(refused.error)
        assert dialled(place.proxy) == before, 'an open breaker lets nothing through'

        wait_until(lambda: loader.attempts.breaker.state == 'half_open')
        assert 'connection to Redis' in str(loader.load_batch(batch, place.table).error), 'the probe meets the server'
        assert dialled(place.proxy) > before
        assert loader.attempts.breaker.state == 'open'

        place.proxy.refuse(False)
        wait_until(lambda: loader.attempts.breaker.state == 'half_open')
        assert loader.load_batch(batch, place.table).success
        assert loader.attempts.breaker.state == 'closed'
        assert loader.load_batch(batch, place.table).success


@on('redis')
def test_a_stream_with_a_breaker_comes_back_although_it_asks_more_often_than_the_breaker_allows(place: Place) -> None:
    resilience = {'circuit_breaker': {'failure_threshold': 1, 'recovery_ms': 4_000}}
    with LocalAmp.simulate(seed=3, blocks=8, logs_per_block=20, microbatch_max_blocks=4) as local:
        run = Run(local, place.loader, {**place.through, 'resilience': resilience}, place.direct, place.table)

        def come_back() -> None:
            wait_until(lambda: bool(run.retries))
            place.proxy.refuse(False)

        def away() -> None:
            place.proxy.refuse()
            place.proxy.cut()
            threading.Thread(target=come_back, daemon=True).start()
            run.mine(4)

        run.follow(away)
        assert any('times in a row' in str(retry.error) for retry in run.retries), 'the breaker never opened'
        run.check()


@on('clickhouse', 'iceberg')
def test_the_limiter_slows_down_at_429_and_recovers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    back_pressure = {'max_delay_ms': 40, 'recovery_factor': 0.5}
    config = {**place.through, 'resilience': {'back_pressure': back_pressure}}
    with LocalAmp.simulate(seed=3, blocks=4, logs_per_block=20, microbatch_max_blocks=1) as local:
        delays = []
        with Client(local.url) as client:
            loader = create_loader(place.loader, config)
            query = client.sql('SELECT block_num, block_hash, log_index FROM eth_rpc.logs')
            options: dict[str, Any] = {'commit_rows': 1}
            stream = stream_query(loader, query, place.table, retry=QUICK, **options)
            # Drivers ask a few times by themselves before they say so.
            at = At('unit.begun', lambda: place.proxy.answer(429, times=6, retry_after=0))
            for result in stream:
                delays.append(loader.rate_limiter.get_current_delay())
                if position(result)[local.network] != local.head:
                    continue
                if len(delays) >= 12 and at.happened:
                    break
                hook(monkeypatch, at)
                place.proxy.heal() if at.happened else None
                local.mine(4)
            stream.close()
        assert delays[0] == 0
        assert max(delays) >= 10, f'429 did not slow it down: {delays}'
        assert delays[-1] == 0, f'it did not recover: {delays}'


@on('redis', 'postgresql')
def test_silence_halves_the_batches_and_success_lets_them_grow(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalAmp.simulate(seed=3, blocks=8, logs_per_block=200, microbatch_max_blocks=8) as local:
        sizes = []
        with Client(local.url) as client:
            loader = create_loader(place.loader, dict(place.through))
            most = loader.attempts.batch_size.rows
            stream = stream_query(
                loader,
                client.sql('SELECT block_num, block_hash, log_index, data FROM eth_rpc.logs'),
                place.table,
                retry=QUICK,
            )
            at = At('unit.begun', lambda: place.proxy.arm('stall', 'received', seconds=60))
            for result in stream:
                sizes.append(loader.attempts.batch_size.rows)
                if position(result)[local.network] != local.head:
                    continue
                if len(sizes) == 4:
                    break
                hook(monkeypatch, at)
                local.mine(4)
            stream.close()
        assert place.proxy.done['stall'] == 1
        assert sizes[0] == most
        assert sizes[1] < most, 'a timeout did not make the batches smaller'
        assert sizes[1] < sizes[2] < sizes[3] < most, sizes


@on('redis')
def test_a_slow_destination_slows_the_server_down_by_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and what waits in memory is bounded by what the connection says, however long the backlog is."""
    most = 64 * 1024
    config = {**place.through, 'resilience': {'back_pressure': {'max_bytes_in_flight': most}}}
    waiting, largest = [], []
    plain = StreamingResultIterator.get

    def watched(self: StreamingResultIterator, timeout: float | None = None) -> Any:
        waiting.append(self._queued_bytes)
        response = plain(self, timeout)
        largest.append(getattr(getattr(response, 'data', None), 'nbytes', 0))
        return response

    with LocalAmp.simulate(seed=3, blocks=60, logs_per_block=100, microbatch_max_blocks=30) as local:
        local.faults.split(50)
        run = Run(local, place.loader, config, place.direct, place.table)
        monkeypatch.setattr(StreamingResultIterator, 'get', watched)
        place.proxy.drip(1_500_000)
        started = time.monotonic()
        run.follow()
        assert time.monotonic() - started > 0.5, 'the network was not slow'
        total = sum(largest)
        assert total > 10 * most
        assert max(waiting) <= most + max(largest), f'{max(waiting)} bytes waited'
        assert max(waiting) > most / 4, 'it was never full: this proves nothing'
        place.proxy.heal()
        run.check()
