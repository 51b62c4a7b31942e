"""The same figures as OpenTelemetry metrics. Needs the extra `opentelemetry`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from amp.errors import MissingExtraError
from amp.events import Event, Retrying, Undone, Working, listen

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

__all__ = ['watch']


def watch(provider: MeterProvider | None = None) -> Callable[[], None]:
    """Write to `provider` (default: the global one) until the function that is returned is called.

    `amp.rows`, `amp.bytes`, `amp.commits`, `amp.commit.duration` (seconds), `amp.reorgs`, `amp.rows.undone`,
    `amp.retries`. Raises MissingExtraError.
    """
    try:
        from opentelemetry.metrics import get_meter
    except ImportError as error:
        raise MissingExtraError('opentelemetry', 'opentelemetry-api') from error
    meter = get_meter('amp', meter_provider=provider)
    rows = meter.create_counter('amp.rows', unit='{row}', description='Rows that are durable')
    size = meter.create_counter('amp.bytes', unit='By', description='Their bytes in Arrow')
    commits = meter.create_counter('amp.commits', unit='{commit}', description='Commits')
    seconds = meter.create_histogram('amp.commit.duration', unit='s', description='From the first row to the commit')
    reorgs = meter.create_counter('amp.reorgs', unit='{reorg}', description='Reorgs that were undone')
    undone = meter.create_counter('amp.rows.undone', unit='{row}', description='Rows that reorgs took back')
    retries = meter.create_counter('amp.retries', unit='{retry}', description='Failures that were tried again')

    def on(event: Event) -> None:
        if isinstance(event, Working):
            return
        if isinstance(event, Retrying):
            retries.add(1, {'what': event.what, 'kind': event.kind})
            return
        labels = {'loader': event.loader, 'table': event.table, 'stream': event.stream or ''}
        if isinstance(event, Undone):
            reorgs.add(1, labels)
            undone.add(event.rows or 0, labels)
            return
        rows.add(event.rows, labels)
        size.add(event.bytes, labels)
        commits.add(1, labels)
        seconds.record(event.seconds, labels)

    return listen(on)
