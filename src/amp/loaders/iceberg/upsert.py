"""Replacing rows by key in an Iceberg table, exactly: rows wait in a temporary file until the unit is whole.

Then the key columns, and only they, are read of every file whose statistics leave room for one of the keys; a file
that holds a row to be replaced is written anew without it, and all others are left alone. In a stream the rows that go
are kept in a file beside the table until the microbatch that replaced them can no longer be undone.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pyarrow.types as pt
from pyiceberg.expressions import BooleanExpression
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import LongType, NestedField

from amp.errors import DestinationError, SchemaError
from amp.loaders.iceberg.files import DataWriter, arrow_schema, file_schema, top_columns
from amp.loaders.iceberg.io import sync
from amp.loaders.iceberg.rows import Flags, Working, in_runs
from amp.loaders.iceberg.scan import between, file_batches, read_file
from amp.loaders.iceberg.streams import BeforeImage
from amp.loaders.sql import REPLACED_BY
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import IdRun

__all__ = ['Replacement', 'Stage', 'replace_rows', 'restore', 'write_image']

pc: Any = pyarrow.compute

_ROW, _CODE, _BY = '_amp_row', '_amp_code', '_amp_by'
_REPLACED_BY_ID = 2_000_000_000
# Rows whose keys are looked up at once: each look-up begins with a table of all keys.
_MATCHED_ROWS = 2_000_000

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Replacement:
    """What an upsert comes to: the rows that were `staged` and which of them go in (the `last` of each key), the `keys`
    with the id that replaces first (`_amp_by`; 0 in a plain load), and rows that a later microbatch of the same unit
    replaced (`superseded`).
    """

    names: tuple[str, ...]
    staged: pa.Table
    last: Flags
    keys: pa.Table
    superseded: pa.Table | None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows that go in."""
        start = 0
        for batch in self.staged.to_batches():
            flags = self.last[start : start + batch.num_rows]
            start += batch.num_rows
            yield batch if flags.all() else batch.filter(pa.array(flags))


