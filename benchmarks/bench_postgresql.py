"""What loading into PostgreSQL costs beside pgpq and COPY themselves, and what exactly-once costs on top.

    python benchmarks/bench_postgresql.py [rows] [repetitions] [rows of the large undo]

Bare path: the same batches, cast, encoded by pgpq and sent by one COPY BINARY. For streams the bare path writes the
same two stamp columns into a table with the same index; stamps and index are reported apart. From the server: against
the slower of its two ends, a bare Flight drain and the bare COPY of the stamped rows. Undo: rows of three columns, taken back from a small
table and a large one. The server is the one that the tests would start, or POSTGRES_HOST.
"""

from __future__ import annotations

import sys
from typing import Any

import pgpq
import psycopg
import pyarrow as pa
import pyarrow.flight as fl
from _harness import REPOSITORY, Report, interleaved, speed_ratio
from _server import bare_server
from _streams import bare_reader, batches_of, one_microbatch, seconds_to_undo

import amp
from amp.loaders.implementations.postgresql_loader import PostgreSQLLoader
from amp.loaders.stamps import stamp, stamped_schema

sys.path.insert(0, str(REPOSITORY))
from tests.support.postgres import postgresql_config

_TYPES = {'uint64': 'numeric(20,0)', 'uint32': 'bigint', 'int64': 'bigint', 'string': 'text'}
_BRIN = 'CREATE INDEX ON t USING brin (_amp_tx_id) WITH (autosummarize = on)'


def column_type(kind: pa.DataType) -> str:
    return 'timestamp with time zone' if pa.types.is_timestamp(kind) else _TYPES.get(str(kind), 'bytea')


class Bare:
    """What one would write by hand for exactly these rows."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.connection = psycopg.connect(
            host=config['host'], port=config['port'], dbname=config['database'], user=config['user'],
            password=config.get('password'), autocommit=True,
        )  # fmt: skip

    def fresh(self) -> None:
        self.connection.execute('DROP TABLE IF EXISTS t, _amp_streams')

    def copy(self, batches: list[pa.RecordBatch], *, stamps: bool = False, index: bool = False) -> None:
        self.fresh()
        schema = stamped_schema(batches[0].schema) if stamps else batches[0].schema
        columns = ', '.join(f'"{f.name}" {column_type(f.type)}' for f in schema)
        self.connection.execute(f'CREATE TABLE t ({columns})'.encode())
        if index:
            self.connection.execute(_BRIN)
        wire = pa.schema(
            [pa.field(f.name, pa.timestamp('us', 'UTC') if pa.types.is_timestamp(f.type) else f.type) for f in schema]
        )
        encoder = pgpq.ArrowToPostgresBinaryEncoder(wire)
        with self.connection.transaction(), self.connection.cursor().copy('COPY t FROM STDIN (FORMAT binary)') as copy:
            copy.write(encoder.write_header())
            for batch in batches:
                rows = stamp(batch, 1 << 51, '0123456789abcdef') if stamps else batch
                copy.write(encoder.write_batch(rows.cast(wire)))
            copy.write(encoder.finish())


def drain(client: fl.FlightClient, rows: int) -> None:
    for _ in bare_reader(client, rows):
        pass


def main(rows: int, repetitions: int, large: int) -> int:
    report = Report()
    batches = batches_of(rows)
    with postgresql_config() as config, bare_server() as url, amp.Client(url) as client:
        bare, flight = Bare(config), fl.FlightClient(url)
        client.configure_connection('pg', 'postgresql', config)
        table = pa.Table.from_batches(batches)

        def load() -> None:
            bare.fresh()
            with PostgreSQLLoader(config) as loader:
                assert loader.load_table(table, 't').success

        def stream() -> None:
            bare.fresh()
            with PostgreSQLLoader(config) as loader:
                assert all(result.success for result in loader.load_stream_continuous(one_microbatch(batches), 't'))

        def from_server() -> None:
            bare.fresh()
            got = 0
            for result in client.sql(f'rows={rows}').load('pg', 't', stream=True):
                got += result.rows_loaded
                if got >= rows:
                    break

        timings = interleaved(
            {
                'bare COPY': lambda: bare.copy(batches),
                'load': load,
                'bare COPY, stamped': lambda: bare.copy(batches, stamps=True),
                'bare COPY, stamped + index': lambda: bare.copy(batches, stamps=True, index=True),
                'stream, one unit': stream,
                'bare Flight drain': lambda: drain(flight, rows),
                'stream from the server': from_server,
            },
            repetitions,
        )
        report.rates(timings, rows)
        report.at_least('load / bare pgpq + COPY', speed_ratio(timings, 'load', 'bare COPY'), 0.9)
        report.at_least(
            'stream / bare stamped COPY', speed_ratio(timings, 'stream, one unit', 'bare COPY, stamped + index'), 0.9
        )
        slower = max('bare COPY, stamped + index', 'bare Flight drain', key=lambda end: timings[end].median)
        print(f'the slower end of a stream from the server: {slower}')
        report.at_least(
            'stream from the server / its slower end', speed_ratio(timings, 'stream from the server', slower), 0.85
        )
        print(f'the stamps alone: {speed_ratio(timings, "bare COPY, stamped", "bare COPY"):.3f} of unstamped')
        print(f'the index alone: {speed_ratio(timings, "bare COPY, stamped + index", "bare COPY, stamped"):.3f}')
        undos = {}
        for size in (1_000_000, large):
            bare.fresh()
            with PostgreSQLLoader(config) as loader:
                # A vacuum of the server's own, which such a load brings about, keeps the index from learning while it runs.
                undos[size] = seconds_to_undo(
                    loader, 't', size, columns=3, settle=lambda: bare.connection.execute('VACUUM t')
                )
        print(f'undo of 100 k rows: {undos[1_000_000]:.3f} s at 1 M rows, {undos[large]:.3f} s at {large / 1e6:.0f} M')
        report.at_most(f'undo at {large // 1_000_000} M rows / at 1 M rows', undos[large] / undos[1_000_000], 1.5)
        bare.fresh()
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5, 50_000_000][len(given) :])))
