"""Whole numbers of up to 256 bits, from decimal text to bytes, a column at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from amp.errors import SchemaError

__all__ = ['uint256_bytes']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

_DIGITS = 81
_CHUNK = 9
_LIMBS = 8


def uint256_bytes(column: Any) -> pa.Array[Any]:
    """Decimal text as 32 bytes each, little-endian. Raises SchemaError for what is no whole number below 2^256."""
    texts = column.cast(pa.string())
    if pc.all(pc.match_substring_regex(texts, r'^[0-9]{1,78}\z')) == pa.scalar(False):
        raise SchemaError('a text is no whole number of at most 78 digits', hint='leave it as text')
    limbs = pa.py_buffer(_limbs(_digits(pc.fill_null(texts, '0'))).tobytes())
    # Made anew, because the validity of a slice begins somewhere in its buffer.
    validity = np.packbits(texts.is_valid().to_numpy(zero_copy_only=False), bitorder='little')
    return pa.Array.from_buffers(pa.binary(32), len(texts), [pa.py_buffer(validity.tobytes()), limbs])


def _digits(texts: Any) -> npt.NDArray[np.uint64]:
    """One row of digits a text, zeros in front."""
    padded = pc.utf8_lpad(texts, _DIGITS, '0').cast(pa.binary()).cast(pa.binary(_DIGITS))
    data = np.frombuffer(padded.buffers()[1], np.uint8, len(padded) * _DIGITS, padded.offset * _DIGITS)
    return (data.reshape(-1, _DIGITS) - ord('0')).astype(np.uint64)


def _limbs(digits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """The same numbers in limbs of 32 bits, the lowest first: schoolbook, nine digits at a time."""
    powers = 10 ** np.arange(_CHUNK - 1, -1, -1, dtype=np.uint64)
    limbs = np.zeros((len(digits), _LIMBS), np.uint64)
    for first in range(0, _DIGITS, _CHUNK):
        carry = digits[:, first : first + _CHUNK] @ powers
        for i in range(_LIMBS):
            total = limbs[:, i] * np.uint64(10**_CHUNK) + carry
            limbs[:, i] = total & np.uint64(0xFFFFFFFF)
            carry = total >> np.uint64(32)
        if carry.any():
            raise SchemaError('a number is 2^256 or larger', hint='leave it as text')
    return limbs.astype('<u4')
