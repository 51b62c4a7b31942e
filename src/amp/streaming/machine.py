"""The stream as a state machine: metadata goes in, the next step comes out. It reads nothing and writes nothing.

The engine feeds every batch's metadata to `receive` and does what the step says; steps marked (again) are followed by
the same metadata once more:

    Rows          these rows belong to an open microbatch: write them under `tx_id`
    Completed     the microbatch is closed; now is a moment at which the unit may commit
    Idle          nothing to do
    Flush         (again) commit the open unit first: what follows takes something back
    Abandon       (again) roll the open unit back: its microbatch was never closed and another one came
    Rewind        (again, unless `reconnect`) begin a unit with this undo; `reconnect`: commit it and ask from the position
    Reconnect     ask again from the position

`committed` is what the destination holds, `pending` what it will hold when the open unit commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amp.errors import ProtocolError, ReorgTooDeepError
from amp.streaming.ledger import MAX_COUNTER, StreamState, Undo, admit, invalidate, transaction_id
from amp.streaming.reorg import check_ranges, detect_reorg
from amp.streaming.types import BatchIdentifier, BatchMetadata, BlockRange

__all__ = ['Abandon', 'Completed', 'Flush', 'Idle', 'Reconnect', 'Rewind', 'Rows', 'Step', 'StreamMachine']

# How often the source may answer beside the position, with no microbatch closed in between, before that is taken for
# its final word.
_MOST_BESIDE = 3


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an open microbatch."""

    tx_id: int
    batch_id: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The microbatch of `ranges` is closed; rows of its closing batch, if any, belong to it."""

    tx_id: int
    batch_id: str
    ranges: tuple[BlockRange, ...]


@dataclass(frozen=True, slots=True)
class Rewind:
    """Take back committed rows."""

    undo: Undo
    reconnect: bool


@dataclass(frozen=True, slots=True)
class Flush:
    """Commit the open unit, then show the batch again."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Roll the open unit back, then show the batch again."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Ask again from the position."""

    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do."""


Step = Rows | Completed | Rewind | Flush | Abandon | Reconnect | Idle


@dataclass(frozen=True, slots=True)
class _Open:
    ranges: tuple[BlockRange, ...]
    tx_id: int
    batch_id: str


