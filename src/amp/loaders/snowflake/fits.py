"""Which columns of Snowflake keep every value of a type as it is: COPY rounds, parses and cuts off without a word."""

from __future__ import annotations

import re
from collections.abc import Mapping

from amp.errors import SchemaError

__all__ = ['check_fit']

_KIND = re.compile(r'(?P<name>\w+)(?:\((?P<first>\d+)(?:,\s*(?P<second>\d+))?\))?')
_SAME = {
    **dict.fromkeys(('DECIMAL', 'NUMERIC', 'INT', 'INTEGER', 'BIGINT', 'SMALLINT', 'TINYINT', 'BYTEINT'), 'NUMBER'),
    **dict.fromkeys(('DOUBLE', 'DOUBLE PRECISION', 'REAL', 'FLOAT4', 'FLOAT8'), 'FLOAT'),
    **dict.fromkeys(('TEXT', 'STRING', 'CHAR', 'CHARACTER'), 'VARCHAR'),
    'VARBINARY': 'BINARY',
    'DATETIME': 'TIMESTAMP_NTZ',
}
_AS_TEXT = {'NUMBER', 'BOOLEAN', 'DATE', 'TIME'}
_TAKES_ALL = {'VARIANT', 'OBJECT', 'ARRAY'}


def check_fit(given: Mapping[str, str], table: Mapping[str, str]) -> None:
    """Refuse columns that the table's would change. Both: name as Snowflake keeps it, to type. Raises SchemaError."""
    for name, kind in given.items():
        column = table.get(name)
        if column is not None and not _keeps(column, kind):
            raise SchemaError(
                f'the column {name!r} is {column} in the table, which does not keep {kind} as it is',
                hint=f'CAST it in the query, or load into a table whose column is {kind}',
                column=name,
            )


def _keeps(column: str, kind: str) -> bool:
    (own, digits), (rows, wanted) = _parsed(column), _parsed(kind)
    if own == rows:
        return own not in {'NUMBER', 'TIMESTAMP_NTZ', 'TIME'} or digits >= wanted
    return (
        own in _TAKES_ALL
        or (own == 'VARCHAR' and (rows in _AS_TEXT or rows in _TAKES_ALL or rows.startswith('TIMESTAMP')))
        or (own.startswith('TIMESTAMP') and (rows.startswith('TIMESTAMP') or rows == 'DATE'))
    )


def _parsed(kind: str) -> tuple[str, int]:
    """The name, and the digits behind the point (of a second, for times)."""
    found = _KIND.match(kind.upper())
    if found is None:
        return kind.upper(), 0
    name = _SAME.get(found['name'], found['name'])
    if name.startswith('TIME'):
        return name, int(found['first'] or 9)
    return name, int(found['second'] or 0)
