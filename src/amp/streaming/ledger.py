"""What a destination remembers of a stream, as one immutable value, and every decision that is taken from it.

    entry      one committed microbatch: the ids of its rows, its ranges with their hashes. Entries in the undo window
               can be taken back; their number is bounded (the oldest are paired), so the document stays small.
    segment    history below the window, merged: disjoint ranges that keep the hash of their end.
    position   per network, the end of the newest entry (or segment): the only thing a stream resumes from.

Transaction ids are 63-bit integers: stream number (12 bits) | epoch (24) | counter (27). The ids of a stream are one
interval and rise within it; none is ever used twice, because an epoch is taken durably before its first id is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from amp.errors import IntegrityError
from amp.streaming.types import BatchIdentifier, BlockRange, ResumeWatermark

__all__ = [
    'MAX_COUNTER',
    'MAX_EPOCH',
    'MAX_STREAM_NUMBER',
    'Admission',
    'Entry',
    'IdRun',
    'StreamKey',
    'StreamState',
    'Undo',
    'admit',
    'invalidate',
    'stream_interval',
    'transaction_id',
]

_EPOCH_BITS, _COUNTER_BITS = 24, 27
MAX_STREAM_NUMBER = (1 << 12) - 1
MAX_EPOCH = (1 << _EPOCH_BITS) - 1
MAX_COUNTER = (1 << _COUNTER_BITS) - 1

# Beyond this many entries the oldest are paired: an undo then takes back a little more, which the server replays.
_MAX_ENTRIES = 512


class IdRun(NamedTuple):
    """Transaction ids `first` to `last`, inclusive."""

    first: int
    last: int


class StreamKey(NamedTuple):
    """What names a stream inside a destination. Never the connection: an alias must find the same state."""

    table: str
    name: str


def transaction_id(number: int, epoch: int, counter: int) -> int:
    """The id of the `counter`-th microbatch of an epoch. Raises IntegrityError when a part is out of its range."""
    if not (0 < number <= MAX_STREAM_NUMBER and 0 <= epoch <= MAX_EPOCH and 0 <= counter <= MAX_COUNTER):
        raise IntegrityError(
            f'stream {number}, epoch {epoch}, counter {counter} do not fit a transaction id',
            hint='a destination holds 4,095 streams; a stream 16 million restarts',
        )
    return (number << (_EPOCH_BITS + _COUNTER_BITS)) | (epoch << _COUNTER_BITS) | counter


def stream_interval(number: int) -> IdRun:
    """All ids that the stream with this number can ever use."""
    return IdRun(transaction_id(number, 0, 0), transaction_id(number, MAX_EPOCH, MAX_COUNTER))


@dataclass(frozen=True, slots=True)
class Entry:
    """Committed rows that can be taken back together: ids `first_id` to `last_id`, one range a network."""

    first_id: int
    last_id: int
    ranges: tuple[BlockRange, ...]

    def range_of(self, network: str) -> BlockRange | None:
        """The range of one network, None when the entry has none of it."""
        return next((r for r in self.ranges if r.network == network), None)

    def pair_with(self, later: Entry) -> Entry | None:
        """One entry that covers both; None when they are not neighbours on the same networks."""
        merged = []
        for r in self.ranges:
            other = later.range_of(r.network)
            if other is None or other.start != r.end + 1:
                return None
            merged.append(r.merge_with(other))
        return Entry(self.first_id, later.last_id, tuple(merged)) if len(merged) == len(later.ranges) else None


@dataclass(frozen=True, slots=True)
class StreamState:
    """The memory of one stream. `epoch` belongs to whoever opened it; `entries` rise by id; `segments` by start.

    `origins` holds the first block that the stream ever took, per network: a stream that was undone to nothing must
    begin there again. `base` is history that others hold for the stream (the lanes of a backfill), one range a network
    with the hash of its end: the stream goes on after it and can never go below. `labels`: what its rows were joined with,
    in the words of whoever joined them.
    """

    number: int
    epoch: int
    entries: tuple[Entry, ...] = ()
    segments: tuple[BlockRange, ...] = ()
    origins: Mapping[str, int] = field(default_factory=dict)
    base: tuple[BlockRange, ...] = ()
    labels: str | None = None

    @property
    def interval(self) -> IdRun:
        """All ids that this stream can use."""
        return stream_interval(self.number)

    @property
    def first_id(self) -> int:
        """The first id of this epoch."""
        return transaction_id(self.number, self.epoch, 0)

    def last_range(self, network: str) -> BlockRange | None:
        """The newest committed range of a network: where it stands."""
        for entry in reversed(self.entries):
            found = entry.range_of(network)
            if found is not None:
                return found
        ends = [s for s in (*self.base, *self.segments) if s.network == network]
        return max(ends, key=lambda s: s.end) if ends else None

    @property
    def has_history(self) -> bool:
        """True when something is committed that was not undone."""
        return bool(self.entries or self.segments)

    @property
    def networks(self) -> tuple[str, ...]:
        """Every network that has history, sorted."""
        names = {r.network for entry in self.entries for r in entry.ranges} | {
            s.network for s in (*self.base, *self.segments)
        }
        return tuple(sorted(names))

    @property
    def position(self) -> ResumeWatermark:
        """From where the stream resumes; empty when it starts at the beginning."""
        return ResumeWatermark(r for r in map(self.last_range, self.networks) if r is not None)

    def history(self) -> tuple[BlockRange, ...]:
        """Segments and entries merged into disjoint covered ranges, by network and start."""
        return merge_ranges([*self.segments, *(r for entry in self.entries for r in entry.ranges)])

    def append(self, tx_id: int, ranges: Sequence[BlockRange]) -> StreamState:
        """With one more microbatch, whose rows carry `tx_id`."""
        origins = dict(self.origins)
        for r in ranges:
            origins[r.network] = min(r.start, origins.get(r.network, r.start))
        return replace(self, entries=(*self.entries, Entry(tx_id, tx_id, tuple(ranges))), origins=origins)

    def fill(self, tx_id: int, r: BlockRange, *, final: bool = True) -> StreamState:
        """With a unit of a backfill, whose rows carry `tx_id`: in any order of blocks.

        A final one is history at once; its entry stays as long as it is the newest, so that its id is known to be done.
        One that is not final stays an entry until it is taken back: see `unsettled`.
        """
        origins = {**self.origins, r.network: min(r.start, self.origins.get(r.network, r.start))}
        segments = merge_ranges([*self.segments, r]) if final else self.segments
        kept = self.entries if self.unsettled() else ()
        return replace(self, entries=(*kept, Entry(tx_id, tx_id, (r,))), segments=segments, origins=origins)

    def unsettled(self) -> tuple[Entry, ...]:
        """Units of a backfill that came so near the head that the chain may have changed under them."""
        return tuple(e for e in self.entries if not all(any(_within(r, s) for s in self.segments) for r in e.ranges))

    def settle(self) -> Undo | None:
        """What takes the unsettled units back; None when there are none."""
        gone = self.unsettled()
        if not gone:
            return None
        kept = replace(self, entries=tuple(e for e in self.entries if e not in gone))
        return Undo(kept, id_runs(gone), gone, tuple(r for e in gone for r in e.ranges), is_reorg=False)

    def prune(self, retention: int) -> StreamState:
        """With entries that left the undo window merged into segments.

        An entry leaves when each of its ranges ends more than `retention` blocks before the newest range starts.
        Only leading entries leave, so what stays is always a suffix.
        """
        cutoff = {n: r.start - retention for n in self.networks if (r := self.last_range(n)) is not None}
        keep = 0
        while keep < len(self.entries) - 1 and all(r.end < cutoff[r.network] for r in self.entries[keep].ranges):
            keep += 1
        gone = [r for entry in self.entries[:keep] for r in entry.ranges]
        segments = merge_ranges([*self.segments, *gone]) if gone else self.segments
        return replace(self, entries=_bounded(self.entries[keep:]), segments=segments)

    def window_first_id(self) -> int:
        """Rows with an id below this one are final. With no entry, everything up to this epoch is."""
        return self.entries[0].first_id if self.entries else self.first_id

    def contains(self, batch: BatchIdentifier) -> bool:
        """True when the microbatch is committed and not undone: its blocks are covered, and an end that is known
        has its hash.
        """
        known = [r for e in self.entries for r in e.ranges] + list(self.segments)
        for r in known:
            if r.network == batch.network and r.end == batch.end_block:
                return r.hash == batch.end_hash and any(_covers(h, batch) for h in self.history())
        return any(_covers(h, batch) for h in self.history())

    def to_json(self) -> str:
        """What a destination stores. The epoch and the number are stored beside it, not in it."""
        stored: dict[str, Any] = {
            'version': 1,
            'entries': [[e.first_id, e.last_id, [_packed(r) for r in e.ranges]] for e in self.entries],
            'segments': [_packed(s) for s in self.segments],
            'origins': dict(self.origins),
        }
        if self.base:
            stored['base'] = [_packed(s) for s in self.base]
        if self.labels is not None:
            stored['labels'] = self.labels
        return json.dumps(stored, separators=(',', ':'))

    @classmethod
    def from_json(cls, number: int, epoch: int, text: str | None) -> StreamState:
        """From what a destination stores; None is a stream that has not begun. Raises IntegrityError."""
        if text is None:
            return cls(number, epoch)
        try:
            stored: dict[str, Any] = json.loads(text)
            if stored['version'] != 1:
                raise IntegrityError(
                    f'the state of stream {number} has format {stored["version"]!r}, which this amp does not know',
                    hint='a newer amp wrote it: upgrade this one',
                )
            entries = tuple(Entry(a, b, tuple(map(_unpacked, ranges))) for a, b, ranges in stored['entries'])
            interval = stream_interval(number)
            if not all(interval.first <= e.first_id <= e.last_id <= interval.last for e in entries):
                raise IntegrityError(f'the stored state of stream {number} names rows of another stream: {text[:120]}')
            segments, base = (tuple(map(_unpacked, stored.get(part, ()))) for part in ('segments', 'base'))
            return cls(number, epoch, entries, segments, dict(stored['origins']), base, stored.get('labels'))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f'the stored state of stream {number} does not parse: {text[:120]}') from error


def _within(inner: BlockRange, outer: BlockRange) -> bool:
    return inner.network == outer.network and outer.start <= inner.start and inner.end <= outer.end


def _covers(r: BlockRange, batch: BatchIdentifier) -> bool:
    return r.network == batch.network and r.start <= batch.start_block and batch.end_block <= r.end


def _packed(r: BlockRange) -> list[str | int | None]:
    return [r.network, r.start, r.end, r.hash, r.prev_hash]


def _unpacked(packed: Sequence[Any]) -> BlockRange:
    network, start, end, end_hash, prev_hash = packed
    return BlockRange(network, start, end, end_hash, prev_hash)


def _bounded(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    if len(entries) <= _MAX_ENTRIES:
        return entries
    oldest, newest = entries[: _MAX_ENTRIES // 2], entries[_MAX_ENTRIES // 2 :]
    paired: list[Entry] = []
    for entry in oldest:
        pair = paired[-1].pair_with(entry) if paired else None
        # Twice the width: entries that never pair would each have to be half as wide as the one before.
        if pair is not None and _width(paired[-1]) <= 2 * _width(entry):
            paired[-1] = pair
        else:
            paired.append(entry)
    return (*paired, *newest)


def _width(entry: Entry) -> int:
    return sum(r.end - r.start + 1 for r in entry.ranges)


def merge_ranges(ranges: Sequence[BlockRange]) -> tuple[BlockRange, ...]:
    """Disjoint ranges that cover the same blocks, neighbours merged, by network and start."""
    merged: list[BlockRange] = []
    for r in sorted(ranges, key=lambda r: (r.network, r.start, r.end)):
        last = merged[-1] if merged else None
        if last is not None and last.network == r.network and r.start <= last.end + 1:
            merged[-1] = last.merge_with(r)
        else:
            merged.append(r)
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Undo:
    """What to take back: rows with ids in `runs`; `state` is what remains (the rewound position included)."""

    state: StreamState
    runs: tuple[IdRun, ...]
    dropped: tuple[Entry, ...]
    invalidated: tuple[BlockRange, ...]
    is_reorg: bool = True
    whole_table: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a range that arrived: take it (perhaps after an undo), or undo and ask again from the position.

    `below` is the range of final history that would have to go, when the answer is neither.
    """

    undo: Undo | None = None
    reconnect: bool = False
    below: BlockRange | None = None


