"""PostgreSQL: Arrow by COPY BINARY. Undo, rows and state are one transaction.

Each unit holds a shared advisory lock that says which stream it belongs to: who takes the stream over ends what an
older writer left open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import psycopg
import pyarrow as pa

from amp.errors import ConfigError, DestinationError, LoadError
from amp.loaders.base import DataLoader
from amp.loaders.postgresql.connect import (
    Connection,
    Connections,
    PostgreSQLConfig,
    begin,
    explained,
    is_lock_timeout,
    is_transient,
    run_on,
)
from amp.loaders.postgresql.copy import CopyInto, column_type
from amp.loaders.postgresql.scan import read_batches, read_schema
from amp.loaders.postgresql.unit import PostgreSQLUnit
from amp.loaders.postgresql.upsert import STAGE, ensure_key_index, make_stage, replace_by_key
from amp.loaders.sql import BEFORE_PREFIX, REPLACED_BY, SqlStreams, quote
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['PostgreSQLConfig', 'PostgreSQLLoader']

_NAME_BYTES = 63
_SUMMARIZE_ROWS = 200_000
_BRIN = 'CREATE INDEX ON {0} USING brin ({1}) WITH (autosummarize = on)'


class PostgreSQLLoader(DataLoader[PostgreSQLConfig]):
    """Loads into PostgreSQL: append, overwrite, upsert by key, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('host', 'port', 'database', 'schema')

    _connection: Connection | None = None
    _connections: Connections

    def _get_required_config_fields(self) -> list[str]:
        return ['host', 'database']

    @property
    def connection(self) -> Connection:
        """The connection for all but units; opened again when it broke. Raises DestinationError."""
        if self._connection is None:
            raise DestinationError('PostgreSQL is not connected', hint='call connect() or use `with loader:`')
        if self._connection.closed:
            self._connection = self._connections.replace(self._connection)
        return self._connection

    @property
    def connections(self) -> Connections:
        """Where units and readers take theirs."""
        return self._connections

    def connect(self) -> None:
        """Connect, and make the schema when it is not there. Raises DestinationError."""
        self._connections = Connections(self.config)
        self._rows_to_summarize: dict[str, int] = {}
        self._connection = self._connections.take()
        try:
            with self.explained():
                # Asked first: CREATE ... IF NOT EXISTS wants the privilege also when there is nothing to do.
                if not self.run('SELECT 1 FROM pg_namespace WHERE nspname = $1', (self.config.schema,)):
                    with self._transaction():
                        self._lock(quote(self.config.schema))
                        self.run(f'CREATE SCHEMA IF NOT EXISTS {quote(self.config.schema)}')
        except BaseException:  # whatever it is, no connection stays open
            self.disconnect()
            raise
        self._is_connected = True

    def disconnect(self) -> None:
        """Close every connection."""
        if self._connection is not None:
            self._connections.give(self._connection)
            self._connections.close()
        self._connection = None
        self._is_connected = False

    def is_transient(self, error: Exception) -> bool:
        """By SQLSTATE: a broken connection, a deadlock, a lock that was waited for in vain, and their like."""
        return is_transient(error)

    # Plain loads

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self.explained():
            try:
                self._begin()
                yield
                self.connection.execute('COMMIT')
            except BaseException:  # Ctrl-C too: half a load is to go
                if not self._connection_broke():
                    self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self.connection.info.transaction_status is psycopg.pq.TransactionStatus.ACTIVE:
            # A statement was left in its middle, and no other can follow it: the server rolls back, and the next dials.
            self.connection.close()
        else:
            self.connection.execute('ROLLBACK')

    def _begin(self) -> None:
        try:
            begin(self.connection, '', self.config)
        except psycopg.OperationalError:
            # The server has closed an idle connection; nothing had begun, so another one does.
            if not self._connection_broke():
                raise
            begin(self.connection, '', self.config)

    def _connection_broke(self) -> bool:
        return self._connection is not None and self._connection.closed

    @contextmanager
    def _own_or_outer_transaction(self) -> Iterator[None]:
        if self.connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            yield
        else:
            with self._transaction():
                yield

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        table = self.quoted(table_name)
        wanted = {field.name: column_type(field) for field in schema}
        quote_all(wanted)
        with self.explained(table_name):
            present = self.columns(table_name)
            if present and not [n for n in STAMP_COLUMNS if n in wanted and n not in present]:
                return
            with self._own_or_outer_transaction():
                # Two processes may come at once, and IF NOT EXISTS alone would let one of them fail.
                self._lock(table)
                self.run(self.create_statement(schema, table_name))
                self._add_stamps(table, {} if not present else self.columns(table_name), wanted, bool(present))

    def missing_permissions(self) -> Sequence[tuple[str, str]]:
        """Whether this user may make tables in the schema, or the schema itself, with the GRANT that is lacking."""
        name = self.config.schema
        [(user, is_there)] = self.run('SELECT current_user, to_regnamespace($1) IS NOT NULL', (quote(name),))
        if is_there:
            ask = "has_schema_privilege($1, 'CREATE') AND has_schema_privilege($1, 'USAGE')"
            what, grant = f'in the schema {name!r}', f'USAGE, CREATE ON SCHEMA {quote(name)}'
        else:
            ask = "has_database_privilege(current_database(), 'CREATE') AND $1 <> ''"
            what, grant = f'like the schema {name!r}', f'CREATE ON DATABASE {quote(str(self.config.database))}'
        [(may,)] = self.run(f'SELECT {ask}', (name,))
        return () if may else ((f'{user} may make nothing {what}', f'GRANT {grant} TO {quote(str(user))}'),)

    def create_statement(self, schema: pa.Schema, table_name: str) -> str:
        """The statement that makes the table. Raises SchemaError."""
        listed = ', '.join(f'{quote(field.name)} {column_type(field)}' for field in schema)
        return f'CREATE TABLE IF NOT EXISTS {self.quoted(table_name)} ({listed})'

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        with self.explained(table_name):
            present = self.columns(table_name)
        return [field for field in schema if field.name not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        table = self.quoted(table_name)
        with self.explained(table_name), self._own_or_outer_transaction():
            self._lock(table)
            for field in fields:
                quote_all([field.name])
                self.run(f'ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {quote(field.name)} {column_type(field)}')

    def _add_stamps(self, table: str, present: Mapping[str, str], wanted: Mapping[str, str], was_there: bool) -> None:
        if was_there:
            for name in (n for n in STAMP_COLUMNS if n in wanted and n not in present):
                self.run(f'ALTER TABLE {table} ADD COLUMN {quote(name)} {wanted[name]}')
        if TX_ID in wanted and not self.run(
            'SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] '
            'WHERE i.indrelid = to_regclass($1) AND a.attname = $2',
            (table, TX_ID),
        ):
            self.run(_BRIN.format(table, quote(TX_ID)))

    def summarize(self, table_name: str, rows: int) -> None:
        """Let the index for undo know of `rows` new rows, now and then: the server would do it at its next vacuum.

        An undo reads all pages that the index does not know yet. Large units are of a backlog, far from any undo, and
        the server's own workers get to them first. Not done (no privilege, no time, a vacuum is at it): it is only
        slower, and the next unit tries again.
        """
        waiting = self._rows_to_summarize.get(table_name, 0) + rows
        is_due = rows <= _SUMMARIZE_ROWS <= waiting
        self._rows_to_summarize[table_name] = 0 if is_due and self._summarized(table_name) else waiting

    def _summarized(self, table_name: str) -> bool:
        with suppress(psycopg.Error, DestinationError), self._transaction():
            # A vacuum that is waited for longer may be given up, and begins again later.
            self.run("SET LOCAL lock_timeout = '50ms'")
            self.run("SET LOCAL statement_timeout = '2s'")
            self.run(
                'SELECT brin_summarize_new_values(i.indexrelid) FROM pg_index i '
                'JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam '
                "WHERE i.indrelid = to_regclass($1) AND m.amname = 'brin'",
                (self.quoted(table_name),),
            )
            return True
        return False

    def _clear_table(self, table_name: str) -> None:
        # Not TRUNCATE: readers go on seeing the old rows until the new ones are committed.
        self.run(f'DELETE FROM {self.quoted(table_name)}')

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        return self._load_reader_impl(pa.RecordBatchReader.from_batches(batch.schema, [batch]), table_name, **kwargs)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        keys = kwargs.get('key_columns') or ()
        table, columns = self.quoted(table_name), self.columns(table_name)
        if keys:
            make_stage(self.run, columns, reader.schema.names, keys)
        copy = CopyInto(self.connection, STAGE if keys else table, columns)
        try:
            rows = sum(copy.write(batch) for batch in reader)
            copy.finish()
        except BaseException:  # Ctrl-C too: only a COPY that was ended leaves the connection usable
            copy.abandon()
            raise
        if keys:
            replace_by_key(self.run, table, reader.schema.names, keys, before=None)
        return rows

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the schema has the table."""
        with self.explained(table_name):
            return bool(self.columns(table_name))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count, columns and bytes on disk of a table; None when it is not there."""
        with self.explained(table_name):
            columns = self.columns(table_name)
            if not columns:
                return None
            table = self.quoted(table_name)
            [(rows,)] = self.run(f'SELECT count(*) FROM {table}')
            [(size,)] = self.run('SELECT pg_total_relation_size(to_regclass($1))', (table,))
        return {
            'table_name': table_name,
            'row_count': rows,
            'exists': True,
            'columns': list(columns),
            'size_bytes': size,
        }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema in which the user's columns are read; None when the table is not there."""
        with self.explained(table_name):
            columns = self._users_columns(table_name)
        return read_schema(columns) if columns else None

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows, in no promised order, the user's columns only."""
        with self.explained(table_name):
            columns = self._users_columns(table_name)
        if not columns:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        return pa.RecordBatchReader.from_batches(read_schema(columns), self._read(table_name, columns))

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        with self.explained(table_name):
            present = self.columns(table_name)
        if not present:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        wanted = {name: present[name] for name in columns} if columns is not None else present
        return pa.RecordBatchReader.from_batches(read_schema(wanted), self._read(table_name, wanted, where))

    def _read(
        self, table_name: str, columns: Mapping[str, str], where: Mapping[str, tuple[int, int]] | None = None
    ) -> Iterator[pa.RecordBatch]:
        connection = self._connections.take()
        try:
            with self.explained(table_name):
                yield from read_batches(connection, self.quoted(table_name), columns, where)
        finally:
            self._connections.give(connection)

    def _users_columns(self, table_name: str) -> dict[str, str]:
        return {name: kind for name, kind in self.columns(table_name).items() if name not in STAMP_COLUMNS}

    def columns(self, table_name: str) -> dict[str, str]:
        """Name and type, as PostgreSQL writes it, of the columns that can be written; empty when there is no table."""
        return dict(
            self.run(
                'SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass($1) '
                "AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                (self.quoted(table_name),),
            )
        )

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the schema remembers."""
        with self.explained():
            return self.streams.list(self.run) if self.columns('_amp_streams') else []

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch, wait for a commit that is under way, end what an older writer left open, and read."""
        with self.explained(key.table):
            with self._transaction():
                self._lock(self._streams_table)
                if not self.columns('_amp_streams'):
                    self.run(self.streams.create())
                self.streams.enlist(self.run, key, claim)
            try:
                state = self._take(key, claim, after)
            except psycopg.Error as error:
                if not is_lock_timeout(error):
                    raise
                self._cut_off(key)
                state = self._take(key, claim, after)
            self._cut_off(key)
        return state

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> PostgreSQLUnit:
        """Open a transaction of its own, with the undo done in it."""
        del first_id
        return PostgreSQLUnit(self, job, state, undo)

    def begin_unit(self, connection: Connection, state: StreamState) -> Connection:
        """Open a unit's transaction on `connection`, or on the one that takes its place when it was gone."""
        stream = f'(to_regclass({_literal(self._streams_table)})::oid::bigint << 32) | {state.number}'
        mark = f'SELECT pg_advisory_xact_lock_shared({stream})'
        try:
            begin(connection, mark, self.config)
        except psycopg.OperationalError:
            if not connection.closed:
                raise
            connection = self._connections.replace(connection)
            begin(connection, mark, self.config)
        return connection

    def refuse_if_taken(self, key: StreamKey, state: StreamState) -> None:
        """Raises StaleEpochError when another process has the stream now; says nothing when that cannot be known."""
        # Twice, because the loader's own connection may have gone with the unit's and is opened again then.
        for _ in range(2):
            with suppress(psycopg.Error, DestinationError):
                found = self.streams.stale(self.run, key, state.epoch)
                break
        else:
            return
        if found.context.get('epoch') != state.epoch:
            raise found

    @property
    def streams(self) -> SqlStreams:
        """The table of streams in this schema."""
        return SqlStreams(self._streams_table, mark='$#')

    @property
    def _streams_table(self) -> str:
        return self.quoted('_amp_streams')

    def _take(self, key: StreamKey, claim: Claim, after: int | None) -> StreamState:
        try:
            self._begin()
            state = self.streams.take(self.run, key, claim, after)
            self.connection.execute('COMMIT')
        except BaseException:  # Ctrl-C too: the connection is kept, and must not be inside a transaction
            with suppress(psycopg.Error, DestinationError):
                self._roll_back()
            raise
        return state

    def _cut_off(self, key: StreamKey) -> None:
        """End the transactions of this stream that are still open: their epoch is over, or their client is."""
        self.run(
            'SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid '
            f"JOIN {self._streams_table} s ON s.table_name = $2 AND s.stream = $3 WHERE l.locktype = 'advisory' "
            'AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) '
            'AND l.classid = to_regclass($1)::oid AND l.objid = s.number::bigint::oid AND l.objsubid = 1 '
            'AND a.usename = current_user AND l.pid <> pg_backend_pid()',
            (self._streams_table, key.table, key.name),
        )

    def before_images(self, table_name: str) -> str:
        """The quoted table of rows that streams replaced in `table_name`, whether it is there or not."""
        name = BEFORE_PREFIX + table_name
        if len(name.encode()) > _NAME_BYTES:
            name = BEFORE_PREFIX + hashlib.sha256(table_name.encode()).hexdigest()[:32]
        return self.quoted(name)

    def prepare_upsert(self, table_name: str, keys: Sequence[str]) -> None:
        """Make the table of replaced rows and the index by which they are found; harmless when they are there."""
        table, before = self.quoted(table_name), self.before_images(table_name)
        with self._transaction():
            self._lock(table)
            if not self.exists(self.run, before):
                self.run(f'CREATE TABLE {before} (LIKE {table}, {quote(REPLACED_BY)} bigint)')
            ensure_key_index(self.run, table, keys)

    @staticmethod
    def exists(run: Any, quoted: str) -> bool:
        """True when there is a table of this quoted name."""
        [(found,)] = run('SELECT to_regclass($1) IS NOT NULL', (quoted,))
        return bool(found)

    def quoted(self, table_name: str) -> str:
        """The table's full name as SQL. Raises ConfigError for a name that PostgreSQL would cut short."""
        quote_all((self.config.schema, table_name))
        return quote(self.config.schema, table_name)

    def explained(self, table_name: str | None = None) -> Any:
        """A context in which the driver's errors become sentences."""
        return explained(self.config, table_name)

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement on the loader's own connection; the rows that it gives."""
        return run_on(self.connection, sql, values)

    def _metadata_of_place(self) -> dict[str, Any]:
        return {**super()._metadata_of_place(), 'connection_pool_size': self.config.max_connections}

    def _lock(self, what: str) -> None:
        self.run('SELECT pg_advisory_xact_lock(hashtextextended($1, 0))', (f'amp {what}',))


def quote_all(names: Any) -> None:
    """Refuse names that PostgreSQL would cut short, which could make one of two. Raises ConfigError."""
    for name in names:
        if len(str(name).encode()) > _NAME_BYTES:
            raise ConfigError(
                f'the name {name!r} is longer than {_NAME_BYTES} bytes, which is all that PostgreSQL keeps of a name',
                hint='give it a shorter name',
            )
        quote(name)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
