"""Results that are computed in threads of their own, ahead of whoever takes them, so that work and sending overlap."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, Self, TypeVar

__all__ = ['Ahead', 'LeftError', 'in_order', 'wait_for_all']

T = TypeVar('T')

_NAME = 'amp-devserver-ahead'
_LOOK_SECONDS = 0.25


class LeftError(Exception):
    """Nobody waits for the result any more."""


class Ahead(Generic[T]):
    """An iterator over `items` that computes them in a thread until those that wait weigh `room`, then pauses.

    What `items` raises is raised here, in its turn; LeftError when `gone`, which is asked while an item is waited for, says
    so. `close` makes the thread stop, within the item that it is at if that runs Python now and then.
    """

    def __init__(
        self,
        items: Iterator[T],
        room: int,
        weight: Callable[[T], int] = lambda _: 1,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._items = items
        self._gone = gone
        self._computing = True
        self._room = room
        self._weight = weight
        self._changed = threading.Condition()
        self._waiting: deque[tuple[T, int]] = deque()
        self._held = 0
        self._ended = self._left = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        self.wait(math.inf)
        with self._changed:
            if self._waiting:
                item, weight = self._waiting.popleft()
                self._held -= weight
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def wait(self, seconds: float) -> bool:
        """Wait until the next item is there, or the end; False when it is not after so many seconds. Raises LeftError."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self._changed.wait_for(self._has_something, min(until - time.monotonic(), _LOOK_SECONDS)):
                if self._gone():
                    raise LeftError
                if time.monotonic() >= until:
                    return False
        return True

    def close(self) -> None:
        """Compute no more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()
            if self._computing and self._thread.ident is not None:
                # DataFusion lets Python look up once a second, and this is then raised there.
                thread = ctypes.c_ulong(self._thread.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))

    def _has_something(self) -> bool:
        return bool(self._waiting) or self._ended

    def _has_room(self) -> bool:
        return self._held < self._room or self._left

    def _run(self) -> None:
        # It may come when there is nothing left to be stopped.
        with suppress(SystemExit):
            self._compute()

    def _compute(self) -> None:
        error = None
        try:
            for item in self._items:
                weight = self._weight(item)
                with self._changed:
                    self._computing = False
                    self._waiting.append((item, weight))
                    self._held += weight
                    self._changed.notify_all()
                    self._changed.wait_for(self._has_room)
                    if self._left:
                        break
                    self._computing = True
        except SystemExit:
            # Not kept: its traceback would keep the items, and they go on by themselves.
            pass
        except BaseException as caught:  # noqa: BLE001  # it is raised again where the items are taken
            error = caught
        with self._changed:
            self._computing = False
            self._error, self._ended = error, True
            self._changed.notify_all()


def wait_for_all(seconds: float) -> bool:
    """Wait for the threads of all results to end; False when some have not after so many seconds."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == _NAME:
            thread.join(max(deadline - time.monotonic(), 0))
    return not any(thread.name == _NAME for thread in threading.enumerate())


def in_order(
    parts: Sequence[Iterator[T]],
    at_once: int,
    room: int,
    weight: Callable[[T], int] = lambda _: 1,
    gone: Callable[[], bool] = lambda: False,
) -> Iterator[T]:
    """The items of the first part, then those of the next; up to `at_once` parts are computed while others are taken.

    Raises LeftError when `gone`, which is asked now and then, says that nobody takes them any more.
    """
    waiting = deque(parts)
    started: deque[Ahead[T]] = deque()
    try:
        while waiting or started:
            while waiting and len(started) < at_once:
                started.append(Ahead(waiting.popleft(), room, weight, gone))
            yield from started[0]
            started.popleft()
    finally:
        for reader in started:
            reader.close()
