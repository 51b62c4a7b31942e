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
import pyarrow.compute

from amp.config.hex_text import Column, byte_rows

__all__ = ['BytesTable']

Hashes = npt.NDArray[np.uint64]

pc: Any = pyarrow.compute


class BytesTable:
    """The places of `values`: fixed-size binary without nulls, each value once."""

    def __init__(self, values: Column) -> None:
        width, size = values.type.byte_width, len(values)
        for seed in count():
            self._factors = _factors(width, seed)
            hashes = _hashed(values, self._factors)
            if len(np.unique(hashes)) == size:
                break
        bits = max(4, (2 * size).bit_length())
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
        self._hashes = np.append(hashes, np.uint64(0))
        self._slots = self._filled(hashes)
        # The place after the last stands for `not there`: null, which equals nothing.
        self._values: Column = pa.concat_arrays([values, pa.nulls(1, values.type)])

    def find(self, values: Column) -> Column:
        """For each value its place, as int32; null where it has none."""
        places = pa.array(self._likely(_hashed(values, self._factors)))
        same = pc.equal(self._values.take(places), values)
        return pc.if_else(same, places, pa.scalar(None, pa.int32()))

    def _filled(self, hashes: Hashes) -> npt.NDArray[np.int32]:
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

    def _likely(self, hashes: Hashes) -> npt.NDArray[np.int32]:
        """Where the hash is; that of another value may be the same, so this is a guess."""
        slot = (hashes >> self._shift).astype(np.int64)
        places = self._slots[slot]
        nowhere = len(self._hashes) - 1
        left = np.flatnonzero((self._hashes[places] != hashes) & (places != nowhere))
        while len(left):
            slot[left] = (slot[left] + 1) & self._mask
            found = self._slots[slot[left]]
            places[left] = found
            left = left[(self._hashes[found] != hashes[left]) & (found != nowhere)]
        return places


def _factors(width: int, seed: int) -> Hashes:
    return np.random.default_rng(seed).integers(0, 2**63, -(-width // 4), np.uint64) * np.uint64(2) + np.uint64(1)


def _hashed(values: Column, factors: Hashes) -> Hashes:
    """A 64-bit number for each value, its upper bits the best mixed; those of nulls are anything."""
    rows = byte_rows(values)
    if rows.shape[1] % 4:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    words = rows.view(np.uint32)
    hashes: Hashes = words[:, 0] * factors[0]
    for column in range(1, len(factors)):
        hashes += words[:, column] * factors[column]
    return hashes
