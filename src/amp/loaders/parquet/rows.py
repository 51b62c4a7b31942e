"""Arrow rows on their way into a columnar store: under the columns of the table, in the types that its files have."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from amp.errors import SchemaError
from amp.loaders.arrow_types import land, type_table
from amplify_db_utils.files import Staging
from amplify_db_utils.log import Snapshot
from amplify_db_utils.records import as_table

__all__ = ['Fitting', 'write_files']

# One file of a partition for so much, or at the end. A unit of a stream is no larger.
_FILE_ROWS = 1_000_000
_FILE_BYTES = 128 * 1024**2


class Fitting:
    """How rows of one schema become rows of a table that may have more columns, or wider ones.

    Raises SchemaError for a type or a column that cannot go; a value that does not fit raises it, or the store's
    BadRecord, when it comes.
    """

    def __init__(self, schema: pa.Schema, into: Snapshot, table: str) -> None:
        self.stored = pa.schema([into.stored.field(name) for name in into.schema.names])
        self.rows = 0
        self._into = into
        self._landings = type_table('parquet').landings(schema)
        own = {name.casefold(): name for name in into.schema.names}
        homeless = [name for name in schema.names if name.casefold() not in own]
        if homeless:
            # Somebody has put another table in its place since it was prepared.
            raise SchemaError(f'the table {table!r} has no column {homeless[0]!r} any more', column=homeless[0])
        self._names = [own[name.casefold()] for name in schema.names]
        # What can never fit says so now, and not with the first row.
        self._stored(_empty(schema))

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as the files have them, partition keys included."""
        self.rows += batch.num_rows
        stored = self._stored(batch)
        return stored.combine_chunks().to_batches()[0] if stored.num_rows else _empty(self.stored)

    def _stored(self, batch: pa.RecordBatch) -> pa.Table:
        landed = land(batch, self._landings).rename_columns(self._names)
        return as_table(landed, self._into.schema, self._into.partition_by)


def write_files(staging: Staging, rows: pa.RecordBatchReader) -> int:
    """Write files for all rows, each while the rows of the next one come in; how many rows."""
    waiting: list[pa.RecordBatch] = []
    done = size = count = 0
    under_way: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in rows:
            waiting.append(batch)
            count += batch.num_rows
            size += batch.nbytes
            if count >= _FILE_ROWS or size >= _FILE_BYTES:
                if under_way is not None:
                    under_way.result()
                under_way = pool.submit(staging.add, pa.Table.from_batches(waiting))
                done += count
                waiting, count, size = [], 0, 0
        if under_way is not None:
            under_way.result()
    if count:
        staging.add(pa.Table.from_batches(waiting))
    return done + count


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
