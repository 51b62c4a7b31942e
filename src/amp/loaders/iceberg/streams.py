"""What an Iceberg table remembers of the streams that feed it: one property a stream, a JSON document.

A property is written by the same metadata commit as the snapshot that it describes, and every commit that changes one
also makes a snapshot (an empty one, when an epoch is taken): whoever commits asserts the snapshot that it has read, so
nobody commits on a document that has changed meanwhile. Numbers are given per table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pyiceberg.table import Table

from amp.errors import IntegrityError, StaleEpochError
from amp.loaders.sql import stale_epoch
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import MAX_STREAM_NUMBER, IdRun, StreamKey, StreamState

__all__ = ['BeforeImage', 'StreamRecord', 'newborn', 'read_records']

_PREFIX = 'amp.stream.'


@dataclass(frozen=True)
class BeforeImage:
    """A file with rows that a stream replaced by key.

    The ids that replaced them lie between `first` and `last`, the ids that they carry between `oldest` and `newest`
    (0: rows that no stream wrote).
    """

    path: str
    first: int
    last: int
    rows: int
    oldest: int
    newest: int

    def touches(self, run: IdRun) -> bool:
        """True when an undo of the run may concern these rows."""
        replaced = run.first <= self.last and self.first <= run.last
        return replaced or (run.first <= self.newest and self.oldest <= run.last)


@dataclass(frozen=True)
class StreamRecord:
    """The document of one stream. `unit` names the commit that wrote it."""

    name: str
    number: int
    epoch: int
    claim: Claim
    state: str | None = None
    committed_at: str | None = None
    unit: str | None = None
    before: tuple[BeforeImage, ...] = ()

    @property
    def property(self) -> str:
        """The name of the table property."""
        return _PREFIX + self.name

    def stream_state(self) -> StreamState:
        """The state as the engine knows it. Raises IntegrityError."""
        return StreamState.from_json(self.number, self.epoch, self.state)

    def info(self, table: str) -> StreamInfo:
        """As `list_streams` tells it."""
        return StreamInfo(StreamKey(table, self.name), self.stream_state(), self.claim, self.committed_at)

    def taken_by(self, claim: Claim) -> StreamRecord:
        """With the next epoch, in favour of `claim`."""
        query = claim.query if claim.query is not None else self.claim.query
        return replace(self, epoch=self.epoch + 1, claim=replace(claim, query=query), unit=None)

    def committed(self, state: StreamState, unit: str, before: tuple[BeforeImage, ...]) -> StreamRecord:
        """With what a unit leaves behind."""
        now = datetime.now(UTC).isoformat(timespec='milliseconds')
        return replace(self, state=state.to_json(), committed_at=now, unit=unit, before=before)

    def stale(self, table: str, own: int) -> StaleEpochError:
        """The error that names the winner."""
        return stale_epoch(StreamKey(table, self.name), own, self.epoch, self.claim.owner, self.claim.taken_at)

    def to_property(self) -> dict[str, str]:
        """The property that holds it."""
        stored = asdict(self)
        del stored['name']
        return {self.property: json.dumps(stored, separators=(',', ':'))}

    @classmethod
    def from_property(cls, name: str, text: str) -> StreamRecord:
        """Raises IntegrityError when the document does not parse."""
        try:
            stored: dict[str, Any] = json.loads(text)
            claim = Claim(**stored.pop('claim'))
            before = tuple(BeforeImage(**image) for image in stored.pop('before'))
            return cls(name, claim=claim, before=before, **stored)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f'the stored document of the stream {name!r} does not parse: {text[:120]}') from error


def read_records(table: Table) -> Mapping[str, StreamRecord]:
    """The streams of a table, by name. Raises IntegrityError."""
    return {
        key.removeprefix(_PREFIX): StreamRecord.from_property(key.removeprefix(_PREFIX), text)
        for key, text in table.properties.items()
        if key.startswith(_PREFIX)
    }


def newborn(name: str, claim: Claim, others: Mapping[str, StreamRecord]) -> StreamRecord:
    """The record of a stream that the table does not know yet, before its first epoch. Raises IntegrityError."""
    number = max((record.number for record in others.values()), default=0) + 1
    if number > MAX_STREAM_NUMBER:
        raise IntegrityError(f'a table holds {MAX_STREAM_NUMBER} streams')
    return StreamRecord(name, number, 0, claim)
