"""Data files: a table split by partition keys, written as Parquet, and described for the log."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from itertools import chain
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from amplify_db_utils import names
from amplify_db_utils.errors import StorageUnavailable
from amplify_db_utils.faults import reaching
from amplify_db_utils.log import Snapshot, partitions_of
from amplify_db_utils.storage import Storage

_ROW_GROUP = 1 << 18  # rows
_MANY_PARTITIONS = 64  # of one call; files for each block of records would be too many
_LONGEST_BOUND = 64  # characters of a text that is worth keeping as a bound


class Staging:
    """Data files of one table that no reader sees until a commit names them.

    `add` writes a table of the stored schema (partition keys among its columns); `adds` is what to commit. `discard`
    removes the files again, and is what the end of a `with` block does unless `keep` was called.
    """

    def __init__(
        self, storage: Storage, directory: str, partition_by: Sequence[str], threads: int | None = None
    ) -> None:
        self.storage = storage
        self.directory = directory
        self.partition_by = tuple(partition_by)
        self.adds: list[AddAction] = []
        self._threads = threads or min(os.cpu_count() or 1, 8)
        self._begun: list[str] = []
        self._kept = False

    def add(self, table: pa.Table, *, data_change: bool = True) -> None:
        """Write one file for each partition in the table. Raises OSError; what was written then stays for `discard`."""
        groups = [group for group in split(table, self.partition_by) if group[1].num_rows]
        now = int(time.time() * 1000)

        def write(group: tuple[tuple[str | None, ...], pa.Table]) -> AddAction:
            texts, rows = group
            folder = names.partition_directory(self.partition_by, texts)
            path = f'{folder}/{uuid.uuid4().hex}.parquet' if folder else f'{uuid.uuid4().hex}.parquet'
            size, metadata = self._write(path, folder, rows)
            values = dict(zip(self.partition_by, texts, strict=True))
            return AddAction(path, size, values, now, data_change, statistics(metadata))

        if len(groups) == 1:
            self.adds.append(write(groups[0]))
            return
        with ThreadPoolExecutor(self._threads) as pool:
            self.adds += pool.map(write, groups)

    def add_all(self, tables: Iterator[pa.Table]) -> None:
        """Write several tables, each while the next is made; as one where the partitions are many and the files small."""
        first = next(tables, None)
        if first is None:
            return
        second = next(tables, None)
        if second is None:
            self.add(first)
        elif _count_partitions(first, list(self.partition_by)) > _MANY_PARTITIONS:
            self.add(pa.concat_tables([first, second, *tables]))
        else:
            with ThreadPoolExecutor(1) as pool:
                under_way = pool.submit(self.add, first)
                for table in chain([second], tables):
                    under_way.result()
                    under_way = pool.submit(self.add, table)
                under_way.result()

    def replaces(self, snapshot: Snapshot) -> list[int]:
        """The files of a snapshot in the partitions that were written here (without partitions: all), for `commit`."""
        written = {tuple(add.partition_values[key] for key in self.partition_by) for add in self.adds}
        if not self.partition_by:
            written = {()}
        return [at for at, partition in enumerate(snapshot.partitions) if partition in written]

    def _write(self, path: str, folder: str, rows: pa.Table) -> tuple[int, pq.FileMetaData]:
        where = self.storage.path(self.directory, path)
        self._begun.append(f'{self.directory}/{path}')
        if self.storage.local:
            self.storage.filesystem.create_dir(self.storage.path(self.directory, folder), recursive=True)
        with reaching(), self.storage.filesystem.open_output_stream(where) as stream:
            with pq.ParquetWriter(stream, rows.schema, write_page_checksum=True, version='2.6') as writer:
                writer.write_table(rows, row_group_size=_ROW_GROUP)
            size = stream.tell()
        return size, writer.writer.metadata

    def keep(self) -> None:
        """The files may be part of the table now: never remove them."""
        self._kept = True

    def discard(self) -> None:
        """Remove every file written, whole or in part."""
        self.storage.delete(self._begun)
        self._begun.clear()
        self.adds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        if self._kept:
            return
        try:
            self.discard()
        except StorageUnavailable:
            if error is None:  # else that one is to be heard
                raise


def _count_partitions(table: pa.Table, keys: list[str]) -> int:
    return table.select(keys).group_by(keys).aggregate([]).num_rows


def _indices(places: np.ndarray[Any, Any]) -> Any:
    return pa.array(places)


def split(table: pa.Table, keys: Sequence[str]) -> Iterator[tuple[tuple[str | None, ...], pa.Table]]:
    """The partitions of a table: their values as the log's texts, and their rows without the keys, order kept."""
    rest = table.drop_columns(list(keys)) if keys else table
    if not keys or not table.num_rows:
        yield (), rest
        return
    codes = _codes(table, keys)
    order: np.ndarray[Any, Any] | None = None
    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
    if len(starts) > len(np.unique(codes[starts])):  # not in runs as it is
        order = np.argsort(codes, kind='stable')
        ordered = codes[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        rest = rest.take(_indices(order))
    firsts = starts if order is None else order[starts]
    partitions = partitions_of(table.select(list(keys)).take(_indices(firsts)), keys)
    ends = np.append(starts[1:], table.num_rows)
    for texts, start, end in zip(partitions, starts.tolist(), ends.tolist(), strict=True):
        yield texts, rest.slice(start, end - start)


def _codes(table: pa.Table, keys: Sequence[str]) -> np.ndarray[Any, Any]:
    """One small number for each combination of key values, row by row."""
    codes: np.ndarray[Any, Any] = np.zeros(table.num_rows, np.int64)
    count = 1
    for key in keys:
        encoded: Any = pc.dictionary_encode(table.column(key).combine_chunks(), null_encoding='encode')
        size = max(len(encoded.dictionary), 1)
        if count * size > 2**31:
            _, codes = np.unique(codes, return_inverse=True)
            count = int(codes.max()) + 1
        codes = codes * size + encoded.indices.to_numpy()
        count *= size
    # Sorting small numbers is a radix sort: linear.
    return codes.astype(np.uint16) if count <= 2**16 else codes


def statistics(metadata: pq.FileMetaData) -> str:
    """The log's statistics of one file: rows, and exact bounds of the plain columns that have them."""
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for place in range(min(metadata.num_columns, 64)):
        column = metadata.schema.column(place)
        if column.max_definition_level > 1 or column.max_repetition_level > 0:
            continue
        bounds = _bounds([metadata.row_group(group).column(place) for group in range(metadata.num_row_groups)])
        if bounds is not None:
            least[column.name], most[column.name] = bounds
    return json.dumps({'numRecords': metadata.num_rows, 'minValues': least, 'maxValues': most})


def _bounds(chunks: Sequence[pq.ColumnChunkMetaData]) -> tuple[Any, Any] | None:
    known: list[Any] = [chunk.statistics for chunk in chunks]
    if not known or any(one is None or not one.has_min_max for one in known):
        return None
    low, high = min(one.min for one in known), max(one.max for one in known)
    if isinstance(low, bool) or not isinstance(low, int | float | str | datetime | date):
        return None
    if isinstance(low, float) and not (math.isfinite(low) and math.isfinite(high)):
        return None
    if isinstance(low, str) and max(len(low), len(high)) > _LONGEST_BOUND:
        return None
    return _plain(low), _plain(high)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        naive = value.tzinfo is None
        text = (value if naive else value.astimezone(UTC)).replace(tzinfo=None).isoformat(timespec='microseconds')
        return text if naive else text + 'Z'
    return value.isoformat() if isinstance(value, date) else value
