"""Signs of life while a microbatch is computed: batches without rows, one each interval in which nothing else came."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ['with_keep_alives']

T = TypeVar('T')

_LOOK_SECONDS = 0.1


def with_keep_alives(items: Iterator[T], seconds: float, sign: Callable[[], T]) -> Iterator[T]:
    """The items as they come, and a sign whenever none came for `seconds`. What `items` raises is raised here.

    They are computed in a thread of their own, two ahead of what is taken.
    """
    ahead = _Ahead(items)
    threading.Thread(target=ahead.compute, name='amp-devserver-microbatch', daemon=True).start()
    try:
        while True:
            try:
                found = ahead.results.get(timeout=seconds)
            except queue.Empty:
                yield sign()
                continue
            if isinstance(found, _End):
                if found.error is not None:
                    raise found.error
                return
            yield found
    finally:
        ahead.left.set()


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _Ahead(Generic[T]):
    """Computes items until there is no room for more; `left` makes it stop."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self.results: queue.Queue[T | _End] = queue.Queue(maxsize=1)
        self.left = threading.Event()

    def compute(self) -> None:
        """Put the items, and the end, into `results`."""
        error = None
        try:
            for item in self._items:
                self._put(item)
                if self.left.is_set():
                    return
        except BaseException as caught:  # noqa: BLE001  # it is raised again where the items are taken
            error = caught
        self._put(_End(error))

    def _put(self, result: T | _End) -> None:
        while not self.left.is_set():
            try:
                self.results.put(result, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return
