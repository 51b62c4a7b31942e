"""LMDB: a folder with a map in memory. Rows found by key, or whole Arrow batches; undo, rows and state are one commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import lmdb
import pyarrow as pa

from amp.errors import ConfigError, DestinationError
from amp.loaders.base import DataLoader
from amp.loaders.keyed import FIRST_STREAM_ID, Gathering, StreamTarget, WriteUnit, whole_number
from amp.loaders.lmdb.catalog import TableRecord, database_names
from amp.loaders.lmdb.environment import Environment
from amp.loaders.lmdb.layout import Layout
from amp.loaders.lmdb.table import Table
from amp.loaders.lmdb.unit import Store, Write
from amp.loaders.points import reached
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID, without_stamps
from amp.loaders.stored_rows import between, ids_of_streams, user_schema
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['LMDBConfig', 'LMDBLoader']


# Of the addresses of a process on usual machines, half.
_LARGEST_MAP = 1 << 46


@dataclass(frozen=True)
class LMDBConfig:
    """`db_path` is the folder; `map_size` (bytes) where its map begins: it grows by itself.

    `key_column` or `key_pattern` (`{block_num}:{log_index}`): rows are found by key, kept as `serialization` says
    (`arrow` or `msgpack`). Without a key whole batches are kept, or single rows with `layout='rows'`. `database_name`
    is a namespace for tables. Without `sync` a power cut may cost the newest commits or the environment.
    """

    db_path: str
    map_size: int | None = None
    database_name: str | None = None
    key_column: str | None = None
    key_pattern: str | None = None
    serialization: str = 'arrow'
    sync: bool = True
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.serialization not in {'arrow', 'msgpack'}:
            raise ConfigError(f'serialization={self.serialization!r} is not known', hint="'arrow' or 'msgpack'")
        if self.layout not in {None, 'rows', 'batches'}:
            raise ConfigError(f'layout={self.layout!r} is not known', hint="'rows' or 'batches'")
        if self.map_size is not None:
            object.__setattr__(self, 'map_size', whole_number('map_size', self.map_size, 1, _LARGEST_MAP))
        if self.key_column is not None and self.key_pattern is not None:
            raise ConfigError('key_column and key_pattern are two ways to say one thing', hint='leave one out')
        if self.layout == 'batches' and Layout(None, self.serialization, self.key_column, self.key_pattern).is_by_row:
            raise ConfigError(
                "layout='batches' keeps whole batches, which have no keys of rows and are Arrow", hint='leave it out'
            )


class LMDBLoader(Gathering, DataLoader[LMDBConfig]):
    """Loads into an LMDB environment: append, overwrite, upsert by key, exactly-once streams, `read` and `scan`."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    ONE_WRITER: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('db_path', 'serialization')
    URL_PATH_KEY: ClassVar[str | None] = 'db_path'

    _store: Store | None = None

    def _get_required_config_fields(self) -> list[str]:
        return ['db_path']

    @property
    def store(self) -> Store:
        """What is open. Raises DestinationError when nothing is."""
        if self._store is None:
            raise DestinationError('the LMDB environment is not open', hint='call connect() or use `with loader:`')
        return self._store

    @property
    def environment(self) -> lmdb.Environment:
        """The open environment, for a caller's own reads. LMDB lets no process open it a second time."""
        return self.store.environment.raw

    def connect(self) -> None:
        """Open the folder, making it when it is not there, and clear up after loads that died. DestinationError."""
        config = self.config
        layout = Layout(config.layout, config.serialization, config.key_column, config.key_pattern)
        environment = Environment.shared(config.db_path, config.map_size, sync=config.sync)
        self._store = Store(environment, config.database_name or '', layout)
        self._is_connected = True
        self._sweep_the_dead()

    def disconnect(self) -> None:
        """Let go of the folder; the last loader of the process on it closes it."""
        store, self._store = self._store, None
        self._is_connected = False
        if store is not None:
            store.environment.release()

    def is_transient(self, error: Exception) -> bool:
        """Nothing that LMDB says passes by itself."""
        del error
        return False

    def _sweep_the_dead(self) -> None:
        store = self.store
        dead = [i for i in store.intents() if i.is_dead and i.run.first < FIRST_STREAM_ID]
        for table in {intent.table for intent in dead}:
            store.make_databases(table)
        for intent in dead:
            store.environment.write(partial(store.sweep, intent=intent))

    # Plain loads

    def _new_write(self, table_name: str, mode: LoadMode, key_columns: tuple[str, ...], *, clear: bool) -> Write:
        return Write(self.store, table_name, mode, key_columns, clear=clear)

    def _drop_unwritten(self, table_name: str) -> None:
        self._drop(table_name, only_empty=True)

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        store = self.store
        store.make_databases(table_name)
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f'two columns are named {twice!r}')

        def act(txn: Any) -> bool:
            catalog = store.catalog(txn)
            record = catalog.table(table_name)
            if record is None:
                catalog.save_table(table_name, store.layout.begun(schema, table_name))
                return True
            # The table may be older than its first stream.
            stamps = [schema.field(n) for n in STAMP_COLUMNS if n in schema.names and n not in record.schema.names]
            if stamps:
                catalog.save_table(table_name, _with_columns(record, stamps, store.layout))
            return False

        if self._needs_creating(schema, table_name) and store.environment.write(act):
            self._made_table(table_name)

    def _needs_creating(self, schema: pa.Schema, table_name: str) -> bool:
        record = self._record(table_name)
        return record is None or any(n in schema.names and n not in record.schema.names for n in STAMP_COLUMNS)

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        record = self._record(table_name)
        return [field for field in schema if record is not None and field.name not in record.schema.names]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        store = self.store

        def act(txn: Any) -> None:
            catalog = store.catalog(txn)
            record = catalog.table(table_name)
            if record is not None:
                new = [field for field in fields if field.name not in record.schema.names]
                catalog.save_table(table_name, _with_columns(record, new, store.layout))

        store.environment.write(act)

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the environment has the table."""
        return self._record(table_name) is not None

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count, columns and layout of a table; None when it is not there."""
        if not self.table_exists(table_name):
            return None
        with self.store.reading(table_name) as (table, record, hidden):
            return {
                'table_name': table_name,
                'row_count': table.count(hidden),
                'exists': True,
                'columns': record.schema.names,
                'layout': record.layout,
                'key': None if record.key is None else list(record.key.columns),
            }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        record = self._record(table_name)
        return None if record is None else user_schema(record.schema)

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows of one moment, the user's columns only. The map cannot grow while it is open."""
        record = self._existing(table_name)
        batches = (without_stamps(batch) for batch in self._stamped(table_name, record.schema))
        return pa.RecordBatchReader.from_batches(user_schema(record.schema), batches)

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        record = self._existing(table_name)
        wanted = list(columns) if columns is not None else record.schema.names
        schema = pa.schema([record.schema.field(name) for name in wanted])

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in self._stamped(table_name, record.schema):
                yield between(batch, where or {}).select(wanted)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def read(self, table_name: str, key: Any) -> dict[str, Any] | None:
        """The row with a key as a dictionary of the user's columns; None when it is not there.

        `key` is the value of the key column; of several a tuple or a mapping; of rows without a key column
        `<transaction id>:<row number>`. Raises LoadError when the table does not exist.
        """
        with self.store.reading(table_name) as (table, record, hidden):
            spec = record.key
            if spec is not None:
                stored = spec.key_of(key, record.schema)
            else:
                stored = key.encode() if isinstance(key, str) else bytes(key)
            found = table.get(stored, hidden)
        if found is None:
            return None
        row = without_stamps(found[0])
        return {name: row.column(name)[0].as_py() for name in row.schema.names}

    def drop_table(self, table_name: str) -> None:
        """Take a table away with all of its rows. Streams that fed it keep their state."""
        self._drop(table_name)

    def _drop(self, table_name: str, *, only_empty: bool = False) -> None:
        """The same; `only_empty`: when it has no rows, nor will have any of a load under way."""
        store = self.store
        if not self.table_exists(table_name):
            return
        databases = store.make_databases(table_name)

        def act(txn: Any) -> None:
            catalog = store.catalog(txn)
            record = catalog.table(table_name)
            if record is not None:
                table = Table(txn, databases, table_name, record)
                if only_empty and (catalog.intents(table_name) or table.count()):
                    return
                table.clear()
                catalog.drop_table(table_name)
                catalog.drop_intents(table_name)

        store.environment.write(act)
        self._created_tables.pop(table_name, None)

    def _stamped(self, table_name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with self.store.reading(table_name) as (table, _, hidden):
            for batch, ids in table.scan(hidden):
                columns = [
                    ids_of_streams(ids, FIRST_STREAM_ID) if n == TX_ID else _column(batch, schema.field(n))
                    for n in schema.names
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _record(self, table_name: str) -> TableRecord | None:
        database_names(self.store.namespace, table_name)
        with self.store.environment.read() as txn:
            return self.store.catalog(txn).table(table_name)

    def _existing(self, table_name: str) -> TableRecord:
        with self.store.reading(table_name) as (_, record, _):
            return record

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the environment remembers."""
        with self.store.environment.read() as txn:
            return self.store.catalog(txn).streams()

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream, take away what it never finished, and read what is committed."""
        store = self.store
        store.make_databases(key.table)

        def act(txn: Any) -> StreamState:
            catalog = store.catalog(txn)
            state = catalog.take_stream(key, claim, after).state()
            interval = state.interval
            for intent in catalog.intents(key.table):
                if interval.first <= intent.run.first <= interval.last:
                    store.sweep(txn, intent)
            return state

        state = store.environment.write(act)
        reached('open.taken')
        return state

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> WriteUnit:
        """Open a unit; nothing is locked before it has to be written."""
        del first_id
        target = StreamTarget(job.key, state, undo)
        return WriteUnit(Write(self.store, job.key.table, job.mode, job.key_columns, target))


def _with_columns(record: TableRecord, fields: Sequence[pa.Field[Any]], layout: Layout) -> TableRecord:
    landed = layout.landed(pa.schema(fields), record.layout)
    schema = pa.schema([*record.schema, *(field.with_nullable(True) for field in landed)])
    return TableRecord(schema, record.layout, record.serialization, record.key)


def _column(batch: pa.RecordBatch, field: pa.Field[Any]) -> Any:
    at = batch.schema.get_field_index(field.name)
    return batch.column(at) if at >= 0 else pa.nulls(batch.num_rows, field.type)
