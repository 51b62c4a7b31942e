"""Upkeep of a table's files: joining small ones, deleting those that no version within reach needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from amplify_db_utils.files import Staging
from amplify_db_utils.log import Snapshot, TableLog
from amplify_db_utils.scan import Scan
from amplify_db_utils.storage import Storage

_MOST_FILES = 2000  # joined in one commit


class _SourceGoneError(Exception):
    """A file to be joined has left the table meanwhile."""


def compact(storage: Storage, log: TableLog, target_size: int, threads: int | None) -> int:
    """Join small files, in commits of bounded size; how many files went."""
    if target_size < 1:
        raise ValueError(f'target_size is a number of bytes, not {target_size!r}')
    gone = 0
    snapshot = log.snapshot()
    for rows in _rounds(snapshot, target_size):
        part = snapshot.with_files(snapshot.files.take(rows))
        scan = Scan(storage, log.directory, part, [], snapshot.schema.names)
        with Staging(storage, log.directory, snapshot.partition_by, threads) as staging:
            staging.add(scan.stored_table(), data_change=False)
            try:
                log.commit(staging.adds, _Sources(part.files), data_change=False)
            except _SourceGoneError:
                continue  # an overwrite was faster; what it left is for the next call
            staging.keep()
            gone += len(rows)
    return gone


class _Sources:
    """The rows of a snapshot that are the given files, all of them or _SourceGoneError."""

    def __init__(self, files: pa.Table) -> None:
        self._paths: list[Any] = files.column('path').to_pylist()

    def __call__(self, snapshot: Snapshot) -> Iterable[int]:
        where = {path: at for at, path in enumerate(snapshot.files.column('path').to_pylist())}
        try:
            return [where[path] for path in self._paths]
        except KeyError as error:
            raise _SourceGoneError from error


def _rounds(snapshot: Snapshot, target_size: int) -> Iterator[list[int]]:
    """Rows of the files to join in each commit: those of whole groups, together not much more than the target."""
    rows: list[int] = []
    size = 0
    sizes: list[Any] = snapshot.files.column('size').to_pylist()
    for group in _groups(snapshot, sizes, target_size):
        rows += group
        size += sum(sizes[at] for at in group)
        if size >= target_size or len(rows) >= _MOST_FILES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _groups(snapshot: Snapshot, sizes: list[int], target_size: int) -> Iterator[list[int]]:
    small: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for at, partition in enumerate(snapshot.partitions):
        if sizes[at] < target_size / 2:
            small[partition].append(at)
    for files in small.values():
        group: list[int] = []
        for at in files:
            group.append(at)
            if sum(sizes[one] for one in group) >= target_size:
                yield group
                group = []
        if len(group) > 1:
            yield group


def vacuum(storage: Storage, log: TableLog, retention_hours: float) -> list[str]:
    """Delete the files that were not part of the table at any moment of the last hours; their paths, sorted."""
    if not retention_hours >= 0:
        raise ValueError(f'retention_hours is a number from 0 on, not {retention_hours!r}')
    since = datetime.now(UTC) - timedelta(hours=retention_hours)
    needed = set(log.snapshot().files.column('path').to_pylist())
    if retention_hours:
        # A file taken out since then was there then, or was written since.
        needed |= set(log.at(since).files.column('path').to_pylist())
    start = len(storage.path(log.directory)) + 1
    found = storage.listing(log.directory, recursive=True)
    old = [
        info for info in found if info.is_file and info.extension == 'parquet' and info.mtime and info.mtime <= since
    ]
    doomed = sorted(info.path[start:] for info in old)
    doomed = [path for path in doomed if path not in needed and not path.startswith('_')]
    storage.delete([f'{log.directory}/{path}' for path in doomed])
    return doomed
