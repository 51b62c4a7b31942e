"""What loading into the Parquet store costs beside pyarrow's own writing, and what a stream and a reorg cost on top.

    python benchmarks/bench_parquet.py [rows] [repetitions]

Bare path: one `pyarrow.dataset.write_dataset` of a reader over the same Flight result, in the types of the store's
files. For streams it writes the same columns and the same two stamps. A reorg: eight blocks of a table at the tip.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.flight as fl
from _harness import Places, Report, interleaved, peak_rss, speed_ratio
from _server import bare_server, make_batches
from _streams import bare_reader, batches_of, one_microbatch, stamped

import amp
from amp.loaders.implementations.parquet_loader import ParquetLoader
from amp.loaders.parquet.tables import declared_schema
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch
from amplify_db_utils.schema import stored_schema

_LOAD = """
import sys, tempfile, amp
with tempfile.TemporaryDirectory() as folder:
    result = amp.Client(sys.argv[1]).sql('rows=' + sys.argv[2]).load(f'parquet:///{folder}', 't')
    assert result.rows_loaded == int(sys.argv[2])
"""

_DEPTH = 8


def bare_write(reader: pa.RecordBatchReader, folder: str) -> None:
    schema = stored_schema(declared_schema(reader.schema))
    stored = pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))
    pads.write_dataset(stored, folder, format='parquet')


def streamed(root: str, batches: list[pa.RecordBatch]) -> None:
    with ParquetLoader({'root': root}) as loader:
        assert all(result.success for result in loader.load_stream_continuous(one_microbatch(batches), 't'))


def reorgs(root: str, commits: int, times: int = 5) -> tuple[float, int]:
    """Seconds for an undo of eight blocks, and most files it touched, in a table of so many commits of 150 rows."""
    small = make_batches(count=1)[0].slice(0, 150)

    def feed() -> Iterator[ResponseBatch]:
        for i in range(commits):
            ranges = [BlockRange('benchnet', i, i, f'0x{i}', f'0x{i - 1}' if i else None)]
            yield ResponseBatch.data_batch(small, BatchMetadata(ranges, True))

    with ParquetLoader({'root': root}) as loader:
        for _ in loader.load_stream_continuous(feed(), 't'):
            pass
        seconds, most, tip = [], 0, commits - 1

        def files() -> set[str]:
            return set(loader.store.log('t').snapshot().files['path'].to_pylist())

        for _ in range(times):
            before = files()
            tip -= _DEPTH
            news = ResponseBatch.reorg_batch([BlockRange('benchnet', tip + 1, tip + _DEPTH)])
            started = time.perf_counter()
            [result] = loader.load_stream_continuous([news], 't')
            seconds.append(time.perf_counter() - started)
            assert result.metadata['rows_undone'] == _DEPTH * small.num_rows
            most = max(most, len(before ^ files()))
        return statistics.median(seconds), most


def main(rows: int, repetitions: int) -> int:
    # The bare path warns of every buffer that Flight has not aligned.
    os.environ.setdefault('ACERO_ALIGNMENT_HANDLING', 'ignore')
    report = Report()
    batches = batches_of(rows)
    with tempfile.TemporaryDirectory() as folder, bare_server() as url, amp.Client(url) as client:
        folders, bare = Places(folder), fl.FlightClient(url)
        query = client.sql(f'rows={rows}')
        timings = interleaved(
            {
                'bare Flight -> write_dataset': lambda: bare_write(bare_reader(bare, rows), folders.new()),
                'load': lambda: query.load(f'parquet:///{folders.new()}', 't'),
                'bare write, stamped': lambda: bare_write(stamped(batches), folders.new()),
                'stream, one unit': lambda: streamed(folders.new(), batches),
            },
            repetitions,
        )
        report.rates(timings, rows)
        report.at_least(
            'load / bare Flight -> write_dataset', speed_ratio(timings, 'load', 'bare Flight -> write_dataset'), 0.9
        )
        report.at_least('stream / bare write', speed_ratio(timings, 'stream, one unit', 'bare write, stamped'), 0.9)
        few, many = (peak_rss(_LOAD, url, str(n)) for n in (rows, 4 * rows))
        print(
            f'peak memory: {few / 1e6:.0f} MB for {rows / 1e6:.0f} M rows, {many / 1e6:.0f} MB for four times as many'
        )
        report.at_most('peak memory of load, four times the rows', many / few, 1.3)
        seconds, touched = reorgs(folders.new(), 200)
        print(f'undo of {_DEPTH} blocks in a table of 200 commits: {seconds:.3f} s')
        report.at_most('files written or dropped in an undo', touched, _DEPTH)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [3_000_000, 5][len(given) :])))
