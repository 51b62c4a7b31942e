"""Signs of life while a microbatch is computed: batches without rows, one each interval in which nothing else came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from amp.devserver.ahead import Ahead

__all__ = ['with_keep_alives']

T = TypeVar('T')


def with_keep_alives(
    items: Iterator[T], seconds: float, sign: Callable[[], T], gone: Callable[[], bool] = lambda: False
) -> Iterator[T]:
    """The items as they come, and a sign whenever none came for `seconds`. What `items` raises is raised here, and
    LeftError when `gone` says that nobody takes them any more.

    They are computed in a thread of their own, one ahead of what is taken.
    """
    with closing(Ahead(items, room=1, gone=gone)) as ahead:
        while True:
            if not ahead.wait(seconds):
                yield sign()
                continue
            try:
                item = next(ahead)
            except StopIteration:
                return
            yield item
