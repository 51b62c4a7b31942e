"""The blocks that the local Amp has stored: every branch by hash, one of them canonical, and the rows of each block.

Rows live in segments: consecutive blocks of one branch with one record batch a table. The canonical chain is a list of
pieces, each a run of blocks of a segment. Small segments at the tip are merged as they come, so that a chain mined block
by block does not become a record batch a block.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ['ZERO_HASH', 'Block', 'Chain', 'Segment', 'Snapshot']

ZERO_HASH = '0x' + '00' * 32

# Merging copies rows: a segment of this many is left alone.
_MERGED_ROWS = 1 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """A block's place in its branch. Hashes are `0x` and 64 hex digits; `timestamp` is Unix seconds, or not known."""

    number: int
    hash: str
    parent_hash: str
    timestamp: int | None = None


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive blocks of one branch, with a record batch a table whose rows are sorted by `_block_num`.

    Raises ValueError when the blocks do not follow each other by number and parent hash, or when a batch holds a row
    of another block.
    """

    blocks: tuple[Block, ...]
    tables: Mapping[str, pa.RecordBatch]
    offsets: Mapping[str, npt.NDArray[np.int64]]

    def __init__(self, blocks: Sequence[Block], tables: Mapping[str, pa.RecordBatch]) -> None:
        for earlier, later in pairwise(blocks):
            if later.number != earlier.number + 1 or later.parent_hash != earlier.hash:
                raise ValueError(f'block {later.number} {later.hash} does not follow {earlier.number} {earlier.hash}')
        object.__setattr__(self, 'blocks', tuple(blocks))
        object.__setattr__(self, 'tables', dict(tables))
        object.__setattr__(self, 'offsets', {name: self._offsets(batch) for name, batch in tables.items()})

    def _offsets(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Where the rows of each block start; one entry more than there are blocks."""
        numbers = batch.column('_block_num').to_numpy(zero_copy_only=False)
        edges = np.arange(self.first, self.last + 2, dtype=np.uint64)
        offsets = np.searchsorted(numbers, edges).astype(np.int64)
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(numbers) or bool(np.any(numbers[1:] < numbers[:-1])):
            raise ValueError(f'rows out of order, or outside of blocks {self.first}-{self.last}')
        return offsets

    @property
    def first(self) -> int:
        """Number of the first block."""
        return self.blocks[0].number

    @property
    def last(self) -> int:
        """Number of the last block."""
        return self.blocks[-1].number

    @property
    def num_rows(self) -> int:
        """Rows of the largest table."""
        return max((batch.num_rows for batch in self.tables.values()), default=0)

    def rows(self, table: str, first: int, last: int) -> pa.RecordBatch:
        """The rows of blocks `first` to `last` (inclusive); nothing is copied."""
        offsets = self.offsets[table]
        start, end = int(offsets[first - self.first]), int(offsets[last + 1 - self.first])
        return self.tables[table].slice(start, end - start)

    def merged_with(self, later: Segment) -> Segment:
        """One segment of these blocks and those that follow."""
        tables = {name: _concat(batch, later.tables[name]) for name, batch in self.tables.items()}
        return Segment(self.blocks + later.blocks, tables)


@dataclass(frozen=True, slots=True)
class _Piece:
    segment: Segment
    first: int
    last: int

    @property
    def whole(self) -> bool:
        return self.first == self.segment.first and self.last == self.segment.last


class Snapshot:
    """The canonical chain at one moment; what is read from it never changes."""

    def __init__(self, pieces: tuple[_Piece, ...], known: Mapping[str, tuple[Segment, int]], version: int) -> None:
        self._pieces = pieces
        self._starts = [piece.first for piece in pieces]
        self._known = known
        self.version = version

    @property
    def first(self) -> int | None:
        """Number of the earliest block; None when nothing is synced."""
        return self._pieces[0].first if self._pieces else None

    @property
    def last(self) -> int | None:
        """Number of the latest block; None when nothing is synced."""
        return self._pieces[-1].last if self._pieces else None

    def canonical(self, number: int) -> Block | None:
        """The canonical block of that number."""
        at = bisect_right(self._starts, number) - 1
        if at < 0 or number > self._pieces[at].last:
            return None
        segment = self._pieces[at].segment
        return segment.blocks[number - segment.first]

    def find(self, block_hash: str) -> Block | None:
        """The block of that hash on any branch that is still stored."""
        found = self._known.get(block_hash)
        return found[0].blocks[found[1]] if found else None

    def rows(self, table: str, first: int, last: int) -> list[pa.RecordBatch]:
        """The canonical rows of blocks `first` to `last` (inclusive), by rising block number."""
        found = []
        for piece in self._pieces[max(bisect_right(self._starts, first) - 1, 0) :]:
            if piece.first > last:
                break
            low, high = max(piece.first, first), min(piece.last, last)
            batch = piece.segment.rows(table, low, high) if low <= high else None
            if batch is not None and batch.num_rows:
                found.append(batch)
        return found


