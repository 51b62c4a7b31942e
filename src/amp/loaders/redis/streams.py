"""Taking a Redis stream over: the epoch, whoever wrote before, and the rows of what was never finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from amp.errors import DestinationError
from amp.loaders.keyed import still_owned
from amp.loaders.points import reached
from amp.loaders.redis import history
from amp.loaders.redis.connect import Wire
from amp.loaders.redis.layout import Layout
from amp.loaders.redis.reader import Reader
from amp.loaders.redis.resp import Commands
from amp.loaders.redis.store import COLLECTIONS, Store, StreamRecord, TableRecord
from amp.loaders.redis.table import Table
from amp.loaders.unit import Claim
from amp.streaming.ledger import IdRun, StreamKey, StreamState

__all__ = ['busy', 'cut', 'drop_table', 'own_stream', 'sweep', 'sweep_load', 'take_stream']

MOST_TRIES = 200
_PIECES_AT_ONCE = 64


def own_stream(store: Store, key: StreamKey, epoch: int) -> StreamRecord:
    """The record of a stream that must still have our epoch. Raises StaleEpochError."""
    return still_owned(store.stream(key), key, epoch)


def take_stream(store: Store, layout: Layout, key: StreamKey, claim: Claim, after: int | None) -> StreamState:
    """Raise the epoch in favour of `claim`, cut off who wrote before, and take away what was never done."""
    number, name = store.number(key), store.own('stream', *key)
    for _ in range(MOST_TRIES):
        with store.wire(key.table) as wire:
            wire.call('WATCH', name)
            found = store.stream(key) or StreamRecord(number=number, epoch=0, claim=claim)
            taken = found.taken_by(claim, key, after)
            commands = Commands()
            commands.call('SET', name, taken.to_json())
            if not wire.transact(commands):
                continue
        reached('open.taken')
        if taken.intent is not None:
            if taken.clients and taken.run_id == store.server.run_id():
                cut(store, key.table, taken.clients)
            sweep(store, key.table, layout, key, taken.epoch)
        reached('open.swept')
        return taken.state()
    raise busy(f'the stream {key.name!r} of {key.table!r} is taken by others')


def drop_table(store: Store, table: str, *, only_empty: bool = False) -> None:
    """Take a table away with all of its rows; `only_empty`: when it has none, nor will have any of a load under way."""
    for _ in range(MOST_TRIES):
        with store.wire(table) as wire:
            wire.call('WATCH', store.own('table', table), store.own('units', table), store.own('loading', table))
            record = store.table(table)
            if record is None or (only_empty and _is_used(store, wire, Table(store, table, record))):
                wire.call('UNWATCH')
                return
            commands, _rows = history.clear(Table(store, table, record), wire)
            # The pieces and marks of who still writes stay: by them they find what they have to take away. Ids of
            # entries of a Redis stream do not begin anew meanwhile, or they would take others away.
            for kind in ('table', 'undo') if store.hidden(table) else ('table', 'undo', 'seq'):
                commands.call('UNLINK', store.own(kind, table))
            if wire.transact(commands):
                return
    raise busy(f'others write to {table!r}')


def _is_used(store: Store, wire: Wire, table: Table) -> bool:
    if store.hidden(table.name) or next(store.pieces(table.name), None) is not None:
        return True
    if table.record.key is None or not table.is_collection:
        return False
    wire.call('WATCH', table.collection)
    return table.kind(wire) == COLLECTIONS[table.record.structure] and Reader(table).count([]) > 0


def sweep(store: Store, table: str, layout: Layout, key: StreamKey, epoch: int) -> None:
    """Take away the rows of a unit that was never done, some pieces at a time, and then its intent."""
    record = own_stream(store, key, epoch)
    _sweep_pieces(store, table, layout, record.layout, record.hidden, lambda: own_stream(store, key, epoch))
    with store.wire(table) as wire:
        wire.call('WATCH', store.own('stream', *key))
        record = own_stream(store, key, epoch)
        commands = Commands()
        commands.call('SET', store.own('stream', *key), record.done().to_json())
        wire.transact(commands)


def sweep_load(store: Store, table: str, layout: Layout, load: int) -> None:
    """The same for a load that is no stream."""
    mark = store.loading(table).get(load)
    _sweep_pieces(store, table, layout, '' if mark is None else mark.layout, [IdRun(load, load)], lambda: None)
    store.read('HDEL', store.own('loading', table), load)


def _sweep_pieces(
    store: Store, table: str, layout: Layout, kept: str, runs: Sequence[IdRun], still_ours: Callable[[], object]
) -> None:
    # The table may be gone by now, or another one.
    record = TableRecord.from_json(kept) if kept else store.table(table)
    if record is None or record.key is None:
        return
    rows = Table(store, table, record, layout.score)
    pieces = list(store.pieces(table, runs))
    for at in range(0, len(pieces), _PIECES_AT_ONCE):
        part = pieces[at : at + _PIECES_AT_ONCE]
        run = IdRun(part[0].tx_id, part[-1].tx_id)
        still_ours()
        for _ in range(MOST_TRIES):
            with store.wire(table) as wire:
                commands, _rows = history.undo(rows, wire, [run])
                if not commands.count or wire.transact(commands):
                    break


def cut(store: Store, table: str, clients: Iterable[int]) -> None:
    """Close connections of an older writer: what they have not said yet is never heard."""
    for client in clients:
        with store.wire(table) as wire:
            wire.call('CLIENT', 'KILL', 'ID', client)


def busy(what: str) -> DestinationError:
    """The error for something that others change all the time."""
    error = DestinationError(f'{what} all the time', hint='try again')
    error.retryable = True
    return error
