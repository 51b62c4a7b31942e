"""ClickHouse: a server over HTTP, or the engine in this process. Streams are undone by ids that are never used twice.

There are no transactions, so nothing is replaced in place: rows are only added, and what does not count (rows of a unit
that is not finished, older rows of a key) is left out when rows are read, and deleted when it can be. A plain load goes
through a table beside, whose parts become the table's own at one moment.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, ClassVar

import pyarrow as pa

from amp.config.urls import config_from_url
from amp.errors import ConfigError, DestinationError
from amp.loaders.base import DataLoader
from amp.loaders.clickhouse.documents import ClickHouseDocuments
from amp.loaders.clickhouse.session import ClickHouseConfig, Session, is_transient, literal, quote
from amp.loaders.clickhouse.tables import ClickHouseTables, Table, create_statement
from amp.loaders.clickhouse.types import VERSION, Column, read_schema, select_list
from amp.loaders.clickhouse.unit import ClickHouseStreams, Inserter, Versions
from amp.loaders.sql import in_runs
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.loaders.types import LoadMode
from amp.streaming.ledger import IdRun, StreamState

__all__ = ['ClickHouseConfig', 'ClickHouseLoader']

_STAGE = '_amp_stage_'
_NO_MERGES = 'max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1'
_TLS_PORT = 8443
_MOST_LOOKS = 20


class ClickHouseLoader(DataLoader[ClickHouseConfig]):
    """Loads into ClickHouse: append, overwrite, upsert by key, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = False
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('host', 'database', 'path')

    _session: Session | None = None
    tables: ClickHouseTables

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        given = dict(config)
        url = str(given.get('url', ''))
        if url.partition('://')[0].lower() == 'clickhouse+chdb':
            del given['url']
            given = {'interface': 'chdb', **config_from_url(url, ClickHouseConfig, 'path'), **given}
        self._overwriting = False
        self._replace: str | None = None
        super().__init__(given, label_manager)

    def _parse_config(self, config: dict[str, Any]) -> ClickHouseConfig:
        given = {('username' if key == 'user' else key): value for key, value in config.items()}
        if given.get('interface') == 'https':
            given['secure'] = True
        if given.get('secure') and 'port' not in given:
            given['port'] = _TLS_PORT
        parsed = super()._parse_config(given)
        if parsed.interface not in {None, 'chdb', 'http', 'https'}:
            raise ConfigError(
                f'there is no interface {parsed.interface!r}', hint="'http', 'https', or 'chdb' with path"
            )
        wanted = 'path' if parsed.is_embedded else 'host'
        if not getattr(parsed, wanted):
            raise ConfigError(f'clickhouse needs the configuration key {wanted!r}')
        return parsed

    @property
    def session(self) -> Session:
        """The connection. Raises DestinationError when there is none."""
        if self._session is None:
            raise DestinationError('ClickHouse is not connected', hint='call connect() or use `with loader:`')
        return self._session

    def connect(self) -> None:
        """Connect, or open the folder. Raises DestinationError."""
        self._session = Session(self.config)
        self.tables = ClickHouseTables(self._session)
        self._documents = ClickHouseDocuments(self._session)
        self._versions = Versions(self._session)
        self._commits = 0
        self._is_connected = True

    def disconnect(self) -> None:
        """Close it."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self._is_connected = False

    def is_transient(self, error: Exception) -> bool:
        """By ClickHouse's code; an error without one is the connection's."""
        return is_transient(error)

    # Plain loads

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._overwriting = True
        try:
            yield
        finally:
            self._overwriting, self._replace = False, None

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        table = self.tables.find(table_name)
        if table is None:
            self.tables.create(schema, table_name)
        else:
            stamps = [f for f in schema if f.name in STAMP_COLUMNS and f.name not in table.columns]
            if not stamps:
                return
            self.tables.add_columns(stamps, table_name)
        if TX_ID in schema.names:
            self._documents.create()
            self.tables.show_committed(self.tables.get(table_name))

    def create_statement(self, schema: pa.Schema, table_name: str) -> str:
        """The statement that makes the table. Raises SchemaError."""
        table = quote(self.config.database, table_name)
        return create_statement(schema, table, durable=self.config.durable)

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        present = self.tables.get(table_name).columns
        return [field for field in schema if field.name not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        self.tables.add_columns(fields, table_name)
        table = self.tables.get(table_name)
        if TX_ID in table.columns:
            self.tables.show_committed(table)

    def _clear_table(self, table_name: str) -> None:
        table = self.tables.get(table_name)
        if self._overwriting and table.swaps_parts:
            # The rows that come take the place of those that are there at one moment, when all have come.
            self._replace = table_name
        else:
            self.session.do(f'TRUNCATE TABLE {table.quoted}')

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        return self._load_reader_impl(reader, table_name, **kwargs)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        inserter = self.inserter(table_name, kwargs.get('key_columns') or ())
        table = inserter.table
        replace = self._replace == table_name
        rows = 0
        for batch in reader:
            rows += inserter.add(batch)
            if inserter.is_full:
                break
        if table.swaps_parts and (replace or inserter.is_full):
            with self._stage(table) as stage:
                inserter.into = stage
                rows += self._drain(reader, inserter)
                self.session.do(_take_over(table.quoted, stage, rows, replace))
        else:
            rows += self._drain(reader, inserter)
        if table.keys is not None:
            self.clean(table, IdRun(0, 0))
        return rows

    def _drain(self, reader: pa.RecordBatchReader, inserter: Inserter) -> int:
        rows = 0
        for batch in reader:
            if inserter.is_full:
                inserter.flush()
            rows += inserter.add(batch)
        inserter.flush()
        return rows

    @contextmanager
    def _stage(self, table: Table) -> Iterator[str]:
        """The quoted name of an empty table like `table`; what a dead process left of an older day goes."""
        old = self.session.run(
            f'SELECT name FROM system.tables WHERE database = {literal(self.config.database)} AND '
            f'startsWith(name, {literal(_STAGE)}) AND metadata_modification_time < now() - INTERVAL 1 DAY'
        )
        for (name,) in old:
            self.session.do(f'DROP TABLE IF EXISTS {self.tables.quoted(name)}')
        stage = self.tables.quoted(_STAGE + secrets.token_hex(8))
        self.session.do(f'CREATE TABLE {stage} AS {table.quoted}')
        try:
            # Parts are merged where they stay: here a merge would only be waited for.
            self.session.do(f'ALTER TABLE {stage} MODIFY SETTING {_NO_MERGES}')
            yield stage
        except BaseException:
            # The first error is the one to tell.
            with suppress(DestinationError):
                self.session.do(f'DROP TABLE IF EXISTS {stage} SYNC')
            raise
        self.session.do(f'DROP TABLE IF EXISTS {stage} SYNC')

    # What units use

    def inserter(self, table_name: str, key_columns: Sequence[str] = ()) -> Inserter:
        """A way for rows into a table as it is now; by key, the newest row of a key is the one that shows."""
        table = self.tables.get(table_name)
        if key_columns:
            table = self.tables.key_by(table, key_columns)
        elif table.keys is not None:
            raise DestinationError(
                f'rows of {table_name!r} replace each other by {", ".join(table.keys)}',
                hint='load with mode=upsert and those key_columns, or into another table',
            )
        return Inserter(self.session, table, table.quoted, self._versions, self._scope)

    def clean_now_and_then(self, table_name: str, state: StreamState, every: int) -> None:
        """Each so many commits, delete the rows of a stream that newer ones of its final rows have replaced."""
        self._commits += 1
        if self._commits % every == 0:
            self.clean(self.tables.get(table_name), IdRun(state.interval.first, state.window_first_id() - 1))

    def clean(self, table: Table, run: IdRun) -> None:
        """Delete rows with ids in `run` that newer rows of the same run have replaced."""
        if table.keys is None or (TX_ID not in table.columns and run != IdRun(0, 0)):
            return
        inside = in_runs(quote(TX_ID), [run]) if TX_ID in table.columns else 'true'
        keys = ', '.join(quote(key) for key in table.keys)
        newest = f'SELECT max({quote(VERSION)}) FROM {table.quoted} WHERE {inside} GROUP BY {keys}'
        # A version is that of one row only, within a stream as among plain loads.
        where = f'{inside} AND {quote(VERSION)} NOT IN ({newest})'
        if self.session.run(f'SELECT 1 FROM {table.quoted} WHERE {where} LIMIT 1'):
            self.session.do(f'DELETE FROM {table.quoted} WHERE {where}')

    @property
    def _scope(self) -> str:
        """What the inserts of streams into this database are marked with on the server."""
        return f'amp {hashlib.sha256(self.config.database.encode()).hexdigest()[:12]}'

    def _delete_runs(self, table_name: str, runs: Sequence[IdRun]) -> int:
        table = self.tables.find(table_name)
        return 0 if table is None else self.tables.delete_runs(table, runs, self._scope)

    def _read_state(self, key: str) -> str | None:
        return self._documents.read(key)

    def _write_state(self, key: str, text: str, expected: str | None) -> bool:
        return self._documents.write(key, text, expected)

    def streaming_destination(self) -> ClickHouseStreams:
        """Undo by id."""
        from amp.loaders.by_id import _OwnDocuments

        return ClickHouseStreams(self, _OwnDocuments(self))

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the database has the table."""
        return self.tables.find(table_name) is not None

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, number of the rows that `scan` shows, columns and bytes on disk; None when the table is not there."""
        table = self.tables.find(table_name)
        if table is None:
            return None
        [[rows]] = self.session.run(f'SELECT count() FROM ({table.rows(self._hidden(table))})')
        [[size]] = self.session.run(
            f'SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = {literal(self.config.database)} '
            f'AND table = {literal(table_name)}'
        )
        return {
            'table_name': table_name,
            'row_count': int(rows),
            'exists': True,
            'columns': [name for name in table.columns if name != VERSION],
            'size_bytes': int(size),
        }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema in which the user's columns are read; None when the table is not there."""
        table = self.tables.find(table_name)
        return None if table is None else read_schema(table.users)

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows, in no promised order, the user's columns only."""
        table = self.tables.get(table_name)
        return self._read(table, table.users)

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        table = self.tables.get(table_name)
        wanted = [c for c in table.columns.values() if c.name != VERSION]
        if columns is not None:
            wanted = [table.columns[name] for name in columns]
        return self._read(table, wanted, where)

    def _read(
        self, table: Table, columns: Sequence[Column], where: Mapping[str, tuple[int, int]] | None = None
    ) -> pa.RecordBatchReader:
        schema = read_schema(columns)
        kept = ' AND '.join(f'{quote(c)} BETWEEN {low:d} AND {high:d}' for c, (low, high) in (where or {}).items())
        for _ in range(_MOST_LOOKS):
            hidden = self._hidden(table)
            rows = f'SELECT * FROM ({table.rows(hidden)}) WHERE {kept}' if kept else table.rows(hidden)
            batches = self.session.stream(f'SELECT {select_list(columns)} FROM ({rows})')
            first = next(batches, None)
            # The server reads what was there when it began; nothing may have been taken back since we asked.
            if self._hidden(table) == hidden:
                break
            batches.close()
        found = chain([first], batches) if first is not None else iter(())
        return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in found))

    def _hidden(self, table: Table) -> str:
        if TX_ID not in table.columns:
            return ''
        runs = self.streaming_destination().uncommitted(table.name)
        return in_runs(quote(TX_ID), runs) if runs else ''


def _take_over(table: str, stage: str, rows: int, replace: bool) -> str:
    """The statement by which the rows of `stage` become those of `table`, all at one moment."""
    if not replace:
        return f'ALTER TABLE {stage} MOVE PARTITION tuple() TO TABLE {table}'
    return f'ALTER TABLE {table} REPLACE PARTITION tuple() FROM {stage}' if rows else f'TRUNCATE TABLE {table}'
