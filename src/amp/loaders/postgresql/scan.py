"""Rows of PostgreSQL as Arrow, some thousand at a time. Each type comes in a form that keeps all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import psycopg
import pyarrow as pa

from amp.loaders.postgresql.connect import Connection
from amp.loaders.sql import quote

__all__ = ['read_batches', 'read_schema']

_ROWS = 8_192
_NUMERIC = re.compile(r'numeric\((\d+),(-?\d+)\)')
_TYPES: dict[str, pa.DataType] = {
    'smallint': pa.int16(),
    'integer': pa.int32(),
    'bigint': pa.int64(),
    'real': pa.float32(),
    'double precision': pa.float64(),
    'boolean': pa.bool_(),
    'text': pa.string(),
    'bytea': pa.binary(),
    'date': pa.date32(),
    'time without time zone': pa.time64('us'),
    'timestamp without time zone': pa.timestamp('us'),
    'timestamp with time zone': pa.timestamp('us', 'UTC'),
    'interval': pa.duration('us'),
}
# Numbers since 1970 or midnight, which reach further than Python's own dates and times.
_MICROSECONDS = '(extract(epoch from {0}) * 1000000)::bigint'
_SELECT = {
    'date': "({0} - '1970-01-01'::date)",
    'time without time zone': _MICROSECONDS,
    'timestamp without time zone': _MICROSECONDS,
    'timestamp with time zone': _MICROSECONDS,
    'interval': _MICROSECONDS,
}


def read_schema(columns: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema in which columns (name to PostgreSQL's type) are read; what is none of ours is text."""
    return pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items()])


def read_batches(
    connection: Connection, table: str, columns: Mapping[str, str], where: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a quoted table as one moment saw them, in batches of `read_schema(columns)`.

    `where` keeps those whose column lies between two numbers, inclusive.
    """
    schema = read_schema(columns)
    selected = ', '.join(_selected(name, kind) for name, kind in columns.items())
    kept = ' AND '.join(f'{quote(name)} BETWEEN {low:d} AND {high:d}' for name, (low, high) in (where or {}).items())
    source = f'{table} WHERE {kept}' if kept else table
    connection.execute('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY')
    connection.execute(f'DECLARE amp_scan NO SCROLL CURSOR FOR SELECT {selected} FROM {source}'.encode())
    with psycopg.Cursor(connection) as cursor:
        while rows := cursor.execute(f'FETCH {_ROWS} FROM amp_scan'.encode(), binary=True).fetchall():
            values = zip(*rows, strict=True)
            arrays = [pa.array(v, _landed(f.type)).cast(f.type) for v, f in zip(values, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
    connection.execute('COMMIT')


def _arrow_type(kind: str) -> pa.DataType:
    if kind.endswith('[]'):
        inner = _arrow_type(kind.removesuffix('[]'))
        return pa.list_(inner)
    numeric = _NUMERIC.fullmatch(kind)
    if numeric is not None:
        precision, scale = int(numeric[1]), int(numeric[2])
        if precision <= 76:
            return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    return _TYPES.get(kind, pa.string())


def _selected(name: str, kind: str) -> str:
    known = kind in _TYPES or _NUMERIC.fullmatch(kind.removesuffix('[]')) or kind.removesuffix('[]') in _TYPES
    if not known or _arrow_type(kind) == pa.string():
        return f'{quote(name)}::text'
    return _SELECT.get(kind, '{0}').replace('{0}', quote(name))


def _landed(kind: pa.DataType) -> pa.DataType:
    """What pyarrow is given of a type that arrives as a number."""
    if pa.types.is_date(kind):
        return pa.int32()
    return pa.int64() if pa.types.is_temporal(kind) else kind
