"""Parquet: tables of the columnar store `amplify_db_utils`, in a folder or on S3. Undo, rows and state are one commit.

The store's log is a Delta log, and streams lie in it as `deltalog/log.py` has them. Tables are made by the
store (`parquet/tables.py`), rows take its types (`parquet/rows.py`), and a unit is in `parquet/unit.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
from deltalake.transaction import AddAction

from amp.config.urls import config_from_place
from amp.errors import AmpError, ConfigError, LoadError
from amp.loaders.base import DataLoader
from amp.loaders.deltalog.errors import is_transient
from amp.loaders.deltalog.log import DeltaLog
from amp.loaders.feed import Feed
from amp.loaders.options import partition_columns
from amp.loaders.parquet.errors import told
from amp.loaders.parquet.rows import Fitting, write_files
from amp.loaders.parquet.tables import ParquetTables, user_columns
from amp.loaders.parquet.unit import ParquetUnit, every_file
from amp.loaders.stamps import stamped_schema
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo
from amplify_db_utils import CommitConflict, DamagedData, DuckDBParquetConfig, DuckDBParquetStore
from amplify_db_utils.log import TableLog

__all__ = ['ParquetConfig', 'ParquetLoader']


@dataclass(frozen=True)
class ParquetConfig:
    """`root`: a folder, or `s3://bucket/prefix`; `partition_by` applies to tables that are made.

    The others are those of the columnar store: `s3_endpoint` (`host:port` or a URL, for servers other than AWS), the
    two keys (without them the usual AWS environment is asked), `s3_use_ssl`, `s3_region`, and `threads` that write.
    Every `maintenance_commits` commits of a table its small files are joined (`optimize_after_write`) and what no version
    of the last week needs is deleted (`vacuum_after_write`).
    """

    root: str
    partition_by: tuple[str, ...] = ()
    s3_endpoint: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: str | None = field(default=None, repr=False)
    s3_use_ssl: bool = True
    s3_region: str | None = None
    threads: int | None = None
    optimize_after_write: bool = False
    vacuum_after_write: bool = False
    maintenance_commits: int = 64


class ParquetLoader(DataLoader[ParquetConfig]):
    """Loads into tables of the columnar store: append, overwrite, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = {LoadMode.APPEND, LoadMode.OVERWRITE}
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('root',)
    URL_PATH_KEY: ClassVar[str | None] = 'root'

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        self._opened: ParquetTables | None = None
        self._logs: dict[str, DeltaLog] = {}
        given = dict(config)
        if 'url' in given:
            given = {**config_from_place(str(given.pop('url')), ParquetConfig, 'root'), **given}
        super().__init__(given, label_manager)

    def _get_required_config_fields(self) -> list[str]:
        return ['root']

    def _parse_config(self, config: dict[str, Any]) -> ParquetConfig:
        partition_by = partition_columns(config.get('partition_by'))
        parsed = super()._parse_config({**config, 'partition_by': partition_by})
        if parsed.maintenance_commits < 1:
            raise ConfigError(f'maintenance_commits is a number of commits, not {parsed.maintenance_commits}')
        _of_the_store(parsed)
        return parsed

    def connect(self) -> None:
        """Open the store. Raises DestinationError or ConfigError."""
        with told(str(self.config.root)):
            try:
                self._opened = ParquetTables(_of_the_store(self.config), self.config.partition_by)
            except ValueError as error:
                raise ConfigError(f'the root of parquet does not fit: {error}') from error
        self._is_connected = True

    def disconnect(self) -> None:
        """Close the store and forget the streams that were held."""
        if self._opened is not None:
            self._opened.store.close()
            self._opened = None
        self._logs.clear()
        self._is_connected = False

    @property
    def store(self) -> DuckDBParquetStore:
        """The columnar store itself, for the caller's own questions; open while the loader is connected."""
        return self._tables.store

    def place_of(self, table_name: str) -> str:
        """Path or URL of a table."""
        return self._tables.place_of(table_name)

    @property
    def _tables(self) -> ParquetTables:
        self._ensure_connected()
        assert self._opened is not None  # noqa: S101 - `connect` has opened it
        return self._opened

    # Plain loads

    def _prepare(self, schema: pa.Schema, table_name: str, options: Any) -> None:
        # Nothing is cleared: an overwrite replaces the rows in the commit that brings the new ones.
        self.prepare_table(schema, table_name, options.create_table, options.schema_evolution)

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        self._tables.make(table_name, schema)

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        return self._tables.missing(table_name, schema)

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        self._tables.add(table_name, fields)

    def _clear_table(self, table_name: str) -> None:
        self._tables.open(table_name)
        with told(self.place_of(table_name)):
            self._tables.log(table_name).commit([], every_file)

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        return self._load_reader_impl(reader, table_name, **kwargs)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        overwrite = kwargs.get('mode') is LoadMode.OVERWRITE
        snapshot = self._tables.open(table_name)
        with told(self.place_of(table_name)):
            fitting = Fitting(reader.schema, snapshot, table_name)
            with self.store.stage(table_name) as staging:
                # Types are changed here while files are written beside.
                feed = Feed(fitting.stored, partial(write_files, staging))
                feed.push_all(map(fitting.batch, reader))
                staging.keep()
                log = self._tables.log(table_name)
                if staging.adds or overwrite:
                    self._commit(log, staging.adds, overwrite)
        self._maintain(table_name, snapshot.version, log.table.version())
        return fitting.rows

    def _commit(self, log: TableLog, adds: Sequence[AddAction], overwrite: bool) -> None:
        # A conflict is an answer; what a network lost may have been one.
        self._in_doubt = True
        try:
            log.commit(adds, every_file if overwrite else None)
        except CommitConflict:
            self._in_doubt = False
            raise
        self._in_doubt = False

    def is_transient(self, error: Exception) -> bool:
        """True for a conflict with another commit, and for what a network may have done to an object store."""
        if isinstance(error, DamagedData):
            return False
        return isinstance(error, CommitConflict) or is_transient(error, str(self.config.root))

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the table is there and has columns of a user."""
        schema = self._schema(table_name)
        return schema is not None and bool(user_columns(schema))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count, columns, bytes, files and version of a table; None when it is not there."""
        if not self.table_exists(table_name):
            return None
        snapshot, place = self._tables.open(table_name), self.place_of(table_name)
        with told(place):
            rows = self.store.count(table_name)
        return {
            'table_name': table_name,
            'row_count': rows,
            'exists': True,
            'columns': snapshot.schema.names,
            'size_bytes': sum(snapshot.files['size'].to_numpy().tolist()),
            'files': snapshot.files.num_rows,
            'version': snapshot.version,
            'location': place,
        }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        schema = self._schema(table_name)
        columns = [] if schema is None else user_columns(schema)
        return pa.schema([schema.field(name) for name in columns]) if schema is not None and columns else None

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The rows of the newest version, in no promised order, the user's columns only, in the declared types."""
        schema = self._known(table_name)
        columns = user_columns(schema)
        if not columns:
            raise LoadError(f'the table {table_name!r} has no rows yet, and no columns', table=table_name)
        return self._read(table_name, schema, columns, {})

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        schema = self._known(table_name)
        wanted = list(columns) if columns is not None else schema.names
        return self._read(table_name, schema, wanted, where or {})

    def _read(
        self, table_name: str, schema: pa.Schema, columns: list[str], where: Mapping[str, tuple[int, int]]
    ) -> pa.RecordBatchReader:
        place = self.place_of(table_name)
        with told(place):
            found = self.store.read_batches(
                table_name, {name: {'gte': low, 'lte': high} for name, (low, high) in where.items()}, columns
            )

        def batches() -> Any:
            with told(place):
                yield from found

        return pa.RecordBatchReader.from_batches(pa.schema([schema.field(name) for name in columns]), batches())

    def _schema(self, table_name: str) -> pa.Schema | None:
        self._tables.log(table_name)
        with told(self.place_of(table_name)):
            try:
                return self.store.get_schema(table_name)
            except KeyError:
                return None

    def _known(self, table_name: str) -> pa.Schema:
        schema = self._schema(table_name)
        if schema is None:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        return schema

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the tables under the root remember."""
        tables = self._tables
        with told(str(self.config.root)):
            names = tables.store.tables()
        return [info for name in names if tables.has_streams(name) for info in tables.streams_of(name).streams()]

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream and read what is committed.

        A table that is not there yet is made with the two columns of amp alone; its rows bring the others.
        """
        self._tables.make(key.table, stamped_schema(pa.schema([])))
        if key.table not in self._logs:
            self._logs[key.table] = self._tables.streams_of(key.table)
        return self._logs[key.table].take(key, claim, after)

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> ParquetUnit:
        """Open a unit: files that one commit will name."""
        del first_id
        name = job.key.table
        if name not in self._logs:
            self._logs[name] = self._tables.streams_of(name)
        log = self._tables.log(name)
        with told(self.place_of(name)):
            log.snapshot()
        commit = self._logs[name].begin(job.key, state, log.table)
        return ParquetUnit(commit, self.store, self.place_of(name), name, undo, partial(self._maintain, name))

    # Looking after files

    def optimize(self, table_name: str, target_size: int = 128 * 1024**2) -> int:
        """Join the small files of each partition; how many went. Beside readers and writers; a reorg still undoes."""
        self._known(table_name)
        with told(self.place_of(table_name)):
            return self.store.compact(table_name, target_size)

    def vacuum(self, table_name: str, retention_hours: float = 168.0) -> list[str]:
        """Delete the files that were not part of the table in the last hours; their paths. States are never touched."""
        self._known(table_name)
        with told(self.place_of(table_name)):
            return self.store.vacuum(table_name, retention_hours)

    def _maintain(self, table_name: str, before: int, after: int) -> None:
        """What is due when the version of a table went from `before` to `after`. It never fails a load."""
        every = self.config.maintenance_commits
        if before // every == after // every:
            return
        try:
            if self.config.optimize_after_write:
                self.optimize(table_name)
            if self.config.vacuum_after_write:
                self.vacuum(table_name)
        except AmpError as error:
            self.logger.warning('looking after the files of %s failed: %s', table_name, error)


def _of_the_store(config: ParquetConfig) -> DuckDBParquetConfig:
    try:
        return DuckDBParquetConfig(
            root=config.root,
            s3_endpoint=config.s3_endpoint,
            s3_access_key=config.s3_access_key,
            s3_secret_key=config.s3_secret_key,
            s3_use_ssl=config.s3_use_ssl,
            s3_region=config.s3_region,
            threads=config.threads,
        )
    except ValueError as error:
        raise ConfigError(f'the configuration of parquet does not fit: {error}') from error
