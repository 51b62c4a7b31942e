"""Who reads the folders of a store just now, so that files are replaced only when nobody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['READERS', 'Readers']


class Readers:
    """Counts readers; whoever replaces files needs a moment without any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reading = 0
        self._replacing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """No file is replaced meanwhile. Waits for a replacement that has begun."""
        with self._changed:
            # Who reads already goes on: a replacement does not begin then.
            self._changed.wait_for(lambda: not self._replacing)
            self._reading += 1
        try:
            yield
        finally:
            with self._changed:
                self._reading -= 1

    @contextmanager
    def replacing(self) -> Iterator[bool]:
        """True when nobody reads, and nobody begins to until the end of the block; False at once when somebody does."""
        with self._changed:
            mine = not self._reading and not self._replacing
            self._replacing |= mine
        try:
            yield mine
        finally:
            if mine:
                with self._changed:
                    self._replacing = False
                    self._changed.notify_all()


READERS = Readers()
"""Those of this process. A query names folders to DataFusion, which looks into them when it pleases."""
