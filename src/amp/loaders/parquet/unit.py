"""One commit of a stream into a table of the columnar store: undo, rows and position together.

New files are staged where no reader looks; the commit of the log names them, takes those of the undo out, and carries
the stream's transaction. A file that has rows beside those taken back is written again without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amp.errors import DestinationError
from amp.loaders.deltalog.log import StreamCommit
from amp.loaders.feed import Feed
from amp.loaders.parquet.errors import told
from amp.loaders.parquet.rows import Fitting, write_files
from amp.loaders.points import reached
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun, StreamState, Undo
from amplify_db_utils import DuckDBParquetStore
from amplify_db_utils.files import Staging
from amplify_db_utils.log import Snapshot, TableLog
from amplify_db_utils.scan import Scan

__all__ = ['ParquetUnit', 'every_file']

_MOST_TRIES = 50

# The stubs know it for arrays alone.
_struct_field: Any = pc.struct_field


def every_file(snapshot: Snapshot) -> Iterable[int]:
    """What a commit that replaces the whole table takes out."""
    return range(snapshot.files.num_rows)


class ParquetUnit:
    """Rows flow into files that are written beside; the commit happens when they end.

    `committed` is told of the versions of the table before and after the commit.
    """

    def __init__(
        self,
        commit: StreamCommit,
        store: DuckDBParquetStore,
        place: str,
        table_name: str,
        undo: Undo | None,
        committed: Callable[[int, int], None],
    ) -> None:
        self._commit = commit
        self._committed = committed
        self._log = store.log(table_name)
        self._stage: Callable[[], Staging] = partial(store.stage, table_name)
        self._place = place
        self._table_name = table_name
        self._staging: Staging | None = None
        self._feed: Feed | None = None
        self._fitting: Fitting | None = None
        self._undo: _Removal | None = None
        with told(place):
            self._snapshot = self._log.snapshot()
            if undo is not None and TX_ID in self._snapshot.schema.names:
                reached('undo.before')
                runs = None if undo.whole_table else undo.runs
                self._undo = _Removal(self._log, self._snapshot, runs, self._stage)
                reached('undo.after')
        self.rows_undone = self._undo.rows if self._undo is not None else 0

    def write(self, batch: pa.RecordBatch) -> int:
        """Take stamped rows."""
        with told(self._place):
            if self._fitting is None:
                self._fitting = Fitting(batch.schema, self._snapshot, self._table_name)
            landed = self._fitting.batch(batch)
            if self._feed is None:
                self._staging = self._stage()
                self._feed = Feed(self._fitting.stored, partial(write_files, self._staging))
            self._feed.push(landed)
        return batch.num_rows

    def commit(self, state: StreamState) -> None:
        """Let the files end, lay the state down, and name both in one commit."""
        with told(self._place):
            if self._feed is not None:
                self._feed.finish()
                self._feed = None
            reached('commit.before_state')
            self._commit.write_state(state)
            reached('commit.before')
            if self._staging is not None:
                self._staging.keep()
            self._commit.run(self._put)
        reached('commit.after')
        self._committed(self._snapshot.version, self._log.table.version())

    def rollback(self) -> None:
        """Stop writing, and remove the files that nobody will name."""
        if self._feed is not None:
            self._feed.cancel()
            self._feed = None
        for staging in (self._staging, self._undo.staging if self._undo is not None else None):
            if staging is not None:
                # Those that a commit may have named are kept.
                staging.__exit__()

    def _put(self) -> None:
        adds = self._staging.adds if self._staging is not None else []
        commit = partial(self._log.commit, transactions=[self._commit.transaction], check=self._commit.check)
        if self._undo is None:
            commit(adds)
            return
        for _ in range(_MOST_TRIES):
            try:
                self._undo.keep()
                commit([*adds, *self._undo.adds], self._undo.files)
            except _FilesGoneError:
                # A compaction, or an overwrite by the store, was faster. What is to go lies in other files now.
                self._undo.discard()
                self._undo = _Removal(self._log, self._log.snapshot(), self._undo.runs, self._stage)
                continue
            return
        raise DestinationError(f'the files of {self._table_name!r} were rewritten again and again', hint='try again')


class _FilesGoneError(Exception):
    """A file with rows to take back has left the table."""


class _Removal:
    """What an undo takes out of one version of a table: `rows` of it in `files`, and `adds` are what stays of those.

    `runs` are the ids; None is everything.
    """

    def __init__(
        self, log: TableLog, snapshot: Snapshot, runs: Sequence[IdRun] | None, stage: Callable[[], Staging]
    ) -> None:
        self.runs = runs
        self.rows = 0
        self.staging: Staging | None = None
        self._log = log
        self._stage = stage
        self._paths: set[str] = set()
        if runs is None:
            self.rows = Scan(log.storage, log.directory, snapshot, [], snapshot.schema.names).count()
            return
        for place in _possible(snapshot, runs):
            self._take_from(snapshot, place, runs)

    def files(self, snapshot: Snapshot) -> Iterable[int]:
        """The places of the files to take out of the version that a commit stands on."""
        if self.runs is None:
            return every_file(snapshot)
        found = pc.is_in(snapshot.files['path'], pa.array(sorted(self._paths), pa.string()))
        places: list[int] = np.flatnonzero(found.to_numpy()).tolist()
        if len(places) < len(self._paths):
            raise _FilesGoneError
        return places

    @property
    def adds(self) -> list[Any]:
        """The files in which what stays is written again."""
        return list(self.staging.adds) if self.staging is not None else []

    def keep(self) -> None:
        """The files may be part of the table from now on."""
        if self.staging is not None:
            self.staging.keep()

    def discard(self) -> None:
        """Remove the files again: no commit has named them."""
        if self.staging is not None:
            self.staging.discard()

    def _take_from(self, snapshot: Snapshot, place: int, runs: Sequence[IdRun]) -> None:
        one = snapshot.with_files(snapshot.files.slice(place, 1))
        ids = Scan(self._log.storage, self._log.directory, one, [], [TX_ID]).stored_table()[TX_ID]
        gone = _inside(ids, ids, runs)
        going = int(gone.sum())
        if not going:
            return
        self.rows += going
        paths: list[Any] = one.files['path'].to_pylist()
        self._paths.update(paths)
        if going < len(ids):
            if self.staging is None:
                self.staging = self._stage()
            whole = Scan(self._log.storage, self._log.directory, one, [], snapshot.schema.names).stored_table()
            self.staging.add(whole.filter(pa.array(~gone)))


def _possible(snapshot: Snapshot, runs: Sequence[IdRun]) -> list[int]:
    """The files that may have rows of the runs, by the statistics in the log; those without statistics may."""
    files = snapshot.files
    bounds = [name for name in ('min', 'max') if name in files.column_names]
    if len(bounds) < 2 or any(files.schema.field(name).type.get_field_index(TX_ID) < 0 for name in bounds):
        return list(range(files.num_rows))
    low, high = (_struct_field(files[name], [TX_ID]) for name in bounds)
    return np.flatnonzero(_inside(low, high, runs) | low.is_null().to_numpy()).tolist()


def _inside(low: Any, high: Any, runs: Sequence[IdRun]) -> np.ndarray[Any, Any]:
    """Whether something between `low` and `high` may lie in one of the runs; a null lies in none."""
    lowest, highest = (column.fill_null(-1).to_numpy() for column in (low, high))
    found = np.zeros(len(lowest), bool)
    for run in runs:
        found |= (lowest <= run.last) & (highest >= run.first)
    return found
