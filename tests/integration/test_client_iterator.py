"""The reader thread: what is read ahead, how much, and how it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from amp.streaming.iterator import END, StreamingResultIterator
from amp.streaming.types import BatchMetadata, BlockRange, ResponseBatch

pytestmark = pytest.mark.integration

LONGEST = 60.0  # seconds; a protection, nothing here takes long


def response(number: int, size: int = 8) -> ResponseBatch:
    batch = pa.record_batch({'x': pa.array([b'x' * size])})
    return ResponseBatch.data_batch(batch, BatchMetadata([BlockRange('testnet', number, number, '0x1')]))


def wait_until(condition: Callable[[], bool], seconds: float = LONGEST) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.005)


def readers() -> set[threading.Thread]:
    """The threads that read; another test may have left one that is about to end."""
    return {thread for thread in threading.enumerate() if thread.name == 'amp-reader'}


class Source:
    """Gives what it is fed, waits in silence otherwise, and can be cancelled."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: list[ResponseBatch | BaseException] = []
        self.taken = 0
        self.cancelled = False

    def feed(self, *items: ResponseBatch | BaseException) -> None:
        with self.changed:
            self.waiting.extend(items)
            self.changed.notify_all()

    def cancel(self) -> None:
        with self.changed:
            self.cancelled = True
            self.changed.notify_all()

    def __iter__(self) -> Iterator[ResponseBatch]:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.cancelled)
                if self.cancelled:
                    raise ConnectionAbortedError('cancelled')
                item = self.waiting.pop(0)
            if isinstance(item, BaseException):
                raise item
            self.taken += 1
            yield item


def test_everything_in_order_and_then_the_end() -> None:
    given = [response(n) for n in range(100)]
    with StreamingResultIterator(given) as batches:
        assert list(batches) == given
        assert batches.get() is END
        assert batches.get(timeout=0.01) is END
        assert not batches.backlog


def test_a_timer_can_run_in_the_silence() -> None:
    source = Source()
    with StreamingResultIterator(source, cancel=source.cancel) as batches:
        assert batches.get(timeout=0.01) is None
        source.feed(response(1))
        assert batches.get(timeout=LONGEST) == response(1)
        assert batches.get(timeout=0) is None


def test_backlog_says_that_more_is_here() -> None:
    source = Source()
    with StreamingResultIterator(source, cancel=source.cancel) as batches:
        assert not batches.backlog
        source.feed(response(1), response(2))
        assert batches.get() == response(1)
        wait_until(lambda: batches.backlog)
        assert batches.get() == response(2)
        assert not batches.backlog


def test_an_error_comes_after_the_batches_before_it_and_stays() -> None:
    source = Source()
    source.feed(response(1), response(2), ValueError('broken'))
    with StreamingResultIterator(source, cancel=source.cancel) as batches:
        assert batches.get() == response(1)
        assert batches.get() == response(2)
        for _ in range(2):
            with pytest.raises(ValueError, match='broken'):
                batches.get(timeout=LONGEST)


def test_the_queue_is_bounded_by_bytes() -> None:
    source = Source()
    source.feed(*(response(n, 1000) for n in range(50)))
    with StreamingResultIterator(source, max_bytes=5000, cancel=source.cancel) as batches:
        assert batches.get() == response(0, 1000)
        # Four fit (1008 bytes each), one is in the reader's hand, one was taken.
        wait_until(lambda: source.taken == 6)
        with source.changed:
            source.changed.wait(timeout=0.05)
        assert source.taken == 6
        assert [batches.get() for _ in range(49)] == [response(n, 1000) for n in range(1, 50)]


def test_a_batch_above_the_bound_still_fits() -> None:
    given = [response(n, 10_000) for n in range(5)]
    with StreamingResultIterator(given, max_bytes=10) as batches:
        assert list(batches) == given


def test_close_wakes_a_blocked_reader_and_joins_it() -> None:
    before = readers()
    source = Source()
    batches = StreamingResultIterator(source, cancel=source.cancel)
    source.feed(response(1))
    assert batches.get() == response(1)
    assert readers() - before
    batches.close()
    # It waits for the thread, but not for ever: a thread that nobody woke would still be there.
    assert readers() <= before
    batches.close()
    assert source.cancelled
    assert batches.get() is END


def test_close_wakes_a_reader_that_waits_for_room() -> None:
    before = readers()
    source = Source()
    source.feed(*(response(n, 1000) for n in range(50)))
    batches = StreamingResultIterator(source, max_bytes=2000, cancel=source.cancel)
    batches.get()
    wait_until(lambda: source.taken >= 3)
    batches.close()
    assert readers() <= before


def test_close_wakes_a_consumer_in_another_thread() -> None:
    source = Source()
    batches = StreamingResultIterator(source, cancel=source.cancel)
    got: list[object] = []
    consumer = threading.Thread(target=lambda: got.append(batches.get()))
    consumer.start()
    batches.close()
    consumer.join(LONGEST)
    assert got == [END]


def test_closed_before_it_began_it_never_reads() -> None:
    source = Source()
    batches = StreamingResultIterator(source, cancel=source.cancel)
    batches.close()
    assert list(batches) == []
    assert source.taken == 0


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='max_bytes'):
        StreamingResultIterator([], max_bytes=0)
