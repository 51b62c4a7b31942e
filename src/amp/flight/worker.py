"""Blocking calls that nobody can interrupt, made where that hurts nobody: in a daemon thread.

A call inside gRPC holds off Ctrl-C, and `do_get` on a silent stream returns only with the first block. So such calls
run beside the caller, who waits on a condition: a signal reaches the main thread, and another thread may abandon the
wait. The call itself is then left to end by itself, and what it brings is thrown away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from amp.waiting import interruptible

__all__ = ['Abandoned', 'Worker']

T = TypeVar('T')


class Abandoned(BaseException):
    """`Worker.wait` ended because another thread called `abandon`. Never leaves amp.flight."""


class Worker(Generic[T]):
    """One call in a daemon thread. `discard` gets a result that came after the wait was abandoned."""

    def __init__(self, call: Callable[[], T], *, discard: Callable[[T], None] | None = None) -> None:
        self._call = call
        self._discard = discard
        self._changed = threading.Condition()
        self._abandoned = False
        self._done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name='amp-flight-call', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            with self._changed:
                self._error, self._done = error, True
                self._changed.notify_all()
            return
        with self._changed:
            if not self._abandoned:
                self._result, self._done = result, True
                self._changed.notify_all()
                return
        if self._discard is not None:
            self._discard(result)

    def wait(self) -> T:
        """What the call returns or raises. Raises Abandoned once `abandon` was called before it was done."""
        try:
            with interruptible(), self._changed:
                self._changed.wait_for(lambda: self._done or self._abandoned)
        except BaseException:  # Ctrl-C: nobody waits any more
            self.abandon()
            raise
        if not self._done:
            raise Abandoned
        self._thread.join()
        if self._error is not None:
            raise self._error
        return cast('T', self._result)

    def abandon(self) -> None:
        """Ends the wait, from any thread; nothing when the call is done."""
        with self._changed:
            if not self._done:
                self._abandoned = True
                self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Waits for the thread at most `timeout` seconds."""
        self._thread.join(timeout)
