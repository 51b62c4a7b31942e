"""Undo by id: exactly-once for any destination that can delete a range of ids, and at-least-once for the others.

The stream's document is written with compare-and-set, so an older writer loses. A unit first makes its *intent*
durable: the state without what is to be undone (the position rewound), and the first id that its rows may carry. Then
rows are deleted, then written, then the document says done. Whoever opens the stream deletes what no done unit names:
ids from the intent on, and the unused tail of every epoch before. A writer that slept through a take-over may still
add such rows, so they are deleted again with the commits that follow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from amp.errors import DestinationError, IntegrityError
from amp.loaders.marks import Marks
from amp.loaders.mistakes import answer
from amp.loaders.points import reached
from amp.loaders.sql import stale_epoch
from amp.loaders.unit import Claim, StreamInfo, StreamJob, Unit
from amp.streaming.ledger import IdRun, StreamKey, StreamState, Undo

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader
    from amp.streaming.state import StreamStateStore

__all__ = ['Documents', 'UndoById', 'undo_by_id']

logger = logging.getLogger('amp.stream')

_NUMBERS = ('', '')
_MOST_DEAD_RUNS = 64
_SWEEPS_AFTER_TAKEOVER = 32
_MOST_TRIES = 50


class Documents(Protocol):
    """Where documents are kept: the destination itself, or a local store for at-least-once."""

    def read(self, key: tuple[str, str]) -> str | None:
        """The document of a (table, stream)."""

    def write(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        """Durably replace `expected` (None: nothing is there) by `text`; False when something else is there."""


@dataclass(frozen=True)
class _LocalDocuments:
    store: StreamStateStore

    def read(self, key: tuple[str, str]) -> str | None:
        return self.store.load_document(key)

    def write(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        return self.store.replace_document(key, text, expected)


class _OwnDocuments:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def read(self, key: tuple[str, str]) -> str | None:
        text = self._loader._read_state(json.dumps(key))
        found: str | None = answer(self._loader, '_read_state', text, (str, type(None)), 'the text, or None')
        return found

    def write(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        done = self._loader._write_state(json.dumps(key), text, expected)
        return bool(answer(self._loader, '_write_state', done, bool, 'True or False: was `expected` there?'))


def undo_by_id(loader: DataLoader[Any]) -> UndoById:
    """How a loader without transactions streams: by ids when it keeps documents, else at least once."""
    if hasattr(loader, '_read_state') and hasattr(loader, '_write_state'):
        return UndoById(loader, _OwnDocuments(loader))
    return UndoById(loader, _LocalDocuments(loader.state_store), Marks(loader.state_store))


class UndoById:
    """A StreamingDestination over `_load_batch_impl`, `_delete_runs` and documents."""

    def __init__(self, loader: DataLoader[Any], documents: Documents, marks: Marks | None = None) -> None:
        self.loader = loader
        self.documents = documents
        self.marks = marks
        self.sweeps_left = 0
        self._left_over = False

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the documents know, by number."""
        found = []
        for packed in self._numbers():
            key = StreamKey(*json.loads(packed))
            text = self.documents.read(key)
            if text is not None:
                record = _Record.from_json(text)
                found.append(StreamInfo(key, record.stream_state(), record.claim, record.committed_at))
        return found

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch, then delete every id that no done unit names."""
        number = self._number(key)
        for _ in range(_MOST_TRIES):
            text = self.documents.read(key)
            before = _Record.from_json(text) if text is not None else _Record(number, 0, claim)
            if after is not None and before.epoch != after and before.claim.owner != claim.owner:
                raise stale_epoch(key, after, before.epoch, before.claim.owner, before.claim.taken_at)
            taken = before.taken_by(claim)
            if self.documents.write(key, taken.to_json(), text):
                break
        else:
            raise DestinationError(
                f'the stream {key.name!r} of {key.table!r} is being taken by many at once', hint='try again'
            )
        reached('open.taken')
        self._left_over = False
        if taken.dead:
            if self._can_delete:
                self.loader._delete_runs(key.table, taken.dead)
            self.sweeps_left = _SWEEPS_AFTER_TAKEOVER
        reached('open.swept')
        state = taken.stream_state()
        if self.marks is not None:
            self.marks.opened(key, state)
        return state

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> Unit:
        """Make the intent durable, then take back what it names. Raises DestinationError, to be opened anew first."""
        if self._left_over:
            unfinished = DestinationError('rows of a unit that was rolled back could not be deleted')
            unfinished.retryable = True
            raise unfinished
        kept = undo.state if undo is not None else state
        record = self.replace(job.key, state, lambda r: r.intending(kept, first_id, undo.runs if undo else ()))
        if undo is not None and self.marks is not None:
            self.marks.undone(job.key, undo)
        unit = _ByIdUnit(self, job, first_id, record)
        reached('intent.written')
        if undo is not None:
            if undo.whole_table:
                self.loader._clear_table(job.key.table)
            else:
                unit.rows_undone = self.loader._delete_runs(job.key.table, undo.runs)
            reached('undo.after')
        return unit

    def leave_over(self) -> None:
        """Rows of this epoch lie there that only opening the stream anew will hide and delete."""
        self._left_over = True

    def replace(self, key: StreamKey, state: StreamState, change: Callable[[_Record], _Record]) -> _Record:
        """Change the document, if it is still of our epoch. Raises StaleEpochError."""
        text = self.documents.read(key)
        if text is None:
            raise IntegrityError(f'the document of the stream {key.name!r} of {key.table!r} is gone')
        record = _Record.from_json(text)
        if record.epoch == state.epoch:
            changed = change(record)
            if self.documents.write(key, changed.to_json(), text):
                return changed
            record = _Record.from_json(self.documents.read(key) or text)
        raise stale_epoch(key, state.epoch, record.epoch, record.claim.owner, record.claim.taken_at)

    def uncommitted(self, table_name: str) -> list[IdRun]:
        """Runs of ids whose rows, where there are any, belong to no done unit: a `scan` leaves them out."""
        runs: list[IdRun] = []
        for packed in self._numbers():
            key = StreamKey(*json.loads(packed))
            text = self.documents.read(key) if key.table == table_name else None
            if text is not None:
                record = _Record.from_json(text)
                last = StreamState(record.number, record.epoch).interval.last
                runs += [*record.dead, IdRun(record.last_done + 1, last)]
        return runs

    @property
    def _can_delete(self) -> bool:
        from amp.loaders.base import DataLoader

        return type(self.loader)._delete_runs is not DataLoader._delete_runs

    def _numbers(self) -> dict[str, int]:
        text = self.documents.read(_NUMBERS)
        return dict(json.loads(text)) if text is not None else {}

    def _number(self, key: StreamKey) -> int:
        packed = json.dumps(key)
        for _ in range(_MOST_TRIES):
            text = self.documents.read(_NUMBERS)
            numbers: dict[str, int] = json.loads(text) if text is not None else {}
            if packed in numbers:
                return numbers[packed]
            numbers[packed] = max(numbers.values(), default=0) + 1
            if self.documents.write(_NUMBERS, json.dumps(numbers), text):
                return numbers[packed]
        raise DestinationError(f'no number could be had for the stream {key.name!r}', hint='try again')


@dataclass(frozen=True)
class _Record:
    """The document of one stream. `intent` is the first id of a unit that is not done."""

    number: int
    epoch: int
    claim: Claim
    state: str | None = None
    last_done: int = 0
    intent: int | None = None
    dead: tuple[IdRun, ...] = ()
    committed_at: str | None = None

    def stream_state(self) -> StreamState:
        return StreamState.from_json(self.number, self.epoch, self.state)

    def taken_by(self, claim: Claim) -> _Record:
        epoch = self.epoch + 1
        first = StreamState(self.number, epoch).first_id
        unused = IdRun(max(self.last_done + 1, StreamState(self.number, 1).first_id), first - 1)
        dead = _merged([*self.dead, unused]) if self.epoch else self.dead
        taken = Claim(claim.owner, claim.taken_at, claim.query or self.claim.query)
        return _Record(
            self.number, epoch, taken, self.state, max(self.last_done, first - 1), None, dead, self.committed_at
        )

    def intending(self, kept: StreamState, first_id: int, runs: Sequence[IdRun]) -> _Record:
        dead = _merged([*self.dead, *runs])
        return _Record(
            self.number, self.epoch, self.claim, kept.to_json(), self.last_done, first_id, dead, self.committed_at
        )

    def done(self, state: StreamState, last_id: int) -> _Record:
        now = datetime.now(UTC).isoformat(timespec='milliseconds')
        last = max(self.last_done, last_id)
        return _Record(self.number, self.epoch, self.claim, state.to_json(), last, None, self.dead, now)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str) -> _Record:
        try:
            stored = json.loads(text)
            stored['claim'] = Claim(**stored['claim'])
            stored['dead'] = tuple(IdRun(*run) for run in stored['dead'])
            return cls(**stored)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f'the stored document of a stream does not parse: {text[:120]}') from error


class _ByIdUnit:
    """One commit of scheme U."""

    def __init__(self, owner: UndoById, job: StreamJob, first_id: int, record: _Record) -> None:
        self._owner = owner
        self._job = job
        self._record = record
        self._first_id = first_id
        self._last_id = first_id - 1
        self._wrote = False
        self._may_be_done = False
        self.rows_undone = 0

    def write(self, batch: pa.RecordBatch) -> int:
        self._wrote = True
        keys = {'key_columns': list(self._job.key_columns)} if self._job.key_columns else {}
        loader = self._owner.loader
        rows = loader._load_batch_impl(batch, self._job.key.table, mode=self._job.mode, **keys, **self._job.options)
        return loader._checked_count(rows)

    def commit(self, state: StreamState) -> None:
        if self._record.dead and self._owner.sweeps_left and self._owner._can_delete:
            self._owner.loader._delete_runs(self._job.key.table, self._record.dead)
            self._owner.sweeps_left -= 1
        last = state.entries[-1].last_id if state.entries else self._last_id
        reached('commit.before')
        self._may_be_done = True
        self._owner.replace(self._job.key, state, lambda r: r.done(state, last))
        if self._owner.marks is not None:
            self._owner.marks.done(self._job.key, state)
        reached('commit.after')

    def rollback(self) -> None:
        """Delete what was written.

        After a commit of unknown outcome nothing is deleted: the rows may be done. That, and what cannot be deleted, is
        for the next open of the stream, without which no unit begins any more.
        """
        if self._may_be_done:
            self._owner.leave_over()
        elif self._wrote and self._owner._can_delete:
            tail = IdRun(self._first_id, StreamState(self._record.number, self._record.epoch + 1).first_id - 1)
            try:
                self._owner.loader._delete_runs(self._job.key.table, [tail])
            except Exception as error:  # noqa: BLE001 - of whatever kind a driver has; it is told, and made good at the next open
                logger.warning('rows of a unit will be deleted when the stream is opened anew: %s', error)
                self._owner.leave_over()


def _merged(runs: Sequence[IdRun]) -> tuple[IdRun, ...]:
    merged: list[IdRun] = []
    for run in sorted(run for run in runs if run.first <= run.last):
        if merged and run.first <= merged[-1].last + 1:
            merged[-1] = IdRun(merged[-1].first, max(merged[-1].last, run.last))
        else:
            merged.append(run)
    return tuple(merged[-_MOST_DEAD_RUNS:])
