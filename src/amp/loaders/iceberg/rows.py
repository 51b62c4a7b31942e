"""Taking rows out of an Iceberg table without touching files that do not hold them.

A `Working` set is the table as it will be when a commit is done: files that go, files that come in their place. A file
goes whole where its statistics say so; else it is read once and the rows that stay are written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysFalse, BooleanExpression, Or
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import LongType

from amp.loaders.iceberg.files import DataWriter, delete_files, top_columns
from amp.loaders.iceberg.scan import between, file_batches, tasks_of
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun

__all__ = ['FileIds', 'Flags', 'Working', 'ids_of', 'in_runs']

Flags = npt.NDArray[np.bool_]


def in_runs(column: Any, runs: Sequence[IdRun]) -> Flags:
    """Which values of an id column lie in one of the inclusive runs; null lies in none."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    ids = column.fill_null(0).to_numpy(zero_copy_only=False)
    found = np.zeros(len(ids), np.bool_)
    for run in runs:
        found |= (ids >= run.first) & (ids <= run.last)
    return np.asarray(found & valid)


@dataclass(frozen=True)
class FileIds:
    """What statistics say of the ids in a file: lowest and highest (None: not known), and rows without (None: not known)."""

    span: IdRun | None
    without: int | None
    rows: int

    @property
    def none(self) -> bool:
        """True when no row has an id: those of plain loads, or of before the first stream."""
        return self.without == self.rows

    def may_hold(self, run: IdRun) -> bool:
        """False when no row can have an id of the run."""
        return not self.none and (self.span is None or (run.first <= self.span.last and self.span.first <= run.last))

    def lies_in(self, run: IdRun) -> bool:
        """True when every row has an id of the run."""
        return (
            self.without == 0 and self.span is not None and run.first <= self.span.first and self.span.last <= run.last
        )


def ids_of(table: Table, file: DataFile) -> FileIds:
    """The ids in a data file, by its statistics."""
    number = table.schema().find_field(TX_ID).field_id
    if number not in (file.column_sizes or {number: 0}):
        # Older than the column.
        return FileIds(None, file.record_count, file.record_count)
    low, high = (file.lower_bounds or {}).get(number), (file.upper_bounds or {}).get(number)
    span = None
    if low is not None and high is not None:
        span = IdRun(_number(low), _number(high))
    return FileIds(span, (file.null_value_counts or {}).get(number), file.record_count)


def _number(bound: bytes) -> int:
    number: Any = from_bytes(LongType(), bound)
    return int(number)


class Working:
    """What a commit takes out of the table and puts in, while it is put together. Nothing shows before the commit."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.added: list[DataFile] = []
        self._gone: dict[str, DataFile] = {}
        self._written: list[str] = []

    @property
    def dropped(self) -> list[DataFile]:
        """The files of the table that go."""
        return list(self._gone.values())

    def tasks(self, row_filter: BooleanExpression | None = None) -> list[FileScanTask]:
        """The files that may hold rows of a filter, as things stand: those of the table, and those of this commit."""
        stay = [t for t in tasks_of(self.table, row_filter) if t.file.file_path not in self._gone]
        return [*stay, *(FileScanTask(file) for file in self.added)]

    def add(self, files: Sequence[DataFile]) -> None:
        """Files that were written for this commit alone: they are deleted with it when it fails."""
        self.added.extend(files)
        self._written.extend(file.file_path for file in files)

    def drop(self, file: DataFile) -> None:
        """Take a file out."""
        if file in self.added:
            self.added.remove(file)
        else:
            self._gone[file.file_path] = file

    def keep(self, task: FileScanTask, stays: Callable[[pa.RecordBatch], Flags]) -> int:
        """Rewrite a file without the rows that do not stay; how many went. A file without such rows is not touched."""
        removed = 0
        with DataWriter(self.table) as writer:
            for batch in file_batches(self.table, task, top_columns(self.table)):
                flags = stays(batch)
                removed += int(np.count_nonzero(~flags))
                writer.write(batch if flags.all() else batch.filter(pa.array(flags)))
            if not removed:
                writer.abort()
                return 0
            self.add(writer.finish())
        self.drop(task.file)
        return removed

    def undo(self, runs: Sequence[IdRun]) -> int:
        """Take out the rows whose id lies in one of the runs; how many."""
        if TX_ID not in top_columns(self.table):
            return 0
        removed = 0
        for task in self.tasks(_holds(runs)):
            ids = ids_of(self.table, task.file)
            if not any(map(ids.may_hold, runs)):
                continue
            if any(map(ids.lies_in, runs)) and not task.delete_files:
                self.drop(task.file)
                removed += task.file.record_count
            else:
                removed += self.keep(task, lambda batch: ~in_runs(batch.column(TX_ID), runs))
        return removed

    def clear(self) -> int:
        """Take out every row; how many."""
        removed = 0
        for task in self.tasks():
            self.drop(task.file)
            removed += task.file.record_count
        return removed

    def abort(self) -> None:
        """Delete the files that were written for it."""
        delete_files(self.table.io, self._written)


def _holds(runs: Sequence[IdRun]) -> BooleanExpression:
    found: BooleanExpression = AlwaysFalse()
    for run in runs:
        found = Or(found, between({TX_ID: (run.first, run.last)}))
    return found
