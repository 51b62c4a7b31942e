"""Mistakes in a loader's class, told to its author in a sentence, before the first row.

What can be seen in the class is seen here; what only shows when a method answers is said where it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from amp.errors import ConfigError, DestinationError, LoadError
from amp.loaders.hooks import Hooks, config_class
from amp.loaders.options import listed
from amp.loaders.types import LoadMode

__all__ = ['answer', 'check_class', 'check_connected', 'check_required']

# Each is worth nothing without the others.
_TOGETHER = (
    (('open_stream', 'begin', 'list_streams'), 'a stream in its own transactions needs'),
    (('_read_state', '_write_state', '_delete_runs'), 'a stream by ids needs'),
)


@cache
def check_class(loader_class: type[Hooks[Any]]) -> None:
    """Raises ConfigError for the first mistake."""
    name = loader_class.__name__
    missing = sorted(getattr(loader_class, '__abstractmethods__', ()))
    if missing:
        raise ConfigError(f'{name} has no {missing[0]}', hint=f'a loader writes {listed(Hooks.__abstractmethods__)}')
    modes: Any = loader_class.SUPPORTED_MODES
    wrong = modes if isinstance(modes, str) else next((m for m in modes if not isinstance(m, LoadMode)), None)
    if wrong is not None:
        known = ', '.join(f'LoadMode.{mode.name}' for mode in LoadMode)
        raise ConfigError(f'SUPPORTED_MODES of {name} names {wrong!r}, which is no mode', hint=f'modes: {known}')
    for methods, why in _TOGETHER:
        own = [method for method in methods if _has(loader_class, method)]
        lacks = [method for method in methods if method not in own]
        if lacks and own and own != ['_delete_runs']:
            raise ConfigError(f'{name} has {own[0]} and no {lacks[0]}', hint=f'{why} {", ".join(methods)}')
    wanted = config_class(loader_class)
    path = loader_class.URL_PATH_KEY
    if wanted is not None and path is not None and path not in {f.name for f in fields(wanted)}:
        raise ConfigError(f'URL_PATH_KEY of {name} is {path!r}, which {wanted.__name__} does not have')


def check_required(loader: Hooks[Any], config: dict[str, Any]) -> None:
    """Raises ConfigError for a required key that is not given, or that the loader's own configuration does not know."""
    required: Any = loader._get_required_config_fields()
    if isinstance(required, str) or not isinstance(required, Sequence):
        raise ConfigError(f'_get_required_config_fields of {loader.name} returned {required!r}, not a list of names')
    wanted = config_class(type(loader))
    if wanted is not None and type(loader)._parse_config is Hooks._parse_config:
        unknown = sorted(set(required) - {f.name for f in fields(wanted)})
        if unknown:
            raise ConfigError(f'{loader.name} requires {unknown[0]!r}, which {wanted.__name__} does not have')
    for name in required:
        if config.get(name) in (None, ''):
            raise ConfigError(f'{loader.name} needs the configuration key {name!r}')


def check_connected(loader: Hooks[Any]) -> None:
    """Raises DestinationError when `connect` came back and the loader is not connected."""
    if not loader._is_connected:
        raise DestinationError(
            f'connect of {loader.name} returned and the loader is not connected', hint='it sets self._is_connected'
        )


def answer(loader: Hooks[Any], method: str, given: object, wanted: type | tuple[type, ...], meaning: str) -> Any:
    """What a method returned, when it is of the wanted type. Raises LoadError."""
    if isinstance(given, wanted) and (wanted is bool or not isinstance(given, bool)):
        return given
    raise LoadError(f'{method} of {loader.name} returned {given!r}, not {meaning}')


def _has(loader_class: type[Any], method: str) -> bool:
    return getattr(loader_class, method, None) not in {None, getattr(Hooks, method, None)}
