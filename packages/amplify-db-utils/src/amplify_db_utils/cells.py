"""Columns of plain values out of dicts, by compiled code where the wheel has it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from amplify_db_utils._arrow import Array, Field, Kind

if TYPE_CHECKING:
    from amplify_db_utils import _cells as compiled
else:
    try:
        from amplify_db_utils import _cells as compiled
    except ImportError:  # nothing compiled it for this platform: the same columns take four times as long
        compiled = None

_PART = 1 << 13  # records that stay in the processor's cache while each column is taken from them


def parts(records: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """The records in small lists, each with the number of its first."""
    for start in range(0, len(records), _PART):
        yield start, list(records[start : start + _PART])


def plain_columns(records: Sequence[Any], fields: Iterable[Field], required: Collection[str]) -> dict[str, Array]:
    """Those of the columns that need no look at each value, by name: as Python would make them.

    So are those of str, bool, int, float and datetime, if each record is an exact dict, has the key (those that are not
    `required` may be lacking), and under it None or a value of exactly the usual type that the column can hold.
    """
    if compiled is None:
        return {}
    begun = [
        (field, column(field.name, len(records), field.name not in required))
        for field in fields
        if (column := _column(field.type)) is not None
    ]
    for start, part in parts(records):
        compiled.take(part, [column for _, column in begun], start)
    arrays = {field.name: _array(column, field.type, len(records)) for field, column in begun if column.fits}
    return {name: array for name, array in arrays.items() if array is not None}


def _column(kind: Kind) -> type[compiled.Column] | None:
    if pa.types.is_integer(kind):
        return compiled.Integers
    if pa.types.is_timestamp(kind):
        return compiled.Moments
    return {pa.string(): compiled.Texts, pa.bool_(): compiled.Booleans, pa.float64(): compiled.Floats}.get(kind)


def _array(column: compiled.Column, kind: Kind, count: int) -> Array | None:
    taken: Kind = kind
    if pa.types.is_integer(kind):
        taken = pa.int64()
    elif pa.types.is_timestamp(kind):
        taken = pa.timestamp('us', kind.tz)
    array: Array = pa.Array.from_buffers(taken, count, column.buffers, column.nulls)
    try:
        return array.cast(kind)
    except pa.ArrowInvalid:  # beyond what the type reaches, or finer
        return None