class Chain:
    """A store of blocks of one network, safe to share between threads.

    `schemas` gives the tables that every segment brings.
    """

    def __init__(self, network: str, schemas: Mapping[str, pa.Schema]) -> None:
        self.network = network
        self.schemas = dict(schemas)
        self._changed = threading.Condition()
        self._known: dict[str, tuple[Segment, int]] = {}
        self._pieces: list[_Piece] = []
        self._snapshot = Snapshot((), self._known, 0)

    @property
    def head(self) -> Block | None:
        """The latest canonical block."""
        snapshot = self.snapshot()
        return snapshot.canonical(snapshot.last) if snapshot.last is not None else None

    def snapshot(self) -> Snapshot:
        """The canonical chain as it is now."""
        return self._snapshot

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until the chain has changed since the snapshot of that version; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._snapshot.version > version, timeout)

    def add(self, segment: Segment) -> None:
        """Store the blocks of a branch without making them canonical. Raises ValueError for other tables."""
        if segment.tables.keys() != self.schemas.keys():
            raise ValueError(f'a segment of {sorted(segment.tables)} in a chain of {sorted(self.schemas)}')
        for name, batch in segment.tables.items():
            if not batch.schema.equals(self.schemas[name]):
                raise ValueError(f'table {name} has another schema than its chain:\n{batch.schema}')
        with self._changed:
            for index, block in enumerate(segment.blocks):
                self._known.setdefault(block.hash, (segment, index))

    def extend(self, segment: Segment) -> None:
        """Store the blocks and make the last of them the head."""
        self.add(segment)
        self.set_head(segment.blocks[-1].hash)

    def set_head(self, block_hash: str) -> None:
        """Make the branch that ends in this block canonical. Raises KeyError for a block that is not stored."""
        with self._changed:
            current = self._snapshot
            branch: list[tuple[Segment, int]] = []
            at: str = block_hash
            while True:
                segment, index = self._known[at]
                block = segment.blocks[index]
                if current.canonical(block.number) == block:
                    keep = block.number
                    break
                branch.append((segment, index))
                parent = current.find(block.parent_hash)
                if parent is not None and parent.number != block.number - 1:
                    raise ValueError(f'block {block.number} {block.hash} names block {parent.number} as its parent')
                if parent is None:
                    keep = block.number - 1
                    if current.first is not None and keep >= current.first:
                        raise KeyError(f'the parent of block {block.number} {block.hash} is not stored')
                    break
                at = block.parent_hash
            self._truncate(keep)
            for piece in _pieces_of(reversed(branch)):
                self._pieces.append(piece)
            self._merge_tail()
            self._publish()

    def forget_orphans(self) -> None:
        """Drop every block that is not canonical: a cursor that names one is then unknown."""
        with self._changed:
            for block_hash, (segment, index) in list(self._known.items()):
                block = segment.blocks[index]
                if self._snapshot.canonical(block.number) != block:
                    del self._known[block_hash]

    def _truncate(self, last: int) -> None:
        while self._pieces and self._pieces[-1].last > last:
            piece = self._pieces.pop()
            if piece.first <= last:
                self._pieces.append(_Piece(piece.segment, piece.first, last))

    def _merge_tail(self) -> None:
        while len(self._pieces) > 1:
            earlier, later = self._pieces[-2:]
            if not (earlier.whole and later.whole) or len(earlier.segment.blocks) >= 2 * len(later.segment.blocks):
                return
            if earlier.segment.num_rows + later.segment.num_rows > _MERGED_ROWS:
                return
            merged = earlier.segment.merged_with(later.segment)
            for index, block in enumerate(merged.blocks):
                self._known[block.hash] = (merged, index)
            self._pieces[-2:] = [_Piece(merged, merged.first, merged.last)]

    def _publish(self) -> None:
        self._snapshot = Snapshot(tuple(self._pieces), self._known, self._snapshot.version + 1)
        self._changed.notify_all()


def _concat(*batches: pa.RecordBatch) -> pa.RecordBatch:
    joined: pa.RecordBatch = pa.concat_batches(batches)  # type: ignore[attr-defined]  # the stubs lack it
    return joined


def _pieces_of(branch: Iterator[tuple[Segment, int]]) -> Iterator[_Piece]:
    """Runs of neighbouring blocks of one segment, in order."""
    run: _Piece | None = None
    for segment, index in branch:
        number = segment.first + index
        if run is not None and run.segment is segment:
            run = _Piece(segment, run.first, number)
            continue
        if run is not None:
            yield run
        run = _Piece(segment, number, number)
    if run is not None:
        yield run
