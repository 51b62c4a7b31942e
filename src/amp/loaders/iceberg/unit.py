"""One unit of an Iceberg table: rows flow into files while they arrive, and one metadata commit makes them count.

The commit holds the undo, the rows and the state of the stream. Until it is done nothing of the unit is in the table;
when somebody else was faster it is planned again, with the same files, as long as the stream still stands where it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from amp.errors import DestinationError, StaleEpochError
from amp.loaders.arrow_types import Landing, land, wire_schema
from amp.loaders.feed import Feed
from amp.loaders.iceberg.catalog import CatalogTables, explained
from amp.loaders.iceberg.commit import Change, TableCommit
from amp.loaders.iceberg.files import DataWriter, delete_files
from amp.loaders.iceberg.rows import Working
from amp.loaders.iceberg.streams import BeforeImage, StreamRecord, read_records
from amp.loaders.iceberg.upsert import Replacement, Stage, replace_rows, restore, write_image
from amp.loaders.points import reached
from amp.loaders.types import LoadMode
from amp.loaders.unit import StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['REPLACING', 'Incoming', 'PlainUnit', 'StreamUnit', 'current']

REPLACING = frozenset({LoadMode.UPSERT, LoadMode.MERGE})


class Incoming:
    """Rows on their way into files: encoded by a thread of their own; rows with keys wait until all are there."""

    def __init__(self, table: Table, landings: Sequence[Landing], keys: Sequence[str]) -> None:
        self._landings = landings
        self._writer = DataWriter(table)
        self._stage = Stage(wire_schema(landings), keys) if keys else None
        self._feed: Feed | None = Feed(wire_schema(landings), (self._stage or self._writer).write_all)
        self.replacement: Replacement | None = None

    @property
    def spec_id(self) -> int:
        """The partitioning that the files follow."""
        return self._writer.spec_id

    def write(self, batch: pa.RecordBatch) -> int:
        """Take rows; how many. Raises SchemaError for a value that the table cannot hold."""
        if self._feed is None:
            raise DestinationError('the unit is complete: it takes no more rows')
        self._feed.push(land(batch, self._landings))
        return batch.num_rows

    def finish(self) -> list[DataFile]:
        """Wait until all rows are in files; those. With keys, `replacement` says what they replace."""
        if self._feed is not None:
            self._feed.finish()
            # Python forgets a thread in a callback that would swallow a Ctrl-C: here, and not while a result is told.
            self._feed = None
        if self._stage is not None:
            self.replacement = self._stage.replacement()
            for batch in self.replacement.batches():
                self._writer.write(batch)
        return self._writer.finish()

    def close(self) -> None:
        """Let go of what was only needed until the commit."""
        self.replacement = None
        if self._stage is not None:
            self._stage.close()

    def abort(self) -> None:
        """Stop, and delete every file."""
        if self._feed is not None:
            self._feed.cancel()
        self._writer.abort()
        self.close()


@dataclass
class _Unit:
    """What plain loads and streams share: files that were written, and what a plan makes on top of them."""

    tables: CatalogTables
    name: str
    keys: tuple[str, ...]
    incoming: Incoming | None = None
    files: list[DataFile] | None = None
    working: Working | None = None
    images: list[BeforeImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit = TableCommit(self.tables, self.name)

    def take(self, batch: pa.RecordBatch, landings: Sequence[Landing]) -> int:
        if self.incoming is None:
            self.incoming = Incoming(self.tables.get(self.name), landings, self.keys)
        return self.incoming.write(batch)

    def finish(self) -> list[DataFile]:
        if self.files is None:
            self.files = self.incoming.finish() if self.incoming is not None else []
        return self.files

    def plan(self, table: Table) -> Working:
        """A fresh working set; what an earlier plan wrote for itself is deleted."""
        self.forget_plan()
        if self.incoming is not None and self.files and self.incoming.spec_id != table.metadata.default_spec_id:
            changed = DestinationError(f'the partitioning of {self.name!r} was changed meanwhile', table=self.name)
            changed.retryable = True
            raise changed
        self.working = Working(table)
        return self.working

    def forget_plan(self) -> None:
        if self.working is not None:
            self.working.abort()
            delete_files(self.working.table.io, [image.path for image in self.images])
        self.working, self.images = None, []

    def done(self) -> None:
        if self.incoming is not None:
            self.incoming.close()

    def abort(self) -> None:
        """Delete what was written, unless a commit that nobody answered (or that was interrupted) may name it."""
        if self.commit.in_doubt:
            self.done()
            return
        self.forget_plan()
        if self.incoming is not None:
            self.incoming.abort()


class PlainUnit:
    """A plain load: all of its rows in one commit, or none."""

    def __init__(self, tables: CatalogTables, name: str, keys: Sequence[str], *, clears: bool = False) -> None:
        self._tables = tables
        self._unit = _Unit(tables, name, tuple(keys))
        self._clears = clears

    def write(self, batch: pa.RecordBatch, landings: Sequence[Landing]) -> int:
        """Take rows; how many."""
        with explained(self._tables.shown):
            return self._unit.take(batch, landings)

    def commit(self) -> None:
        """Make them visible; where it `clears`, in place of all that was there."""
        with explained(self._tables.shown):
            self._unit.finish()
        self._unit.commit.run(self._plan)
        self._unit.done()

    def abort(self) -> None:
        """Forget them."""
        self._unit.abort()

    def _plan(self, table: Table) -> Change | None:
        with explained(self._tables.shown):
            working, files = self._unit.plan(table), self._unit.finish()
            if self._clears:
                working.clear()
            elif self._unit.incoming is not None and self._unit.incoming.replacement is not None:
                replace_rows(working, self._unit.incoming.replacement)
        if not files and not working.dropped:
            return None
        return Change([*working.added, *files], working.dropped)


class StreamUnit:
    """A unit of a stream. `record` is what the table says of the stream when the unit begins."""

    def __init__(
        self,
        tables: CatalogTables,
        job: StreamJob,
        record: StreamRecord,
        landings: Callable[[pa.Schema], Sequence[Landing]],
        undo: Undo | None,
        committed: Callable[[StreamKey], None],
    ) -> None:
        self.rows_undone = 0
        self._tables = tables
        self._key = job.key
        self._record = record
        self._left: tuple[BeforeImage, ...] = record.before
        self._committed = committed
        self._landings = landings
        self._undo = undo
        self._unit = _Unit(tables, job.key.table, job.key_columns if job.mode in REPLACING else ())

    def write(self, batch: pa.RecordBatch) -> int:
        """Take stamped rows; nothing of them is in the table yet."""
        with explained(self._tables.shown):
            return self._unit.take(batch, self._landings(batch.schema))

    def commit(self, state: StreamState) -> None:
        """Undo, rows and state in one metadata commit. Raises StaleEpochError when the stream has a newer epoch."""
        with explained(self._tables.shown):
            self._unit.finish()
        reached('commit.files_written')
        self._unit.commit.run(lambda table: self._plan(table, state))
        self._unit.done()
        if self._unit.working is not None:
            kept = {image.path for image in self._left}
            gone = [image.path for image in self._record.before if image.path not in kept]
            delete_files(self._unit.working.table.io, gone)
        self._committed(self._key)

    def rollback(self) -> None:
        """Delete what was written."""
        self._unit.abort()

    def _plan(self, table: Table, state: StreamState) -> Change:
        record = current(table, self._record)
        with explained(self._tables.shown):
            working, files = self._unit.plan(table), self._unit.finish()
            left = self._undone(working) if self._undo is not None else list(record.before)
            replacement = self._unit.incoming.replacement if self._unit.incoming is not None else None
            if replacement is not None:
                image = write_image(table, [replace_rows(working, replacement), replacement.superseded])
                if image is not None:
                    self._unit.images.append(image)
                    left.append(image)
        self._left = tuple(image for image in left if image.last >= state.window_first_id())
        properties = record.committed(state, self._unit.commit.unit, self._left).to_property()
        summary = {'amp.stream': record.name, 'amp.epoch': str(record.epoch)}
        return Change([*working.added, *files], working.dropped, properties, summary)

    def _undone(self, working: Working) -> list[BeforeImage]:
        """Take back what is to be undone; the before-images that are left."""
        undo = self._undo
        if undo is None:
            return list(self._record.before)
        reached('undo.before')
        if undo.whole_table:
            self.rows_undone = working.clear()
            return []
        self.rows_undone = working.undo(undo.runs)
        left, fresh = restore(working, self._record.before, undo.runs)
        self._unit.images.extend(fresh)
        reached('undo.after')
        return left


def current(table: Table, own: StreamRecord, *, any_unit: bool = False) -> StreamRecord:
    """The record of the stream in the table, if it is still as `own` says: of our epoch, and (unless `any_unit`) where
    the unit began. Raises StaleEpochError.
    """
    name = table.name()[-1]
    found = read_records(table).get(own.name)
    if found is None:
        raise StaleEpochError(f'the stream {own.name!r} of {name!r} is no longer known here', table=name)
    if found.epoch != own.epoch or found.claim.owner != own.claim.owner or not (any_unit or found.unit == own.unit):
        raise found.stale(name, own.epoch)
    return found
