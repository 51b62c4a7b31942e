"""The marks of a stream whose state is kept in a local store: what people ask there about single batches.

The document of the stream is what counts, and what the engine reads. Marks follow it: a crash between the two is made
good when the stream is opened again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amp.streaming.ledger import Entry, StreamKey, StreamState, Undo
from amp.streaming.parallel import stream_of_lane
from amp.streaming.state import StreamStateStore
from amp.streaming.types import BatchIdentifier

__all__ = ['Marks']

# Part of the signatures of a store and of no key.
_CONNECTION = ''


@dataclass(frozen=True)
class Marks:
    """Of the units in a local store; those of the lanes of a backfill are their stream's."""

    store: StreamStateStore

    def opened(self, key: StreamKey, state: StreamState) -> None:
        """What a crash has left out is marked, and what lies behind the position is taken back."""
        if stream_of_lane(key.name) is None:
            marked = self.store.get_resume_position(_CONNECTION, key.table, stream=key.name)
            for r in marked.ranges if marked is not None else ():
                last = state.last_range(r.network)
                if last is not None:
                    self._take_back(key, r.network, last.end + 1)
        self._mark(key, state.entries)

    def undone(self, key: StreamKey, undo: Undo) -> None:
        """Units were taken back."""
        dropped = [(r.network, r.start) for entry in undo.dropped for r in entry.ranges]
        if undo.whole_table:
            marked = self.store.get_resume_position(_CONNECTION, key.table, stream=key.name)
            dropped = [(r.network, 0) for r in marked.ranges] if marked is not None else []
        for network, start in dropped:
            self._take_back(key, network, start)

    def done(self, key: StreamKey, state: StreamState) -> None:
        """A unit is committed. What left the undo window is no longer kept batch by batch."""
        self._mark(key, state.entries[-1:])
        kept: dict[str, int] = {}
        for r in (r for entry in state.entries for r in entry.ranges):
            kept[r.network] = min(r.start, kept.get(r.network, r.start))
        for network, start in kept.items():
            self.store.cleanup_before_block(_CONNECTION, key.table, network, start, stream=_stream(key))

    def _mark(self, key: StreamKey, entries: Sequence[Entry]) -> None:
        ids = [
            BatchIdentifier(r.network, r.start, r.end, r.hash or '', r.prev_hash or '')
            for entry in entries
            for r in entry.ranges
        ]
        self.store.mark_processed(_CONNECTION, key.table, ids, stream=_stream(key))

    def _take_back(self, key: StreamKey, network: str, start: int) -> None:
        self.store.invalidate_from_block(_CONNECTION, key.table, network, start, stream=_stream(key))


def _stream(key: StreamKey) -> str:
    return stream_of_lane(key.name) or key.name
