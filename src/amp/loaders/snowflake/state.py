"""The table `amp_stream_state`: what a Snowflake schema remembers of its streams, one row each.

`scheme` says who keeps the row: `transaction`, the units that commit rows and state together; `channel`, the undo by
ids behind Snowpipe Streaming; `marks`, a person or a program that marks batches by hand. Snowflake has no RETURNING and
enforces no key, so a row is made by MERGE and read back in the transaction that changed it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from amp.errors import DestinationError, IntegrityError, StaleEpochError
from amp.loaders.destination_state import DestinationStateStore
from amp.loaders.sql import stale_epoch
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import Entry, StreamKey, StreamState, merge_ranges
from amp.streaming.types import BatchIdentifier, BlockRange

if TYPE_CHECKING:
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__ = ['CHANNEL', 'MARKS', 'TABLE', 'TRANSACTION', 'SnowflakeDocuments', 'SnowflakeStreamStateStore', 'Streams']

TABLE = 'amp_stream_state'
TRANSACTION, CHANNEL, MARKS = 'transaction', 'channel', 'marks'

_MOST_TRIES = 20
_CREATE = f"""CREATE TABLE IF NOT EXISTS {TABLE} (
    table_name VARCHAR NOT NULL,
    stream VARCHAR NOT NULL,
    scheme VARCHAR NOT NULL,
    number NUMBER(5,0),
    epoch NUMBER(9,0) NOT NULL,
    owner VARCHAR,
    taken_at VARCHAR,
    query VARCHAR,
    committed_at VARCHAR,
    document VARCHAR,
    PRIMARY KEY (table_name, stream)
)"""


class Speaks(Protocol):
    """A session."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement; the rows that it gives."""

    def count(self, sql: str, values: Sequence[Any] = ()) -> int:
        """One statement that changes rows; how many."""


class Streams:
    """The rows of `amp_stream_state`, by statements on a session that each call is given."""

    @staticmethod
    def create() -> str:
        """The DDL; harmless when the table is there."""
        return _CREATE

    def list(self, session: Speaks) -> list[StreamInfo]:
        """Every stream whose rows and state commit together, by number."""
        rows = session.run(
            f'SELECT table_name, stream, number, epoch, document, owner, taken_at, query, committed_at FROM {TABLE} '
            'WHERE scheme = ? ORDER BY number',
            (TRANSACTION,),
        )
        return [
            StreamInfo(
                StreamKey(table, name),
                StreamState.from_json(int(number), int(epoch), document),
                Claim(owner, taken_at, query),
                committed_at,
            )
            for table, name, number, epoch, document, owner, taken_at, query, committed_at in rows
        ]

    def enlist(self, session: Speaks, key: StreamKey, scheme: str) -> int:
        """Give the stream its number, once and for ever; the number. Raises DestinationError for another scheme."""
        session.run(
            f'MERGE INTO {TABLE} t USING (SELECT ? AS table_name, ? AS stream, ? AS scheme, '
            f'(SELECT COALESCE(MAX(number), 0) + 1 FROM {TABLE}) AS number) s '
            'ON t.table_name = s.table_name AND t.stream = s.stream '
            'WHEN NOT MATCHED THEN INSERT (table_name, stream, scheme, number, epoch) '
            'VALUES (s.table_name, s.stream, s.scheme, s.number, 0)',
            (key.table, key.name, scheme),
        )
        rows = session.run(
            f'SELECT scheme, number, (SELECT COUNT(*) FROM {TABLE} n WHERE n.number = t.number) FROM {TABLE} t '
            'WHERE table_name = ? AND stream = ?',
            (key.table, key.name),
        )
        if len(rows) != 1 or (rows[0][0] == scheme and int(rows[0][2]) != 1):
            raise IntegrityError(
                f'{TABLE} has {len(rows)} rows for the stream {key.name!r} of {key.table!r}, or its number twice',
                hint='two processes began at the same moment: delete the row without a document, and start again',
            )
        [(kept_by, number, _)] = rows
        if kept_by != scheme:
            raise DestinationError(
                f'the stream {key.name!r} of {key.table!r} is kept by {_told(kept_by)}, not by {_told(scheme)}',
                hint='go on as it was begun, or give the stream another name',
                table=key.table,
            )
        return int(number)

    def epoch(self, session: Speaks, key: StreamKey) -> tuple[int, str, str] | None:
        """Epoch, owner and the time it was taken; None when the stream is not known."""
        rows = session.run(
            f'SELECT epoch, owner, taken_at FROM {TABLE} WHERE table_name = ? AND stream = ?', (key.table, key.name)
        )
        return (int(rows[0][0]), str(rows[0][1]), str(rows[0][2])) if rows else None

    def take(self, session: Speaks, key: StreamKey, claim: Claim, after: int | None) -> tuple[StreamState, str]:
        """Raise the epoch and read what is committed, and when, in a transaction that is open.

        Raises StaleEpochError.
        """
        values: list[Any] = [claim.owner, claim.taken_at, claim.query, key.table, key.name]
        still_ours = ''
        if after is not None:
            # Or the owner: the answer to an earlier take of this very process may have been lost.
            still_ours = ' AND (epoch = ? OR owner = ?)'
            values += [after, claim.owner]
        taken = session.count(
            f'UPDATE {TABLE} SET epoch = epoch + 1, owner = ?, taken_at = ?, query = COALESCE(?, query) '
            'WHERE table_name = ? AND stream = ?' + still_ours,
            values,
        )
        if taken != 1:
            raise self.stale(session, key, after or 0)
        [(number, epoch, document, committed_at)] = session.run(
            f'SELECT number, epoch, document, committed_at FROM {TABLE} WHERE table_name = ? AND stream = ?',
            (key.table, key.name),
        )
        return StreamState.from_json(int(number), int(epoch), document), committed_at or ''

    def save(self, session: Speaks, key: StreamKey, state: StreamState, transaction: str, before: str) -> str | None:
        """Record `state`, as the last statement of a transaction; when it was. None when nothing was: then roll back.

        Two conditions hold unless a transaction was ended from outside. It must be the one that was begun, or this
        statement would commit without the rows that went before it; and what is recorded must be of the time `before`,
        or the commit before this one never was.
        """
        now = datetime.now(UTC).isoformat(timespec='microseconds')
        saved = session.count(
            f'UPDATE {TABLE} SET document = ?, committed_at = ? WHERE table_name = ? AND stream = ? AND epoch = ? '
            "AND TO_VARCHAR(CURRENT_TRANSACTION()) = ? AND COALESCE(committed_at, '') = ?",
            (state.to_json(), now, key.table, key.name, state.epoch, transaction, before),
        )
        return now if saved == 1 else None

    def stale(self, session: Speaks, key: StreamKey, own: int) -> StaleEpochError:
        """The error that names the winner."""
        found = self.epoch(session, key)
        if found is None:
            return StaleEpochError(f'the stream {key.name!r} of {key.table!r} is no longer known here')
        epoch, owner, taken_at = found
        return stale_epoch(key, own, epoch, owner, taken_at)


