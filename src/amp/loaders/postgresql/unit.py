"""A unit of a stream into PostgreSQL: one transaction on a connection of its own.

Its COPY stays open while batches arrive, so memory is flat however many there are. The row of the stream is touched by
the last statement only: a lock taken first would make workers queue for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from amp.loaders.points import reached
from amp.loaders.postgresql.connect import run_on
from amp.loaders.postgresql.copy import CopyInto
from amp.loaders.postgresql.upsert import STAGE, make_stage, replace_by_key
from amp.loaders.sql import REPLACED_BY, guarded, quote, undo_statements
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import StreamJob
from amp.streaming.ledger import StreamState, Undo

if TYPE_CHECKING:
    from amp.loaders.implementations.postgresql_loader import PostgreSQLLoader

__all__ = ['PostgreSQLUnit']


class PostgreSQLUnit:
    """One commit of one stream."""

    def __init__(self, loader: PostgreSQLLoader, job: StreamJob, state: StreamState, undo: Undo | None) -> None:
        self._loader = loader
        self._job = job
        self._state = state
        self._table = loader.quoted(job.key.table)
        self._copy: CopyInto | None = None
        self._names: list[str] = []
        self._rows = 0
        self.rows_undone = 0
        self._connection = loader.connections.take()
        try:
            with self._guarded():
                self._connection = loader.begin_unit(self._connection, state)
                if undo is not None:
                    self._undo(undo)
        except BaseException:  # Ctrl-C too: the transaction is open
            self.rollback()
            raise

    def write(self, batch: pa.RecordBatch) -> int:
        """Send rows into the open COPY; their number."""
        with self._guarded():
            if self._copy is None:
                self._copy = self._open_copy(batch.schema)
            self._rows += batch.num_rows
            return self._copy.write(batch)

    def commit(self, state: StreamState) -> None:
        """Commit undo, rows and state. Raises StaleEpochError when the stream was taken."""
        with self._guarded():
            if self._copy is not None:
                self._copy.finish()
                if self._job.key_columns:
                    self._replace(state)
            reached('commit.before_state')
            self._loader.streams.save(self._run, self._job.key, state)
            reached('commit.before')
            self._connection.execute('COMMIT')
            reached('commit.after')
        self._loader.connections.give(self._connection)
        self._loader.summarize(self._job.key.table, self._rows)

    def rollback(self) -> None:
        """Forget it all."""
        # Closing the connection ends the transaction, whatever state it is in.
        self._connection.close()
        if self._copy is not None:
            self._copy.abandon()
        self._loader.connections.give(self._connection)

    def _guarded(self) -> AbstractContextManager[None]:
        return guarded(self._loader, self._job.key, self._state)

    def _open_copy(self, schema: pa.Schema) -> CopyInto:
        columns = self._loader.columns(self._job.key.table)
        self._names = schema.names
        if self._job.key_columns:
            self._loader.prepare_upsert(self._job.key.table, self._job.key_columns)
            make_stage(self._run, columns, self._names, self._job.key_columns)
        return CopyInto(self._connection, STAGE if self._job.key_columns else self._table, columns)

    def _undo(self, undo: Undo) -> None:
        reached('undo.before')
        columns = self._loader.columns(self._job.key.table)
        before = self._loader.before_images(self._job.key.table)
        has_before = self._loader.exists(self._run, before)
        if undo.whole_table and columns:
            self.rows_undone = self._delete(f'DELETE FROM {self._table}')
            if has_before:
                self._run(f'DELETE FROM {before}')
        elif TX_ID in columns:
            # Without fresh statistics the planner would read the whole table rather than ask the index, and compile
            # what runs for less time than that takes.
            self._run('SET LOCAL enable_seqscan = off')
            self._run('SET LOCAL jit = off')
            first, *rest = undo_statements(self._table, before if has_before else None, list(columns), undo.runs)
            self.rows_undone = self._delete(first)
            for statement in rest:
                self._run(statement)
            self._run('SET LOCAL enable_seqscan TO DEFAULT')
            self._run('SET LOCAL jit TO DEFAULT')
        reached('undo.after')

    def _replace(self, state: StreamState) -> None:
        before = self._loader.before_images(self._job.key.table)
        replace_by_key(self._run, self._table, self._names, self._job.key_columns, before)
        first, kept = state.interval.first, state.window_first_id()
        replaced = quote(REPLACED_BY)
        self._run(f'DELETE FROM {before} WHERE {replaced} >= {first} AND {replaced} < {kept}')

    def _delete(self, statement: str) -> int:
        return self._connection.execute(statement.encode()).rowcount

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return run_on(self._connection, sql, values)
