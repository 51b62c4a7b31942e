"""Receiving beside working: a thread reads the source into a queue that is bounded by bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Final, Literal, Self

from amp.streaming.types import ResponseBatch
from amp.waiting import interruptible

__all__ = ['DEFAULT_MAX_BYTES', 'END', 'End', 'StreamingResultIterator']

DEFAULT_MAX_BYTES = 8 * 1024**2
_JOIN_SECONDS = 5.0


class End(Enum):
    """The type of `END`."""

    END = 'end'


END: Final = End.END


class StreamingResultIterator:
    """The batches of `batches`, read ahead by a thread while at most `max_bytes` are queued.

    One batch always fits, however large it is. The thread starts with `start`, or the first `get` or `next`. What the source
    raises is raised here, after the batches that came before it. `cancel` must make a blocked source return, from
    any thread; `close` calls it and joins the thread. Use it as a context manager, or close it.
    """

    def __init__(
        self,
        batches: Iterable[ResponseBatch],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        cancel: Callable[[], None] | None = None,
    ) -> None:
        if max_bytes <= 0:
            raise ValueError(f'max_bytes is positive: {max_bytes}')
        self._source = batches
        self._cancel = cancel
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._queue: deque[tuple[ResponseBatch, int]] = deque()
        self._queued_bytes = 0
        self._error: BaseException | None = None
        self._finished = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def backlog(self) -> bool:
        """True when a batch is waiting already: the source is ahead of the consumer."""
        return bool(self._queue)

    @property
    def has_come(self) -> bool:
        """True when the source has ended well: the batches that are left wait here already."""
        return self._finished and self._error is None

    def start(self) -> None:
        """Begin to read: what is asked for is under way before the first `get`. Harmless when it has begun."""
        with self._changed:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._read, name='amp-reader', daemon=True)
                thread.start()
                # Only now: a signal may come while it starts, and a thread that has not started cannot be joined.
                self._thread = thread

    def get(self, timeout: float | None = None) -> ResponseBatch | Literal[End.END] | None:
        """The next batch; `END` after the last (and after `close`); None when `timeout` seconds pass without one.

        Raises what the source raised, each time it is asked again.
        """
        self.start()
        with interruptible(), self._changed:
            if not self._queue and not self._finished and not self._closed:
                self._changed.wait_for(lambda: self._queue or self._finished or self._closed, timeout)
            if self._closed:
                return END
            if self._queue:
                response, size = self._queue.popleft()
                self._queued_bytes -= size
                self._changed.notify_all()
                return response
            if not self._finished:
                return None
        if self._error is not None:
            raise self._error
        return END

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ResponseBatch:
        while (response := self.get()) is None:
            pass
        if response is END:
            raise StopIteration
        return response

    def close(self) -> None:
        """Cancels the source, drops what is queued and joins the thread. May be called twice, and from any thread."""
        with self._changed:
            unfinished = not self._finished
            self._closed = True
            self._queue.clear()
            self._queued_bytes = 0
            self._changed.notify_all()
        if unfinished and self._cancel is not None:
            self._cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for response in self._source:
                if not self._put(response):
                    break
        except BaseException as caught:  # noqa: BLE001 - the consumer raises it
            error = caught
        with self._changed:
            self._error, self._finished = error, True
            self._changed.notify_all()

    def _put(self, response: ResponseBatch) -> bool:
        """False when nobody wants it any more."""
        size = response.data.nbytes if response.data is not None else 0
        with self._changed:
            while self._queue and self._queued_bytes + size > self._max_bytes and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._queue.append((response, size))
            self._queued_bytes += size
            self._changed.notify_all()
            return True