def admit(state: StreamState, ranges: Sequence[BlockRange]) -> Admission:
    """The one rule of acceptance, for every reorg and every (re)connect.

    Take ranges that begin right after the position and name its hash as their parent. Otherwise drop every entry that
    reaches to their start; and one more if it ends right before with another hash. If that leaves exactly the parent,
    go on; if not, the stream must be asked again from what is left. A range without a parent hash (made by hand, not
    by a server) is not checked for its link.
    """
    if all(_fits(state, r) for r in ranges):
        return Admission()
    misfits = [r for r in ranges if not _fits(state, r)]
    below = _final_history_hit(state, misfits)
    if below is not None:
        return Admission(reconnect=True, below=below)
    rest = state
    for r in misfits:
        rest = _drop_from(rest, r.network, r.start)
        last = rest.last_range(r.network) if rest.entries else None
        if last is not None and last.end == r.start - 1 and not _linked(last, r):
            rest = _drop_from(rest, r.network, last.end)
    fits = all(_fits(rest, r) for r in ranges)
    dropped = _difference(state, rest)
    if not dropped:
        return Admission(reconnect=True)
    replay = all(any(r in entry.ranges for entry in dropped) for r in misfits)
    undo = Undo(rest, id_runs(dropped), dropped, _invalidated(state, misfits), is_reorg=not replay)
    return Admission(undo, reconnect=not fits)


