"""The DuckDB + Parquet backend: plain Parquet in hive directories, a Delta log over them, Arrow and DuckDB to read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from amplify_db_utils import adopt, filters, maintenance, names, registry, rows
from amplify_db_utils.base import ColumnarStore, Filters, Records, Select, TableSchema
from amplify_db_utils.config import DuckDBParquetConfig
from amplify_db_utils.engine import Engine
from amplify_db_utils.errors import BadFilter, SchemaConflict, TableNotFound
from amplify_db_utils.files import Staging
from amplify_db_utils.log import Snapshot, TableLog
from amplify_db_utils.records import as_table
from amplify_db_utils.scan import Scan
from amplify_db_utils.schema import additions, check_new, loosened, to_arrow_schema
from amplify_db_utils.storage import open_storage


class DuckDBParquetStore(ColumnarStore):
    """Tables under one root, on a disk or on S3, with no server. Many processes and threads may read and write.

    Every call sees the tables as they are at that moment, and a read keeps to that version to its end.
    """

    def __init__(self, config: DuckDBParquetConfig) -> None:
        self.config = config
        self._storage = open_storage(config)
        self._engine = Engine(config.threads)
        self._logs: dict[str, TableLog] = {}
        self._registered: dict[str, tuple[pa.Schema, list[str]]] = {}

    # -- tables ---------------------------------------------------------------------------------------------------

    def create_table(self, table: str, schema: TableSchema, partition_by: Sequence[str] | None = None) -> None:
        """Make the table, or add the nullable columns it lacks; a directory of Parquet that is there becomes its data."""
        wanted, keys = _declaration(schema, partition_by)
        log = self.log(table)
        if log.exists() or not self._begin(table, wanted, keys):
            _evolve(log, table, wanted, keys)
        self._registered.pop(table, None)
        self._publish(table)

    def register_table(self, table: str, schema: TableSchema, partition_by: Sequence[str] | None = None) -> None:
        """Make the table known to this handle, writing nothing: a directory of Parquet is read as it is.

        The first write begins its log, or adds the columns that it lacks.
        """
        wanted, keys = _declaration(schema, partition_by)
        self._registered.pop(table, None)
        try:
            current = self._snapshot(table)
        except TableNotFound:
            adopt.hive_snapshot(self._storage, names.table_directory(table), wanted, keys)
        else:
            _check_keys(table, list(current.partition_by), keys)
            wanted = pa.schema([*current.schema, *additions(table, current.schema, wanted)])
        self._registered[table] = wanted, keys

    def get_schema(self, table: str) -> pa.Schema:
        """The declared columns, in order."""
        return self._snapshot(table).schema

    def tables(self) -> list[str]:
        """The names of all tables of the store, with those in the registry only and those registered here."""
        logged = (name for name, log in self._all_logs().items() if log.exists())
        return sorted({*logged, *registry.load(self._storage), *self._registered})

    def registered(self) -> dict[str, tuple[pa.Schema, list[str]]]:
        """What `_registry/tables.json` says: the schema and partition keys of each table."""
        entries = registry.load(self._storage)
        return {name: registry.parse_entry(name, found) for name, found in entries.items()}

    # -- writing --------------------------------------------------------------------------------------------------

    def write(self, table: str, records: Records, overwrite: bool = False) -> None:
        """Append the records, or replace every partition that occurs in them (without partitions: the table).

        A list of dicts, an Arrow table or a DataFrame. Columns that the table lacks are left out.
        All of it becomes visible at once, or none: BadRecord, OSError and CommitConflict leave the table as it was.
        """
        snapshot = self._snapshot(table)
        keys = list(snapshot.partition_by)
        rows_to_add = as_table(records, snapshot.schema, keys)  # before anything is written, the log included
        if not len(rows_to_add) and (keys or not overwrite):
            return
        with self.stage(table) as staging:
            staging.add(rows_to_add)
            staging.keep()
            self.log(table).commit(staging.adds, staging.replaces if overwrite else None)

    def stage(self, table: str) -> Staging:
        """Data files to be committed by `log(table).commit`: for those who have a protocol of their own."""
        self._ready(table)
        snapshot = self._snapshot(table)
        return Staging(self._storage, names.table_directory(table), snapshot.partition_by, self.config.threads)

    def log(self, table: str) -> TableLog:
        """The transaction log of a table, whether or not it has begun."""
        if table not in self._logs:
            self._logs[table] = TableLog(self._storage, names.table_directory(table))
        return self._logs[table]

    # -- reading --------------------------------------------------------------------------------------------------

    def read(
        self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The matching rows as dicts, a few batches at a time in memory."""
        return rows.dicts(self._scan(table, filters, columns).batches())

    def read_batches(
        self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """The matching rows as a stream of Arrow batches."""
        scan = self._scan(table, filters, columns)
        return pa.RecordBatchReader.from_batches(scan.declared, scan.batches())

    def bulk_read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The matching rows as one Arrow table."""
        scan = self._scan(table, filters, columns)
        found = self._engine.pushdown.table(scan)
        return scan.table() if found is None else found

    def count(self, table: str, filters: Filters | None = None) -> int:
        """How many rows match: from the log alone where the filters are on partition keys."""
        scan = self._scan(table, filters, None)
        found = self._engine.pushdown.count(scan)
        return scan.count() if found is None else found

    def distinct_values(
        self, table: str, fields: Sequence[str], filters: Filters | None = None
    ) -> list[dict[str, Any]]:
        """The distinct combinations of the fields: from the log alone where fields and filters are partition keys."""
        scan = self._scan(table, filters, fields)
        keys = scan.snapshot.partition_by
        if not (scan.by_partition and set(fields) <= set(keys)):
            return list(rows.dicts(self._engine.distinct(scan)))
        places = [f'p{keys.index(name)}' for name in fields]
        found = scan.files.select(places).group_by(places).aggregate([]).select(places)
        return list(rows.dicts(found.rename_columns(list(fields)).cast(scan.declared).to_batches()))

    def join(
        self,
        left: str,
        right: str,
        on: str,
        left_filters: Filters | None = None,
        right_filters: Filters | None = None,
        select: Select = 'both',
    ) -> Iterator[dict[str, Any]]:
        """The inner join on one column of both. With `both`, a right column named like a left one gets `_right` added."""
        if select not in ('left', 'right', 'both'):
            raise BadFilter(f"select is 'left', 'right' or 'both', not {select!r}")
        if not isinstance(on, str):
            raise BadFilter(f'a join is on one column, not on {on!r}')
        one = self._scan(left, left_filters, [on] if select == 'right' else None, also=on)
        two = self._scan(right, right_filters, [on] if select == 'left' else None, also=on)
        if one.stored.field(on).type != two.stored.field(on).type:
            kinds = f'{one.declared.field(on).type} and {two.declared.field(on).type}'
            raise BadFilter(f'column {on!r} cannot be joined on: it is {kinds} in the two tables')
        chosen = [(name, 'left', name) for name in one.columns] if select != 'right' else []
        if select == 'right':
            chosen = [(name, 'right', name) for name in two.columns]
        elif select == 'both':
            taken = set(one.columns)
            chosen += [
                (f'{name}_right' if name in taken else name, 'right', name) for name in two.columns if name != on
            ]
        return rows.dicts(self._engine.join(one, two, on, chosen))

    def _scan(self, table: str, wanted: Filters | None, columns: Sequence[str] | None, also: str | None = None) -> Scan:
        snapshot = self._snapshot(table)
        conditions = filters.parse(wanted, snapshot.schema)
        if also is not None:
            _check_columns(table, snapshot, [also])
        if columns is not None:
            _check_columns(table, snapshot, columns)
        chosen = snapshot.schema.names if columns is None else columns
        return Scan(self._storage, names.table_directory(table), snapshot, conditions, chosen)

    # -- upkeep ---------------------------------------------------------------------------------------------------

    def compact(self, table: str, target_size: int = 128 << 20) -> int:
        """Join small files of a partition into files of about `target_size` bytes; the files that went. Rows stay as they are.

        May run beside readers and writers. The old files stay on disk until `vacuum`.
        """
        return maintenance.compact(self._storage, self._ready(table), target_size, self.config.threads)

    def vacuum(self, table: str, retention_hours: float = 168.0) -> list[str]:
        """Delete files that have not been part of the table for that long; their paths.

        Shorter than the longest read or write under way, it takes files away from it: 0 is for when there is none.
        """
        return maintenance.vacuum(self._storage, self._ready(table), retention_hours)

    def close(self) -> None:
        """Close DuckDB and forget the tables."""
        self._engine.close()
        self._logs.clear()
        self._storage.close()

    # -- what a table is ------------------------------------------------------------------------------------------

    def _snapshot(self, table: str) -> Snapshot:
        log = self.log(table)
        registered = self._registered.get(table)
        if log.exists():
            current = log.snapshot()
            return current if registered is None else _as_registered(table, current, *registered)
        if registered is None:
            found = registry.load(self._storage).get(table)
            if found is None:
                raise TableNotFound(table)
            registered = registry.parse_entry(table, found)
        return adopt.hive_snapshot(self._storage, names.table_directory(table), *registered)

    def _ready(self, table: str) -> TableLog:
        """The log of a known table, begun and with all columns, however the table became known."""
        log = self.log(table)
        if not log.exists() or table in self._registered:
            snapshot = self._snapshot(table)
            self.create_table(table, snapshot.schema, snapshot.partition_by)
        return log

    def _begin(self, table: str, schema: pa.Schema, keys: list[str]) -> bool:
        directory = names.table_directory(table)
        entry = registry.load(self._storage).get(table)
        if entry is not None:  # a store of an older form: the rules hold against what it says
            before, before_keys = registry.parse_entry(table, entry)
            _check_keys(table, before_keys, keys)
            schema = pa.schema([*before, *additions(table, before, schema)])
        found = adopt.hive_snapshot(self._storage, directory, schema, keys)
        return self.log(table).create(schema, keys, adopt.adopt(self._storage, directory, found))

    def _publish(self, table: str) -> None:
        if self._storage.local:
            registry.update(self._storage, lambda: {table: _entry(self.log(table))})
        else:
            registry.update(self._storage, self._all_entries)

    def _all_logs(self) -> dict[str, TableLog]:
        found = [info.base_name for info in self._storage.listing() if not info.is_file]
        return {name: self.log(name) for name in map(names.table_name, found) if names.is_table(name)}

    def _all_entries(self) -> registry.Entries:
        logs = self._all_logs()
        with ThreadPoolExecutor(16) as pool:
            entries = pool.map(lambda log: _entry(log) if log.exists() else None, logs.values())
        return {name: entry for name, entry in zip(logs, entries, strict=True) if entry is not None}


def _declaration(schema: TableSchema, partition_by: Sequence[str] | None) -> tuple[pa.Schema, list[str]]:
    if isinstance(partition_by, str) or not isinstance(partition_by, Collection | None):
        raise SchemaConflict(f'partition_by is a list of columns, not {partition_by!r}')
    wanted, keys = to_arrow_schema(schema).remove_metadata(), list(partition_by or ())
    check_new(wanted, keys)
    return wanted, keys


def _as_registered(table: str, current: Snapshot, schema: pa.Schema, keys: list[str]) -> Snapshot:
    """A table with the columns that were registered here; what others have added or loosened meanwhile holds too."""
    _check_keys(table, list(current.partition_by), keys)
    names = set(schema.names)
    known = [
        schema.field(part.name).with_nullable(part.nullable) if part.name in names else part for part in current.schema
    ]
    new = [part for part in schema if part.name not in current.schema.names]
    more = additions(table, current.schema, pa.schema([*known, *new]))
    return current.with_schema(pa.schema([*current.schema, *more]))


def _entry(log: TableLog) -> dict[str, Any]:
    snapshot = log.snapshot()
    return registry.entry(snapshot.schema, list(snapshot.partition_by))


def _check_keys(table: str, current: list[str], wanted: list[str]) -> None:
    if current != wanted:
        raise SchemaConflict(f'partition_by of table {table!r} is {current or None} for good, not {wanted or None}')


def _check_columns(table: str, snapshot: Snapshot, columns: Any) -> None:
    if isinstance(columns, str) or not isinstance(columns, Collection) or not columns:
        raise BadFilter(f'columns are a list of at least one name, not {columns!r}')
    unknown = [name for name in columns if name not in snapshot.schema.names]
    if unknown:
        raise BadFilter(f'table {table!r} has no columns {unknown}; it has {snapshot.schema.names}')
    if len(set(columns)) < len(columns):
        raise BadFilter(f'columns are named twice: {list(columns)}')


def _evolve(log: TableLog, table: str, wanted: pa.Schema, keys: list[str]) -> None:
    while True:
        current = log.snapshot()
        _check_keys(table, list(current.partition_by), keys)
        more, looser = additions(table, current.schema, wanted), loosened(current.schema, wanted)
        if not len(more) and not looser:
            return
        with suppress(CommitFailedError):  # someone else changed the table first: look again
            if len(more):
                log.add_columns(more)
            for name in looser:
                log.drop_required(name)
            return  # what others change from now on is no concern of this call