class StreamMachine:
    """Decides for one stream in one epoch.

    `retention` is in blocks. `strict` holds ranges to the server's rules; without it ranges made by hand may leave
    hashes out, and cannot be asked for again. `base`: history that others hold for a stream that has not begun; its
    first range must be the next one, and says what hash the base ends with. Errors: ProtocolError for a broken rule, ReorgTooDeepError when final history would have to go.
    """

    def __init__(
        self, state: StreamState, *, retention: int = 128, strict: bool = True, base: BlockRange | None = None
    ) -> None:
        self._base = base if not state.position else None
        self.committed = state
        self.pending = state
        self._retention = retention
        self._strict = strict
        self._counter = 0
        self._open: _Open | None = None
        self._previous: tuple[BlockRange, ...] = ()
        self._beside = 0

    @property
    def at_boundary(self) -> bool:
        """True between two microbatches: only then may a unit commit."""
        return self._open is None

    @property
    def is_dirty(self) -> bool:
        """True when the open unit has something that the destination does not."""
        return self.pending is not self.committed

    def unit_id(self) -> int:
        """The first id of a unit that begins now: that of the open microbatch, else that of the next one."""
        return self._next_id() if self._open is None else self._open.tx_id

    def _next_id(self) -> int:
        return transaction_id(self.committed.number, self.committed.epoch, self._counter)

    @property
    def epoch_is_spent(self) -> bool:
        """True when a new epoch must be taken before the next microbatch."""
        return self._counter > MAX_COUNTER

    def connected(self) -> None:
        """A new connection: what the last one was in the middle of is gone, and its order is not this one's."""
        self.rolled_back()
        self._previous = ()

    def committed_unit(self) -> None:
        """The open unit is durable."""
        self.committed = self.pending

    def rolled_back(self) -> None:
        """The open unit is gone."""
        self.pending = self.committed
        self._open = None

    def receive(self, metadata: BatchMetadata, rows: int) -> Step:
        """What to do with a batch of `rows` rows."""
        ranges = metadata.ranges
        if not ranges:
            if rows:
                raise ProtocolError(
                    f'a batch of {rows} rows arrived without its block ranges, so no reorg could ever remove it',
                    rule='MissingRanges',
                )
            return Idle()
        if self._open is None or self._open.ranges != ranges:
            step = self._open_microbatch(ranges)
            if step is not None:
                return step
        return self._continue(metadata)

    def reorg(self, ranges: Sequence[BlockRange]) -> Step:
        """What to do with the news, not the sight, of a reorg."""
        if self._open is not None:
            if not self._strict and not _reaches(ranges, self._open.ranges):
                raise self._unfinished(self._open.ranges)
            self.rolled_back()
            return Abandon()
        if self.is_dirty:
            return Flush()
        admission = invalidate(self.committed, ranges)
        if admission.below is not None:
            raise self._too_deep(ranges, admission.below)
        if admission.undo is None:
            return Idle()
        self.pending = admission.undo.state
        return Rewind(admission.undo, reconnect=False)

    def _open_microbatch(self, ranges: tuple[BlockRange, ...]) -> Step | None:
        """None when the microbatch is open now."""
        if self._open is not None:
            if not self._strict:
                raise self._unfinished(self._open.ranges)
            self.rolled_back()
            return Abandon()
        if self._strict:
            check_ranges(ranges)
            detect_reorg(self._previous, ranges)
        self._stand_on_base(ranges)
        step = self._admit(ranges)
        if step is None:
            self._previous = ranges
            self._open = _Open(ranges, self._next_id(), batch_id(ranges))
            self._counter += 1
        return step

    def _stand_on_base(self, ranges: tuple[BlockRange, ...]) -> None:
        base = self._base
        if base is None:
            return
        first = ranges[0]
        if len(ranges) > 1 or first.network != base.network or first.start != base.end + 1 or first.prev_hash is None:
            raise ProtocolError(
                f'the stream should begin right after block {base.end} of {base.network}, and began with {first}',
                hint='the server moved back below the blocks that were loaded: load with a larger reorg_buffer',
                rule='HandOver',
                ranges=ranges,
            )
        self._base = None
        own = BlockRange(base.network, base.start, base.end, first.prev_hash)
        self.committed = self.pending = replace(self.committed, base=(own,))

    @property
    def start(self) -> tuple[str, int] | None:
        """Network and number of the block at which a stream that has not begun must be asked to begin."""
        return None if self._base is None else (self._base.network, self._base.end + 1)

    def _admit(self, ranges: tuple[BlockRange, ...]) -> Step | None:
        admission = admit(self.pending, ranges)
        if admission.undo is None and not admission.reconnect:
            return None
        if self.is_dirty:
            return Flush()
        can_ask_again = self._strict
        if admission.undo is not None and (can_ask_again or not admission.reconnect):
            self.pending = admission.undo.state
            return Rewind(admission.undo, admission.reconnect)
        self._beside += 1
        if self._beside >= _MOST_BESIDE or not can_ask_again:
            if admission.below is not None:
                raise self._too_deep(ranges, admission.below)
            raise self._misplaced(ranges)
        return Reconnect(f'{ranges[0]} does not continue {_shown(self.committed)}')

    def _continue(self, metadata: BatchMetadata) -> Step:
        opened = self._open
        if opened is None:
            raise AssertionError('a microbatch is open here')
        if not metadata.ranges_complete:
            return Rows(opened.tx_id, opened.batch_id)
        self.pending = self.pending.append(opened.tx_id, opened.ranges).prune(self._retention)
        self._open = None
        self._beside = 0
        return Completed(opened.tx_id, opened.batch_id, opened.ranges)

    def _too_deep(self, ranges: Sequence[BlockRange], below: BlockRange) -> ReorgTooDeepError:
        start = min(r.start for r in ranges if r.network == below.network)
        return ReorgTooDeepError(
            f'the chain of {below.network} changes at block {start}, {below.end - start + 1} blocks inside history that '
            f'is final here (up to block {below.end})',
            hint=f'load the table again from the start with mode overwrite, or keep more than {self._retention} blocks '
            'of history (retention)',
            ranges=tuple(ranges),
            position=self.committed.position.to_dict(),
        )

    def _misplaced(self, ranges: Sequence[BlockRange]) -> ProtocolError:
        position = _shown(self.committed)
        return ProtocolError(
            f'the range {ranges[0]} does not continue {position}, and asking again from there did not help',
            hint='the source must replay from the position of the stream',
            rule='Gap',
            ranges=tuple(ranges),
        )

    def _unfinished(self, ranges: Sequence[BlockRange]) -> ProtocolError:
        # What a caller made cannot be asked for again, so abandoning these rows would lose them.
        return ProtocolError(
            f'the microbatch of {ranges[0]} was not closed before the next batch came; its rows were rolled back',
            hint='close it with a batch whose metadata says ranges_complete=True',
            rule='UnfinishedMicrobatch',
            ranges=tuple(ranges),
        )


def _reaches(news: Sequence[BlockRange], ranges: Sequence[BlockRange]) -> bool:
    return all(any(n.network == r.network and r.end >= n.start for n in news) for r in ranges)


def batch_id(ranges: Sequence[BlockRange]) -> str:
    """What a person correlates the rows of a microbatch by; ids of several networks are joined with `|`."""
    ids = (
        BatchIdentifier(r.network, r.start, r.end, r.hash or '', r.prev_hash or '').unique_id
        for r in sorted(ranges, key=lambda r: r.network)
    )
    return '|'.join(ids)


def _shown(state: StreamState) -> str:
    position = state.position
    return ', '.join(f'{r.network} {r.end}' for r in position.ranges) if position else 'the beginning'
