"""A hash table over fixed-size binary that is built once and looked up a whole column at a time.

`pyarrow.compute.index_in` builds its table anew with every call: for 100,000 addresses that costs more than a batch
may take. Here hashes say where a value may be, and comparing the bytes says whether it is.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import numpy.typing as npt

from amp.config.hex_text import Column, byte_rows

__all__ = ['BytesTable', 'Places']

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int32]


class BytesTable:
    """The places of `values`: fixed-size binary without nulls, each value once."""

    def __init__(self, values: Column) -> None:
        width, size = values.type.byte_width, len(values)
        for seed in count():
            self._factors = _factors(width, seed)
            hashes = _hashed(_words(values), self._factors)
            if len(np.unique(hashes)) == size:
                break
        bits = max(4, (2 * size).bit_length())
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
        # The place after the last stands for `not there`.
        self._hashes = np.append(hashes, np.uint64(0))
        self._words = np.vstack([_words(values), np.zeros((1, len(self._factors)), np.uint32)])
        self._slots = self._filled(hashes)

    def find(self, values: Column) -> Places:
        """For each value its place; -1 where it has none."""
        words = _words(values)
        places = self._likely(_hashed(words, self._factors))
        likely = self._words.take(places, axis=0)
        same = places != len(self._hashes) - 1
        for column in range(words.shape[1]):
            same &= likely[:, column] == words[:, column]
        if values.null_count:
            same &= values.is_valid().to_numpy(zero_copy_only=False)
        return np.where(same, places, np.int32(-1))

    def _filled(self, hashes: Hashes) -> Places:
        nowhere = len(hashes)
        slots = np.full(self._mask + 1, nowhere, np.int32)
        waiting = np.arange(nowhere, dtype=np.int32)
        slot = (hashes >> self._shift).astype(np.int64)
        while len(waiting):
            free = slots[slot] == nowhere
            slots[slot[free]] = waiting[free]
            # Of several that want one slot the last has it; the others move on.
            without = slots[slot] != waiting
            waiting, slot = waiting[without], (slot[without] + 1) & self._mask
        return slots

    def _likely(self, hashes: Hashes) -> Places:
        """Where the hash is; that of another value may be the same, so this is a guess."""
        slot = (hashes >> self._shift).astype(np.int64)
        places = self._slots.take(slot)
        nowhere = len(self._hashes) - 1
        left = np.flatnonzero((self._hashes.take(places) != hashes) & (places != nowhere))
        while len(left):
            slot[left] = (slot.take(left) + 1) & self._mask
            found = self._slots.take(slot.take(left))
            places[left] = found
            left = left[(self._hashes.take(found) != hashes.take(left)) & (found != nowhere)]
        return places


def _factors(width: int, seed: int) -> Hashes:
    return np.random.default_rng(seed).integers(0, 2**63, -(-width // 4), np.uint64) * np.uint64(2) + np.uint64(1)


def _words(values: Column) -> npt.NDArray[np.uint32]:
    """The bytes of each value as whole numbers, a row each; those of nulls are anything."""
    rows = byte_rows(values)
    if rows.shape[1] % 4:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    return rows.view(np.uint32)


def _hashed(words: npt.NDArray[np.uint32], factors: Hashes) -> Hashes:
    """A 64-bit number for each value, its upper bits the best mixed."""
    hashes: Hashes = words[:, 0] * factors[0]
    for column in range(1, len(factors)):
        hashes += words[:, column] * factors[column]
    return hashes
