"""Columns of rows that arrive, in the types that a key-value table has: exactly, or refused by name."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from amp.errors import SchemaError
from amp.loaders.arrow_types import kind_of

__all__ = ['fitted']


def fitted(column: Any, field: pa.Field[Any], kind: Any) -> Any:
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
