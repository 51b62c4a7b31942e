"""Commands for a whole batch as RESP bytes, column by column.

No row becomes a Python object: the pieces of all rows are joined by Arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

__all__ = ['Commands', 'column_bytes', 'command', 'joined', 'packed', 'row_commands', 'unpacked', 'variadic']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array."""

Literal: TypeAlias = bytes | str | int

_SIZES: Column = pa.array([str(n) for n in range(1 << 12)]).cast(pa.binary())
_NOTHING = pa.scalar(b'', pa.binary())
_END = b'\r\n'


class Commands:
    """Commands to be sent together: their bytes, how many they are, and how many lines they are answered with."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.count = 0
        self.lines = 0

    def add(self, data: bytes, count: int = 1, lines: int = 1) -> None:
        """`count` commands, each answered with `lines` lines (one, when it fails)."""
        self.data.append(data)
        self.count += count
        self.lines += count * lines

    def call(self, *arguments: Literal) -> None:
        """One command that is answered with one line."""
        self.add(command(*arguments))

    def extend(self, others: Commands) -> None:
        """All of some other commands."""
        self.data += others.data
        self.count += others.count
        self.lines += others.lines


def command(*arguments: Literal) -> bytes:
    """One command."""
    return b'*%d\r\n' % len(arguments) + _arguments(arguments)


def variadic(head: Sequence[Literal], *columns: Column) -> bytes:
    """One command whose arguments are `head`, and then the values of the columns, row by row."""
    count = len(head) + len(columns[0]) * len(columns)
    pieces: list[Any] = []
    for column in columns:
        pieces += [*_bulk(column), _END]
    return b'*%d\r\n' % count + _arguments(head) + column_bytes(joined(*pieces))


def row_commands(
    name: str,
    keys: Column,
    before: Sequence[Literal],
    fields: Sequence[tuple[bytes, Column]],
    after: Sequence[Literal] = (),
) -> Column:
    """One command a row: name, key, fixed arguments, a field and a value for each column that is not null there.

    `fields` are names and columns of bytes; a column without a name is its values alone and must not have nulls.
    """
    count = 2 + len(before) + len(after) + sum(2 if field else 1 for field, _ in fields)
    nulls = [column.is_null().to_numpy(zero_copy_only=False) for _, column in fields if column.null_count]
    start: list[Any] = [b'*%d\r\n' % count]
    if nulls:
        counts: Any = count - 2 * np.sum(nulls, axis=0)
        start = [b'*', _SIZES.take(pa.array(counts)), _END]
    pieces = [*start, _arguments([name]), *_bulk(keys), _END + _arguments(before)]
    for field, column in fields:
        pieces += _field(_arguments([field]) if field else b'', column)
    return joined(*pieces, _arguments(after))


def joined(*pieces: Any) -> Column:
    """Columns and literal bytes, joined row by row; literals that are neighbours become one."""
    merged: list[Any] = []
    for piece in pieces:
        if isinstance(piece, bytes) and merged and isinstance(merged[-1], bytes):
            merged[-1] += piece
        else:
            merged.append(piece)
    arguments = [pa.scalar(piece, pa.binary()) if isinstance(piece, bytes) else piece for piece in merged]
    return pc.binary_join_element_wise(*arguments, _NOTHING)


def column_bytes(column: Column) -> bytes:
    """The bytes of all values, one after the other."""
    if not len(column):
        return b''
    offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4)
    first, last = int(offsets[0]), int(offsets[-1])
    data: bytes = column.buffers()[2].slice(first, last - first).to_pybytes() if last > first else b''
    return data


def packed(column: Column) -> bytes:
    """Some bytes in one piece: how many, where each ends, and the bytes; numbers of 4 bytes, little-endian."""
    ends = np.cumsum(pc.binary_length(column).to_numpy(zero_copy_only=False), dtype='<u4')
    return len(column).to_bytes(4, 'little') + ends.tobytes() + column_bytes(column)


def unpacked(stored: bytes) -> Column:
    """What `packed` has packed."""
    count = int.from_bytes(stored[:4], 'little')
    ends: Any = np.frombuffer(stored, '<u4', count, 4)
    offsets: Any = np.concatenate([np.zeros(1, np.int32), ends.astype(np.int32)])
    data = pa.py_buffer(stored[4 + 4 * count :])
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), data])


def _arguments(arguments: Sequence[Literal]) -> bytes:
    parts = []
    for argument in arguments:
        value = argument if isinstance(argument, bytes) else str(argument).encode(errors='surrogatepass')
        parts.append(b'$%d\r\n%b\r\n' % (len(value), value))
    return b''.join(parts)


def _field(name: bytes, column: Column) -> list[Any]:
    if not column.null_count:
        return [name, *_bulk(column), _END]
    filled = pc.fill_null(column.cast(pa.binary()), b'')
    return [pc.if_else(column.is_valid(), joined(name, *_bulk(filled), _END), _NOTHING)]


def _bulk(column: Column) -> list[Any]:
    """`$`, the size, the line's end and the value: pieces to be joined, without the last end."""
    if pt.is_fixed_size_binary(column.type):
        return [b'$%d\r\n' % column.type.byte_width, column.cast(pa.binary())]
    lengths = pc.binary_length(column)
    known = pc.min_max(lengths)
    low, high = known['min'].as_py() or 0, known['max'].as_py() or 0
    if low == high:
        return [b'$%d\r\n' % low, column]
    sizes = _SIZES.take(lengths) if high < len(_SIZES) else lengths.cast(pa.string()).cast(pa.binary())
    return [b'$', sizes, _END, column]
