"""Arrow batches as Python dicts, a column at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC
from operator import methodcaller
from typing import Any

import numpy as np
import pyarrow as pa

from amplify_db_utils._arrow import Array

_in_utc = methodcaller('replace', tzinfo=UTC)


def dicts(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """Each row as a dict, column order kept; times with a zone come in UTC."""
    for batch in batches:
        names = batch.schema.names
        for row in zip(*(values(column) for column in batch.columns), strict=True):
            yield dict(zip(names, row, strict=True))


def values(column: Array) -> list[Any]:
    """A column as Python values: what `to_pylist` gives, but faster for plain types."""
    kind = column.type
    if pa.types.is_primitive(kind) and not _beyond_numpy(kind):
        return _plain(column)
    result: list[Any] = column.to_pylist()
    return result


def _beyond_numpy(kind: pa.DataType) -> bool:
    # Only whole and real numbers, yes/no, and moments that Python's datetime can hold go the fast way.
    if pa.types.is_timestamp(kind):
        return bool(kind.unit == 'ns')
    return not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or kind in {pa.float32(), pa.float64()})


def _plain(column: Array) -> list[Any]:
    holes = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)) if column.null_count else ()
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp('us', column.type.tz)).cast(pa.int64())
        filled = micros.fill_null(0) if column.null_count else micros
        plain = filled.to_numpy().view('datetime64[us]').tolist()
        result = plain if column.type.tz is None else list(map(_in_utc, plain))
    else:
        filled = column.fill_null(pa.scalar(0).cast(column.type)) if column.null_count else column
        result = filled.to_numpy(zero_copy_only=False).tolist()
    for hole in holes:
        result[hole] = None
    return result
