"""What destinations without tables share, LMDB and Redis: who writes, what is remembered of a stream, how rows gather.

Neither keeps a transaction open while rows are on their way: they are gathered in a *write*, which takes what it gets and
makes it visible at its commit. A unit of a stream is one write, and so is a plain load.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa

from amp.errors import ConfigError, DestinationError, IntegrityError
from amp.loaders.sql import stale_epoch
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = [
    'FIRST_STREAM_ID',
    'Gathering',
    'StreamRecord',
    'StreamTarget',
    'Write',
    'WriteUnit',
    'Writer',
    'cleared_meanwhile',
    'still_owned',
    'whole_number',
]

FIRST_STREAM_ID = 1 << 51
"""Below this, ids are those of plain loads."""

# Tells this process from an earlier one with the same number.
_TOKEN = secrets.token_hex(8)


@dataclass(frozen=True)
class Writer:
    """The process that something unfinished belongs to."""

    host: str
    process: int
    token: str

    @classmethod
    def ours(cls) -> Writer:
        """The one that we are."""
        return Writer(socket.gethostname(), os.getpid(), _TOKEN)

    @property
    def is_dead(self) -> bool:
        """True when it was on this machine and is gone."""
        if self.host != socket.gethostname() or self.token == _TOKEN:
            return False
        if self.process == os.getpid():
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@dataclass(frozen=True, kw_only=True)
class StreamRecord:
    """A stream: its number and epoch, who has it, and its state as one document."""

    number: int
    epoch: int
    claim: Claim
    document: str | None = None
    committed_at: str | None = None

    def state(self) -> StreamState:
        """What is committed. Raises IntegrityError."""
        return StreamState.from_json(self.number, self.epoch, self.document)

    def info(self, key: StreamKey) -> StreamInfo:
        """As `list_streams` tells it."""
        return StreamInfo(key, self.state(), self.claim, self.committed_at)

    def taken_by(self, claim: Claim, key: StreamKey, after: int | None) -> Self:
        """With a new epoch, for `claim`. Raises StaleEpochError when another process had it after the epoch `after`."""
        if after is not None and self.epoch not in {0, after} and self.claim.owner != claim.owner:
            raise stale_epoch(key, after, self.epoch, self.claim.owner, self.claim.taken_at)
        claim = Claim(claim.owner, claim.taken_at, claim.query or self.claim.query)
        return replace(self, epoch=self.epoch + 1, claim=claim)

    def with_state(self, state: StreamState, *, committed: bool) -> Self:
        """With what is committed now; not `committed`: with what an unfinished unit has taken back."""
        now = datetime.now(UTC).isoformat(timespec='milliseconds') if committed else self.committed_at
        return replace(self, document=state.to_json(), committed_at=now)

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self), separators=(',', ':'))

    @classmethod
    def from_json(cls, stored: bytes) -> Self:
        """From what is stored. Raises IntegrityError."""
        try:
            told: dict[str, Any] = json.loads(stored)
            return cls(**(told | {'claim': Claim(**told['claim'])}))
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f'what is stored of a stream does not parse: {stored[:120]!r}') from error


_Record = TypeVar('_Record', bound=StreamRecord)


def still_owned(record: _Record | None, key: StreamKey, epoch: int) -> _Record:
    """The record of a stream that must still have our epoch. Raises StaleEpochError, IntegrityError when it is gone."""
    if record is None:
        raise IntegrityError(f'the stream {key.name!r} of {key.table!r} is no longer known here')
    if record.epoch != epoch:
        raise stale_epoch(key, epoch, record.epoch, record.claim.owner, record.claim.taken_at)
    return record


def whole_number(name: str, value: object, lowest: int, highest: int) -> int:
    """A number of a configuration, also when it is written as text. Raises ConfigError."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not lowest <= number <= highest:
        raise ConfigError(f'{name}={value!r} is not a whole number from {lowest} to {highest}')
    return number


