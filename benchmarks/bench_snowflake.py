"""What the ways into Snowflake cost beside each other, and how fast Parquet for a stage is written.

    python benchmarks/bench_snowflake.py [rows] [repetitions]

Without an account (SNOWFLAKE_ACCOUNT and its like) the ways run against fakesnow on this machine: their ratio then says
what the client does for each of them, and nothing about Snowflake. The pipeline that writes Parquet needs no server: it
is measured against pyarrow's own write of one file with the same settings, and the sizes of its files against what
Snowflake asks for.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from _harness import REPOSITORY, Report, interleaved, speed_ratio
from _server import make_batches

sys.path.insert(0, str(REPOSITORY))

from tests.support.snowflake import is_real, snowflake_config

from amp.loaders.implementations.snowflake_loader import SnowflakeLoader
from amp.loaders.snowflake.files import ParquetFiles
from amp.loaders.snowflake.types import landings, quoted, wire_of

_FILE_BYTES = 128 * 1024**2
_GROUP_ROWS = 250_000
_ROWS_OF_SOME_FILES = 3_000_000


def repeated(rows: int) -> list[pa.RecordBatch]:
    batches = make_batches()
    needed = -(-rows // batches[0].num_rows)
    return list(itertools.islice(itertools.cycle(batches), needed))


def bare_parquet(batches: list[pa.RecordBatch], folder: str) -> None:
    """One file, row groups as large as those of the pipeline, columns in the form that Snowflake takes."""
    landed = landings(batches[0].schema)
    wires = [wire_of(batch, landed) for batch in batches]
    with pq.ParquetWriter(Path(folder) / 'bare.parquet', wires[0].schema, compression='zstd') as writer:
        writer.write_table(pa.Table.from_batches(wires), row_group_size=_GROUP_ROWS)


def pipeline(batches: list[pa.RecordBatch]) -> list[int]:
    """The bytes of each file."""
    landed = landings(batches[0].schema)
    schema = wire_of(batches[0].slice(0, 0), landed).schema
    sizes: list[int] = []
    files = ParquetFiles(schema, lambda path: sizes.append(path.stat().st_size), file_bytes=_FILE_BYTES, uploads=1)
    for batch in batches:
        files.push(wire_of(batch, landed))
    files.finish()
    return sizes


def ways(report: Report, config: dict[str, object], rows: int, repetitions: int) -> dict[str, float]:
    table = pa.Table.from_batches(repeated(rows)).slice(0, rows)
    numbers: Iterator[int] = itertools.count()

    def load(method: str) -> None:
        with SnowflakeLoader({**config, 'loading_method': method}) as loader:
            name = f'bench_{os.getpid()}_{next(numbers)}'
            result = loader.load_table(table, name)
            assert result.success, result.error
            loader.own.run(f'DROP TABLE {quoted(name)}')

    methods = ('stage', 'insert', 'pandas')
    timings = interleaved({method: lambda m=method: load(m) for method in methods}, repetitions)
    report.rates(timings, rows)
    return {method: speed_ratio(timings, 'stage', method) for method in methods[1:]}


def main(rows: int, repetitions: int, rows_of_ways: int) -> int:
    report = Report()
    batches = repeated(rows)
    with tempfile.TemporaryDirectory() as folder:
        timings = interleaved(
            {'pyarrow, one file': lambda: bare_parquet(batches, folder), 'pipeline': lambda: pipeline(batches)},
            repetitions,
        )
    report.rates(timings, rows)
    report.at_least('Parquet pipeline / pyarrow, one file', speed_ratio(timings, 'pipeline', 'pyarrow, one file'), 0.9)
    # The last of a unit's files is what is left.
    *full, last = pipeline(batches * max(1, _ROWS_OF_SOME_FILES // rows))
    print(f'files of {", ".join(f"{size / 1e6:.0f}" for size in (*full, last))} MB')
    report.at_least('smallest full file in MB', min(full) / 1e6, 100)
    report.at_most('largest file in MB', max(full) / 1e6, 250)
    with snowflake_config() as config:
        print(f'against {"an account" if is_real() else "fakesnow: no measure of Snowflake"}')
        ratios = ways(report, config, rows_of_ways, max(2, repetitions // 2))
    for method, ratio in ratios.items():
        report.at_least(f'stage / {method}, as fast or faster', ratio, 1.0)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5, 200_000][len(given) :])))
