"""What a Redis server remembers of tables and streams: which keys hold what, and how to look at it.

    _amp:numbers                hash    stream -> its number, given once
    _amp:loads                  counter ids of loads that are no stream
    _amp:stream:<t>:<name>      JSON    number, epoch, claim, document; of a unit that is not done its first id, and
                                        how its rows lie
    _amp:table:<t>              JSON    columns, structure, key
    _amp:units:<t>              sorted  one member a piece of a unit: <id>:<first row>:<rows>, all with score 0; `:ttl`
                                        at its end says that its rows expire
    _amp:keys:<t>:<member>      bytes   the keys (in a collection: the members) of that piece; where rows are counted,
                                        they are made again from the member, and not kept
    _amp:before:<t>:<id>:<key>          the row that a row with that id replaced
    _amp:replaced:<t>:<member>  bytes   the keys of which there is such a row
    _amp:seq:<t>                counter of pieces, for the ids of a Redis stream
    _amp:loading:<t>            hash    loads that are not done -> whose they are, and how their rows lie

Scores are no ids: an id has 63 bits, and a score 53. Names are quoted, so that no two of these are ever one key. On a
cluster everything of a table begins with `{<table>}`, which keeps it on one shard.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from amp.errors import IntegrityError, LoadError
from amp.loaders import keyed
from amp.loaders.keyed import Writer
from amp.loaders.redis.connect import Server, Wire, explained
from amp.loaders.redis.resp import unpacked
from amp.loaders.row_keys import KeySpec
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import StreamInfo
from amp.streaming.ledger import IdRun, StreamKey, StreamState, stream_interval

__all__ = ['COLLECTIONS', 'Loading', 'Piece', 'Store', 'StreamRecord', 'TableRecord', 'covers']

COLLECTIONS = {'stream': 'stream', 'set': 'set', 'sorted_set': 'zset', 'list': 'list'}
"""Structures that keep all rows of a table under one key, and what Redis calls the type of that key."""

_PAGE = 512


def covers(runs: Sequence[IdRun], tx_id: int) -> bool:
    """True when an id lies in one of the runs."""
    return any(run.first <= tx_id <= run.last for run in runs)


@dataclass(frozen=True)
class TableRecord:
    """A table: its columns, the structure of its rows, what their keys are made of (None: never written).

    `token` is another one whenever the table was made or cleared: who has begun before sees it.
    """

    schema: pa.Schema
    structure: str
    key: KeySpec | None = None
    is_upserted: bool = False
    token: str = ''

    @property
    def kept_schema(self) -> pa.Schema:
        """The columns without the id, which is kept beside them."""
        at = self.schema.get_field_index(TX_ID)
        return self.schema if at < 0 else self.schema.remove(at)

    def to_json(self) -> str:
        """As it is stored."""
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        key = None if self.key is None else self.key.parts
        told = {'structure': self.structure, 'key': key, 'upserted': self.is_upserted, 'token': self.token}
        return json.dumps({**told, 'schema': schema})

    def anew(self) -> TableRecord:
        """As it is, but for who has begun to write before: they shall not go on."""
        return replace(self, token=secrets.token_hex(8))

    @property
    def layout(self) -> str:
        """How its rows lie, as JSON: enough to take them away when the table is gone or another one."""
        return replace(self, schema=pa.schema([])).to_json()

    @classmethod
    def from_json(cls, stored: bytes | str) -> TableRecord:
        """From what is stored. Raises IntegrityError."""
        try:
            told = json.loads(stored)
            key = None if told['key'] is None else KeySpec(tuple((kind, text) for kind, text in told['key']))
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told['schema'])))
            return cls(schema, told['structure'], key, told['upserted'], told.get('token', ''))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f'what is stored of a table does not parse: {stored[:120]!r}') from error


@dataclass(frozen=True)
class Loading(Writer):
    """A load that is not done: whose it is, and how its rows lie (nothing: as the table says)."""

    layout: str = ''

    @classmethod
    def of(cls, record: TableRecord | None) -> Loading:
        """Of this process."""
        return cls(**asdict(Writer.ours()), layout='' if record is None else record.layout)


@dataclass(frozen=True, kw_only=True)
class StreamRecord(keyed.StreamRecord):
    """A stream. `intent`: the first id of a unit that is not done; `clients`: connections that write it; `layout`: how."""

    intent: int | None = None
    layout: str = ''
    clients: list[int] = field(default_factory=list)
    run_id: str = ''

    @property
    def hidden(self) -> list[IdRun]:
        """Ids that no reader may see."""
        return [] if self.intent is None else [IdRun(self.intent, stream_interval(self.number).last)]

    def done(self, state: StreamState | None = None) -> StreamRecord:
        """Without a unit that is not done; with what is committed now."""
        record = self if state is None else self.with_state(state, committed=True)
        return replace(record, intent=None, clients=[], layout='')


@dataclass(frozen=True)
class Piece:
    """Rows of one transaction that were written together; `expires`: with a time to live."""

    tx_id: int
    first_row: int
    rows: int
    expires: bool = False

    @property
    def member(self) -> str:
        """Its name: members sort as their ids do."""
        return f'{self.tx_id:019d}:{self.first_row:010d}:{self.rows:08d}' + (':ttl' if self.expires else '')

    @classmethod
    def of(cls, member: bytes) -> Piece:
        """From its name."""
        tx_id, first_row, rows, *more = member.split(b':')
        return cls(int(tx_id), int(first_row), int(rows), bool(more))


class Store:
    """Names, records and reads. What is written, `unit.py` writes."""

    def __init__(self, server: Server, ttl: int | None = None) -> None:
        self.server = server
        self.ttl = ttl
        self._idle: list[Wire] = []

    # Names

    def tag(self, table: str) -> str:
        """What every key of a table begins with: nothing, except on a cluster."""
        return '{' + quote(table, safe=' :/') + '}' if self.server.place.cluster else ''

    def own(self, kind: str, table: str, *rest: str) -> str:
        """The name of one of our own keys."""
        names = (quote(name, safe='', errors='surrogatepass') for name in (table, *rest))
        return ':'.join((f'{self.tag(table)}_amp', kind, *names))

    def before(self, table: str, tx_id: int, key: bytes) -> bytes:
        """The key of a row that was replaced."""
        return self.own('before', table, str(tx_id)).encode() + b':' + key

    # Connections

    @contextmanager
    def wire(self, table: str) -> Iterator[Wire]:
        """A connection to where a table lives, kept for the next one when all went well."""
        wire = self._kept() or self.server.wire(self.tag(table))
        try:
            yield wire
        except BaseException:  # Ctrl-C too: with a command half sent, no other may use it
            wire.close()
            raise
        if self.server.place.cluster:
            wire.close()
        else:
            self._idle.append(wire)

    def _kept(self) -> Wire | None:
        """One that is idle; servers hang up on those that are it for long."""
        while self._idle:
            wire = self._idle.pop()
            if wire.is_alive:
                return wire
            wire.close()
        return None

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop().close()
        self.server.close()

    def read(self, *arguments: Any) -> Any:
        """One command that reads, or changes one thing by itself."""
        with explained(self.server.place):
            return self.server.client.execute_command(*arguments)

    # Records

    def table(self, name: str) -> TableRecord | None:
        """The record of a table; None when it is not there."""
        stored = self.read('GET', self.own('table', name))
        return None if stored is None else TableRecord.from_json(stored)

    def existing(self, name: str) -> TableRecord:
        """Raises LoadError when it is not there."""
        record = self.table(name)
        if record is None:
            raise LoadError(f'the table {name!r} does not exist', table=name)
        return record

    def stream(self, key: StreamKey) -> StreamRecord | None:
        """The record of a stream; None when it is new."""
        stored = self.read('GET', self.own('stream', key.table, key.name))
        return None if stored is None else StreamRecord.from_json(stored)

    def numbers(self) -> dict[StreamKey, int]:
        """Every stream and its number."""
        with explained(self.server.place):
            stored = self.server.client.hgetall('_amp:numbers')
        return {StreamKey(*json.loads(key)): int(number) for key, number in stored.items()}

    def number(self, key: StreamKey) -> int:
        """The number of a stream, given now if it has none."""
        packed = json.dumps(key)
        known = self.read('HGET', '_amp:numbers', packed)
        if known is None:
            # A number that somebody else was quicker to give is never used: there are enough.
            self.read('HSETNX', '_amp:numbers', packed, self.read('INCR', '_amp:last_number'))
            known = self.read('HGET', '_amp:numbers', packed)
        return int(known)

    def streams(self) -> list[StreamInfo]:
        """Every stream, by number."""
        found = []
        for key in sorted(self.numbers(), key=lambda key: key.name):
            record = self.stream(key)
            if record is not None:
                found.append((record.number, record.info(key)))
        return [info for _, info in sorted(found, key=lambda pair: pair[0])]

    def hidden(self, table: str) -> list[IdRun]:
        """Ids of a table that no reader may see."""
        runs = [IdRun(load, load) for load in self.loading(table)]
        for key in self.numbers():
            record = self.stream(key) if key.table == table else None
            runs += record.hidden if record is not None else []
        return runs

    # Loads that are no stream

    def next_load(self) -> int:
        """A fresh id."""
        return int(self.read('INCR', '_amp:loads'))

    def loading(self, table: str) -> dict[int, Loading]:
        """The loads into a table that are not done, and whose they are."""
        with explained(self.server.place):
            stored = self.server.client.hgetall(self.own('loading', table))
        return {int(load): Loading(**json.loads(whose)) for load, whose in stored.items()}

    # Pieces

    def pieces(self, table: str, runs: Sequence[IdRun] | None = None, kind: str = 'units') -> Iterator[Piece]:
        """The pieces of a table, of some ids or of all, by id."""
        for run in [IdRun(0, (1 << 63) - 1)] if runs is None else runs:
            low, high = f'[{run.first:019d}', f'({run.last + 1:019d}'
            while True:
                args = ('ZRANGEBYLEX', self.own(kind, table), low, high, 'LIMIT', 0, _PAGE)
                members = self.read(*args)
                yield from map(Piece.of, members)
                if len(members) < _PAGE:
                    break
                low = f'({members[-1].decode()}'

    def keys_of(self, table: str, piece: Piece) -> Any:
        """The keys (in a collection: the members) of a piece, as an Arrow column; none when they have expired."""
        stored = self.read('GET', self.own('keys', table, piece.member))
        return pa.array([], pa.binary()) if stored is None else unpacked(stored)
