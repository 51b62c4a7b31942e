"""What the client costs beside a bare Flight `do_get`, and what `import amp` costs beside `import pyarrow.flight`.

    python benchmarks/bench_client.py [rows] [repetitions]

Everything is a ratio measured in this one run, against a server in a process of its own.
"""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.flight as fl
from _harness import Report, interleaved, peak_rss, seconds_in_new_python, speed_ratio
from _server import bare_server

import amp
from amp.flight.protocol import encode_statement_query

_STREAM = """
import sys, amp
client = amp.Client(sys.argv[1])
assert sum(batch.num_rows for batch in client.sql('rows=' + sys.argv[2]).stream()) == int(sys.argv[2])
"""


def bare_reader(client: fl.FlightClient, rows: int) -> fl.FlightStreamReader:
    descriptor = fl.FlightDescriptor.for_command(encode_statement_query(f'rows={rows}'))
    return client.do_get(client.get_flight_info(descriptor).endpoints[0].ticket)


def bare_read_all(client: fl.FlightClient, rows: int) -> pa.Table:
    return bare_reader(client, rows).read_all()


def bare_drain(client: fl.FlightClient, rows: int) -> int:
    return sum(chunk.data.num_rows for chunk in bare_reader(client, rows))


def main(rows: int, repetitions: int) -> int:
    report = Report()
    with bare_server() as url, amp.Client(url) as client:
        bare = fl.FlightClient(url)
        query = client.sql(f'rows={rows}')
        assert query.to_arrow().equals(bare_read_all(bare, rows))
        assert sum(batch.num_rows for batch in query.stream()) == rows
        timings = interleaved(
            {
                'bare do_get, read_all': lambda: bare_read_all(bare, rows),
                'bare do_get, drained': lambda: bare_drain(bare, rows),
                'to_arrow': query.to_arrow,
                'stream': lambda: sum(batch.num_rows for batch in query.stream()),
            },
            repetitions,
        )
        report.rates(timings, rows)
        report.at_least('to_arrow / bare do_get', speed_ratio(timings, 'to_arrow', 'bare do_get, read_all'), 0.95)
        report.at_least('stream / bare do_get', speed_ratio(timings, 'stream', 'bare do_get, drained'), 0.95)
        small, large = (peak_rss(_STREAM, url, str(n)) for n in (1_000_000, 10_000_000))
        report.at_most('peak memory of stream, 10 M rows / 1 M rows', large / small, 1.10)
    imports = interleaved(
        {
            name: lambda name=name: seconds_in_new_python(name)
            for name in ('import pyarrow.flight', 'import amp', 'import amp; amp.Client')
        },
        repetitions,
    )
    for timing in imports.values():
        print(timing)
    ratio = 1 / speed_ratio(imports, 'import amp', 'import pyarrow.flight')
    report.at_most('import amp / import pyarrow.flight', ratio, 1.15)
    return report.finish()


if __name__ == '__main__':
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(arguments or [2_000_000]), *([] if len(arguments) > 1 else [15])))
