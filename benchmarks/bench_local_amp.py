"""The local Amp over Parquet: a table beside DataFusion reading the same files, and how soon a stream's rows come.

    python -m benchmarks.bench_local_amp [blocks] [logs a block] [repetitions]

A table is asked for by a bare Flight client of `amp serve --parquet`, GetFlightInfo included, beside DataFusion in this
process, which reads the same files with both processors and has no wire at all. A third time is that of the wire alone: a
Flight server, in C++ but for its start, that sends the same batches from memory to the same client. Where that one fits
into what is left of DataFusion's time at a ratio of 0.7, the ratio is judged; where the wire alone takes longer, no server
could have it, and the local Amp is judged against DataFusion and then the wire.

A stream is asked for from its start, GetFlightInfo included, up to the first rows of its first microbatch of 1,000
blocks.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
from benchmarks._harness import Report, Timing, interleaved, speed_ratio
from datafusion import SessionConfig, SessionContext

from amp.devserver import LocalAmp
from amp.devserver.scans import for_files
from amp.flight.protocol import encode_statement_query

BLOCKS, LOGS, REPETITIONS = 10_000, 100, 9
WITHIN_SECONDS, RATIO = 0.05, 0.7
ROW_GROUP = 1 << 15
METADATA = '{"ranges": [{"network": "simnet"}]}'

TABLES = {
    'a table': 'SELECT * FROM {}',
    'some rows': 'SELECT block_num, address, data FROM {} WHERE log_index < 20',
    'few rows': 'SELECT * FROM {} WHERE block_num % 100 = 7',
    'a group': 'SELECT address, topic0, count(*) AS logs, max(block_num) AS latest FROM {} GROUP BY address, topic0',
    'distinct': 'SELECT count(DISTINCT tx_hash) AS transactions FROM {}',
}
STREAMS = {
    'projection': 'SELECT block_num, tx_hash, data FROM eth_rpc.logs WHERE topic1 IS NOT NULL',
    'UNION ALL': 'SELECT block_hash FROM eth_rpc.logs UNION ALL SELECT hash FROM eth_rpc.blocks',
    'GROUP BY block_num()': 'SELECT block_num(), count(*) AS logs FROM eth_rpc.logs GROUP BY block_num()',
    'join': 'SELECT b.hash, l.data FROM eth_rpc.blocks b JOIN eth_rpc.logs l ON b.hash = l.block_hash',
    'semi join': 'SELECT hash FROM eth_rpc.blocks WHERE hash IN (SELECT block_hash FROM eth_rpc.logs)',
}


def write_tables(folder: Path, blocks: int, logs: int) -> None:
    """The tables of a made-up chain as Amp's Parquet files."""
    amp = LocalAmp.simulate(seed=5, blocks=blocks, logs_per_block=logs)
    (folder / 'eth_rpc').mkdir()
    for table in ('blocks', 'transactions', 'logs'):
        rows = amp.canonical(table).replace_schema_metadata({'amp_metadata': METADATA})
        pq.write_table(rows, folder / 'eth_rpc' / f'{table}.parquet', compression='zstd', row_group_size=ROW_GROUP)


@contextmanager
def process(*command: str) -> Iterator[fl.FlightClient]:
    """A client of a server that prints its address."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            with fl.connect(running.stdout.readline().strip()) as client:
                yield client
        finally:
            running.terminate()


WIRE = """
import sys
import pyarrow as pa
import pyarrow.flight as fl
from benchmarks.bench_local_amp import in_process

class Wire(fl.FlightServerBase):
    held = {}

    def do_get(self, context, ticket):
        sql = ticket.ticket.decode()
        if sql not in self.held:
            self.held[sql] = list(in_process(sys.argv[1], sql))
        batches = self.held[sql]
        return fl.RecordBatchStream(pa.RecordBatchReader.from_batches(batches[0].schema, batches))

