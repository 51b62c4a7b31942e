"""What loading into ClickHouse costs beside the driver's own `insert_arrow`, and what exactly-once costs on top.

    python benchmarks/bench_clickhouse.py [rows] [repetitions]

Both against the engine in this process and against the same engine behind HTTP in a process of its own. Bare path: one
`insert_arrow` of all rows into a table like the loader's own, for streams with the same two stamp columns. Waiting for
the disk, which such a table does, is reported apart. Undo: the last rows taken back from a small table and a large one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from _harness import REPOSITORY, Report, interleaved, speed_ratio
from _server import make_batches
from _streams import one_microbatch, seconds_to_undo

sys.path.insert(0, str(REPOSITORY))

from tests.support.chdb_http import chdb_front

from amp.loaders.clickhouse.session import quote
from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader
from amp.loaders.stamps import stamp


def prepared(batches: list[pa.RecordBatch], rows: int) -> list[pa.RecordBatch]:
    """The batches of a server, as many as make `rows`."""
    count = sum(batch.num_rows for batch in batches)
    return (batches * (rows // count + 1))[: rows // batches[0].num_rows]


class Runs:
    """Each run has a table of its own; the one before is dropped first, outside of nobody's time."""

    def __init__(self, config: Mapping[str, Any], first: int = 0) -> None:
        self.loader = ClickHouseLoader(config)
        self.loader.connect()
        self._count = first

    def table(self) -> str:
        for name in (f't{self._count}_committed', f't{self._count}'):
            self.loader.session.do(f'DROP TABLE IF EXISTS {quote(name)} SYNC')
        self._count += 1
        return f't{self._count}'

    def insert(self, batches: list[pa.RecordBatch]) -> None:
        name, table = self.table(), pa.Table.from_batches(batches)
        self.loader.prepare_table(table.schema, name, create_table=True)
        self.loader.session._client.insert_arrow(name, table)

    def load(self, batches: list[pa.RecordBatch]) -> None:
        result = self.loader.load_reader(pa.RecordBatchReader.from_batches(batches[0].schema, batches), self.table())
        assert result.success, result.error

    def stream(self, batches: list[pa.RecordBatch]) -> None:
        assert all(r.success for r in self.loader.load_stream_continuous(one_microbatch(batches), self.table()))


def compare(report: Report, where: str, config: Mapping[str, Any], rows: int, repetitions: int) -> None:
    batches = prepared(make_batches(), rows)
    stamped = [stamp(batch, 1 << 51, '0123456789abcdef') for batch in batches]
    runs, hasty = Runs(config), Runs({**config, 'durable': False}, first=1000)
    timings = interleaved(
        {
            'insert_arrow': lambda: runs.insert(batches),
            'load': lambda: runs.load(batches),
            'insert_arrow, stamped': lambda: runs.insert(stamped),
            'stream, one unit': lambda: runs.stream(batches),
            'load, not waiting for disk': lambda: hasty.load(batches),
        },
        repetitions,
    )
    print(f'-- {where}')
    report.rates(timings, rows, f', {where}')
    report.at_least(f'load / insert_arrow, {where}', speed_ratio(timings, 'load', 'insert_arrow'), 0.9)
    report.at_least(
        f'stream / stamped insert_arrow, {where}',
        speed_ratio(timings, 'stream, one unit', 'insert_arrow, stamped'),
        0.9,
    )
    waiting = speed_ratio(timings, 'load', 'load, not waiting for disk')
    print(f'waiting for the disk: {waiting:.3f} of the speed without')
    runs.loader.close()
    hasty.loader.close()


def main(rows: int, repetitions: int, large: int) -> int:
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        with chdb_front(f'{folder}/served') as config:
            compare(report, 'HTTP', config, rows, repetitions)
            runs = Runs(config)
            small_undo, large_undo = (seconds_to_undo(runs.loader, runs.table(), n) for n in (1_000_000, large))
            print(f'undo of 100 k rows: {small_undo:.3f} s at 1 M rows, {large_undo:.3f} s at {large / 1e6:.0f} M rows')
            report.at_most(f'undo at {large // 1_000_000} M rows / at 1 M rows', large_undo / small_undo, 2.0)
            runs.loader.close()
        compare(report, 'in this process', {'interface': 'chdb', 'path': f'{folder}/own'}, rows, repetitions)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5, 10_000_000][len(given) :])))
