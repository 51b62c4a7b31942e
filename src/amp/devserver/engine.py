"""SQL over the stored chains, by DataFusion: planning against empty tables, running against chosen rows of a snapshot."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
from datafusion import DataFrame, SessionContext, SQLOptions, col
from datafusion.plan import LogicalPlan

from amp.devserver import incremental
from amp.devserver.ahead import LeftError, in_order
from amp.devserver.block_numbers import NUMBERS, NUMBERS_SCHEMA, with_block_numbers
from amp.devserver.chain import Chain, Scan, Snapshot
from amp.devserver.deltas import BLOCK, Increment, UnsupportedError
from amp.devserver.evm import Functions, calls_block_num, streamed
from amp.devserver.evm.eth_call import Node
from amp.devserver.names import check_aliases, check_references, dataset_name
from amp.devserver.readers import READERS
from amp.devserver.scans import make_table
from amp.devserver.sql import Statement, caused_by, internal, invalid_argument
from amp.devserver.tables import CATALOG, STORE, Datasets, KeyOf, Parts, TableName, new_context
from amp.errors import QueryError, SourceError

__all__ = ['Engine', 'Query', 'Streamable', 'TableName']

RowsOf = Callable[[TableName], Sequence[pa.RecordBatch] | Scan]

_NO_TABLE = re.compile(r"table '(?P<reference>[^']*)' not found")
_LIMIT = re.compile(r'\blimit\b', re.IGNORECASE)
_SYNTAX_ERROR = re.compile(r'^SQL error: (?:ParserError|TokenizerError)\("?(.*?)"?\)$', re.DOTALL)
_READ_ONLY = re.compile(r'(DDL|DML|Statement) not supported')

_AHEAD_BYTES = 8 << 20
_PREPARED = 64
_PREPARED_CHARACTERS = 4 << 20
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
    takes_first_rows: bool = False
    """True when it is limited without an order: which rows come first is then to be the same each time."""


@dataclass(frozen=True, slots=True)
class Streamable:
    """A query that can be computed microbatch by microbatch."""

    query: Query
    plan: LogicalPlan | None
    """How; None when rows leave the query in the order of its table's rows, so that new rows are all it takes."""


