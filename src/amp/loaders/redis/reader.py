"""The rows of one Redis table, read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute

from amp.loaders.redis.connect import Wire, explained
from amp.loaders.redis.resp import Commands
from amp.loaders.redis.rows import rows_of_fields, rows_of_json
from amp.loaders.redis.store import covers
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun

if TYPE_CHECKING:
    from amp.loaders.redis.table import Table

__all__ = ['Reader', 'there']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array."""

_PAGE = 2048


@dataclass(frozen=True)
class Reader:
    """Reads a table."""

    table: Table

    def count(self, hidden: Sequence[IdRun]) -> int:
        """The number of rows, without the hidden ones."""
        if self.table.record.key is None:
            return 0
        if self.table.is_collection:
            name = {'list': 'LLEN', 'set': 'SCARD', 'sorted_set': 'ZCARD', 'stream': 'XLEN'}[
                self.table.record.structure
            ]
            unseen = sum(piece.rows for piece in self.table.store.pieces(self.table.name, hidden))
            # While a unit is under way into a collection that was cleared, its last piece is listed without its rows.
            return max(0, int(self.table.store.read(name, self.table.collection)) - unseen)
        pieces = list(self.table.store.pieces(self.table.name))
        expires = self.table.store.ttl is not None or any(piece.expires for piece in pieces)
        if self.table.record.is_upserted or expires:
            return sum(batch.num_rows for batch, _ in self.scan(hidden))
        return sum(piece.rows for piece in pieces if not covers(hidden, piece.tx_id))

    def scan(self, hidden: Sequence[IdRun]) -> Iterator[tuple[pa.RecordBatch, Column]]:
        """Batches of the kept schema, with the ids of their rows."""
        if self.table.record.key is None:
            return
        batches = self._scan_collection() if self.table.is_collection else self._scan_keys(hidden)
        for batch, ids in batches:
            shown = np.ones(batch.num_rows, bool)
            for run in hidden:
                shown &= ~pc.and_(pc.greater_equal(ids, run.first), pc.less_equal(ids, run.last)).to_numpy(
                    zero_copy_only=False
                )
            mask: Any = pa.array(shown)
            yield (batch, ids) if shown.all() else (batch.filter(mask), ids.filter(mask))

    def get(self, key: bytes, hidden: Sequence[IdRun]) -> pa.RecordBatch | None:
        """The row under a key, as a batch of one row; None when it is not there."""
        batch, ids = self._fetch([key])
        if not batch.num_rows or covers(hidden, ids[0].as_py()):
            return None
        return batch

    def _scan_keys(self, hidden: Sequence[IdRun]) -> Iterator[tuple[pa.RecordBatch, Column]]:
        for piece in self.table.store.pieces(self.table.name):
            if covers(hidden, piece.tx_id):
                continue
            names = _list(self.table.names_of(piece))
            for at in range(0, len(names), _PAGE):
                batch, ids = self._fetch(names[at : at + _PAGE])
                # A row that was replaced since is listed with what replaced it.
                own: Any = pc.equal(ids, piece.tx_id)
                yield batch.filter(own), ids.filter(own)

    def _fetch(self, names: Sequence[bytes]) -> tuple[pa.RecordBatch, Column]:
        schema = self.table.record.kept_schema.append(pa.field(TX_ID, pa.int64()))
        with explained(self.table.store.server.place):
            pipe = self.table.store.server.client.pipeline(transaction=False)
            if self.table.record.structure == 'hash':
                for name in names:
                    pipe.hmget(name, schema.names)
                rows = [row for row in pipe.execute() if row[-1] is not None]
                return _split(rows_of_fields(rows, schema))
            for name in names:
                pipe.execute_command('GET' if self.table.record.structure == 'string' else 'JSON.GET', name)
            return _split(rows_of_json([row for row in pipe.execute() if row is not None], schema))

    def _scan_collection(self) -> Iterator[tuple[pa.RecordBatch, Column]]:
        schema = self.table.record.kept_schema.append(pa.field(TX_ID, pa.int64()))
        if self.table.record.structure == 'stream':
            for entries in self._entries():
                rows = [[fields.get(name) for name in map(str.encode, schema.names)] for fields in entries]
                yield _split(rows_of_fields(rows, schema))
            return
        for members in self._members():
            yield _split(rows_of_json(members, schema))

    def _entries(self) -> Iterator[list[dict[bytes, bytes]]]:
        start = '-'
        while True:
            with explained(self.table.store.server.place):
                found = self.table.store.server.client.xrange(self.table.collection, start, '+', _PAGE)
            if not found:
                return
            yield [fields for _, fields in found]
            start = '(' + found[-1][0].decode()

    def _members(self) -> Iterator[list[bytes]]:
        client, key = self.table.store.server.client, self.table.collection
        if self.table.record.structure == 'set':
            at = 0
            seen: set[bytes] = set()
            while True:
                with explained(self.table.store.server.place):
                    at, members = client.sscan(key, at, count=_PAGE)
                # A scan of a set may show a member twice.
                yield [member for member in members if member not in seen]
                seen.update(members)
                if not at:
                    return
        read = client.lrange if self.table.record.structure == 'list' else client.zrange
        start = 0
        while True:
            with explained(self.table.store.server.place):
                members = read(key, start, start + _PAGE - 1)
            if not members:
                return
            yield members
            start += _PAGE


def there(wire: Wire, names: Sequence[bytes]) -> list[bytes]:
    """Those of some keys that exist."""
    if not names:
        return []
    ask = Commands()
    ask.call('EXISTS', *names)
    if not wire.calls(ask)[0]:
        return []
    each = Commands()
    for name in names:
        each.call('EXISTS', name)
    return [name for name, found in zip(names, wire.calls(each), strict=True) if found]


def _split(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Column]:
    return batch.drop_columns([TX_ID]), batch.column(TX_ID)


def _list(names: Column) -> list[bytes]:
    found: list[bytes] = names.to_numpy(zero_copy_only=False).tolist()
    return found
