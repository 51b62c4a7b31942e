"""What happens when rows have columns that their table lacks: `freeze` refuses them, `evolve` adds the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from amp.errors import ConfigError, SchemaError

__all__ = ['EVOLVE', 'FREEZE', 'evolution', 'refuse_unless_evolving']

FREEZE, EVOLVE = 'freeze', 'evolve'


def evolution(choice: object) -> str:
    """The choice, checked. Raises ConfigError."""
    if choice not in {FREEZE, EVOLVE}:
        raise ConfigError(f'schema_evolution={choice!r} is not known', hint=f'choose {FREEZE!r} or {EVOLVE!r}')
    return str(choice)


def refuse_unless_evolving(missing: Sequence[pa.Field[Any]], table_name: str, choice: str) -> None:
    """Raises SchemaError with the difference when the table may not change."""
    if choice == EVOLVE:
        return
    listed = ', '.join(f'{field.name} {field.type}' for field in missing)
    raise SchemaError(
        f'the rows have columns that the table {table_name!r} lacks: {listed}',
        hint="add them with schema_evolution='evolve', or leave them out in the query",
        table=table_name,
        columns=[field.name for field in missing],
    )
