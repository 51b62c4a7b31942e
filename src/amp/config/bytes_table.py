"""A hash table over fixed-size binary that is built once and looked up a whole column at a time.

`pyarrow.compute.index_in` builds its table anew with every call: for 100,000 addresses that costs more than a batch
may take. Here hashes say where a value may be, and comparing the bytes says whether it is.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from amp.config.hex_text import Column, byte_rows

__all__ = ['BytesTable', 'Places', 'read_ahead']

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int32]

_MOST_IN_BUCKET = 32
_MOST_SEEDS = 8
# numpy copies rows of this size in one step.
_ROW = 32
_CACHE_LINE = 64


class BytesTable:
    """The places of fixed-size binary values, of which none is null and each is there once, in `values`.

    The values are kept in the order of their buckets, which the upper bits of a hash number: `values[place]` is the
    one. So a look-up goes to two places in memory, the first value of a bucket and the value itself.
    """

    def __init__(self, values: Column) -> None:
        size = len(values)
        bits = max(4, (4 * size).bit_length())
        self._shift = np.uint64(64 - bits)
        for seed in count():
            self._factors = _factors(values.type.byte_width, seed)
            buckets = self._buckets(_words(values))
            if seed >= _MOST_SEEDS or not size or np.bincount(buckets).max() <= _MOST_IN_BUCKET:
                break
        order = np.argsort(buckets, kind='stable')
        buckets = buckets.take(order)
        self.values = values.take(pa.array(order))
        # The place after the last stands for `not there`.
        words = _words(self.values)
        self._words = np.zeros((size + 1, max(words.shape[1], _ROW // 4)), np.uint32)
        self._words[:size, : words.shape[1]] = words
        self._firsts = np.full(1 << bits, size, np.int32)
        self._firsts[buckets[::-1]] = np.arange(size - 1, -1, -1, dtype=np.int32)
        self._has_next = np.zeros(size + 1, np.bool_)
        self._has_next[: max(size - 1, 0)] = buckets[1:] == buckets[:-1]

    def find(self, values: Column) -> Places:
        """For each value its place; -1 where it has none."""
        words = _words(values)
        buckets = self._buckets(words)
        read_ahead(self._firsts, len(values))
        # In numpy's own width, which it would otherwise make of them for every look.
        places = self._firsts.take(buckets).astype(np.intp)
        read_ahead(self._words, len(values))
        same = self._are(words, places)
        same &= places != len(self._words) - 1
        left = np.flatnonzero(self._has_next.take(places) & ~same)
        while len(left):
            nexts = places.take(left) + 1
            places[left] = nexts
            hit = self._are(words.take(left, axis=0), nexts)
            same[left[hit]] = True
            left = left[self._has_next.take(nexts) & ~hit]
        if values.null_count:
            same &= values.is_valid().to_numpy(zero_copy_only=False)
        found = places.astype(np.int32)
        np.copyto(found, np.int32(-1), where=~same)
        return found

    def _buckets(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        return (_hashed(words, self._factors) >> self._shift).view(np.int64)

    def _are(self, words: npt.NDArray[np.uint32], places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Whether the bytes are those of the places."""
        # Every place is one of the table: `clip` only says that there is nothing to look for beyond it.
        likely = self._words.take(places, axis=0, mode='clip')
        same: npt.NDArray[np.bool_] = likely[:, 0] == words[:, 0]
        for column in range(1, words.shape[1]):
            same &= likely[:, column] == words[:, column]
        return same


def read_ahead(memory: npt.NDArray[Any], looks: int) -> None:
    """Read the memory once, in order, when so many looks at places of it at random are to come that they need most.

    A processor fetches what it can foresee several times faster than what it cannot: before 65,536 looks into
    100,000 addresses this costs 0.03 ms and saves 0.5.
    """
    if looks * _CACHE_LINE >= memory.nbytes:
        np.add.reduce(np.frombuffer(memory, np.uint64, memory.nbytes // 8))


def _factors(width: int, seed: int) -> Hashes:
    factors = np.random.default_rng(seed).integers(0, 2**63, -(-width // 4), np.uint64) * np.uint64(2) + np.uint64(1)
    if not seed:
        # Two words tell most addresses and hashes apart; where they do not, the next seed takes all.
        factors[1:-1] = 0
    return factors


def _words(values: Column) -> npt.NDArray[np.uint32]:
    """The bytes of each value as whole numbers, a row each; those of nulls are anything."""
    rows = byte_rows(values)
    if rows.shape[1] % 4:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    return rows.view(np.uint32)


def _hashed(words: npt.NDArray[np.uint32], factors: Hashes) -> Hashes:
    """A 64-bit number for each value, its upper bits the best mixed."""
    hashes: Hashes = words[:, 0] * factors[0]
    for column in np.flatnonzero(factors[1:]) + 1:
        hashes += words[:, column] * factors[column]
    return hashes