class Engine:
    """Plans and runs statements over datasets; holds no rows itself, and may be shared between threads."""

    def __init__(self, datasets: Mapping[str, Chain], nodes: Mapping[str, Node] | None = None) -> None:
        self.datasets = dict(datasets)
        self.key_of: KeyOf = dataset_name
        self._functions = Functions(nodes or {}, dataset_name)
        # GetFlightInfo and DoGet ask for the same.
        self._prepared: OrderedDict[Statement, tuple[Mapping[str, Chain], Query]] = OrderedDict()
        self._preparing = threading.Lock()

    def prepare(self, statement: Statement) -> Query:
        """Plan the statement against empty tables. Raises QueryError with the server's code and text."""
        datasets = self.datasets
        with self._preparing:
            known, query = self._prepared.get(statement, (None, None))
        if query is None or known is not datasets:
            query = self._prepare(statement)
            with self._preparing:
                self._prepared[statement] = datasets, query
                while len(self._prepared) > _PREPARED or _characters(self._prepared) > _PREPARED_CHARACTERS:
                    self._prepared.popitem(last=False)
        return query

    def _prepare(self, statement: Statement) -> Query:
        check_references(statement.text)
        asked: set[TableName] = set()
        every = [(dataset, table) for dataset, chain in self.datasets.items() for table in chain.schemas]
        frame = self._frame(statement, every, asked=asked)
        plan = frame.logical_plan()
        check_aliases(statement.text, plan)
        _check_references(plan)
        schema = self._functions.bind(statement.text).visible_schema(frame.schema())
        incremental.check_names(plan, schema.names)
        return Query(statement, schema, tuple(sorted(asked)), incremental.takes_first_rows(plan))

    def check_batch(self, query: Query) -> None:
        """Raises QueryError when the statement can only be a stream."""
        if calls_block_num(query.statement.text):
            text = 'Error during planning: block_num() is only supported in streaming queries'
            raise internal(caused_by(_PLAN_ERROR, text))

    def check_incremental(self, query: Query, *, numbered: bool = False) -> Streamable:
        """How the statement is a stream; `numbered` when the rows' blocks are wanted too. Raises QueryError."""
        plan = self._frame(query.statement, query.tables).logical_plan()
        incremental.check_incremental(plan)
        text = query.statement.text
        if incremental.keeps_order(plan) and not numbered:
            # The sub-query that leaves `_block_num` out may still call block_num().
            with contextlib.suppress(QueryError):
                self._frame(Statement(streamed(text)), query.tables)
                return Streamable(query, None)
        rewritten = self._optimized(Statement(with_block_numbers(text)), (*query.tables, NUMBERS))
        incremental.check_optimized(rewritten, self._networks_of)
        try:
            Increment(self._parts({}, 0, 0), 0).frame(rewritten)
        except UnsupportedError as error:
            raise invalid_argument(
                f'{incremental.REFUSED} {error} (Amp streams it, this local server does not)'
            ) from None
        return Streamable(query, rewritten)

    def run(self, query: Query, rows_of: RowsOf, gone: Callable[[], bool] = lambda: False) -> Generator[pa.RecordBatch]:
        """The result over the rows that `rows_of` gives for each table, batch by batch, without empty batches.

        It is computed by as many threads as there are processors, ahead of who takes it. Raises QueryError when the
        execution fails, and LeftError when `gone`, which is asked now and then, says that nobody takes it any more.
        """
        threads = 1 if query.takes_first_rows else os.cpu_count() or 1
        frame = lambda: self._frame(query.statement, query.tables, rows_of, partitions=threads)  # noqa: E731
        return self._executed(query, frame, gone)

    def run_blocks(
        self, stream: Streamable, snapshots: Mapping[str, Snapshot], start: int, end: int
    ) -> Iterator[pa.RecordBatch]:
        """What the blocks `start` to `end` (inclusive) add to the result, by rising block number; as `run` gives it.

        `snapshots` are those of the datasets.
        """
        plan = stream.plan
        if plan is None:
            # The sub-query that leaves `_block_num` out may still call block_num().
            statement = Statement(streamed(stream.query.statement.text))
            rows_of: RowsOf = lambda name: snapshots[name[0]].rows(name[1], start, end)  # noqa: E731
            return self._executed(stream.query, lambda: self._frame(statement, stream.query.tables, rows_of))

        def frame() -> DataFrame:
            parts = self._parts(snapshots, start, end)
            return Increment(parts, _with_older(snapshots, start)).frame(plan).sort(col(BLOCK).sort())

        return self._executed(stream.query, frame)

    def run_numbered(
        self, stream: Streamable, snapshots: Mapping[str, Snapshot], start: int, end: int, schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        """As `run_blocks`, with the block of each row in front; `schema` is that of the rows with it.

        The stream is one that was asked for as numbered.
        """
        plan = stream.plan
        assert plan is not None, 'not a numbered stream'  # noqa: S101
        names = [name for name in schema.names if name != '_block_num']
        parts = self._parts(snapshots, start, end)
        frame = lambda: Increment(parts, _with_older(snapshots, start)).frame(plan).sort(col(BLOCK).sort())  # noqa: E731
        wide = pa.schema([*stream.query.schema, pa.field(BLOCK, pa.uint64())])
        for batch in self._executed(Query(stream.query.statement, wide, stream.query.tables), frame):
            yield pa.RecordBatch.from_arrays([batch[BLOCK], *(batch[name] for name in names)], schema=schema)

    def _executed(
        self, query: Query, frame: Callable[[], DataFrame], gone: Callable[[], bool] | None = None
    ) -> Generator[pa.RecordBatch]:
        try:
            with READERS.reading():
                for batch in _results(frame(), gone):
                    if batch.num_rows:
                        yield pa.RecordBatch.from_arrays(batch.columns[: len(query.schema)], schema=query.schema)
        except (QueryError, SourceError, LeftError):
            raise
        except Exception as error:  # DataFusion raises nothing more exact while it executes
            raise _execution_error(self._functions.bind(query.statement.text).visible(str(error))) from error

    def _networks_of(self, reference: str) -> set[str]:
        chain = self.datasets.get(self.key_of(reference) or '')
        return {chain.network} if chain is not None else set()

    def _frame(
        self,
        statement: Statement,
        names: Iterable[TableName],
        rows_of: RowsOf = _no_rows,
        asked: set[TableName] | None = None,
        partitions: int = 1,
    ) -> DataFrame:
        """Plan over these tables; those that DataFusion asks for, in sub-queries too, are put into `asked`."""
        limited = _LIMIT.search(statement.text) is not None
        context = self._context(names, rows_of, set() if asked is None else asked, partitions, limited)
        options = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)
        bound = self._functions.bind(statement.text)
        try:
            return bound.plan(context, options)
        except (ValueError, RuntimeError) as error:
            raise self._planning_error(bound.visible(str(error))) from error

    def _optimized(self, statement: Statement, names: Iterable[TableName]) -> LogicalPlan:
        frame = self._frame(statement, names)
        try:
            return frame.optimized_logical_plan()
        except Exception as error:  # DataFusion raises nothing more exact while it optimizes
            raise internal(caused_by(_PLAN_ERROR, str(error).removeprefix('DataFusion error: '))) from error

    def _context(
        self, names: Iterable[TableName], rows_of: RowsOf, asked: set[TableName], partitions: int, limited: bool
    ) -> SessionContext:
        context, store = new_context(partitions)
        divided = partitions if limited else None
        # Made before planning: DataFusion's runtime cannot make a table while it is asking for one.
        tables = {
            name: make_table(context, store, STORE, '.'.join(name), self.schema_of(name), rows_of(name), divided)
            for name in names
        }
        context.register_catalog_provider(CATALOG, Datasets(tables, asked, self.key_of))
        return context

    def _parts(self, snapshots: Mapping[str, Snapshot], start: int, end: int) -> Parts:
        return Parts(self.schema_of, self.key_of, snapshots, start, end)

    def schema_of(self, name: TableName) -> pa.Schema:
        """The columns of a table."""
        return NUMBERS_SCHEMA if name == NUMBERS else self.datasets[name[0]].schemas[name[1]]

    def _planning_error(self, text: str) -> QueryError:
        if 'RecursionLimitExceeded' in text:
            return invalid_argument(caused_by('SQL parse error', 'Invalid SQL syntax', 'recursion limit exceeded'))
        if _SYNTAX_ERROR.match(text):
            message = _SYNTAX_ERROR.sub(r'sql parser error: \1', text)
            return invalid_argument(caused_by('SQL parse error', 'Invalid SQL syntax', message))
        if _READ_ONLY.search(text):
            return invalid_argument(caused_by(_SCHEMA_ERROR, 'query plan violates read-only constraints', text))
        return internal(caused_by(_SCHEMA_ERROR, _NO_TABLE.sub(self._unknown_table, text)))

    def _unknown_table(self, match: re.Match[str]) -> str:
        _, _, reference = match['reference'].partition('.')
        dataset, _, table = reference.rpartition('.')
        if self.key_of(dataset) in self.datasets:
            return f'Table {table} not found in dataset {dataset}'
        return f'Dataset not found: {dataset}'