class Stage:
    """Rows in a temporary file, in the order in which they came."""

    def __init__(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        missing = [key for key in keys if key not in schema.names]
        if missing:
            raise SchemaError(
                f'the key column {missing[0]!r} is not in the rows', hint=f'columns: {", ".join(schema.names)}'
            )
        nested = [key for key in keys if pt.is_nested(schema.field(key).type)]
        if nested:
            raise SchemaError(f'the column {nested[0]!r} of type {schema.field(nested[0]).type} cannot be a key')
        floats = [key for key in keys if pt.is_floating(schema.field(key).type)]
        if floats:
            raise SchemaError(
                f'the column {floats[0]!r} of type {schema.field(floats[0]).type} cannot be a key: NaN and -0.0 are equal in '
                'one place and not in the next',
                hint='choose a key of whole numbers, decimals, text or bytes, or cast it in the query',
                column=floats[0],
            )
        self._schema = schema
        self._keys = tuple(keys)
        self._folder = tempfile.TemporaryDirectory(prefix='amp-iceberg-', ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / 'rows.arrows'

    def write_all(self, reader: pa.RecordBatchReader) -> int:
        """Take all that a reader gives; how many rows. Raises SchemaError for a key that is null."""
        rows = 0
        with pa.OSFile(str(self._path), 'wb') as sink, pa.ipc.new_stream(sink, self._schema) as writer:
            for batch in reader:
                self._check(batch)
                writer.write_batch(batch)
                rows += batch.num_rows
        return rows

    def replacement(self) -> Replacement:
        """What is to happen. The rows stay in the file: their table is a view of it until `close`."""
        with pa.memory_map(str(self._path)) as source:
            staged = pa.ipc.open_stream(source).read_all()
        return _replacement(staged, self._keys)

    def close(self) -> None:
        """Delete the file."""
        self._folder.cleanup()

    def _check(self, batch: pa.RecordBatch) -> None:
        for key in self._keys:
            nulls = batch.column(key).null_count
            if nulls:
                raise SchemaError(
                    f'the key column {key!r} is null in {nulls} rows, so they name no row to replace',
                    hint='leave them out in the query, or choose another key',
                    column=key,
                )


def _replacement(staged: pa.Table, names: tuple[str, ...]) -> Replacement:
    keys = staged.select(names)
    grouped: Any = keys.group_by(list(names))
    known = grouped.aggregate([])
    known = known.append_column(_CODE, pa.array(np.arange(known.num_rows)))
    codes = _matched(keys, known, names, _CODE)
    order = np.lexsort((np.arange(len(codes)), codes))
    ordered = codes[order]
    later = np.append(ordered[1:] == ordered[:-1], False)
    first = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    stamps = np.zeros(staged.num_rows, np.int64)
    superseded = None
    if TX_ID in staged.schema.names:
        stamps = staged[TX_ID].to_numpy()
        by = np.append(stamps[order][1:], 0)[: len(order)]
        replaced = later & (by != stamps[order])
        superseded = staged.take(pa.array(order[replaced])).append_column(REPLACED_BY, pa.array(by[replaced]))
    last = np.zeros(staged.num_rows, np.bool_)
    last[order[~later]] = True
    return Replacement(
        names,
        staged,
        last,
        known.drop_columns([_CODE]).append_column(_BY, pa.array(stamps[order[first]])),
        superseded,
    )


def _matched(rows: pa.Table, known: pa.Table, names: Sequence[str], wanted: str) -> Numbers:
    """For each row the number `wanted` of the known key that it has; -1 where it has none."""
    numbered = rows.append_column(_ROW, pa.array(np.arange(rows.num_rows)))
    joined: Any = numbered.join(known, list(names), join_type='inner')
    found = np.full(rows.num_rows, -1, np.int64)
    found[joined[_ROW].to_numpy()] = joined[wanted].to_numpy()
    return found


def replace_rows(working: Working, replacement: Replacement) -> pa.Table | None:
    """Take out the rows whose keys come anew; they are returned with what replaced them, None when there are none."""
    schema = arrow_schema(working.table.schema())
    keys = replacement.keys.cast(_keyed(schema, replacement.names))
    gone: list[pa.Table] = []
    for task in working.tasks(_around(keys, replacement.names)):
        by = _replaced_in(working.table, task, keys, replacement.names)
        if (by < 0).all():
            continue
        gone.append(_taken(working, task, by))
    return pa.concat_tables(gone) if gone else None


def _keyed(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise SchemaError(f'the table has no key column {missing[0]!r}', hint=f'columns: {", ".join(schema.names)}')
    return pa.schema([*(pa.field(n, schema.field(n).type) for n in names), pa.field(_BY, pa.int64())])


def _around(keys: pa.Table, names: Sequence[str]) -> BooleanExpression | None:
    """Between the lowest and the highest key, where they are whole numbers: by this files are left unread."""
    wheres = {}
    for name in names:
        if pt.is_integer(keys.schema.field(name).type) and keys.num_rows:
            ends = pc.min_max(keys[name])
            wheres[name] = (ends['min'].as_py(), ends['max'].as_py())
    return between(wheres) if wheres else None


def _replaced_in(table: Table, task: FileScanTask, keys: pa.Table, names: Sequence[str]) -> Numbers:
    """For each row of a file the id that replaces it, -1 where it stays."""
    found: list[Numbers] = []
    waiting: list[pa.RecordBatch] = []
    for batch in file_batches(table, task, list(names)):
        waiting.append(batch)
        if sum(b.num_rows for b in waiting) >= _MATCHED_ROWS:
            found.append(_matched(pa.Table.from_batches(waiting), keys, names, _BY))
            waiting = []
    if waiting:
        found.append(_matched(pa.Table.from_batches(waiting), keys, names, _BY))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _taken(working: Working, task: FileScanTask, by: Numbers) -> pa.Table:
    """Rewrite a file without the rows that are replaced; those rows."""
    gone: list[pa.RecordBatch] = []
    start = 0

    def stays(batch: pa.RecordBatch) -> Flags:
        nonlocal start
        replaced = by[start : start + batch.num_rows]
        start += batch.num_rows
        kept = replaced < 0
        if not kept.all():
            rows = batch.filter(pa.array(~kept))
            gone.append(rows.append_column(REPLACED_BY, pa.array(replaced[~kept])))
        return kept

    working.keep(task, stays)
    return pa.Table.from_batches(gone)


# Before-images


def write_image(table: Table, rows: Iterable[pa.Table | None]) -> BeforeImage | None:
    """Keep replaced rows in a file beside the table; None when there are none."""
    target = file_schema(table.schema())
    names = top_columns(table)
    given = [part for part in rows if part is not None and part.num_rows]
    if not given:
        return None
    marked = target.append(pa.field(REPLACED_BY, pa.int64(), metadata={'PARQUET:field_id': str(_REPLACED_BY_ID)}))
    whole = pa.concat_tables([_in_order(part, [*names, REPLACED_BY], marked) for part in given])
    path = table.location_provider().new_metadata_location(f'amp-before-{uuid.uuid4().hex}.parquet')
    with table.io.new_output(path).create() as sink:
        pq.write_table(whole, cast('Any', sink), compression='zstd')
    sync(table.io, path)
    replaced = pc.min_max(whole[REPLACED_BY])
    own = pc.min_max(whole.column(names.index(TX_ID)))
    first, last, oldest, newest = (ends[end].as_py() or 0 for ends in (replaced, own) for end in ('min', 'max'))
    return BeforeImage(path, first, last, whole.num_rows, oldest, newest)


def _in_order(part: pa.Table, names: Sequence[str], target: pa.Schema) -> pa.Table:
    columns: list[Any] = [
        part[name].cast(f.type) if name in part.schema.names else pa.nulls(part.num_rows, f.type)
        for name, f in zip(names, target, strict=True)
    ]
    return pa.table(columns, schema=target)


def restore(
    working: Working, images: Sequence[BeforeImage], runs: Sequence[IdRun]
) -> tuple[list[BeforeImage], list[BeforeImage]]:
    """Put back the rows that the ids of `runs` replaced, unless they go themselves.

    The images that are left afterwards, and those among them that were written for it.
    """
    left: list[BeforeImage] = []
    fresh: list[BeforeImage] = []
    for image in images:
        if not any(image.touches(run) for run in runs):
            left.append(image)
            continue
        rows = _read_image(working.table, image)
        gone = in_runs(rows[REPLACED_BY].combine_chunks(), runs)
        own = in_runs(rows[TX_ID].combine_chunks(), runs)
        _put_back(working, rows.filter(pa.array(gone & ~own)).drop_columns([REPLACED_BY]))
        rest = write_image(working.table, [rows.filter(pa.array(~gone & ~own))])
        if rest is not None:
            left.append(rest)
            fresh.append(rest)
    return left, fresh


def _read_image(table: Table, image: BeforeImage) -> pa.Table:
    marked = Schema(*table.schema().fields, NestedField(_REPLACED_BY_ID, REPLACED_BY, LongType()))
    batches = read_file(table, image.path, marked)
    if batches is None:
        raise DestinationError(f'the file of replaced rows {image.path} cannot be read', table=table.name()[-1])
    return pa.Table.from_batches(batches, arrow_schema(marked))


def _put_back(working: Working, rows: pa.Table) -> None:
    with DataWriter(working.table) as writer:
        writer.write_all(rows.to_reader())
        working.add(writer.finish())
