"""Data files: a table split by partition keys, written as Parquet, and described for the log."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from amplify_db_utils import names
from amplify_db_utils.errors import BadRecord, StorageUnavailable
from amplify_db_utils.faults import reaching
from amplify_db_utils.log import Snapshot, partitions_of
from amplify_db_utils.storage import Storage

_ROW_GROUP = 1 << 18  # rows
_LONGEST_BOUND = 64  # characters of a text that is worth keeping as a bound
_FIRST_DAY, _LAST_DAY = -4_371_587, 2_932_896  # of the years -9999 and 9999, from 1970 on
Partition: TypeAlias = tuple[str | None, ...]


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
        write = partial(self._write, now=_now(), data_change=data_change)
        groups = self._groups(table)
        if len(groups) == 1:
            self.adds.append(write(groups[0]))
            return
        with ThreadPoolExecutor(self._threads) as pool:
            self.adds += pool.map(write, groups)

    def _groups(self, table: pa.Table) -> list[Group]:
        return [group for group in split(table, self.partition_by) if group.count]

    def replaces(self, snapshot: Snapshot) -> list[int]:
        """The files of a snapshot in the partitions that were written here (without partitions: all), for `commit`."""
        written = {self._partition(add) for add in self.adds}
        if not self.partition_by:
            written = {()}
        return [at for at, partition in enumerate(snapshot.partitions) if partition in written]

    def _partition(self, add: AddAction) -> Partition:
        return tuple(add.partition_values[key] for key in self.partition_by)

    def _write(self, group: Group, now: int, data_change: bool) -> AddAction:
        """`now`, in milliseconds, is one for all files of a call: they keep their order."""
        folder = names.partition_directory(self.partition_by, group.texts)
        path = f'{folder}/{uuid.uuid4().hex}.parquet' if folder else f'{uuid.uuid4().hex}.parquet'
        self._begun.append(f'{self.directory}/{path}')
        if self.storage.local:
            self.storage.filesystem.create_dir(self.storage.path(self.directory, folder), recursive=True)
        rows = group.rows()
        with (
            reaching(),
            self.storage.filesystem.open_output_stream(self.storage.path(self.directory, path)) as stream,
            pq.ParquetWriter(stream, group.schema, write_page_checksum=True, version='2.6') as writer,
        ):
            writer.write_table(rows, row_group_size=_ROW_GROUP)
            writer.close()
            size = stream.tell()
        partition = dict(zip(self.partition_by, group.texts, strict=True))
        return AddAction(path, size, partition, now, data_change, statistics(writer.writer.metadata))

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


def _now() -> int:
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Group:
    """The rows of one partition: their number, their schema, and themselves when they are asked for."""

    texts: Partition
    count: int
    schema: pa.Schema
    rows: Callable[[], pa.Table]


def split(table: pa.Table, keys: Sequence[str]) -> Iterator[Group]:
    """The partitions of a table: their values as the log's texts, and their rows without the keys, order kept.

    Rows that are not in runs are gathered by whoever asks for them: that is most of the work, and threads can share it.
    """
    rest = table.drop_columns(list(keys)) if keys else table
    if not keys or not table.num_rows:
        yield Group((), table.num_rows, rest.schema, lambda: rest)
        return
    codes, most = _codes(table, keys)
    order: np.ndarray[Any, Any] | None = None
    batches: list[pa.RecordBatch] = []
    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
    if len(starts) > most or len(starts) > len(np.unique(codes[starts])):  # not in runs as it is
        order = np.argsort(codes, kind='stable')
        ordered = codes[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        batches = rest.combine_chunks().to_batches()
    firsts = starts if order is None else order[starts]
    places_of_firsts: Any = pa.array(firsts)
    values = table.select(list(keys)).take(places_of_firsts)
    _refuse_far_days(values)
    partitions = partitions_of(values, keys)
    ends = np.append(starts[1:], table.num_rows)
    # Rows are read in the order of the files: that of the records, as far as partitions allow it.
    for _, texts, start, end in sorted(zip(firsts.tolist(), partitions, starts.tolist(), ends.tolist(), strict=True)):
        if order is None:
            yield Group(texts, end - start, rest.schema, partial(rest.slice, start, end - start))
        else:
            yield Group(texts, end - start, rest.schema, partial(_gathered, batches, order[start:end]))


def _gathered(batches: Sequence[pa.RecordBatch], places: np.ndarray[Any, Any]) -> pa.Table:
    """The rows at ascending places. Batch by batch: Arrow would join the batches, and an array holds 2 GB of text."""
    taken: list[pa.RecordBatch] = []
    start = 0
    for batch in batches:
        low, high = np.searchsorted(places, (start, start + batch.num_rows))
        within: Any = pa.array(places[low:high] - start)
        taken.append(batch.take(within))
        start += batch.num_rows
    return pa.Table.from_batches(taken)


def _refuse_far_days(values: pa.Table) -> None:
    """Raises BadRecord for a day that the log, which has partition values as text, could not read again."""
    for key in values.schema:
        if pa.types.is_date(key.type) or pa.types.is_timestamp(key.type):
            days: Any = values.column(key.name).cast(pa.date32()).cast(pa.int32())
            bounds: Any = pc.min_max(days).as_py()
            if bounds['min'] is not None and not _FIRST_DAY <= bounds['min'] <= bounds['max'] <= _LAST_DAY:
                raise BadRecord(f'partition key {key.name!r} has a day outside the years -9999 to 9999')


def _codes(table: pa.Table, keys: Sequence[str]) -> tuple[np.ndarray[Any, Any], int]:
    """One small number for each combination of key values, row by row; and how many there may be at most."""

    def encoded(key: str) -> Any:
        return pc.dictionary_encode(table.column(key).combine_chunks(), null_encoding='encode')

    with ThreadPoolExecutor(len(keys)) as pool:
        first, *others = pool.map(encoded, keys)
    codes: np.ndarray[Any, Any] = first.indices.to_numpy()
    count = max(len(first.dictionary), 1)
    for other in others:
        size = max(len(other.dictionary), 1)
        if count * size > 2**31:
            _, codes = np.unique(codes, return_inverse=True)
            count = int(codes.max()) + 1
        codes = codes * (np.int32(size) if count * size <= 2**31 else np.int64(size))
        codes += other.indices.to_numpy()
        count *= size
    # Sorting small numbers is a radix sort: linear.
    return (codes.astype(np.uint16) if count <= 2**16 else codes), count


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
