"""Arrow's types for annotations, and the calls that its stubs describe too narrowly."""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Array: TypeAlias = 'pa.Array[Any]'
Column: TypeAlias = 'pa.ChunkedArray[Any]'
Scalar: TypeAlias = 'pa.Scalar[Any]'
Field: TypeAlias = 'pa.Field[Any]'
Kind: TypeAlias = Any
"""A data type whose unit, zone, scale or parts are looked at after a test of its kind."""


def nulls(rows: int, kind: Kind) -> Any:
    """A column of nulls."""
    return pa.nulls(rows, kind)


def joined(*parts: Any) -> Any:
    """Texts put together row by row; constants count for every row."""
    join: Any = pc.binary_join_element_wise
    return join(*parts, '')


def literal(value: Any) -> pc.Expression:
    """An Arrow scalar, or a Python value, as an expression."""
    return pc.scalar(value)
