"""Fewer, larger files in a Delta table: only files whose rows are final, so that no reorg ever rewrites a large one.

delta-rs compacts whatever is small, rows that a reorg may still take back included; so the files are chosen here. The
commit says that no data changed. delta-rs lets two such commits remove the same files, and rows would be there twice;
so it commits at exactly the next version, or looks again whether its files are still there.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, cast
from urllib.parse import unquote

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from amp.errors import DestinationError
from amp.loaders.deltalog.columns import arrow_schema
from amp.loaders.deltalog.files import Files
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun

__all__ = ['TARGET_SIZE', 'TIER_FILES', 'compact']

TARGET_SIZE = 128 * 1024**2
# Files are joined when so many of about the same size have gathered: each byte is rewritten once for every tier.
TIER_FILES = 8

_MOST_TRIES = 20
_SUPPORTED_FEATURES = {'timestampNtz', 'appendOnly', 'invariants'}


@dataclass(frozen=True)
class _DataFile:
    """A file of the table, as its log describes it."""

    path: str
    size: int
    rows: int | None
    partition: tuple[tuple[str, str | None], ...] | None
    low: Mapping[str, Any]
    high: Mapping[str, Any]
    nulls: Mapping[str, int | None]

    @property
    def folder(self) -> str:
        return self.path.rpartition('/')[0]

    def is_final(self, open_runs: Sequence[IdRun]) -> bool:
        """True when no row of it can still be taken back."""
        if not open_runs or (self.rows is not None and self.nulls.get(TX_ID) == self.rows):
            return True
        low, high = self.low.get(TX_ID), self.high.get(TX_ID)
        return low is not None and high is not None and all(high < r.first or low > r.last for r in open_runs)


def compact(
    table: DeltaTable, files: Files, open_runs: Sequence[IdRun], least: int = TIER_FILES, target_size: int = TARGET_SIZE
) -> tuple[int, int]:
    """Join final files in one commit; how many there were, and how many took their place.

    `open_runs` are the ids that may still be taken back. `least` is the number of files of a size that are worth it; 2
    joins all that are smaller than `target_size` bytes. Raises DestinationError for a table whose files say not all.
    """
    _refuse_what_files_do_not_tell(table)
    chosen = list(_chosen(_files_of(table), open_runs, least, target_size))
    if not chosen:
        return 0, 0
    schema = _file_schema(table)
    actions: list[AddAction | RemoveAction] = []
    written = []
    for group in chosen:
        added = _join(group, files, schema)
        written.append(added.path)
        actions.append(added)
        actions.extend(_removal(each) for each in group)
    removed = {each.path for group in chosen for each in group}
    if _commit(table, actions, removed):
        return len(removed), len(written)
    for path in written:
        files.delete(path)
    return 0, 0


def _chosen(
    found: Iterable[_DataFile], open_runs: Sequence[IdRun], least: int, target_size: int
) -> Iterator[list[_DataFile]]:
    """Groups that become one file each: neighbours by id, of one partition, of about one size."""
    alike: dict[tuple[object, ...], list[_DataFile]] = defaultdict(list)
    for each in found:
        if each.size < target_size // 2 and each.partition is not None and each.is_final(open_runs):
            tier = 0 if least <= 2 else each.size.bit_length() // 3
            alike[each.folder, each.partition, tier].append(each)
    for several in alike.values():
        several.sort(key=lambda each: each.low.get(TX_ID) or 0)
        group: list[_DataFile] = []
        for each in several:
            if group and sum(f.size for f in group) + each.size > target_size:
                if len(group) >= least:
                    yield group
                group = []
            group.append(each)
        if len(group) >= least:
            yield group


def _commit(table: DeltaTable, actions: list[AddAction | RemoveAction], removed: set[str]) -> bool:
    """False when another commit has taken one of the files away."""
    for _ in range(_MOST_TRIES):
        try:
            table.create_write_transaction(
                actions,
                'append',
                table.schema(),
                table.metadata().partition_columns,
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except CommitFailedError:
            table.update_incremental()
            if not removed <= {each.path for each in _files_of(table)}:
                return False
            continue
        return True
    return False


def _join(group: Sequence[_DataFile], files: Files, schema: pa.Schema) -> AddAction:
    """Write the rows of the files as one file beside them."""
    path = '/'.join(filter(None, [unquote(group[0].folder), f'part-00000-{uuid.uuid4()}-c000.snappy.parquet']))
    with _Sink(obstore.open_writer(files.store, path)) as sink, pq.ParquetWriter(cast('Any', sink), schema) as writer:
        for each in group:
            whole = pa.py_buffer(obstore.get(files.store, unquote(each.path)).bytes())
            for batch in pq.ParquetFile(pa.BufferReader(whole)).iter_batches():
                writer.write_batch(_under(schema, batch))
    size = obstore.head(files.store, path)['size']
    return AddAction(path, size, dict(group[0].partition or ()), _now(), False, _statistics(group))


class _Sink(io.RawIOBase):
    """A file of the store as Arrow wants one."""

    def __init__(self, opened: obstore.WritableFile) -> None:
        self._opened = opened

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._opened.write(bytes(data))

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


def _under(schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with every column of the table; a file may be older than some."""
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _removal(each: _DataFile) -> RemoveAction:
    # The path is encoded once more on its way into the log.
    return RemoveAction(unquote(each.path), False, _now(), each.size, dict(each.partition or ()))


