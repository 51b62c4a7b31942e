"""The process whose memory is watched: it runs streams, each in a thread, until its stdin ends.

    python -m tests.soak.follower '{"source": ..., "keepalive": ..., "streams": [{...}, ...]}'

A line of JSON a second on stdout: what it holds (memory, files, threads) and what its streams have done. The last line
is written when all streams have ended. A stream that fails for a reason that may pass is begun again, as a supervisor
would; one that fails for good ends everything.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from typing import Any, ClassVar

import psutil
import pyarrow as pa

from amp import events
from amp.client import Client
from amp.errors import AmpError
from amp.streaming.resilience import RetryConfig

# What drivers have to say of a broken connection is no news here; the traceback of a thread that died is.
for _driver in ('clickhouse_connect', 'psycopg', 'snowflake', 'pyiceberg'):
    logging.getLogger(_driver).setLevel(logging.CRITICAL)

_RETRY = RetryConfig(max_retries=None, initial_backoff_ms=50, max_backoff_ms=1_000)


class _MallInfo(ctypes.Structure):
    """What glibc says of its heap (mallinfo2), in its order."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost',
        )
    ]  # fmt: skip


def _malloc_bytes() -> int | None:
    """Bytes that are in use in the heap of the C library; None where it does not say."""
    if _mallinfo is None:
        return None
    found = _mallinfo()
    return int(found.uordblks + found.hblkhd)


_mallinfo = getattr(ctypes.CDLL(None), 'mallinfo2', None)
if _mallinfo is not None:
    _mallinfo.restype = _MallInfo


class Follower:
    """Streams, and what is known of them."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._stop = threading.Event()
        self._process = psutil.Process()
        self._started = time.monotonic()
        self._tally: dict[str, Counter[str]] = {s['name']: Counter() for s in job['streams']}
        self._positions: dict[str, Any] = {}
        self._failed: list[str] = []
        events.listen(self._hear)

    def run(self) -> None:
        """Until stdin ends."""
        threads = [threading.Thread(target=self._stream, args=(s,), name=s['name']) for s in self._job['streams']]
        for thread in threads:
            thread.start()
        threading.Thread(target=self._wait_for_the_end, daemon=True).start()
        while not self._stop.wait(1.0):
            self._say()
        for thread in threads:
            thread.join(60)
        deadline = time.monotonic() + 30
        while any(t.name.startswith('amp') for t in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.1)
        gc.collect()
        self._say(ended=not any(thread.is_alive() for thread in threads))

    def _wait_for_the_end(self) -> None:
        sys.stdin.read()
        self._stop.set()

    def _stream(self, stream: dict[str, Any]) -> None:
        name, tally = stream['name'], self._tally[stream['name']]
        while not self._stop.is_set():
            try:
                with Client(self._job['source'], keepalive=self._job['keepalive']) as client:
                    client.configure_connection('there', stream['loader'], stream['config'])
                    options = {'name': name, 'retry': _RETRY, 'stop': self._stop, **stream.get('options', {})}
                    query = client.sql(stream['sql'])
                    with closing(query.load('there', stream['table'], stream=True, **options)) as results:
                        for result in results:
                            self._positions[name] = result.metadata['position']
            except AmpError as error:
                tally['restarts'] += 1
                if not error.retryable:
                    self._failed.append(f'{name}: {type(error).__name__}: {error}')
                    self._stop.set()
                    return
                self._stop.wait(0.2)

    def _hear(self, event: object) -> None:
        match event:
            case events.Committed(rows=rows, stream=str(name)):
                self._tally[name].update(rows=rows, commits=1)
            case events.Undone(stream=name, rows=rows):
                self._tally[name].update(undone=rows or 0, reorgs=1)
            case events.Retrying(what=name, kind=kind) if name in self._tally:
                self._tally[name].update({f'retries: {kind}': 1})

    def _say(self, ended: bool = False) -> None:
        told = {
            'seconds': round(time.monotonic() - self._started, 1),
            'rss': self._process.memory_info().rss,
            'arrow': pa.total_allocated_bytes(),
            'blocks': sys.getallocatedblocks(),
            'malloc': _malloc_bytes(),
            'fds': self._process.num_fds(),
            'sockets': len(self._process.net_connections(kind='inet')),
            'threads': self._process.num_threads(),
            'python_threads': sorted(t.name for t in threading.enumerate()),
            'streams': self._tally,
            'positions': self._positions,
            'failed': self._failed,
            'ended': ended,
        }
        print(json.dumps(told), flush=True)


if __name__ == '__main__':
    Follower(json.loads(sys.argv[1])).run()
