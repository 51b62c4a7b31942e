"""Segments in Parquet files: the blocks are known by their hashes, rows are read when they are asked for.

What stays in memory is 40 bytes a block, a few numbers a row group, and the row groups that were read last.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from amp.devserver.chain import Block
from amp.errors import SourceError

__all__ = ['BlockIndex', 'StoredSegment', 'StoredTable', 'read_blocks']

_CACHED_BYTES = 32 << 20
_PLACE = ['block_num', 'hash', 'parent_hash', 'timestamp']


class BlockIndex(Sequence[Block]):
    """Blocks that follow each other, held as columns. Raises ValueError when a parent hash says that they do not."""

    def __init__(self, table: pa.Table) -> None:
        if not table.num_rows:
            raise ValueError('the table blocks has no rows: there is no chain to serve')
        numbers = table.column('block_num').to_numpy()
        self._hashes, parents = _words(table.column('hash')), _words(table.column('parent_hash'))
        self._seconds = table.column('timestamp').to_numpy().astype('datetime64[s]').astype(np.int64)
        self._first_parent = '0x' + parents[0].tobytes().hex()
        self.first = int(numbers[0])
        linked = (numbers[1:] == numbers[:-1] + 1) & np.all(parents[1:] == self._hashes[:-1], axis=1)
        if not np.all(linked):
            at = int(np.argmin(linked)) + 1
            raise ValueError(
                f'block {numbers[at]} {self._hash(at)} does not follow {numbers[at - 1]} {self._hash(at - 1)}'
            )

    def __len__(self) -> int:
        return len(self._hashes)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        parent = self._hash(at - 1) if at else self._first_parent
        return Block(self.first + at, self._hash(at), parent, int(self._seconds[at]))

    def position(self, block_hash: str) -> int | None:
        """The index of the block of that hash."""
        wanted = np.frombuffer(bytes.fromhex(block_hash[2:]), dtype=np.uint8)
        # Eight bytes of a hash tell blocks apart as well as 32 do, and are one word to compare.
        words = self._hashes.view('<u8')[:, 0]
        for at in np.flatnonzero(words == wanted.view('<u8')[0]):
            if np.array_equal(self._hashes[at], wanted):
                return int(at)
        return None

    def _hash(self, at: int) -> str:
        return f'0x{self._hashes[at].tobytes().hex()}'


def _words(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.uint8]:
    """A column of 32-byte words as a matrix of its own."""
    parts = []
    for chunk in column.chunks:
        data: Any = chunk.buffers()[1]
        parts.append(np.frombuffer(data, dtype=np.uint8).reshape(-1, 32)[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(parts)


def read_blocks(files: Iterable[Path]) -> BlockIndex:
    """The blocks of a table `blocks`, in any order of files. Raises ValueError, and SourceError for a damaged file."""
    table = pa.concat_tables(_read(file, lambda opened: opened.read(columns=_PLACE)) for file in files)
    numbers = table.column('block_num').to_numpy()
    if np.any(numbers[1:] < numbers[:-1]):
        table = table.take(np.argsort(numbers, kind='stable'))
    return BlockIndex(table)


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group and the block numbers of its rows."""

    file: Path
    index: int
    first: int
    last: int


class StoredTable:
    """One table in Parquet files, `paths`. `place` is the file, or the folder of all of them.

    Raises ValueError when a file holds no table of Amp's or its schema differs from the others', and SourceError when
    it is damaged.
    """

    def __init__(self, place: Path, files: Sequence[Path]) -> None:
        self.place = place
        self.paths = tuple(files)
        schemas: list[pa.Schema] = []
        groups: list[_Group] = []
        for file in files:
            schema, found = _read(file, lambda opened, file=file: (opened.schema_arrow, list(_groups(file, opened))))
            schemas.append(schema.remove_metadata())
            groups += found
        self.schema = schemas[0]
        for file, schema in zip(files, schemas, strict=True):
            if not schema.equals(self.schema):
                raise ValueError(f'{file} has other columns than {files[0]}')
        self._groups = sorted(groups, key=lambda group: (group.first, group.last))
        self._ends = np.maximum.accumulate([group.last for group in self._groups]) if groups else np.array([])
        self.span = (self._groups[0].first, int(self._ends[-1])) if groups else None

    def rows(self, first: int, last: int) -> list[pa.RecordBatch]:
        """The rows of blocks `first` to `last` (inclusive), by rising number; those of a block as they are in the files."""
        parts = []
        for group in self._overlapping(first, last):
            batch = _CACHE.get(group)
            numbers = batch.column('_block_num').to_numpy()
            start, end = np.searchsorted(numbers, [first, last + 1])
            if end > start:
                parts.append(batch.slice(int(start), int(end - start)))
        if all(_last(one) <= _first(other) for one, other in pairwise(parts)):
            return parts
        table = pa.Table.from_batches(parts)
        return _batches(table.take(pc.sort_indices(table.column('_block_num'))))

    def _overlapping(self, first: int, last: int) -> Iterator[_Group]:
        for at in range(bisect_left(self._ends, first), len(self._groups)):
            group = self._groups[at]
            if group.first > last:
                return
            if group.last >= first:
                yield group


