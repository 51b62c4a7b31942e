"""A backfill that is told to stop stops, whatever it waits for: the next try, a silent server, a cluster without workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager

import pytest

from amp import events
from amp.backfill import remote
from amp.devserver import LocalAmp
from amp.loaders.settings import StreamSettings
from amp.streaming.resilience import RetryConfig
from tests.integration.test_parallel_streaming import below, executor
from tests.support.faults import hook
from tests.support.following import stored

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

SECONDS = 30
AN_HOUR = RetryConfig(max_retries=5, initial_backoff_ms=3_600_000, max_backoff_ms=3_600_000)


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=5, blocks=300, logs_per_block=(1, 3)) as server:
        yield server


@pytest.fixture
def destination(tmp_path):
    return f'duckdb:///{tmp_path}/chain.db'


class Consumer:
    """Takes the results of a backfill in a thread of its own."""

    def __init__(self, results, *, closes_at_once: bool = False) -> None:
        self.results: list = []
        self._source = results
        self._closes_at_once = closes_at_once
        self._thread = threading.Thread(target=self._consume, daemon=True)
        self._thread.start()

    def _consume(self) -> None:
        with closing(self._source):
            if self._closes_at_once:
                return
            self.results.extend(self._source)

    @property
    def has_ended(self) -> bool:
        self._thread.join(SECONDS)
        return not self._thread.is_alive()


@pytest.fixture
def lanes():
    """The lanes of this test that are there when it is asked."""
    others = set(threading.enumerate())
    return lambda: [t for t in set(threading.enumerate()) - others if t.name.startswith('amp-lane')]


@contextmanager
def after_the_first_commit(act: Callable[[], object]) -> Iterator[threading.Event]:
    """Calls `act` in the lane's own thread, before it goes on; gives what is set when a lane waits for another try."""
    waits, acted = threading.Event(), []

    def on(event: events.Event) -> None:
        if isinstance(event, events.Retrying):
            waits.set()
        elif isinstance(event, events.Committed) and not acted:
            acted.append(act())

    unlisten = events.listen(on)
    try:
        yield waits
    finally:
        unlisten()


def test_while_it_waits_for_another_try(amp, destination, lanes):
    stop = threading.Event()
    runner = executor(amp, destination, max_block=200, num_workers=1, retry_config=AN_HOUR)
    with after_the_first_commit(lambda: amp.faults.refuse('UNAVAILABLE', 'busy', times=100)) as waits:
        consumer = Consumer(runner.load_with_resume_optimization(settings=StreamSettings(stop=stop)))
        assert waits.wait(SECONDS)
    stop.set()
    assert consumer.has_ended
    assert not lanes()
    amp.faults.clear()
    assert 0 < sum(r.metadata['blocks'] for r in consumer.results) < 200
    list(executor(amp, destination, max_block=200).load_with_resume_optimization())
    assert stored(destination) == below(amp, 200)


@pytest.mark.parametrize('how', ['stop', 'close'])
def test_while_the_server_says_nothing(amp, destination, lanes, how):
    stop = threading.Event()
    runner = executor(amp, destination, max_block=200, num_workers=1, partition_size=20)
    results = runner.load_with_resume_optimization(settings=StreamSettings(stop=stop))
    stalls: list = []
    with after_the_first_commit(lambda: stalls.append(amp.faults.stall(times=100))):
        next(results)
        stalls[0].wait(SECONDS)
    if how == 'stop':
        stop.set()
    consumer = Consumer(results, closes_at_once=how == 'close')
    assert consumer.has_ended
    assert not lanes()
    amp.faults.clear()
    list(executor(amp, destination, max_block=200).load_with_resume_optimization())
    assert stored(destination) == below(amp, 200)


class WithoutWorkers(Executor):
    """Takes tasks, as a cluster does whose workers have all gone, and nobody ever runs them."""

    def __init__(self) -> None:
        self.futures: list[Future] = []
        self.asked = threading.Event()

    def submit(self, fn, /, *args, **kwargs) -> Future:
        self.futures.append(Future())
        self.asked.set()
        return self.futures[-1]


def test_while_no_worker_answers(amp, destination, monkeypatch, caplog):
    """It says so now and then, and its tasks are taken back when it is stopped."""
    monkeypatch.setattr(remote, '_SILENCE', 0.0)
    stop, pool = threading.Event(), WithoutWorkers()
    with caplog.at_level(logging.WARNING, 'amp.backfill'):
        runner = executor(amp, destination, max_block=200, num_workers=2, executor=pool)
        consumer = Consumer(runner.load_with_resume_optimization(settings=StreamSettings(stop=stop)))
        assert pool.asked.wait(SECONDS)
        deadline = time.monotonic() + SECONDS
        while 'none has ended' not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        assert consumer.has_ended
    assert '2 tasks are out and none has ended' in caplog.text
    assert all(future.cancelled() for future in pool.futures)
    assert consumer.results == []


def test_the_next_partition_is_asked_for_before_the_last_one_is_committed(amp, destination, monkeypatch):
    """The first commit is held back until the server has been asked for the blocks after it."""
    asked = threading.Event()
    seen: list[str] = []

    def reached(point: str) -> None:
        if point == 'lane.before_commit':
            seen.append(point)
            assert asked.wait(SECONDS), 'the lane asks only afterwards'

    hook(monkeypatch, reached)
    runner = executor(amp, destination, max_block=120, num_workers=1)
    open_result = runner.client.transport.open

    def opened(sql, **options):
        if '>= 40 AND' in sql:
            asked.set()
        return open_result(sql, **options)

    monkeypatch.setattr(runner.client.transport, 'open', opened)
    assert all(result.success for result in runner.load_with_resume_optimization())
    assert len(seen) == 3
    assert stored(destination) == below(amp, 120)
