"""What key-value destinations say of the rows they hold: the user's columns, ids of streams alone, rows in a range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from amp.loaders.stamps import STAMP_COLUMNS

__all__ = ['between', 'ids_of_streams', 'user_schema']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute


def user_schema(stored: pa.Schema) -> pa.Schema:
    """The columns of a stored table without amp's own, all nullable."""
    return pa.schema([field.with_nullable(True) for field in stored if field.name not in STAMP_COLUMNS])


def between(batch: pa.RecordBatch, where: Mapping[str, tuple[int, int]]) -> pa.RecordBatch:
    """The rows in which each named column lies between two numbers, both included."""
    for name, (low, high) in where.items():
        column = batch.column(name)
        batch = batch.filter(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))
    return batch


def ids_of_streams(ids: Any, first: int) -> Any:
    """The ids of streamed rows, from `first` on; those of plain loads are nobody's business."""
    return pc.if_else(pc.greater_equal(ids, first), ids, None)
