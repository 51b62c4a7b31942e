"""The blocks that the local Amp has stored: every branch by hash, one of them canonical, and the rows of each block.

Rows live in segments: consecutive blocks of one branch, in memory with one record batch a table, or settled in files
from which they are read when asked for. The canonical chain is a list of pieces, each a run of blocks of a segment.
Small segments at the tip are merged as they come, so that a chain mined block by block does not become a record batch a
block.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ['ZERO_HASH', 'AnySegment', 'Block', 'Chain', 'Scan', 'Segment', 'Settled', 'Snapshot', 'Stored']

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


class AnySegment(Protocol):
    """Consecutive blocks of one branch with the rows of each table."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks by rising number."""

    @property
    def first(self) -> int:
        """Number of the first block."""

    @property
    def last(self) -> int:
        """Number of the last block."""

    def rows(self, table: str, first: int, last: int) -> list[pa.RecordBatch]:
        """The rows of blocks `first` to `last` (inclusive), by rising block number."""

    def files(self, table: str) -> Path | None:
        """The Parquet file, or the folder of such, that holds the table and perhaps rows of other blocks."""

    def paths(self, table: str) -> Sequence[Path]:
        """Those files one by one; none for rows in memory."""


class Settled(AnySegment, Protocol):
    """A segment whose rows are in files, and whose blocks no reorg will touch."""

    def position(self, block_hash: str) -> int | None:
        """The index of the block of that hash, when it is one of these."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Files that hold rows of a table; those of blocks `first` to `last` count, which are all of them when `whole`.

    `files` are those that have to be there.
    """

    path: Path
    first: int
    last: int
    whole: bool = False
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """Rows of a table that are still to be read: from files, and from memory."""

    stored: Sequence[Stored]
    batches: Sequence[pa.RecordBatch]


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment in memory, with a record batch a table whose rows are sorted by `_block_num`.

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

    def rows(self, table: str, first: int, last: int) -> list[pa.RecordBatch]:
        """The rows of blocks `first` to `last` (inclusive) in one batch, or in none; nothing is copied."""
        offsets = self.offsets[table]
        start, end = int(offsets[first - self.first]), int(offsets[last + 1 - self.first])
        return [self.tables[table].slice(start, end - start)] if end > start else []

    def files(self, table: str) -> Path | None:
        """None: these rows are in memory."""
        return None

    def paths(self, table: str) -> Sequence[Path]:
        """None."""
        return ()

    def merged_with(self, later: Segment) -> Segment:
        """One segment of these blocks and those that follow."""
        tables = {name: _concat(batch, later.tables[name]) for name, batch in self.tables.items()}
        return Segment(self.blocks + later.blocks, tables)


@dataclass(frozen=True, slots=True)
class _Piece:
    segment: AnySegment
    first: int
    last: int

    @property
    def whole(self) -> bool:
        return self.first == self.segment.first and self.last == self.segment.last


class _Known:
    """Every stored block by its hash: those in memory by a table, those in files by looking at their hashes."""

    def __init__(self) -> None:
        self.near: dict[str, tuple[Segment, int]] = {}
        self.far: tuple[Settled, ...] = ()

    def get(self, block_hash: str) -> tuple[AnySegment, int] | None:
        found = self.near.get(block_hash)
        if found is not None:
            return found
        for segment in reversed(self.far):
            at = segment.position(block_hash)
            if at is not None:
                return segment, at
        return None


class Snapshot:
    """The canonical chain at one moment; what is read from it never changes."""

    def __init__(self, pieces: tuple[_Piece, ...], known: _Known, version: int) -> None:
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
            if low <= high:
                found += piece.segment.rows(table, low, high)
        return found

    def scan(self, table: str) -> Scan:
        """All canonical rows, without reading those that are in files."""
        runs: dict[Path, Stored] = {}
        # Runs that were joined share a file.
        needed: dict[Path, dict[Path, None]] = {}
        batches: list[pa.RecordBatch] = []
        for piece in self._pieces:
            path = piece.segment.files(table)
            if path is None:
                batches += piece.segment.rows(table, piece.first, piece.last)
                continue
            # What is settled is the beginning of the chain, so that nothing lies between two runs of a folder.
            earlier = runs.get(path)
            whole = piece.whole and path.is_file()
            runs[path] = Stored(path, earlier.first if earlier else piece.first, piece.last, whole)
            needed.setdefault(path, {}).update(dict.fromkeys(piece.segment.paths(table)))
        return Scan(tuple(replace(run, files=tuple(needed[path])) for path, run in runs.items()), tuple(batches))


