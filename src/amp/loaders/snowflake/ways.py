"""The ways in which rows come to Snowflake before a transaction takes them: files in a stage, or a temporary table.

A way takes batches as they come (`write`), finishes (`finish`: everything is at Snowflake, nothing is visible), and
says then where the rows are: files to COPY from, or a temporary table of one session. Nested values travel as JSON and
become a VARIANT on their way out of a temporary table: COPY by column names would make one text of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from snowflake.connector import errors

from amp.errors import DestinationError
from amp.loaders.arrow_types import wire_schema
from amp.loaders.points import reached
from amp.loaders.snowflake.connect import Session
from amp.loaders.snowflake.files import ParquetFiles, put_statement
from amp.loaders.snowflake.types import VARIANT, cast_of, joined, json_arrays, landings, name_in, texts, wire_of
from amp.loaders.sql import quote

if TYPE_CHECKING:
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__ = ['ROW', 'STAGE', 'Rows', 'drop', 'lost_rows', 'way_of']

STAGE = 'AMP_STAGE'
ROW = '_AMP_ROW'
_COPY = (
    'FILE_FORMAT = (TYPE = PARQUET BINARY_AS_TEXT = FALSE USE_LOGICAL_TYPE = TRUE) '
    'MATCH_BY_COLUMN_NAME = CASE_SENSITIVE ON_ERROR = ABORT_STATEMENT PURGE = TRUE'
)
# A text that is bound to a statement, and the rows in it, are bounded: so is what Snowflake parses at once.
_INSERT_ROWS = 16_384
_INSERT_BYTES = 1024**2


class Rows(Protocol):
    """The rows of one unit on their way.

    `select` gives their columns, in the order of `names`; `by_table`: they go through a temporary table.
    """

    names: list[str]
    select: list[str]
    by_table: bool

    def write(self, batch: pa.RecordBatch) -> int:
        """Take rows as they came from the source."""

    def finish(self) -> int:
        """Everything is at Snowflake now; the number of rows."""

    def into(self, session: Session, table: str, staged: str | None = None) -> int:
        """Put the rows into a quoted table, by one statement; their number. `staged`: the table by which they go."""

    def table(self, session: Session) -> str:
        """The quoted temporary table of `session` that holds the rows, numbered. No transaction may be open."""

    def session(self) -> Session | None:
        """The session to which the rows are bound, if they are."""

    def discard(self) -> None:
        """Leave nothing behind; never raises for a connection that is gone."""


def way_of(loader: SnowflakeLoader, schema: pa.Schema, folder: str, *, numbered: bool) -> Rows:
    """The way that the loader's `loading_method` names. `numbered`: the order of the rows will be asked for."""
    ways: dict[str, type[StagedFiles | InsertedRows | PandasRows]] = {
        'stage': StagedFiles,
        'insert': InsertedRows,
        'pandas': PandasRows,
    }
    return ways[loader.config.loading_method](loader, schema, folder, numbered=numbered)