server = Wire('grpc://127.0.0.1:0')
print(f'grpc://127.0.0.1:{server.port}', flush=True)
server.serve()
"""


def in_process(folder: str | Path, sql: str) -> Iterator[pa.RecordBatch]:
    """DataFusion by itself, with as many partitions as there are processors."""
    context = SessionContext(for_files(SessionConfig()))
    context.register_parquet('logs', f'{folder}/eth_rpc/logs.parquet')
    return (batch.to_pyarrow() for batch in context.sql(sql).execute_stream())


def ticket(client: fl.FlightClient, sql: str, *, stream: bool) -> fl.Ticket:
    descriptor = fl.FlightDescriptor.for_command(encode_statement_query(sql))
    options = fl.FlightCallOptions(headers=[(b'amp-stream', b'true' if stream else b'false')])
    return client.get_flight_info(descriptor, options).endpoints[0].ticket


def over_the_wire(client: fl.FlightClient, sql: str) -> int:
    return sum(chunk.data.num_rows for chunk in client.do_get(ticket(client, sql, stream=False)))


def the_wire_alone(client: fl.FlightClient, sql: str) -> int:
    return sum(chunk.data.num_rows for chunk in client.do_get(fl.Ticket(sql.encode())))


def judge(report: Report, what: str, timings: dict[str, Timing]) -> None:
    """The ratio that was asked for or, where the wire alone takes too long for it, the one that is left."""
    alone, wire = timings['DataFusion'], timings['the wire']
    timings['both'] = Timing('both', tuple(map(sum, zip(alone.seconds, wire.seconds, strict=True))))
    ratio = speed_ratio(timings, 'local Amp', 'DataFusion')
    best = speed_ratio(timings, 'the wire', 'DataFusion')
    if best * (1 - RATIO) >= RATIO:
        report.at_least(f'{what}: the local Amp / DataFusion', ratio, RATIO)
        return
    print(f'     {what}: the local Amp / DataFusion  {ratio:.2f}; the wire alone / DataFusion  {best:.2f}')
    report.at_least(
        f'{what}: the local Amp / DataFusion, then the wire', speed_ratio(timings, 'local Amp', 'both'), RATIO
    )


def first_rows(client: fl.FlightClient, sql: str) -> float:
    """Seconds until the first rows of a stream."""
    started = time.perf_counter()
    reader = client.do_get(ticket(client, sql, stream=True))
    while reader.read_chunk().data.num_rows == 0:
        pass
    seconds = time.perf_counter() - started
    reader.cancel()
    return seconds


def main(blocks: int = BLOCKS, logs: int = LOGS, repetitions: int = REPETITIONS) -> int:
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, blocks, logs)
        with process('-m', 'amp', 'serve', '--parquet', name) as client, process('-c', WIRE, name) as bare:
            for what, text in TABLES.items():
                ours, theirs = text.format('eth_rpc.logs'), text.format('logs')
                timings = interleaved(
                    {
                        'local Amp': lambda sql=ours: over_the_wire(client, sql),
                        'DataFusion': lambda sql=theirs: sum(batch.num_rows for batch in in_process(folder, sql)),
                        'the wire': lambda sql=theirs: the_wire_alone(bare, sql),
                    },
                    repetitions,
                )
                for timing in timings.values():
                    print(f'{timing}   {blocks * logs / timing.median / 1e6:6.2f} M rows/s', flush=True)
                judge(report, what, timings)
            for kind, sql in STREAMS.items():
                seconds = tuple(first_rows(client, sql) for _ in range(repetitions + 1))[1:]
                print(Timing(f'first rows: {kind}', seconds), flush=True)
                # The best, not the median: the machine may have more to do than this.
                report.at_most(f'ms to the first rows: {kind}', min(seconds) * 1000, WITHIN_SECONDS * 1000)
    return report.finish()


if __name__ == '__main__':
    raise SystemExit(main(*map(int, sys.argv[1:])))
