"""One commit into Snowflake. DDL and uploads come before BEGIN, for any DDL would commit what is open:

    PUT ... / CREATE TEMPORARY TABLE, INSERT        while rows arrive
    BEGIN NAME amp_...                              the name says which stream and epoch it is of
    SELECT CURRENT_TRANSACTION()
    DELETE (or UPDATE ... marked) the runs of an undo
    COPY INTO / INSERT ... SELECT                   as many rows as were sent, or nothing; nested values by PARSE_JSON
    UPDATE amp_stream_state ... WHERE epoch = ?     one row, or ROLLBACK
    COMMIT

So a transaction is open for as long as its statements take, however long the unit was. The sessions do not commit by
themselves: when a transaction is ended from outside, what comes after it is another one that never commits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pyarrow as pa

from amp.errors import ConfigError, DestinationError, SchemaError
from amp.loaders.points import reached
from amp.loaders.snowflake.connect import Session
from amp.loaders.snowflake.state import Streams
from amp.loaders.snowflake.types import name_in, quoted
from amp.loaders.snowflake.ways import ROW, Rows, drop, lost_rows, way_of
from amp.loaders.sql import guarded, in_runs, quote, undo_statements
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import StreamJob
from amp.streaming.ledger import IdRun, StreamState, Undo

if TYPE_CHECKING:
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__ = ['MARK', 'MARKED_AT', 'SnowflakeUnit', 'Work']

MARK, MARKED_AT = '_amp_reorged', '_amp_reorged_at'
REPLACED_BY = '_AMP_REPLACED_BY'
_TX = quote(name_in(TX_ID))


class Work:
    """Rows for one table, and the transaction that takes them. A plain load is nothing but this."""

    def __init__(
        self, loader: SnowflakeLoader, table: str, *, keys: Sequence[str] = (), folder: str = 'load', name: str = 'amp'
    ) -> None:
        self._loader = loader
        self._table = table
        self.keys = list(keys)
        self._folder = f'{folder}/{secrets.token_hex(6)}' if folder == 'load' else f'{folder}-{secrets.token_hex(3)}'
        self._name = name
        self._rows: Rows | None = None
        self._written = 0
        self._session: Session | None = None
        self.clears = False

    def write(self, batch: pa.RecordBatch) -> int:
        """Take rows; their number."""
        if self._rows is None:
            missing = [key for key in self.keys if key not in batch.schema.names]
            if missing:
                raise SchemaError(
                    f'the key column {missing[0]!r} is not in the rows',
                    hint=f'columns: {", ".join(batch.schema.names)}',
                )
            self._rows = way_of(self._loader, batch.schema, self._folder, numbered=bool(self.keys))
        if batch.num_rows:
            self._written += self._rows.write(batch)
        return batch.num_rows

    def commit(
        self,
        before: Callable[[Session], None] | None = None,
        last: Callable[[Session, str], None] | None = None,
        images: str | None = None,
    ) -> None:
        """Make everything visible at once. `before` undoes, `last` is the last statement; both in the transaction."""
        rows = self._rows
        if rows is not None:
            rows.finish()
        session = self._session = (rows.session() if rows is not None else None) or self._loader.sessions.take()
        staged = rows.table(session) if rows is not None and (self.keys or rows.by_table) else None
        reached('transaction.before')
        session.run(f'BEGIN NAME {self._name}')
        [(transaction,)] = session.run('SELECT CURRENT_TRANSACTION()')
        if self.clears:
            session.run(f'DELETE FROM {quoted(self._table)}')
        if before is not None:
            before(session)
        if rows is not None and self._written:
            self._take(session, rows, staged, images)
        reached('commit.before_state')
        if last is not None:
            last(session, str(transaction))
        elif session.run('SELECT CURRENT_TRANSACTION()') != [(transaction,)]:
            raise ended_from_outside(self._loader, self._table)
        reached('commit.before')
        session.run('COMMIT')
        reached('commit.after')
        self._give_back(session, staged)

    def rollback(self) -> None:
        """Forget it all. Never raises for a connection that is gone."""
        session, rows = self._session, self._rows
        self._session = self._rows = None
        if rows is not None:
            rows.discard()
            session = session or rows.session()
        if session is not None:
            session.rollback()
            # Temporary tables and whatever else is left go with the session.
            session.broken = True
            self._loader.sessions.give(session)

    def _take(self, session: Session, rows: Rows, staged: str | None, images: str | None) -> None:
        table = quoted(self._table)
        if staged is not None and self.keys:
            replace_by_key(session, table, staged, rows, [name_in(key) for key in self.keys], images)
        elif rows.into(session, table, staged) != self._written:
            raise lost_rows(self._loader)
        reached('rows.copied')

    def _give_back(self, session: Session, temporary: str | None) -> None:
        self._session = self._rows = None
        if temporary is not None:
            drop(session, temporary)
        self._loader.sessions.give(session)


class SnowflakeUnit:
    """One commit of a stream."""

    def __init__(
        self, loader: SnowflakeLoader, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None
    ) -> None:
        self._loader = loader
        self._job = job
        self._state = state
        self._undo = undo
        self._images: str | None = None
        self._saved: str | None = None
        self.rows_undone = 0
        if job.key_columns and loader.config.preserve_reorg_history:
            raise ConfigError(
                'an upsert gives back what it replaced, and preserve_reorg_history keeps it: choose one of them',
                hint='leave out preserve_reorg_history, or append',
            )
        self._work = Work(
            loader,
            job.key.table,
            keys=job.key_columns,
            folder=f'{state.number}/{first_id}',
            name=transaction_name(loader, state),
        )

    def write(self, batch: pa.RecordBatch) -> int:
        """Take rows on their way to Snowflake; their number."""
        with self._guarded():
            return self._work.write(batch)

    def commit(self, state: StreamState) -> None:
        """Commit undo, rows and state. Raises StaleEpochError when the stream was taken."""
        table = self._job.key.table
        with self._guarded():
            columns = list(self._loader.columns(table)) if self._undo or self._job.key_columns else []
            if columns:
                self._images = self._loader.before_images(table, make=bool(self._job.key_columns))
            self._work.commit(
                before=lambda session: self._take_back(session, columns),
                last=lambda session, transaction: self._save(session, state, transaction),
                images=self._images,
            )
        self._loader.saved[self._job.key] = self._saved or ''

    def rollback(self) -> None:
        """Forget it all."""
        self._work.rollback()

    def _take_back(self, session: Session, columns: Sequence[str]) -> None:
        undo = self._undo
        if undo is None:
            return
        reached('undo.before')
        table = quoted(self._job.key.table)
        if undo.whole_table and columns:
            self.rows_undone = session.count(f'DELETE FROM {table}')
            if self._images is not None:
                session.run(f'DELETE FROM {self._images}')
        elif name_in(TX_ID) in columns and undo.runs:
            if undo.is_reorg and self._loader.config.preserve_reorg_history:
                self.rows_undone = mark_runs(session, table, undo.runs)
            else:
                self.rows_undone = delete_runs(session, table, undo.runs, columns, self._images)
        reached('undo.after')

    def _save(self, session: Session, state: StreamState, transaction: str) -> None:
        if self._job.key_columns and self._images is not None:
            first, kept = state.interval.first, state.window_first_id()
            replaced = quote(REPLACED_BY)
            session.run(f'DELETE FROM {self._images} WHERE {replaced} >= {first} AND {replaced} < {kept}')
        key = self._job.key
        self._saved = Streams().save(session, key, state, transaction, self._loader.saved.get(key, ''))
        if self._saved is None:
            session.rollback()
            found = Streams().stale(session, key, state.epoch)
            if found.context.get('epoch') == state.epoch:
                raise ended_from_outside(self._loader, key.table)
            raise found

    def _guarded(self) -> AbstractContextManager[None]:
        return guarded(self._loader, self._job.key, self._state)


def transaction_name(loader: SnowflakeLoader, state: StreamState) -> str:
    """By which a transaction is known as one of this stream in this schema, of this epoch."""
    return f'{loader.transaction_prefix(state.number)}{state.epoch}'


def delete_runs(session: Session, table: str, runs: Sequence[IdRun], columns: Sequence[str], images: str | None) -> int:
    """Delete the rows of runs of ids, and give back what they had replaced; the number deleted."""
    first, *rest = undo_statements(table, images, columns, runs, tx_id=name_in(TX_ID), replaced_by=REPLACED_BY)
    rows = session.count(first)
    for statement in rest:
        session.run(statement)
    return rows


def mark_runs(session: Session, table: str, runs: Sequence[IdRun]) -> int:
    """Mark the rows of runs of ids as taken off the chain; the number marked."""
    mark, at = quoted(MARK), quoted(MARKED_AT)
    return session.count(
        f'UPDATE {table} SET {mark} = TRUE, {at} = CAST(SYSDATE() AS TIMESTAMP_NTZ(9)) '
        f'WHERE {in_runs(_TX, runs)} AND {mark} IS NULL'
    )


def replace_by_key(
    session: Session, table: str, staged: str, rows: Rows, keys: Sequence[str], images: str | None
) -> None:
    """The staged rows take the place of those with the same keys; of several with one key the last counts."""
    listed = ', '.join(quote(name) for name in rows.names)
    values = ', '.join(f'{value} AS {quote(name)}' for name, value in zip(rows.names, rows.select, strict=True))
    partition = ', '.join(quote(key) for key in keys)
    newest = (
        f'(SELECT {listed} FROM (SELECT {values}, {quote(ROW)} FROM {staged}) r '
        f'QUALIFY ROW_NUMBER() OVER (PARTITION BY {partition} ORDER BY {quote(ROW)} DESC) = 1)'
    )
    same = ' AND '.join(f'{table}.{quote(key)} IS NOT DISTINCT FROM s.{quote(key)}' for key in keys)
    if images is not None:
        own = ', '.join(f'{table}.{quote(name)}' for name in rows.names)
        session.run(
            f'INSERT INTO {images} ({listed}, {quote(REPLACED_BY)}) SELECT {own}, s.{_TX} FROM {table} '
            f'JOIN {newest} s ON {same} WHERE {table}.{_TX} IS DISTINCT FROM s.{_TX}'
        )
    session.run(f'DELETE FROM {table} USING {newest} s WHERE {same}')
    reached('upsert.deleted')
    session.run(f'INSERT INTO {table} ({listed}) SELECT {listed} FROM {newest} s')


def ended_from_outside(loader: SnowflakeLoader, table: str) -> DestinationError:
    """The transaction is gone: whatever came after that committed by itself, and was none of ours."""
    error = DestinationError(
        f'the transaction into {table!r} of {loader.config.place} was ended by somebody else; nothing was recorded',
        hint='an administrator, or a time limit; the unit is tried again',
        table=table,
    )
    error.retryable = True
    return error
