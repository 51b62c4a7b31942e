"""Waiting that Ctrl-C may end at any moment.

Python's own waits (`threading.Condition`, and with it events, queues and futures) let go of a lock and take it back in
Python code. A signal that arrives between the two leaves a `with` block without the lock that it releases, and what comes
out is a RuntimeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['interruptible']


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt of a wait in the block is a KeyboardInterrupt. Conditions in it have an RLock, as they have by default:
    whoever does not hold one cannot release it for somebody else.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
