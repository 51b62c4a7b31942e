"""Which columns of DuckDB keep every value of a type as it is: its own casts round, cut off and parse without a word."""

from __future__ import annotations

import re
from collections.abc import Mapping

from amp.errors import SchemaError

__all__ = ['check_fit']

_DECIMAL = re.compile(r'DECIMAL\((\d+),(\d+)\)')
_WHOLE = {
    *('TINYINT', 'SMALLINT', 'INTEGER', 'BIGINT', 'HUGEINT'),
    *('UTINYINT', 'USMALLINT', 'UINTEGER', 'UBIGINT', 'UHUGEINT'),
}
_ZONED = 'TIMESTAMP WITH TIME ZONE'
_MOMENTS = ('DATE', 'TIMESTAMP_S', 'TIMESTAMP_MS', 'TIMESTAMP', 'TIMESTAMP_NS')
_AS_TEXT = {*_WHOLE, *_MOMENTS, 'BIGNUM', 'BOOLEAN', 'FLOAT', 'DOUBLE', 'TIME', 'UUID'}
_FROM_TEXT = ('JSON', 'UUID', 'ENUM(')


def check_fit(given: Mapping[str, str], table: Mapping[str, str], zone: str) -> None:
    """Refuse rows with a column that the table's would change. Both: name to DuckDB's type; `zone` is the session's.

    A value out of the range of a column is not looked at here: DuckDB refuses that one itself. Raises SchemaError.
    """
    columns = {name.casefold(): kind for name, kind in table.items()}
    for name, kind in given.items():
        column = columns.get(name.casefold())
        if column is not None and not _keeps(column, kind, zone):
            raise SchemaError(
                f'the column {name!r} is {column} in the table, which does not keep {kind} as it is',
                hint=f'CAST it in the query, or load into a table whose column is {kind}',
                column=name,
            )


def _keeps(column: str, kind: str, zone: str) -> bool:
    if {kind, column} == {_ZONED, 'TIMESTAMP'}:
        return zone in {'UTC', 'Etc/UTC'}
    scale, kept = _scale(kind), _scale(column)
    return (
        kind in {column, '"NULL"'}
        or (scale is not None and kept is not None and scale <= kept)
        or (column == 'VARCHAR' and (kind in _AS_TEXT or kind.startswith(('DECIMAL(', 'ENUM('))))
        or (kind == 'VARCHAR' and column.startswith(_FROM_TEXT))
        or (kind in _MOMENTS and column in _MOMENTS and _MOMENTS.index(kind) <= _MOMENTS.index(column))
        or (kind in _WHOLE and column == 'BIGNUM')
        or (kind, column) == ('FLOAT', 'DOUBLE')
    )


def _scale(kind: str) -> int | None:
    """The digits behind the point of a whole or decimal number."""
    decimal = _DECIMAL.fullmatch(kind)
    return int(decimal[2]) if decimal else 0 if kind in _WHOLE else None
