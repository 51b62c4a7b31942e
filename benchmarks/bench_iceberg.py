"""What loading into Iceberg costs beside pyiceberg's own `append`, and what exactly-once costs on top.

    python benchmarks/bench_iceberg.py [rows] [repetitions] [large]

Bare path: the rows as one table in memory, in types that Iceberg takes, and one `append` of it. Undo: the same number
of rows taken back from a small table and from one of `large` rows. Upsert: as many rows replaced by key as were loaded.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
from _harness import Places, Report, interleaved, peak_rss, speed_ratio
from _server import bare_server
from _streams import bare_reader, batches_of, one_microbatch, seconds_to_undo, stamped
from pyiceberg.catalog.sql import SqlCatalog

import amp
from amp.loaders.arrow_types import land, type_table, wire_schema
from amp.loaders.implementations.iceberg_loader import IcebergLoader

_LOAD = """
import sys, tempfile, amp
with tempfile.TemporaryDirectory() as folder:
    result = amp.Client(sys.argv[1]).sql('rows=' + sys.argv[2]).load(f'iceberg:///{folder}', 't')
    assert result.rows_loaded == int(sys.argv[2])
"""


def landed(reader: pa.RecordBatchReader) -> pa.Table:
    landings = type_table('iceberg').landings(reader.schema)
    return pa.Table.from_batches([land(batch, landings) for batch in reader], wire_schema(landings))


def append(folder: str, rows: pa.Table) -> None:
    Path(folder).mkdir(exist_ok=True)
    catalog = SqlCatalog('default', uri=f'sqlite:///{folder}/catalog.db', warehouse=f'file://{folder}')
    catalog.create_namespace('default')
    catalog.create_table('default.t', rows.schema).append(rows)
    catalog.close()


def bare_load(client: fl.FlightClient, rows: int, folder: str) -> None:
    append(folder, landed(bare_reader(client, rows)))


def streamed(folder: str, batches: list[pa.RecordBatch]) -> None:
    with IcebergLoader({'warehouse': folder}) as loader:
        assert all(result.success for result in loader.load_stream_continuous(one_microbatch(batches), 't'))


def seconds_to_upsert(folder: str, rows: int) -> float:
    keys = pa.array(range(rows), pa.int64())
    with IcebergLoader({'warehouse': folder}) as loader:
        assert loader.load_table(pa.table({'k': keys, 'v': keys}), 't').success
        started = time.perf_counter()
        result = loader.load_table(pa.table({'k': keys, 'v': keys}), 't', mode='upsert', key_columns=['k'])
        assert result.success, result.error
        return time.perf_counter() - started


def main(rows: int, repetitions: int, large: int) -> int:
    report = Report()
    batches = batches_of(rows)
    with tempfile.TemporaryDirectory() as folder, bare_server() as url, amp.Client(url) as client:
        folders, bare = Places(folder), fl.FlightClient(url)
        query = client.sql(f'rows={rows}')
        timings = interleaved(
            {
                'bare Flight -> append': lambda: bare_load(bare, rows, folders.new()),
                'load': lambda: query.load(f'iceberg:///{folders.new()}', 't'),
                'bare append, stamped': lambda: append(folders.new(), landed(stamped(batches))),
                'stream, one unit': lambda: streamed(folders.new(), batches),
            },
            repetitions,
        )
        report.rates(timings, rows)
        report.at_least('load / bare Flight -> append', speed_ratio(timings, 'load', 'bare Flight -> append'), 0.9)
        report.at_least(
            'stream / bare stamped append', speed_ratio(timings, 'stream, one unit', 'bare append, stamped'), 0.9
        )
        few, many = (peak_rss(_LOAD, url, str(n)) for n in (1_000_000, 5_000_000))
        print(f'peak memory: {few / 1e6:.0f} MB for 1 M rows, {many / 1e6:.0f} MB for 5 M rows')
        report.at_most('peak memory of load, 5 M rows / 1 M rows', many / few, 1.10)
        with IcebergLoader({'warehouse': folders.new()}) as loader:
            small_undo = seconds_to_undo(loader, 't', 1_000_000)
        with IcebergLoader({'warehouse': folders.new()}) as loader:
            large_undo = seconds_to_undo(loader, 't', large, columns=4)
        print(f'undo of 100 k rows: {small_undo:.3f} s at 1 M rows, {large_undo:.3f} s at {large / 1e6:.0f} M rows')
        report.at_most(f'undo at {large // 1_000_000} M rows / at 1 M rows', large_undo / small_undo, 3.0)
        report.at_most('seconds to replace 1 M rows by key', seconds_to_upsert(folders.new(), 1_000_000), 30)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5, 20_000_000][len(given) :])))