def cleared_meanwhile(table: str) -> DestinationError:
    """The error of a large unit whose hidden rows somebody else has taken away together with all the others."""
    error = DestinationError(
        f'{table!r} was overwritten or dropped while a large unit was on its way into it',
        hint='nothing of the unit was kept; load it again',
    )
    error.retryable = True
    return error


@dataclass(frozen=True)
class StreamTarget:
    """The stream that a write belongs to: what is committed before it, and what it takes back."""

    key: StreamKey
    state: StreamState
    undo: Undo | None = None


class Write(Protocol):
    """Rows on their way into a table: `add` batches, then `commit` or `cancel`."""

    rows_undone: int
    """Rows that the undo took away; known once it is committed."""

    def add(self, batch: pa.RecordBatch) -> int:
        """Take rows; the number taken."""

    def commit(self, state: StreamState | None = None) -> None:
        """Make all of it visible at once, with the state of the stream. Raises StaleEpochError."""

    def cancel(self) -> None:
        """Take away what was written already. Never raises: what is left then stays hidden."""


class WriteUnit:
    """One unit of a stream."""

    def __init__(self, write: Write) -> None:
        self._write = write

    @property
    def rows_undone(self) -> int:
        """Rows that the undo took away; known once it is committed."""
        return self._write.rows_undone

    def write(self, batch: pa.RecordBatch) -> int:
        """Take stamped rows; the number taken."""
        return self._write.add(batch)

    def commit(self, state: StreamState) -> None:
        """Make undo, rows and `state` visible together. Raises StaleEpochError."""
        self._write.commit(state)

    def rollback(self) -> None:
        """Forget it all."""
        self._write.cancel()


@dataclass
class _Load:
    """A plain load: everything between the beginning and the end of its transaction."""

    write: Write | None = None
    clear: bool = False
    created: str | None = None


class Gathering(ABC):
    """The part of a loader that gathers a plain load in one write. It stands before `DataLoader` among the bases."""

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        super().__init__(config, label_manager)  # type: ignore[call-arg] # of DataLoader, which comes next
        # A load belongs to the thread that runs it: threads may share a loader.
        self._loads = threading.local()

    @abstractmethod
    def _new_write(self, table_name: str, mode: LoadMode, key_columns: tuple[str, ...], *, clear: bool) -> Write:
        """A write that belongs to no stream; `clear`: in place of the rows that are there."""

    @abstractmethod
    def _drop_unwritten(self, table_name: str) -> None:
        """Take away a table that was made for a load which then failed, when nobody else has used it."""

    @property
    def _load(self) -> _Load | None:
        found: _Load | None = getattr(self._loads, 'current', None)
        return found

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        load = self._loads.current = _Load()
        try:
            yield
            if load.write is not None:
                load.write.commit()
        except BaseException:
            # Whatever it was, Ctrl-C too: half a load is to go.
            if load.write is not None:
                load.write.cancel()
            if load.created is not None:
                self._drop_unwritten(load.created)
            raise
        finally:
            self._loads.current = None

    def _made_table(self, table_name: str) -> None:
        """The load under way, if there is one, has made this table."""
        if self._load is not None:
            self._load.created = table_name

    def _clear_table(self, table_name: str) -> None:
        if self._load is not None:
            self._load.clear = True
        else:
            self._new_write(table_name, LoadMode.APPEND, (), clear=True).commit()

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        load: _Load = self._loads.current
        if load.write is None:
            mode, keys = kwargs.get('mode', LoadMode.APPEND), tuple(kwargs.get('key_columns') or ())
            load.write = self._new_write(table_name, mode, keys, clear=load.clear)
        return load.write.add(batch)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        rows = 0
        for batch in reader:
            rows += self._load_batch_impl(batch, table_name, **kwargs)
        # Also without rows: an overwrite clears, and the modes and keys are checked.
        empty = pa.RecordBatch.from_pylist([], schema=reader.schema)
        return rows + self._load_batch_impl(empty, table_name, **kwargs)
