"""A reader that is fed: batches pushed by one thread, pulled as a RecordBatchReader by another.

Bulk paths want a whole reader while a stream hands out one batch at a time; a feed joins the two without collecting.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

__all__ = ['Feed']


class _CancelledError(Exception):
    """Raised inside the reader so that whoever pulls it stops without a result."""


class Feed:
    """Runs `consume(reader)` in a thread; `push` gives it batches, `finish` waits for its result.

    `consume` gets a RecordBatchReader of `schema` and returns a number of rows. At most `depth` batches wait.
    """

    def __init__(self, schema: pa.Schema, consume: Callable[[pa.RecordBatchReader], int], depth: int = 4) -> None:
        self._schema = schema
        self._consume = consume
        self._queue: queue.Queue[pa.RecordBatch | None] = queue.Queue(depth)
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._rows = 0
        self._thread = threading.Thread(target=self._run, name='amp-feed', daemon=True)
        self._thread.start()

    def push(self, batch: pa.RecordBatch) -> None:
        """Hand one batch over; waits while the queue is full. Raises what the consumer raised."""
        if not self._put(batch):
            self._raise()

    def push_all(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Push each batch and finish; when one cannot be had or an interrupt comes, cancel. Raises what the batches or the consumer raised."""
        try:
            for batch in batches:
                self.push(batch)
            return self.finish()
        except BaseException:  # Ctrl-C too: the thread that reads would wait for ever
            self.cancel()
            raise

    def finish(self) -> int:
        """Close the reader and wait; the consumer's result. Raises what it raised."""
        self._put(None)
        self._thread.join()
        self._raise()
        return self._rows

    def cancel(self) -> None:
        """Make the reader fail, wait for the consumer to stop, and forget its error."""
        self._cancelled.set()
        self._put(None)
        self._thread.join()

    def _put(self, item: pa.RecordBatch | None) -> bool:
        """False when the consumer has stopped and takes nothing more."""
        while not self._done.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while (batch := self._queue.get()) is not None and not self._cancelled.is_set():
            yield batch
        if self._cancelled.is_set():
            raise _CancelledError

    def _run(self) -> None:
        try:
            self._rows = self._consume(pa.RecordBatchReader.from_batches(self._schema, self._batches()))
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that pushes, and is raised there
            self._error = error
        finally:
            self._done.set()
