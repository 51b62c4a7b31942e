"""Redis: rows as hashes, JSON texts, or in one stream, set, sorted set or list a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa

from amp.errors import ConfigError, DestinationError
from amp.loaders.arrow_types import type_table
from amp.loaders.base import DataLoader
from amp.loaders.keyed import FIRST_STREAM_ID, Gathering, StreamTarget, WriteUnit, whole_number
from amp.loaders.redis.connect import Place, Server
from amp.loaders.redis.layout import DEFAULT_PATTERN, Layout
from amp.loaders.redis.reader import Reader
from amp.loaders.redis.resp import Commands
from amp.loaders.redis.store import COLLECTIONS, Store, TableRecord
from amp.loaders.redis.streams import drop_table, sweep_load, take_stream
from amp.loaders.redis.table import Table
from amp.loaders.redis.unit import Write
from amp.loaders.redis.url import config_of_url
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID, without_stamps
from amp.loaders.stored_rows import between, ids_of_streams, user_schema
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['RedisConfig', 'RedisLoader']


_BOUNDS = {'port': (1, 65_535), 'db': (0, 1 << 30), 'ttl': (1, 1 << 40), 'pipeline_size': (1, 1 << 20)}
STRUCTURES = ('hash', 'string', 'stream', 'set', 'sorted_set', 'list', 'json')


@dataclass(frozen=True)
class RedisConfig:
    """`data_structure` is one of hash, string, stream, set, sorted_set, list, json; `ttl` in seconds.

    `key_pattern` names a row (`{table}:{tx_hash}:{log_index}`); as it is by default, `{id}` is what wrote the row:
    `<transaction id>:<row number>`. `key_column='hash'` is short for `{table}:{hash}`. `pipeline_size` rows are encoded
    and sent at once. `score_column` orders a sorted set. `tls` and `cluster` are what `rediss://` and `redis+cluster://`
    say.
    """

    host: str
    port: int = 6379
    db: int = 0
    password: str | None = field(default=None, repr=False)
    data_structure: str = 'hash'
    key_pattern: str = DEFAULT_PATTERN
    ttl: int | None = None
    pipeline_size: int = 8192
    username: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    cluster: bool = False
    score_column: str | None = None
    key_column: str | None = None

    def __post_init__(self) -> None:
        if self.data_structure not in STRUCTURES:
            raise ConfigError(
                f'data_structure={self.data_structure!r} is not known', hint=f'one of: {", ".join(STRUCTURES)}'
            )
        for name, (lowest, highest) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, lowest, highest))


class RedisLoader(Gathering, DataLoader[RedisConfig]):
    """Loads into Redis: append, overwrite, upsert by key, exactly-once streams, `read` and `scan`."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('host', 'port', 'db', 'data_structure')

    _store: Store | None = None
    _names_rows = False

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        if 'url' in config:
            config = {**config_of_url(str(config['url'])), **{key: config[key] for key in config if key != 'url'}}
        super().__init__(config, label_manager)

    def _get_required_config_fields(self) -> list[str]:
        return ['host']

    def _parse_config(self, config: dict[str, Any]) -> RedisConfig:
        # `{table}:{id}` that somebody wrote means the column `id`.
        self._names_rows = 'key_pattern' in config
        if self._names_rows and config.get('key_column') is not None:
            raise ConfigError('key_column and key_pattern are two ways to say one thing', hint='leave one out')
        return super()._parse_config(config)

    @property
    def store(self) -> Store:
        """What is connected. Raises DestinationError when nothing is."""
        if self._store is None:
            raise DestinationError('Redis is not connected', hint='call connect() or use `with loader:`')
        return self._store

    @property
    def client(self) -> Any:
        """The client of redis-py, for a caller's own commands."""
        return self.store.server.client

    @property
    def layout(self) -> Layout:
        """How rows of this configuration lie."""
        config = self.config
        pattern = config.key_pattern if self._names_rows else None
        if config.key_column is not None:
            pattern = f'{{table}}:{{{config.key_column}}}'
        return Layout(config.data_structure, pattern, config.score_column, config.pipeline_size)

    def connect(self) -> None:
        """Connect. Raises DestinationError, also when the server lacks what the structure needs."""
        config = self.config
        place = Place(
            config.host,
            config.port,
            config.db,
            config.username,
            config.password,
            config.tls,
            config.tls_ca,
            config.cluster,
        )
        server = Server(place)
        if config.data_structure == 'json' and not server.has_command('JSON.SET'):
            server.close()
            raise DestinationError(
                f"data_structure='json' needs the JSON module, which Redis at {place} does not have",
                hint="load the module (it is part of Redis 8 and of Redis Stack), or use data_structure='string'",
            )
        self._store = Store(server, config.ttl)
        self._is_connected = True

    def disconnect(self) -> None:
        """Hang up."""
        store, self._store = self._store, None
        self._is_connected = False
        if store is not None:
            store.close()

    def check_mode(self, mode: LoadMode, key_columns: Sequence[str], *, stream: bool = False) -> None:
        """Raises ConfigError for a mode that the structure does not have."""
        super().check_mode(mode, key_columns, stream=stream)
        if mode in {LoadMode.UPSERT, LoadMode.MERGE} and self.config.data_structure in COLLECTIONS:
            raise ConfigError(
                f'rows in a Redis {self.config.data_structure} have no keys, so mode {mode.value} cannot replace them',
                hint="use data_structure='hash'",
            )

    # Plain loads

    def _new_write(self, table_name: str, mode: LoadMode, key_columns: tuple[str, ...], *, clear: bool) -> Write:
        mode = LoadMode.APPEND if mode is LoadMode.OVERWRITE else mode
        return Write(self.store, table_name, self.layout, mode, key_columns, clear=clear)

    def _drop_unwritten(self, table_name: str) -> None:
        # The first error is the one to tell.
        with suppress(DestinationError):
            if self._store is not None:
                drop_table(self._store, table_name, only_empty=True)
                self._created_tables.pop(table_name, None)

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        store, layout = self.store, self.layout
        if not table_name:
            raise ConfigError("'' is not a name for a table")
        self._sweep_the_dead(table_name)
        landed = _landed(schema)
        layout.check(schema, table_name)
        stored = store.own('table', table_name)
        if store.read('SET', stored, TableRecord(landed, layout.structure).anew().to_json(), 'NX'):
            self._made_table(table_name)
            return
        # The table may be older than its first stream.
        stamps = [landed.field(name) for name in STAMP_COLUMNS if name in landed.names]
        self._extend(table_name, stamps)

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        present = self.store.existing(table_name).schema.names
        return [f for f in schema if f.name not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        self._extend(table_name, list(_landed(pa.schema(fields))))

    def _extend(self, table_name: str, fields: Sequence[pa.Field[Any]]) -> None:
        """Give a table the columns that it lacks, whoever else does the same."""
        store = self.store
        while True:
            with store.wire(table_name) as wire:
                wire.call('WATCH', store.own('table', table_name))
                record = store.existing(table_name)
                new = [f.with_nullable(True) for f in fields if f.name not in record.schema.names]
                if not new:
                    wire.call('UNWATCH')
                    return
                wider = replace(record, schema=pa.schema([*record.schema, *new]))
                commands = Commands()
                commands.call('SET', store.own('table', table_name), wider.to_json())
                if wire.transact(commands):
                    return

    def _sweep_the_dead(self, table_name: str) -> None:
        for load, whose in self.store.loading(table_name).items():
            if whose.is_dead:
                sweep_load(self.store, table_name, self.layout, load)

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the table is there."""
        return self.store.table(table_name) is not None

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count, columns and structure of a table; None when it is not there."""
        record = self.store.table(table_name)
        if record is None:
            return None
        return {
            'table_name': table_name,
            'row_count': self._reader(table_name, record).count(self.store.hidden(table_name)),
            'exists': True,
            'columns': record.schema.names,
            'data_structure': record.structure,
            'key': None if record.key is None else list(record.key.columns),
        }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        record = self.store.table(table_name)
        return None if record is None else user_schema(record.schema)

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows, the user's columns only. Redis has no snapshots: rows of later units may be among them."""
        record = self.store.existing(table_name)
        batches = (without_stamps(batch) for batch in self._stamped(table_name, record))
        return pa.RecordBatchReader.from_batches(user_schema(record.schema), batches)

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        record = self.store.existing(table_name)
        wanted = list(columns) if columns is not None else record.schema.names
        schema = pa.schema([record.schema.field(name) for name in wanted])
        batches = (between(batch, where or {}).select(wanted) for batch in self._stamped(table_name, record))
        return pa.RecordBatchReader.from_batches(schema, batches)

    def read(self, table_name: str, key: Any) -> dict[str, Any] | None:
        """The row with a key as a dictionary of the user's columns; None when it is not there.

        `key` is the value of the key column; of several a tuple or a mapping; of numbered rows
        `<transaction id>:<row number>`; text or bytes that begin like the pattern are the whole Redis key. Raises
        LoadError when the table does not exist, ConfigError for a structure without keys.
        """
        record = self.store.existing(table_name)
        if record.structure in COLLECTIONS:
            raise ConfigError(f'rows in a Redis {record.structure} have no keys', hint='scan the table')
        if record.key is None:
            return None
        row = self._reader(table_name, record).get(
            _key_of(self.store, table_name, record, key), self._hidden(table_name)
        )
        if row is None:
            return None
        return {name: row.column(name)[0].as_py() for name in user_schema(record.schema).names}

    def drop_table(self, table_name: str) -> None:
        """Take a table away with all of its rows. Streams that fed it keep their state."""
        drop_table(self.store, table_name)
        self._created_tables.pop(table_name, None)

    def _stamped(self, table_name: str, record: TableRecord) -> Iterator[pa.RecordBatch]:
        for batch, ids in self._reader(table_name, record).scan(self._hidden(table_name)):
            columns = [
                ids_of_streams(ids, FIRST_STREAM_ID) if name == TX_ID else batch.column(name)
                for name in record.schema.names
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=record.schema)

    def _hidden(self, table_name: str) -> Any:
        return self.store.hidden(table_name)

    def _reader(self, table_name: str, record: TableRecord) -> Reader:
        return Reader(Table(self.store, table_name, record, self.config.score_column))

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the server remembers."""
        return self.store.streams()

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream, take away what it never finished, and read what is committed."""
        return take_stream(self.store, self.layout, key, claim, after)

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> WriteUnit:
        """Open a unit; nothing is written before it has to be."""
        del first_id
        target = StreamTarget(job.key, state, undo)
        return WriteUnit(Write(self.store, job.key.table, self.layout, job.mode, job.key_columns, target))


def _landed(schema: pa.Schema) -> pa.Schema:
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f'two columns are named {twice!r}')
    return pa.schema([pa.field(landing.name, landing.wire) for landing in type_table('redis').landings(schema)])


def _key_of(store: Store, table: str, record: TableRecord, key: Any) -> bytes:
    """The Redis key of what a person says."""
    spec = record.key
    if spec is None:
        return b''
    tag = store.tag(table).encode()
    literal = (spec.parts[0][1] if spec.parts[0][0] == 'text' else '').encode()
    whole = key.encode() if isinstance(key, str) else key if isinstance(key, bytes) else None
    if whole is not None and literal and whole.removeprefix(tag).startswith(literal):
        return tag + whole.removeprefix(tag)
    if spec.is_numbered and whole is not None:
        text = b''.join(whole if kind == 'column' else text.encode() for kind, text in spec.parts)
        return tag + text
    return tag + spec.key_of(key, record.schema)
