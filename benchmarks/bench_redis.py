"""What loading into Redis costs beside bare RESP over a socket, and beside redis-py.

    python benchmarks/bench_redis.py [rows] [repetitions]

Bare path: the commands of each batch (one HSET a row) encoded at once and written to a socket, answers read by a
thread beside; the same fields as ours, without transactions, lists of keys, or a position. redis-py: a pipeline of
10,000 HSETs, with hiredis where it is installed. A server of its own, without persistence; `AMP_REDIS` names another
binary.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import redis
from _harness import REPOSITORY, Report, interleaved, speed_ratio
from _server import make_batches

from amp.loaders.implementations.redis_loader import RedisLoader
from amp.loaders.redis.connect import Answers
from amp.loaders.redis.resp import column_bytes, joined, row_commands
from amp.loaders.redis.rows import fields_of
from amp.loaders.stamps import BATCH_ID, TX_ID
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch

sys.path.insert(0, str(Path(REPOSITORY)))
from tests.support.redis_server import start_redis

_BATCH = '0123456789abcdef'
_ID = str(1 << 51).encode()


def connect(config: dict) -> redis.Redis:
    return redis.Redis(host=config['host'], port=config['port'], protocol=2, socket_timeout=120)


def empty(config: dict) -> None:
    """Free everything before going on: by itself the server would do so beside the next candidate."""
    connect(config).execute_command('FLUSHALL', 'SYNC')


def encoded(batch: pa.RecordBatch, first: int, stamps: bool) -> bytes:
    rows = batch.num_rows
    numbers = pa.array(np.arange(first, first + rows)).cast(pa.string()).cast(pa.binary())
    fields = fields_of(batch)
    if stamps:
        fields.append((BATCH_ID.encode(), pa.repeat(pa.scalar(_BATCH.encode(), pa.binary()), rows)))
    fields.append((TX_ID.encode(), pa.repeat(pa.scalar(_ID, pa.binary()), rows)))
    return column_bytes(row_commands('HSET', joined(b't:' + _ID + b':', numbers), (), fields))


def bare(config: dict, batches: list[pa.RecordBatch], stamps: bool) -> None:
    connection = connect(config).connection_pool.get_connection()
    answers, first = Answers(connection._sock), 0
    rows = sum(batch.num_rows for batch in batches)
    thread = threading.Thread(target=answers.wait, args=(rows,))
    thread.start()
    for batch in batches:
        connection._sock.sendall(encoded(batch, first, stamps))
        first += batch.num_rows
    thread.join()
    assert answers.first_error is None


def loaded(config: dict, batches: list[pa.RecordBatch]) -> None:
    with RedisLoader(config) as loader:
        reader = pa.RecordBatchReader.from_batches(batches[0].schema, iter(batches))
        result = loader.load_reader(reader, 't')
        assert result.success, result.error


def streamed(config: dict, batches: list[pa.RecordBatch]) -> None:

    def responses() -> Iterator[ResponseBatch]:
        block_range = BlockRange('benchnet', 0, 999, '0x' + 'ab' * 32)
        for i, batch in enumerate(batches):
            yield ResponseBatch.data_batch(batch, BatchMetadata([block_range], i == len(batches) - 1))

    with RedisLoader(config) as loader:
        assert all(result.success for result in loader.load_stream_continuous(responses(), 't'))


def by_redis_py(config: dict, batches: list[pa.RecordBatch]) -> None:
    client, first = connect(config), 0
    for batch in batches:
        pipe = client.pipeline(transaction=False)
        for i, row in enumerate(batch.to_pylist()):
            fields = {k: v if isinstance(v, bytes | int) else str(v) for k, v in row.items() if v is not None}
            pipe.hset(f't:{first + i}', mapping=fields)
        pipe.execute()
        first += batch.num_rows


def main(rows: int, repetitions: int) -> int:
    report = Report()
    batches = make_batches(count=max(1, rows // 8192))
    rows = sum(batch.num_rows for batch in batches)
    with start_redis() as config:
        timings = interleaved(
            {
                'bare RESP': lambda: bare(config, batches, stamps=False),
                'load': lambda: loaded(config, batches),
                'bare RESP, stamped': lambda: bare(config, batches, stamps=True),
                'stream, one unit': lambda: streamed(config, batches),
                'redis-py pipeline': lambda: by_redis_py(config, batches),
            },
            repetitions,
            between=lambda: empty(config),
        )
    report.rates(timings, rows)
    report.at_least('load / bare RESP', speed_ratio(timings, 'load', 'bare RESP'), 0.9)
    report.at_least('stream / bare stamped RESP', speed_ratio(timings, 'stream, one unit', 'bare RESP, stamped'), 0.9)
    report.at_least('load / redis-py pipeline', speed_ratio(timings, 'load', 'redis-py pipeline'), 1.5)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [300_000, 5][len(given) :])))