class Chain:
    """A store of blocks of one network, safe to share between threads.

    `schemas` gives the tables that every segment brings.
    """

    def __init__(self, network: str, schemas: Mapping[str, pa.Schema]) -> None:
        self.network = network
        self.schemas = dict(schemas)
        self._changed = threading.Condition()
        self._known = _Known()
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
                self._known.near.setdefault(block.hash, (segment, index))

    def extend(self, segment: Segment) -> None:
        """Store the blocks and make the last of them the head."""
        self.add(segment)
        self.set_head(segment.blocks[-1].hash)

    def settle(self, segment: Settled) -> None:
        """Blocks that are in files and final: those after the head are added, those in memory are let go.

        Raises ValueError when they are not the canonical ones, or do not follow them.
        """
        with self._changed:
            view = self._snapshot
            last, parent = view.canonical(segment.last), segment.blocks[0].parent_hash
            before = view.canonical(segment.first - 1)
            if last is None and view.last is not None and view.last != segment.first - 1:
                raise ValueError(f'blocks {segment.first}-{segment.last} do not follow block {view.last}')
            if (last is not None and last != segment.blocks[-1]) or (before is not None and before.hash != parent):
                raise ValueError(f'blocks {segment.first}-{segment.last} are of another branch')
            self._known.far = (*self._known.far, segment)
            later = [_Piece(p.segment, max(p.first, segment.last + 1), p.last) for p in self._pieces]
            self._truncate(segment.first - 1)
            self._pieces.append(_Piece(segment, segment.first, segment.last))
            self._pieces += [piece for piece in later if piece.first <= piece.last]
            for block_hash, (held, index) in list(self._known.near.items()):
                block = held.blocks[index]
                if segment.first <= block.number <= segment.last and view.canonical(block.number) == block:
                    del self._known.near[block_hash]
            self._publish()

    def set_head(self, block_hash: str) -> None:
        """Make the branch that ends in this block canonical. Raises KeyError for a block that is not stored."""
        with self._changed:
            current = self._snapshot
            branch: list[tuple[AnySegment, int]] = []
            at: str = block_hash
            while True:
                found = self._known.get(at)
                if found is None:
                    raise KeyError(at)
                segment, index = found
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
            for block_hash, (segment, index) in list(self._known.near.items()):
                block = segment.blocks[index]
                if self._snapshot.canonical(block.number) != block:
                    del self._known.near[block_hash]

    def _truncate(self, last: int) -> None:
        while self._pieces and self._pieces[-1].last > last:
            piece = self._pieces.pop()
            if piece.first <= last:
                self._pieces.append(_Piece(piece.segment, piece.first, last))

    def _merge_tail(self) -> None:
        while len(self._pieces) > 1:
            earlier, later = self._pieces[-2:]
            one, other = earlier.segment, later.segment
            if not isinstance(one, Segment) or not isinstance(other, Segment):
                return
            if not (earlier.whole and later.whole) or len(one.blocks) >= 2 * len(other.blocks):
                return
            if one.num_rows + other.num_rows > _MERGED_ROWS:
                return
            merged = one.merged_with(other)
            for index, block in enumerate(merged.blocks):
                self._known.near[block.hash] = (merged, index)
            self._pieces[-2:] = [_Piece(merged, merged.first, merged.last)]

    def _publish(self) -> None:
        self._snapshot = Snapshot(tuple(self._pieces), self._known, self._snapshot.version + 1)
        self._changed.notify_all()


def _concat(*batches: pa.RecordBatch) -> pa.RecordBatch:
    joined: pa.RecordBatch = pa.concat_batches(batches)  # type: ignore[attr-defined]  # the stubs lack it
    return joined


def _pieces_of(branch: Iterator[tuple[AnySegment, int]]) -> Iterator[_Piece]:
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
