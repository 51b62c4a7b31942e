"""What SQL destinations share: quoting, the table of streams, and taking rows back by runs of ids.

Nothing here knows a driver: a loader gives `Run`, which executes one statement in its current transaction and returns
the rows. Statements are plain enough for PostgreSQL and DuckDB alike; placeholders are the loader's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from amp.errors import ConfigError, DestinationError, StaleEpochError
from amp.loaders.options import NAMES, is_name
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import IdRun, StreamKey, StreamState

__all__ = [
    'BEFORE_PREFIX',
    'REPLACED_BY',
    'Run',
    'SqlStreams',
    'guarded',
    'in_runs',
    'quote',
    'same_keys',
    'stale_epoch',
    'undo_statements',
]

Run = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

BEFORE_PREFIX = '_amp_before_'
REPLACED_BY = '_amp_replaced_by'


def quote(*names: str) -> str:
    """Identifiers as SQL, joined by dots. Raises ConfigError for a name that SQL cannot hold."""
    for name in names:
        if not is_name(name):
            raise ConfigError(f'{name!r} is not a name for a table, schema or column', hint=NAMES)
    return '.'.join('"' + name.replace('"', '""') + '"' for name in names)


def in_runs(column: str, runs: Sequence[IdRun]) -> str:
    """A predicate: `column` lies in one of the inclusive runs. The numbers are ours, so they stand in the text."""
    if not runs:
        return 'FALSE'
    return '(' + ' OR '.join(f'{column} BETWEEN {run.first} AND {run.last}' for run in runs) + ')'


def same_keys(left: str, right: str, keys: Sequence[str]) -> str:
    """A join condition on key columns; a null key equals a null key."""
    return ' AND '.join(f'{left}.{quote(k)} IS NOT DISTINCT FROM {right}.{quote(k)}' for k in keys)


def undo_statements(
    table: str,
    before: str | None,
    columns: Sequence[str],
    runs: Sequence[IdRun],
    *,
    tx_id: str = TX_ID,
    replaced_by: str = REPLACED_BY,
) -> list[str]:
    """The statements that take runs of ids back; the first deletes the rows themselves.

    `before` is the table of replaced rows (None when nothing was ever replaced): a row comes back when what replaced
    it goes and it does not go itself. `tx_id` and `replaced_by` are what the destination calls the columns of ids.
    """
    tx = quote(tx_id)
    statements = [f'DELETE FROM {table} WHERE {in_runs(tx, runs)}']
    if before is not None:
        listed = ', '.join(quote(c) for c in columns)
        gone, own = in_runs(quote(replaced_by), runs), in_runs(tx, runs)
        statements += [
            f'INSERT INTO {table} ({listed}) SELECT {listed} FROM {before} '
            f'WHERE {gone} AND ({tx} IS NULL OR NOT {own})',
            f'DELETE FROM {before} WHERE {gone} OR {own}',
        ]
    return statements


class SqlStreams:
    """The table `_amp_streams`: one row a stream, with its number, its epoch and its state as one document.

    `table` is the quoted name, `mark` the driver's placeholder, `#` in it the number of the value. Epochs are fenced by the row itself: a commit updates
    it only where the epoch is still the committer's own.
    """

    def __init__(self, table: str, mark: str = '?') -> None:
        self._table = table
        self._mark = mark

    def create(self) -> str:
        """The DDL; harmless when the table is there."""
        return (
            f'CREATE TABLE IF NOT EXISTS {self._table} (table_name VARCHAR NOT NULL, stream VARCHAR NOT NULL, '
            'number INTEGER NOT NULL UNIQUE, epoch INTEGER NOT NULL, owner VARCHAR NOT NULL, taken_at VARCHAR NOT NULL, '
            'query TEXT, committed_at VARCHAR, document TEXT, PRIMARY KEY (table_name, stream))'
        )

    def list(self, run: Run) -> list[StreamInfo]:
        """Every stream, by number."""
        rows = run(
            'SELECT table_name, stream, number, epoch, document, owner, taken_at, query, committed_at '
            f'FROM {self._table} ORDER BY number',
            (),
        )
        return [
            StreamInfo(
                StreamKey(table, name),
                StreamState.from_json(number, epoch, document),
                Claim(owner, taken_at, query),
                committed_at,
            )
            for table, name, number, epoch, document, owner, taken_at, query, committed_at in rows
        ]

    def enlist(self, run: Run, key: StreamKey, claim: Claim) -> None:
        """Give the stream its number, once and for ever; harmless when it has one."""
        run(
            self._sql(
                'INSERT INTO {t} (table_name, stream, number, epoch, owner, taken_at) '
                'SELECT {m}, {m}, COALESCE(MAX(number), 0) + 1, 0, {m}, {m} FROM {t} '
                # Without a WHERE, SQLite would take the ON for that of a join.
                'WHERE TRUE ON CONFLICT (table_name, stream) DO NOTHING'
            ),
            (key.table, key.name, claim.owner, claim.taken_at),
        )

    def take(self, run: Run, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Raise the epoch in favour of `claim` and read what is committed. Waits for a commit that is under way.

        `after` is the epoch that the claimer had: StaleEpochError when somebody else has taken the stream since.
        """
        values: list[Any] = [claim.owner, claim.taken_at, claim.query, key.table, key.name]
        still_ours = ''
        if after is not None:
            # Or the owner: the answer to an earlier take of this very process may have been lost.
            still_ours = ' AND (epoch = {m} OR owner = {m})'
            values += [after, claim.owner]
        taken = run(
            self._sql(
                'UPDATE {t} SET epoch = epoch + 1, owner = {m}, taken_at = {m}, query = COALESCE({m}, query) '
                'WHERE table_name = {m} AND stream = {m}' + still_ours + ' RETURNING number, epoch, document'
            ),
            values,
        )
        if not taken:
            raise self.stale(run, key, after or 0)
        [(number, epoch, document)] = taken
        return StreamState.from_json(number, epoch, document)

    def save(self, run: Run, key: StreamKey, state: StreamState) -> None:
        """Record `state`, as the last statement of a transaction. Raises StaleEpochError: then roll back."""
        now = datetime.now(UTC).isoformat(timespec='milliseconds')
        saved = run(
            self._sql(
                'UPDATE {t} SET document = {m}, committed_at = {m} '
                'WHERE table_name = {m} AND stream = {m} AND epoch = {m} RETURNING number'
            ),
            (state.to_json(), now, key.table, key.name, state.epoch),
        )
        if not saved:
            raise self.stale(run, key, state.epoch)

    def stale(self, run: Run, key: StreamKey, own: int) -> StaleEpochError:
        """The error that names the winner."""
        found = run(
            self._sql('SELECT epoch, owner, taken_at FROM {t} WHERE table_name = {m} AND stream = {m}'),
            (key.table, key.name),
        )
        if not found:
            return StaleEpochError(f'the stream {key.name!r} of {key.table!r} is no longer known here')
        [(epoch, owner, taken_at)] = found
        return stale_epoch(key, own, epoch, owner, taken_at)

    def _sql(self, text: str) -> str:
        first, *rest = text.split('{m}')
        marked = first + ''.join(self._mark.replace('#', str(n)) + part for n, part in enumerate(rest, start=1))
        return marked.replace('{t}', self._table)


