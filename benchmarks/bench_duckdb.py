"""What loading into DuckDB costs beside DuckDB's own bulk path, and what exactly-once costs on top.

    python benchmarks/bench_duckdb.py [rows] [repetitions]

Bare path: one `INSERT ... SELECT` from a reader over the same Flight result. For streams the bare path writes the same
two stamp columns; the stamp alone is reported apart. Undo: the same number of rows taken back from a small table and a
large one. Memory: the peak of a process that loads 1 M rows against one that loads ten times as many.
"""

from __future__ import annotations

import sys
import tempfile

import duckdb
import pyarrow as pa
import pyarrow.flight as fl
from _harness import Places, Report, interleaved, peak_rss, speed_ratio
from _server import bare_server
from _streams import bare_reader, batches_of, one_microbatch, seconds_to_undo, stamped

import amp
from amp.loaders.implementations.duckdb_loader import DuckDBLoader

_LOAD = """
import sys, tempfile, amp
with tempfile.TemporaryDirectory() as folder:
    result = amp.Client(sys.argv[1]).sql('rows=' + sys.argv[2]).load(f'duckdb:///{folder}/x.db', 't')
    assert result.rows_loaded == int(sys.argv[2])
"""


def insert(path: str, reader: pa.RecordBatchReader) -> None:
    connection = duckdb.connect(path)
    connection.register('empty', reader.schema.empty_table())
    connection.execute('CREATE TABLE t AS SELECT * FROM empty')
    connection.register('incoming', reader)
    connection.execute('INSERT INTO t SELECT * FROM incoming')
    connection.close()


def streamed(path: str, batches: list[pa.RecordBatch]) -> None:
    with DuckDBLoader({'path': path}) as loader:
        assert all(result.success for result in loader.load_stream_continuous(one_microbatch(batches), 't'))


def undo(path: str, rows: int) -> float:
    with DuckDBLoader({'path': path}) as loader:
        return seconds_to_undo(loader, 't', rows)


def main(rows: int, repetitions: int, large: int) -> int:
    report = Report()
    batches = batches_of(rows)
    with tempfile.TemporaryDirectory() as folder, bare_server() as url, amp.Client(url) as client:
        files, bare = Places(folder, '.db'), fl.FlightClient(url)
        query = client.sql(f'rows={rows}')
        timings = interleaved(
            {
                'bare Flight -> INSERT': lambda: insert(files.new(), bare_reader(bare, rows)),
                'load': lambda: query.load(f'duckdb:///{files.new()}', 't'),
                'bare INSERT, no stamps': lambda: insert(
                    files.new(), pa.RecordBatchReader.from_batches(batches[0].schema, iter(batches))
                ),
                'bare INSERT, stamped': lambda: insert(files.new(), stamped(batches)),
                'stream, one unit': lambda: streamed(files.new(), batches),
            },
            repetitions,
        )
        report.rates(timings, rows)
        report.at_least('load / bare Flight -> INSERT', speed_ratio(timings, 'load', 'bare Flight -> INSERT'), 0.9)
        report.at_least(
            'stream / bare stamped INSERT', speed_ratio(timings, 'stream, one unit', 'bare INSERT, stamped'), 0.9
        )
        print(
            f'the stamps alone: {speed_ratio(timings, "bare INSERT, stamped", "bare INSERT, no stamps"):.3f} of unstamped'
        )
        few, many = (peak_rss(_LOAD, url, str(n)) for n in (1_000_000, 10_000_000))
        print(f'peak memory: {few / 1e6:.0f} MB for 1 M rows, {many / 1e6:.0f} MB for 10 M rows')
        report.at_most('peak memory of load, 10 M rows / 1 M rows', many / few, 1.10)
        small_undo = undo(files.new(), 1_000_000)
        large_undo = undo(files.new(), large)
        print(f'undo of 100 k rows: {small_undo:.3f} s at 1 M rows, {large_undo:.3f} s at {large / 1e6:.0f} M rows')
        report.at_most(f'undo at {large // 1_000_000} M rows / at 1 M rows', large_undo / small_undo, 1.5)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5, 50_000_000][len(given) :])))
