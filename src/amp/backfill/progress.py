"""How far a backfill is, range by range: for whoever wants to look while it runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from enum import IntEnum

from amp.streaming.ledger import merge_ranges
from amp.streaming.parallel import QueryPartition
from amp.streaming.types import BlockRange

__all__ = ['Cell', 'Progress']

_WINDOW = 60.0


class Cell(IntEnum):
    """What one piece of the map shows; of several the greatest."""

    DONE = 0
    MISSING = 1
    RUNNING = 2
    FAILED = 3


class Progress:
    """A map of the blocks of a backfill. Written by the workers, read by anyone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._network = ''
        self.start, self.end = 0, -1
        self._done: tuple[BlockRange, ...] = ()
        self._running: set[tuple[int, int]] = set()
        self._failed: set[tuple[int, int]] = set()
        self.there = 0
        """Blocks that were loaded before."""
        self._reached: deque[tuple[float, int]] = deque()

    def planned(self, network: str, start: int, end: int, todo: Sequence[BlockRange]) -> None:
        """The blocks that are meant, and those of them that are still to do."""
        with self._lock:
            self._network, self.start, self.end = network, start, end
            done, at = [], start
            for r in todo:
                if r.start > at:
                    done.append(BlockRange(network, at, r.start - 1))
                at = r.end + 1
            if at <= end:
                done.append(BlockRange(network, at, end))
            self._done = tuple(done)
            left = sum(r.end - r.start + 1 for r in todo)
            self.there = end - start + 1 - left
            self._reached = deque([(time.monotonic(), left)])

    def began(self, *partitions: QueryPartition) -> None:
        """A worker has taken these."""
        with self._lock:
            self._running |= {(p.start_block, p.end_block) for p in partitions}

    def ended(self, partition: QueryPartition, *, loaded: bool, for_good: bool = True) -> None:
        """A worker is through with it; not `for_good`: another one will try it."""
        span = (partition.start_block, partition.end_block)
        with self._lock:
            self._running.discard(span)
            if loaded:
                self._failed.discard(span)
                self._done = merge_ranges([*self._done, BlockRange(self._network, span[0], span[1] - 1)])
                self._reached.append((time.monotonic(), self._left()))
                while len(self._reached) > 2 and self._reached[1][0] < time.monotonic() - _WINDOW:
                    self._reached.popleft()
            elif for_good:
                self._failed.add(span)

    @property
    def blocks_left(self) -> int:
        """Blocks that are not loaded."""
        with self._lock:
            return self._left()

    def _left(self) -> int:
        return self.end - self.start + 1 - sum(r.end - r.start + 1 for r in self._done)

    @property
    def seconds_left(self) -> float | None:
        """As long as the blocks of the last minute took, in proportion: old blocks are often emptier than new ones.

        None before anything was loaded.
        """
        with self._lock:
            if len(self._reached) < 2:
                return None
            (since, before), (_, left) = self._reached[0], self._reached[-1]
            return (time.monotonic() - since) * left / max(before - left, 1)

    @property
    def failed(self) -> int:
        """Partitions that failed for good."""
        with self._lock:
            return len(self._failed)

    def cells(self, width: int) -> list[Cell]:
        """The map in `width` pieces, lowest block first."""
        with self._lock:
            span = self.end - self.start + 1
            if span < 1 or width < 1:
                return []
            cells = [Cell.MISSING] * width
            for r in self._done:
                # Only pieces that lie in it as a whole.
                first = -(-(r.start - self.start) * width // span)
                last = (r.end + 1 - self.start) * width // span
                cells[first:last] = [Cell.DONE] * (last - first)
            for state, spans in ((Cell.RUNNING, self._running), (Cell.FAILED, self._failed)):
                for start, end in spans:
                    first = (start - self.start) * width // span
                    last = max(first + 1, -(-(end - self.start) * width // span))
                    cells[first:last] = [max(state, cell) for cell in cells[first:last]]
            return cells
