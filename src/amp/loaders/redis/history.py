"""What was in a Redis table before: rows that are kept aside, taken back, forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from amp.loaders.redis.connect import Wire
from amp.loaders.redis.reader import Reader
from amp.loaders.redis.resp import Commands, column_bytes, packed, row_commands, unpacked, variadic
from amp.loaders.redis.store import COLLECTIONS, Piece, covers
from amp.loaders.redis.table import Column, Table
from amp.streaming.ledger import IdRun

__all__ = ['clear', 'keep_replaced', 'settle', 'undo']

_PAGE = 2048


def keep_replaced(table: Table, names: Column, ids: Sequence[int | None], piece: Piece) -> Commands:
    """Copy rows aside before rows of a stream replace them; `ids` are those of the rows that are there now."""
    commands = Commands()
    older = [name for name, found in zip(_list(names), ids, strict=True) if found not in {None, piece.tx_id}]
    for name in older:
        commands.call('COPY', name, table.store.before(table.name, piece.tx_id, name))
    if older:
        own = table.store.own
        commands.call('ZADD', own('undo', table.name), 0, piece.member)
        commands.call('SET', own('replaced', table.name, piece.member), packed(pa.array(older, pa.binary())))
    return commands


def undo(table: Table, wire: Wire, runs: Sequence[IdRun]) -> tuple[Commands, int]:
    """The commands that take rows with these ids away, and bring back what they replaced; how many rows."""
    commands, rows = Commands(), 0
    pieces = list(table.store.pieces(table.name, runs))
    undone: dict[bytes, set[int]] = {}
    for piece in pieces:
        names = table.names_of(piece)
        if table.is_collection:
            _remove_members(table, commands, names)
            rows += len(names)
        elif table.spec.is_numbered:
            _unlink(commands, names)
            rows += len(names)
        else:
            for name in _list(names):
                undone.setdefault(name, set()).add(piece.tx_id)
    rows += _take_back(table, wire, commands, undone)
    # Last: the older versions that come back are copied from what is forgotten here.
    for piece in pieces:
        _forget(table, commands, piece)
    return commands, rows


def clear(table: Table, wire: Wire) -> tuple[Commands, int]:
    """The commands that empty the table; how many rows it had.

    The pieces of units that are not done stay listed: by them their writers take away what is left. Of their rows
    only those go that have a key which others may want.
    """
    commands, rows = Commands(), 0
    if table.record.key is None:
        return commands, rows
    # In this order: the intent of a unit is there before its first piece.
    pieces = list(table.store.pieces(table.name))
    hidden = table.store.hidden(table.name)
    if table.is_collection:
        return _clear_collection(table, wire, pieces, hidden)
    for piece in pieces:
        if covers(hidden, piece.tx_id):
            if not table.spec.is_numbered:
                _take_back(table, wire, commands, {name: {piece.tx_id} for name in _list(table.names_of(piece))})
            continue
        names = table.names_of(piece)
        rows += len(names)
        _unlink(commands, names)
        _forget(table, commands, piece)
    return commands, rows


def _clear_collection(
    table: Table, wire: Wire, pieces: Sequence[Piece], hidden: Sequence[IdRun]
) -> tuple[Commands, int]:
    """All of it goes at once; but of the last piece of a unit that is not done the rows may come after its name."""
    commands, rows = Commands(), 0
    if table.kind(wire) == COLLECTIONS[table.record.structure]:
        rows = Reader(table).count([])
        commands.call('UNLINK', table.collection)
    last = [[piece for piece in pieces if covers([run], piece.tx_id)][-1:] for run in hidden]
    for piece in pieces:
        if [piece] not in last:
            _forget(table, commands, piece)
    return commands, rows


def settle(table: Table, run: IdRun) -> Commands:
    """The commands that forget how to undo these ids: they are final."""
    commands = Commands()
    if table.is_collection:
        for piece in table.store.pieces(table.name, [run]):
            _forget(table, commands, piece)
        return commands
    for piece in table.store.pieces(table.name, [run], kind='undo'):
        _forget_replaced(table, commands, piece)
    return commands


def _remove_members(table: Table, commands: Commands, members: Column) -> None:
    if not len(members):
        return
    name = {'set': 'SREM', 'sorted_set': 'ZREM', 'stream': 'XDEL'}.get(table.record.structure)
    if name is not None:
        commands.add(variadic((name, table.collection), members))
        return
    # From the end, where what is undone lies.
    removals = row_commands('LREM', pa.repeat(pa.scalar(table.collection), len(members)), ('-1',), [(b'', members)])
    commands.add(column_bytes(removals), len(removals))


def _take_back(table: Table, wire: Wire, commands: Commands, undone: Mapping[bytes, set[int]]) -> int:
    """Take some versions out of the history of each key: `undone` are their ids. How many keys had one.

    A version that somebody else has replaced meanwhile is taken out of their memory of it.
    """
    rows = 0
    for name, ids in _histories(table, wire, undone).items():
        places = [name, *(table.store.before(table.name, at, name) for at in ids)]
        kept = [(at, place) for at, place in zip(ids, places, strict=False) if at not in undone[name]]
        if len(kept) == len(ids):
            # Gone, or somebody else's.
            continue
        rows += 1
        place = name
        for at, older in kept:
            if older != place:
                commands.call('COPY', older, place, 'REPLACE')
            place = table.store.before(table.name, at, name)
        if not kept or place != places[-1]:
            commands.call('UNLINK', place)
    return rows


def _histories(table: Table, wire: Wire, undone: Mapping[bytes, set[int]]) -> dict[bytes, list[int]]:
    """The ids of the versions of each key, newest first, at least as far as what is undone and one more.

    All of it is watched.
    """
    found: dict[bytes, list[int]] = {name: [] for name in undone}
    asked = [(name, name) for name in undone]
    while asked:
        older = []
        for at in range(0, len(asked), _PAGE):
            page = asked[at : at + _PAGE]
            places = [place for _, place in page]
            wire.call('WATCH', *places)
            for (name, _), tx_id in zip(page, table.ids_of(wire, places), strict=True):
                if tx_id is None:
                    continue
                if not undone[name].issubset(found[name]):
                    older.append((name, table.store.before(table.name, tx_id, name)))
                found[name].append(tx_id)
        asked = older
    return found


def _forget(table: Table, commands: Commands, piece: Piece) -> None:
    own = table.store.own
    commands.call('ZREM', own('units', table.name), piece.member)
    commands.call('UNLINK', own('keys', table.name, piece.member))
    if table.record.is_upserted:
        _forget_replaced(table, commands, piece)


def _forget_replaced(table: Table, commands: Commands, piece: Piece) -> None:
    own = table.store.own
    stored = table.store.read('GET', own('replaced', table.name, piece.member))
    if stored is None:
        return
    for name in _list(unpacked(stored)):
        commands.call('UNLINK', table.store.before(table.name, piece.tx_id, name))
    commands.call('UNLINK', own('replaced', table.name, piece.member))
    commands.call('ZREM', own('undo', table.name), piece.member)


def _unlink(commands: Commands, names: Column) -> None:
    if len(names):
        commands.add(variadic(('UNLINK',), names))


def _list(names: Column) -> list[bytes]:
    found: list[bytes] = names.to_numpy(zero_copy_only=False).tolist()
    return found
