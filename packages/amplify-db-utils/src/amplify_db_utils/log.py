"""A table's transaction log: what it consists of at a version, and how it changes, atomically.

The log is Delta Lake's, kept by delta-rs. It alone says which files are the table; delta-rs touches nothing but the log.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from amplify_db_utils import names
from amplify_db_utils._arrow import Array, Column, nulls
from amplify_db_utils.errors import CommitConflict, StorageUnavailable, StoreError
from amplify_db_utils.faults import reaching
from amplify_db_utils.schema import declared_schema, log_fields, stored_schema
from amplify_db_utils.storage import Storage

# Whoever takes files out of a table commits under this id, so that two of them never pass each other unseen: a
# compaction by itself would let an overwrite that started earlier commit, and bring back the rows it replaced.
REPLACES = 'amplify_db_utils.replaces'
# The next version of a log is the file of its number. Only old files are removed: who looked lately cannot miss it.
_TRUSTED = 60.0  # seconds
_PATIENCE = 120.0  # seconds of lost races before a commit gives up
_IN_DOUBT = 'nor say whether it took the commit; look whether the rows are there before you write them again'
_users: list[int] = []  # the process that used delta-rs first


@dataclass(frozen=True)
class Snapshot:
    """A table at one version: declared schema, partition keys, and its files.

    `files` has a row a file: `path` relative to the table, `size` in bytes, `rows` (null where unknown), the partition
    values typed as stored in `p0`, `p1`, ..., and the log's `min` and `max` where it has any. They are listed by `load`
    when they are first looked at: an append never does.
    """

    version: int
    schema: pa.Schema
    partition_by: tuple[str, ...]
    load: Callable[[], pa.Table]

    @cached_property
    def files(self) -> pa.Table:
        """The files of the table."""
        return self.load()

    def with_files(self, files: pa.Table) -> Snapshot:
        """The same table with some of its files alone."""
        return replace(self, load=lambda: files)

    def with_schema(self, schema: pa.Schema) -> Snapshot:
        """The same files under another declared schema."""
        return replace(self, schema=schema, load=lambda: self.files)

    @cached_property
    def stored(self) -> pa.Schema:
        """The schema of the files, with the partition keys."""
        return stored_schema(self.schema)

    @cached_property
    def partitions(self) -> list[tuple[str | None, ...]]:
        """Each file's partition, as the texts that the log has."""
        return partitions_of(self.files, [f'p{i}' for i in range(len(self.partition_by))])


def partitions_of(table: pa.Table, keys: Sequence[str]) -> list[tuple[str | None, ...]]:
    """The partition texts of each row of a table with stored partition values in the columns `keys`."""
    if not keys:
        return [()] * table.num_rows
    columns = [names.partition_texts(table.column(key).combine_chunks()) for key in keys]
    return list(zip(*columns, strict=True))


Replace = Callable[[Snapshot], Iterable[int]]
"""Rows of `snapshot.files` that a commit takes out, asked anew for each attempt."""


