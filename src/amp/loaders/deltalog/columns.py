"""The columns of a table as its log has them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from amp.errors import SchemaError

__all__ = ['arrow_schema', 'refuse_twins']


def arrow_schema(table: DeltaTable) -> pa.Schema:
    """The columns of a table as Arrow has them."""
    schema: Any = table.schema().to_arrow()
    return pa.schema(schema)


def refuse_twins(schema: pa.Schema) -> None:
    """Raises SchemaError for names that differ in case alone: Delta Lake takes them for one."""
    seen: set[str] = set()
    for name in schema.names:
        if name.casefold() in seen:
            raise SchemaError(f'two columns are named {name!r} (Delta Lake does not tell upper from lower case)')
        seen.add(name.casefold())
