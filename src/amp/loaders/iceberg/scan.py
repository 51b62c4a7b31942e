"""The rows of Iceberg data files as Arrow, file by file, columns matched by field id.

Files are read here and not by pyiceberg where that can be: its projection shows a null list of structs as an empty
list. It is left to pyiceberg where another engine has written delete files, no field ids, or nested types of another
shape than the table has now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds
import pyarrow.types as pt
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThanOrEqual
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table

from amp.loaders.iceberg.files import arrow_schema, top_fields

__all__ = ['Where', 'between', 'file_batches', 'read_file', 'scan_batches', 'tasks_of']

pc: Any = pyarrow.compute

# What pyiceberg says of their arguments is true of their insides only.
_AT_LEAST: Any = GreaterThanOrEqual
_AT_MOST: Any = LessThanOrEqual
_FIELD_ID = b'PARQUET:field_id'
Where = Mapping[str, tuple[int, int]]


def between(where: Where) -> BooleanExpression:
    """The rows whose columns lie between two numbers, inclusive."""
    found: BooleanExpression = AlwaysTrue()
    for column, (low, high) in where.items():
        found = And(found, And(_AT_LEAST(column, low), _AT_MOST(column, high)))
    return found


def tasks_of(table: Table, row_filter: BooleanExpression | None = None) -> list[FileScanTask]:
    """The files that may hold rows of a filter (None: all), by their statistics."""
    return list(table.scan(row_filter=row_filter or AlwaysTrue()).plan_files())


def scan_batches(table: Table, columns: Sequence[str], where: Where | None = None) -> Iterator[pa.RecordBatch]:
    """Rows of the current snapshot of `table`: the named columns, of those rows that `where` keeps."""
    for task in tasks_of(table, between(where or {})):
        yield from file_batches(table, task, columns, where)


def file_batches(
    table: Table, task: FileScanTask, columns: Sequence[str], where: Where | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of one file of the table."""
    schema = table.schema()
    wanted = Schema(*top_fields(schema, columns))
    needed = (
        wanted if where is None else Schema(*{f.field_id: f for f in (*wanted.fields, *_named(schema, where))}.values())
    )
    target = arrow_schema(wanted)
    batches = None if task.delete_files else read_file(table, task.file.file_path, needed)
    if batches is None:
        scan = ArrowScan(table.metadata, table.io, needed, AlwaysTrue())
        batches = (_as(batch, arrow_schema(needed)) for batch in scan.to_record_batches([task]))
    for batch in batches:
        kept = batch if where is None else _kept(batch, where)
        if kept.num_rows:
            yield kept.select(target.names) if needed is not wanted else kept


def read_file(table: Table, path: str, wanted: Schema) -> Iterator[pa.RecordBatch] | None:
    """All rows of a Parquet file, columns by field id; None when it is not for us to read."""
    with _opened(table, path) as stream:
        physical = ds.ParquetFileFormat().make_fragment(stream).physical_schema
    target = arrow_schema(wanted, ids=True)
    theirs = {_id(f): f for f in physical}
    if None in theirs or not all(_same_shape(f.type, theirs[_id(f)].type) for f in target if _id(f) in theirs):
        return None
    names = {_id(f): f.name for f in physical}
    columns = [_Column(f, names.get(_id(f))) for f in target]
    return _read(table, path, columns, arrow_schema(wanted))


@dataclass(frozen=True)
class _Column:
    """A column that is wanted, and the name that it has in a file (None: it is younger than the file)."""

    field: Any
    name: str | None


def _read(table: Table, path: str, columns: Sequence[_Column], target: pa.Schema) -> Iterator[pa.RecordBatch]:
    present = [c.name for c in columns if c.name is not None]
    with _opened(table, path) as stream:
        fragment = ds.ParquetFileFormat(pre_buffer=True).make_fragment(stream)
        scanner = ds.Scanner.from_fragment(fragment, columns=present, batch_readahead=4)
        for batch in scanner.to_batches():
            arrays = [
                pa.nulls(batch.num_rows, c.field.type) if c.name is None else batch.column(c.name).cast(c.field.type)
                for c in columns
            ]
            yield pa.RecordBatch.from_arrays(
                [a.cast(f.type) for a, f in zip(arrays, target, strict=True)], schema=target
            )


def _opened(table: Table, path: str) -> Any:
    return table.io.new_input(path).open()


def _named(schema: Schema, where: Where) -> list[Any]:
    return top_fields(schema, list(where))


def _kept(batch: pa.RecordBatch, where: Where) -> pa.RecordBatch:
    mask: Any = None
    for column, (low, high) in where.items():
        values = batch.column(column)
        kind = pa.decimal128(38, 0) if pt.is_decimal(values.type) else pa.int64()
        numbers = values.cast(kind)
        low_, high_ = (pa.scalar(n, pa.int64()).cast(kind) for n in (low, high))
        inside = pc.and_(pc.greater_equal(numbers, low_), pc.less_equal(numbers, high_))
        mask = inside if mask is None else pc.and_(mask, inside)
    return batch if mask is None else batch.filter(mask)


def _as(batch: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [c.cast(f.type) for c, f in zip(batch.columns, target, strict=True)], schema=target
    )


def _id(field: Any) -> int | None:
    found = (field.metadata or {}).get(_FIELD_ID)
    return None if found is None else int(found)


def _same_shape(wanted: Any, found: Any) -> bool:
    """True when nested types have the same fields at the same places; of plain ones nothing is asked."""
    ours, theirs = _children(wanted), _children(found)
    if len(ours) != len(theirs) or pt.is_nested(wanted) != pt.is_nested(found):
        return False
    return all(_id(f) == _id(g) and _same_shape(f.type, g.type) for f, g in zip(ours, theirs, strict=True))


def _children(kind: Any) -> list[Any]:
    if pt.is_map(kind):
        return [kind.key_field, kind.item_field]
    if pt.is_list(kind) or pt.is_large_list(kind):
        return [kind.value_field]
    return list(kind) if pt.is_struct(kind) else []
