"""The tables of a columnar store as a destination: found, made, given columns, all through the store itself.

So whatever amp makes, the store has in its log and its registry, with the types as they were declared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError

from amp.errors import ConfigError, LoadError, SchemaError
from amp.loaders.arrow_types import type_table
from amp.loaders.deltalog.columns import refuse_twins
from amp.loaders.deltalog.errors import uses_delta
from amp.loaders.deltalog.log import FOLDER, DeltaLog
from amp.loaders.parquet.errors import told
from amp.loaders.stamps import STAMP_COLUMNS, stamped_schema
from amplify_db_utils import DuckDBParquetConfig, DuckDBParquetStore, SchemaConflict
from amplify_db_utils.adopt import parquet_files
from amplify_db_utils.log import Snapshot, TableLog
from amplify_db_utils.schema import check_new, log_fields

__all__ = ['ParquetTables', 'declared_schema', 'user_columns']

_MOST_TRIES = 50
# The store keeps statistics of the first 64 columns of a file; ids without would prune nothing.
_WIDE = 48


def declared_schema(schema: pa.Schema) -> pa.Schema:
    """The columns that a table for rows of `schema` declares, all nullable. Raises SchemaError, by column."""
    refuse_twins(schema)
    landings = type_table('parquet').landings(schema)
    return pa.schema([pa.field(landing.name, landing.wire) for landing in landings])


def user_columns(schema: pa.Schema) -> list[str]:
    """The columns that are not amp's own; none in a table that was made for its first stream and has no rows yet."""
    return [name for name in schema.names if name not in STAMP_COLUMNS]


class ParquetTables:
    """The tables under the root of `config`; `partition_by` holds for those that are made."""

    def __init__(self, config: DuckDBParquetConfig, partition_by: Sequence[str] = ()) -> None:
        uses_delta()
        self.store = DuckDBParquetStore(config)
        self._partition_by = list(partition_by)

    def log(self, name: str) -> TableLog:
        """The log of a table, whether or not it has begun. Raises ConfigError for what is no name of a table."""
        try:
            return self.store.log(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def place_of(self, name: str) -> str:
        """Path or URL of a table."""
        log = self.log(name)
        path = log.storage.path(log.directory)
        return path if log.storage.local else f's3://{path}'

    def streams_of(self, name: str) -> DeltaLog:
        """The streams in the log of a table that is there."""
        log = self.log(name)
        return DeltaLog(self.place_of(name), log.storage.options, log.uri)

    def has_streams(self, name: str) -> bool:
        """Whether a stream was ever opened in a table."""
        log = self.log(name)
        with told(self.place_of(name)):
            found = cast('Any', log.storage.filesystem.get_file_info(log.storage.path(log.directory, FOLDER)))
        return bool(found.type.name == 'Directory')

    def find(self, name: str) -> Snapshot | None:
        """The newest version of a table for a writer; None when it is not there.

        A table of an older store, which has no log, gets one: nothing else of it is written.
        """
        log = self.log(name)
        with told(self.place_of(name)):
            if not log.exists():
                known = self.store.registered().get(name)
                if known is None:
                    return None
                self.store.create_table(name, *known)
            return log.snapshot()

    def open(self, name: str) -> Snapshot:
        """The newest version of a table. Raises LoadError when it is not there."""
        found = self.find(name)
        if found is None:
            raise LoadError(f'the table {name!r} does not exist', table=name)
        return found

    def make(self, name: str, schema: pa.Schema) -> None:
        """Make a table for rows of `schema`; one that is there gets amp's own columns if they are asked for."""
        wanted = declared_schema(schema)

        def attempt() -> None:
            current = self.find(name)
            if current is None:
                self._create(name, wanted)
            elif user_columns(current.schema) or not user_columns(wanted):
                self._extend(name, current, [f for f in wanted if f.name in STAMP_COLUMNS])
            elif current.files.num_rows:
                # Somebody has put rows under amp's columns alone: they stay.
                self._extend(name, current, list(wanted))
            else:
                self._fill(name, wanted)

        self._until_alone(attempt, name)

    def missing(self, name: str, schema: pa.Schema) -> list[pa.Field[Any]]:
        """The columns of `schema` that the table lacks."""
        present = {column.casefold() for column in self.open(name).schema.names}
        return [column for column in schema if column.name.casefold() not in present]

    def add(self, name: str, fields: Sequence[pa.Field[Any]]) -> None:
        """Add nullable columns."""
        wanted = declared_schema(pa.schema(fields))

        def attempt() -> None:
            current = self.open(name)
            present = {column.casefold() for column in current.schema.names}
            self._extend(name, current, [f for f in wanted if f.name.casefold() not in present])

        self._until_alone(attempt, name)

    def _extend(self, name: str, current: Snapshot, fields: Sequence[pa.Field[Any]]) -> None:
        """Columns that are not there yet; without any, the registry hears of the table all the same."""
        new = [field for field in fields if field.name not in current.schema.names]
        self.store.create_table(name, pa.schema([*current.schema, *new]), current.partition_by)

    def _create(self, name: str, schema: pa.Schema) -> None:
        keys = self._partitions(schema)
        if user_columns(schema):
            self.store.create_table(name, schema, keys)
            return
        # Made for a stream whose columns are not known yet: nobody else is told of it.
        log = self.log(name)
        if parquet_files(log.storage, log.directory):
            raise SchemaError(
                f'there are Parquet files at {self.place_of(name)} that no table knows',
                hint='adopt them with create_table of the store first, or choose another name',
            )
        log.create(schema, keys)

    def _fill(self, name: str, schema: pa.Schema) -> None:
        """Give a table that was made for its first stream the columns of its rows, and its partitions."""
        log, keys = self.log(name), self._partitions(schema)
        wanted = stamped_schema(schema)
        if len(wanted) > _WIDE:
            wanted = pa.schema(
                [*(f for f in wanted if f.name in STAMP_COLUMNS), *(wanted.field(n) for n in user_columns(wanted))]
            )
        check_new(wanted, keys)
        columns: Any = DeltaSchema(log_fields(wanted)).to_arrow()
        table = DeltaTable(log.uri, storage_options=log.storage.options)
        if user_columns(pa.schema(cast('Any', table.schema().to_arrow()))):
            raise CommitFailedError(f'{name} was given columns by another writer meanwhile')
        # No retries: nobody else may have committed meanwhile, whatever it was.
        write_deltalake(
            table,
            pa.schema(columns).empty_table(),
            mode='overwrite',
            schema_mode='overwrite',
            partition_by=keys,
            commit_properties=CommitProperties(max_commit_retries=0),
        )
        self.store.create_table(name, wanted, keys)

    def _partitions(self, schema: pa.Schema) -> list[str]:
        missing = [name for name in self._partition_by if name not in schema.names]
        if missing and user_columns(schema):
            raise SchemaError(
                f'the rows have no column {missing[0]!r} to partition by', hint=f'columns: {", ".join(schema.names)}'
            )
        return [] if missing else self._partition_by

    def _until_alone(self, attempt: Callable[[], None], name: str) -> None:
        """Try again while other writers come first; a conflict that stays is an answer."""
        with told(self.place_of(name)):
            before: int | None = None
            for left in reversed(range(_MOST_TRIES)):
                try:
                    return attempt()
                except CommitFailedError:
                    if not left:
                        raise
                except SchemaConflict:
                    log = self.log(name)
                    now = log.snapshot().version if log.exists() else None
                    if not left or now == before:
                        raise
                    before = now
        return None
