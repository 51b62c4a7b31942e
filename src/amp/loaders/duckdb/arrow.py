"""Rows from Arrow into DuckDB: inserted, staged, or put in the place of those with the same keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from amp.errors import SchemaError
from amp.loaders.arrow_types import Landing, land, type_table, wire_schema
from amp.loaders.duckdb.fits import check_fit
from amp.loaders.duckdb.statements import interruptible, run
from amp.loaders.points import reached
from amp.loaders.sql import REPLACED_BY, quote, same_keys
from amp.loaders.stamps import TX_ID

__all__ = ['column_types', 'create', 'insert', 'read_as', 'replace_by_key', 'stage']

_INCOMING = '_amp_incoming'
_STAGE = '_amp_stage'
_ROW = '_amp_row'


def create(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, table: str) -> None:
    """Make a quoted table for the columns of `schema`; harmless when it is there. Raises SchemaError."""
    _check_types(connection, schema)
    with _registered(connection, landed(schema.empty_table().to_reader())):
        run(
            connection,
            f'CREATE TABLE IF NOT EXISTS {table} AS SELECT {_select_list(schema)} FROM {_INCOMING} LIMIT 0',
        )


def column_types(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[tuple[str, str]]:
    """Name and DuckDB's type of the columns that hold `schema`. Raises SchemaError."""
    _check_types(connection, schema)
    with _registered(connection, landed(schema.empty_table().to_reader())):
        rows = run(connection, f'DESCRIBE SELECT {_select_list(schema)} FROM {_INCOMING}')
    return [(str(name), str(kind)) for name, kind, *_ in rows]


def read_as(name: str, kind: str) -> str:
    """How a column of DuckDB's type `kind` is selected for Arrow, which would show a BIGNUM as the bytes inside it."""
    column = quote(name)
    return f'{column}::{kind.replace("BIGNUM", "VARCHAR")} AS {column}' if 'BIGNUM' in kind else column


def insert(connection: duckdb.DuckDBPyConnection, table: str, reader: pa.RecordBatchReader) -> int:
    """Rows of a reader into a quoted table, columns by name; their number. Raises SchemaError for a column that does
    not keep them as they are.
    """
    columns = ', '.join(quote(name) for name in reader.schema.names)
    with _registered(connection, landed(reader.schema.empty_table().to_reader())):
        _check_fit(connection, table, f'SELECT {_select_list(reader.schema)} FROM {_INCOMING}')
    with _registered(connection, landed(reader)):
        [(rows,)] = run(
            connection, f'INSERT INTO {table} ({columns}) SELECT {_select_list(reader.schema)} FROM {_INCOMING}'
        )
    return int(rows)


def stage(connection: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader) -> int:
    """Rows of a reader into a fresh temporary table, numbered in their order; how many there are."""
    listed = f'{_select_list(reader.schema)}, {quote(_ROW)}'
    with _registered(connection, _numbered(landed(reader))):
        run(connection, f'CREATE OR REPLACE TEMP TABLE {_STAGE} AS SELECT {listed} FROM {_INCOMING}')
    [(rows,)] = run(connection, f'SELECT count(*) FROM {_STAGE}')
    return int(rows)


def replace_by_key(
    connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str], keys: Sequence[str], before: str | None
) -> None:
    """The staged rows take the place of those with the same keys; of several with one key the last counts.

    `before` is where rows that a stream replaces are kept for an undo. Raises SchemaError.
    """
    missing = [k for k in keys if k not in columns]
    if missing:
        raise SchemaError(f'the key column {missing[0]!r} is not in the rows', hint=f'columns: {", ".join(columns)}')
    _check_fit(connection, table, f'SELECT * EXCLUDE ({quote(_ROW)}) FROM {_STAGE}')
    partition = ', '.join(quote(k) for k in keys)
    newest = (
        f'(SELECT * FROM {_STAGE} QUALIFY row_number() OVER (PARTITION BY {partition} ORDER BY {quote(_ROW)} DESC) = 1)'
    )
    if before is not None:
        tx = quote(TX_ID)
        run(
            connection,
            f'INSERT INTO {before} BY NAME SELECT t.*, s.{tx} AS {quote(REPLACED_BY)} FROM {table} t '
            f'JOIN {newest} s ON {same_keys("t", "s", keys)} WHERE t.{tx} IS DISTINCT FROM s.{tx}',
        )
    run(connection, f'DELETE FROM {table} t USING {_STAGE} s WHERE {same_keys("t", "s", keys)}')
    reached('upsert.deleted')
    listed = ', '.join(quote(c) for c in columns)
    run(connection, f'INSERT INTO {table} ({listed}) SELECT {listed} FROM {newest}')
    run(connection, f'DROP TABLE {_STAGE}')


