"""Events as log records whose fields a structured handler can read: each field is an attribute `amp_<name>`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields

from amp.events import Committed, Event, Retrying, Undone, Working, listen

__all__ = ['watch']

_LEVELS = {Committed: logging.INFO, Undone: logging.WARNING, Retrying: logging.WARNING, Working: logging.DEBUG}


def watch(logger: logging.Logger | None = None) -> Callable[[], None]:
    """Log every event until the function that is returned is called: commits at INFO, reorgs
    and retries at WARNING, what workers begin and end at DEBUG.
    """
    own = logger or logging.getLogger('amp.events')

    def on(event: Event) -> None:
        name = type(event).__name__.lower()
        level = _LEVELS[type(event)]
        values = {f'amp_{field.name}': getattr(event, field.name) for field in fields(event)}
        told = ' '.join(f'{key.removeprefix("amp_")}={value}' for key, value in values.items() if value is not None)
        own.log(level, '%s %s', name, told, extra={'amp_event': name, **values})

    return listen(on)
