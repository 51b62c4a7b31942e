"""Streams in the log of a Delta table: who has a stream, what is committed of it, and what a conflict means.

A commit of a stream carries the application transaction `amp:<stream>`, whose version is the *commit id*: stream number,
epoch and a counter of commits, packed like a transaction id. The state lies in `_amp/<stream>/<commit id>.json` beside
the log, written before the commit. So the version is the pointer that makes rows, undo and state visible at once, and a
file that no version names is nothing.

Delta accepts a lower version, and one that it has seen; what it refuses is a commit through a handle that does not know
the latest commit of the same application. So a stream writes only through the handle from which its state was read, and
whoever takes the stream first commits its epoch, with no rows: the older writer's handle is out of date from then on.

Nothing here knows a loader: it takes the place of a table, and hands out what a write needs.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from amp.errors import ConfigError, DestinationError, IntegrityError
from amp.loaders.deltalog.columns import arrow_schema
from amp.loaders.deltalog.errors import DRIVER_ERRORS, explained, sentence, uses_delta
from amp.loaders.deltalog.files import Files, folder_name, joined, name_of_folder
from amp.loaders.points import reached
from amp.loaders.sql import stale_epoch
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import StreamKey, StreamState, transaction_id

__all__ = ['DeltaLog', 'StreamCommit', 'commit_properties']

FOLDER = '_amp'
_APPLICATION = 'amp:'
# The application whose version is the highest stream number that was given.
_NUMBERS = 'amp'

# A process starts to count its commits anywhere below: two that take one epoch at once then write different files.
_FIRST_COUNTERS = 1 << 20
_MOST_TRIES = 50
# Commits of others that do not touch ours are stepped over by delta-rs, as often as they come.
_COMMIT_RETRIES = 1000
# A reader that knows an older version of the table still finds the state that this version names.
_STATES_KEPT = 16
_FORGETS = 'delta.setTransactionRetentionDuration'


def commit_properties(*transactions: Transaction) -> CommitProperties:
    """How every commit is made: retried past commits of others that do not conflict."""
    return CommitProperties(max_commit_retries=_COMMIT_RETRIES, app_transactions=list(transactions))


@dataclass(frozen=True)
class _Record:
    """What a state file holds."""

    table: str
    stream: str
    number: int
    epoch: int
    owner: str
    taken_at: str
    query: str | None = None
    committed_at: str | None = None
    document: str | None = None

    @property
    def key(self) -> StreamKey:
        return StreamKey(self.table, self.stream)

    def state(self) -> StreamState:
        return StreamState.from_json(self.number, self.epoch, self.document)

    def info(self) -> StreamInfo:
        return StreamInfo(self.key, self.state(), Claim(self.owner, self.taken_at, self.query), self.committed_at)

    def to_json(self) -> str:
        return json.dumps({'version': 1, **asdict(self)}, separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str) -> _Record:
        try:
            stored = json.loads(text)
            if stored.pop('version') != 1:
                raise IntegrityError('a newer amp wrote the state of this stream', hint='upgrade this one')
            return cls(**stored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f'the stored state of a stream does not parse: {text[:120]}') from error


@dataclass
class _Held:
    """A stream that this process has: the handle from which its state was read, and the commit that the log names."""

    table: DeltaTable
    record: _Record
    last: int
    newest: int
    written: deque[int] = field(default_factory=deque)


class DeltaLog:
    """The streams of the Delta table at `place`, a path or URL. The table must be there.

    `uri` is where delta-rs finds the log, when that is not the place itself.
    """

    def __init__(self, place: str, storage_options: Mapping[str, str] | None = None, uri: str | None = None) -> None:
        self.place = place
        self._uri = uri or place
        self._options = dict(storage_options or {}) or None
        self._files = Files(joined(place, FOLDER), storage_options)
        self._held: dict[StreamKey, _Held] = {}

    def streams(self) -> list[StreamInfo]:
        """Every stream that feeds the table, by number. Raises IntegrityError for a state that is gone or broken."""
        with explained(self.place):
            return sorted((r.info() for r in self._records()), key=lambda info: info.state.number)

    def take(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Raise the epoch of a stream in favour of `claim` and read what is committed.

        `after` is the epoch that the claimer had: StaleEpochError when somebody else has taken the stream since.
        """
        with explained(self.place):
            self._refuse_other_names(key)
            for _ in range(_MOST_TRIES):
                table = self._open()
                _refuse_forgetting(table, self.place)
                before = self._current(table, key.name)
                if before is not None and after is not None and after != before.epoch and before.owner != claim.owner:
                    raise stale_epoch(key, after, before.epoch, before.owner, before.taken_at)
                held = self._taken(table, key, claim, before)
                if held is not None:
                    self._held[key] = held
                    reached('open.taken')
                    self._sweep(key.name, held.last)
                    return held.record.state()
        busy = DestinationError(f'the stream {key.name!r} of {key.table!r} is taken by many at once', hint='try again')
        busy.retryable = True
        raise busy

    def begin(self, key: StreamKey, state: StreamState, newest: DeltaTable | None = None) -> StreamCommit:
        """The next commit of a stream that this process took. Raises StaleEpochError when it is somebody else's now.

        `newest` is a handle of the caller's that knows the newest version: looking for it costs the more the longer the
        log is.
        """
        held = self._held.get(key)
        if held is None or held.record.epoch != state.epoch:
            raise DestinationError(f'the stream {key.name!r} of {key.table!r} is not open here', hint='open it first')
        with explained(self.place):
            uses_delta()
            if newest is None:
                held.table.update_incremental()
            if (newest or held.table).transaction_version(_application(key.name)) != held.last:
                raise self._stale(key, state.epoch)
        held.newest += 1
        return StreamCommit(self, key, held)

    # Between them

    def _taken(self, table: DeltaTable, key: StreamKey, claim: Claim, before: _Record | None) -> _Held | None:
        """Commit the next epoch, with no rows; None when another commit came first."""
        transactions = []
        if before is None:
            number = (table.transaction_version(_NUMBERS) or 0) + 1
            transactions.append(Transaction(_NUMBERS, number))
            record = _Record(key.table, key.name, number, 1, claim.owner, claim.taken_at, claim.query)
        else:
            query = claim.query or before.query
            record = replace(before, epoch=before.epoch + 1, owner=claim.owner, taken_at=claim.taken_at, query=query)
        commit = transaction_id(record.number, record.epoch, secrets.randbelow(_FIRST_COUNTERS))
        self._files.write(_path(key.name, commit), record.to_json())
        reached('open.before')
        try:
            transactions.append(Transaction(_application(key.name), commit))
            nothing = arrow_schema(table).empty_table()
            write_deltalake(table, nothing, mode='append', commit_properties=commit_properties(*transactions))
        except CommitFailedError:
            return None
        return _Held(table, record, commit, commit)

    def _records(self) -> list[_Record]:
        folders = self._files.folders()
        if not folders:
            return []
        table = self._open()
        found = (self._current(table, name_of_folder(folder)) for folder in folders)
        return [record for record in found if record is not None]

    def _current(self, table: DeltaTable, stream: str) -> _Record | None:
        """What is committed of a stream; None when it was never taken."""
        commit = table.transaction_version(_application(stream))
        while commit is not None:
            try:
                return _Record.from_json(self._files.read(_path(stream, commit)))
            except FileNotFoundError as error:
                # Its writer may have gone on meanwhile, and swept it.
                table.update_incremental()
                before, commit = commit, table.transaction_version(_application(stream))
                if commit == before:
                    raise IntegrityError(
                        f'the state of the stream {stream!r} of {self.place} is gone: {FOLDER}/{_path(stream, before)}',
                        hint='load the table again from the start, into a table of another name',
                    ) from error
        return None

    def _open(self) -> DeltaTable:
        uses_delta()
        return DeltaTable(self._uri, storage_options=self._options)

    def _refuse_other_names(self, key: StreamKey) -> None:
        other = next((r.table for r in self._records() if r.table != key.table), None)
        if other is not None:
            raise ConfigError(
                f'the streams of the Delta table at {self.place} know it as {other!r}, not as {key.table!r}',
                hint=f'call the destination {other!r}',
            )

    def _stale(self, key: StreamKey, own: int) -> Exception:
        now = self._current(self._open(), key.name)
        if now is None:
            return IntegrityError(f'the stream {key.name!r} of {key.table!r} is gone from the log of {self.place}')
        return stale_epoch(key, own, now.epoch, now.owner, now.taken_at)

    def _sweep(self, stream: str, last: int) -> None:
        """Delete states that are too old for anyone to look at. What is newer than ours is not ours to judge."""
        names = self._files.names(folder_name(stream))
        older = sorted(int(n[:-5]) for n in names if n.endswith('.json') and n[:-5].isdigit() and int(n[:-5]) < last)
        for commit in older[:-_STATES_KEPT]:
            self._files.delete(_path(stream, commit))


