"""ABI data to Arrow, a column at a time: static and dynamic types alike are gathered for all rows at once.

A row that cannot be decoded (truncated, an offset or length that leads outside, a number that its type cannot hold) is
null as a whole, and never disturbs another. What is after the last value is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from amp.devserver.evm.solidity import WORD, Array, Bytes, Scalar, SolType, Tuple
from amp.devserver.evm.words import (
    Column,
    Mask,
    Places,
    buffer_of,
    edges_of,
    fits,
    fixed_of,
    gather,
    to_arrow,
    unsigned,
    valid_rows,
)

__all__ = ['Calldata', 'decode_sequence', 'decode_topic']


class Calldata:
    """The bytes of a binary column: one buffer, and where each row's value starts and ends in it."""

    def __init__(self, column: Column) -> None:
        edges, data = edges_of(column)
        self.starts, self.ends = edges[:-1], edges[1:]
        self.valid = valid_rows(column)
        self.data = data if len(data) >= WORD else np.concatenate([data, np.zeros(WORD, dtype=np.uint8)])

    def begins_with(self, prefix: bytes) -> Mask:
        """True for the rows that begin with these (at most 32) bytes."""
        size = len(prefix)
        found = self.valid & (self.ends - self.starts >= size)
        places = np.minimum(self.starts, len(self.data) - WORD)
        # A value near the end of the buffer has no whole word after its start.
        shift = np.where(found, self.starts - places, 0)
        columns = shift[:, None] + np.arange(size)
        heads = np.take_along_axis(gather(self.data, places), np.minimum(columns, WORD - 1), axis=1)
        return np.asarray(found & (heads == np.frombuffer(prefix, dtype=np.uint8)).all(axis=1))


def decode_sequence(types: Sequence[SolType], calldata: Calldata, skip: int = 0) -> tuple[list[Column], Mask]:
    """The values that follow the first `skip` bytes, an array a type, and the rows that could be decoded.

    The other rows of the arrays hold anything: put nulls there.
    """
    decoder = _Decoder(calldata)
    rows = np.arange(len(calldata.starts), dtype=np.int64)
    arrays = decoder.sequence(types, calldata.starts + skip, rows)
    return arrays, decoder.ok


def decode_topic(type_: Scalar, topic: Column) -> Column:
    """A column of topics as values of the type; null where the topic is null or holds no such value."""
    valid = valid_rows(topic)
    words = fixed_of(topic, WORD)
    return to_arrow(type_, words, valid & fits(type_, words))


class _Decoder:
    """`ok` are the rows without a fault so far. A value of a nested list knows by `owner` to which row it belongs."""

    def __init__(self, calldata: Calldata) -> None:
        self._data = calldata.data
        self._ends = calldata.ends
        self._sizes = calldata.ends - calldata.starts
        self.ok = calldata.valid.copy()

    def _require(self, good: Mask, owner: Places) -> None:
        self.ok[owner[~good]] = False

    def _words(self, at: Places, owner: Places) -> npt.NDArray[np.uint8]:
        good = (at + WORD <= self._ends[owner]) & self.ok[owner]
        self._require(good, owner)
        return gather(self._data, np.where(good, at, 0))

    def _number(self, at: Places, owner: Places) -> Places:
        """The offset or length that is there; 0 when it is none."""
        numbers, good = unsigned(self._words(at, owner))
        self._require(good, owner)
        return numbers * self.ok[owner]

    def sequence(self, types: Sequence[SolType], base: Places, owner: Places) -> list[Column]:
        """Values that stand one after another from `base` on, which is also what their offsets count from."""
        arrays, at = [], base
        for type_ in types:
            arrays.append(self._value(type_, at, base, owner))
            at = at + type_.head_size
        return arrays

    def _value(self, type_: SolType, at: Places, base: Places, owner: Places) -> Column:
        if isinstance(type_, Scalar):
            words = self._words(at, owner)
            good = fits(type_, words)
            if not good.all():
                self._require(good, owner)
                words = np.where(good[:, None], words, 0).astype(np.uint8)
            return to_arrow(type_, words)
        start = base + self._number(at, owner) if type_.dynamic else at
        if isinstance(type_, Bytes):
            return self._bytes(type_, start, owner)
        if isinstance(type_, Tuple):
            arrays = self.sequence(type_.items, start, owner)
            return pa.StructArray.from_arrays(arrays, fields=type_.fields)
        return self._array(type_, start, owner)

    def _bytes(self, type_: Bytes, start: Places, owner: Places) -> Column:
        lengths = self._number(start, owner)
        good = start + WORD + lengths <= self._ends[owner]
        self._require(good, owner)
        lengths = np.where(good, lengths, 0)
        offsets = np.zeros(len(start) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        places = np.repeat(start + WORD - offsets[:-1], lengths) + np.arange(offsets[-1])
        buffers = [None, buffer_of(offsets), buffer_of(self._data[places])]
        found = pa.Array.from_buffers(pa.binary(), len(start), buffers)
        return _text(found) if type_.text else found

    def _array(self, type_: Array, start: Places, owner: Places) -> Column:
        """The items of all rows as one array, cut into lists."""
        item = type_.item
        if type_.length is None:
            counts, start = self._number(start, owner), start + WORD
            counts = self._affordable(counts, start, item, owner)
        else:
            counts = np.full(len(start), type_.length, dtype=np.int64)
        offsets = np.zeros(len(start) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        order = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        base = np.repeat(start, counts)
        items = self._value(item, base + order * item.head_size, base, np.repeat(owner, counts))
        arrow: Any = type_.arrow
        if type_.length is not None:
            return pa.FixedSizeListArray.from_arrays(items, type=arrow)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, type=arrow)

    def _affordable(self, counts: Places, start: Places, item: SolType, owner: Places) -> Places:
        """The counts, or 0 where the row is too short for them.

        No encoder lets lists share their items, so one row's may not take more than the row: lists of lists that all
        point at the same bytes would otherwise multiply.
        """
        good = start + counts * item.head_size <= self._ends[owner]
        self._require(good, owner)
        counts = np.where(good, counts, 0)
        taken = np.bincount(owner, weights=counts * item.slots * WORD, minlength=len(self.ok))
        self.ok &= taken <= self._sizes
        return counts * self.ok[owner]


def _text(found: Column) -> Column:
    """Bytes as text; what is not UTF-8 becomes replacement characters."""
    text = pa.Array.from_buffers(pa.string(), len(found), found.buffers())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        # No kernel replaces a part of a value. Contracts that log such text are few.
        return pa.array([bytes(value.as_buffer()).decode('utf-8', 'replace') for value in found], pa.string())
    return text
