"""Rows into the data files of an Iceberg table, as they arrive: Parquet with field ids, split by partition.

The files are written here and not by pyiceberg's `append`: that wants all rows at once where a table is partitioned,
and writes a null list of structs as an empty list. What is written is not in the table until a commit names it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
from pyiceberg.io import FileIO
from pyiceberg.io.fileformat import FileFormatFactory, FileFormatWriter
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.schema import Schema, sanitize_column_names
from pyiceberg.table import Table
from pyiceberg.table.locations import LocationProvider
from pyiceberg.typedef import Record
from pyiceberg.types import NestedField

from amp.errors import SchemaError
from amp.loaders.iceberg.io import sync

__all__ = ['DataWriter', 'arrow_schema', 'delete_files', 'file_schema', 'top_columns', 'top_fields']

# Iceberg's own size of a row group: each begins its dictionaries anew, which is what smaller ones cost.
_PENDING_BYTES = 128 * 1024**2
_OPEN_FILES = 100
_TARGET = 'write.target-file-size-bytes'
_TARGET_DEFAULT = 512 * 1024**2

Column: TypeAlias = 'pa.Array[Any]'
_Values: TypeAlias = tuple[Any, ...]


def arrow_schema(schema: Schema, *, ids: bool = False) -> pa.Schema:
    """The Arrow schema of an Iceberg schema, in small offsets; with `ids` each field carries its field id."""
    wide = schema_to_pyarrow(schema, include_field_ids=ids)
    return pa.schema([_small_field(f) for f in wide])


def file_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a data file: names that Parquet readers take, and field ids."""
    return arrow_schema(sanitize_column_names(schema), ids=True)


def top_columns(table: Table) -> list[str]:
    """The names of the columns of a table, without what lies inside nested ones."""
    return [f.name for f in table.schema().fields]


def top_fields(schema: Schema, names: Sequence[str]) -> list[NestedField]:
    """The columns of these names; a name with a dot is a column here, never a path into one."""
    known = {f.name: f for f in schema.fields}
    return [known[name] for name in names]


def _small_field(f: Any) -> Any:
    return f.with_type(_small(f.type))


def _small(kind: Any) -> Any:
    if pt.is_large_string(kind):
        return pa.string()
    if pt.is_large_binary(kind):
        return pa.binary()
    if pt.is_large_list(kind) or pt.is_list(kind):
        return pa.list_(_small_field(kind.value_field))
    if pt.is_map(kind):
        return pa.map_(_small_field(kind.key_field), _small_field(kind.item_field))
    if pt.is_struct(kind):
        return pa.struct([_small_field(f) for f in kind])
    return kind


def delete_files(io: FileIO, paths: Sequence[str]) -> None:
    """Delete files that nothing names (any more); one that cannot be deleted now is an orphan for later."""
    for path in paths:
        with suppress(OSError):
            io.delete(path)


@dataclass
class _Part:
    """The rows of one partition: those that wait, and the file that is open for them."""

    key: PartitionKey | None
    waiting: list[pa.RecordBatch] = field(default_factory=list)
    waiting_bytes: int = 0
    writer: FileFormatWriter | None = None
    path: str = ''
    written: int = 0