class StreamCommit:
    """One commit of a stream: write through `table`, with `properties`, inside `run`.

    Or through a handle of one's own, when each attempt carries `transaction` and asks `check` first.
    """

    def __init__(self, log: DeltaLog, key: StreamKey, held: _Held) -> None:
        self.id = held.newest
        self.table = held.table
        self.transaction = Transaction(_application(key.name), self.id)
        self.properties = commit_properties(self.transaction)
        self._log = log
        self._key = key
        self._held = held

    def write_state(self, state: StreamState) -> None:
        """Lay down what the commit will point to; before the write ends."""
        now = datetime.now(UTC).isoformat(timespec='milliseconds')
        record = replace(self._held.record, committed_at=now, document=state.to_json())
        with explained(self._log.place):
            self._log._files.write(_path(self._key.name, self.id), record.to_json())

    def check(self, table: DeltaTable) -> None:
        """Raises CommitFailedError, for `run` to explain, unless the handle knows our latest commit as the newest."""
        if table.transaction_version(_application(self._key.name)) != self._held.last:
            raise CommitFailedError('the stream has another commit')

    def run(self, write: Callable[[], object]) -> None:
        """Do the one call that commits; when it fails, find out what became of it.

        Raises StaleEpochError when the stream has another owner, and what the driver said when nothing was committed.
        """
        log, held = self._log, self._held
        try:
            write()
        except DRIVER_ERRORS as error:
            with explained(log.place):
                now = log._open().transaction_version(_application(self._key.name))
                if now not in {held.last, self.id}:
                    raise log._stale(self._key, held.record.epoch) from error
            if now != self.id:
                raise sentence(error, log.place) from error
        held.last = self.id
        held.written.append(self.id)
        if len(held.written) > _STATES_KEPT:
            # What cannot be deleted now goes when the stream is taken the next time.
            with suppress(*DRIVER_ERRORS):
                log._files.delete(_path(self._key.name, held.written.popleft()))


def _application(stream: str) -> str:
    return _APPLICATION + stream


def _path(stream: str, commit: int) -> str:
    return f'{folder_name(stream)}/{commit}.json'


def _refuse_forgetting(table: DeltaTable, place: str) -> None:
    if _FORGETS in table.metadata().configuration:
        raise DestinationError(
            f'the Delta table at {place} forgets application transactions ({_FORGETS}), and so would forget its streams',
            hint='remove that property of the table',
        )
