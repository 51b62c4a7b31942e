"""Keeping an Iceberg table small: merging files whose rows are final, forgetting snapshots, deleting what nothing names.

A file is merged only when no undo can reach its rows any more, and only with files of its own stream, partition and
size class; so the number of files stays bounded by the undo window, and every row is rewritten a few times at most.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from amp.errors import DestinationError
from amp.loaders.iceberg.catalog import CatalogTables, explained
from amp.loaders.iceberg.commit import Change, TableCommit, without_retries
from amp.loaders.iceberg.files import DataWriter, delete_files, top_columns
from amp.loaders.iceberg.rows import Working, ids_of
from amp.loaders.iceberg.scan import file_batches, tasks_of
from amp.loaders.iceberg.streams import StreamRecord, read_records
from amp.loaders.points import reached
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun

__all__ = ['Upkeep', 'compact', 'expire_snapshots', 'remove_orphans']

# Files of one size class (each eight times the one before) are merged when there are so many of them.
_FILES_OF_A_CLASS = 8
_SMALLEST_CLASS = 64 * 1024
_MERGED_SIZE = 128 * 1024**2
_MOST_MERGED = 512 * 1024**2


@dataclass
class Upkeep:
    """The schedule: what is done after how many commits of a stream."""

    compact_every: int
    expire_every: int
    keep_snapshots: int
    keep_minutes: float
    _commits: Counter[str] = field(default_factory=Counter)

    def after_commit(self, tables: CatalogTables, name: str) -> None:
        """Look after the table when it is time. Raises what goes wrong; the commit itself is done."""
        self._commits[name] += 1
        if self.compact_every and self._commits[name] % self.compact_every == 0:
            compact(tables, name)
        if self.expire_every and self._commits[name] % self.expire_every == 0:
            expire_snapshots(tables, name, self.keep_snapshots, self.keep_minutes)


def compact(tables: CatalogTables, name: str) -> int:
    """Merge small files of final rows, in one commit; how many files went."""
    merged = 0
    working: Working | None = None

    def plan(table: Table) -> Change | None:
        nonlocal merged, working
        if working is not None:
            working.abort()
        working = Working(table)
        with explained(tables.shown):
            for group in _mergeable(table):
                _merge(working, group)
        merged = len(working.dropped)
        reached('compact.written')
        return Change(working.added, working.dropped, summary={'amp.compaction': 'true'}) if merged else None

    attempt = TableCommit(tables, name)
    try:
        attempt.run(plan)
    except BaseException:  # Ctrl-C too: no merged files stay that nothing names
        if working is not None and not attempt.in_doubt:
            working.abort()
        raise
    return merged


def _mergeable(table: Table) -> Iterator[list[FileScanTask]]:
    """Groups of files to merge, each of one stream, partition and size class."""
    records = list(read_records(table).values())
    classes: dict[tuple[Any, ...], list[FileScanTask]] = defaultdict(list)
    for task in tasks_of(table):
        file = task.file
        owner = _owner(table, file, records)
        small = file.file_size_in_bytes < _MERGED_SIZE // 2
        if owner is None or task.delete_files or file.spec_id != table.metadata.default_spec_id or not small:
            continue
        classes[owner, str(file.partition), _size_class(file.file_size_in_bytes)].append(task)
    for group in classes.values():
        if len(group) >= _FILES_OF_A_CLASS:
            yield from _bounded(group)


def _owner(table: Table, file: DataFile, records: Sequence[StreamRecord]) -> int | None:
    """The number of the stream whose final rows are in a file, 0 for rows of no stream; None when it must stay."""
    if TX_ID not in top_columns(table):
        return 0
    ids = ids_of(table, file)
    if ids.none:
        return 0
    for record in records:
        state = record.stream_state()
        if ids.lies_in(IdRun(state.interval.first, state.window_first_id() - 1)):
            return record.number
    return None


def _size_class(size: int) -> int:
    found = 0
    while size >= _SMALLEST_CLASS:
        size //= 8
        found += 1
    return found


def _bounded(group: Sequence[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """The group in parts that are not too large to be written again at once."""
    part: list[FileScanTask] = []
    size = 0
    for task in group:
        part.append(task)
        size += task.file.file_size_in_bytes
        if size >= _MOST_MERGED:
            yield part
            part, size = [], 0
    if len(part) > 1:
        yield part


def _merge(working: Working, group: Sequence[FileScanTask]) -> None:
    with DataWriter(working.table) as writer:
        for task in group:
            for batch in file_batches(working.table, task, top_columns(working.table)):
                writer.write(batch)
        working.add(writer.finish())
    for task in group:
        working.drop(task.file)


# Snapshots


def expire_snapshots(tables: CatalogTables, name: str, keep: int, minutes: float) -> int:
    """Forget all snapshots but the newest `keep`, those of the last `minutes` and those that a branch or tag names.

    Then delete the files that none of the others names. How many snapshots went; 0 also when another writer was faster.
    """
    table = without_retries(tables, tables.get(name))
    gone = _expirable(table, keep, minutes)
    if not gone:
        return 0
    with explained(tables.shown):
        try:
            table.maintenance.expire_snapshots().by_ids([s.snapshot_id for s in gone]).commit()
        except CommitFailedException:
            return 0
        reached('expire.committed')
        now = tables.get(name)
        delete_files(now.io, _only_in(now, gone))
    return len(gone)


def _expirable(table: Table, keep: int, minutes: float) -> list[Snapshot]:
    oldest = (time.time() - minutes * 60) * 1000
    protected = {ref.snapshot_id for ref in table.metadata.refs.values()}
    newest = {
        s.snapshot_id for s, _ in zip(ancestors_of(table.current_snapshot(), table.metadata), range(keep), strict=False)
    }
    return [s for s in table.metadata.snapshots if s.snapshot_id not in protected | newest and s.timestamp_ms < oldest]


def _only_in(table: Table, gone: Sequence[Snapshot]) -> list[str]:
    """The files that only snapshots name which are gone: data, manifests and lists of manifests."""
    held = {m.manifest_path: m for s in table.metadata.snapshots for m in s.manifests(table.io)}
    loose = {m.manifest_path: m for s in gone for m in _manifests(table, s)}
    loose = {path: m for path, m in loose.items() if path not in held}
    data = {
        e.data_file.file_path for m in loose.values() for e in m.fetch_manifest_entry(table.io, discard_deleted=False)
    }
    # A manifest that stays also lists what its snapshot took out; only what is in the table counts.
    if data:
        live = (e.data_file.file_path for m in held.values() for e in m.fetch_manifest_entry(table.io))
        data.difference_update(live)
    lists = {s.manifest_list for s in gone} - {s.manifest_list for s in table.metadata.snapshots}
    return [*data, *loose, *lists]


def _manifests(table: Table, snapshot: Snapshot) -> list[Any]:
    try:
        return snapshot.manifests(table.io)
    except FileNotFoundError:
        # Somebody else expired it at the same time, and is deleting its files.
        return []


# Orphans


def remove_orphans(tables: CatalogTables, name: str, older_than_hours: float) -> int:
    """Delete files below the table's folder that nothing names: what killed writers left. How many.

    A file is only touched when it is older than the hours given: a writer's files have no name in the table until its
    unit is committed.
    """
    with explained(tables.shown):
        table = tables.get(name)
        named = set(_named(table))
        oldest = time.time() - older_than_hours * 3600
        gone = [path for path, changed in _files_below(table).items() if path not in named and changed < oldest]
        delete_files(table.io, gone)
    return len(gone)


def _named(table: Table) -> Iterator[str]:
    """Every file that the table, its history or its streams name, as a path without scheme."""
    paths = [table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)]
    for snapshot in table.metadata.snapshots:
        paths.append(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            paths.append(manifest.manifest_path)
            paths += [e.data_file.file_path for e in manifest.fetch_manifest_entry(table.io)]
    paths += [image.path for record in read_records(table).values() for image in record.before]
    paths += [statistics.statistics_path for statistics in table.metadata.statistics]
    for path in paths:
        yield _bare(path)


def _files_below(table: Table) -> Mapping[str, float]:
    """Files below the table's folder, as paths without scheme, with the time of their last change."""
    if not isinstance(table.io, PyArrowFileIO):
        raise DestinationError(
            f'files of {type(table.io).__name__} cannot be listed', hint="set 'py-io-impl' to pyiceberg's PyArrowFileIO"
        )
    scheme, netloc, path = PyArrowFileIO.parse_location(table.location())
    listed = table.io.fs_by_scheme(scheme, netloc).get_file_info(fs.FileSelector(path, recursive=True))
    return {info.path: info.mtime.timestamp() for info in listed if info.is_file and info.mtime is not None}


def _bare(location: str) -> str:
    return PyArrowFileIO.parse_location(location)[2]
