"""Waiting that Ctrl-C may end at any moment.

`threading.Condition` lets go of its lock and takes it back in Python code. A signal that arrives between the two leaves
its `with` block without the lock, and what comes out is `RuntimeError: cannot release un-acquired lock`.
"""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ['Condition', 'wait_for']


class Condition(threading.Condition):
    """A condition over an RLock, of which an interrupt comes out as what it is."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        try:
            super().__exit__(exc_type, exc_val, exc_tb)
        except RuntimeError:
            # Of an RLock: it was not ours to release, and nobody else's was released.
            if not isinstance(exc_val, KeyboardInterrupt):
                raise


def wait_for(event: threading.Event, seconds: float | None = None) -> bool:
    """Wait for the event; whether it has come. Raises KeyboardInterrupt."""
    try:
        return event.wait(seconds)
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
