"""Hex text and bytes, a whole column at a time."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

__all__ = ['Column', 'as_digits', 'byte_rows', 'decode_hex', 'encode_hex', 'fixed_width']

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Column: TypeAlias = Any  # a pyarrow.Array, whose stubs know one kind of value at a time
pc: Any = pyarrow.compute

_NOT_HEX = 255
_DIGITS = np.frombuffer(b'0123456789abcdef', np.uint8)
_VALUES = np.full(256, _NOT_HEX, np.uint8)
_VALUES[_DIGITS] = np.arange(16, dtype=np.uint8)
_VALUES[np.frombuffer(b'ABCDEF', np.uint8)] = np.arange(10, 16, dtype=np.uint8)


def fixed_width(values: Column, width: int) -> Column:
    """Text or bytes as fixed-size binary; null where a value has another length than `width` bytes."""
    if pa.types.is_fixed_size_binary(values.type):
        return values if values.type.byte_width == width else pa.nulls(len(values), pa.binary(width))
    fits = _mask(pc.equal(pc.binary_length(values), width))
    return _from_rows(_rows(values, fits, width), fits)


def as_digits(texts: Column, digits: int) -> Column:
    """Hex text as its lower-case digits, with or without `0x` before them; null where there are not as many.

    Whether they are hex digits is not looked at: what they are compared with is.
    """
    lowered = pc.ascii_lower(texts)
    lengths = pc.binary_length(lowered)
    with_prefix = _mask(pc.and_(pc.equal(lengths, digits + 2), pc.starts_with(lowered, '0x')))
    if with_prefix.all():
        return _from_rows(_rows(lowered, with_prefix, digits + 2)[:, 2:], with_prefix)
    bare = _mask(pc.equal(lengths, digits))
    rows = np.zeros((len(texts), digits), np.uint8)
    rows[with_prefix] = _rows(lowered, with_prefix, digits + 2)[:, 2:]
    rows[bare] = _rows(lowered, bare, digits)
    return _scattered(rows, with_prefix | bare)


def decode_hex(texts: Column, width: int) -> Column:
    """Hex text of `width` bytes, any case, with or without `0x`, as fixed-size binary; null where it is not that."""
    digits = as_digits(texts, 2 * width)
    nibbles = _VALUES[byte_rows(digits)]
    good = (nibbles != _NOT_HEX).all(axis=1) & _mask(pc.is_valid(digits))
    pairs: Any = nibbles[:, ::2] << 4 | nibbles[:, 1::2] & 15
    return _scattered(pairs, good)


def encode_hex(values: Column) -> Column:
    """Fixed-size binary as fixed-size lower-case hex digits without `0x`: what `as_digits` compares with."""
    rows = byte_rows(values)
    digits = np.empty((len(values), 2 * values.type.byte_width), np.uint8)
    digits[:, ::2] = _DIGITS[rows >> 4]
    digits[:, 1::2] = _DIGITS[rows & 15]
    return _scattered(digits, _mask(pc.is_valid(values)))


def byte_rows(values: Column) -> Bytes:
    """The bytes of fixed-size binary, a row each; those of nulls are anything."""
    width = values.type.byte_width
    data = values.buffers()[1]
    if data is None or not len(values):
        return np.zeros((len(values), width), np.uint8)
    start = values.offset * width
    return np.frombuffer(data, np.uint8)[start : start + len(values) * width].reshape(len(values), width)


def _rows(values: Column, chosen: Mask, length: int) -> Bytes:
    """The bytes of the chosen values, all of which have `length` bytes, a row each."""
    if not chosen.all():
        values = values.filter(pa.array(chosen))
    _, offsets, data = values.buffers()
    if not len(values) or data is None:
        return np.zeros((len(values), length), np.uint8)
    start = int(np.frombuffer(offsets, np.int32)[values.offset])
    return np.frombuffer(data, np.uint8)[start : start + len(values) * length].reshape(len(values), length)


def _from_rows(rows: Bytes, present: Mask) -> Column:
    if present.all():
        return _scattered(rows, present)
    spread = np.zeros((len(present), rows.shape[1]), np.uint8)
    spread[present] = rows
    return _scattered(spread, present)


def _scattered(rows: Bytes, present: Mask) -> Column:
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder='little').data)
    data = pa.py_buffer(np.ascontiguousarray(rows).data)
    kind = pa.binary(rows.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(present), [validity, data])


def _mask(values: Any) -> Mask:
    """A boolean column as a numpy mask; null is False."""
    mask: Mask = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask
