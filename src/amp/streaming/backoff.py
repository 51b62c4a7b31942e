"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ['Backoff']


@dataclass(frozen=True)
class Backoff:
    """Waits in seconds that double from `first` to `most`, each drawn between half of itself and all of it."""

    first: float = 0.2
    most: float = 30.0

    def start(self) -> Iterator[float]:
        """The waits, for ever."""
        pause = self.first
        while True:
            yield random.uniform(pause / 2, pause)  # noqa: S311 - spreads clients, hides nothing
            pause = min(self.most, pause * 2)
