"""What loading into Delta Lake costs beside delta-rs's own write, and what exactly-once and a reorg cost on top.

    python benchmarks/bench_deltalake.py [rows] [repetitions] [rows of the large table]

Bare path: one `write_deltalake` of a reader over the same Flight result. It takes uint64 for a signed long, which breaks
above 2^63, where the loader writes a decimal; what that alone costs is told apart. For streams the bare path writes the
same columns and the same two stamps. A reorg: eight blocks of a table at the tip, and which files it wrote again.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.flight as fl
from _harness import Places, Report, interleaved, peak_rss, speed_ratio
from _server import bare_server, make_batches
from _streams import bare_reader, batches_of, one_microbatch, stamped
from deltalake import write_deltalake

import amp
from amp.loaders.delta.rows import Fitting, table_schema
from amp.loaders.implementations.deltalake_loader import DeltaLakeLoader
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch

_LOAD = """
import sys, tempfile, amp
with tempfile.TemporaryDirectory() as folder:
    result = amp.Client(sys.argv[1]).sql('rows=' + sys.argv[2]).load(f'deltalake:///{folder}', 't')
    assert result.rows_loaded == int(sys.argv[2])
"""

_DEPTH = 8


def landed(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    fitting = Fitting(reader.schema, table_schema(reader.schema), 't')
    return pa.RecordBatchReader.from_batches(fitting.schema, map(fitting.batch, reader))


def streamed(root: str, batches: list[pa.RecordBatch]) -> None:
    with DeltaLakeLoader({'root': root}) as loader:
        assert all(result.success for result in loader.load_stream_continuous(one_microbatch(batches), 't'))


def reorgs(root: str, rows: int, times: int = 5) -> tuple[float, int, int]:
    """Seconds for an undo of eight blocks, most files it touched, and files with its rows, in a table of `rows` rows.

    Most of the table comes in commits of a million rows, the last 64 blocks in a commit each, as at the tip.
    """
    batches = make_batches(count=64)
    large = pa.Table.from_batches(batches).slice(0, 500_000).combine_chunks().to_batches()[0]
    small = large.slice(0, 150)

    def feed() -> Iterator[ResponseBatch]:
        parent, commits = None, rows // 1_000_000
        for i in range(commits + 64):
            backlog = i < commits
            start, end = (i * 1000, i * 1000 + 999) if backlog else (commits * 999 + i, commits * 999 + i)
            own = f'0x{i}'
            metadata = [
                BatchMetadata([BlockRange('benchnet', start, end, own, parent)], done) for done in (False, True)
            ]
            if backlog:
                yield ResponseBatch.data_batch(large, metadata[0])
            yield ResponseBatch.data_batch(large if backlog else small, metadata[1])
            parent = own

    with DeltaLakeLoader({'root': root}) as loader:
        for _ in loader.load_stream_continuous(feed(), 't'):
            pass
        seconds, most, tip = [], 0, rows // 1_000_000 * 1000 + 63
        for _ in range(times):
            before = set(loader.open_table('t').file_uris())
            tip -= _DEPTH
            news = ResponseBatch.reorg_batch([BlockRange('benchnet', tip + 1, tip + _DEPTH)])
            started = time.perf_counter()
            [result] = loader.load_stream_continuous([news], 't')
            seconds.append(time.perf_counter() - started)
            assert result.metadata['rows_undone'] == _DEPTH * small.num_rows
            most = max(most, len(before ^ set(loader.open_table('t').file_uris())))
        return statistics.median(seconds), most, _DEPTH


def main(rows: int, repetitions: int, large: int) -> int:
    report = Report()
    batches = batches_of(rows)
    with tempfile.TemporaryDirectory() as folder, bare_server() as url, amp.Client(url) as client:
        folders, bare = Places(folder), fl.FlightClient(url)
        query = client.sql(f'rows={rows}')
        timings = interleaved(
            {
                'bare Flight -> write': lambda: write_deltalake(folders.new(), bare_reader(bare, rows)),
                'bare, the same types': lambda: write_deltalake(folders.new(), landed(bare_reader(bare, rows))),
                'load': lambda: query.load(f'deltalake:///{folders.new()}', 't'),
                'bare write, stamped': lambda: write_deltalake(folders.new(), landed(stamped(batches))),
                'stream, one unit': lambda: streamed(folders.new(), batches),
            },
            repetitions,
        )
        report.rates(timings, rows)
        report.at_least('load / bare Flight -> write', speed_ratio(timings, 'load', 'bare Flight -> write'), 0.9)
        report.at_least('load / bare, the same types', speed_ratio(timings, 'load', 'bare, the same types'), 0.9)
        report.at_least('stream / bare write', speed_ratio(timings, 'stream, one unit', 'bare write, stamped'), 0.9)
        few, many = (peak_rss(_LOAD, url, str(n)) for n in (1_000_000, 10_000_000))
        print(f'peak memory: {few / 1e6:.0f} MB for 1 M rows, {many / 1e6:.0f} MB for 10 M rows')
        report.at_most('peak memory of load, 10 M rows / 1 M rows', many / few, 1.3)
        small_undo, _, _ = reorgs(folders.new(), 1_000_000)
        large_undo, touched, wanted = reorgs(folders.new(), large)
        print(
            f'undo of {_DEPTH} blocks: {small_undo:.3f} s at 1 M rows, {large_undo:.3f} s at {large / 1e6:.0f} M rows'
        )
        # It opens a log of more commits, too.
        report.at_most(f'undo at {large // 1_000_000} M rows / at 1 M rows', large_undo / small_undo, 2.0)
        report.at_most('files written or dropped in an undo', touched, wanted)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5, 20_000_000][len(given) :])))
