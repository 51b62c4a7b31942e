"""Columns of rows that arrive, in the types that a key-value table has: exactly, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from amp.errors import SchemaError
from amp.loaders.arrow_types import kind_of
from amp.loaders.stamps import TX_ID

__all__ = ['aligned']

Fitting = Callable[[Any, Any], tuple[Any, Any]]


def aligned(batch: pa.RecordBatch, schema: pa.Schema, fitting: Fitting) -> pa.RecordBatch:
    """The batch in the columns of its table, without ids. Raises SchemaError for a column that does not fit.

    `fitting` takes a column and its own field to a column of the table's types, and says of which.
    """
    extra = [name for name in batch.schema.names if name not in schema.names and name != TX_ID]
    if extra:
        raise SchemaError(f'the rows have the column {extra[0]!r}, which the table lacks', column=extra[0])
    columns: list[Any] = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column, kind = fitting(batch.column(at), batch.schema.field(at))
        columns.append(_fitted(column, field, kind))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _fitted(column: Any, field: pa.Field[Any], kind: Any) -> Any:
    """A column of type `kind` in the type that its table has. Raises SchemaError when a value would change."""
    if kind.equals(field.type):
        return column
    if _family(kind) == _family(field.type) != 'other' or pa.types.is_null(kind):
        try:
            return column.cast(field.type)
        except pa.ArrowInvalid as error:
            raise SchemaError(f'column {field.name!r} has a value that does not fit {field.type}: {error}') from error
    raise SchemaError(
        f'column {field.name!r} is {field.type} in the table and {kind} in the rows',
        hint='cast it in the query, or load into another table',
        column=field.name,
    )


def _family(kind: Any) -> str:
    """Types between which a value is either kept exactly or refused."""
    if pa.types.is_integer(kind):
        return 'integer'
    name = kind_of(kind)
    return name if name in {'text', 'bytes', 'decimal', 'decimal256'} else 'other'