class DataWriter:
    """Writes batches into data files of `table`; the files are whole after `finish`, and gone after `abort`.

    In a `with`, they are gone when it is left by an error. Batches have any columns of the table, by name; those that are missing are null. At most some 128 MB wait in memory.
    """

    def __init__(self, table: Table) -> None:
        self.rows = 0
        self._io = table.io
        self._schema = table.schema()
        self._names = top_columns(table)
        self._sanitized = sanitize_column_names(self._schema)
        self._arrow = file_schema(self._schema)
        self._spec = table.spec()
        self._properties = dict(table.properties)
        self._locations: LocationProvider = table.location_provider()
        self._target = int(self._properties.get(_TARGET, _TARGET_DEFAULT))
        self._name = uuid.uuid4().hex
        self._parts: dict[_Values, _Part] = {}
        self._waiting = 0
        self._files: list[DataFile] = []
        self._paths: list[str] = []

    @property
    def spec_id(self) -> int:
        """The partitioning that the files follow."""
        return self._spec.spec_id

    def write(self, batch: pa.RecordBatch) -> int:
        """Take rows; how many. Raises SchemaError for a column that does not fit the table's."""
        if not batch.num_rows:
            return 0
        for values, rows in self._split(self._fitted(batch)):
            part = self._part(values)
            part.waiting.append(rows)
            part.waiting_bytes += rows.nbytes
            self._waiting += rows.nbytes
        while self._waiting >= _PENDING_BYTES:
            self._flush(max(self._parts.values(), key=lambda p: p.waiting_bytes))
        self.rows += batch.num_rows
        return batch.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        if kind is not None:
            self.abort()

    def write_all(self, reader: pa.RecordBatchReader) -> int:
        """Take all that a reader gives; how many rows."""
        return sum(self.write(batch) for batch in reader)

    def finish(self) -> list[DataFile]:
        """Close what is open; the files, as a commit wants them."""
        for part in self._parts.values():
            if part.waiting:
                self._flush(part)
            self._close(part)
        self._parts.clear()
        return self._files

    def abort(self) -> None:
        """Delete every file of this writer."""
        for part in self._parts.values():
            if part.writer is not None:
                with suppress(OSError, pa.ArrowException, ValueError, RuntimeError):
                    part.writer.close()
        self._parts.clear()
        delete_files(self._io, self._paths)

    def _fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of the table, in its order and types."""
        known = self._names
        unknown = next((n for n in batch.schema.names if n not in known), None)
        if unknown is not None:
            raise SchemaError(f'the table has no column {unknown!r}', hint=f'columns: {", ".join(known)}')
        columns = []
        for own, target in zip(self._schema.fields, self._arrow, strict=True):
            index = batch.schema.get_field_index(own.name)
            if index >= 0:
                columns.append(_cast(own.name, batch.column(index), target.type))
            elif own.required:
                raise SchemaError(f'the table wants a value in column {own.name!r}, which the rows do not have')
            else:
                columns.append(pa.nulls(batch.num_rows, target.type))
        return pa.RecordBatch.from_arrays(columns, schema=self._arrow)

    def _split(self, batch: pa.RecordBatch) -> Iterator[tuple[_Values, pa.RecordBatch]]:
        """The rows of each partition, with the partition's values."""
        if self._spec.is_unpartitioned():
            yield (), batch
            return
        columns = [self._partition_column(batch, i) for i in range(len(self._spec.fields))]
        firsts, inverse = _groups(columns)
        # One row for each partition, never one for each row.
        try:
            chosen = pa.table(columns, names=[str(i) for i in range(len(columns))]).take(firsts).to_pylist()
        except OverflowError as error:
            sources = ', '.join(self._schema.find_field(f.source_id).name for f in self._spec.fields)
            raise SchemaError(
                f'a day or an instant outside the years 1 to 9999 is no partition (partitions by {sources})',
                hint='nothing of the unit was kept; leave the row out in the query, or choose other partitions',
            ) from error
        if len(firsts) == 1:
            yield tuple(chosen[0].values()), batch
            return
        counts = np.bincount(inverse)
        ordered = batch.take(np.argsort(inverse, kind='stable'))
        start = 0
        for values, count in zip(chosen, counts.tolist(), strict=True):
            yield tuple(values.values()), ordered.slice(start, count)
            start += count

    def _partition_column(self, batch: pa.RecordBatch, index: int) -> Column:
        partition = self._spec.fields[index]
        source = self._schema.find_field(partition.source_id)
        position = [f.field_id for f in self._schema.fields].index(partition.source_id)
        transformed: Any = partition.transform.pyarrow_transform(source.field_type)(batch.column(position))
        return transformed.combine_chunks() if isinstance(transformed, pa.ChunkedArray) else transformed

    def _part(self, values: _Values) -> _Part:
        if values not in self._parts:
            key = None
            if values:
                pairs = zip(self._spec.fields, values, strict=True)
                given = [PartitionFieldValue(field=f, value=value) for f, value in pairs]
                key = PartitionKey(field_values=given, partition_spec=self._spec, schema=self._schema)
            self._parts[values] = _Part(key)
        return self._parts[values]

    def _flush(self, part: _Part) -> None:
        if part.writer is None:
            self._make_room()
            name = f'{self._name}-{len(self._paths):05d}.parquet'
            part.path = self._locations.new_data_location(name, part.key)
            self._paths.append(part.path)
            model = FileFormatFactory.get(FileFormat.PARQUET)
            part.writer = model.create_writer(self._io.new_output(part.path), self._sanitized, self._properties)
        part.writer.write(pa.Table.from_batches(part.waiting, self._arrow))
        part.written += part.waiting_bytes
        self._waiting -= part.waiting_bytes
        part.waiting, part.waiting_bytes = [], 0
        if part.written >= self._target:
            self._close(part)

    def _make_room(self) -> None:
        opened = [part for part in self._parts.values() if part.writer is not None]
        if len(opened) >= _OPEN_FILES:
            self._close(max(opened, key=lambda part: part.written))

    def _close(self, part: _Part) -> None:
        if part.writer is None:
            return
        statistics = part.writer.close()
        sync(self._io, part.path)
        part.writer, part.written = None, 0
        self._files.append(
            DataFile.from_args(
                content=DataFileContent.DATA,
                file_path=part.path,
                file_format=FileFormat.PARQUET,
                partition=part.key.partition if part.key is not None else Record(),
                file_size_in_bytes=len(self._io.new_input(part.path)),
                sort_order_id=None,
                spec_id=self.spec_id,
                equality_ids=None,
                key_metadata=None,
                **statistics.to_serialized_dict(),
            )
        )


