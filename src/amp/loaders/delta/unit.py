"""One commit of a stream into a Delta table: undo, rows and position together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from amp.loaders.delta.rows import Fitting, writer_properties
from amp.loaders.deltalog.columns import arrow_schema
from amp.loaders.deltalog.errors import explained
from amp.loaders.deltalog.log import StreamCommit
from amp.loaders.feed import Feed
from amp.loaders.points import reached
from amp.loaders.sql import in_runs, quote
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun, StreamState, Undo

__all__ = ['DeltaUnit', 'replaced']


class DeltaUnit:
    """Rows flow into one write that runs beside; the commit happens when they end.

    An undo is part of that write: it overwrites where a predicate over ids holds, which the new ids satisfy too.
    `committed` is told of the versions of the table before and after the commit.
    """

    def __init__(
        self,
        commit: StreamCommit,
        place: str,
        table_name: str,
        first_id: int,
        undo: Undo | None,
        committed: Callable[[int, int], None],
    ) -> None:
        self._commit = commit
        self._committed = committed
        self._before = commit.table.version()
        self._place = place
        self._table_name = table_name
        self._schema = arrow_schema(commit.table)
        self._whole = undo is not None and undo.whole_table
        self._predicate: str | None = None
        self._fitting: Fitting | None = None
        self._feed: Feed | None = None
        self.rows_undone = 0
        if undo is not None and TX_ID in self._schema.names:
            reached('undo.before')
            with explained(place):
                self.rows_undone = _count(commit.table, None if self._whole else undo.runs)
            self._predicate = None if self._whole else replaced(undo.state, undo.runs, first_id)
            reached('undo.after')

    def write(self, batch: pa.RecordBatch) -> int:
        """Take stamped rows."""
        if self._fitting is None:
            self._fitting = Fitting(batch.schema, self._commit.table, self._table_name)
        landed = self._fitting.batch(batch)
        if self._feed is None:
            self._feed = Feed(self._schema, self._consume)
        with explained(self._place):
            self._feed.push(landed)
        return batch.num_rows

    def commit(self, state: StreamState) -> None:
        """Lay the state down, then let the write end."""
        reached('commit.before_state')
        self._commit.write_state(state)
        reached('commit.before')
        self._commit.run(self._finish)
        self._feed = None
        reached('commit.after')
        self._committed(self._before, self._commit.table.version())

    def rollback(self) -> None:
        """Stop the write; files that it began are garbage for a vacuum."""
        if self._feed is not None:
            self._feed.cancel()

    def _finish(self) -> None:
        if self._feed is None:
            self._consume(self._schema.empty_table().to_reader())
        else:
            self._feed.finish()

    def _consume(self, reader: pa.RecordBatchReader) -> int:
        mode: Any = 'overwrite' if self._whole or self._predicate is not None else 'append'
        write_deltalake(
            self._commit.table,
            reader,
            mode=mode,
            predicate=self._predicate,
            writer_properties=writer_properties(self._schema),
            commit_properties=self._commit.properties,
        )
        return 0


def replaced(kept: StreamState, runs: Sequence[IdRun], first_id: int) -> str:
    """Where an overwrite takes the place of what lies in `runs`: there, and where ids from `first_id` on will be.

    Bounded by the stream's interval on both sides, so that files of other streams are not even opened. `kept` is what
    the stream holds afterwards: when all of it lies below, one range says it all.
    """
    tx, last = quote(TX_ID), kept.interval.last
    newest_kept = max((entry.last_id for entry in kept.entries), default=0)
    lowest = min(run.first for run in runs)
    if newest_kept < lowest:
        return f'{tx} >= {lowest} AND {tx} <= {last}'
    parts = [f'({tx} >= {run.first} AND {tx} <= {run.last})' for run in (*runs, IdRun(first_id, last))]
    return ' OR '.join(parts)


def _count(table: DeltaTable, runs: Sequence[IdRun] | None) -> int:
    if runs is None:
        return int(table.count())
    found = table.scan(columns=[TX_ID], predicate=in_runs(quote(TX_ID), runs))
    return sum(batch.num_rows for batch in pa.RecordBatchReader.from_stream(found))