def _statistics(group: Sequence[_DataFile]) -> str:
    """The bounds of all from the bounds of each: a column of which one file tells nothing has none."""
    names = dict.fromkeys(name for each in group for name in each.nulls)
    lows, highs, nulls = {}, {}, {}
    for name in names:
        counts = [each.nulls.get(name) for each in group]
        if None not in counts:
            nulls[name] = sum(cast('list[int]', counts))
        holding = [each for each in group if each.rows is None or each.nulls.get(name) != each.rows]
        low, high = [e.low.get(name) for e in holding], [e.high.get(name) for e in holding]
        if holding and None not in low and None not in high and _has_form(low[0]):
            lows[name], highs[name] = _in_json(min(cast('Any', low))), _in_json(max(cast('Any', high)))
    rows = [each.rows for each in group]
    told: dict[str, object] = {'minValues': lows, 'maxValues': highs, 'nullCount': nulls}
    if None not in rows:
        told['numRecords'] = sum(cast('list[int]', rows))
    return json.dumps(told)


def _has_form(value: object) -> bool:
    return not isinstance(value, dict) and not (isinstance(value, Decimal) and value.as_tuple().exponent != 0)


def _in_json(value: Any) -> object:
    if isinstance(value, datetime):
        text = value.replace(tzinfo=None).isoformat(sep=' ' if value.tzinfo is None else 'T', timespec='milliseconds')
        return text if value.tzinfo is None else f'{text}Z'
    if isinstance(value, date):
        return value.isoformat()
    return int(value) if isinstance(value, Decimal) else value


def _files_of(table: DeltaTable) -> list[_DataFile]:
    """One value a file: these are lines of the log, not rows."""
    actions = pa.table(table.get_add_actions())
    return [
        _DataFile(
            line['path'],
            line['size_bytes'],
            line['num_records'],
            _partition(line.get('partition') or {}),
            line.get('min') or {},
            line.get('max') or {},
            line.get('null_count') or {},
        )
        for line in actions.to_pylist()
    ]


def _partition(values: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...] | None:
    """The values as the log writes them; None for types of which it is not sure enough to write them again."""
    if not all(value is None or isinstance(value, str | int | date) for value in values.values()):
        return None
    if any(isinstance(value, datetime) for value in values.values()):
        return None
    return tuple(
        (name, None if v is None else str(v).lower() if isinstance(v, bool) else str(v)) for name, v in values.items()
    )


def _file_schema(table: DeltaTable) -> pa.Schema:
    outside = set(table.metadata().partition_columns)
    return pa.schema([field for field in arrow_schema(table) if field.name not in outside])


def _refuse_what_files_do_not_tell(table: DeltaTable) -> None:
    protocol = table.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())} - _SUPPORTED_FEATURES
    if features or protocol.min_reader_version == 2:
        named = ', '.join(sorted(features)) or 'column mapping'
        raise DestinationError(
            f'the Delta table has features with which its files cannot be joined here: {named}',
            hint='compact it with the engine that made it',
        )


def _now() -> int:
    return int(time.time() * 1000)
