"""Snowflake: Parquet files through a stage. Undo, rows and state are one transaction.

Rows travel by one of four methods (`loading_method`); but for Snowpipe Streaming, which commits by itself, they all end
in the same few statements between BEGIN and COMMIT: see `snowflake/unit.py`. What is remembered of streams lies in the
table `amp_stream_state` of the schema.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from snowflake.connector import errors

from amp.errors import DestinationError, LoadError
from amp.loaders.base import DataLoader
from amp.loaders.points import reached
from amp.loaders.snowflake.config import SnowflakeConnectionConfig, config_of_url
from amp.loaders.snowflake.connect import Session, Sessions, explained, is_transient
from amp.loaders.snowflake.fits import check_fit
from amp.loaders.snowflake.scan import present_columns, read_rows, users_columns, visible
from amp.loaders.snowflake.state import TABLE, TRANSACTION, SnowflakeDocuments, SnowflakeStreamStateStore, Streams
from amp.loaders.snowflake.types import landings, name_in, name_out, quoted, read_schema
from amp.loaders.snowflake.unit import MARK, MARKED_AT, REPLACED_BY, SnowflakeUnit, Work
from amp.loaders.snowflake.views import COMMITTED, show_committed, show_current
from amp.loaders.snowflake.ways import STAGE
from amp.loaders.sql import BEFORE_PREFIX, in_runs, quote
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamingDestination, StreamJob
from amp.streaming.ledger import IdRun, StreamKey, StreamState, Undo
from amp.streaming.state import StreamStateStore

if TYPE_CHECKING:
    from amp.loaders.snowflake.channel import Channel

__all__ = ['SnowflakeConnectionConfig', 'SnowflakeLoader', 'SnowflakeStreamStateStore']

_NOT_THERE = 2003


class SnowflakeLoader(DataLoader[SnowflakeConnectionConfig]):
    """Loads into a Snowflake schema: append, overwrite, upsert by key, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('account', 'database', 'schema', 'warehouse', 'loading_method')

    sessions: Sessions
    _own: Session | None = None

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        given = dict(config)
        if 'url' in given:
            given = {**config_of_url(str(given.pop('url'))), **given}
        self._plain = threading.local()
        self._stage_is_there = False
        self._streams_are_there = False
        self._channels: dict[str, Channel] = {}
        # When the last commit of a stream was, as this loader knows.
        self.saved: dict[StreamKey, str] = {}
        super().__init__(given, label_manager)

    def _get_required_config_fields(self) -> list[str]:
        return ['account', 'user', 'database']

    def _make_state_store(self, config: Any) -> StreamStateStore:
        # The base refuses a local store by name.
        super()._make_state_store(config)
        return SnowflakeStreamStateStore(self)

    @property
    def own(self) -> Session:
        """The session for all but units; opened again when it broke. Raises DestinationError."""
        if self._own is None:
            raise DestinationError('Snowflake is not connected', hint='call connect() or use `with loader:`')
        if self._own.broken:
            self._own.close()
            self._own = self.sessions.open(autocommit=True)
        return self._own

    @property
    def connection(self) -> Any:
        """The driver's connection, for the caller's own queries. Raises DestinationError."""
        return self.own.connection

    def connect(self) -> None:
        """Log in. Raises DestinationError."""
        self.sessions = Sessions(self.config)
        self._own = self.sessions.open(autocommit=True)
        self._is_connected = True

    def disconnect(self) -> None:
        """Log every session out."""
        if self._own is not None:
            self._own.close()
            self.sessions.close()
        self._own = None
        self._channels.clear()
        self._is_connected = False

    def is_transient(self, error: Exception) -> bool:
        """By the driver's class and code: a connection that broke, a lock waited for in vain, and their like."""
        return is_transient(error)

    def explained(self, table_name: str | None = None) -> Any:
        """A context in which the driver's errors become sentences."""
        return explained(self.config, table_name)

    # Plain loads

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._plain.work = self._plain.channel = None
        self._plain.active = True
        try:
            with self.explained():
                yield
                if self._plain.work is not None:
                    self._plain.work.commit()
                if self._plain.channel is not None:
                    self._plain.channel.wait()
        except BaseException:  # Ctrl-C too: half a load is to go
            if self._plain.work is not None:
                self._plain.work.rollback()
            raise
        finally:
            self._plain.active = False
            self._plain.work = None

    def _work(self, table_name: str) -> Work:
        if self._plain.work is None:
            self._plain.work = Work(self, table_name)
        work: Work = self._plain.work
        return work

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        if self.config.loading_method == 'snowpipe_streaming':
            return self._append(batch, table_name, **kwargs)
        work = self._work(table_name)
        work.keys = list(kwargs.get('key_columns') or ())
        return work.write(batch)

    def _append(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        if kwargs.get('key_columns'):
            raise LoadError('snowpipe_streaming appends; it cannot replace rows by key', hint="loading_method='stage'")
        plain = getattr(self._plain, 'active', False)
        channel = self.channel(table_name, anew=plain)
        if plain:
            self._plain.channel = channel
        return channel.append(batch)

    def channel(self, table_name: str, *, anew: bool = True) -> Channel:
        """The open channel into a table; one that broke is opened `anew`, or given as it is."""
        known = self._channels.get(table_name)
        if known is None or (known.broken and anew):
            self.use_channel(table_name, f'amp-load-{secrets.token_hex(6)}')
        return self._channels[table_name]

    def use_channel(self, table_name: str, name: str) -> None:
        """From now on rows of this table go through the channel of this name."""
        from amp.loaders.snowflake.channel import Channel

        self._channels[table_name] = Channel(self.config, table_name, name)

    def _clear_table(self, table_name: str) -> None:
        # Not TRUNCATE: that is DDL, and would commit by itself.
        if getattr(self._plain, 'active', False) and self.config.loading_method != 'snowpipe_streaming':
            self._work(table_name).clears = True
        else:
            self.own.run(f'DELETE FROM {quoted(table_name)}')

    def _delete_runs(self, table_name: str, runs: Sequence[IdRun]) -> int:
        with self.explained(table_name):
            if name_in(TX_ID) not in self.columns(table_name):
                return 0
            return self.own.count(f'DELETE FROM {quoted(table_name)} WHERE {in_runs(quoted(TX_ID), runs)}')

    # Tables

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        wanted = self._wanted(schema)
        with self.explained(table_name):
            present = self.columns(table_name)
            if not present:
                self.own.run(self.create_statement(schema, table_name))
            # The table may be older than its first stream.
            ours = [*map(name_in, STAMP_COLUMNS), *map(name_in, (MARK, MARKED_AT))]
            added = {name: wanted[name] for name in ours if name in wanted and present and name not in present}
            self._add(table_name, added)
            if self.config.preserve_reorg_history and (added or not present):
                show_current(self, table_name)
            if self._has_channels(table_name) and (added or not self.columns(table_name + COMMITTED)):
                self.ensure_streams()
                show_committed(self, table_name)

    def create_statement(self, schema: pa.Schema, table_name: str) -> str:
        """The statement that makes the table. Raises SchemaError."""
        listed = ', '.join(f'{quote(name)} {kind}' for name, kind in self._wanted(schema).items())
        return f'CREATE TABLE IF NOT EXISTS {quoted(table_name)} ({listed})'

    def _wanted(self, schema: pa.Schema) -> dict[str, str]:
        wanted = {name_in(name): landing.column for name, landing in zip(schema.names, landings(schema), strict=True)}
        if self.config.preserve_reorg_history:
            wanted |= {name_in(MARK): 'BOOLEAN', name_in(MARKED_AT): 'TIMESTAMP_NTZ(9)'}
        return wanted

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        with self.explained(table_name):
            present = self.columns(table_name)
        check_fit({name_in(landing.name): landing.column for landing in landings(schema)}, present)
        return [field for field in schema if name_in(field.name) not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        found = landings(pa.schema(list(fields)))
        added = {name_in(landing.name): landing.column for landing in found}
        with self.explained(table_name):
            self._add(table_name, added)
            if self.before_images(table_name) is not None:
                self._add(BEFORE_PREFIX + table_name, added)
            if self.config.preserve_reorg_history:
                show_current(self, table_name)
            if self._has_channels(table_name):
                show_committed(self, table_name)

    def _has_channels(self, table_name: str) -> bool:
        """Whether streams come into the table in a way that commits rows before their unit is done."""
        return self.config.loading_method == 'snowpipe_streaming' and name_in(TX_ID) in self.columns(table_name)

    def _add(self, table_name: str, columns: Mapping[str, str]) -> None:
        for name, kind in columns.items():
            self.own.run(f'ALTER TABLE {quoted(table_name)} ADD COLUMN IF NOT EXISTS {quote(name)} {kind}')

    def columns(self, table_name: str) -> dict[str, str]:
        """Name, as Snowflake keeps it, and type of the columns; empty when there is no table."""
        try:
            rows = self.own.run(f'DESCRIBE TABLE {quoted(table_name)}')
        except errors.ProgrammingError as error:
            if error.errno != _NOT_THERE:
                raise
            return {}
        return {str(row[0]): str(row[1]) for row in rows}

    def before_images(self, table_name: str, *, make: bool = False) -> str | None:
        """The quoted table of rows that streams replaced in `table_name`; None when there is none and none is made."""
        images = BEFORE_PREFIX + table_name
        if make:
            self.own.run(
                f'CREATE TABLE IF NOT EXISTS {quoted(images)} AS SELECT *, CAST(0 AS NUMBER(19,0)) AS '
                f'{quote(REPLACED_BY)} FROM {quoted(table_name)} WHERE FALSE'
            )
            return quoted(images)
        return quoted(images) if self.columns(images) else None

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the schema has the table."""
        with self.explained(table_name):
            return bool(self.columns(table_name))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count and columns of a table; None when it is not there. Rows off the chain do not count."""
        with self.explained(table_name):
            columns = self.columns(table_name)
            if not columns:
                return None
            [(rows,)] = self.own.run(f'SELECT COUNT(*) FROM {quoted(table_name)}{visible(self, table_name, columns)}')
        listed = [name_out(name) for name in columns]
        return {'table_name': table_name, 'row_count': int(rows), 'exists': True, 'columns': listed}

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema in which the user's columns are read; None when the table is not there."""
        with self.explained(table_name):
            columns = self.columns(table_name)
        return read_schema(users_columns(columns)) if columns else None

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows that are on the chain, in no promised order, the user's columns only."""
        with self.explained(table_name):
            columns = present_columns(self, table_name)
            return read_rows(self, table_name, users_columns(columns), visible(self, table_name, columns))

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows of `scan` with amp's own columns; those asked for, where columns lie between two numbers."""
        with self.explained(table_name):
            present = present_columns(self, table_name)
            wanted = present if columns is None else {name_in(c): present[name_in(c)] for c in columns}
            return read_rows(self, table_name, wanted, visible(self, table_name, present, where))

    # Streams

    def streaming_destination(self) -> StreamingDestination:
        """Transactions, or undo by ids for the method that commits by itself."""
        if self.config.loading_method != 'snowpipe_streaming':
            return self
        from amp.loaders.snowflake.channel import ChannelStreams

        return ChannelStreams(self)

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the schema remembers, whichever way it is kept."""
        from amp.loaders.by_id import UndoById

        with self.explained():
            if not self._has_streams():
                return []
            return [*Streams().list(self.own), *UndoById(self, self.documents).list_streams()]

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch, end what an older writer left open, remove what it staged, and read."""
        with self.explained(key.table):
            self.ensure_streams()
            number = Streams().enlist(self.own, key, TRANSACTION)
            found = Streams().epoch(self.own, key)
            if after is not None and found is not None and found[0] != after and found[1] != claim.owner:
                raise Streams().stale(self.own, key, after)
            self._cut_off(number)
            with self.sessions.borrowed() as session:
                session.run('BEGIN')
                try:
                    state, self.saved[key] = Streams().take(session, key, claim, after)
                    session.run('COMMIT')
                except BaseException:  # Ctrl-C too: the session goes back into the pool
                    session.rollback()
                    raise
            reached('open.taken')
            self.remove_staged(f'{number}/')
        return state

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> SnowflakeUnit:
        """A unit; its transaction opens when it commits."""
        return SnowflakeUnit(self, job, state, first_id, undo)

    def refuse_if_taken(self, key: StreamKey, state: StreamState) -> None:
        """Raises StaleEpochError when another process has the stream now; says nothing when that cannot be known."""
        found = None
        with suppress(errors.Error, DestinationError):
            found = Streams().stale(self.own, key, state.epoch)
        if found is not None and found.context.get('epoch') != state.epoch:
            raise found

    def transaction_prefix(self, number: int) -> str:
        """How the names of a stream's transactions begin: nobody else's do, in whatever schema."""
        place = hashlib.sha256(self.config.place.casefold().encode()).hexdigest()[:12]
        return f'amp_{place}_{number}_'

    def ensure_streams(self) -> None:
        """Make `amp_stream_state` when it is not there: it may have been made by somebody with the right to."""
        if not self._has_streams():
            self.own.run(Streams.create())
            self._streams_are_there = True

    def ensure_stage(self) -> None:
        """Make the stage when it is not known to be there."""
        if not self._stage_is_there:
            with self.explained():
                self.own.run(f'CREATE STAGE IF NOT EXISTS {STAGE}')
            self._stage_is_there = True

    def remove_staged(self, folder: str) -> None:
        """Remove the files of a folder of the stage, if there are any; not done, they are only in the way."""
        with suppress(errors.Error, DestinationError):
            self.own.run(f'REMOVE @{STAGE}/{folder}')

    @property
    def documents(self) -> SnowflakeDocuments:
        """The streams that are undone by ids."""
        return SnowflakeDocuments(self.own, Streams())

    def _has_streams(self) -> bool:
        if not self._streams_are_there:
            self._streams_are_there = bool(self.columns(TABLE))
        return self._streams_are_there

    def uncommitted(self, table_name: str) -> list[IdRun]:
        """Runs of ids whose rows, where there are any, belong to no unit of a channel that is done."""
        from amp.loaders.by_id import UndoById

        return UndoById(self, self.documents).uncommitted(table_name) if self._has_streams() else []

    def _cut_off(self, number: int) -> None:
        """End the transactions of this stream that are still open: their epoch is over, or their client is."""
        prefix = self.transaction_prefix(number)
        for open_one in self.own.named('SHOW TRANSACTIONS'):
            if str(open_one['name']).lower().startswith(prefix):
                self.own.run(f'SELECT SYSTEM$ABORT_TRANSACTION({int(open_one["id"])})')

    def _metadata_of_place(self) -> dict[str, Any]:
        return {**super()._metadata_of_place(), 'connection_pool_size': self.config.pool_size}
