"""Rows as bytes, a whole batch at once: the format in which LMDB keeps a row that is found by its key.

    8 bytes   transaction id, signed
    2 bytes   k, the number of columns that the row has: the first k of the table
    k bits    one a column, in whole bytes, the lowest bit first: 1 where the value is not null
    fixed     the values of columns of fixed width, one after the other as Arrow keeps them; a boolean takes a byte
    ends      4 bytes for each column of variable width: where its value ends, counted from the first of them
    variable  the bytes of those values, one after the other

Every number is little-endian. The schema is kept once a table, so a row has none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

__all__ = ['RowBytes', 'Slices', 'gather', 'own_values']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array. Its stubs know arrays of one type only."""
Numbers: TypeAlias = Any
"""A numpy array; Arrow's stubs do not know that it is a buffer."""

_HEADER = np.dtype([('tx', '<i8'), ('columns', '<u2')])


@dataclass(frozen=True)
class Slices:
    """Pieces of one buffer: where each starts and ends. They rise and do not overlap."""

    data: pa.Buffer
    starts: Numbers
    ends: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, rows: Numbers) -> Slices:
        """Some of them."""
        return Slices(self.data, self.starts[rows], self.ends[rows])


class RowBytes:
    """Encodes and decodes rows of `schema`, whose columns are of fixed width, text or bytes."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def encode(self, batch: pa.RecordBatch, tx_id: int) -> Column:
        """The rows as `binary` (`large_binary` above 2 GB). The batch has the first columns of the schema."""
        layout = _Layout(batch.schema)
        rows = np.zeros(batch.num_rows, layout.dtype)
        rows['tx'], rows['columns'] = tx_id, batch.num_columns
        self._set_bits(rows['bits'], batch)
        for name, i in layout.fixed:
            rows[name] = own_values(batch.column(i), layout.dtype.fields[name][0].itemsize)  # type: ignore[index]
        variable = [_bytes(batch.column(i)) for i in layout.variable]
        end: Any = 0
        for number, column in enumerate(variable):
            end = end + pc.binary_length(column).to_numpy(zero_copy_only=False)
            rows['ends'][:, number] = end
        head = as_binary(rows)
        if not variable:
            return head
        if batch.nbytes >= 1 << 31:
            head, variable = head.cast(pa.large_binary()), [c.cast(pa.large_binary()) for c in variable]
        joined: Column = pc.binary_join_element_wise(head, *variable, pa.scalar(b'', head.type))
        return joined

    def decode(self, rows: Slices) -> tuple[pa.RecordBatch, Numbers]:
        """The rows, and their transaction ids. Columns that a row does not have yet are null."""
        heads = np.frombuffer(gather(rows.data, rows.starts, rows.starts + _HEADER.itemsize), _HEADER, len(rows))
        counts = np.unique(heads['columns'])
        if len(counts) <= 1:
            return self._decode(rows, int(counts[0]) if len(counts) else 0), heads['tx']
        parts, order = [], []
        for count in counts:
            chosen = np.flatnonzero(heads['columns'] == count)
            parts.append(self._decode(rows.select(chosen), int(count)))
            order.append(chosen)
        merged = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        back: Any = np.argsort(np.concatenate(order))
        return merged.take(back), heads['tx']

    def _decode(self, rows: Slices, count: int) -> pa.RecordBatch:
        own = pa.schema([self.schema.field(i) for i in range(count)])
        layout = _Layout(own)
        width = layout.dtype.itemsize
        heads = np.frombuffer(gather(rows.data, rows.starts, rows.starts + width), layout.dtype, len(rows))
        bits = np.unpackbits(heads['bits'], axis=1, bitorder='little', count=max(count, 1))
        columns: list[Column] = []
        start: Any = rows.starts + width
        fixed = {i: name for name, i in layout.fixed}
        variable = {i: number for number, i in enumerate(layout.variable)}
        for i, field in enumerate(own):
            valid = bits[:, i]
            if i in variable:
                end = rows.starts + width + heads['ends'][:, variable[i]]
                columns.append(_variable(field.type, len(rows), gather_offsets(rows.data, start, end), valid))
                start = end
            else:
                values = heads[fixed[i]] if i in fixed else None
                columns.append(_fixed(field.type, len(rows), values, valid))
        columns += [pa.nulls(len(rows), self.schema.field(i).type) for i in range(count, len(self.schema))]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    @staticmethod
    def _set_bits(bits: Numbers, batch: pa.RecordBatch) -> None:
        for i, column in enumerate(batch.columns):
            bit = np.uint8(1 << i % 8)
            if column.null_count:
                bits[:, i // 8] |= column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8) * bit
            else:
                bits[:, i // 8] |= bit


class _Layout:
    """Where everything lies in the part of a row that has a fixed width."""

    def __init__(self, schema: pa.Schema) -> None:
        self.variable = [i for i, field in enumerate(schema) if not _has_width(field.type)]
        widths = {i: _width(field.type) for i, field in enumerate(schema) if _has_width(field.type)}
        self.fixed = [(f'f{i}', i) for i, width in widths.items() if width]
        fields: list[Any] = [('tx', '<i8'), ('columns', '<u2'), ('bits', 'u1', (max(1, -(-len(schema) // 8)),))]
        fields += [(name, f'V{widths[i]}') for name, i in self.fixed]
        fields += [('ends', '<u4', (len(self.variable),))]
        self.dtype = np.dtype(fields)


def _has_width(kind: Any) -> bool:
    return not (pt.is_string(kind) or pt.is_binary(kind) or pt.is_large_string(kind) or pt.is_large_binary(kind))


def _width(kind: Any) -> int:
    if pt.is_null(kind):
        return 0
    return 1 if pt.is_boolean(kind) else int(kind.bit_width) // 8


def own_values(column: Any, width: int) -> Numbers:
    """The values of a column of fixed width, as opaque items; those of nulls are whatever lies there."""
    if pt.is_boolean(column.type):
        column = pc.fill_null(column, False).cast(pa.uint8())
    buffer = column.buffers()[1]
    if buffer is None:
        return np.zeros(len(column), f'V{width}')
    return np.frombuffer(buffer, f'V{width}', len(column), column.offset * width)


def _bytes(column: Any) -> Column:
    values = column.cast(pa.binary()) if pt.is_string(column.type) else column
    if pt.is_large_string(values.type) or pt.is_large_binary(values.type):
        values = values.cast(pa.large_binary()).cast(pa.binary())
    filled: Column = pc.fill_null(values, b'') if values.null_count else values
    return filled


def as_binary(rows: Numbers) -> Column:
    """Items of one width as `binary`, without a copy."""
    width = rows.dtype.itemsize
    is_large = len(rows) * width >= 1 << 31
    offsets: Numbers = np.arange(0, (len(rows) + 1) * width, width, dtype=np.int64 if is_large else np.int32)
    kind: Any = pa.large_binary() if is_large else pa.binary()
    return pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(rows.data)])


def gather_offsets(data: pa.Buffer, starts: Numbers, ends: Numbers) -> Column:
    """The pieces of a buffer, as `large_binary`: copied together by Arrow, not one by one."""
    both: Numbers = np.empty(2 * len(starts) + 1, np.int64)
    both[0:-1:2], both[1::2], both[-1] = starts, ends, data.size
    every = pa.Array.from_buffers(pa.large_binary(), 2 * len(starts), [None, pa.py_buffer(both), data])
    wanted: Any = np.arange(0, 2 * len(starts), 2)
    return every.take(pa.array(wanted))


def gather(data: pa.Buffer, starts: Numbers, ends: Numbers) -> memoryview:
    """The bytes of the pieces, one after the other."""
    if not len(starts):
        return memoryview(b'')
    return memoryview(gather_offsets(data, starts, ends).buffers()[2])


def _variable(kind: Any, rows: int, values: Column, valid: Numbers) -> Column:
    kept = _with_nulls(pa.large_binary(), rows, values.buffers()[1:], valid)
    large = pa.large_string() if pt.is_string(kind) or pt.is_large_string(kind) else pa.large_binary()
    typed = pa.Array.from_buffers(large, rows, kept.buffers(), kept.null_count)
    return typed if kind.equals(large) else typed.cast(kind)


def _fixed(kind: Any, rows: int, values: Numbers | None, valid: Numbers) -> Column:
    if pt.is_null(kind) or values is None:
        return pa.nulls(rows, kind) if pt.is_null(kind) else _with_nulls(kind, rows, [pa.py_buffer(b'')], valid)
    own: Numbers = np.ascontiguousarray(values)
    if pt.is_boolean(kind):
        packed: Numbers = np.packbits(own.view(np.uint8), bitorder='little')
        return _with_nulls(kind, rows, [pa.py_buffer(packed)], valid)
    return _with_nulls(kind, rows, [pa.py_buffer(own.view(np.uint8))], valid)


def _with_nulls(kind: Any, rows: int, buffers: Sequence[Any], valid: Numbers) -> Column:
    nulls = rows - int(np.count_nonzero(valid))
    packed: Numbers = np.packbits(valid, bitorder='little')
    return pa.Array.from_buffers(kind, rows, [pa.py_buffer(packed) if nulls else None, *buffers], nulls)
