"""Columns of 32-byte words and the Arrow arrays that hold the same values; numpy on whole columns, no row by itself."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from amp.devserver.evm.solidity import WORD, Scalar

__all__ = [
    'Column',
    'Mask',
    'Places',
    'Words',
    'bitmap',
    'buffer_of',
    'decimal_text',
    'edges_of',
    'fits',
    'fixed_of',
    'gather',
    'scatter',
    'to_arrow',
    'unsigned',
    'valid_rows',
    'with_nulls',
]

Column: TypeAlias = Any
"""An Arrow array: its stubs know too little of buffers and children to be of help here."""

Words = npt.NDArray[np.uint8]
"""One word a row: shape (rows, 32), big-endian as the EVM has them."""

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
"""Bytes of a buffer, or numbers of rows."""

_BILLION = np.uint64(10**9)
_WORD_TYPE = np.dtype((np.void, WORD))


def _window(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """Every 32 bytes of `data` that begin somewhere, as items that numpy moves whole."""
    return np.ndarray((len(data) - WORD + 1,), _WORD_TYPE, data, strides=(1,))


def gather(data: npt.NDArray[np.uint8], at: Places) -> Words:
    """The words of `data` that begin at these bytes; `data` has 32 bytes at least."""
    return _window(data)[at].view(np.uint8).reshape(len(at), WORD)


def scatter(data: npt.NDArray[np.uint8], at: Places, words: Words) -> None:
    """Put words at these bytes of `data`."""
    _window(data)[at] = np.ascontiguousarray(words).view(_WORD_TYPE).ravel()


def buffer_of(values: npt.NDArray[Any]) -> pa.Buffer:
    """The array's memory as Arrow's; copied only if it has gaps."""
    return pa.py_buffer(np.ascontiguousarray(values).data)


def valid_rows(array: Column) -> Mask:
    """True where the array has a value."""
    if array.null_count == 0:
        return np.ones(len(array), dtype=np.bool_)
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)


def fixed_of(array: Column, width: int) -> Words:
    """The values of a column of fixed width, a row each: shape (rows, width)."""
    data = array.buffers()[1]
    if not len(array) or data is None:
        return np.zeros((len(array), width), dtype=np.uint8)
    return np.frombuffer(data, dtype=np.uint8)[array.offset * width :][: len(array) * width].reshape(-1, width)


def edges_of(array: Column) -> tuple[Places, npt.NDArray[np.uint8]]:
    """Where the values of a binary or text column start (one entry more than rows), and the bytes of all values."""
    _, offsets, data = array.buffers()
    values = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    if not len(array):
        return np.zeros(1, dtype=np.int64), values
    return np.frombuffer(offsets, dtype=np.int32)[array.offset :][: len(array) + 1].astype(np.int64), values


def with_nulls(array: Column, ok: Mask) -> Column:
    """The array with null in the rows that are not `ok`."""
    if ok.all():
        return array
    rows: Column = pa.array(np.arange(len(array)), mask=~ok)
    return array.take(rows)


def bitmap(valid: Mask | None) -> pa.Buffer | None:
    """The validity buffer of a mask; None when all rows are valid."""
    if valid is None or valid.all():
        return None
    return buffer_of(np.packbits(valid, bitorder='little'))


def unsigned(words: Words) -> tuple[Places, Mask]:
    """The words as numbers below 2**31, and where they are such."""
    small = ~words[:, : WORD - 4].any(axis=1) & (words[:, WORD - 4] < 0x80)
    numbers = np.ascontiguousarray(words[:, WORD - 4 :]).view('>u4').ravel().astype(np.int64)
    return np.where(small, numbers, 0), small


def fits(type_: Scalar, words: Words) -> Mask:
    """True where a word is a number of the type; addresses, booleans and bytes are read as the server reads them."""
    if type_.kind not in {'int', 'uint'} or type_.size == 256:
        return np.ones(len(words), dtype=np.bool_)
    above = words[:, : WORD - type_.size // 8]
    if type_.kind == 'uint':
        return np.asarray(~above.any(axis=1))
    sign = np.where(words[:, WORD - type_.size // 8] & 0x80, 0xFF, 0).astype(np.uint8)
    return np.asarray((above == sign[:, None]).all(axis=1))


def to_arrow(type_: Scalar, words: Words, valid: Mask | None = None) -> Column:
    """The array of the type's values; only words that `fits` finds right, or that are not valid."""
    rows, arrow, nulls = len(words), type_.arrow, bitmap(valid)
    if type_.kind == 'bool':
        values = words.any(axis=1)
        return pa.Array.from_buffers(arrow, rows, [nulls, buffer_of(np.packbits(values, bitorder='little'))])
    if type_.kind == 'address':
        return _fixed(arrow, nulls, words[:, WORD - type_.size :])
    if type_.kind == 'bytes':
        return _fixed(arrow, nulls, words[:, : type_.size])
    if pa.types.is_string(arrow):
        offsets, text = decimal_text(words, signed=type_.kind == 'int')
        return pa.Array.from_buffers(arrow, rows, [nulls, buffer_of(offsets), buffer_of(text)])
    # Arrow's numbers are little-endian, and the words of those that fit extend their sign.
    return _fixed(arrow, nulls, words[:, ::-1][:, : arrow.bit_width // 8])


def _fixed(arrow: pa.DataType, nulls: pa.Buffer | None, values: Words) -> Column:
    return pa.Array.from_buffers(arrow, len(values), [nulls, buffer_of(np.ascontiguousarray(values))])


def decimal_text(words: Words, *, signed: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The numbers in decimal digits: where each text starts (one entry more than rows), and all texts in a row."""
    negative = (words[:, 0] & 0x80).astype(np.bool_) if signed else np.zeros(len(words), dtype=np.bool_)
    limbs = [np.ascontiguousarray(limb) for limb in words.view('>u4').astype(np.uint64).T]
    if negative.any():
        _negate(limbs, negative)
    digits = _digits(limbs)
    columns = digits.shape[1]
    # The first column is the sign's; a zero keeps its last digit.
    first = np.where(digits.any(axis=1), (digits != 0).argmax(axis=1), columns - 1)
    digits += np.uint8(ord('0'))
    rows = np.flatnonzero(negative)
    first[rows] -= 1
    digits[rows, first[rows]] = ord('-')
    offsets = np.zeros(len(words) + 1, dtype=np.int32)
    np.cumsum(columns - first, out=offsets[1:])
    return offsets, digits[np.arange(columns) >= first[:, None]]


def _negate(limbs: list[npt.NDArray[np.uint64]], rows: Mask) -> None:
    """Two's complement of these rows, the most significant of the 32-bit limbs first."""
    carry = rows.astype(np.uint64)
    for at in range(len(limbs) - 1, -1, -1):
        changed = np.where(rows, limbs[at] ^ np.uint64(0xFFFFFFFF), limbs[at]) + carry
        limbs[at] = changed & np.uint64(0xFFFFFFFF)
        carry = changed >> np.uint64(32)


def _digits(limbs: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint8]:
    """Decimal digits, a column each with one of zeros before them; divides by 10**9 until nothing is left."""
    ninths: list[npt.NDArray[np.uint64]] = []
    first = 0
    while True:
        while first < len(limbs) and not limbs[first].any():
            first += 1
        if first == len(limbs) and ninths:
            break
        left = np.zeros(len(limbs[0]), dtype=np.uint64)
        for at in range(first, len(limbs)):
            value = (left << np.uint64(32)) | limbs[at]
            limbs[at] = value // _BILLION
            left = value - limbs[at] * _BILLION
        ninths.append(left)
    digits = np.zeros((len(ninths) * 9 + 1, len(limbs[0])), dtype=np.uint8)
    column = len(digits) - 1
    for ninth in ninths:
        number = ninth.astype(np.uint32)
        for _ in range(9):
            tenth = number // np.uint32(10)
            digits[column] = number - tenth * np.uint32(10)
            number, column = tenth, column - 1
    return np.ascontiguousarray(digits.T)
