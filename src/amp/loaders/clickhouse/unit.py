"""Rows on their way into ClickHouse: gathered into large inserts, and the units of streams that are undone by id."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from amp.errors import DestinationError
from amp.loaders.by_id import Documents, UndoById
from amp.loaders.clickhouse.session import Session
from amp.loaders.clickhouse.tables import Table
from amp.loaders.clickhouse.types import VERSION, Fit
from amp.loaders.points import reached
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import StreamJob, Unit
from amp.streaming.ledger import IdRun, StreamState, Undo

if TYPE_CHECKING:
    from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader

__all__ = ['ClickHouseStreams', 'Inserter', 'Versions']

_BLOCK_ROWS = 1_000_000
_BLOCK_BYTES = 32 * 1024**2
_COMMITS_BETWEEN_CLEANINGS = 64

logger = logging.getLogger('amp.loaders.clickhouse')


class Versions:
    """Rising numbers for rows that replace each other, also across processes: by the server's clock."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next: dict[str, int] = {}

    def begin(self, table: Table) -> Callable[[int], int]:
        """The first number of each of the batches to come, given their sizes."""
        least = self._next.get(table.name)
        [[now]] = self._session.run('SELECT toUnixTimestamp64Nano(now64(9))')
        if least is None:
            [[highest]] = self._session.run(f'SELECT max({VERSION}) FROM {table.quoted}')
            least = int(highest) + 1
        self._next[table.name] = max(least, int(now))

        def take(rows: int) -> int:
            first = self._next[table.name]
            self._next[table.name] = first + rows
            return first

        return take


class Inserter:
    """Takes batches, inserts blocks. `scope` names the stream's inserts for whoever must end them."""

    def __init__(self, session: Session, table: Table, into: str, versions: Versions, scope: str = '') -> None:
        self._session = session
        self.table = table
        self.into = into
        self._scope = scope
        self._version = versions.begin(table) if table.keys is not None else None
        self._fit: Fit | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._ids: list[int] = []
        self.blocks = 0

    @property
    def is_full(self) -> bool:
        """True when what waits makes a block."""
        return self._rows >= _BLOCK_ROWS or self._bytes >= _BLOCK_BYTES

    def add(self, batch: pa.RecordBatch) -> int:
        """Take rows. Raises SchemaError for a value that has no place in the table."""
        given = batch.num_rows
        if TX_ID in batch.schema.names and given:
            # One id a batch: the engine stamps it so.
            self._ids.append(int(batch.column(TX_ID).slice(0, 1).to_numpy()[0]))
        if self._version is not None:
            first = self._version(given)
            batch = batch.append_column(VERSION, pa.array(np.arange(first, first + given, dtype=np.uint64)))
        if self._fit is None:
            self._fit = Fit(batch.schema, self.table.columns)
        self._waiting.append(self._fit.land(batch))
        self._rows += given
        self._bytes += batch.nbytes
        return given

    def flush(self) -> None:
        """Insert what waits, as one block."""
        waiting, rows = self._waiting, self._rows
        self._waiting, self._rows, self._bytes = [], 0, 0
        if not rows:
            return
        reached('insert.before')
        # Counted first: an insert whose answer is lost may have happened.
        self.blocks += 1
        label = f'{self._scope} {self._ids[0]} {self._ids[-1]}' if self._scope and self._ids else None
        self._session.insert(self.into, pa.Table.from_batches(waiting), label=label)
        self._ids.clear()
        reached('insert.after')


class ClickHouseStreams(UndoById):
    """Undo by id, with units that gather their rows, and never undo what may be committed."""

    def __init__(self, loader: ClickHouseLoader, documents: Documents) -> None:
        super().__init__(loader, documents)
        self.clickhouse = loader

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> ClickHouseUnit:
        """Make the intent durable, then take back what it names."""
        return ClickHouseUnit(self, super().begin(job, state, first_id, undo), job, first_id)


class ClickHouseUnit:
    """One commit."""

    def __init__(self, streams: ClickHouseStreams, inner: Unit, job: StreamJob, first_id: int) -> None:
        self._streams = streams
        self._inner = inner
        self._job = job
        self._first_id = first_id
        self._inserter: Inserter | None = None
        self._may_be_done = False
        self.rows_undone = int(getattr(inner, 'rows_undone', 0))

    def write(self, batch: pa.RecordBatch) -> int:
        """Take rows; insert when there are enough for a block."""
        if self._inserter is None:
            self._inserter = self._streams.clickhouse.inserter(self._job.key.table, self._job.key_columns)
        rows = self._inserter.add(batch)
        if self._inserter.is_full:
            self._inserter.flush()
        return rows

    def commit(self, state: StreamState) -> None:
        """Insert the rest, then say done."""
        if self._inserter is not None:
            self._inserter.flush()
        self._may_be_done = True
        self._inner.commit(state)
        if self._job.key_columns:
            self._streams.clickhouse.clean_now_and_then(self._job.key.table, state, _COMMITS_BETWEEN_CLEANINGS)

    def rollback(self) -> None:
        """Delete what was inserted; after an unknown outcome that is for the next open of the stream."""
        if self._may_be_done:
            self._streams.leave_over()
            return
        if self._inserter is None or not self._inserter.blocks:
            return
        state = StreamState(*_number_and_epoch(self._first_id))
        tail = IdRun(self._first_id, StreamState(state.number, state.epoch + 1).first_id - 1)
        try:
            self._streams.clickhouse._delete_runs(self._job.key.table, [tail])
        except DestinationError as error:
            logger.warning('rows of a unit were not deleted, and will be when the stream is opened: %s', error)
            self._streams.leave_over()


def _number_and_epoch(tx_id: int) -> tuple[int, int]:
    return tx_id >> 51, (tx_id >> 27) & ((1 << 24) - 1)
