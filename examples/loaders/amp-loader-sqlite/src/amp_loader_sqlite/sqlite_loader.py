"""SQLite: one file, a transaction for everything.

While a unit is open its rows wait in a temporary table, which belongs to the connection and locks nothing. The commit
is one short transaction: undo, rows, state. So several streams may write to one file, and a process that hangs inside
a unit stands in nobody's way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from amp.errors import DestinationError, LoadError, SchemaError
from amp.loaders.arrow_types import Rule, TypeTable, land
from amp.loaders.base import DataLoader
from amp.loaders.json_text import json_text
from amp.loaders.points import reached
from amp.loaders.sql import SqlStreams, quote, undo_statements
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['SQLiteConfig', 'SQLiteLoader']

_INTEGERS = ('int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'bool')
_MOST = 2**63 - 1
_TIMES = ('time', 'time[ns]', 'duration', 'duration[ns]', 'timestamp', 'timestamp[ns]')


def _no_nan(column: Any) -> Any:
    if pc.any(pc.is_nan(column.cast(pa.float64()))).as_py():
        raise SchemaError('it has a NaN, which SQLite would turn into NULL')
    return column.cast(pa.float64())


def _count_of(kind: Any) -> pa.DataType:
    """Times are whole numbers of their unit; the Arrow type that is kept with the column says which."""
    return pa.int32() if kind.bit_width == 32 else pa.int64()


TYPES = TypeTable(
    'SQLite',
    {
        **dict.fromkeys(_INTEGERS, Rule('INTEGER', pa.int64())),
        'uint64': Rule('INTEGER', note='a value above 2^63 - 1 as its eight bytes, which sort after all numbers'),
        **dict.fromkeys(('float16', 'float32', 'float64'), Rule('REAL', pa.float64(), _no_nan)),
        **dict.fromkeys(('text', 'decimal', 'decimal256', 'null'), Rule('TEXT', pa.string())),
        **dict.fromkeys(('bytes', 'fixed bytes'), Rule('BLOB', pa.binary())),
        **dict.fromkeys(
            ('date', *_TIMES, 'timestamp with zone', 'timestamp[ns] with zone'), Rule('INTEGER', _count_of)
        ),
        'nested': Rule('TEXT', pa.string(), json_text, note='JSON'),
    },
)


@dataclass(frozen=True)
class SQLiteConfig:
    """`path` of the file. `timeout`: seconds to wait for another writer. `durable`: a power cut costs nothing."""

    path: str
    timeout: float = 20.0
    durable: bool = True


class SQLiteLoader(DataLoader[SQLiteConfig]):
    """Loads into a SQLite file: append, overwrite, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = {LoadMode.APPEND, LoadMode.OVERWRITE}
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    URL_PATH_KEY: ClassVar[str | None] = 'path'

    _connection: sqlite3.Connection | None = None

    def _get_required_config_fields(self) -> list[str]:
        return ['path']

    # The connection

    @property
    def connection(self) -> sqlite3.Connection:
        """The open file. Raises DestinationError when it is not open."""
        if self._connection is None:
            raise DestinationError('the SQLite file is not open', hint='call connect() or use `with loader:`')
        return self._connection

    def open(self) -> sqlite3.Connection:
        """One more connection. Raises DestinationError."""
        path = self.config.path
        try:
            # Without isolation_level the module would open and close transactions on its own.
            found = sqlite3.connect(path, timeout=self.config.timeout, isolation_level=None, check_same_thread=False)
            found.execute('PRAGMA journal_mode = WAL')
            found.execute(f'PRAGMA synchronous = {"FULL" if self.config.durable else "OFF"}')
            found.execute('PRAGMA temp_store = FILE')
        except sqlite3.Error as error:
            raise DestinationError(
                f'the SQLite file {path} cannot be opened: {error}', hint='check the path'
            ) from error
        return found

    def connect(self) -> None:
        """Open the file, and make the two tables of amp's own. Raises DestinationError."""
        self._connection = self.open()
        self.run(self._streams.create())
        self.run('CREATE TABLE IF NOT EXISTS _amp_columns (t TEXT, c TEXT, type BLOB, PRIMARY KEY (t, c))')
        self._is_connected = True

    def disconnect(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._is_connected = False

    def is_transient(self, error: Exception) -> bool:
        """Another writer was at it for longer than `timeout`."""
        return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in {
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
        }

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement on the loader's own connection."""
        return self.connection.execute(sql, list(values)).fetchall()

    # Plain loads

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with transaction(self.connection):
            yield

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        landings = TYPES.landings(schema)
        columns = ', '.join(f'{quote(x.name)} {x.column}' for x in landings)
        self.run(f'CREATE TABLE IF NOT EXISTS {quote(table_name)} ({columns})')
        # The table may be older than its first stream.
        self._add_columns([f for f in self._missing_columns(schema, table_name) if f.name in STAMP_COLUMNS], table_name)
        self._remember([f for f in schema if f.name in self._columns(table_name)], table_name)
        if TX_ID in schema.names:
            # Then an undo costs what it takes back, however large the table is.
            index = quote(f'{table_name}{TX_ID}')
            self.run(f'CREATE INDEX IF NOT EXISTS {index} ON {quote(table_name)} ({quote(TX_ID)})')

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        present = {name.casefold() for name in self._columns(table_name)}
        return [field for field in schema if field.name.casefold() not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        for x in TYPES.landings(pa.schema(fields)):
            self.run(f'ALTER TABLE {quote(table_name)} ADD COLUMN {quote(x.name)} {x.column}')
        self._remember(fields, table_name)

    def _clear_table(self, table_name: str) -> None:
        self.run(f'DELETE FROM {quote(table_name)}')

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        self.check_types(batch.schema, table_name)
        return insert(self.connection, quote(table_name), batch)

    def check_types(self, schema: pa.Schema, table_name: str) -> None:
        """SQLite would take a text for a number, and make one of it where it can. Raises SchemaError."""
        present = self._columns(table_name)
        for field, landing in zip(schema, TYPES.landings(schema), strict=True):
            there = TYPES.landing(present[field.name]) if field.name in present else landing
            if there.column != landing.column:
                raise SchemaError(f'column {field.name!r} is {there.column} there, not {field.type}')

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the file has the table."""
        return bool(self._columns(table_name))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count and columns; None when it is not there."""
        if not self.table_exists(table_name):
            return None
        [(rows,)] = self.run(f'SELECT count(*) FROM {quote(table_name)}')
        columns = [name for name in self._columns(table_name) if name not in STAMP_COLUMNS]
        return {'table_name': table_name, 'row_count': rows, 'exists': True, 'columns': columns}

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
        fields = [present[name] for name in (present if columns is None else columns)]
        sql = f'SELECT {", ".join(quote(f.name) for f in fields)} FROM {quote(table_name)}'
        if where:
            sql += ' WHERE ' + ' AND '.join(f'{quote(c)} BETWEEN {a:d} AND {b:d}' for c, (a, b) in where.items())
        schema = pa.schema([pa.field(f.name, read_as(f)) for f in fields])
        return pa.RecordBatchReader.from_batches(schema, self._read(sql, schema))

    def _read(self, sql: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        wires = [x.wire for x in TYPES.landings(schema)]
        cursor = self.connection.execute(sql)
        while rows := cursor.fetchmany(8192):
            values = zip(wires, zip(*rows, strict=True), schema.types, strict=True)
            columns = [from_sqlite(column, wire).cast(kind) for wire, column, kind in values]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _columns(self, table_name: str) -> dict[str, pa.Field[Any]]:
        """The columns as they came; those of a table that somebody else made by what SQLite calls them."""
        known = dict(self.run('SELECT c, type FROM _amp_columns WHERE t = ?', [table_name]))
        found = {}
        for name, declared in self.run('SELECT name, type FROM pragma_table_info(?)', [table_name]):
            kept = pa.ipc.read_schema(pa.py_buffer(known[name])).field(0) if name in known else None
            found[name] = kept or pa.field(name, _DECLARED.get(declared, pa.string()))
        return found

    def _remember(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        for field in fields:
            kept = pa.schema([field]).serialize().to_pybytes()
            self.run('INSERT INTO _amp_columns VALUES (?, ?, ?) ON CONFLICT DO NOTHING', [table_name, field.name, kept])

    # Streams

    @property
    def _streams(self) -> SqlStreams:
        return SqlStreams('_amp_streams')

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the file remembers."""
        return self._streams.list(self.run)

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream and read what is committed."""
        self._streams.enlist(self.run, key, claim)
        return self._streams.take(self.run, key, claim, after)

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> SQLiteUnit:
        """Open a unit. Nothing is locked before it commits."""
        return SQLiteUnit(self, job, undo)


class SQLiteUnit:
    """One commit, on a connection of its own."""

    def __init__(self, loader: SQLiteLoader, job: StreamJob, undo: Undo | None) -> None:
        self._loader = loader
        self._key = job.key
        self._table = quote(job.key.table)
        self._undo = undo
        self._connection = loader.open()
        self._staged: tuple[str, ...] = ()
        self.rows_undone = 0

    def write(self, batch: pa.RecordBatch) -> int:
        """Let rows wait; their number."""
        if not self._staged:
            self._loader.check_types(batch.schema, self._key.table)
            self._staged = tuple(batch.schema.names)
            columns = ', '.join(f'{quote(x.name)} {x.column}' for x in TYPES.landings(batch.schema))
            self._run(f'CREATE TEMP TABLE _amp_stage ({columns})')
        with transaction(self._connection, 'DEFERRED'):
            return insert(self._connection, 'temp._amp_stage', batch)

    def commit(self, state: StreamState) -> None:
        """Undo, rows and state, or nothing. Raises StaleEpochError when somebody newer has the stream."""
        with transaction(self._connection):
            reached('commit.begun')
            if self._undo is not None:
                self._take_back(self._undo)
                reached('commit.undone')
            if self._staged:
                columns = ', '.join(map(quote, self._staged))
                self._run(f'INSERT INTO {self._table} ({columns}) SELECT {columns} FROM temp._amp_stage')
            self._loader._streams.save(self._run, self._key, state)
            reached('commit.before')
        self._connection.close()

    def rollback(self) -> None:
        """Forget it all: a transaction, and the rows that wait, go with their connection."""
        self._connection.close()

    def _take_back(self, undo: Undo) -> None:
        columns = self._loader._columns(self._key.table)
        if undo.whole_table and columns:
            self.rows_undone = self._connection.execute(f'DELETE FROM {self._table}').rowcount
        elif TX_ID in columns:
            [delete] = undo_statements(self._table, None, (), undo.runs)
            self.rows_undone = self._connection.execute(delete).rowcount

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, list(values)).fetchall()


_DECLARED = {'INTEGER': pa.int64(), 'REAL': pa.float64(), 'BLOB': pa.binary()}


def insert(connection: sqlite3.Connection, table: str, batch: pa.RecordBatch) -> int:
    """A batch into a quoted table; the number of rows.

    The module of the standard library takes Python values and nothing else, so this is its bulk path. Hand Arrow over
    wherever your driver takes it.
    """
    landed = land(batch, TYPES.landings(batch.schema))
    columns = ', '.join(map(quote, landed.schema.names))
    marks = ', '.join('?' * landed.num_columns)
    rows = zip(*map(to_sqlite, landed.columns), strict=True)
    connection.executemany(f'INSERT INTO {table} ({columns}) VALUES ({marks})', rows)
    return batch.num_rows


def to_sqlite(column: Any) -> list[Any]:
    """The values of a landed column as they are bound."""
    values: list[Any] = column.to_pylist()
    if pa.types.is_uint64(column.type):
        return [v.to_bytes(8) if v is not None and v > _MOST else v for v in values]
    return values


def from_sqlite(values: Sequence[Any], wire: pa.DataType) -> Any:
    """The same backwards."""
    if pa.types.is_uint64(wire):
        values = [int.from_bytes(v) if isinstance(v, bytes) else v for v in values]
    return pa.array(values, wire)


def read_as(field: pa.Field[Any]) -> pa.DataType:
    """The Arrow type that `scan` gives for a column: its own, and JSON text for nested values."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.string() if pa.types.is_nested(kind) or pa.types.is_null(kind) else kind


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = 'IMMEDIATE') -> Iterator[None]:
    """All or nothing; IMMEDIATE waits for another writer now and not in the middle."""
    try:
        connection.execute(f'BEGIN {kind}')
        yield
        connection.execute('COMMIT')
    except BaseException:  # Ctrl-C too, which may come before it begins
        # On a full disk SQLite has rolled back by itself.
        if connection.in_transaction:
            connection.execute('ROLLBACK')
        raise