def _check_fit(connection: duckdb.DuckDBPyConnection, table: str, rows: str) -> None:
    given, has = (
        {str(name): str(kind) for name, kind, *_ in run(connection, f'DESCRIBE {what}')}
        for what in (rows, f'SELECT * FROM {table}')
    )
    if given.items() <= has.items():
        return
    [(zone,)] = run(connection, "SELECT current_setting('TimeZone')")
    check_fit(given, has, zone)


def _numbered(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The reader with a column that counts its rows."""

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader:
            yield batch.append_column(_ROW, pa.array(np.arange(rows, rows + batch.num_rows)))
            rows += batch.num_rows

    return pa.RecordBatchReader.from_batches(reader.schema.append(pa.field(_ROW, pa.int64())), batches())


def landed(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The reader with its columns in the form in which DuckDB takes them. Raises SchemaError, by column."""
    landings = [_landing(field) for field in reader.schema]
    wire = wire_schema(landings)
    if wire.types == reader.schema.types:
        return reader
    return pa.RecordBatchReader.from_batches(wire, (land(batch, landings) for batch in reader))


def _landing(field: pa.Field[Any]) -> Landing:
    found = _TYPES.landing(field)
    kind = field.type
    if _HAS_NANOSECOND_ZONE or not (pa.types.is_timestamp(kind) and kind.unit == 'ns' and kind.tz is not None):
        return found
    return Landing(field.name, 'TIMESTAMP WITH TIME ZONE', pa.timestamp('us', kind.tz))


_TYPES = type_table('duckdb')
_HAS_NANOSECOND_ZONE = int(duckdb.__version__.split('.')[0]) >= 2


def _select_list(schema: pa.Schema) -> str:
    """The columns of a schema as they are selected from Arrow."""
    return ', '.join(
        f'{quote(x.name)}::{x.column} AS {quote(x.name)}' if 'BIGNUM' in x.column else quote(x.name)
        for x in map(_landing, schema)
    )


def _check_types(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> None:
    """Refuse a column by name and type before the first row. Raises SchemaError."""
    names = [name.casefold() for name in schema.names]
    twice = next((n for n in schema.names if names.count(n.casefold()) > 1), None)
    if twice is not None:
        raise SchemaError(f'two columns are named {twice!r} (DuckDB does not tell upper from lower case)')
    for field in schema:
        if pa.types.is_decimal256(field.type) and field.type.scale != 0:
            raise SchemaError(f'DuckDB has no type for column {field.name!r} of type {field.type}')
        try:
            with _registered(connection, landed(pa.schema([field]).empty_table().to_reader())):
                run(connection, f'DESCRIBE SELECT * FROM {_INCOMING}')
        except (duckdb.NotImplementedException, duckdb.InvalidInputException, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f'DuckDB has no type for column {field.name!r} of type {field.type}') from error


@contextmanager
def _registered(connection: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader) -> Iterator[None]:
    with interruptible():  # these are statements too
        connection.register(_INCOMING, reader)
        try:
            yield
        except BaseException:
            # In a transaction that has failed even this is refused; the first error is the one to tell.
            with suppress(duckdb.Error):
                connection.unregister(_INCOMING)
            raise
        connection.unregister(_INCOMING)
