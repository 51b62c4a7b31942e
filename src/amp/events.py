"""What happens while rows land, for whoever wants to know: logs, metrics, traces.

    stop = amp.events.listen(print)

Events come after the fact: `Committed` and `Undone` only when they are durable. A listener is called where it happens,
so it should be quick; one that raises is logged and does not stop the rows. `amp.instrumentation` has ready-made ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ['Committed', 'Event', 'Listener', 'Retrying', 'Undone', 'Working', 'emit', 'listen']

logger = logging.getLogger('amp.events')


@dataclass(frozen=True)
class Committed:
    """Rows of a load or of a stream's unit are durable. `stream` is None for a plain load; `position` is its JSON."""

    loader: str
    table: str
    stream: str | None
    rows: int
    bytes: int
    seconds: float
    blocks: int = 0
    position: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Undone:
    """A reorg took rows back, durably; `rows` is None where the destination does not count. `depth` is in blocks."""

    loader: str
    table: str
    stream: str
    rows: int | None
    depth: int


@dataclass(frozen=True)
class Retrying:
    """A failure that may be gone the next time; `seconds` until the next try. `what` is a loader or a stream."""

    what: str
    kind: str
    attempt: int
    seconds: float
    error: Exception


@dataclass(frozen=True)
class Working:
    """A worker of a backfill takes blocks `first` to `last` in hand; both None when it is through with them."""

    table: str
    stream: str
    network: str
    worker: int
    first: int | None
    last: int | None


Event: TypeAlias = Committed | Undone | Retrying | Working
Listener: TypeAlias = Callable[[Event], object]

_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` with every event from now on; call what is returned to end that."""
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return stop


def emit(event: Event) -> None:
    """Tell every listener."""
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:  # a metric that cannot be written must not stop the rows
            logger.exception('a listener failed at %s', type(event).__name__)