class SnowflakeDocuments:
    """The rows of scheme `channel` as the documents of undo by ids; the document with an empty name is the numbers."""

    def __init__(self, session: Speaks, streams: Streams) -> None:
        self._session = session
        self._streams = streams

    def read(self, key: tuple[str, str]) -> str | None:
        """The document of a (table, stream)."""
        if not any(key):
            return json.dumps(self._numbers()) or None
        rows = self._session.run(
            f'SELECT document FROM {TABLE} WHERE table_name = ? AND stream = ? AND scheme = ?', (*key, CHANNEL)
        )
        return None if not rows else rows[0][0]

    def write(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        """Replace `expected` (None: nothing is there) by `text`; False when something else is there."""
        if not any(key):
            return self._enlist(json.loads(text))
        was = 'document IS NULL' if expected is None else 'document = ?'
        values = [text, *key, CHANNEL, *([] if expected is None else [expected])]
        return (
            self._session.count(
                f'UPDATE {TABLE} SET document = ? WHERE table_name = ? AND stream = ? AND scheme = ? AND {was}', values
            )
            == 1
        )

    def _numbers(self) -> dict[str, int]:
        rows = self._session.run(f'SELECT table_name, stream, number FROM {TABLE} WHERE scheme = ?', (CHANNEL,))
        return {json.dumps(StreamKey(table, name)): int(number) for table, name, number in rows}

    def _enlist(self, wanted: dict[str, int]) -> bool:
        known = self._numbers()
        for packed in wanted.keys() - known.keys():
            known[packed] = self._streams.enlist(self._session, StreamKey(*json.loads(packed)), CHANNEL)
        return known == wanted


class SnowflakeStreamStateStore(DestinationStateStore):
    """`amp_stream_state` as a store: answers for every stream, and takes marks for those that no unit commits.

    A mark apart from its rows is what exactly-once rules out; so a stream that amp loads refuses them.
    """

    def __init__(self, loader: SnowflakeLoader) -> None:
        super().__init__(loader)
        self._snowflake = loader

    def mark_processed(
        self, connection: str, table: str, batch_ids: Sequence[BatchIdentifier], stream: str | None = None
    ) -> None:
        """Record batches as committed, all or none; marking again changes nothing."""
        ranges = [batch.to_block_range() for batch in batch_ids]
        if ranges:
            self._change(table, stream, lambda state: _with(state, [*_each(state), *ranges], state.segments))

    def invalidate_from_block(
        self, connection: str, table: str, network: str, from_block: int, stream: str | None = None
    ) -> list[BatchIdentifier]:
        """Undo every batch of `network` that holds `from_block` or a later one; they are returned by end."""
        gone: list[BlockRange] = []

        def undo(state: StreamState) -> StreamState:
            gone[:] = [r for r in _each(state) if r.network == network and r.end >= from_block]
            cut = [_before(s, from_block) if s.network == network else s for s in state.segments]
            kept = [r for r in _each(state) if r not in gone]
            return _with(state, kept, [s for s in cut if s is not None])

        self._change(table, stream, undo)
        return [_identifier(r) for r in sorted(gone, key=lambda r: (r.end, r.start))]

    def cleanup_before_block(
        self, connection: str, table: str, network: str, before_block: int, stream: str | None = None
    ) -> None:
        """Forget batches that end before `before_block` one by one; what they cover stays."""

        def forget(state: StreamState) -> StreamState:
            final = [r for r in _each(state) if r.network == network and r.end < before_block]
            kept = [r for r in _each(state) if r not in final]
            return _with(state, kept, merge_ranges([*state.segments, *final]))

        self._change(table, stream, forget)

    def _change(self, table: str, stream: str | None, change: Any) -> None:
        key = StreamKey(table, stream or table)
        session = self._ready()
        for _ in range(_MOST_TRIES):
            kept_by, before = self._row(session, key)
            if kept_by not in {None, MARKS}:
                raise self._refusal('marks or undoes')
            after = change(_parsed(before)).to_json()
            if after == before or self._upsert(session, key, after, before):
                return
        raise DestinationError(f'the marks of {key.name!r} are being changed by many at once', hint='try again')

    def _upsert(self, session: Speaks, key: StreamKey, document: str, before: str | None) -> bool:
        now = datetime.now(UTC).isoformat(timespec='milliseconds')
        changed = session.count(
            f'MERGE INTO {TABLE} t USING (SELECT ? AS table_name, ? AS stream, ? AS document, ? AS was, ? AS now) s '
            'ON t.table_name = s.table_name AND t.stream = s.stream '
            "WHEN MATCHED AND COALESCE(t.document, '') = s.was THEN "
            'UPDATE SET document = s.document, committed_at = s.now '
            'WHEN NOT MATCHED THEN INSERT (table_name, stream, scheme, epoch, committed_at, document) '
            f"VALUES (s.table_name, s.stream, '{MARKS}', 0, s.now, s.document)",
            (key.table, key.name, document, before or '', now),
        )
        return changed == 1

    def _history(self, table: str, stream: str | None) -> tuple[BlockRange, ...]:
        found = super()._history(table, stream)
        marked = self._marked(table, stream) if not found else None
        return marked.history() if marked is not None else found

    def _state(self, table: str, stream: str | None) -> StreamState | None:
        return super()._state(table, stream) or self._marked(table, stream)

    def _marked(self, table: str, stream: str | None) -> StreamState | None:
        kept_by, document = self._row(self._ready(), StreamKey(table, stream or table))
        return _parsed(document) if kept_by == MARKS else None

    def _ready(self) -> Speaks:
        self._snowflake._ensure_connected()
        self._snowflake.ensure_streams()
        return self._snowflake.own

    @staticmethod
    def _row(session: Speaks, key: StreamKey) -> tuple[str | None, str | None]:
        rows = session.run(
            f'SELECT scheme, document FROM {TABLE} WHERE table_name = ? AND stream = ?', (key.table, key.name)
        )
        return rows[0] if rows else (None, None)


def _told(scheme: str) -> str:
    return {TRANSACTION: 'transactions', CHANNEL: 'a Snowpipe channel', MARKS: 'marks by hand'}.get(scheme, scheme)


# Marks carry no ids of rows, so that all of them are kept under the first stream number.


def _parsed(document: str | None) -> StreamState:
    return StreamState.from_json(1, 0, document)


def _each(state: StreamState) -> list[BlockRange]:
    return [r for entry in state.entries for r in entry.ranges]


def _with(state: StreamState, batches: Sequence[BlockRange], segments: Sequence[BlockRange]) -> StreamState:
    """The same state with these batches, each once, by their ends: the newest is the one that ends last."""
    known = {(r.network, r.start, r.end): r for r in batches}
    ordered = sorted(known.values(), key=lambda r: (r.end, r.start, r.network))
    first = state.interval.first
    entries = tuple(Entry(first + n, first + n, (r,)) for n, r in enumerate(ordered))
    return replace(state, entries=entries, segments=tuple(segments))


def _before(segment: BlockRange, block: int) -> BlockRange | None:
    if segment.end < block:
        return segment
    return None if segment.start >= block else BlockRange(segment.network, segment.start, block - 1)


def _identifier(r: BlockRange) -> BatchIdentifier:
    return BatchIdentifier(r.network, r.start, r.end, r.hash or '', r.prev_hash or '')