class TableLog:
    """The log of one table. Safe to use from several threads; not in a process forked after its first use."""

    def __init__(self, storage: Storage, directory: str) -> None:
        self.storage = storage
        self.directory = directory
        self._table: DeltaTable | None = None
        self._snapshot: Snapshot | None = None
        self._looked = 0.0  # monotonic seconds, when the handle was the newest version
        self._lock = threading.RLock()

    @property
    def uri(self) -> str:
        """Where delta-rs finds the log."""
        return self.storage.log_uri(self.directory)

    @property
    def table(self) -> DeltaTable:
        """The delta-rs handle, at the version last seen. Read its `transaction_version` and `history`; write by `commit`."""
        if self._table is None:
            self.snapshot()
        return cast('DeltaTable', self._table)

    def exists(self) -> bool:
        """Whether the table has a log."""
        return self._table is not None or self.storage.has_log(self.directory)

    def create(self, schema: pa.Schema, partition_by: Sequence[str], adds: Sequence[AddAction] = ()) -> bool:
        """Begin the log, with the files of `adds`; False if another process did so first."""
        _same_process()
        self.storage.make_directory(self.directory)
        try:
            with reaching():
                create_table_with_add_actions(
                    self.uri,
                    Schema(log_fields(schema)),
                    list(adds),
                    mode='error',
                    partition_by=list(partition_by),
                    storage_options=self.storage.options,
                )
        except DeltaError:
            if not self.exists():
                raise
            return False
        return True

    def snapshot(self) -> Snapshot:
        """The table as it is now. Raises StoreError if there is no log."""
        _same_process()
        with self._lock:
            table = self._newest()
            if self._snapshot is None or self._snapshot.version != table.version():
                self._snapshot = _snapshot(table, self._files_at)
            return self._snapshot

    def _newest(self) -> DeltaTable:
        now = time.monotonic()
        if self._table is not None and now - self._looked < _TRUSTED and not self._has_next(self._table.version()):
            self._looked = now
            return self._table
        try:
            with reaching():
                if self._table is None:
                    self._table = DeltaTable(self.uri, storage_options=self.storage.options)
                else:
                    self._table.update_incremental()
        except TableNotFoundError as error:
            raise StoreError(f'there is no table in {self.storage.path(self.directory)!r}') from error
        self._looked = now
        return self._table

    def _has_next(self, version: int) -> bool:
        # delta-rs lists the whole log to find out, on a disk file by file.
        return not self.storage.local or self.storage.has_version(self.directory, version + 1)

    def _files_at(self, version: int) -> pa.Table:
        with self._lock, reaching():
            table = self._table
            if table is None or table.version() != version:
                table = DeltaTable(self.uri, version, storage_options=self.storage.options)
            return _files(table)

    def at(self, moment: datetime) -> Snapshot:
        """The table as it was then, or at its beginning if that was later."""
        _same_process()
        with reaching():
            table = DeltaTable(self.uri, storage_options=self.storage.options)
            table.load_as_version(moment.astimezone(UTC).isoformat())
        return _snapshot(table, lambda _: _files(table))

    def commit(
        self,
        adds: Sequence[AddAction],
        replace: Replace | None = None,
        *,
        data_change: bool = True,
        transactions: Sequence[Transaction] = (),
        check: Callable[[DeltaTable], None] | None = None,
    ) -> int:
        """Put files in, and take those of `replace` out, in one step; tried again while others commit first.

        The same files are committed however often that takes. `transactions` are ids of the caller's own, and `check`
        sees the table before each attempt and may raise to end them. Returns the version, as far as it can be seen.
        Raises CommitConflict, and StorageUnavailable.
        """
        deadline = time.monotonic() + _PATIENCE
        own = {add.path for add in adds}
        for attempt in range(1, 10_000):
            with self._lock:
                snapshot = self.snapshot()
                table = self.table
                if check is not None:
                    check(table)
                marks = list(transactions)
                actions: list[AddAction | RemoveAction] = list(adds)
                if replace is not None:
                    actions += _removals(snapshot, replace(snapshot), own, data_change)
                    marks.append(Transaction(REPLACES, snapshot.version + 1))
                try:
                    with reaching(hint=_IN_DOUBT):
                        table.create_write_transaction(
                            actions,
                            'append',
                            snapshot.stored,
                            list(snapshot.partition_by),
                            commit_properties=CommitProperties(app_transactions=marks),
                        )
                    with suppress(StorageUnavailable):  # done is done
                        return self.snapshot().version
                    return snapshot.version + 1
                except CommitFailedError as error:
                    if time.monotonic() > deadline:
                        raise CommitConflict(
                            f'{attempt} attempts to commit to {self.directory!r} met faster writers'
                        ) from error
            time.sleep(random.uniform(0, min(0.01 * attempt, 0.5)))  # noqa: S311
        raise AssertionError('unreachable: the deadline comes first')

    def add_columns(self, schema: pa.Schema) -> None:
        """Add nullable columns in one step. Raises CommitFailedError if another writer changed the log meanwhile."""
        with self._lock, reaching():
            self.table.alter.add_columns(log_fields(schema))

    def drop_required(self, column: str) -> None:
        """Let a required column be null from now on. Raises CommitFailedError as `add_columns` does."""
        with self._lock, reaching():
            self.table.alter.drop_column_not_null(column)


def _removals(snapshot: Snapshot, rows: Iterable[int], own: set[str], data_change: bool) -> list[RemoveAction]:
    now = int(time.time() * 1000)
    rows = list(rows)
    if not rows:
        return []
    taken = snapshot.files.select(['path', 'size']).take(rows).to_pylist()
    removals = []
    for row, file in zip(rows, taken, strict=True):
        if file['path'] in own:
            continue  # an attempt whose answer was lost had gone through
        values = dict(zip(snapshot.partition_by, snapshot.partitions[row], strict=True))
        removals.append(RemoveAction(file['path'], data_change, now, file['size'], values))
    return removals


def _snapshot(table: DeltaTable, files_at: Callable[[int], pa.Table]) -> Snapshot:
    version = table.version()
    schema = declared_schema(_arrow_schema(table))
    return Snapshot(version, schema, tuple(table.metadata().partition_columns), lambda: files_at(version))


def _files(table: DeltaTable) -> pa.Table:
    actions = pa.table(table.get_add_actions())
    partition_by = table.metadata().partition_columns
    paths: Any = actions.column('path').cast(pa.string())
    if pc.any(pc.match_substring(paths, '%')).as_py():
        paths = pa.array([unquote(path) for path in paths.to_pylist()], pa.string())
    columns: dict[str, Array | Column] = {
        'path': paths,
        'size': actions.column('size_bytes'),
        'rows': _optional(actions, 'num_records', pa.int64()),
    }
    if partition_by:
        schema = declared_schema(_arrow_schema(table))
        typed: Any = actions.column('partition').combine_chunks()
        for place, key in enumerate(partition_by):
            values = pa.chunked_array([typed.field(key)]).cast(stored_schema(schema).field(key).type)
            columns[f'p{place}'] = names.partition_values(values)
    for bound in ('min', 'max'):
        if bound in actions.column_names:
            columns[bound] = actions.column(bound)
    # In the order they were written, as far as clocks tell; the log gives the newest commit first.
    order = pc.sort_indices(actions.column('modification_time'))
    return pa.Table.from_arrays(list(columns.values()), names=list(columns)).take(order)


def _optional(actions: pa.Table, name: str, kind: pa.DataType) -> Array | Column:
    return actions.column(name) if name in actions.column_names else nulls(actions.num_rows, kind)


def _arrow_schema(table: DeltaTable) -> pa.Schema:
    schema: Any = table.schema().to_arrow()
    return pa.schema(schema)


def _same_process() -> None:
    # delta-rs keeps threads, which a fork does not carry over: it would panic.
    if not _users:
        _users.append(os.getpid())
    if os.getpid() != _users[0]:
        raise StoreError(
            'a store was used before this process was forked from it: start workers by spawn or forkserver'
        )