def _characters(statements: Iterable[Statement]) -> int:
    return sum(len(statement.text) for statement in statements)


def _results(frame: DataFrame, gone: Callable[[], bool] | None) -> Iterator[pa.RecordBatch]:
    """The batches of each partition, one partition after the other; computed ahead of who takes them, who may be gone."""
    parts = [(batch.to_pyarrow() for batch in stream) for stream in frame.execute_stream_partitioned()]
    if gone is None:
        return chain.from_iterable(parts)
    return in_order(parts, os.cpu_count() or 1, _AHEAD_BYTES, lambda batch: batch.nbytes, gone)


def _with_older(snapshots: Mapping[str, Snapshot], start: int) -> int | None:
    """The block; None when there is none before it."""
    older = any(view.first is not None and view.first < start for view in snapshots.values())
    return start if older else None


def _check_references(plan: LogicalPlan) -> None:
    for catalog, schema, table in incremental.scanned_tables(plan):
        if catalog is not None:
            text = f'Catalog-qualified table references are not supported: {catalog}.{schema}.{table}'
            raise invalid_argument(caused_by('Failed to resolve table references from SQL', text))


def _execution_error(text: str) -> QueryError:
    code = 'RESOURCE_EXHAUSTED' if 'Resources exhausted' in text else 'INTERNAL'
    return QueryError(caused_by('query execution error', text), code=code, cause=text)
