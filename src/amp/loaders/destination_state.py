"""The state store of an exactly-once loader: a view on what the destination itself remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amp.errors import DestinationError
from amp.streaming.ledger import StreamKey, StreamState
from amp.streaming.state import StreamStateStore
from amp.streaming.types import BatchIdentifier, BlockRange, ResumeWatermark

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader

__all__ = ['DestinationStateStore', 'gaps_in']


class DestinationStateStore(StreamStateStore):
    """Answers from the streams that a destination remembers, and changes none: only a commit does that."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def is_processed(
        self, connection: str, table: str, batch_ids: Sequence[BatchIdentifier], stream: str | None = None
    ) -> bool:
        """True when all of `batch_ids` are committed and not undone. Never a reason to skip data."""
        state = self._state(table, stream)
        return state is not None and bool(batch_ids) and all(state.contains(batch) for batch in batch_ids)

    def get_resume_position(
        self,
        connection: str,
        table: str,
        detect_gaps: bool = False,
        stream: str | None = None,
        start_block: int = 0,
    ) -> ResumeWatermark | None:
        """Where the stream resumes; with `detect_gaps` the position before the first gap, and the gaps."""
        state = self._state(table, stream)
        if not detect_gaps:
            return state.position if state is not None and state.position else None
        history = self._history(table, stream)
        if not history:
            return None
        position = state.position.ranges if state is not None else ()
        gaps = gaps_in(history, start_block)
        first = {gap.network: gap.start for gap in reversed(gaps)}
        before = [r for r in history if r.end + 1 == first.get(r.network, -1)]
        ends = {r.network: r for r in [*history, *position]}
        whole = [r for network, r in ends.items() if network not in first]
        return ResumeWatermark([*before, *whole], gaps=gaps)

    def mark_processed(
        self, connection: str, table: str, batch_ids: Sequence[BatchIdentifier], stream: str | None = None
    ) -> None:
        """Raises DestinationError: a mark apart from its rows is what exactly-once rules out."""
        raise self._refusal('marks')

    def invalidate_from_block(
        self, connection: str, table: str, network: str, from_block: int, stream: str | None = None
    ) -> list[BatchIdentifier]:
        """Raises DestinationError: an undo removes rows and marks together."""
        raise self._refusal('undoes')

    def cleanup_before_block(
        self, connection: str, table: str, network: str, before_block: int, stream: str | None = None
    ) -> None:
        """Nothing to do: history below the undo window is merged by the commits."""

    def load_document(self, key: tuple[str, str]) -> str | None:
        """The stream's document."""
        state = self._state(*key)
        return state.to_json() if state is not None else None

    def replace_document(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        """Raises DestinationError."""
        raise self._refusal('writes')

    def _history(self, table: str, stream: str | None) -> tuple[BlockRange, ...]:
        """Of the stream and the lanes of its backfill."""
        from amp.loaders.lanes import family, history_of

        self._loader._ensure_connected()
        infos = self._loader.streaming_destination().list_streams()
        return history_of(family(infos, StreamKey(table, stream or table)))

    def _state(self, table: str, stream: str | None) -> StreamState | None:
        self._loader._ensure_connected()
        key = StreamKey(table, stream or table)
        for info in self._loader.streaming_destination().list_streams():
            if info.key == key:
                return info.state
        return None

    def _refusal(self, verb: str) -> DestinationError:
        return DestinationError(
            f'only a commit {verb} units of a stream in {self._loader.name}: its state is part of the transaction',
            hint='load with stream=True, or read the position with get_resume_position',
        )


def gaps_in(history: Sequence[BlockRange], start_block: int = 0) -> tuple[BlockRange, ...]:
    """Every hole in disjoint ranges sorted by network and start, the one after `start_block` included."""
    gaps: list[BlockRange] = []
    expected: dict[str, int] = {}
    for r in history:
        begin = expected.get(r.network, start_block)
        if r.start > begin:
            gaps.append(BlockRange(r.network, begin, r.start - 1))
        expected[r.network] = max(begin, r.end + 1)
    return tuple(gaps)
