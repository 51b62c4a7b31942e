"""DuckDB: a file, straight from Arrow. Undo, rows and state are one transaction.

Whatever a unit writes flows into a single `INSERT ... SELECT` from a reader that is fed while batches arrive: many
INSERTs in one transaction would hold all of their rows in memory. A file belongs to one process at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from amp.errors import DestinationError, LoadError
from amp.loaders.arrow_types import type_table
from amp.loaders.base import DataLoader
from amp.loaders.duckdb.arrow import column_types, create, insert, read_as, replace_by_key, stage
from amp.loaders.duckdb.statements import interruptible, run
from amp.loaders.feed import Feed
from amp.loaders.points import reached
from amp.loaders.sql import BEFORE_PREFIX, REPLACED_BY, SqlStreams, quote, undo_statements
from amp.loaders.stamps import BATCH_ID, STAMP_COLUMNS, TX_ID
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['DuckDBConfig', 'DuckDBLoader']

# DuckDB writes and compresses rows in groups of this many.
_ROW_GROUP = 122_880
_ROW_GROUPS_IN_MEMORY = 6
_LEAST_MEMORY = 256 * 1024**2
_MOST_MEMORY = 4 * 1024**3


@dataclass(frozen=True)
class DuckDBConfig:
    """`path` of the file (`:memory:` for none), `schema` in it.

    `memory_limit` in DuckDB's words (`2GB`); without it, what the rows at hand need, so that memory stays flat.
    """

    path: str
    schema: str = 'main'
    memory_limit: str | None = None


class DuckDBLoader(DataLoader[DuckDBConfig]):
    """Loads into a DuckDB file: append, overwrite, upsert by key, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('path', 'schema')
    URL_PATH_KEY: ClassVar[str | None] = 'path'

    _connection: duckdb.DuckDBPyConnection | None = None
    _own: duckdb.DuckDBPyConnection | None = None
    _memory = 0

    def _get_required_config_fields(self) -> list[str]:
        return ['path']

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A connection for the caller's own queries. Raises DestinationError when the file is not open."""
        if self._connection is None:
            raise DestinationError('the DuckDB file is not open', hint='call connect() or use `with loader:`')
        return self._connection

    @property
    def own(self) -> duckdb.DuckDBPyConnection:
        """The loader's connection: a result that a caller left unfetched must not stand in its way."""
        if self._own is None:
            self._own = self.connection.cursor()
        return self._own

    def connect(self) -> None:
        """Open the file, making it and its schema when they are not there. Raises DestinationError."""
        with _explained(self.config.path):
            self._connection = duckdb.connect(self.config.path)
            run(self._connection, f'CREATE SCHEMA IF NOT EXISTS {quote(self.config.schema)}')
            # No order of rows is promised; asking for one takes a third of the speed under a memory limit.
            run(self._connection, 'SET preserve_insertion_order = false')
            if self.config.memory_limit is not None:
                run(self._connection, 'SET memory_limit = ?', [self.config.memory_limit])
        self._is_connected = True

    def disconnect(self) -> None:
        """Close the file."""
        for connection in (self._own, self._connection):
            if connection is not None:
                connection.close()
        self._own = self._connection = None
        self._memory = 0
        self._is_connected = False

    def bound_memory(self, batch: pa.RecordBatch) -> None:
        """Let DuckDB keep no more in memory than some row groups of rows like these: it would take most of it."""
        if self.config.memory_limit is not None or batch.num_rows == 0:
            return
        wanted = max(_LEAST_MEMORY, _ROW_GROUPS_IN_MEMORY * _ROW_GROUP * batch.nbytes // batch.num_rows)
        if wanted <= self._memory:
            return
        self._memory = wanted
        if wanted < _MOST_MEMORY:
            self._run(f"SET memory_limit = '{wanted // 1024} KiB'")
        else:
            self._run('RESET memory_limit')

    # Plain loads

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _explained(self.config.path), _transaction(self.own):
            yield

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        create(self.own, schema, self._quoted(table_name))
        # The table may be older than its first stream.
        for name in STAMP_COLUMNS:
            if name in schema.names:
                kind = 'VARCHAR' if name == BATCH_ID else 'BIGINT'
                self._run(f'ALTER TABLE {self._quoted(table_name)} ADD COLUMN IF NOT EXISTS {quote(name)} {kind}')

    def create_statement(self, schema: pa.Schema, table_name: str) -> str:
        """The statement that makes such a table. Raises SchemaError."""
        landed = type_table('duckdb').landings(schema)
        listed = ', '.join(f'{quote(landing.name)} {landing.column}' for landing in landed)
        return f'CREATE TABLE IF NOT EXISTS {self._quoted(table_name)} ({listed})'

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        present = {name.casefold() for name in self._columns(table_name)}
        return [field for field in schema if field.name.casefold() not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        for name, kind in column_types(self.own, pa.schema(fields)):
            self._run(f'ALTER TABLE {self._quoted(table_name)} ADD COLUMN {quote(name)} {kind}')

    def _clear_table(self, table_name: str) -> None:
        self._run(f'DELETE FROM {self._quoted(table_name)}')

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        return self._load_reader_impl(reader, table_name, **kwargs)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        reader = self._measured(reader)
        keys = kwargs.get('key_columns') or ()
        # A statement that this thread waits for would read its source to the end before it hears an interrupt.
        if not keys:
            return Feed(reader.schema, partial(insert, self.own, self._quoted(table_name))).push_all(reader)
        rows = Feed(reader.schema, partial(stage, self.own)).push_all(reader)
        replace_by_key(self.own, self._quoted(table_name), reader.schema.names, keys, before=None)
        return rows

    def _measured(self, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The same rows; the first batch of them has said how much memory they want."""
        first = next((batch for batch in reader if batch.num_rows), None)
        if first is None:
            return reader.schema.empty_table().to_reader()
        self.bound_memory(first)
        return pa.RecordBatchReader.from_batches(reader.schema, chain([first], reader))

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the schema has the table."""
        return bool(self._columns(table_name))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count and columns of a table; None when it is not there."""
        columns = self._columns(table_name)
        if not columns:
            return None
        [(rows,)] = self._run(f'SELECT count(*) FROM {self._quoted(table_name)}')
        return {'table_name': table_name, 'row_count': rows, 'exists': True, 'columns': list(columns)}

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        return self.scan(table_name).schema if self.table_exists(table_name) else None

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows, in no promised order, the user's columns only."""
        return self.stamped_scan(table_name, [c for c in self._columns(table_name) if c not in STAMP_COLUMNS])

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        present = self._columns(table_name)
        if not present:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        listed = ', '.join(read_as(name, present.get(name, '')) for name in (present if columns is None else columns))
        sql = f'SELECT {listed} FROM {self._quoted(table_name)}'
        if where:
            sql += ' WHERE ' + ' AND '.join(
                f'{quote(c)} BETWEEN {low:d} AND {high:d}' for c, (low, high) in where.items()
            )
        with _explained(self.config.path), interruptible():
            reader: pa.RecordBatchReader = self.own.cursor().sql(sql).to_arrow_reader()
        return reader

    def _columns(self, table_name: str) -> dict[str, str]:
        rows = self._run(
            'SELECT column_name, data_type FROM information_schema.columns WHERE table_catalog = current_database() '
            'AND table_schema = ? AND table_name = ? ORDER BY ordinal_position',
            (self.config.schema, table_name),
        )
        return dict(rows)

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the file remembers."""
        if not self._columns('_amp_streams'):
            return []
        return self._streams.list(self._run)

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream and read what is committed."""
        with _explained(self.config.path):
            self._run(self._streams.create())
            self._streams.enlist(self._run, key, claim)
            return self._streams.take(self._run, key, claim, after)

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> _DuckDBUnit:
        """Open a transaction of its own, with the undo done in it."""
        del state, first_id
        return _DuckDBUnit(self, job, undo)

    @property
    def _streams(self) -> SqlStreams:
        return SqlStreams(self._quoted('_amp_streams'))

    def before_images(self, table_name: str) -> str | None:
        """The quoted table of rows that streams replaced in `table_name`; None when there is none."""
        return self._quoted(BEFORE_PREFIX + table_name) if self._columns(BEFORE_PREFIX + table_name) else None

    def make_before_images(self, table_name: str) -> None:
        """Make that table; harmless when it is there."""
        self._run(
            f'CREATE TABLE IF NOT EXISTS {self._quoted(BEFORE_PREFIX + table_name)} AS '
            f'SELECT *, 0::BIGINT AS {quote(REPLACED_BY)} FROM {self._quoted(table_name)} LIMIT 0'
        )

    def _quoted(self, table_name: str) -> str:
        return quote(self.config.schema, table_name)

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return run(self.own, sql, values)


class _DuckDBUnit:
    """One transaction on a connection of its own; rows flow into one statement that runs beside."""

    def __init__(self, loader: DuckDBLoader, job: StreamJob, undo: Undo | None) -> None:
        self._loader = loader
        self._job = job
        self._feed: Feed | None = None
        self._columns: list[str] = []
        self._table = quote(loader.config.schema, job.key.table)
        if job.key_columns and loader.table_exists(job.key.table):
            loader.make_before_images(job.key.table)
        self._connection = loader.own.cursor()
        self._run('BEGIN')
        self.rows_undone = 0
        if undo is not None:
            with _explained(loader.config.path):
                self._undo(undo)

    def write(self, batch: pa.RecordBatch) -> int:
        if self._feed is None:
            self._columns = batch.schema.names
            self._loader.bound_memory(batch)
            self._feed = Feed(batch.schema, self._consume)
        with _explained(self._loader.config.path):
            self._feed.push(batch)
        return batch.num_rows

    def commit(self, state: StreamState) -> None:
        with _explained(self._loader.config.path):
            if self._feed is not None:
                self._feed.finish()
            if self._job.key_columns and self._feed is not None:
                self._replace(state)
            reached('commit.before_state')
            self._loader._streams.save(self._run, self._job.key, state)
            reached('commit.before')
            self._run('COMMIT')
            reached('commit.after')
        self._connection.close()

    def rollback(self) -> None:
        if self._feed is not None:
            self._feed.cancel()
        # The transaction dies with its connection, also when the statement before has failed.
        self._connection.close()

    def _undo(self, undo: Undo) -> None:
        reached('undo.before')
        if undo.whole_table:
            [(self.rows_undone,)] = self._run(f'DELETE FROM {self._table}')
            return
        before = self._loader.before_images(self._job.key.table)
        columns = list(self._loader._columns(self._job.key.table))
        if TX_ID not in columns:
            return
        delete, *restore = undo_statements(self._table, before, columns, undo.runs)
        [(self.rows_undone,)] = self._run(delete)
        reached('undo.deleted')
        for statement in restore:
            self._run(statement)
        reached('undo.after')

    def _consume(self, reader: pa.RecordBatchReader) -> int:
        if self._job.key_columns:
            return stage(self._connection, reader)
        return insert(self._connection, self._table, reader)

    def _replace(self, state: StreamState) -> None:
        before = self._loader.before_images(self._job.key.table)
        replace_by_key(self._connection, self._table, self._columns, self._job.key_columns, before)
        if before is not None:
            first, kept = state.interval.first, state.window_first_id()
            replaced = quote(REPLACED_BY)
            self._run(f'DELETE FROM {before} WHERE {replaced} >= {first} AND {replaced} < {kept}')

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return run(self._connection, sql, values)


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        run(connection, 'BEGIN')
        yield
        run(connection, 'COMMIT')
    except BaseException:  # whatever ended it, an interrupt too, is raised on
        # There may be none, before it begins and after it ends; and the first error is the one to tell.
        with suppress(duckdb.Error):
            run(connection, 'ROLLBACK')
        raise


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Errors of the driver as sentences. Which one it is, the driver's class says."""
    try:
        yield
    except duckdb.IOException as error:
        raise DestinationError(_io_sentence(path, str(error)), hint=_io_hint(path, str(error)), path=path) from error
    except (duckdb.OutOfMemoryException, duckdb.FatalException) as error:
        raise DestinationError(f'DuckDB gave up on {path}: {error}', path=path) from error
    except duckdb.TransactionException as error:
        conflict = DestinationError(f'two transactions met in {path}: {str(error).splitlines()[0]}', path=path)
        conflict.retryable = True
        raise conflict from error
    except duckdb.Error as error:
        raise DestinationError(f'DuckDB refused: {str(error).splitlines()[0]}', path=path) from error


def _io_sentence(path: str, text: str) -> str:
    if 'lock' in text:
        return f'the DuckDB file {path} is open in another process'
    if 'No space left' in text:
        return f'the disk of {path} is full'
    return f'the DuckDB file {path} cannot be opened or written: {text.removeprefix("IO Error: ")}'


def _io_hint(path: str, text: str) -> str:
    if 'lock' in text:
        return 'one process at a time may write a DuckDB file: close the other one'
    if 'No space left' in text:
        return 'nothing of the last unit was kept; free some space and run it again'
    folder = Path(path).resolve().parent
    if not folder.exists():
        return f'the folder {folder} does not exist: make it first'
    return 'check the path and your permissions'
