"""Delta Lake: tables in a folder or an object store, by delta-rs. Undo, rows and state are one commit of the log.

A plain load is one commit too. The log's protocol for streams is in `deltalog/log.py`, a unit in `delta/unit.py`, the way
of the rows in `delta/rows.py`, and what keeps the number of files bounded in `delta/compact.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from amp.config.urls import config_from_place
from amp.errors import AmpError, ConfigError, DestinationError, LoadError
from amp.loaders.base import DataLoader
from amp.loaders.delta.compact import TARGET_SIZE, TIER_FILES, compact
from amp.loaders.delta.rows import Fitting, newest_by_key, writer_properties
from amp.loaders.delta.tables import DeltaTables, user_columns
from amp.loaders.delta.unit import DeltaUnit
from amp.loaders.deltalog.columns import arrow_schema
from amp.loaders.deltalog.errors import explained, is_transient, uses_delta
from amp.loaders.deltalog.files import Files
from amp.loaders.deltalog.log import FOLDER, DeltaLog, commit_properties
from amp.loaders.feed import Feed
from amp.loaders.options import partition_columns
from amp.loaders.sql import quote
from amp.loaders.stamps import STAMP_COLUMNS, stamped_schema
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import IdRun, StreamKey, StreamState, Undo

__all__ = ['DeltaLakeLoader', 'DeltaLakeStorageConfig']

_MOST_TRIES = 50
_STORAGE_PREFIXES = ('aws_', 'azure_', 'google_', 'allow_http')


@dataclass(frozen=True)
class DeltaLakeStorageConfig:
    """`root`: a folder of tables, one sub-folder each; or `table_path`: the one table it writes. Paths or `s3://` URLs.

    `storage_options` are delta-rs's (`AWS_ENDPOINT_URL`, ...). `partition_by` applies to tables that are made. Every
    `maintenance_commits` commits of a table its small files are compacted (`optimize_after_write`) and what no version
    needs is deleted (`vacuum_after_write`).
    """

    root: str | None = None
    table_path: str | None = None
    partition_by: tuple[str, ...] = ()
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    optimize_after_write: bool = False
    vacuum_after_write: bool = False
    maintenance_commits: int = 64


class DeltaLakeLoader(DataLoader[DeltaLakeStorageConfig]):
    """Loads into Delta tables: append, overwrite, upsert by key, exactly-once streams."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    STREAM_MODES: ClassVar[frozenset[LoadMode] | None] = frozenset({LoadMode.APPEND, LoadMode.OVERWRITE})
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('root', 'table_path')
    URL_PATH_KEY: ClassVar[str | None] = 'root'

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        self._logs: dict[str, DeltaLog] = {}
        super().__init__(_without_url(config), label_manager)
        chosen = self.config
        self._tables = DeltaTables(chosen.root, chosen.table_path, chosen.storage_options, chosen.partition_by)

    def _parse_config(self, config: dict[str, Any]) -> DeltaLakeStorageConfig:
        partition_by = partition_columns(config.get('partition_by'))
        parsed = super()._parse_config({**config, 'partition_by': partition_by})
        if (parsed.root is None) == (parsed.table_path is None):
            raise ConfigError('deltalake needs the configuration key root or table_path, and not both')
        if parsed.maintenance_commits < 1:
            raise ConfigError(f'maintenance_commits is a number of commits, not {parsed.maintenance_commits}')
        return parsed

    def connect(self) -> None:
        """Make the local folder, if it is one. Raises DestinationError."""
        uses_delta()
        place = self._tables.place
        if '://' not in place:
            with explained(place):
                Path(place).mkdir(parents=True, exist_ok=True)
        self._is_connected = True

    def disconnect(self) -> None:
        """Forget the streams that were held."""
        self._logs.clear()
        self._is_connected = False

    def place_of(self, table_name: str) -> str:
        """Path or URL of a table."""
        return self._tables.place_of(table_name)

    def open_table(self, table_name: str) -> DeltaTable:
        """The newest version of a table, for the caller's own questions. Raises LoadError when it is not there."""
        return self._tables.open(table_name)

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
        with explained(self.place_of(table_name)):
            self.open_table(table_name).delete(commit_properties=commit_properties())

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        return self._load_reader_impl(reader, table_name, **kwargs)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        table = self.open_table(table_name)
        before = table.version()
        fitting = Fitting(reader.schema, table, table_name)
        if kwargs.get('key_columns') and kwargs.get('mode') in {LoadMode.UPSERT, LoadMode.MERGE}:
            self._merge(reader, fitting, table_name, kwargs['key_columns'])
            return fitting.rows
        mode: Any = 'overwrite' if kwargs.get('mode') is LoadMode.OVERWRITE else 'append'

        def write(rows: pa.RecordBatchReader) -> int:
            properties = writer_properties(fitting.schema)
            write_deltalake(table, rows, mode=mode, writer_properties=properties, commit_properties=commit_properties())
            return 0

        try:
            with explained(self.place_of(table_name)):
                # Types are changed here while the write runs beside.
                Feed(fitting.schema, write).push_all(map(fitting.batch, reader))
        except DestinationError as error:
            # A conflict is an answer; what a network lost may have been one.
            self._in_doubt = error.__cause__ is not None and not isinstance(error.__cause__, CommitFailedError)
            raise
        self._maintain(table_name, before, table.version())
        return fitting.rows

    def _merge(self, reader: pa.RecordBatchReader, fitting: Fitting, table_name: str, keys: Sequence[str]) -> None:
        """Put rows in the place of those with the same keys, in one commit; again when others change the table."""
        rows = pa.Table.from_batches([fitting.batch(batch) for batch in reader], fitting.schema)
        keys = list(dict.fromkeys(_own_name(fitting.schema, key) for key in keys))
        rows = newest_by_key(rows, keys, table_name)
        values = {quote(name): f'source.{quote(name)}' for name in rows.schema.names}
        same = ' AND '.join(f'target.{quote(k)} = source.{quote(k)}' for k in keys)
        with explained(self.place_of(table_name)):
            for left in reversed(range(_MOST_TRIES)):
                table = self.open_table(table_name)
                before = table.version()
                merger = table.merge(
                    rows, same, 'source', 'target', streamed_exec=False, commit_properties=commit_properties()
                )
                try:
                    merger.when_matched_update(values).when_not_matched_insert(values).execute()
                except CommitFailedError:
                    if not left:
                        raise
                    continue
                self._maintain(table_name, before, table.version())
                return

    def is_transient(self, error: Exception) -> bool:
        """True for a conflict with another commit, and for what a network may have done to an object store."""
        return is_transient(error, self._tables.place)

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the table is there and has columns of a user."""
        table = self._tables.find(table_name)
        return table is not None and bool(user_columns(table))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count, columns, bytes, files and version of a table; None when it is not there."""
        table = self._tables.find(table_name)
        if table is None or not user_columns(table):
            return None
        files = pa.table(table.get_add_actions())
        return {
            'table_name': table_name,
            'row_count': table.count(),
            'exists': True,
            'columns': arrow_schema(table).names,
            'size_bytes': sum(files['size_bytes'].to_numpy().tolist()),
            'files': files.num_rows,
            'version': table.version(),
            'location': self.place_of(table_name),
        }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        table = self._tables.find(table_name)
        if table is None or not user_columns(table):
            return None
        return pa.schema([f for f in arrow_schema(table) if f.name not in STAMP_COLUMNS])

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The rows of the newest version, in no promised order, the user's columns only."""
        table = self.open_table(table_name)
        columns = user_columns(table)
        if not columns:
            raise LoadError(f'the table {table_name!r} has no rows yet, and no columns', table=table_name)
        return self._read(table, table_name, columns)

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        table = self.open_table(table_name)
        wanted = list(columns) if columns is not None else arrow_schema(table).names
        parts = [f'{quote(c)} >= {low:d} AND {quote(c)} <= {high:d}' for c, (low, high) in (where or {}).items()]
        return self._read(table, table_name, wanted, ' AND '.join(parts) or None)

    def _read(
        self, table: DeltaTable, table_name: str, columns: list[str], predicate: str | None = None
    ) -> pa.RecordBatchReader:
        known = arrow_schema(table)
        schema = pa.schema([known.field(name) for name in columns])
        with explained(self.place_of(table_name)):
            found = pa.RecordBatchReader.from_stream(table.scan(columns=columns, predicate=predicate))
        return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in found))

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the tables under the root remember."""
        return [info for place in self._tables.places() for info in self._streams_at(place)]

    def _streams_at(self, place: str) -> list[StreamInfo]:
        with explained(place):
            if FOLDER not in Files(place, self.config.storage_options).folders():
                return []
        return DeltaLog(place, self.config.storage_options).streams()

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream and read what is committed.

        A table that is not there yet is made with the two columns of amp alone; its rows bring the others.
        """
        self._tables.make(key.table, stamped_schema(pa.schema([])))
        return self._log(key.table).take(key, claim, after)

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> DeltaUnit:
        """Open a unit: one write through the handle from which the state was read."""
        name = job.key.table
        commit = self._log(name).begin(job.key, state)
        return DeltaUnit(commit, self.place_of(name), name, first_id, undo, partial(self._maintain, name))

    def _log(self, table_name: str) -> DeltaLog:
        place = self.place_of(table_name)
        return self._logs.setdefault(place, DeltaLog(place, self.config.storage_options))

    # Looking after files

    def optimize(self, table_name: str, target_size: int = TARGET_SIZE) -> dict[str, int]:
        """Join the small files of a table whose rows are final: `files_removed`, `files_added`.

        Files with rows that a reorg may still take back stay as they are; so a reorg rewrites small files only.
        """
        return self._join_files(table_name, 2, target_size)

    def vacuum(self, table_name: str, retention_hours: int | None = None, dry_run: bool = False) -> list[str]:
        """Delete files that no version of the last `retention_hours` (None: the table's, a week) needs; their paths.

        Raises DestinationError for less than the retention of the table: readers and writers at work need those files.
        """
        with explained(self.place_of(table_name)):
            return self.open_table(table_name).vacuum(retention_hours, dry_run=dry_run)

    def _join_files(self, table_name: str, least: int, target_size: int = TARGET_SIZE) -> dict[str, int]:
        place = self.place_of(table_name)
        open_runs = [IdRun(info.state.window_first_id(), info.state.interval.last) for info in self._streams_at(place)]
        with explained(place):
            files = Files(place, self.config.storage_options)
            removed, added = compact(self.open_table(table_name), files, open_runs, least, target_size)
        return {'files_removed': removed, 'files_added': added}

    def _maintain(self, table_name: str, before: int, after: int) -> None:
        """What is due when the version of a table went from `before` to `after`. It never fails a load."""
        every = self.config.maintenance_commits
        if before // every == after // every:
            return
        try:
            if self.config.optimize_after_write:
                self._join_files(table_name, TIER_FILES)
            if self.config.vacuum_after_write:
                self.vacuum(table_name)
        except AmpError as error:
            self.logger.warning('looking after the files of %s failed: %s', table_name, error)


def _own_name(schema: pa.Schema, name: str) -> str:
    """The column of the table that a caller means."""
    return next((own for own in schema.names if own.casefold() == name.casefold()), name)


def _without_url(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a URL spelled out: `deltalake:///dir`, `deltalake+s3://bucket/prefix`.

    In its query, keys of an object store (`AWS_ENDPOINT_URL=...`) are storage options, all others configuration keys.
    """
    given = dict(config)
    if 'url' not in given:
        return given
    url, _, query = str(given.pop('url')).partition('?')
    pairs = parse_qsl(query)
    storage = {key: value for key, value in pairs if key.lower().startswith(_STORAGE_PREFIXES)}
    kept = urlencode([(key, value) for key, value in pairs if key not in storage])
    spelled = config_from_place(f'{url}?{kept}', DeltaLakeStorageConfig, 'root')
    if 'table_path' in {**spelled, **given}:
        del spelled['root']
    if storage:
        spelled['storage_options'] = {**storage, **given.pop('storage_options', {})}
    return {**spelled, **given}