class StoredSegment:
    """A segment in files: its blocks, and tables that may hold rows of other blocks too."""

    def __init__(self, blocks: BlockIndex, tables: Mapping[str, StoredTable]) -> None:
        self.blocks = blocks
        self.tables: Mapping[str, StoredTable] = dict(tables)

    @property
    def first(self) -> int:
        """Number of the first block."""
        return self.blocks.first

    @property
    def last(self) -> int:
        """Number of the last block."""
        return self.blocks.first + len(self.blocks) - 1

    def position(self, block_hash: str) -> int | None:
        """The index of the block of that hash, when it is one of these."""
        return self.blocks.position(block_hash)

    def rows(self, table: str, first: int, last: int) -> list[pa.RecordBatch]:
        """The rows of blocks `first` to `last` (inclusive), by rising block number. Raises SourceError."""
        tables = self.tables
        try:
            return tables[table].rows(first, last)
        except SourceError:
            # The files may have been joined into larger ones meanwhile.
            if self.tables is tables:
                raise
            return self.rows(table, first, last)

    def files(self, table: str) -> Path | None:
        """The Parquet file, or the folder of such, that holds the table."""
        return self.tables[table].place

    def paths(self, table: str) -> Sequence[Path]:
        """The Parquet files that hold the table."""
        return self.tables[table].paths


class _Cache:
    """The row groups that were read last, sorted by block number."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[_Group, pa.RecordBatch] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, group: _Group) -> pa.RecordBatch:
        """The rows of the group. Raises SourceError when they cannot be read."""
        with self._lock:
            held = self._held.get(group)
            if held is not None:
                self._held.move_to_end(group)
                return held
        read: pa.RecordBatch = _read(group.file, lambda opened: _sorted(opened.read_row_group(group.index)))
        with self._lock:
            if group not in self._held:
                self._held[group] = read
                self._bytes += read.nbytes
            while self._bytes > self._most_bytes and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return read


_CACHE = _Cache(_CACHED_BYTES)


def _read(file: Path, use: Any) -> Any:
    try:
        with pq.ParquetFile(file) as opened:
            return use(opened)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f'{file} cannot be read: {error}', hint='is it whole, and a Parquet file?') from error


def _groups(file: Path, opened: pq.ParquetFile) -> Iterator[_Group]:
    if '_block_num' not in opened.schema_arrow.names:
        raise ValueError(f'{file} has no column _block_num: not a raw table of Amp')
    at = opened.schema_arrow.names.index('_block_num')
    for index in range(opened.metadata.num_row_groups):
        group = opened.metadata.row_group(index)
        if not group.num_rows:
            continue
        statistics = group.column(at).statistics
        if statistics is not None and statistics.has_min_max:
            yield _Group(file, index, int(statistics.min), int(statistics.max))  # type: ignore[arg-type]
        else:
            numbers = opened.read_row_group(index, columns=['_block_num']).column(0).to_numpy()
            yield _Group(file, index, int(numbers.min()), int(numbers.max()))


def _sorted(table: pa.Table) -> pa.RecordBatch:
    table = table.replace_schema_metadata(None)
    numbers = table.column('_block_num').to_numpy()
    if np.any(numbers[1:] < numbers[:-1]):
        table = table.take(np.argsort(numbers, kind='stable'))
    return _batches(table)[0]


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    return table.combine_chunks().to_batches()


def _first(batch: pa.RecordBatch) -> int:
    return int(batch.column('_block_num').to_numpy()[0])


def _last(batch: pa.RecordBatch) -> int:
    return int(batch.column('_block_num').to_numpy()[-1])
