"""Following a LocalAmp into a destination, and the oracle that says what must be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

from amp.client import Client
from amp.config.urls import loader_of_url
from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from amp.loaders.types import LoadResult
from amp.streaming.resilience import RetryConfig

SQL = 'SELECT block_num, block_hash, log_index, address, data FROM eth_rpc.logs'
QUICK = RetryConfig(max_retries=None, initial_backoff_ms=10, max_backoff_ms=100)


def follow(
    amp: LocalAmp, destination: str, table: str = 'logs', *, sql: str = SQL, **options: Any
) -> Iterator[LoadResult]:
    """An open stream, with waits that suit a test."""
    return Client(amp.url).sql(sql).load(destination, table, stream=True, retry=QUICK, **options)


def until_head(amp: LocalAmp, destination: str, table: str = 'logs', **options: Any) -> list[LoadResult]:
    """Results up to the moment at which the position is the server's head (number and hash)."""
    results = []
    with closing(follow(amp, destination, table, **options)) as stream:
        for result in stream:
            results.append(result)
            if at_head(amp, result):
                return results
    raise AssertionError('the stream ended')


def at_head(amp: LocalAmp, result: LoadResult) -> bool:
    head = amp.head
    return head is not None and position(result).get(amp.network) == head


def position(result: LoadResult) -> dict[str, tuple[int, str]]:
    return {network: (at['number'], at['hash']) for network, at in result.metadata['position'].items()}


def stored(destination: str, table: str = 'logs') -> list[tuple[Any, ...]]:
    """The user's rows, sorted."""
    with create_loader(loader_of_url(destination), {'url': destination}) as loader:
        return in_order(loader.scan(table).read_all())


def expected(amp: LocalAmp, columns: tuple[str, ...] = ('block_num', 'block_hash', 'log_index', 'address', 'data')):
    """The canonical rows, sorted."""
    return in_order(amp.canonical('logs').select(columns))


def in_order(table: pa.Table) -> list[tuple[Any, ...]]:
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))
