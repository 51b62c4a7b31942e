"""What an LMDB environment remembers of its tables, streams and unfinished loads. All of it inside a transaction."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from amp.errors import ConfigError, IntegrityError
from amp.loaders import keyed
from amp.loaders.keyed import Writer, still_owned
from amp.loaders.row_keys import KeySpec
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import IdRun, StreamKey

__all__ = ['Catalog', 'Intent', 'StreamRecord', 'TableRecord', 'database_names']

_ID = struct.Struct('>Q')
_LONGEST_NAME = 400


@dataclass(frozen=True)
class TableRecord:
    """A table: its columns, and how its rows are kept (`layout` None: nothing was ever written).

    `layout` is `rows` or `batches`, `serialization` `arrow` or `msgpack`, `key` what a row's key is made of.
    """

    schema: pa.Schema
    layout: str | None = None
    serialization: str = 'arrow'
    key: KeySpec | None = None

    def to_bytes(self) -> bytes:
        """As it is stored."""
        key = None if self.key is None else self.key.parts
        head = json.dumps({'layout': self.layout, 'serialization': self.serialization, 'key': key})
        return head.encode() + b'\0' + self.schema.serialize().to_pybytes()

    @classmethod
    def from_bytes(cls, stored: bytes) -> TableRecord:
        """From what is stored. Raises IntegrityError."""
        return _table_record(stored)


@lru_cache(maxsize=256)
def _table_record(stored: bytes) -> TableRecord:
    head, _, schema = stored.partition(b'\0')
    try:
        told = json.loads(head)
        key = None if told['key'] is None else KeySpec(tuple((kind, text) for kind, text in told['key']))
        return TableRecord(pa.ipc.read_schema(pa.py_buffer(schema)), told['layout'], told['serialization'], key)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f'what is stored of a table does not parse: {head[:120]!r}') from error


@dataclass(frozen=True, kw_only=True)
class StreamRecord(keyed.StreamRecord):
    """A stream, with what it is called: the key in the database may be a hash of it."""

    key: StreamKey

    @classmethod
    def from_json(cls, stored: bytes) -> StreamRecord:
        """From what is stored. Raises IntegrityError."""
        record = super().from_json(stored)
        return replace(record, key=StreamKey(*record.key))


@dataclass(frozen=True, kw_only=True)
class Intent(Writer):
    """Ids whose rows are being written in several commits: hidden until the last one."""

    table: str
    run: IdRun

    @classmethod
    def of(cls, table: str, run: IdRun) -> Intent:
        """Of this process."""
        return cls(**asdict(Writer.ours()), table=table, run=run)


class Catalog:
    """The records of one namespace (`database_name`), read and written in a transaction."""

    def __init__(self, txn: Any, database: Any, namespace: str) -> None:
        self._txn, self._database, self._namespace = txn, database, namespace

    # Tables

    def table(self, name: str) -> TableRecord | None:
        """The record of a table; None when it is not there."""
        stored = self._get(self._key('table', name))
        return None if stored is None else TableRecord.from_bytes(stored)

    def save_table(self, name: str, record: TableRecord) -> None:
        """Write it."""
        self._txn.put(self._key('table', name), record.to_bytes(), db=self._database)

    def drop_table(self, name: str) -> None:
        """Forget a table."""
        self._txn.delete(self._key('table', name), db=self._database)

    # Streams

    def streams(self) -> list[StreamInfo]:
        """Every stream, by number."""
        found = [StreamRecord.from_json(stored) for stored in self._under(self._key('stream'))]
        return [record.info(record.key) for record in sorted(found, key=lambda record: record.number)]

    def stream(self, key: StreamKey) -> StreamRecord | None:
        """The record of a stream; None when it is new."""
        stored = self._get(self._key('stream', json.dumps(key)))
        return None if stored is None else StreamRecord.from_json(stored)

    def own_stream(self, key: StreamKey, epoch: int) -> StreamRecord:
        """The record of a stream that must still have our epoch. Raises StaleEpochError."""
        return still_owned(self.stream(key), key, epoch)

    def save_stream(self, key: StreamKey, record: StreamRecord) -> None:
        """Write it."""
        self._txn.put(self._key('stream', json.dumps(key)), record.to_json().encode(), db=self._database)

    def take_stream(self, key: StreamKey, claim: Claim, after: int | None) -> StreamRecord:
        """Raise the epoch of a stream in favour of `claim`. Raises StaleEpochError when another had it after `after`."""
        found = self.stream(key)
        if found is None:
            found = StreamRecord(number=self._next('streams'), epoch=0, claim=claim, key=key)
        taken = found.taken_by(claim, key, after)
        self.save_stream(key, taken)
        return taken

    # Ids

    def next_load(self) -> int:
        """A fresh id for a load that is no stream."""
        return self._next('loads')

    def intents(self, table: str | None = None) -> list[Intent]:
        """What is being written in several commits, into one table or all."""
        found = []
        for stored in self._under(self._key('intent')):
            told: dict[str, Any] = json.loads(stored)
            told['run'] = IdRun(*told['run'])
            intent = Intent(**told)
            found += [intent] if table in {None, intent.table} else []
        return found

    def save_intent(self, intent: Intent) -> None:
        """Write it."""
        key = self._key('intent', str(intent.run.first))
        self._txn.put(key, json.dumps(asdict(intent)).encode(), db=self._database)

    def drop_intent(self, run: IdRun) -> None:
        """Its rows are committed, or gone."""
        self._txn.delete(self._key('intent', str(run.first)), db=self._database)

    def drop_intents(self, table: str) -> None:
        """Every row of a table is gone, also those that are hidden: who writes them finds that at the next commit."""
        for intent in self.intents(table):
            self.drop_intent(intent.run)

    def hidden(self, table: str) -> list[IdRun]:
        """Ids of a table that no reader may see."""
        return [intent.run for intent in self.intents(table)]

    def _next(self, counter: str) -> int:
        key = self._key('counter', counter)
        stored = self._get(key)
        number = 1 + (_ID.unpack(stored)[0] if stored is not None else 0)
        self._txn.put(key, _ID.pack(number), db=self._database)
        return number

    def _get(self, key: bytes) -> bytes | None:
        stored = self._txn.get(key, db=self._database)
        return None if stored is None else bytes(stored)

    def _under(self, prefix: bytes) -> Iterator[bytes]:
        with self._txn.cursor(self._database) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()).startswith(prefix):
                yield bytes(cursor.value())
                found = cursor.next()

    def _key(self, kind: str, name: str = '') -> bytes:
        text = name.encode(errors='surrogatepass')
        if len(text) > _LONGEST_NAME:
            text = hashlib.sha256(text).hexdigest().encode()
        return b'\0'.join((kind.encode(), quote(self._namespace, safe='').encode(), text))


def database_names(namespace: str, table: str) -> tuple[bytes, bytes, bytes]:
    """The databases of a table: rows, their keys by id, rows that were replaced. Raises ConfigError for a bad name."""
    space, name = quote(namespace, safe='').encode(), table.encode(errors='surrogatepass')
    if not name or b'\0' in name or len(name) + len(space) > _LONGEST_NAME:
        raise ConfigError(f'{table[:60]!r} is not a name for a table', hint='1 to 400 bytes, without NUL')
    rows, keys, before = (b'/'.join((kind, space, name)) for kind in (b'rows', b'keys', b'before'))
    return rows, keys, before
