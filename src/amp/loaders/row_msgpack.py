"""Rows as MessagePack, a whole batch at once: for readers in other languages.

A row is a map from column names to values, in the order of the table, with `_amp_tx_id` first. Whole numbers, floats
and booleans are themselves; text is str, bytes are bin; decimals are their digits as str; dates, times, timestamps and
durations are whole numbers of the column's unit. A null is nil; a column that came later is simply not there. Sizes are
written in their longest form, which every reader takes, and which lets a batch be written and read column by column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

from amp.loaders.row_bytes import Slices, as_binary, gather, gather_offsets, own_values
from amp.loaders.stamps import TX_ID

__all__ = ['RowMsgpack']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array. Its stubs know arrays of one type only."""
Numbers: TypeAlias = Any

_NIL, _FALSE, _TRUE = 0xC0, 0xC2, 0xC3
_MAP32, _STR32, _BIN32, _INT64 = 0xDF, 0xDB, 0xC6, 0xD3
_NIL_CELL = pa.scalar(bytes([_NIL]), pa.binary())
_NOTHING = pa.scalar(b'', pa.binary())


class RowMsgpack:
    """Encodes and decodes rows of `schema`, whose columns are of fixed width, text or bytes."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def encode(self, batch: pa.RecordBatch, tx_id: int) -> Column:
        """The rows as `binary`. The batch has the first columns of the schema."""
        head = bytes([_MAP32]) + (batch.num_columns + 1).to_bytes(4, 'big') + _name(TX_ID)
        head += bytes([_INT64]) + tx_id.to_bytes(8, 'big', signed=True)
        pieces: list[Any] = []
        for field, column in zip(batch.schema, batch.columns, strict=True):
            pieces += [pa.scalar(head + _name(field.name), pa.binary()), *_cells(column)]
            head = b''
        if not any(isinstance(piece, pa.Array) for piece in pieces):
            # Of scalars alone the join would be one.
            pieces.insert(0, pa.repeat(_NOTHING, batch.num_rows))
        joined: Column = pc.binary_join_element_wise(*pieces, pa.scalar(head, pa.binary()), _NOTHING)
        return joined

    def decode(self, rows: Slices) -> tuple[pa.RecordBatch, Numbers]:
        """The rows, and their transaction ids. Columns that a row does not have yet are null."""
        walk = _Walk(rows, 1)
        counts = walk.number('>u4') - 1
        walk.skip(len(_name(TX_ID)) + 1)
        ids = walk.number('>i8')
        columns = []
        for i, field in enumerate(self.schema):
            here = np.flatnonzero(counts > i)
            if len(here) == len(rows):
                columns.append(walk.column(field))
                continue
            part = walk.of(here)
            found = part.column(field)
            walk.at[here] = part.at
            order = np.full(len(rows), -1)
            order[here] = np.arange(len(here))
            columns.append(found.take(pa.array(order, mask=order < 0)))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema), ids


def _name(name: str) -> bytes:
    text = name.encode()
    return bytes([_STR32]) + len(text).to_bytes(4, 'big') + text


@dataclass(frozen=True)
class _Number:
    """How a number of fixed width goes: its tag, and the type that its bytes have, big-endian."""

    tag: int
    kind: str


def _number(kind: Any) -> _Number | None:
    if pt.is_floating(kind):
        return _Number(0xCB, '>f8') if pt.is_float64(kind) else _Number(0xCA, '>f4')
    if pt.is_unsigned_integer(kind):
        return _Number(0xCF, '>u8')
    whole = pt.is_integer(kind) or pt.is_temporal(kind)
    return _Number(_INT64, '>i8') if whole else None


def _whole(column: Any) -> Column:
    """Times as the numbers of their unit."""
    if pt.is_temporal(column.type):
        return column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
    return column


def _cells(column: Any) -> list[Any]:
    """What stands for the values of a column: pieces to be joined, row by row."""
    rows, kind = len(column), column.type
    if pt.is_null(kind):
        return [_NIL_CELL]
    number = _number(kind)
    if pt.is_boolean(kind):
        cells = np.where(pc.fill_null(column, False).to_numpy(zero_copy_only=False), _TRUE, _FALSE).astype('u1')
        return [_or_nil(column, as_binary(cells))]
    if number is not None:
        cells = np.empty(rows, np.dtype([('tag', 'u1'), ('value', number.kind)]))
        own = _whole(column)
        native = np.dtype(own.type.to_pandas_dtype())
        cells['tag'], cells['value'] = number.tag, own_values(own, native.itemsize).view(native)
        return [_or_nil(column, as_binary(cells))]
    is_data = pt.is_fixed_size_binary(kind) or pt.is_binary(kind) or pt.is_large_binary(kind)
    data = pc.fill_null((column if is_data else column.cast(pa.string())).cast(pa.binary()), b'')
    heads = np.empty(rows, np.dtype([('tag', 'u1'), ('size', '>u4')]))
    heads['tag'], heads['size'] = _BIN32 if is_data else _STR32, pc.binary_length(data).to_numpy()
    return [_or_nil(column, as_binary(heads)), data]


def _or_nil(column: Any, cells: Column) -> Column:
    if not column.null_count:
        return cells
    chosen: Column = pc.if_else(column.is_valid(), cells, _NIL_CELL)
    return chosen


class _Walk:
    """A place in each row, moved on from value to value."""

    def __init__(self, rows: Slices, offset: int) -> None:
        self.rows = rows
        self.at: Numbers = rows.starts + offset
        self._bytes = np.frombuffer(memoryview(rows.data), np.uint8)

    def of(self, chosen: Numbers) -> _Walk:
        """The same places of some rows."""
        part = _Walk(self.rows.select(chosen), 0)
        part.at = self.at[chosen]
        return part

    def skip(self, count: Any) -> None:
        """Move on."""
        self.at = self.at + count

    def number(self, kind: str) -> Numbers:
        """A number of each row, as the machine has them."""
        width = np.dtype(kind).itemsize
        values = np.frombuffer(gather(self.rows.data, self.at, self.at + width), kind)
        self.skip(width)
        return values.astype(np.dtype(kind).newbyteorder('='))

    def column(self, field: pa.Field[Any]) -> Column:
        """The values of one column; its name comes first."""
        self.skip(len(_name(field.name)))
        if not len(self.at):
            return pa.nulls(0, field.type)
        tags = self._bytes[self.at]
        self.skip(1)
        valid = tags != _NIL
        if pt.is_null(field.type):
            return pa.nulls(len(tags), field.type)
        if pt.is_boolean(field.type):
            return pa.array(tags == _TRUE, mask=~valid)
        number = _number(field.type)
        every = self if valid.all() else self.of(np.flatnonzero(valid))
        found = every._numbers(number, field.type) if number is not None else every._texts(field.type)
        if every is self:
            return found
        self.at[valid] = every.at
        order = np.cumsum(valid) - 1
        return found.take(pa.array(order, mask=~valid))

    def _numbers(self, number: _Number, kind: Any) -> Column:
        values = pa.array(self.number(number.kind))
        if pt.is_temporal(kind):
            return values.cast(pa.int32()).view(kind) if kind.bit_width == 32 else values.view(kind)
        return values.cast(kind)

    def _texts(self, kind: Any) -> Column:
        sizes = self.number('>u4').astype(np.int64)
        values = gather_offsets(self.rows.data, self.at, self.at + sizes)
        self.skip(sizes)
        if pt.is_fixed_size_binary(kind) or pt.is_binary(kind) or pt.is_large_binary(kind):
            return values.cast(pa.binary()).cast(kind)
        texts = pa.Array.from_buffers(pa.large_string(), len(values), values.buffers())
        return texts.cast(pa.string()).cast(kind)
