"""What is refused before anything is written: keys of others, and keys that are there already.

In a transaction a command that fails takes nothing back, so whatever could fail is looked at, and watched, before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute

from amp.errors import LoadError
from amp.loaders.keyed import FIRST_STREAM_ID
from amp.loaders.redis.connect import Wire
from amp.loaders.redis.layout import aligned
from amp.loaders.redis.reader import there
from amp.loaders.redis.resp import Commands, variadic
from amp.loaders.redis.store import COLLECTIONS, TableRecord
from amp.loaders.redis.table import Table
from amp.loaders.row_keys import Numbering
from amp.streaming.ledger import IdRun

__all__ = [
    'Numbered',
    'duplicates',
    'is_own',
    'last_of_equals',
    'refuse_duplicates',
    'refuse_foreign',
    'refuse_strangers',
    'refuse_taken',
]

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Numbered: TypeAlias = tuple[pa.RecordBatch, Numbering]
"""Rows, and what they are called."""


def refuse_foreign(wire: Wire, table: Table, stored: TableRecord | None) -> None:
    """The key of a collection must be free or ours: in a transaction it would fail when all the rest is done."""
    if table.record.key is None or not table.is_collection:
        return
    kind, ours = table.kind(wire), {'none'}
    if stored is not None and stored.key is not None and stored.structure in COLLECTIONS:
        older = Table(table.store, table.name, stored)
        ours |= {COLLECTIONS[stored.structure]} if older.collection == table.collection else set()
    # When another one was quicker to write the first rows, this transaction does nothing and is built again.
    if kind not in ours and table.store.table(table.name) == stored:
        raise _not_ours(table, [table.collection])
    if kind == 'none':
        wire.call('WATCH', table.collection)


def refuse_duplicates(
    wire: Wire, table: Table, batches: Sequence[Numbered], leaving: Callable[[set[int]], set[int]]
) -> None:
    """Keys of rows that only append: none may be there already, nor twice; `leaving` knows ids that go before."""
    columns = [table.names(aligned(batch, table.record), numbering) for batch, numbering in batches]
    names: Any = pa.chunked_array(columns, pa.binary()).combine_chunks() if columns else pa.array([], pa.binary())
    if not len(names):
        return
    watch, ask = Commands(), Commands()
    watch.add(variadic(('WATCH',), names))
    ask.add(variadic(('EXISTS',), names))
    wire.calls(watch)
    [known] = wire.calls(ask)
    found = table.ids_of(wire, names.to_numpy(zero_copy_only=False).tolist()) if known else []
    staying = {at for at in found if at is not None} - leaving({at for at in found if at is not None})
    if 0 in staying:
        raise _not_ours(table, [name.as_py() for name, at in zip(names, found, strict=True) if at == 0])
    if staying:
        met = [name for name, at in zip(names, found, strict=True) if at in staying]
        raise duplicates(table, len(met), f'that is already there, for example {met[0].as_py()!r}')
    twice = len(names) - pc.count_distinct(names).as_py()
    if twice:
        counted = pc.value_counts(names)
        example = counted.field('values').filter(pc.greater(counted.field('counts'), 1))[0].as_py()
        raise duplicates(table, twice, f'of another row of the same load, for example {example!r}')


def refuse_taken(wire: Wire, table: Table, batches: Sequence[Numbered]) -> None:
    """Keys that no other rows of ours have: what lies there is somebody else's."""
    for batch, numbering in batches:
        if numbering.tx_id >= FIRST_STREAM_ID:
            # Nobody else has keys with the number of a stream's transaction in them, and a look a row costs a seventh.
            continue
        # Counting needs no columns.
        names = table.names(batch if table.spec.is_counted else aligned(batch, table.record), numbering)
        ask = Commands()
        ask.add(variadic(('EXISTS',), names))
        if len(names) and wire.calls(ask)[0]:
            found = there(wire, names.to_numpy(zero_copy_only=False).tolist())
            if found:  # and has not expired meanwhile
                raise _not_ours(table, found)


def refuse_strangers(table: Table, ids: Iterable[int]) -> None:
    """Rows that are to be replaced must be of the same table."""
    for tx_id in ids:
        if not is_own(table, tx_id):
            raise LoadError(
                f'a key of the rows of {table.name!r} belongs to another table, so it is not replaced',
                hint='use another key_pattern',
                table=table.name,
            )


def is_own(table: Table, tx_id: int) -> bool:
    """True when rows of an id are in this table, whatever the key that they were found by looks like."""
    return next(table.store.pieces(table.name, [IdRun(tx_id, tx_id)]), None) is not None


def last_of_equals(table: Table, batches: Sequence[Numbered]) -> list[Numbered]:
    """Of the rows of one id that have one key the last. Those of several ids stay: each may be undone by itself."""
    of_id: dict[int, list[Numbered]] = {}
    for batch, numbering in batches:
        of_id.setdefault(numbering.tx_id, []).append((batch, numbering))
    kept = []
    for parts in of_id.values():
        whole: Any = pa.Table.from_batches([batch for batch, _ in parts]).combine_chunks()
        [batch] = whole.to_batches() or [parts[0][0]]
        numbering = parts[0][1]
        codes = table.names(aligned(batch, table.record), numbering).dictionary_encode().indices.to_numpy()
        last: Any = np.zeros(codes.max(initial=-1) + 1, np.int64)
        last[codes] = np.arange(len(codes))
        kept.append((batch.take(pa.array(np.sort(last))), numbering))
    return kept


def _not_ours(table: Table, keys: Sequence[bytes]) -> LoadError:
    return LoadError(
        f'{len(keys)} keys of {table.name!r} hold something that is not of this table, for example {keys[0]!r}',
        hint='nothing of the unit was kept; move them away, or use another key_pattern',
        table=table.name,
    )


def duplicates(table: Table, count: int, where: str) -> LoadError:
    """The error for keys that are there more than once."""
    return LoadError(
        f'{count} rows of {table.name!r} have a key ({", ".join(table.spec.columns)}) {where}',
        hint="nothing of the unit was kept; mode='upsert' replaces rows by key",
        table=table.name,
    )
