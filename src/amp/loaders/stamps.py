"""The columns that amp adds to rows: which microbatch they came with, and the id by which they can be taken back."""

from __future__ import annotations

import pyarrow as pa

__all__ = ['BATCH_ID', 'STAMP_COLUMNS', 'TX_ID', 'stamp', 'stamped_schema', 'with_batch_id', 'without_stamps']

BATCH_ID = '_amp_batch_id'
TX_ID = '_amp_tx_id'
STAMP_COLUMNS = (BATCH_ID, TX_ID)


def stamped_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` with the two columns of a streamed row at its end."""
    for name in STAMP_COLUMNS:
        if schema.get_field_index(name) < 0:
            schema = schema.append(pa.field(name, pa.string() if name == BATCH_ID else pa.int64()))
    return schema


def stamp(batch: pa.RecordBatch, tx_id: int, batch_id: str) -> pa.RecordBatch:
    """`batch` with both columns set to one value each."""
    kept = without_stamps(batch)
    columns = [
        *kept.columns,
        pa.repeat(pa.scalar(batch_id, pa.string()), batch.num_rows),
        pa.repeat(pa.scalar(tx_id, pa.int64()), batch.num_rows),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=stamped_schema(kept.schema))


def with_batch_id(batch: pa.RecordBatch, batch_id: str) -> pa.RecordBatch:
    """`batch` with `_amp_batch_id` alone, for loads that are no stream."""
    return batch.append_column(BATCH_ID, pa.repeat(pa.scalar(batch_id, pa.string()), batch.num_rows))


def without_stamps(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The user's columns of `batch`."""
    present = [name for name in STAMP_COLUMNS if name in batch.schema.names]
    return batch.drop_columns(present) if present else batch
