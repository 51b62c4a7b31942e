"""Writing into a Redis table: one transaction for what is small, and for more of it an intent, rows, and a last one.

A transaction watches the record of its stream, so an older writer, and whoever else is quicker, makes it do nothing.
Rows of a large unit go outside of one, hidden by the intent. They flow over a connection whose number stands in the
intent: whoever takes the stream cuts that connection before taking the rows away, so none can arrive afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import pyarrow as pa

from amp.errors import AmpError, LoadError
from amp.loaders.keyed import StreamTarget, cleared_meanwhile
from amp.loaders.points import reached
from amp.loaders.redis import history
from amp.loaders.redis.checks import (
    Numbered,
    duplicates,
    is_own,
    last_of_equals,
    refuse_duplicates,
    refuse_foreign,
    refuse_strangers,
    refuse_taken,
)
from amp.loaders.redis.connect import Bulk, Wire
from amp.loaders.redis.layout import Layout, aligned
from amp.loaders.redis.resp import Commands, variadic
from amp.loaders.redis.store import COLLECTIONS, Loading, Store, StreamRecord, TableRecord
from amp.loaders.redis.streams import MOST_TRIES, busy, cut, own_stream, sweep, sweep_load
from amp.loaders.redis.table import Table
from amp.loaders.row_keys import Numbering
from amp.loaders.stamps import TX_ID
from amp.loaders.types import LoadMode
from amp.streaming.ledger import IdRun, StreamState

__all__ = ['Write']

_SMALL = 16 << 20
# An overwrite stays one transaction for longer: splitting it shows an empty table meanwhile.
_SMALL_OVERWRITE = 256 << 20


class Write:
    """One unit on its way into a table: `add` batches, then `commit` or `cancel`."""

    def __init__(
        self,
        store: Store,
        table: str,
        layout: Layout,
        mode: LoadMode,
        key_columns: Sequence[str],
        stream: StreamTarget | None = None,
        *,
        clear: bool = False,
    ) -> None:
        self._store, self._name, self._layout, self._mode = store, table, layout, mode
        self._keys = tuple(key_columns)
        self._stream = stream
        self._clear = clear
        self._undone = stream is None or stream.undo is None
        self._pending: list[pa.RecordBatch] = []
        self._bytes = 0
        self._next_rows: dict[int, int] = {}
        self._bulk: Bulk | None = None
        self._first_id: int | None = None
        self._tried = self._is_split = False
        # The table as it was when the first rows went into it, hidden.
        self._begun: TableRecord | None = None
        # Of what is being committed too: when its answer is lost, nobody counts again.
        self.rows_undone = self._rows_undone_before = 0

    def add(self, batch: pa.RecordBatch) -> int:
        """Take rows; the number taken."""
        rows = self._layout.rows_at_once
        for at in range(0, batch.num_rows, rows):
            self._pending.append(batch.slice(at, rows))
        self._bytes += batch.nbytes
        if self._bulk is not None:
            self._send(self._bulk)
        elif self._bytes > (_SMALL_OVERWRITE if self._clear else _SMALL) and self._mode is LoadMode.APPEND:
            self._write_hidden()
        return batch.num_rows

    def commit(self, state: StreamState | None = None) -> None:
        """Make all of it visible at once, with the state of the stream. Raises StaleEpochError."""
        if self._bulk is not None:
            self._finish_bulk(self._bulk)
        self._transact(state, last=True)
        reached('commit.after')

    def cancel(self) -> None:
        """Take away what was written already. What cannot be taken away now stays hidden, or goes with the next open."""
        self._pending = []
        if self._bulk is not None:
            with suppress(AmpError):
                cut(self._store, self._name, [self._bulk.client_id])
            self._bulk.close()
        if self._first_id is None or not self._tried:
            return
        with suppress(AmpError):
            if self._stream is not None:
                if self._is_split:
                    sweep(self._store, self._name, self._layout, self._stream.key, self._stream.state.epoch)
            else:
                sweep_load(self._store, self._name, self._layout, self._first_id)

    # One transaction

    def _transact(self, state: StreamState | None, *, last: bool) -> None:
        """Write what is pending; again, when somebody else was quicker."""
        self._take_id()
        for _ in range(MOST_TRIES):
            with self._store.wire(self._name) as wire:
                commands, done = self._build(wire, state, last=last)
                reached('commit.before')
                self._tried = True
                if wire.transact(commands):
                    done()
                    return
        raise busy(f'others write to {self._name!r}')

    def _build(self, wire: Wire, state: StreamState | None, *, last: bool) -> tuple[Commands, Callable[[], None]]:
        """The commands of a transaction, everything checked; and what to remember once it has happened."""
        own, commands = self._store.own, Commands()
        watched = [own('table', self._name)]
        if self._stream is not None:
            watched.append(own('stream', *self._stream.key))
        if self._layout.structure == 'stream':
            watched.append(own('seq', self._name))
        wire.call('WATCH', *watched)
        record = stored = self._store.table(self._name)
        stream = self._own_stream()
        self._refuse_another(record)
        undone = 0
        if record is not None:
            record, undone = self._undo(wire, commands, record)
            if self._pending or self._clear:
                record = self._layout.decide(self._base(record), self._name, self._mode, self._keys)
            refuse_foreign(wire, Table(self._store, self._name, record), stored)
            # Also as it is, when rows become visible: whoever clears or drops the table now must see them.
            if record != stored or (last and self._begun is not None):
                commands.call('SET', own('table', self._name), record.to_json())
        elif self._pending:
            raise LoadError(f'the table {self._name!r} does not exist', table=self._name)
        numbers = dict(self._next_rows)
        if record is not None and self._pending and self._bulk is None:
            table = Table(self._store, self._name, record, self._layout.score)
            self._rows(wire, commands, table, numbers, last=last)
        reached('commit.before_state')
        self._save(commands, stream, record, state, last=last)

        self.rows_undone = self._rows_undone_before + undone

        def done() -> None:
            self._rows_undone_before = self.rows_undone
            self._undone, self._clear = True, False
            self._begun = None if last else record
            if self._bulk is None:
                self._next_rows, self._pending, self._bytes = numbers, [], 0

        return commands, done

    def _undo(self, wire: Wire, commands: Commands, record: TableRecord) -> tuple[TableRecord, int]:
        """What is taken away first: the record then, and how many rows a stream takes back."""
        undo = self._stream.undo if self._stream is not None else None
        table = Table(self._store, self._name, record, self._layout.score)
        if self._clear:
            commands.extend(history.clear(table, wire)[0])
            record = record.anew()
        if undo is None or self._undone:
            return record, 0
        reached('undo.before')
        taken, rows = history.clear(table, wire) if undo.whole_table else history.undo(table, wire, undo.runs)
        commands.extend(taken)
        reached('undo.after')
        return record.anew() if undo.whole_table else record, rows

    def _base(self, record: TableRecord) -> TableRecord:
        """The record as the first rows find it."""
        if not self._clear:
            return record
        return TableRecord(record.schema, self._layout.structure, token=record.token)

    def _refuse_another(self, record: TableRecord | None) -> None:
        """Rows that are hidden are shown only in the table that they were written into."""
        if self._begun is None or (record is not None and record.token == self._begun.token):
            return
        raise cleared_meanwhile(self._name)

    def _rows(self, wire: Wire, commands: Commands, table: Table, numbers: dict[int, int], *, last: bool) -> None:
        """Rows of the pending batches, with whatever has to be looked up before."""
        own, seq = self._store.own, 0
        if self._layout.structure == 'stream':
            seq = int(self._store.read('GET', own('seq', self._name)) or 0)
        upserts = self._mode is not LoadMode.APPEND
        batches = list(self._numbered(self._pending, numbers))
        replaced: dict[bytes, int] = {}
        if upserts:
            batches = last_of_equals(table, batches)
        elif not table.is_collection and table.spec.is_numbered:
            refuse_taken(wire, table, batches)
        elif not table.is_collection:
            refuse_duplicates(wire, table, batches, partial(self._leaving, table))
        for batch, numbering in batches:
            rows = aligned(batch, table.record)
            if upserts:
                self._replace(wire, commands, table, rows, numbering, replaced)
            seq += 1
            # What is never taken back needs no list in a collection: it is its own.
            indexed = not table.is_collection or self._stream is not None or self._is_split or not last
            commands.extend(table.write(rows, numbering, seq=seq, indexed=indexed))
        if self._layout.structure == 'stream':
            commands.call('SET', own('seq', self._name), seq)

    def _leaving(self, table: Table, ids: set[int]) -> set[int]:
        """Those of the ids whose rows this very transaction takes away before it writes."""
        undo = None if self._stream is None or self._undone else self._stream.undo
        if self._clear or (undo is not None and undo.whole_table):
            return {at for at in ids if is_own(table, at)}
        if undo is None or table.record.is_upserted:
            # Where rows were replaced, those from before come back under the same keys.
            return set()
        return {at for at in ids if any(run.first <= at <= run.last for run in undo.runs)}

    def _replace(
        self,
        wire: Wire,
        commands: Commands,
        table: Table,
        rows: pa.RecordBatch,
        numbering: Numbering,
        written: dict[bytes, int],
    ) -> None:
        """Make room for rows: what they replace is kept aside for a stream, and its fields do not shine through.

        `written` are the keys that this very transaction has written before, and by which id.
        """
        names = table.names(rows, numbering)
        listed = names.to_numpy(zero_copy_only=False).tolist()
        wire.call('WATCH', *listed)
        found = table.ids_of(wire, listed)
        refuse_strangers(table, {at for at in found if at is not None})
        if self._stream is not None:
            found = [written.get(name, at) for name, at in zip(listed, found, strict=True)]
            written |= dict.fromkeys(listed, numbering.tx_id)
            commands.extend(history.keep_replaced(table, names, found, table.piece(numbering, rows.num_rows)))
        commands.add(variadic(('UNLINK',), names))

    def _save(
        self,
        commands: Commands,
        stream: StreamRecord | None,
        record: TableRecord | None,
        state: StreamState | None,
        *,
        last: bool,
    ) -> None:
        """The stream's record, or the mark of a load; and what can no longer be undone is forgotten."""
        own, final = self._store.own, None
        if stream is not None and self._stream is not None:
            if last and state is not None:
                saved = stream.done(state)
                final = IdRun(state.interval.first, state.window_first_id() - 1)
            else:
                undo = self._stream.undo
                kept = self._stream.state if undo is None else undo.state
                layout = '' if record is None else record.layout
                saved = replace(stream.with_state(kept, committed=False), intent=self._first_id, layout=layout)
                if self._bulk is not None:
                    saved = replace(saved, clients=[self._bulk.client_id], run_id=self._store.server.run_id())
            commands.call('SET', own('stream', *self._stream.key), saved.to_json())
        elif not last:
            mark = json.dumps(asdict(Loading.of(record)))
            commands.call('HSET', own('loading', self._name), self._first_id or 0, mark)
        elif self._is_split:
            commands.call('HDEL', own('loading', self._name), self._first_id or 0)
            final = IdRun(self._first_id or 0, self._first_id or 0)
        settles = record is not None and (record.structure in COLLECTIONS or record.is_upserted)
        if last and settles and final is not None and record is not None and final.first <= final.last:
            commands.extend(history.settle(Table(self._store, self._name, record), final))
        if not commands.count:
            commands.call('EXISTS', own('table', self._name))

    # Rows that are hidden until the last transaction

    def _write_hidden(self) -> None:
        """Write what is pending, once it is durable that it is to be hidden."""
        self._is_split = True
        if not self._needs_no_checks():
            self._transact(None, last=False)
            reached('chunk.committed')
            return
        self._take_id()
        self._bulk = Bulk(self._store.server.wire(self._store.tag(self._name)))
        self._transact(None, last=False)
        reached('intent.written')
        self._send(self._bulk)

    def _send(self, bulk: Bulk) -> None:
        """Rows on their way; their answers come when they come."""
        table = self._bulk_table
        only_new = not table.is_collection and not table.spec.is_numbered
        for batch, numbering in self._numbered(self._pending, self._next_rows):
            if not table.is_collection and not only_new:
                with self._store.wire(self._name) as wire:
                    refuse_taken(wire, table, [(batch, numbering)])
            bulk.send(table.write(aligned(batch, table.record), numbering, only_new=only_new))
            reached('bulk.sent')
        self._pending, self._bytes = [], 0

    @property
    def _bulk_table(self) -> Table:
        if self._begun is None:
            raise LoadError(f'the table {self._name!r} does not exist', table=self._name)
        return Table(self._store, self._name, self._begun, self._layout.score)

    def _needs_no_checks(self) -> bool:
        """True when rows cannot meet others: numbered, in a collection without order, or set only where nothing is."""
        record = self._store.existing(self._name)
        decided = self._layout.decide(self._base(record), self._name, self._mode, self._keys)
        structure = self._layout.structure
        numbered = decided.key is None or decided.key.is_numbered
        return structure in {'string', 'set', 'sorted_set', 'list'} or (structure in {'hash', 'json'} and numbered)

    def _finish_bulk(self, bulk: Bulk) -> None:
        bulk.finish()
        bulk.close()
        if bulk.nulls:
            raise duplicates(self._bulk_table, bulk.nulls, 'that is already there')

    def _numbered(self, batches: Sequence[pa.RecordBatch], numbers: dict[int, int]) -> Iterable[Numbered]:
        for batch in batches:
            tx_id = self._first_id or 0 if self._stream is None else batch.column(TX_ID)[0].as_py()
            numbering = Numbering(tx_id, numbers.get(tx_id, 0))
            numbers[tx_id] = numbering.first_row + batch.num_rows
            yield batch, numbering

    def _take_id(self) -> None:
        if self._first_id is not None:
            return
        if self._stream is None:
            self._first_id = self._store.next_load()
        elif self._pending:
            self._first_id = self._pending[0].column(TX_ID)[0].as_py()

    def _own_stream(self) -> StreamRecord | None:
        if self._stream is None:
            return None
        return own_stream(self._store, self._stream.key, self._stream.state.epoch)