def invalidate(state: StreamState, ranges: Sequence[BlockRange]) -> Admission:
    """The answer to news that ranges are off the chain: drop every entry that reaches to the start of one."""
    below = _final_history_hit(state, ranges)
    if below is not None:
        return Admission(below=below)
    rest = state
    for r in ranges:
        rest = _drop_from(rest, r.network, r.start)
    dropped = _difference(state, rest)
    return Admission(Undo(rest, id_runs(dropped), dropped, tuple(ranges)) if dropped else None)


def _fits(state: StreamState, r: BlockRange) -> bool:
    last = state.last_range(r.network)
    if last is None:
        return r.start <= state.origins.get(r.network, r.start)
    if r.prev_hash is None:
        return r.start > last.end
    return r.start == last.end + 1 and _linked(last, r)


def _linked(last: BlockRange, r: BlockRange) -> bool:
    return last.hash is None or r.prev_hash is None or last.hash == r.prev_hash


def _final_history_hit(state: StreamState, ranges: Sequence[BlockRange]) -> BlockRange | None:
    for r in ranges:
        for segment in (*state.base, *state.segments):
            if segment.network != r.network:
                continue
            directly_below = segment.end == r.start - 1 and not _linked(segment, r)
            if segment.end >= r.start or directly_below:
                return segment
    return None


def _drop_from(state: StreamState, network: str, start: int) -> StreamState:
    kept = tuple(e for e in state.entries if not ((r := e.range_of(network)) is not None and r.end >= start))
    return replace(state, entries=kept)


def _difference(state: StreamState, rest: StreamState) -> tuple[Entry, ...]:
    kept = set(rest.entries)
    return tuple(e for e in state.entries if e not in kept)


def _invalidated(state: StreamState, ranges: Sequence[BlockRange]) -> tuple[BlockRange, ...]:
    found = []
    for r in ranges:
        last = state.last_range(r.network)
        found.append(BlockRange(r.network, r.start, max(r.end, last.end) if last else r.end, r.hash, r.prev_hash))
    return tuple(found)


def id_runs(entries: Sequence[Entry]) -> tuple[IdRun, ...]:
    """The ids of entries as few inclusive runs."""
    runs: list[IdRun] = []
    for entry in sorted(entries, key=lambda e: e.first_id):
        if runs and entry.first_id <= runs[-1].last + 1:
            runs[-1] = IdRun(runs[-1].first, max(runs[-1].last, entry.last_id))
        else:
            runs.append(IdRun(entry.first_id, entry.last_id))
    return tuple(runs)
