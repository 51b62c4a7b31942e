"""Ctrl-C at a chosen moment of a call."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ['interrupted', 'pressed_after']


@contextmanager
def pressed_after(seconds: float) -> Iterator[None]:
    """Ctrl-C comes once, so long after the block began: in it or, when the block is faster, at its end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        try:
            yield
        finally:
            timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(act: Callable[[], object], seconds: float) -> None:
    """Call `act` and press Ctrl-C so long after. What comes out is that, or the call was over before."""
    with suppress(KeyboardInterrupt), pressed_after(seconds):
        act()