def _groups(columns: Sequence[Column]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first row of each combination of values, and for each row which combination it has."""
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        encoded: Any = column.dictionary_encode(null_encoding='encode')
        indices = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # Combinations are renumbered after each column, so that no product of sizes runs over.
        _, codes = np.unique(codes * (len(encoded.dictionary) + 1) + indices, return_inverse=True)
    _, firsts = np.unique(codes, return_index=True)
    return firsts, codes


_WIDENING: Mapping[pa.DataType, tuple[pa.DataType, ...]] = {
    pa.int64(): (pa.int32(),),
    pa.float64(): (pa.float32(),),
    pa.string(): (pa.large_string(),),
    pa.binary(): (pa.large_binary(),),
}


def _cast(name: str, values: Column, target: Any) -> Column:
    """The values as the table has them, by a cast that only widens. Raises SchemaError."""
    if values.type.equals(target, check_metadata=True):
        return values
    if not _widens(values.type, target):
        raise SchemaError(
            f'column {name!r} of type {values.type} does not fit the column of type {target} in the table',
            hint='cast it in the query, or load into another table',
            column=name,
        )
    return values.cast(target)


def _widens(source: Any, target: Any) -> bool:
    if source.equals(target) or source in _WIDENING.get(target, ()):
        return True
    if pt.is_decimal(source) and pt.is_decimal(target):
        return bool(source.scale == target.scale and source.precision <= target.precision)
    if pt.is_list(source) and pt.is_list(target):
        return _widens(source.value_type, target.value_type)
    if pt.is_map(source) and pt.is_map(target):
        return _widens(source.key_type, target.key_type) and _widens(source.item_type, target.item_type)
    if pt.is_struct(source) and pt.is_struct(target):
        theirs = {f.name: f.type for f in target}
        return all(f.name in theirs and _widens(f.type, theirs[f.name]) for f in source)
    return False
