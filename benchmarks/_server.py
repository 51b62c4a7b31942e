"""A bare pyarrow Flight server in a process of its own: rows like the logs of a chain, with Amp's metadata.

It knows one command: the query `rows=N` (any SQL around it) answers with N rows in batches like those of a real
server (2 MiB), made once and repeated, so that the server is never what is measured. `blocks=N` in it says how many
blocks the answer claims to cover, and AMP_LATENCY how many seconds pass before each result.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

BATCH_ROWS = 8192
_DISTINCT_BATCHES = 64

SCHEMA = pa.schema(
    [
        pa.field('block_num', pa.uint64(), nullable=False),
        pa.field('block_hash', pa.binary(32), nullable=False),
        pa.field('timestamp', pa.timestamp('ns', tz='UTC'), nullable=False),
        pa.field('tx_hash', pa.binary(32), nullable=False),
        pa.field('tx_index', pa.uint32(), nullable=False),
        pa.field('log_index', pa.uint32(), nullable=False),
        pa.field('address', pa.binary(20), nullable=False),
        *(pa.field(f'topic{n}', pa.binary(32)) for n in range(4)),
        pa.field('data', pa.binary(), nullable=False),
    ]
)


def metadata(last_block: int, *, complete: bool) -> bytes:
    """Metadata of a result that covers the blocks up to `last_block`."""
    numbers = {'start': 1, 'end': last_block}
    block_range = {'network': 'benchnet', 'numbers': numbers, 'hash': '0x' + 'ab' * 32, 'prev_hash': '0x' + 'cd' * 32}
    return json.dumps({'ranges': [block_range], 'ranges_complete': complete}).encode()


def make_batches(count: int = _DISTINCT_BATCHES, rows: int = BATCH_ROWS) -> list[pa.RecordBatch]:
    """The same batches every time; from the generator that AMP_GEN_LOGS names, where it is set."""
    generator = os.environ.get('AMP_GEN_LOGS')
    if generator:
        sys.path.insert(0, str(Path(generator).parent))
        from gen_logs import make_batches as generated

        return list(generated(rows=count * rows, batch=rows))
    random = np.random.default_rng(7)
    return [_batch(random, first * rows, rows) for first in range(count)]


def _batch(random: np.random.Generator, first: int, rows: int) -> pa.RecordBatch:
    index = np.arange(first, first + rows)
    blocks = index // 150

    def fixed(width: int, nulls: float = 0.0) -> pa.Array:
        values = pa.py_buffer(random.integers(0, 256, rows * width, dtype=np.uint8).tobytes())
        present = random.random(rows) >= nulls
        validity = pa.py_buffer(np.packbits(present, bitorder='little').tobytes()) if nulls else None
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [validity, values])

    sizes = random.choice(np.array([0, 32, 160]), rows, p=[0.06, 0.88, 0.06])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    payload = random.integers(0, 256, int(offsets[-1]), dtype=np.uint8)
    data = pa.BinaryArray.from_buffers(
        pa.binary(), rows, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(payload.tobytes())]
    )
    seconds = (1_693_000_000 + blocks * 12).astype('int64') * 1_000_000_000
    columns = [
        pa.array((18_000_000 + blocks).astype(np.uint64)),
        fixed(32),
        pa.array(seconds).cast(pa.timestamp('ns', tz='UTC')),
        fixed(32),
        pa.array((index % 50).astype(np.uint32)),
        pa.array((index % 150).astype(np.uint32)),
        fixed(20),
        fixed(32),
        fixed(32, 0.02),
        fixed(32, 0.02),
        fixed(32, 0.94),
        data,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class BareServer(fl.FlightServerBase):
    """Answers `rows=N`; the ticket is the number."""

    def __init__(self) -> None:
        super().__init__('grpc://127.0.0.1:0')
        self._batches = make_batches()
        self._latency = float(os.environ.get('AMP_LATENCY', '0'))

    def get_flight_info(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.FlightInfo:
        rows, blocks = (re.search(name + rb'=(\d+)', descriptor.command) for name in (b'rows', b'blocks'))
        asked = rows.group(1) if rows and b'LIMIT 0' not in descriptor.command else b'0'
        ticket = asked + b' ' + (blocks.group(1) if blocks else asked)
        return fl.FlightInfo(self._batches[0].schema, descriptor, [fl.FlightEndpoint(ticket, [])], -1, -1)

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        rows, blocks = map(int, ticket.ticket.split())
        time.sleep(self._latency)
        return fl.GeneratorStream(self._batches[0].schema, self._messages(rows, max(blocks, 1)))

    def _messages(self, rows: int, blocks: int) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        open_metadata = metadata(blocks, complete=False)
        sent = 0
        while sent < rows:
            batch = self._batches[sent // BATCH_ROWS % len(self._batches)]
            batch = batch.slice(0, min(batch.num_rows, rows - sent))
            yield batch, open_metadata
            sent += batch.num_rows
        yield self._batches[0].slice(0, 0), metadata(blocks, complete=True)


@contextmanager
def bare_server(latency: float = 0) -> Iterator[str]:
    """The URL of a server in a new process, which ends with the context."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, 'AMP_LATENCY': str(latency)},
    )
    assert process.stdout is not None
    try:
        yield f'grpc://127.0.0.1:{int(process.stdout.readline())}'
    finally:
        process.kill()
        process.communicate()


if __name__ == '__main__':
    server = BareServer()
    print(server.port, flush=True)
    server.serve()
