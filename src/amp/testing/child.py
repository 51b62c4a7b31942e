"""One process that streams a query into a destination, and dies where it is told to.

    python -m amp.testing.child LOADER [MODULE ...]

It imports what it needs and then waits for its job, one JSON object on a line of stdin; so a spare one can be kept
ready. Further lines are orders: what to do the nth time a point of `amp.loaders.points` is reached. It writes one JSON
object a line on stdout: `ready`, `ordered`, `point` (when traced), `stopped`, `result` (a commit) and `error`. When
stdin ends, so does the process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any, cast

from amp.errors import AmpError
from amp.flight.transport import FlightTransport
from amp.loaders import points
from amp.loaders.base import DataLoader
from amp.loaders.registry import get_loader_class
from amp.loaders.session import stream_query
from amp.loaders.types import LoadResult
from amp.streaming.iterator import DEFAULT_MAX_BYTES, StreamingResultIterator
from amp.streaming.types import BatchMetadata, ResponseBatch, ResumeWatermark

__all__ = ['loader_class', 'main']


def loader_class(name: str) -> type[DataLoader[Any]]:
    """The class of a registered name, or of a path `package.module:Class`."""
    module, _, attribute = name.partition(':')
    if not attribute:
        return get_loader_class(name)
    return cast('type[DataLoader[Any]]', getattr(importlib.import_module(module), attribute))


class _Query:
    """The part of a query that a stream needs, without the client around it: a child is started often."""

    def __init__(self, transport: FlightTransport, sql: str, max_bytes: int) -> None:
        self.sql = sql
        self._transport = transport
        self._max_bytes = max_bytes

    def responses(self, *, resume: ResumeWatermark | None, streaming: bool) -> StreamingResultIterator:
        result = self._transport.open(self.sql, streaming=streaming, resume=resume)
        batches = (ResponseBatch.data_batch(batch, metadata or BatchMetadata()) for batch, metadata in result)
        return StreamingResultIterator(batches, max_bytes=self._max_bytes, cancel=result.cancel)


class _Orders:
    """What the parent wants to happen at a point."""

    def __init__(self) -> None:
        self._order: Mapping[str, Any] = {}
        self._left = 0

    def take(self, order: Mapping[str, Any]) -> None:
        self._order, self._left = order, int(order.get('nth', 1))

    def reached(self, point: str) -> None:
        order = self._order
        if order.get('trace'):
            _tell(event='point', name=point)
        if order.get('point') != point:
            return
        self._left -= 1
        if self._left:
            return
        if order.get('action') == 'stop':
            _tell(event='stopped', name=point)
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(self) -> None:
        for line in sys.stdin:
            self.take(json.loads(line))
            _tell(event='ordered')
        os._exit(1)


class _NoPandas:
    """Nobody here wants pandas, but pyarrow and drivers import it where they find it: most of a start."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == 'pandas':
            raise ModuleNotFoundError(name, name=name)


def main(arguments: Sequence[str]) -> int:
    """Run one job; the exit code is that of the error, 130 when interrupted."""
    sys.meta_path.insert(0, _NoPandas())
    # A shell starts background jobs with SIGINT ignored, which is inherited: the parent's interrupt would be lost.
    stop = threading.Event()
    signal.signal(signal.SIGINT, partial(_interrupt, stop))
    name, *modules = arguments
    for module in modules:
        importlib.import_module(module)
    wanted = loader_class(name)
    job = json.loads(sys.stdin.readline() or '{}')
    if not job:
        return 0
    orders = _Orders()
    orders.take(job.get('order') or {})
    points.hook = orders.reached
    threading.Thread(target=orders.listen, name='orders', daemon=True).start()
    _tell(event='ready')
    try:
        _stream(wanted(job['config']), job, stop)
    except KeyboardInterrupt:
        return 130
    except AmpError as error:
        _tell(event='error', type=type(error).__name__, text=str(error), exit_code=error.exit_code)
        return error.exit_code
    return 130 if stop.is_set() else 0


def _interrupt(stop: threading.Event, number: int, frame: FrameType | None) -> None:
    # Python drops an exception that is raised while a finaliser runs; the event is seen all the same.
    stop.set()
    signal.default_int_handler(number, frame)


def _stream(loader: DataLoader[Any], job: Mapping[str, Any], stop: threading.Event) -> None:
    options = dict(job.get('options') or {})
    max_bytes = int(options.pop('max_bytes', DEFAULT_MAX_BYTES))
    if 'key_columns' in options:
        options['key_columns'] = tuple(options['key_columns'])
    with FlightTransport(job['source']) as transport:
        query = _Query(transport, job['sql'], max_bytes)
        # Closed here and now, so that an interrupt rolls back before the process says goodbye.
        results = stream_query(loader, cast('Any', query), job['table'], name=job['stream'], stop=stop, **options)
        with contextlib.closing(results):
            for result in results:
                _tell_result(result)


def _tell_result(result: LoadResult) -> None:
    _tell(
        event='result',
        rows=result.rows_loaded,
        is_reorg=result.is_reorg,
        position=result.metadata['position'],
        epoch=result.metadata['epoch'],
        blocks=result.metadata['blocks'],
        peak_rss_kb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def _tell(**event: object) -> None:
    # One write a line: it is complete in the pipe however the process ends after it.
    os.write(1, json.dumps(event).encode() + b'\n')


if __name__ == '__main__':
    # Without the teardown of the interpreter: everything durable is durable by now.
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
