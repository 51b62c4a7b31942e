"""The Delta tables under a place: found, made, given columns. Whoever else does the same meanwhile is waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from amp.errors import DestinationError, LoadError, SchemaError
from amp.loaders.delta.rows import check_partitions, table_schema
from amp.loaders.deltalog.columns import arrow_schema
from amp.loaders.deltalog.errors import explained, uses_delta
from amp.loaders.deltalog.files import Files, folder_name, joined, located
from amp.loaders.stamps import STAMP_COLUMNS, stamped_schema

__all__ = ['DeltaTables', 'user_columns']

_MOST_TRIES = 50
# Every column gets statistics, or the ids of a table with more than 32 would have none and prune nothing.
_TABLE_PROPERTIES: Mapping[str, str | None] = {'delta.dataSkippingNumIndexedCols': '-1'}


def user_columns(table: DeltaTable) -> list[str]:
    """The columns that are not amp's own; none in a table that was made for its first stream and has no rows yet."""
    return [name for name in arrow_schema(table).names if name not in STAMP_COLUMNS]


class DeltaTables:
    """`root`: a folder of tables; `table_path`: one table, whatever it is called. Paths or URLs."""

    def __init__(
        self,
        root: str | None,
        table_path: str | None,
        storage_options: Mapping[str, str],
        partition_by: Sequence[str] = (),
    ) -> None:
        self.place = located(root or table_path or '')
        self.storage_options = dict(storage_options)
        self._single = table_path is not None
        self._partition_by = list(partition_by)

    def place_of(self, name: str) -> str:
        """Path or URL of a table."""
        return self.place if self._single else joined(self.place, folder_name(name))

    def places(self) -> list[str]:
        """Path or URL of every folder that may be a table."""
        if self._single:
            return [self.place]
        with explained(self.place):
            return [joined(self.place, folder) for folder in Files(self.place, self.storage_options).folders()]

    def find(self, name: str) -> DeltaTable | None:
        """The newest version of a table; None when it is not there."""
        uses_delta()
        place = self.place_of(name)
        with explained(place):
            try:
                return DeltaTable(place, storage_options=self.storage_options or None)
            except TableNotFoundError:
                return None

    def open(self, name: str) -> DeltaTable:
        """The newest version of a table. Raises LoadError when it is not there."""
        found = self.find(name)
        if found is None:
            raise LoadError(f'the table {name!r} does not exist', table=name)
        return found

    def make(self, name: str, schema: pa.Schema) -> None:
        """Make a table for rows of `schema`; one that is there gets amp's own columns if they are asked for."""
        wanted = table_schema(schema)

        def attempt() -> None:
            table = self.find(name)
            if table is None:
                self._create(name, wanted)
            elif not user_columns(table) and any(column not in STAMP_COLUMNS for column in wanted.names):
                self._fill(table, stamped_schema(wanted))
            else:
                present = arrow_schema(table).names
                _add(table, [f for f in wanted if f.name in STAMP_COLUMNS and f.name not in present])

        self._until_alone(attempt, name)

    def missing(self, name: str, schema: pa.Schema) -> list[pa.Field[Any]]:
        """The columns of `schema` that the table lacks."""
        table = self.find(name)
        present = {column.casefold() for column in arrow_schema(table).names} if table is not None else set()
        return [column for column in schema if column.name.casefold() not in present]

    def add(self, name: str, fields: Sequence[pa.Field[Any]]) -> None:
        """Add nullable columns."""
        wanted = table_schema(pa.schema(fields))
        self._until_alone(lambda: _add(self.open(name), self.missing(name, wanted)), name)

    def _create(self, name: str, schema: pa.Schema) -> None:
        place = self.place_of(name)
        partition_by = self._partitions(schema)
        log = Files(joined(place, '_delta_log'), self.storage_options)
        begun = any(entry.endswith(('.json', '.parquet')) for entry in log.names(''))
        try:
            if not begun:
                DeltaTable.create(
                    place,
                    DeltaSchema.from_arrow(schema),
                    mode='error',
                    partition_by=partition_by,
                    configuration=_TABLE_PROPERTIES,
                    storage_options=self.storage_options or None,
                )
                return
        except DeltaError:
            if self.find(name) is None:
                raise
        if self.find(name) is None:
            raise DestinationError(
                f'the log of the Delta table at {place} is damaged: its first entries are gone',
                hint='restore the folder _delta_log from a copy, or choose another table',
            )
        raise CommitFailedError(f'{name} was made by another writer meanwhile')

    def _fill(self, table: DeltaTable, schema: pa.Schema) -> None:
        """Give a table that was made for its first stream the columns of its rows."""
        # No retries: nobody else may have committed meanwhile, whatever it was.
        write_deltalake(
            table,
            schema.empty_table(),
            mode='overwrite',
            schema_mode='overwrite',
            partition_by=self._partitions(schema),
            commit_properties=CommitProperties(max_commit_retries=0),
        )

    def _partitions(self, schema: pa.Schema) -> list[str]:
        missing = [name for name in self._partition_by if name not in schema.names]
        if missing and any(name not in STAMP_COLUMNS for name in schema.names):
            raise SchemaError(
                f'the rows have no column {missing[0]!r} to partition by', hint=f'columns: {", ".join(schema.names)}'
            )
        if missing:
            return []
        check_partitions(schema, self._partition_by)
        return self._partition_by

    def _until_alone(self, attempt: Callable[[], None], name: str) -> None:
        """Try again while other writers come first."""
        with explained(self.place_of(name)):
            for left in reversed(range(_MOST_TRIES)):
                try:
                    return attempt()
                except CommitFailedError:
                    if not left:
                        raise
        return None


def _add(table: DeltaTable, fields: Sequence[pa.Field[Any]]) -> None:
    if fields:
        table.alter.add_columns(DeltaSchema.from_arrow(pa.schema(fields)).fields)
