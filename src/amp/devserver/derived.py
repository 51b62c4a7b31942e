"""Derived datasets: tables that are SQL over other datasets, computed when they are asked for.

A derived table follows the blocks of what it is made of, with the same hashes: its reorgs are theirs, and a stream over it
is resumed as one over them is. Its rows are computed by runs of blocks and kept for a while.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from amp.devserver.chain import Block, Chain, Scan, Snapshot
from amp.devserver.engine import Engine, Streamable
from amp.devserver.evm.eth_call import Node
from amp.devserver.microbatch import Together
from amp.devserver.sql import caused_by, internal, parse_statement
from amp.errors import ConfigError

__all__ = ['DerivedChain', 'DerivedTable', 'plan_tables']

_RUN = 1000
_CACHED_BYTES = 64 << 20
_POLL_SECONDS = 0.05
_BLOCK_NUM: pa.Field[Any] = pa.field('_block_num', pa.uint64(), nullable=False)


@dataclass(frozen=True)
class DerivedTable:
    """A planned table: its SQL, how it is computed, and its columns, of which `_block_num` is the first."""

    sql: str
    stream: Streamable
    schema: pa.Schema


def plan_tables(
    sql: Mapping[str, str], dependencies: Mapping[str, Chain], nodes: Mapping[str, Node]
) -> tuple[Engine, dict[str, DerivedTable]]:
    """The tables of a derived dataset over its dependencies, which the SQL names as they are named here.

    Raises QueryError for SQL that does not plan, or that no stream could follow.
    """
    engine = Engine(dependencies, nodes)
    tables = {}
    for name, text in sql.items():
        query = engine.prepare(parse_statement(text))
        stream = engine.check_incremental(query, numbered=True)
        columns = [field for field in query.schema if field.name != '_block_num']
        tables[name] = DerivedTable(text, stream, pa.schema([_BLOCK_NUM, *columns]))
    return engine, tables


class DerivedChain(Chain):
    """A derived dataset as a chain. It has no blocks before it is deployed, and none above `limit` once there is one.

    Raises ConfigError when what it is made of is of several networks.
    """

    def __init__(self, name: str, tables: Mapping[str, DerivedTable], engine: Engine) -> None:
        used = sorted({dataset for table in tables.values() for dataset, _ in table.stream.query.tables})
        networks = sorted({engine.datasets[dataset].network for dataset in used})
        if len(networks) != 1:
            told = ' and '.join(networks) or 'none'
            raise ConfigError(f'the dataset {name} is to be made of tables of one network, not of {told}')
        super().__init__(networks[0], {table: planned.schema for table, planned in tables.items()})
        self.name = name
        self.tables = dict(tables)
        self.deployed = False
        self.limit: int | None = None
        self._engine = engine
        self._used = {dataset: engine.datasets[dataset] for dataset in used}
        self._cache = _Cache(_CACHED_BYTES)

    def snapshot(self) -> Snapshot:
        """What the dependencies have now. Raises QueryError when the dataset was never deployed."""
        if not self.deployed:
            text = f'Table {self.name}.{next(iter(self.tables))} has not been synced'
            raise internal(caused_by('error creating physical catalog', text))
        return _DerivedSnapshot(self, {name: chain.snapshot() for name, chain in self._used.items()})

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until a dependency has changed since the snapshot of that version; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            views = {name: chain.snapshot() for name, chain in self._used.items()}
            if sum(view.version for view in views.values()) > version:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            name, chain = next(iter(self._used.items()))
            chain.wait(views[name].version, left if len(views) == 1 else min(left, _POLL_SECONDS))

    def forget_orphans(self) -> None:
        """Nothing: the blocks are the dependencies'."""

    def run(self, table: str, views: Mapping[str, Snapshot], first: int, last: Block) -> pa.RecordBatch:
        """The rows of blocks `first` to `last`."""
        planned = self.tables[table]
        key = (table, first, last.hash)
        held = self._cache.get(key)
        if held is None:
            batches = list(self._engine.run_numbered(planned.stream, views, first, last.number, planned.schema))
            joined = pa.Table.from_batches(batches, schema=planned.schema).combine_chunks().to_batches()
            held = joined[0] if joined else pa.RecordBatch.from_pylist([], schema=planned.schema)
            self._cache.put(key, held)
        return held


class _DerivedSnapshot(Snapshot):
    """The dependencies at one moment, as the blocks and rows of what is made of them."""

    def __init__(self, chain: DerivedChain, views: Mapping[str, Snapshot]) -> None:
        self._chain = chain
        self._views = dict(views)
        self._blocks = next(iter(views.values())) if len(views) == 1 else Together(list(views.values()))
        self._limit = chain.limit
        self.version = sum(view.version for view in views.values())

    @property
    def first(self) -> int | None:
        """Number of the earliest block; None when nothing is synced."""
        first = self._blocks.first
        return None if first is None or self._blocks.last is None or self._above(first) else first

    @property
    def last(self) -> int | None:
        """Number of the latest block; None when nothing is synced."""
        last = self._blocks.last
        if last is None or self.first is None:
            return None
        return last if self._limit is None else min(last, self._limit)

    def canonical(self, number: int) -> Block | None:
        """The canonical block of that number."""
        return None if self._above(number) else self._blocks.canonical(number)

    def find(self, block_hash: str) -> Block | None:
        """The block of that hash on any branch that is still stored."""
        return self._blocks.find(block_hash)

    def rows(self, table: str, first: int, last: int) -> list[pa.RecordBatch]:
        """The rows of blocks `first` to `last` (inclusive), by rising block number. Raises QueryError."""
        begin, end = self.first, self.last
        found = []
        # The same runs each time, so that what was computed for one reader serves the next.
        at = begin + (max(first, begin) - begin) // _RUN * _RUN if begin is not None else last + 1
        while end is not None and at <= min(last, end):
            to = self.canonical(min(at + _RUN - 1, end))
            if to is None:
                break
            batch = self._chain.run(table, self._views, at, to)
            numbers = batch.column('_block_num').to_numpy()
            low, high = (int(found_at) for found_at in np.searchsorted(numbers, [first, last + 1]))
            if high > low:
                found.append(batch.slice(low, high - low))
            at += _RUN
        return found

    def scan(self, table: str) -> Scan:
        """All rows, computed."""
        return Scan(
            (), self.rows(table, self.first, self.last) if self.first is not None and self.last is not None else ()
        )

    def _above(self, number: int) -> bool:
        return self._limit is not None and number > self._limit


class _Cache:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[tuple[str, int, str], pa.RecordBatch] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, str]) -> pa.RecordBatch | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: tuple[str, int, str], batch: pa.RecordBatch) -> None:
        with self._lock:
            if key not in self._held:
                self._held[key] = batch
                self._bytes += batch.nbytes
            while self._bytes > self._most_bytes and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
