"""From a query to a destination: what `Query.load` does, once the loader is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from amp.errors import AmpError, ConfigError, LoadError
from amp.loaders.options import as_keys, as_mode
from amp.loaders.settings import StreamSettings
from amp.loaders.stream import StreamEngine
from amp.loaders.types import LoadMode, LoadResult
from amp.loaders.unit import StreamJob
from amp.streaming.iterator import End, StreamingResultIterator
from amp.streaming.ledger import StreamKey
from amp.streaming.types import ResponseBatch
from amp.waiting import interruptible

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader
    from amp.query import Query

__all__ = ['load_query', 'stream_query']

_SETTINGS = frozenset(f.name for f in fields(StreamSettings)) - {'strict'}


def load_query(loader: DataLoader[Any], reader: pa.RecordBatchReader, table: str, **options: Any) -> LoadResult:
    """Run a result into a table as one unit, in constant memory. Raises LoadError, which carries the result.

    Connecting is tried as often as the connection's `retry` says; the load itself is tried once, since its rows come only
    once. A destination that cannot be reached is a failed load too; what cannot be meant is a ConfigError.
    """
    started = time.perf_counter()
    with closing(loader):
        try:
            _connect(loader)
        except ConfigError:
            raise
        except Exception as error:  # drivers have their own kinds, as in a load
            raise _failed(loader, loader._failure(error, table, started), error) from error
        result = loader.load_reader(reader, table, **options)
    if not result.success:
        raise _failed(loader, result)
    return result


def stream_query(
    loader: DataLoader[Any],
    query: Query,
    table: str,
    *,
    name: str | None = None,
    mode: LoadMode | str = LoadMode.APPEND,
    key_columns: Iterable[str] | str = (),
    settings: StreamSettings | None = None,
    **options: Any,
) -> Generator[LoadResult, None, None]:
    """Follow a query into a table: one result for each commit and each reorg, for ever.

    Options that are settings of the stream (`retention`, `commit_rows`, ...) go there; any other must be the loader's.
    """
    chosen = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
    loader._options(options)
    job = StreamJob(StreamKey(table, name or table), as_mode(mode), as_keys(key_columns), options)
    most = loader.attempts.config.back_pressure.max_bytes_in_flight
    in_flight = {} if most is None else {'max_bytes': most}
    settings = replace(settings or StreamSettings(), **chosen)
    engine = StreamEngine(
        loader,
        job,
        lambda position: _Live(query.responses(resume=position, streaming=True, **in_flight)),
        settings,
        query.sql,
    )
    return _closing(loader, engine, settings.stop)


def _closing(
    loader: DataLoader[Any], engine: StreamEngine, stop: threading.Event | None
) -> Generator[LoadResult, None, None]:
    with closing(loader):
        _connect(loader, stop)
        if loader.is_connected:
            yield from engine.run()


def _connect(loader: DataLoader[Any], stop: threading.Event | None = None) -> None:
    """Connect, trying again as the connection's `retry` says; without one it is tried once.

    When `stop` is set meanwhile, it comes back unconnected. Raises what `connect` raises.
    """

    def once() -> None:
        if stop is None or not stop.is_set():
            loader._ensure_connected()

    def wait(seconds: float) -> None:
        with interruptible():
            (stop or threading.Event()).wait(seconds)

    # Nothing was sent yet, so nothing can be done twice.
    loader.attempts.run(once, lambda: True, wait)


def _failed(loader: DataLoader[Any], result: LoadResult, cause: Exception | None = None) -> LoadError:
    table = result.table_name
    said, hint = (cause.message, cause.hint) if isinstance(cause, AmpError) else (result.error, None)
    failed = LoadError(
        f'loading into {table!r} failed: {said}', result=result, hint=hint, table=table, loader=loader.name
    )
    failed.retryable = isinstance(cause, AmpError) and cause.retryable
    return failed


class _Live:
    """A connection to the server as the engine wants it: it can always be asked again."""

    repeatable = True

    def __init__(self, batches: StreamingResultIterator) -> None:
        self._batches = batches

    @property
    def backlog(self) -> bool:
        return self._batches.backlog

    def get(self, timeout: float | None = None) -> ResponseBatch | Literal[End.END] | None:
        return self._batches.get(timeout)

    def close(self) -> None:
        self._batches.close()
