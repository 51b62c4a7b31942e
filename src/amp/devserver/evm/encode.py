"""Arrow to ABI data, a column at a time: sizes first, then every head and tail is put where it belongs for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from amp.devserver.evm.solidity import WORD, Array, Bytes, Scalar, SolType, Tuple
from amp.devserver.evm.words import (
    Column,
    Mask,
    Places,
    Words,
    buffer_of,
    decimal_text,
    edges_of,
    fits,
    fixed_of,
    scatter,
    valid_rows,
    with_nulls,
)

__all__ = ['EncodingError', 'encode_sequence']


class EncodingError(ValueError):
    """A value that its Solidity type cannot hold."""


@dataclass(frozen=True)
class _Words:
    words: Words

    head_size = WORD
    dynamic = False

    @property
    def sizes(self) -> Places:
        return np.zeros(len(self.words), dtype=np.int64)

    def write(self, out: npt.NDArray[np.uint8], at: Places) -> None:
        scatter(out, at, self.words)


@dataclass(frozen=True)
class _Bytes:
    """Values of any length, one after another in `data`."""

    data: npt.NDArray[np.uint8]
    starts: Places
    lengths: Places

    head_size = WORD
    dynamic = True

    @property
    def sizes(self) -> Places:
        return WORD + -(-self.lengths // WORD) * WORD

    def write(self, out: npt.NDArray[np.uint8], at: Places) -> None:
        _write_numbers(out, at, self.lengths)
        before = np.cumsum(self.lengths) - self.lengths
        order = np.arange(int(self.lengths.sum()))
        source = np.repeat(self.starts - before, self.lengths) + order
        out[np.repeat(at + WORD - before, self.lengths) + order] = self.data[source]


@dataclass(frozen=True)
class _Sequence:
    """Values side by side: a tuple, or the parameters of a function."""

    parts: tuple[_Column, ...]
    rows: int

    @property
    def dynamic(self) -> bool:
        return any(part.dynamic for part in self.parts)

    @property
    def heads(self) -> int:
        return sum(part.head_size for part in self.parts)

    @property
    def head_size(self) -> int:
        return WORD if self.dynamic else self.heads

    @property
    def sizes(self) -> Places:
        sizes = np.full(self.rows, self.heads, dtype=np.int64)
        for part in self.parts:
            if part.dynamic:
                sizes += part.sizes
        return sizes

    def write(self, out: npt.NDArray[np.uint8], at: Places) -> None:
        head, tail = at, at + self.heads
        for part in self.parts:
            if part.dynamic:
                _write_numbers(out, head, tail - at)
                part.write(out, tail)
                tail = tail + part.sizes
            else:
                part.write(out, head)
            head = head + part.head_size


@dataclass(frozen=True)
class _Items:
    """Arrays: the items of all rows as one column, `counts` of them a row. `counted` ones tell their length."""

    items: _Column
    counts: Places
    counted: bool

    @property
    def dynamic(self) -> bool:
        return self.counted or self.items.dynamic

    @property
    def head_size(self) -> int:
        # Fixed arrays of static items have the same count in every row; without rows nothing is written.
        return WORD if self.dynamic or not len(self.counts) else int(self.counts[0]) * self.items.head_size

    @property
    def sizes(self) -> Places:
        sizes = self.counts * self.items.head_size + (WORD if self.counted else 0)
        if self.items.dynamic:
            before = np.concatenate([[0], np.cumsum(self.items.sizes)])
            ends = np.cumsum(self.counts)
            sizes = sizes + before[ends] - before[ends - self.counts]
        return sizes

    def write(self, out: npt.NDArray[np.uint8], at: Places) -> None:
        if self.counted:
            _write_numbers(out, at, self.counts)
            at = at + WORD
        first = np.cumsum(self.counts) - self.counts
        base = np.repeat(at, self.counts)
        order = np.arange(int(self.counts.sum())) - np.repeat(first, self.counts)
        head = base + order * self.items.head_size
        if not self.items.dynamic:
            self.items.write(out, head)
            return
        before = np.concatenate([[0], np.cumsum(self.items.sizes)])
        tails = np.repeat(self.counts * self.items.head_size, self.counts)
        # Within each array the tails follow one another; `before` counts over all of them.
        tail = base + tails + before[:-1] - np.repeat(before[first], self.counts)
        _write_numbers(out, head, tail - base)
        self.items.write(out, tail)


_Column = _Words | _Bytes | _Sequence | _Items


def _write_numbers(out: npt.NDArray[np.uint8], at: Places, numbers: Places) -> None:
    words = np.zeros((len(numbers), WORD), dtype=np.uint8)
    words[:, WORD - 8 :] = numbers.astype('>u8').view(np.uint8).reshape(-1, 8)
    scatter(out, at, words)


def encode_sequence(types: Sequence[SolType], columns: Sequence[Column], rows: int, prefix: bytes = b'') -> Column:
    """The ABI encoding of a tuple of values a row, after a prefix. Null for rows with a null in a value, at any depth.

    Raises EncodingError for a type that the column's does not go with, and for a value that is too large.
    """
    reader = _Reader(rows)
    owner = np.arange(rows, dtype=np.int64)
    parts = tuple(reader.column(type_, column, owner) for type_, column in zip(types, columns, strict=True))
    whole = _Sequence(parts, rows)
    sizes = whole.sizes + len(prefix)
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if offsets[-1] >= 2**31:
        raise EncodingError(f'the encoding of {rows} rows takes {offsets[-1]} bytes, more than one column can hold')
    out = np.zeros(max(int(offsets[-1]), WORD), dtype=np.uint8)
    for at, byte in enumerate(prefix):
        out[offsets[:-1] + at] = byte
    whole.write(out, offsets[:-1] + len(prefix))
    buffers = [None, buffer_of(offsets.astype(np.int32)), buffer_of(out)]
    return with_nulls(pa.Array.from_buffers(pa.binary(), rows, buffers), reader.ok)


class _Reader:
    """Makes columns of Arrow arrays; `ok` are the rows without a null."""

    def __init__(self, rows: int) -> None:
        self.ok = np.ones(rows, dtype=np.bool_)

    def column(self, type_: SolType, array: Column, owner: Places) -> _Column:
        """The values of the type that the array holds for these rows."""
        valid = valid_rows(array)
        self.ok[owner[~valid]] = False
        if isinstance(type_, Scalar):
            return _Words(_scalar_words(type_, array, valid))
        if isinstance(type_, Bytes):
            return _bytes(type_, array, valid)
        if isinstance(type_, Tuple):
            return self._tuple(type_, array, owner)
        return self._items(type_, array, owner)

    def _tuple(self, type_: Tuple, array: Column, owner: Places) -> _Column:
        if not pa.types.is_struct(array.type):
            raise _mismatch(array.type, type_)
        if array.type.num_fields != len(type_.items):
            raise EncodingError(f'cannot convert struct of size {array.type.num_fields} to solidity type {type_}')
        parts = [self.column(item, array.field(at), owner) for at, item in enumerate(type_.items)]
        return _Sequence(tuple(parts), len(array))

    def _items(self, type_: Array, array: Column, owner: Places) -> _Column:
        if type_.length is None:
            if not pa.types.is_list(array.type):
                raise _mismatch(array.type, type_)
            offsets = array.offsets.to_numpy().astype(np.int64)
            counts = np.diff(offsets)
            values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        else:
            if not pa.types.is_fixed_size_list(array.type):
                raise _mismatch(array.type, type_)
            size = array.type.list_size
            if size != type_.length:
                raise EncodingError(f'cannot convert fixed size list of size {size} to solidity type {type_}')
            counts = np.full(len(array), size, dtype=np.int64)
            values = array.values.slice(array.offset * size, len(array) * size)
        items = self.column(type_.item, values, np.repeat(owner, counts))
        return _Items(items, counts, type_.length is None)


def _bytes(type_: Bytes, array: Column, valid: Mask) -> _Column:
    if not (pa.types.is_string(array.type) if type_.text else pa.types.is_binary(array.type)):
        raise _mismatch(array.type, type_)
    edges, values = edges_of(array)
    return _Bytes(values, edges[:-1], np.where(valid, np.diff(edges), 0))


def _scalar_words(type_: Scalar, array: Column, valid: Mask) -> Words:
    arrow = array.type
    words = np.zeros((len(array), WORD), dtype=np.uint8)
    if pa.types.is_boolean(arrow) and type_.kind == 'bool':
        words[:, WORD - 1] = array.fill_null(False).to_numpy(zero_copy_only=False)
    elif pa.types.is_fixed_size_binary(arrow) and type_.kind in {'address', 'bytes'}:
        if arrow.byte_width != type_.size:
            raise EncodingError(f'cannot convert fixed size binary of size {arrow.byte_width} to solidity type {type_}')
        first = WORD - type_.size if type_.kind == 'address' else 0
        words[:, first : first + type_.size] = fixed_of(array, type_.size)
        words[~valid] = 0
    elif pa.types.is_integer(arrow) or (pa.types.is_decimal(arrow) and arrow.scale == 0):
        words = _number_words(type_, array)
        words[~valid] = 0
        _check_range(type_, words, signed=_is_signed(type_, arrow))
    else:
        raise _mismatch(arrow, type_)
    return words


def _number_words(type_: Scalar, array: Column) -> Words:
    arrow = array.type
    wanted = 'int' if _is_signed(type_, arrow) else 'uint'
    if type_.kind != wanted:
        raise EncodingError(f'expected {wanted} type, got {type_}')
    width = arrow.bit_width // 8
    low = fixed_of(array, width)[:, ::-1]
    words = np.zeros((len(array), WORD), dtype=np.uint8)
    words[:, WORD - width :] = low
    if not pa.types.is_unsigned_integer(arrow):
        words[:, : WORD - width] = np.where(low[:, :1] & 0x80, 0xFF, 0)
    return words


def _is_signed(type_: Scalar, arrow: pa.DataType) -> bool:
    """Decimals are signed or not as the Solidity type is; integers are what they are."""
    return type_.kind == 'int' if pa.types.is_decimal(arrow) else bool(pa.types.is_signed_integer(arrow))


def _check_range(type_: Scalar, words: Words, *, signed: bool) -> None:
    good = fits(type_, words)
    if type_.kind == 'uint' and not signed:
        # A decimal below zero has all its high bits set.
        good &= (words[:, 0] & 0x80) == 0
    if good.all():
        return
    row = int(np.flatnonzero(~good)[0])
    below_zero = bool(words[row, 0] & 0x80)
    _, digits = decimal_text(words[row : row + 1], signed=below_zero)
    bounds = f'[-2**{type_.size - 1}, 2**{type_.size - 1})' if signed else f'[0, 2**{type_.size})'
    kind = 'int' if signed else 'uint'
    raise EncodingError(f'cannot convert {kind} to solidity {type_}: {digits.tobytes().decode()} not in {bounds}')


def _mismatch(arrow: pa.DataType, type_: SolType) -> EncodingError:
    kinds = (
        (pa.types.is_boolean, 'boolean'),
        (pa.types.is_string, 'string'),
        (pa.types.is_binary, 'bytes'),
        (pa.types.is_fixed_size_binary, 'fixed size binary'),
        (pa.types.is_fixed_size_list, 'fixed size list'),
        (pa.types.is_list, 'list'),
        (pa.types.is_struct, 'struct'),
    )
    for is_kind, name in kinds:
        if is_kind(arrow):
            return EncodingError(f'cannot convert {name} to solidity type {type_}')
    if pa.types.is_integer(arrow):
        return EncodingError(f'expected {"int" if pa.types.is_signed_integer(arrow) else "uint"} type, got {type_}')
    return EncodingError(f'Unsupported type {arrow} for Solidity type {type_}')
