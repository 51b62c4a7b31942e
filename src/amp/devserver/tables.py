"""Datasets as tables of a DataFusion session: found under every reference, with the rows that a query is to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from datafusion import DataFrame, SessionConfig, SessionContext, col, lit
from datafusion.catalog import Catalog, CatalogProvider, Schema, SchemaProvider, Table

from amp.devserver.block_numbers import NUMBERS, NUMBERS_SCHEMA, opaque
from amp.devserver.chain import Scan, Snapshot
from amp.devserver.deltas import Part, quoted
from amp.devserver.scans import for_files, make_table

__all__ = ['CATALOG', 'STORE', 'Datasets', 'KeyOf', 'Parts', 'TableName', 'new_context']

KeyOf = Callable[[str], str | None]
"""Which dataset of an engine a reference means; None when it is no reference."""

TableName = tuple[str, str]
"""A dataset and one of its tables."""

CATALOG = 'amp'
STORE = '_rows.public'
"""Where rows are registered, out of the way of datasets."""


def new_context(partitions: int = 1) -> tuple[SessionContext, Schema]:
    """A session without tables, and the schema of it that rows are put into, `STORE`.

    Rows leave a plan of one table in the order of the table's rows, in as many partitions, one after the other.
    """
    config = SessionConfig().with_default_catalog_and_schema(CATALOG, 'public').with_target_partitions(partitions)
    # Files are divided by ranges; dealing batches out in turn would lose the order.
    config = config.set('datafusion.optimizer.enable_round_robin_repartition', 'false')
    # The branches of a UNION are sorted together: merging them row by row takes several times as long, and DataFusion
    # refuses its own plan for it when a branch has its block number twice.
    config = config.set('datafusion.optimizer.repartition_sorts', 'false')
    context = SessionContext(for_files(config))
    context.register_udf(opaque)
    store = Schema.memory_schema(context)
    catalog = Catalog.memory_catalog(context)
    catalog.register_schema('public', store)
    context.register_catalog_provider('_rows', catalog)
    return context, store


class Datasets(CatalogProvider):
    """Finds a dataset under every reference that names it."""

    def __init__(self, tables: Mapping[TableName, Table], asked: set[TableName], key_of: KeyOf) -> None:
        self._tables = tables
        self._asked = asked
        self._key_of = key_of

    def schema_names(self) -> set[str]:
        """The names of the datasets."""
        return {dataset for dataset, _ in self._tables}

    def schema(self, name: str) -> SchemaProvider | None:  # type: ignore[override]  # what it calls for
        """The dataset that a reference names."""
        dataset = self._key_of(name)
        if dataset is None or dataset not in self.schema_names():
            return None
        return _Tables(dataset, self._tables, self._asked)


class _Tables(SchemaProvider):
    def __init__(self, dataset: str, tables: Mapping[TableName, Table], asked: set[TableName]) -> None:
        self._dataset = dataset
        self._all = tables
        self._asked = asked

    def table_names(self) -> set[str]:
        return {table for dataset, table in self._all if dataset == self._dataset}

    def table(self, name: str) -> Table | None:
        found = self._all.get((self._dataset, name))
        if found is not None:
            self._asked.add((self._dataset, name))
        return found

    def table_exist(self, name: str) -> bool:
        return (self._dataset, name) in self._all


class Parts:
    """The tables of a microbatch, for its scans: new rows, old rows, all. The old ones are read only when asked for."""

    def __init__(
        self,
        schema_of: Callable[[TableName], pa.Schema],
        key_of: KeyOf,
        snapshots: Mapping[str, Snapshot],
        start: int,
        end: int,
    ) -> None:
        self.context, self._store = new_context()
        self._schema_of = schema_of
        self._key_of = key_of
        self._snapshots = snapshots
        self._start, self._end = start, end
        # DataFusion asks for a table by its name; which of its parts it gets is told here before.
        self._current: dict[TableName, Table] = {}
        self._made: dict[tuple[TableName, bool], Table] = {}
        self.context.register_catalog_provider(CATALOG, Datasets(self._current, set(), key_of))
        self._aliases = 0

    def scan(self, dataset: str, table: str, part: Part) -> DataFrame:
        """A part of a table under the name that the query has for it, with all of its columns."""
        name = NUMBERS if (dataset, table) == NUMBERS else (self._key_of(dataset) or dataset, table)
        known = (name, part == 'new')
        if known not in self._made:
            key = f'{".".join(name)}:{part}'
            self._made[known] = make_table(
                self.context, self._store, STORE, key, self._schema_of(name), self._rows(name, part == 'new')
            )
        self._current[name] = self._made[known]
        frame = self.context.table(f'{quoted(dataset)}.{quoted(table)}')
        number = col('_block_num')
        start, end = (lit(pa.scalar(bound, pa.uint64())) for bound in (self._start, self._end))
        if part == 'old':
            return frame.filter(number < start)
        return frame.filter(number <= end if part == 'all' else (number >= start) & (number <= end))

    def _rows(self, name: TableName, new: bool) -> Sequence[pa.RecordBatch] | Scan:
        if name == NUMBERS:
            numbers = pa.array(np.arange(self._start if new else 0, self._end + 1, dtype=np.uint64))
            return [pa.RecordBatch.from_arrays([numbers], schema=NUMBERS_SCHEMA)]
        view = self._snapshots.get(name[0])
        if view is None:
            return ()
        scan = view.scan(name[1])
        # A file is read by the columns that the query wants; a folder of many would be listed and opened each time.
        if not new or (scan.stored and not any(stored.path.is_dir() for stored in scan.stored)):
            return scan
        return view.rows(name[1], self._start, self._end)

    def alias(self, frame: DataFrame, name: str) -> DataFrame:
        """The same columns, as those of a relation of that name."""
        self._aliases += 1
        view = f'{STORE}."alias {self._aliases}"'
        self.context.register_view(view, frame)
        return self.context.sql(f'SELECT * FROM {view} AS {quoted(name)}')