class _Way:
    def __init__(self, loader: SnowflakeLoader, schema: pa.Schema, folder: str, *, numbered: bool) -> None:
        self._loader = loader
        self._folder = folder
        self._numbered = numbered
        self._landed = landings(schema)
        self._rows = 0
        self.names = [name_in(name) for name in schema.names]
        # In what a temporary table carries a column.
        self._carried = ['VARCHAR' if landing.column == VARIANT else landing.column for landing in self._landed]
        self.by_table = VARIANT in {landing.column for landing in self._landed}
        self.select = [
            cast_of(VARIANT, quote(name)) if landing.column == VARIANT else quote(name)
            for name, landing in zip(self.names, self._landed, strict=True)
        ]

    def _wire(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        wire = wire_of(batch, self._landed)
        if self._numbered:
            numbers = np.arange(self._rows, self._rows + batch.num_rows)
            wire = wire.append_column(ROW, pa.array(numbers, pa.int64()))
        self._rows += batch.num_rows
        return wire

    def _wire_schema(self) -> pa.Schema:
        wires = zip(self.names, wire_schema(self._landed).types, strict=True)
        return pa.schema([*wires, *([(ROW, pa.int64())] if self._numbered else [])])

    def into(self, session: Session, table: str, staged: str | None = None) -> int:
        listed = ', '.join(quote(name) for name in self.names)
        return session.count(f'INSERT INTO {table} ({listed}) SELECT {", ".join(self.select)} FROM {staged}')

    def _columns(self, *, hexadecimal: bool = False) -> str:
        """The columns of a temporary table for the rows; `hexadecimal`: bytes come as text."""
        listed = [
            f'{quote(name)} {"VARCHAR" if hexadecimal and kind.startswith("BINARY") else kind}'
            for name, kind in zip(self.names, self._carried, strict=True)
        ]
        return ', '.join([*listed, *([f'{quote(ROW)} NUMBER(19,0)'] if self._numbered else [])])


class StagedFiles(_Way):
    """Parquet files in the stage, read by COPY INTO."""

    def __init__(self, loader: SnowflakeLoader, schema: pa.Schema, folder: str, *, numbered: bool) -> None:
        super().__init__(loader, schema, folder, numbered=numbered)
        loader.ensure_stage()
        uploads = max(1, min(4, loader.config.pool_size))
        self._files = ParquetFiles(self._wire_schema(), self._put, file_bytes=loader.config.file_bytes, uploads=uploads)
        self._staged = False

    def write(self, batch: pa.RecordBatch) -> int:
        self._files.push(self._wire(batch))
        return batch.num_rows

    def finish(self) -> int:
        rows = self._files.finish()
        reached('files.staged')
        return rows

    def into(self, session: Session, table: str, staged: str | None = None) -> int:
        if not self._rows:
            return 0
        if staged is not None:
            return super().into(session, table, staged)
        result = session.run(f'COPY INTO {table} FROM @{STAGE}/{self._folder}/ {_COPY}')
        # Without a file to load the answer is one sentence instead of a row a file.
        return sum(int(row[3]) for row in result if len(row) > 3)

    def table(self, session: Session) -> str:
        name = _temporary(session, self._columns())
        if self.into(session, name) != self._rows:
            raise lost_rows(self._loader)
        session.run('COMMIT')
        return name

    def session(self) -> Session | None:
        return None

    def discard(self) -> None:
        self._files.discard()
        if self._staged:
            self._loader.remove_staged(self._folder)

    def _put(self, path: Path) -> None:
        with self._loader.explained(), self._loader.sessions.borrowed() as session:
            self._staged = True
            session.run(put_statement(path, STAGE, self._folder))


class _TemporaryRows(_Way):
    """Rows in a temporary table, filled while they come."""

    _hexadecimal = False

    def __init__(self, loader: SnowflakeLoader, schema: pa.Schema, folder: str, *, numbered: bool) -> None:
        super().__init__(loader, schema, folder, numbered=numbered)
        self.by_table = True
        self._session = loader.sessions.take()
        try:
            self._table = _temporary(self._session, self._columns(hexadecimal=self._hexadecimal))
        except BaseException:  # whatever it is, the session goes back into the pool
            loader.sessions.give(self._session)
            raise

    def finish(self) -> int:
        self._session.run('COMMIT')
        reached('files.staged')
        return self._rows

    def table(self, session: Session) -> str:
        return self._table

    def session(self) -> Session | None:
        return self._session

    def discard(self) -> None:
        """The session's owner closes it, and the table goes with it."""
        self._session.broken = True


class InsertedRows(_TemporaryRows):
    """`INSERT ... SELECT` from JSON that is bound to the statement: no stage, no files, for few rows."""

    def write(self, batch: pa.RecordBatch) -> int:
        columns = self._carried + ['NUMBER(19,0)'] * self._numbered
        selected = ', '.join(cast_of(column, f'f.value[{i}]::VARCHAR') for i, column in enumerate(columns))
        insert = f'INSERT INTO {self._table} SELECT {selected} FROM TABLE(FLATTEN(INPUT => PARSE_JSON(?))) f'
        for part in _slices(self._wire(batch)):
            text = joined(json_arrays(part), ',')
            self._session.run(insert, ['[' + text[:-1].decode() + ']'])
        return batch.num_rows


class PandasRows(_TemporaryRows):
    """The driver's own `write_pandas`. It stages and copies by itself, so what it fills is a temporary table."""

    # It reads bytes of Parquet as text, unless it makes the table.
    _hexadecimal = True

    def __init__(self, loader: SnowflakeLoader, schema: pa.Schema, folder: str, *, numbered: bool) -> None:
        super().__init__(loader, schema, folder, numbered=numbered)
        self.select = [
            cast_of(landing.column, quote(name)) if landing.column.startswith('BINARY') else value
            for name, value, landing in zip(self.names, self.select, self._landed, strict=True)
        ]

    def write(self, batch: pa.RecordBatch) -> int:
        import pandas as pd  # type: ignore[import-untyped,unused-ignore]
        from snowflake.connector.pandas_tools import write_pandas

        wire = self._wire(batch)
        columns = [texts(c) if pa.types.is_binary(c.type) else c for c in wire.columns]
        frame = pa.table(columns, names=wire.schema.names).to_pandas(types_mapper=pd.ArrowDtype)
        name = self._table.strip('"')
        _, _, rows, _ = write_pandas(
            self._session.connection, frame, name, quote_identifiers=True, use_logical_type=True, compression='snappy'
        )
        if rows != batch.num_rows:
            raise lost_rows(self._loader)
        return batch.num_rows


def lost_rows(loader: SnowflakeLoader) -> DestinationError:
    """What was sent and what arrived differ: nothing of it is kept."""
    error = DestinationError(
        f'Snowflake at {loader.config.place} loaded another number of rows than it was sent; nothing was kept',
        hint='were files removed from the stage meanwhile? The unit is tried again',
    )
    error.retryable = True
    return error


def _temporary(session: Session, columns: str) -> str:
    name = quote(f'_AMP_ROWS_{secrets.token_hex(8).upper()}')
    session.run(f'CREATE TEMPORARY TABLE {name} ({columns})')
    return name


def drop(session: Session, table: str) -> None:
    """Drop a temporary table; a session that cannot is not used again, and the table goes with it."""
    try:
        session.run(f'DROP TABLE IF EXISTS {table}')
    except errors.Error:
        session.broken = True


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = max(1, min(_INSERT_ROWS, batch.num_rows * _INSERT_BYTES // max(batch.nbytes, 1)))
    for first in range(0, batch.num_rows, rows):
        yield batch.slice(first, rows)
