"""A feed: batches pushed by one thread, read by another, and never left with somebody who waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest

from amp.loaders.feed import Feed

pytestmark = pytest.mark.unit

SCHEMA = pa.schema([('x', pa.int64())])
NAME = 'amp-feed'


def batches(count: int) -> Iterator[pa.RecordBatch]:
    return (pa.record_batch({'x': pa.array([i])}, schema=SCHEMA) for i in range(count))


def total(reader: pa.RecordBatchReader) -> int:
    return sum(batch['x'][0].as_py() for batch in reader)


def feeds() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == NAME}


def test_every_batch_arrives() -> None:
    assert Feed(SCHEMA, total, depth=2).push_all(batches(100)) == 4950
    assert Feed(SCHEMA, total).finish() == 0


def test_what_the_consumer_raises_is_raised_where_it_is_fed() -> None:
    def refuse(reader: pa.RecordBatchReader) -> int:
        reader.read_next_batch()
        raise ValueError('no more')

    with pytest.raises(ValueError, match='no more'):
        Feed(SCHEMA, refuse, depth=1).push_all(batches(100))


def test_a_cancelled_feed_ends_its_reader() -> None:
    ended: list[BaseException] = []

    def consume(reader: pa.RecordBatchReader) -> int:
        try:
            return total(reader)
        except BaseException as error:
            ended.append(error)
            raise

    feed = Feed(SCHEMA, consume)
    feed.push(next(batches(1)))
    feed.cancel()
    assert len(ended) == 1
    unused = Feed(SCHEMA, consume)
    unused.cancel()
    assert len(ended) == 1


def test_nobody_consumes_before_the_first_batch() -> None:
    begun, before = threading.Event(), feeds()
    Feed(SCHEMA, lambda reader: begun.set() or 0)
    assert not begun.is_set()
    assert feeds() <= before


@pytest.mark.parametrize('comes', ['before the thread', 'after the thread'])
def test_an_interrupt_while_the_thread_begins_leaves_none(monkeypatch: pytest.MonkeyPatch, comes: str) -> None:
    start: Callable[[threading.Thread], None] = threading.Thread.start
    before = feeds()

    def interrupted(self: threading.Thread) -> None:
        if self.name == NAME and comes == 'after the thread':
            start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, 'start', interrupted)
    with pytest.raises(KeyboardInterrupt):
        Feed(SCHEMA, total).push_all(batches(3))
    for thread in feeds() - before:
        thread.join(10)
    assert feeds() <= before
