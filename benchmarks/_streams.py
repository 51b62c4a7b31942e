"""Streams for the benchmarks: batches with the metadata of microbatches, and what it takes to undo the last of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
from _server import BATCH_ROWS, make_batches

from amp.flight.protocol import encode_statement_query
from amp.loaders.base import DataLoader
from amp.loaders.stamps import stamp, stamped_schema
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch


def batches_of(rows: int) -> list[pa.RecordBatch]:
    """So many rows in all, to the batch: the same few over and over."""
    batches = make_batches()
    return (batches * (rows // sum(batch.num_rows for batch in batches) + 1))[: rows // BATCH_ROWS]


def bare_reader(client: fl.FlightClient, rows: int) -> pa.RecordBatchReader:
    """What the server sends, without amp."""
    descriptor = fl.FlightDescriptor.for_command(encode_statement_query(f'rows={rows}'))
    return client.do_get(client.get_flight_info(descriptor).endpoints[0].ticket).to_reader()


def stamped(batches: list[pa.RecordBatch]) -> pa.RecordBatchReader:
    """The rows with the two columns that a stream adds."""
    each = (stamp(batch, 1 << 51, '0123456789abcdef') for batch in batches)
    return pa.RecordBatchReader.from_batches(stamped_schema(batches[0].schema), each)


def one_microbatch(batches: list[pa.RecordBatch]) -> Iterator[ResponseBatch]:
    """All batches as one microbatch, so that both sides of a comparison commit once."""
    last = len(batches) - 1
    block_range = BlockRange('benchnet', 0, 999, '0x' + 'ab' * 32)
    for i, batch in enumerate(batches):
        yield ResponseBatch.data_batch(batch, BatchMetadata([block_range], i == last))


def seconds_to_undo(
    loader: DataLoader[Any],
    table: str,
    rows: int,
    undone: int = 100_000,
    times: int = 7,
    columns: int | None = None,
    settle: Callable[[], object] = lambda: None,
) -> float:
    """Load `rows` in microbatches of `undone` rows, then take the last ones back, one by one; the median.

    `columns`: so many of them only, for destinations where many wide rows would take the machine's disk. `settle` is
    called between.
    """
    batches = make_batches(count=undone // 8192 + 1)
    one = pa.Table.from_batches(batches).slice(0, undone).combine_chunks()
    batch = one.select(one.column_names[:columns]).to_batches()[0]
    count = rows // undone
    hashes = [None, *(f'0x{i}' for i in range(count))]

    def feed() -> Iterator[ResponseBatch]:
        for i in range(count):
            block_range = BlockRange('benchnet', i * 10, i * 10 + 9, hashes[i + 1], hashes[i])
            yield ResponseBatch.data_batch(batch, BatchMetadata([block_range], ranges_complete=True))

    for _ in loader.load_stream_continuous(feed(), table):
        pass
    settle()
    seconds = []
    for i in range(count - 1, count - 1 - times, -1):
        news = ResponseBatch.reorg_batch([BlockRange('benchnet', i * 10, count * 10)])
        started = time.perf_counter()
        [result] = loader.load_stream_continuous([news], table)
        seconds.append(time.perf_counter() - started)
        assert result.metadata['rows_undone'] == undone
    return statistics.median(seconds)
