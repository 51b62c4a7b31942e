"""What a stream says of its units: results for whoever iterates, events for whoever listens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from amp.events import Committed, Undone, emit
from amp.loaders.types import LoadResult
from amp.loaders.unit import Unit
from amp.streaming.ledger import StreamKey, StreamState, Undo
from amp.streaming.types import BlockRange

__all__ = ['InHand', 'StreamResults']


@dataclass
class InHand:
    """The unit that is open, and what it will say of itself. `started` is of `time.perf_counter`."""

    unit: Unit
    started: float
    undo: Undo | None
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class StreamResults:
    """The results of one stream; `state` is always what is committed then."""

    loader: str
    guarantee: str
    key: StreamKey

    def of_unit(self, hand: InHand, ranges: tuple[BlockRange, ...], state: StreamState) -> Iterator[LoadResult]:
        """What a unit that is committed has done: a result for its reorg, and one for its rows or position."""
        seconds = time.perf_counter() - hand.started
        undone = getattr(hand.unit, 'rows_undone', None)
        self._tell(hand, seconds, undone, ranges, state)
        if hand.undo is not None and hand.undo.is_reorg:
            result = self._result(state, 0, seconds, rows_undone=undone)
            result.is_reorg = True
            result.invalidation_ranges = list(hand.undo.invalidated)
            yield result
        if ranges or hand.undo is None:
            yield self._result(state, hand.rows, seconds, ranges=ranges)

    def of_failure(self, error: str, state: StreamState) -> LoadResult:
        """A unit that was rolled back; `error` says why."""
        return self._result(state, 0, 0.0, error=error)

    def _tell(
        self, hand: InHand, seconds: float, undone: int | None, ranges: tuple[BlockRange, ...], state: StreamState
    ) -> None:
        table, stream = self.key
        if hand.undo is not None and hand.undo.is_reorg:
            depth = max((r.end - r.start + 1 for r in hand.undo.invalidated), default=0)
            emit(Undone(self.loader, table, stream, undone, depth))
        blocks = sum(r.end - r.start + 1 for r in ranges)
        position = state.position.to_dict()
        emit(Committed(self.loader, table, stream, hand.rows, hand.bytes, seconds, blocks, position))

    def _result(
        self,
        state: StreamState,
        rows: int,
        seconds: float,
        *,
        error: str | None = None,
        ranges: tuple[BlockRange, ...] = (),
        rows_undone: int | None = None,
    ) -> LoadResult:
        metadata: dict[str, Any] = {
            'operation': 'load_stream',
            'stream': self.key.name,
            'epoch': state.epoch,
            'position': state.position.to_dict(),
            'ranges': [r.to_dict() for r in ranges],
            'blocks': sum(r.end - r.start + 1 for r in ranges),
            'guarantee': self.guarantee,
        }
        if rows_undone is not None:
            metadata['rows_undone'] = rows_undone
        rate = rows / seconds if seconds > 0 else 0.0
        return LoadResult(
            rows, seconds, rate, self.key.table, self.loader, error is None, error=error, metadata=metadata
        )
