"""Counters and gauges for Prometheus. They move only when rows are durable. Needs the extra `prometheus`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from amp.errors import ConfigError, MissingExtraError
from amp.events import Committed, Event, Retrying, Undone, Working, listen

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric
    from prometheus_client.metrics import MetricWrapperBase
    from prometheus_client.registry import Collector

__all__ = ['serve', 'watch']

_LABELS = ('loader', 'table', 'stream')
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


def watch(registry: CollectorRegistry | None = None) -> Callable[[], None]:
    """Keep metrics in `registry` (default: the library's own) until the function that is returned is called.

    `amp_rows_total`, `amp_bytes_total`, `amp_commits_total`, `amp_commit_seconds`, `amp_reorgs_total`,
    `amp_rows_undone_total`, `amp_blocks_undone_total`, `amp_retries_total` (by kind), `amp_position` (by network),
    `amp_partition_block` (what workers have in hand). Raises MissingExtraError.
    """
    try:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram
    except ImportError as error:
        raise MissingExtraError('prometheus', 'prometheus-client') from error
    own = registry if registry is not None else REGISTRY
    rows = Counter('amp_rows', 'Rows that are durable', _LABELS, registry=None)
    size = Counter('amp_bytes', 'Their bytes in Arrow', _LABELS, registry=None)
    commits = Counter('amp_commits', 'Commits', _LABELS, registry=None)
    seconds = Histogram(
        'amp_commit_seconds', 'From the first row of a unit to its commit', _LABELS, buckets=_SECONDS, registry=None
    )
    reorgs = Counter('amp_reorgs', 'Reorgs that were undone', _LABELS, registry=None)
    undone = Counter('amp_rows_undone', 'Rows that reorgs took back', _LABELS, registry=None)
    depth = Counter('amp_blocks_undone', 'Blocks that reorgs took back', _LABELS, registry=None)
    retries = Counter('amp_retries', 'Failures that were tried again', ('what', 'kind'), registry=None)
    position = Gauge('amp_position', 'The newest block that is durable', (*_LABELS, 'network'), registry=None)

    at = Gauge(
        'amp_partition_block',
        'What the workers of a backfill have in hand',
        ('table', 'stream', 'network', 'slot', 'edge'),
        registry=None,
    )
    metrics = (rows, size, commits, seconds, reorgs, undone, depth, retries, position, at)
    one_at_a_time = threading.Lock()
    at_once = _at_once(metrics, one_at_a_time)
    own.register(at_once)

    def on(event: Event) -> None:
        with one_at_a_time:
            count(event)

    def count(event: Event) -> None:
        if isinstance(event, Working):
            for edge, block in (('first', event.first), ('last', event.last)):
                where = (event.table, event.stream, event.network, str(event.worker), edge)
                if block is not None:
                    at.labels(*where).set(block)
                else:
                    at.remove(*where)
            return
        if isinstance(event, Retrying):
            retries.labels(event.what, event.kind).inc()
            return
        labels = (event.loader, event.table, event.stream or '')
        if isinstance(event, Undone):
            reorgs.labels(*labels).inc()
            undone.labels(*labels).inc(event.rows or 0)
            depth.labels(*labels).inc(event.depth)
            return
        rows.labels(*labels).inc(event.rows)
        size.labels(*labels).inc(event.bytes)
        commits.labels(*labels).inc()
        seconds.labels(*labels).observe(event.seconds)
        for network, number in positions(event).items():
            position.labels(*labels, network).set(number)

    stop = listen(on)

    def end() -> None:
        stop()
        own.unregister(at_once)

    return end


def _at_once(metrics: Sequence[MetricWrapperBase], one_at_a_time: threading.Lock) -> Collector:
    """All of them as they are between two events: nobody reads a reorg without its rows."""
    from prometheus_client.registry import Collector

    class AtOnce(Collector):
        def describe(self) -> Iterable[Metric]:
            return [family for metric in metrics for family in metric.describe()]

        def collect(self) -> Iterable[Metric]:
            with one_at_a_time:
                return [family for metric in metrics for family in metric.collect()]

    return AtOnce()


def positions(event: Committed) -> dict[str, int]:
    """Network to the number of its newest durable block."""
    return {
        network: int(at['number']) for network, at in event.position.items() if isinstance(at, dict) and 'number' in at
    }


def serve(address: str) -> Callable[[], None]:
    """Keep metrics and answer for them over HTTP on `HOST:PORT` (`:PORT` is every address of the machine).

    `GET /metrics` answers as long as the process lives. The function that is returned ends both. Raises ConfigError
    for an address that is none or taken, MissingExtraError.
    """
    host, _, port = address.rpartition(':')
    if not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f'{address!r} is no address for metrics', hint='HOST:PORT, such as 127.0.0.1:9464 or :9464')
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise MissingExtraError('prometheus', 'prometheus-client') from error
    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(int(port), host or '0.0.0.0', registry)  # noqa: S104 - asked for by name
    except OSError as error:
        raise ConfigError(f'metrics cannot be served on {address!r}: {error.strerror}', hint='another port') from error
    unwatch = watch(registry)

    def end() -> None:
        unwatch()
        server.shutdown()
        server.server_close()
        thread.join()

    return end