class Taken(Protocol):
    """A loader whose streams another process may take over while a unit is open."""

    def explained(self, table_name: str) -> AbstractContextManager[None]:
        """Errors of the driver as ours."""

    def refuse_if_taken(self, key: StreamKey, state: StreamState) -> None:
        """Raises StaleEpochError when another process has the stream now; says nothing when that cannot be known."""


@contextmanager
def guarded(loader: Taken, key: StreamKey, state: StreamState) -> Iterator[None]:
    """What a unit does, with errors as ours. Raises StaleEpochError when a failure was a take-over."""
    try:
        with loader.explained(key.table):
            yield
    except StaleEpochError:
        raise
    except DestinationError as error:
        if error.retryable:
            # It may have been cut off by who took the stream over: then trying again would be wrong.
            loader.refuse_if_taken(key, state)
        raise


def stale_epoch(key: StreamKey, own: int, epoch: int, owner: str, taken_at: str) -> StaleEpochError:
    """One text for every destination."""
    return StaleEpochError(
        f'the stream {key.name!r} of {key.table!r} was taken by {owner} at {taken_at} (epoch {epoch}, this one had {own})',
        hint='the newest writer goes on; nothing of this one was committed after it, so stop it',
        table=key.table,
        epoch=epoch,
        owner=owner,
        taken_at=taken_at,
    )
