"""A reader that is fed: batches pushed by one thread, pulled as a RecordBatchReader by another.

Bulk paths want a whole reader while a stream hands out one batch at a time; a feed joins the two without collecting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from amp.waiting import interruptible

__all__ = ['Feed']


class _CancelledError(Exception):
    """Raised inside the reader so that whoever pulls it stops without a result."""


class Feed:
    """Runs `consume(reader)` in a thread; `push` gives it batches, `finish` waits for its result.

    `consume` gets a RecordBatchReader of `schema` and returns a number of rows. At most `depth` batches wait. The thread
    begins with the first call: whoever makes a feed can always cancel it, wherever a Ctrl-C comes.
    """

    def __init__(self, schema: pa.Schema, consume: Callable[[pa.RecordBatchReader], int], depth: int = 4) -> None:
        self._schema = schema
        self._consume = consume
        self._depth = depth
        self._changed = threading.Condition()
        self._waiting: deque[pa.RecordBatch] = deque()
        self._begun = self._consuming = self._complete = self._cancelled = self._done = False
        self._error: BaseException | None = None
        self._rows = 0

    def push(self, batch: pa.RecordBatch) -> None:
        """Hand one batch over; waits while the queue is full. Raises what the consumer raised."""
        with interruptible():
            self._begin()
            with self._changed:
                self._changed.wait_for(lambda: self._done or len(self._waiting) < self._depth)
                if not self._done:
                    self._waiting.append(batch)
                    self._changed.notify_all()
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
        with interruptible():
            self._begin()
            with self._changed:
                self._complete = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._done)
        self._raise()
        return self._rows

    def cancel(self) -> None:
        """Make the reader fail, wait for the consumer to stop, and forget its error."""
        with interruptible(), self._changed:
            self._cancelled = True
            self._changed.notify_all()
            # A thread that has not come so far yet will not begin to consume.
            self._changed.wait_for(lambda: self._done or not self._consuming)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._run, name='amp-feed', daemon=True).start()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._complete or self._cancelled)
                if self._cancelled:
                    raise _CancelledError
                if not self._waiting:
                    return
                batch = self._waiting.popleft()
                self._changed.notify_all()
            yield batch

    def _run(self) -> None:
        with self._changed:
            if self._cancelled:
                return
            self._consuming = True
        try:
            self._rows = self._consume(pa.RecordBatchReader.from_batches(self._schema, self._batches()))
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that pushes, and is raised there
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()
