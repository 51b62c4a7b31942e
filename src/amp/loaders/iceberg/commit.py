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
from pyiceberg.table import Table, Transaction

from amp.errors import DestinationError
from amp.loaders.iceberg.catalog import CatalogTables, explained
from amp.loaders.points import reached

__all__ = ['NO_RETRIES', 'UNIT', 'Change', 'TableCommit', 'commit', 'without_retries']

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


class TableCommit:
    """One commit of a unit. `in_doubt` says that it may have happened although nobody answered: its files must stay."""

    def __init__(self, tables: CatalogTables, name: str) -> None:
        self.in_doubt = False
        self._tables = tables
        self._name = name
        self._unit = uuid.uuid4().hex

    @property
    def unit(self) -> str:
        """What names it in the snapshot."""
        return self._unit

    def run(self, plan: Callable[[Table], Change | None]) -> None:
        """Make durable what `plan(table)` says, in one snapshot; None is nothing to do.

        The plan is asked again on fresh metadata after a conflict; what it raises ends it, and nothing was committed.
        Raises DestinationError, which is retryable when the outcome is not known.
        """
        for tries in range(_MOST_TRIES):
            table = without_retries(self._tables, self._tables.get(self._name))
            try:
                change = plan(table)
                if change is None:
                    return
                transaction = self._staged(table, change)
            except DestinationError as error:
                if not self._has_moved(table, error):
                    raise
            else:
                reached('commit.before')
                if self._try(transaction):
                    reached('commit.after')
                    return
            # Whoever lost waits a little longer each time: many writers would else fail each other for ever.
            time.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(tries, 7))))  # noqa: S311 - it keeps no secret
        failed = DestinationError(f'the table {self._name!r} is changed by too many writers at once', hint='try again')
        failed.retryable = True
        raise failed

    def _staged(self, table: Table, change: Change) -> Transaction:
        """All but the last step: new manifests are written, nothing shows."""
        with explained(self._tables.shown):
            transaction = _without_history(table).transaction()
            snapshot = transaction.update_snapshot(snapshot_properties={UNIT: self._unit, **change.summary})
            with snapshot.overwrite() if change.dropped else snapshot.merge_append() as producer:
                for gone in change.dropped:
                    producer.delete_data_file(gone)
                for added in change.added:
                    producer.append_data_file(added)
            if change.properties:
                transaction.set_properties(dict(change.properties))
            return transaction

    def _has_moved(self, table: Table, error: DestinationError) -> bool:
        """True when a file was missed because the snapshot that was read has been expired by somebody since."""
        missed = isinstance(error.__cause__, FileNotFoundError)
        return missed and self._tables.get(self._name).metadata_location != table.metadata_location

    def _try(self, transaction: Transaction) -> bool:
        """True when it is committed, False when somebody else was faster."""
        self.in_doubt = True
        try:
            with explained(self._tables.shown):
                try:
                    transaction.commit_transaction()
                except CommitFailedException:
                    self.in_doubt = False
                    return False
        except DestinationError as error:
            if not self._landed(error):
                raise
        return True

    def _landed(self, error: DestinationError) -> bool:
        """After an answer that was lost: whether a snapshot of this unit is in the table. If not, `error` tells why."""
        try:
            now = self._tables.get(self._name)
        except DestinationError as away:
            error.retryable |= away.retryable
            return False
        return any(s.summary is not None and s.summary.get(UNIT) == self._unit for s in now.metadata.snapshots)


def commit(tables: CatalogTables, name: str, plan: Callable[[Table], Change | None]) -> None:
    """A commit that brings no files of its own."""
    TableCommit(tables, name).run(plan)


def _without_history(table: Table) -> Table:
    """The table as a commit needs it: pyiceberg copies all that it knows of it, every snapshot, many times a commit.

    What is committed is applied by the catalog to the table as it is there, with its history.
    """
    current = table.current_snapshot()
    recent = table.metadata.model_copy(update={'snapshots': [current] if current else [], 'snapshot_log': []})
    return Table(table.name(), recent, table.metadata_location, table.io, table.catalog, table.config)
