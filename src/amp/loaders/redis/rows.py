"""Rows as Redis keeps them, a whole batch at once, and back: fields of a hash or a stream, or one JSON text a row.

Fields: bytes as they are, text as it is, numbers and booleans as text, times as whole numbers of the column's unit,
nested values as JSON; a null is a field that is not there. JSON: bytes as `0x` and hex digits, decimals as text, the
rest likewise; a null is `null`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute
import pyarrow.json
import pyarrow.types as pt

from amp.errors import SchemaError
from amp.loaders.json_text import has_nul, is_bytes, is_text, json_text
from amp.loaders.stamps import TX_ID

__all__ = ['JSON_ROW', 'fields_of', 'json_rows', 'rows_of_fields', 'rows_of_json']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array."""

JSON_ROW = '_amp_row'
"""In the JSON of a collection: which row of its transaction it is, so that equal rows stay apart."""


def fields_of(batch: pa.RecordBatch) -> list[tuple[bytes, Column]]:
    """Name and bytes of each column."""
    return [(field.name.encode(), _cells(column)) for field, column in zip(batch.schema, batch.columns, strict=True)]


def json_rows(batch: pa.RecordBatch, tx_id: int, names: Column | None = None) -> Column:
    """One JSON text a row, as `binary`. `names` tells rows of one transaction apart. Raises SchemaError."""
    columns = [_plain(field.name, column) for field, column in zip(batch.schema, batch.columns, strict=True)]
    columns.append(pa.repeat(pa.scalar(tx_id, pa.int64()), batch.num_rows))
    titles = [*batch.schema.names, TX_ID]
    if names is not None:
        columns.append(names)
        titles.append(JSON_ROW)
    rows: Any = pa.StructArray.from_arrays(columns, names=titles)
    return json_text(rows).cast(pa.binary())


def rows_of_fields(rows: Sequence[Sequence[bytes | None]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows from the values of their fields, in the order of `schema`."""
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in schema]
    restored = [_restored(pa.array(column, pa.binary()), f.type) for column, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(restored, schema=schema)


def rows_of_json(rows: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """Rows from their JSON texts; a column that a row does not have is null."""
    if not rows:
        return pa.RecordBatch.from_pylist([], schema=schema)
    read_as = pa.schema([pa.field(field.name, _json_type(field.type)) for field in schema])
    options = pyarrow.json.ParseOptions(
        explicit_schema=read_as, newlines_in_values=False, unexpected_field_behavior='ignore'
    )
    size = sum(map(len, rows)) + len(rows)
    # One block: a block has to hold its longest row.
    block = pyarrow.json.ReadOptions(use_threads=False, block_size=max(1 << 16, size + 1))
    table = pyarrow.json.read_json(io.BytesIO(b'\n'.join(rows) + b'\n'), block, options).combine_chunks()
    columns = []
    for field in schema:
        column = table.column(field.name)
        whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        columns.append(_from_json(whole, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _whole(column: Column) -> Column:
    """Times as the numbers of their unit."""
    if pt.is_temporal(column.type):
        return column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
    return column


def _cells(column: Column) -> Column:
    kind = column.type
    if pt.is_fixed_size_binary(kind):
        return column
    if is_bytes(kind) or is_text(kind):
        return column.cast(pa.binary())
    if pt.is_null(kind):
        return column.cast(pa.binary())
    if pt.is_float16(kind):
        return column.cast(pa.float32()).cast(pa.string()).cast(pa.binary())
    return _whole(column).cast(pa.string()).cast(pa.binary())


def _restored(cells: Column, kind: Any) -> Column:
    if pt.is_null(kind):
        return pa.nulls(len(cells))
    if is_bytes(kind):
        return cells.cast(kind)
    texts = cells.cast(pa.string())
    if pt.is_temporal(kind):
        return texts.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    if pt.is_float16(kind):
        return texts.cast(pa.float32()).cast(kind)
    return texts.cast(kind)


def _plain(name: str, column: Column) -> Column:
    kind = column.type
    if pt.is_floating(kind):
        wide = column.cast(pa.float32()) if pt.is_float16(kind) else column
        if pc.all(pc.is_finite(wide)).as_py() is False:
            raise SchemaError(
                f'column {name!r} holds a number that is not finite, which JSON cannot hold',
                hint="data_structure='hash' can; or cast it in the query",
                column=name,
            )
        return wide
    if is_text(kind) and has_nul(column):
        raise SchemaError(
            f'column {name!r} holds a text with the character NUL, which rows as JSON do not take',
            hint="data_structure='hash' does",
            column=name,
        )
    return column.cast(pa.string()) if pt.is_decimal(kind) else _whole(column)


def _json_type(kind: Any) -> Any:
    if is_bytes(kind) or is_text(kind) or pt.is_decimal(kind):
        return pa.string()
    if pt.is_temporal(kind):
        return pa.int64()
    return pa.float32() if pt.is_float16(kind) else kind


def _from_json(column: Column, kind: Any) -> Column:
    if is_bytes(kind):
        return _unhexed(column).cast(kind)
    if pt.is_temporal(kind):
        return (column.cast(pa.int32()) if kind.bit_width == 32 else column).view(kind)
    return column.cast(kind)


def _unhexed(texts: Column) -> Column:
    """Bytes from `0x` and hex digits."""
    digits = pc.fill_null(pc.utf8_slice_codeunits(texts, 2), '').cast(pa.large_binary())
    text = digits.buffers()[2]
    data = pa.py_buffer(bytes.fromhex(text.to_pybytes().decode()) if text is not None else b'')
    offsets = pa.Array.from_buffers(pa.int64(), len(digits) + 1, [None, digits.buffers()[1]], offset=digits.offset)
    halves = pc.divide(pc.subtract(offsets, offsets[0]), 2)
    whole = pa.Array.from_buffers(pa.large_binary(), len(texts), [None, halves.buffers()[1], data])
    return pc.if_else(texts.is_valid(), whole, pa.scalar(None, pa.large_binary())).cast(pa.binary())
