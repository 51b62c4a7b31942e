"""Solidity types: how wide they are in ABI data, and which Arrow type they become.

The Arrow types are the server's: integers of up to 64 bits are integers, up to 120 bits decimal128(38, 0), up to 248
bits decimal256(76, 0), and those of 256 bits decimal text. A tuple is a struct with the fields c0, c1, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

__all__ = ['HASH', 'WORD', 'Array', 'Bytes', 'Scalar', 'SolType', 'Tuple']

WORD = 32


@dataclass(frozen=True)
class Scalar:
    """A value of one word: `kind` is bool, address, int, uint or bytes; `size` is in bits for integers, else in bytes."""

    kind: str
    size: int

    dynamic = False
    head_size = WORD
    slots = 1

    def __str__(self) -> str:
        return self.kind if self.kind in {'bool', 'address'} else f'{self.kind}{self.size}'

    @cached_property
    def arrow(self) -> pa.DataType:
        """The type of its column."""
        if self.kind == 'bool':
            return pa.bool_()
        if self.kind in {'address', 'bytes'}:
            return pa.binary(self.size)
        signed = self.kind == 'int'
        for bits, type_ in (
            (8, pa.int8() if signed else pa.uint8()),
            (16, pa.int16() if signed else pa.uint16()),
            (32, pa.int32() if signed else pa.uint32()),
            (64, pa.int64() if signed else pa.uint64()),
            (125, pa.decimal128(38, 0)),
            (251, pa.decimal256(76, 0)),
        ):
            if self.size <= bits:
                return type_
        return pa.string()


@dataclass(frozen=True)
class Bytes:
    """`bytes` or, when `text`, `string`."""

    text: bool

    dynamic = True
    head_size = WORD
    slots = 1

    def __str__(self) -> str:
        return 'string' if self.text else 'bytes'

    @property
    def arrow(self) -> pa.DataType:
        """The type of its column."""
        return pa.string() if self.text else pa.binary()


@dataclass(frozen=True)
class Array:
    """`item[length]`, or `item[]` when the length is None."""

    item: SolType
    length: int | None

    def __str__(self) -> str:
        return f'{self.item}[{"" if self.length is None else self.length}]'

    @cached_property
    def dynamic(self) -> bool:
        """True when its place holds an offset and its content is in the tail."""
        return self.length is None or self.item.dynamic

    @cached_property
    def head_size(self) -> int:
        """Bytes that it takes in its place."""
        return WORD if self.dynamic or self.length is None else self.length * self.item.head_size

    @cached_property
    def slots(self) -> int:
        """The words that every value of it has at least."""
        return 1 if self.length is None else self.length * self.item.slots

    @cached_property
    def arrow(self) -> pa.DataType:
        """The type of its column."""
        item = pa.field('item', self.item.arrow)
        return pa.list_(item) if self.length is None else pa.list_(item, self.length)


@dataclass(frozen=True)
class Tuple:
    """A tuple of one or more items."""

    items: tuple[SolType, ...]

    def __str__(self) -> str:
        return f'({",".join(str(item) for item in self.items)})'

    @cached_property
    def dynamic(self) -> bool:
        """True when its place holds an offset and its content is in the tail."""
        return any(item.dynamic for item in self.items)

    @cached_property
    def head_size(self) -> int:
        """Bytes that it takes in its place."""
        return WORD if self.dynamic else sum(item.head_size for item in self.items)

    @cached_property
    def slots(self) -> int:
        """The words that every value of it has at least."""
        return sum(item.slots for item in self.items)

    @cached_property
    def arrow(self) -> pa.DataType:
        """The type of its column."""
        return pa.struct(self.fields)

    @cached_property
    def fields(self) -> list[pa.Field[Any]]:
        """The fields of its struct."""
        return [pa.field(f'c{at}', item.arrow) for at, item in enumerate(self.items)]


SolType = Scalar | Bytes | Array | Tuple

HASH = Scalar('bytes', 32)
