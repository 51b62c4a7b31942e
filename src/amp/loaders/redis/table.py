"""The rows of one Redis table: what they are called, and the commands that write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute

from amp.errors import LoadError, SchemaError
from amp.loaders.redis.connect import FOREIGN, Wire
from amp.loaders.redis.reader import there
from amp.loaders.redis.resp import (
    Commands,
    Literal,
    column_bytes,
    joined,
    packed,
    row_commands,
    variadic,
)
from amp.loaders.redis.rows import fields_of, json_rows
from amp.loaders.redis.store import COLLECTIONS, Piece, Store, TableRecord
from amp.loaders.row_keys import KeySpec, Numbering
from amp.loaders.stamps import TX_ID

__all__ = ['Table']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array."""

_EXACT = 1 << 53
_ID_IN_JSON = re.compile(rb'"_amp_tx_id":(\d+)')
_SCORES = ('block_num', '_block_num', 'block_number')


@dataclass(frozen=True)
class Table:
    """A table of which the record is known. `score` names the column that orders a sorted set."""

    store: Store
    name: str
    record: TableRecord
    score: str | None = None

    @property
    def is_collection(self) -> bool:
        """True when all rows lie under one key."""
        return self.record.structure in COLLECTIONS

    @property
    def collection(self) -> bytes:
        """That key."""
        literal = ''.join(text for kind, text in self.spec.parts if kind == 'text')
        return (self.store.tag(self.name) + literal).encode()

    @property
    def spec(self) -> KeySpec:
        """What keys are made of."""
        if self.record.key is None:
            raise LoadError(f'the table {self.name!r} has no rows yet', table=self.name)
        return self.record.key

    # Writing

    def names(self, batch: pa.RecordBatch, numbering: Numbering) -> Column:
        """The key of each row. Raises SchemaError for a null in a key column."""
        return self._tagged(self.spec.encode(batch, numbering))

    def names_of(self, piece: Piece) -> Column:
        """The keys (in a collection: the members) of a piece; none when they have expired."""
        if self._are_counted and not piece.expires:
            return self._tagged(self.spec.counted(piece.rows, Numbering(piece.tx_id, piece.first_row)))
        return self.store.keys_of(self.name, piece)

    def piece(self, numbering: Numbering, rows: int) -> Piece:
        """What rows that are written together are called."""
        return Piece(numbering.tx_id, numbering.first_row, rows, self.store.ttl is not None)

    @property
    def _are_counted(self) -> bool:
        return not self.is_collection and self.spec.is_counted

    def _tagged(self, keys: Column) -> Column:
        tag = self.store.tag(self.name)
        return joined(tag.encode(), keys) if tag else keys

    def write(
        self, batch: pa.RecordBatch, numbering: Numbering, *, seq: int = 0, indexed: bool = True, only_new: bool = False
    ) -> Commands:
        """The commands that write rows; `indexed`: and, before them, how to find them again."""
        commands = Commands()
        piece = self.piece(numbering, batch.num_rows)
        names, rows = self._rows(batch, numbering, seq, only_new=only_new)
        if indexed:
            self._index(commands, piece, names)
        commands.extend(rows)
        return commands

    def _rows(
        self, batch: pa.RecordBatch, numbering: Numbering, seq: int, *, only_new: bool
    ) -> tuple[Column, Commands]:
        """What finds the rows, and the commands that write them."""
        ttl = self.store.ttl
        match self.record.structure:
            case 'hash':
                names = self.names(batch, numbering)
                commands = _each(row_commands('HSET', names, (), self._fields(batch, numbering.tx_id)))
                if ttl is not None:
                    commands.extend(_each(row_commands('EXPIRE', names, (), [], (ttl,))))
                return names, commands
            case 'string':
                names = self.names(batch, numbering)
                after: list[Literal] = ['NX'] if only_new else []
                after += [] if ttl is None else ['EX', ttl]
                return names, _each(row_commands('SET', names, (), [(b'', json_rows(batch, numbering.tx_id))], after))
            case 'json':
                names = self.names(batch, numbering)
                rows = json_rows(batch, numbering.tx_id)
                commands = _each(row_commands('JSON.SET', names, ('$',), [(b'', rows)]))
                if ttl is not None:
                    commands.extend(_each(row_commands('EXPIRE', names, (), [], (ttl,))))
                return names, commands
            case 'stream':
                names = _ids(seq, batch.num_rows)
                keys = pa.repeat(pa.scalar(self.collection, pa.binary()), batch.num_rows)
                fields = [(b'', names), *self._fields(batch, numbering.tx_id)]
                commands = _each(row_commands('XADD', keys, (), fields), lines=2)
            case _:
                names = json_rows(batch, numbering.tx_id, _numbers(batch.num_rows, numbering))
                commands = Commands()
                commands.add(self._into_collection(batch, names, numbering))
        if ttl is not None:
            commands.call('EXPIRE', self.collection, ttl)
        return names, commands

    def _into_collection(self, batch: pa.RecordBatch, members: Column, numbering: Numbering) -> bytes:
        if self.record.structure != 'sorted_set':
            return variadic(({'list': 'RPUSH', 'set': 'SADD'}[self.record.structure], self.collection), members)
        return variadic(('ZADD', self.collection), self._scores(batch, numbering), members)

    def _fields(self, batch: pa.RecordBatch, tx_id: int) -> list[tuple[bytes, Column]]:
        own = pa.repeat(pa.scalar(str(tx_id).encode(), pa.binary()), batch.num_rows)
        return [*fields_of(batch), (TX_ID.encode(), own)]

    def _scores(self, batch: pa.RecordBatch, numbering: Numbering) -> Column:
        name = self.score or next((n for n in _SCORES if n in batch.schema.names), None)
        if name is None:
            counted: Any = np.arange(numbering.first_row, numbering.first_row + batch.num_rows)
            return pa.array(counted).cast(pa.string()).cast(pa.binary())
        if name not in batch.schema.names:
            raise SchemaError(f'the score column {name!r} is not in the rows', column=name)
        column: Any = batch.column(name)
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        bounds = pc.min_max(column) if number else None
        if (
            bounds is None
            or column.null_count
            or max(map(abs, (bounds['max'].as_py(), bounds['min'].as_py()))) > _EXACT
        ):
            raise SchemaError(
                f'the score column {name!r} must hold numbers up to 2^53 and no nulls: a score is a double', column=name
            )
        return column.cast(pa.string()).cast(pa.binary())

    def _index(self, commands: Commands, piece: Piece, names: Column) -> None:
        own = self.store.own
        commands.call('ZADD', own('units', self.name), 0, piece.member)
        if self._are_counted and not piece.expires:
            return
        after = () if self.store.ttl is None else ('EX', self.store.ttl)
        commands.call('SET', own('keys', self.name, piece.member), packed(names), *after)

    # What lies there

    def kind(self, wire: Wire) -> str:
        """The type of what lies under the key of a collection; `none` for nothing."""
        found: bytes = wire.call('TYPE', self.collection)
        return found.decode()

    def ids_of(self, wire: Wire, names: Sequence[bytes]) -> list[int | None]:
        """The ids of the rows that lie under some keys now; None where nothing is, 0 where something else is."""
        if not names:
            return []
        asks = Commands()
        for name in names:
            asks.call(*self._ask_id(name))
        found = [self._id_in(answer) for answer in wire.peek(asks)]
        if self.record.structure == 'hash':
            # A hash that has no id is not ours.
            others = set(there(wire, [name for name, at in zip(names, found, strict=True) if at is None]))
            found = [0 if name in others else at for name, at in zip(names, found, strict=True)]
        return found

    def _ask_id(self, name: bytes) -> tuple[Literal, ...]:
        structure = self.record.structure
        if structure == 'hash':
            return ('HGET', name, TX_ID)
        return ('GET', name) if structure == 'string' else ('JSON.GET', name)

    def _id_in(self, answer: Any) -> int | None:
        if answer is None:
            return None
        if answer is FOREIGN:
            return 0
        if self.record.structure == 'hash':
            return int(answer)
        found = _ID_IN_JSON.findall(answer)
        return int(found[-1]) if found else 0


def _each(column: Column, lines: int = 1) -> Commands:
    commands = Commands()
    commands.add(column_bytes(column), len(column), lines)
    return commands


def _ids(seq: int, rows: int) -> Column:
    """The ids of the entries of a Redis stream: a number of the piece, and of the row in it."""
    counted: Any = np.arange(rows)
    return joined(f'{seq}-'.encode(), pa.array(counted).cast(pa.string()).cast(pa.binary()))


def _numbers(rows: int, numbering: Numbering) -> Column:
    counted: Any = np.arange(numbering.first_row, numbering.first_row + rows)
    return joined(f'{numbering.tx_id}:'.encode(), pa.array(counted).cast(pa.string()).cast(pa.binary())).cast(
        pa.string()
    )
