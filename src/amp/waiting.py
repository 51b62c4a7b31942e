"""Ctrl-C is a KeyboardInterrupt, whatever was made of it on the way.

Python's own waits (`threading.Condition`, and with it events, queues and futures) let go of a lock and take it back in
Python code. A signal that arrives between the two leaves a `with` block without the lock that it releases, and what comes
out is a RuntimeError. Libraries that call Python from elsewhere (Arrow, DuckDB, Pydantic) tell what was raised there in an
error of their own, and some import what they need: a module of C++ that is interrupted ends the process.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ['interruptible', 'uninterrupted']

_TOLD = re.compile(r'(^|: )KeyboardInterrupt:? *$')


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt of the block is a KeyboardInterrupt. Conditions in it have an RLock, as they have by default:
    whoever does not hold one cannot release it for somebody else.
    """
    handled = sys.exc_info()[1]
    try:
        yield
    except Exception as error:  # every library has its own
        if _is_interrupt(error, handled):
            raise KeyboardInterrupt from error
        raise


def _is_interrupt(error: BaseException | None, handled: BaseException | None) -> bool:
    """True when an interrupt led to the error. `handled` was there before: it led to nothing."""
    seen = {id(handled)}
    while error is not None and id(error) not in seen:  # an error raised anew may be among its own causes
        if isinstance(error, KeyboardInterrupt) or _TOLD.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """An interrupt of the block comes at its end: for what takes a moment, and cannot be left in the middle."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(signal.SIGINT, came[0])
