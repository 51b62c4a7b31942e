"""Writing into an LMDB table: one transaction for what fits in memory, several hidden ones and a last for more.

Nothing holds LMDB's one lock for writers while rows are still on their way: they are kept until the commit. When they
are many, they go into the table under an *intent*, which hides them from every reader and names them for whoever has to
take them away again; the last commit drops the intent. Each commit checks the epoch of its stream.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from amp.errors import AmpError, LoadError
from amp.loaders.keyed import StreamTarget, cleared_meanwhile
from amp.loaders.lmdb.catalog import Catalog, Intent, TableRecord, database_names
from amp.loaders.lmdb.environment import Environment
from amp.loaders.lmdb.layout import Layout, aligned
from amp.loaders.lmdb.table import Databases, Table
from amp.loaders.points import reached
from amp.loaders.row_keys import Numbering
from amp.loaders.stamps import TX_ID
from amp.loaders.types import LoadMode
from amp.streaming.ledger import IdRun, StreamState

__all__ = ['Store', 'Write']

# More would be slower, as LMDB takes fresh memory for every page of a transaction; but keys are all over the place, and
# every commit writes all pages anew in which one of them lies.
_IN_MEMORY, _BY_KEY_IN_MEMORY = 16 << 20, 64 << 20


@dataclass(frozen=True)
class Store:
    """An environment, a namespace in it, and how its new tables are laid out."""

    environment: Environment
    namespace: str
    layout: Layout

    def catalog(self, txn: Any) -> Catalog:
        """The records, in a transaction."""
        return Catalog(txn, self.environment.catalog, self.namespace)

    def make_databases(self, table: str) -> Databases:
        """The databases of a table, made when they are not there: before a transaction, never in one."""
        return Databases(*self.environment.make_databases(*database_names(self.namespace, table)))

    def intents(self) -> list[Intent]:
        """Everything that is unfinished, as it is now."""
        with self.environment.read() as txn:
            return self.catalog(txn).intents()

    def sweep(self, txn: Any, intent: Intent) -> None:
        """Take away the rows of a unit that was never finished; the databases of its table must be open already."""
        catalog = self.catalog(txn)
        record = catalog.table(intent.table)
        if record is not None:
            databases = self.make_databases(intent.table)
            Table(txn, databases, intent.table, record).undo([intent.run])
        catalog.drop_intent(intent.run)

    @contextmanager
    def reading(self, table: str) -> Iterator[tuple[Table, TableRecord, list[IdRun]]]:
        """A table at one moment, and the ids that it hides. Raises LoadError when it is not there."""
        databases = [self.environment.database(name) for name in database_names(self.namespace, table)]
        with self.environment.read() as txn:
            catalog = self.catalog(txn)
            record = catalog.table(table)
            if record is None or None in databases:
                raise LoadError(f'the table {table!r} does not exist', table=table)
            longest = self.environment.longest_key
            yield Table(txn, Databases(*databases), table, record, longest), record, catalog.hidden(table)


class Write:
    """One unit on its way into a table: `add` batches, then `commit` or `cancel`."""

    def __init__(
        self,
        store: Store,
        table: str,
        mode: LoadMode,
        key_columns: Sequence[str],
        stream: StreamTarget | None = None,
        *,
        clear: bool = False,
    ) -> None:
        self._store, self._name, self._mode, self._keys = store, table, mode, tuple(key_columns)
        self._stream = stream
        self._clear = clear
        self._spool = _Spool(store.environment.path)
        self._next_rows: dict[int, int] = {}
        self._intent: Intent | None = None
        self._undone = stream is None or stream.undo is None
        self.rows_undone = 0

    def add(self, batch: pa.RecordBatch) -> int:
        """Take rows; the number taken."""
        if batch.num_rows:
            self._spool.add(batch)
            if self._spool.nbytes > self._most and self._may_be_split:
                self._flush(None, last=False)
                reached('chunk.committed')
            elif self._spool.in_memory > self._most:
                self._spool.spill()
        return batch.num_rows

    def commit(self, state: StreamState | None = None) -> None:
        """Make all of it visible at once, with the state of the stream. Raises StaleEpochError."""
        self._flush(state, last=True)
        reached('commit.after')
        self._spool.close()

    def cancel(self) -> None:
        """Take away what earlier commits have written. Never raises: what is left then stays hidden."""
        self._spool.close()
        if self._intent is not None:
            with suppress(AmpError):
                self._store.environment.write(self._sweep)

    @property
    def _most(self) -> int:
        by_key = self._stream is None and self._store.layout.is_by_row
        return _BY_KEY_IN_MEMORY if by_key else _IN_MEMORY

    @property
    def _may_be_split(self) -> bool:
        return self._mode is LoadMode.APPEND and not self._clear

    # One transaction

    def _flush(self, state: StreamState | None, *, last: bool) -> None:
        """Run the transaction; what it changes of this object is kept only when it was committed."""
        databases = self._store.make_databases(self._name)

        def act(txn: Any) -> tuple[dict[int, int], Intent | None, int]:
            catalog = self._store.catalog(txn)
            if self._stream is not None:
                catalog.own_stream(self._stream.key, self._stream.state.epoch)
            if self._intent is not None and self._intent.run not in catalog.hidden(self._name):
                raise cleared_meanwhile(self._name)
            undone = self._undo(txn, catalog, databases)
            numbers, intent = self._put(txn, catalog, databases, last=last)
            reached('commit.before_state')
            self._save(txn, catalog, databases, state, last=last)
            if last and intent is not None:
                catalog.drop_intent(intent.run)
            reached('commit.before')
            return numbers, None if last else intent, undone

        numbers, intent, undone = self._store.environment.write(act, self._spool.nbytes)
        self._next_rows, self._intent, self._undone = numbers, intent, True
        self.rows_undone += undone
        self._clear = False
        self._spool.clear()

    def _undo(self, txn: Any, catalog: Catalog, databases: Databases) -> int:
        record = catalog.table(self._name)
        undo = self._stream.undo if self._stream is not None else None
        if record is None or self._undone or undo is None:
            return 0
        reached('undo.before')
        table = self._table(txn, databases, record)
        rows = table.clear() if undo.whole_table else table.undo(undo.runs)
        if undo.whole_table:
            catalog.drop_intents(self._name)
        reached('undo.after')
        return rows

    def _put(
        self, txn: Any, catalog: Catalog, databases: Databases, *, last: bool
    ) -> tuple[dict[int, int], Intent | None]:
        record = catalog.table(self._name)
        if record is None and not self._spool.nbytes:
            return self._next_rows, self._intent
        if record is None:
            raise LoadError(f'the table {self._name!r} does not exist', table=self._name)
        base = TableRecord(record.schema) if self._clear else record
        decided = self._store.layout.decide(base, self._name, self._mode, self._keys)
        if decided != record:
            catalog.save_table(self._name, decided)
        if self._clear:
            self._table(txn, databases, decided).clear()
            catalog.drop_intents(self._name)
        intent, load_id = self._intent, 0
        if self._stream is None:
            load_id = intent.run.first if intent is not None else catalog.next_load()
        if not last and intent is None:
            run = IdRun(load_id, load_id) if self._stream is None else self._ids()
            intent = Intent.of(self._name, run)
            catalog.save_intent(intent)
        table = self._table(txn, databases, decided)
        numbers = dict(self._next_rows)
        for batch in self._spool.batches():
            self._put_batch(table, decided, batch, numbers, load_id, is_split=not last or intent is not None)
        return numbers, intent

    def _ids(self) -> IdRun:
        """Every id that this unit, and any later one of its stream, can use."""
        first = next(self._spool.batches()).column(TX_ID)[0].as_py()
        last = self._stream.state.interval.last if self._stream is not None else first
        return IdRun(first, last)

    def _put_batch(
        self,
        table: Table,
        record: TableRecord,
        batch: pa.RecordBatch,
        numbers: dict[int, int],
        load_id: int,
        *,
        is_split: bool,
    ) -> None:
        tx_id = load_id if self._stream is None else batch.column(TX_ID)[0].as_py()
        numbering = Numbering(tx_id, numbers.get(tx_id, 0))
        numbers[tx_id] = numbering.first_row + batch.num_rows
        rows = aligned(batch, record, self._store.layout)
        if self._mode in {LoadMode.UPSERT, LoadMode.MERGE}:
            table.replace(rows, numbering, reversible=self._stream is not None)
        else:
            table.append(rows, numbering, indexed=self._stream is not None or is_split)

    def _save(self, txn: Any, catalog: Catalog, databases: Databases, state: StreamState | None, *, last: bool) -> None:
        """The stream's state; and how to undo what can no longer be undone is forgotten."""
        final = self._intent.run if self._intent is not None else None
        if self._stream is not None:
            key, undo = self._stream.key, self._stream.undo
            kept = state or (self._stream.state if undo is None else undo.state)
            stored = catalog.own_stream(key, self._stream.state.epoch)
            catalog.save_stream(key, stored.with_state(kept, committed=state is not None))
            final = IdRun(kept.interval.first, kept.window_first_id() - 1)
        record = catalog.table(self._name)
        if last and final is not None and record is not None and record.layout == 'rows':
            self._table(txn, databases, record).settle(final)

    def _sweep(self, txn: Any) -> None:
        catalog = self._store.catalog(txn)
        if self._intent is None:
            return
        if self._stream is not None:
            catalog.own_stream(self._stream.key, self._stream.state.epoch)
        self._store.sweep(txn, self._intent)

    def _table(self, txn: Any, databases: Databases, record: TableRecord) -> Table:
        return Table(txn, databases, self._name, record, self._store.environment.longest_key)


class _Spool:
    """Batches that wait for their commit: in memory, and in a file of no name when they are many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._batches: list[pa.RecordBatch] = []
        self.in_memory = 0
        self._file: Any = None
        self._writer: pa.RecordBatchStreamWriter | None = None
        self.nbytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """One more."""
        self._batches.append(batch)
        self.in_memory += batch.nbytes
        self.nbytes += batch.nbytes

    def spill(self) -> None:
        """Move what is in memory to the file."""
        if self._writer is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the spool
            self._writer = pa.ipc.new_stream(self._file, self._batches[0].schema)
        for batch in self._batches:
            self._writer.write_batch(batch)
        self._batches, self.in_memory = [], 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All of them in order, as often as one likes."""
        if self._writer is not None:
            self._file.flush()
            self._file.seek(0)
            yield from pa.ipc.open_stream(self._file)
        yield from self._batches

    def clear(self) -> None:
        """Forget them."""
        self.close()
        self._batches, self.in_memory, self.nbytes = [], 0, 0

    def close(self) -> None:
        """Give the file back."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
        self._writer = self._file = None
