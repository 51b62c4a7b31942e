"""Filtered reads of files on a disk by DuckDB, which decodes of a row only what its conditions let through.

Arrow decodes every column of every row first and takes half as long again or more. What DuckDB cannot be given (S3,
nested types, files that lack a column, names that mean something to it) stays with Arrow; the rows are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from amplify_db_utils._arrow import Kind
from amplify_db_utils.errors import DamagedData
from amplify_db_utils.faults import damage, interruptible
from amplify_db_utils.filters import Condition
from amplify_db_utils.pages import Checks
from amplify_db_utils.scan import Scan

_BATCH = 1 << 17  # rows
_MOST_MEMBERS = 1000  # of one `in`
_PLACE = 'file_index'
_TAKEN = {_PLACE, 'file_row_number', 'filename', 'rowid', 'empty'}  # columns that DuckDB has of its own
_HARMLESS = re.compile(r'/[\w /.\-~+@,:=%#]*')  # what no glob is made of
_SIGNS = {'eq': '=', 'gte': '>=', 'gt': '>', 'lte': '<=', 'lt': '<'}
_TYPES: dict[pa.DataType, str] = {
    pa.bool_(): 'BOOLEAN',
    pa.int8(): 'TINYINT',
    pa.int16(): 'SMALLINT',
    pa.int32(): 'INTEGER',
    pa.int64(): 'BIGINT',
    pa.float32(): 'FLOAT',
    pa.float64(): 'DOUBLE',
    pa.string(): 'VARCHAR',
    pa.binary(): 'BLOB',
    pa.date32(): 'DATE',
    pa.timestamp('us'): 'TIMESTAMP',
    pa.timestamp('us', 'UTC'): 'TIMESTAMPTZ',
}


class Pushdown:
    """Scans with conditions on columns that are no partition keys; `connect` gives a DuckDB connection for one query."""

    def __init__(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._connect = connect
        self._checks = Checks()

    def table(self, scan: Scan) -> pa.Table | None:
        """The rows with the declared types, or None where Arrow must read them. Raises DamagedData."""
        keys = scan.snapshot.partition_by
        columns = [name for name in scan.columns if name not in keys]
        if not self._takes(scan, columns):
            return None
        listed = ', '.join([*map(_quoted, columns), _PLACE])
        with _failures(), self._connect() as cursor:
            query, parameters = _query(listed, scan)
            found: Any = cursor.sql(query, params=parameters).to_arrow_table(_BATCH)
        place = found.column(_PLACE)
        table = pa.Table.from_arrays(
            [
                scan.files.column(f'p{keys.index(name)}').combine_chunks().take(place)
                if name in keys
                else found.column(name)
                for name in scan.columns
            ],
            names=scan.columns,
        )
        with damage():
            return table.cast(scan.stored).cast(scan.declared)

    def count(self, scan: Scan) -> int | None:
        """How many rows, or None where Arrow must count them. Raises DamagedData."""
        if not self._takes(scan, []):
            return None
        with _failures(), self._connect() as cursor:
            query, parameters = _query('count(*)', scan)
            [[count]] = cursor.sql(query, params=parameters).fetchall()
        return int(count)

    def _takes(self, scan: Scan, columns: Sequence[str]) -> bool:
        if scan.by_partition or not scan.local or not len(scan.files):
            return False
        stored = scan.snapshot.stored
        names = list(dict.fromkeys([*columns, *(one.column for one in scan.conditions)]))
        needed = pa.schema([stored.field(name) for name in names])
        if not all(_sayable(part.name) and _sql_type(part.type) for part in needed):
            return False
        if any(len(one.values) > _MOST_MEMBERS for one in scan.conditions):
            return False
        paths = scan.paths()
        if not all(map(_HARMLESS.fullmatch, paths)):
            return False
        sizes: list[Any] = scan.files.column('size').to_pylist()
        rows: list[Any] = scan.files.column('rows').to_pylist()
        with damage():
            return self._checks.plain(paths, sizes, rows, needed)


def _query(wanted: str, scan: Scan) -> tuple[str, list[Any]]:
    parameters: list[Any] = [scan.paths()]
    parts = [_condition(one, scan.snapshot.stored.field(one.column).type, parameters) for one in scan.conditions]
    where = ' AND '.join(parts)
    return f'SELECT {wanted} FROM read_parquet($1, hive_partitioning = false) WHERE {where}', parameters


def _condition(condition: Condition, kind: pa.DataType, parameters: list[Any]) -> str:
    column = _quoted(condition.column)

    def bound(value: Any) -> str:
        parameters.append(format(value, 'f') if isinstance(value, Decimal) else value)
        return f'CAST(${len(parameters)} AS {_sql_type(kind)})'

    values = [bound(value.as_py()) for value in condition.values]
    match condition.op:
        case 'null':
            return f'{column} IS NULL'
        case 'any':
            return f'{column} IS NOT NULL'
        case 'none':
            return 'false'
        case 'in':
            among = f'{column} IN ({", ".join(values)})' if values else 'false'
            return f'({among} OR {column} IS NULL)' if condition.or_null else among
    compared = f'{column} {_SIGNS[condition.op]} {values[0]}'
    if pa.types.is_floating(kind) and condition.op in {'gt', 'gte'}:
        return f'({compared} AND NOT isnan({column}))'  # DuckDB has NaN above every number
    return compared


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sayable(name: str) -> bool:
    return bool(name) and '\0' not in name and name.casefold() not in _TAKEN


def _sql_type(kind: Kind) -> str | None:
    if pa.types.is_decimal128(kind):
        return f'DECIMAL({kind.precision}, {kind.scale})'
    return _TYPES.get(kind)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        with interruptible():
            yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        raise DamagedData(f'a data file is gone or damaged: {error}') from error
