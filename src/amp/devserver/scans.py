"""Rows of a snapshot as tables of DataFusion: those in memory as they are, those in files by DataFusion's own reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from datafusion import DataFrame, SessionConfig, SessionContext, col, lit
from datafusion.catalog import Schema, Table

from amp.devserver.chain import Scan, Stored
from amp.errors import SourceError

__all__ = ['for_files', 'make_table']

_WORTH_DIVIDING = 10 << 20
"""As DataFusion has it: bytes from which it divides the rows of a table itself, unless there are partitions already."""


def for_files(config: SessionConfig) -> SessionConfig:
    """The settings under which files give rows of the very types that they were written with, filtered while read."""
    return (
        config.set('datafusion.execution.parquet.schema_force_view_types', 'false')
        .set('datafusion.execution.parquet.pushdown_filters', 'true')
        .set('datafusion.execution.parquet.skip_metadata', 'true')
        # In DataFusion 52 a max() beside a count(*) makes it skip files whose rows the count wants.
        .set('datafusion.optimizer.enable_aggregate_dynamic_filter_pushdown', 'false')
    )


def make_table(
    context: SessionContext,
    store: Schema,
    prefix: str,
    name: str,
    schema: pa.Schema,
    rows: Sequence[pa.RecordBatch] | Scan,
    partitions: int | None = None,
) -> Table:
    """A table of these rows, registered as `name` in the schema `store`, whose own name is `prefix`.

    With `partitions` it may be under a LIMIT, in a plan of so many. Raises SourceError when a file is gone.
    """
    if isinstance(rows, Scan) and rows.stored:
        frames = [_stored(context, prefix, f'{name}:{at}', schema, part) for at, part in enumerate(rows.stored)]
        if rows.batches:
            near = _divided(list(rows.batches), partitions)
            context.register_record_batches(f'{prefix}."{name}:near"', near)
            frames.append(context.table(f'{prefix}."{name}:near"'))
        return _union(frames).into_view()
    batches = list(rows.batches if isinstance(rows, Scan) else rows)
    empty = [pa.RecordBatch.from_pylist([], schema=schema)]
    context.register_record_batches(f'{prefix}."{name}"', _divided(batches or empty, partitions))
    return store.table(name)


def _divided(batches: list[pa.RecordBatch], partitions: int | None) -> list[list[pa.RecordBatch]]:
    """The batches as partitions of a table, in their order.

    DataFusion 52 forgets a LIMIT over the only partition of a table whose columns are wanted in another order.
    """
    if partitions is None:
        return [batches]
    if partitions == 1 or sum(batch.nbytes for batch in batches) < _WORTH_DIVIDING:
        return [batches, []]
    size = -(-len(batches) // partitions)
    return [batches[at : at + size] for at in range(0, len(batches), size)] + [[]]


def _union(frames: list[DataFrame]) -> DataFrame:
    whole = frames[0]
    for frame in frames[1:]:
        whole = whole.union(frame)
    return whole


def _stored(context: SessionContext, prefix: str, name: str, schema: pa.Schema, part: Stored) -> DataFrame:
    # A listing over nothing has no rows, and that is no error.
    gone = next((file for file in part.files if not file.is_file()), None)
    if gone is not None:
        raise SourceError(f'{gone} cannot be read: it is not there any more')
    quoted = f'{prefix}."{name}"'
    context.register_listing_table(quoted, _url(part.path), schema=schema)
    if part.whole:
        return context.table(quoted)
    number = col('_block_num')
    first, last = (lit(pa.scalar(bound, pa.uint64())) for bound in (part.first, part.last))
    return context.table(quoted).filter((number >= first) & (number <= last))


def _url(path: Path) -> str:
    # A listing reads a folder only when its name ends with a slash.
    text = str(path.resolve())
    return f'{text}/' if path.is_dir() else text
