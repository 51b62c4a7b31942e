"""SQL over the stored chains, by DataFusion: planning against empty tables, running against chosen rows of a snapshot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from datafusion import DataFrame, SessionConfig, SessionContext, SQLOptions
from datafusion.catalog import Catalog, CatalogProvider, Schema, SchemaProvider, Table
from datafusion.plan import LogicalPlan

from amp.devserver import incremental
from amp.devserver.chain import Chain, Scan
from amp.devserver.evm import Functions, calls_block_num, streamed
from amp.devserver.evm.eth_call import Node
from amp.devserver.names import check_aliases, check_references, dataset_name
from amp.devserver.scans import for_files, make_table
from amp.devserver.sql import Statement, caused_by, internal, invalid_argument
from amp.errors import QueryError

__all__ = ['Engine', 'Query', 'TableName']

TableName = tuple[str, str]
"""A dataset and one of its tables."""

RowsOf = Callable[[TableName], Sequence[pa.RecordBatch] | Scan]

_CATALOG = 'amp'
_STORE = '_rows'
_NO_TABLE = re.compile(r"table '(?P<reference>[^']*)' not found")
_READ_ONLY = re.compile(r'(DDL|DML|Statement) not supported')

_PLAN_ERROR = 'failed to plan SQL query'
_SCHEMA_ERROR = 'failed to infer SQL output schema'


def _no_rows(_: TableName) -> Sequence[pa.RecordBatch]:
    return ()


@dataclass(frozen=True, slots=True)
class Query:
    """A statement that has been planned: its output and the tables it reads."""

    statement: Statement
    schema: pa.Schema
    tables: tuple[TableName, ...]
    ordered: bool
    """True when rows leave the plan in the order of the tables' rows; a UNION does not keep it."""


class Engine:
    """Plans and runs statements over datasets; holds no rows itself, and may be shared between threads."""

    def __init__(self, datasets: Mapping[str, Chain], nodes: Mapping[str, Node] | None = None) -> None:
        self.datasets = dict(datasets)
        self._functions = Functions(nodes or {}, dataset_name)

    def prepare(self, statement: Statement) -> Query:
        """Plan the statement against empty tables. Raises QueryError with the server's code and text."""
        check_references(statement.text)
        asked: set[TableName] = set()
        every = [(dataset, table) for dataset, chain in self.datasets.items() for table in chain.schemas]
        frame = self._frame(statement, every, asked=asked)
        plan = frame.logical_plan()
        check_aliases(statement.text, plan)
        _check_references(plan)
        schema = self._functions.bind(statement.text).visible_schema(frame.schema())
        incremental.check_names(plan, schema.names)
        return Query(statement, schema, tuple(sorted(asked)), not incremental.has_union(plan))

    def check_batch(self, query: Query) -> None:
        """Raises QueryError when the statement can only be a stream."""
        if calls_block_num(query.statement.text):
            text = 'Error during planning: block_num() is only supported in streaming queries'
            raise internal(caused_by(_PLAN_ERROR, text))

    def check_incremental(self, query: Query) -> None:
        """Raises QueryError when the statement cannot be a stream."""
        incremental.check_incremental(self._frame(query.statement, query.tables).logical_plan())

    def run(self, query: Query, rows_of: RowsOf, *, sort: bool = False) -> Iterator[pa.RecordBatch]:
        """The result over the rows that `rows_of` gives for each table, batch by batch, without empty batches.

        `sort` orders them by the output column `_block_num`. Raises QueryError when the execution fails.
        """
        # A batch query has no block_num() left: check_batch refuses it.
        frame = self._frame(Statement(streamed(query.statement.text)), query.tables, rows_of)
        try:
            if sort:
                frame = frame.sort('_block_num')
            for result in frame.execute_stream():
                batch = result.to_pyarrow()
                if batch.num_rows:
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=query.schema)
        except Exception as error:  # DataFusion raises nothing more exact while it executes
            raise _execution_error(self._functions.bind(query.statement.text).visible(str(error))) from error

    def _frame(
        self,
        statement: Statement,
        names: Iterable[TableName],
        rows_of: RowsOf = _no_rows,
        asked: set[TableName] | None = None,
    ) -> DataFrame:
        """Plan over these tables; those that DataFusion asks for, in sub-queries too, are put into `asked`."""
        context = self._context(names, rows_of, set() if asked is None else asked)
        options = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)
        bound = self._functions.bind(statement.text)
        try:
            return bound.plan(context, options)
        except (ValueError, RuntimeError) as error:
            raise self._planning_error(bound.visible(str(error))) from error

    def _context(self, names: Iterable[TableName], rows_of: RowsOf, asked: set[TableName]) -> SessionContext:
        # One partition: rows then leave a plan without UNION in the order of the table's rows.
        config = SessionConfig().with_default_catalog_and_schema(_CATALOG, 'public').with_target_partitions(1)
        context = SessionContext(for_files(config))
        store = Schema.memory_schema(context)
        catalog = Catalog.memory_catalog(context)
        catalog.register_schema('public', store)
        context.register_catalog_provider(_STORE, catalog)

        # Made before planning: DataFusion's runtime cannot make a table while it is asking for one.
        tables: dict[TableName, Table] = {}
        for dataset, table in names:
            schema = self.datasets[dataset].schemas[table]
            rows = rows_of((dataset, table))
            tables[dataset, table] = make_table(context, store, f'{_STORE}.public', f'{dataset}.{table}', schema, rows)
        context.register_catalog_provider(_CATALOG, _Datasets(tables, asked))
        return context

    def _planning_error(self, text: str) -> QueryError:
        if 'RecursionLimitExceeded' in text:
            return invalid_argument(caused_by('SQL parse error', 'Invalid SQL syntax', 'recursion limit exceeded'))
        if 'ParserError' in text:
            message = re.sub(r'^SQL error: (\w+)\("?(.*?)"?\)$', r'sql parser error: \2', text, flags=re.DOTALL)
            return invalid_argument(caused_by('SQL parse error', 'Invalid SQL syntax', message))
        if _READ_ONLY.search(text):
            return invalid_argument(caused_by(_SCHEMA_ERROR, 'query plan violates read-only constraints', text))
        return internal(caused_by(_SCHEMA_ERROR, _NO_TABLE.sub(self._unknown_table, text)))

    def _unknown_table(self, match: re.Match[str]) -> str:
        _, _, reference = match['reference'].partition('.')
        dataset, _, table = reference.rpartition('.')
        if dataset_name(dataset) in self.datasets:
            return f'Table {table} not found in dataset {dataset}'
        return f'Dataset not found: {dataset}'


def _check_references(plan: LogicalPlan) -> None:
    for catalog, schema, table in incremental.scanned_tables(plan):
        if catalog is not None:
            text = f'Catalog-qualified table references are not supported: {catalog}.{schema}.{table}'
            raise invalid_argument(caused_by('Failed to resolve table references from SQL', text))


def _execution_error(text: str) -> QueryError:
    code = 'RESOURCE_EXHAUSTED' if 'Resources exhausted' in text else 'INTERNAL'
    return QueryError(caused_by('query execution error', text), code=code, cause=text)


class _Datasets(CatalogProvider):
    """Finds a dataset under every reference that names it."""

    def __init__(self, tables: Mapping[TableName, Table], asked: set[TableName]) -> None:
        self._tables = tables
        self._asked = asked

    def schema_names(self) -> set[str]:
        return {dataset for dataset, _ in self._tables}

    def schema(self, name: str) -> SchemaProvider | None:  # type: ignore[override]  # what it calls for
        dataset = dataset_name(name)
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
