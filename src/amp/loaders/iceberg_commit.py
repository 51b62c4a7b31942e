"""One metadata commit of an Iceberg table, planned anew on the table as it is whenever somebody else was faster.

pyiceberg would by itself commit a stale transaction again on top of what others did: a writer that slept through a
take-over would double its rows. So its retries are off (`commit.retry.num-retries=0`), and here a plan is asked again:
it looks at the table, refuses when the stream is no longer its own, and names the same data files as before.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from amp.errors import DestinationError
from amp.loaders.iceberg_catalog import CatalogTables, explained
from amp.loaders.points import reached

__all__ = ['NO_RETRIES', 'UNIT', 'Change', 'commit', 'without_retries']

NO_RETRIES = {'commit.retry.num-retries': '0'}
UNIT = 'amp.unit'
_MOST_TRIES = 100


@dataclass
class Change:
    """What one commit does: files that come, files that go, properties of the table, words of its snapshot."""

    added: Sequence[DataFile] = ()
    dropped: Sequence[DataFile] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, str] = field(default_factory=dict)


def without_retries(tables: CatalogTables, table: Table) -> Table:
    """The table, in which no writer commits a stale transaction again."""
    if all(table.properties.get(key) == value for key, value in NO_RETRIES.items()):
        return table
    with explained(tables.shown), table.transaction() as transaction:
        transaction.set_properties(NO_RETRIES)
    return tables.get(table.name()[-1])


def commit(tables: CatalogTables, name: str, plan: Callable[[Table], Change | None], unit: str | None = None) -> None:
    """Make durable what `plan(table)` says, in one snapshot; None is nothing to do.

    The plan is asked again on fresh metadata after a conflict; what it raises ends it, and nothing was committed.
    Raises DestinationError, which is retryable when the outcome is not known.
    """
    unit = unit or uuid.uuid4().hex
    for tries in range(_MOST_TRIES):
        table = without_retries(tables, tables.get(name))
        change = plan(table)
        if change is None:
            return
        reached('commit.before')
        if _try(tables, table, change, unit):
            reached('commit.after')
            return
        # Whoever lost waits a little longer each time: many writers would else fail each other for ever.
        time.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(tries, 7))))  # noqa: S311 - it keeps no secret
    failed = DestinationError(
        f'the table {name!r} is changed by too many writers at once', hint='try again', table=name
    )
    failed.retryable = True
    raise failed


def _try(tables: CatalogTables, table: Table, change: Change, unit: str) -> bool:
    """True when it is committed, False when somebody else was faster."""
    try:
        with explained(tables.shown):
            try:
                _commit_once(table, change, unit)
            except CommitFailedException:
                return False
    except DestinationError as error:
        if not _landed(tables, table, unit, error):
            raise
    return True


def _commit_once(table: Table, change: Change, unit: str) -> None:
    transaction = table.transaction()
    snapshot = transaction.update_snapshot(snapshot_properties={UNIT: unit, **change.summary})
    with snapshot.overwrite() if change.dropped else snapshot.merge_append() as producer:
        for gone in change.dropped:
            producer.delete_data_file(gone)
        for added in change.added:
            producer.append_data_file(added)
    if change.properties:
        transaction.set_properties(dict(change.properties))
    transaction.commit_transaction()


def _landed(tables: CatalogTables, table: Table, unit: str, error: DestinationError) -> bool:
    """After an answer that was lost: whether a snapshot of this unit is in the table. If not, `error` tells why."""
    try:
        now = tables.get(table.name()[-1])
    except DestinationError as away:
        error.retryable |= away.retryable
        return False
    return any(s.summary is not None and s.summary.get(UNIT) == unit for s in now.metadata.snapshots)
