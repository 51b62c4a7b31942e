"""The local Amp over Parquet: a table beside DataFusion reading the same files, and how soon a stream's rows come.

    python -m benchmarks.bench_local_amp [blocks] [logs a block] [repetitions]

What a table costs is measured twice: where no wire is, the local Amp's engine beside DataFusion; and over the wire, `amp
serve --parquet` beside a Flight server that does no more than run DataFusion, each in a process of its own. What the wire
itself costs is printed too, as the local Amp over the wire against DataFusion in process.

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

import pyarrow.flight as fl
import pyarrow.parquet as pq
from benchmarks._harness import Report, Timing, interleaved, speed_ratio
from datafusion import SessionConfig, SessionContext

from amp.devserver import LocalAmp
from amp.devserver.engine import Engine
from amp.devserver.parquet import load_directory
from amp.devserver.sql import Statement
from amp.flight.protocol import encode_statement_query

BLOCKS, LOGS, REPETITIONS = 10_000, 100, 9
WITHIN_SECONDS = 0.05
ROW_GROUP = 1 << 15
METADATA = '{"ranges": [{"network": "simnet"}]}'

TABLES = {
    'a table': 'SELECT * FROM {}',
    'some columns': 'SELECT block_num, address, data FROM {} WHERE log_index < 20',
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


BARE = """
import sys
import pyarrow.flight as fl
from benchmarks.bench_local_amp import bare_context

class Bare(fl.FlightServerBase):
    def do_get(self, context, ticket):
        frame = bare_context(sys.argv[1]).sql(ticket.ticket.decode())
        return fl.GeneratorStream(frame.schema(), (batch.to_pyarrow() for batch in frame.execute_stream()))

server = Bare('grpc://127.0.0.1:0')
print(f'grpc://127.0.0.1:{server.port}', flush=True)
server.serve()
"""


def bare_context(folder: str) -> SessionContext:
    config = SessionConfig().with_target_partitions(1)
    context = SessionContext(config.set('datafusion.execution.parquet.schema_force_view_types', 'false'))
    context.register_parquet('logs', f'{folder}/eth_rpc/logs.parquet')
    return context


def ticket(client: fl.FlightClient, sql: str, *, stream: bool) -> fl.Ticket:
    descriptor = fl.FlightDescriptor.for_command(encode_statement_query(sql))
    options = fl.FlightCallOptions(headers=[(b'amp-stream', b'true' if stream else b'false')])
    return client.get_flight_info(descriptor, options).endpoints[0].ticket


def over_the_wire(client: fl.FlightClient, sql: str) -> int:
    return sum(chunk.data.num_rows for chunk in client.do_get(ticket(client, sql, stream=False)))


def from_bare(client: fl.FlightClient, sql: str) -> int:
    return sum(chunk.data.num_rows for chunk in client.do_get(fl.Ticket(sql.encode())))


def in_process(folder: Path, sql: str) -> int:
    return sum(batch.to_pyarrow().num_rows for batch in bare_context(str(folder)).sql(sql).execute_stream())


def by_the_engine(engine: Engine, sql: str) -> int:
    query = engine.prepare(Statement(sql))
    snapshots = {name: chain.snapshot() for name, chain in engine.datasets.items()}
    return sum(batch.num_rows for batch in engine.run(query, lambda name: snapshots[name[0]].scan(name[1])))


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
        with process('-m', 'amp', 'serve', '--parquet', name) as client, process('-c', BARE, name) as bare:
            engine = Engine(load_directory(folder))
            for what, text in TABLES.items():
                ours, theirs = text.format('eth_rpc.logs'), text.format('logs')
                timings = interleaved(
                    {
                        'local Amp, wire': lambda sql=ours: over_the_wire(client, sql),
                        'DataFusion, wire': lambda sql=theirs: from_bare(bare, sql),
                        'local Amp, engine': lambda sql=ours: by_the_engine(engine, sql),
                        'DataFusion': lambda sql=theirs: in_process(folder, sql),
                    },
                    repetitions,
                )
                for timing in timings.values():
                    print(f'{timing}   {blocks * logs / timing.median / 1e6:6.2f} M rows/s', flush=True)
                in_one = speed_ratio(timings, 'local Amp, engine', 'DataFusion')
                report.at_least(f'{what}: engine / DataFusion', in_one, 0.7)
                wire = speed_ratio(timings, 'local Amp, wire', 'DataFusion, wire')
                report.at_least(f'{what}: the local Amp / bare Flight', wire, 0.7)
                print(
                    f'     {what}: over the wire / in process  {speed_ratio(timings, "local Amp, wire", "DataFusion"):.2f}'
                )
            for kind, sql in STREAMS.items():
                seconds = tuple(first_rows(client, sql) for _ in range(repetitions + 1))[1:]
                print(Timing(f'first rows: {kind}', seconds), flush=True)
                # The best, not the median: the machine may have more to do than this.
                report.at_most(f'ms to the first rows: {kind}', min(seconds) * 1000, WITHIN_SECONDS * 1000)
    return report.finish()


if __name__ == '__main__':
    raise SystemExit(main(*map(int, sys.argv[1:])))
