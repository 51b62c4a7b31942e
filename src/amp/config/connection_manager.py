"""What a name stands for: a connection, put together key by key from all the places that say something about it.

From the strongest: what a program configured; AMP_CONN_<NAME>; the project's amp.toml; the user's; and the variables
that a system's own tools read (POSTGRES_*, REDIS_URL, SNOWFLAKE_*, CLICKHOUSE_*), where nothing else says it. Secrets stay
references until the connection is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from amp.config.files import config_files
from amp.config.secrets import Setting, is_reference, resolved
from amp.config.urls import is_url, loader_of_url
from amp.errors import ConfigError

__all__ = ['Connection', 'ConnectionManager', 'Setting']

_SYSTEM: dict[str, dict[str, tuple[str, ...]]] = {
    'postgresql': {
        'host': ('POSTGRES_HOST', 'PGHOST'),
        'port': ('POSTGRES_PORT', 'PGPORT'),
        'database': ('POSTGRES_DB', 'PGDATABASE'),
        'user': ('POSTGRES_USER', 'PGUSER'),
        'password': ('POSTGRES_PASSWORD', 'PGPASSWORD'),
    },
    'redis': {'url': ('REDIS_URL',), 'password': ('REDIS_PASSWORD',)},
    'clickhouse': {
        'host': ('CLICKHOUSE_HOST',),
        'port': ('CLICKHOUSE_PORT',),
        'username': ('CLICKHOUSE_USER',),
        'password': ('CLICKHOUSE_PASSWORD',),
        'database': ('CLICKHOUSE_DATABASE',),
    },
    'snowflake': {
        key: (f'SNOWFLAKE_{key.upper()}',)
        for key in ('account', 'user', 'password', 'private_key', 'database', 'schema', 'warehouse', 'role')
    },
}
_WHOLE_NUMBERS = {'port'}
# Keys that say which server or which place is meant.
_SERVER = {'host', 'port', 'account', 'path', 'root'}


@dataclass(frozen=True)
class Connection:
    """A name, its loader, and its settings by key; those of a table inside by `table.key`."""

    name: str
    loader: str
    settings: Mapping[str, Setting]

    def config(self) -> dict[str, Any]:
        """What the loader takes, secrets resolved. Raises ConfigError."""
        where = f'of the connection {self.name!r}'
        found: dict[str, Any] = {}
        for setting in self.settings.values():
            *tables, key = setting.path
            inside = found
            for table in tables:
                inside = inside.setdefault(table, {})
            inside[key] = resolved(setting, where)
        return found


@dataclass(frozen=True)
class _Layer:
    """What one place says of a name."""

    origin: str
    values: Mapping[str, Any] = field(repr=False)
    is_foreign: bool = False


class ConnectionManager:
    """All names that are known. Files and variables are read when they are asked for, not before."""

    def __init__(self) -> None:
        self._configured: dict[str, tuple[str, dict[str, Any]]] = {}

    def configure(self, name: str, loader: str, config: Mapping[str, Any]) -> None:
        """Let `name` stand for a destination, above all files and variables."""
        if not name or '://' in name:
            raise ConfigError(f'{name!r} is not a name for a connection')
        self._configured[name] = (loader, dict(config))

    def names(self) -> list[str]:
        """Every known name, sorted."""
        files = {name for file in config_files() for name in file.connections}
        known = {*self._configured, *files}
        spelled = {_variable(name) for name in known}
        # An empty variable says nothing, as if it were not there.
        variables = {key for key, text in os.environ.items() if text and key.startswith('AMP_CONN_')} - spelled
        return sorted({*known, *(key.removeprefix('AMP_CONN_').lower() for key in variables)})

    def get(self, name: str) -> Connection:
        """The connection of a name. Raises ConfigError for one that is not known, or that does not say its loader."""
        found: dict[str, Setting] = {}
        for layer in self._layers(name):
            _add(layer, found)
        if not found:
            known = ', '.join(self.names())
            raise ConfigError(
                f'there is no connection {name!r}',
                hint=f'known connections: {known}' if known else 'give a URL such as duckdb:///chain.db',
            )
        loader = found.pop('loader', None)
        if loader is None and 'url' in found:
            loader = _loader_of(name, found['url'])
        if loader is None:
            raise ConfigError(
                f'the connection {name!r} does not say its loader',
                hint=f'add loader = "postgresql", or url = ..., in {next(iter(found.values())).origin}',
            )
        self._add_system(str(loader.value), found)
        return Connection(name, str(loader.value), found)

    def _layers(self, name: str) -> list[_Layer]:
        layers: list[_Layer] = []
        if name in self._configured:
            loader, config = self._configured[name]
            layers.append(_Layer('the program', {'loader': loader, **config}))
        variable = _variable(name)
        if os.environ.get(variable):
            layers.append(_Layer(variable, _from_text(variable, os.environ[variable])))
        files = [file for file in config_files() if name in file.connections]
        return [*layers, *(_Layer(str(f.path), f.connections[name], is_foreign=not f.is_own) for f in files)]

    @staticmethod
    def _add_system(loader: str, found: dict[str, Setting]) -> None:
        taken = _said(found)
        if 'user' in taken:
            # The password in a variable is that of another user.
            taken |= {'password'}
        for key, variables in _SYSTEM.get(loader, {}).items():
            variable = next((v for v in variables if os.environ.get(v)), None)
            if variable is not None and key not in found and key not in taken:
                value: Any = os.environ[variable]
                number = int(value) if key in _WHOLE_NUMBERS and value.isdigit() else value
                found[key] = Setting(key, number, variable, (key,))


def _add(layer: _Layer, found: dict[str, Setting]) -> None:
    """What a weaker place says besides."""
    stronger = [setting.path for setting in found.values()]
    taken = _said(found)
    for path, value in _leaves(layer.values):
        # Neither a value beside a table of its name nor the other way round: the stronger place has said it.
        is_said = any(path[: len(p)] == p or p[: len(path)] == path for p in stronger)
        if not is_said and path[0] not in taken:
            setting = Setting('.'.join(path), value, layer.origin, path, layer.is_foreign)
            found[setting.key] = setting


def _leaves(layer: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the names that lead to it; an empty table is a value."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _loader_of(name: str, url: Setting) -> Setting:
    if is_reference(url.value, 'url'):
        raise ConfigError(
            f'the URL of the connection {name!r} is a reference, so its loader cannot be told',
            hint='add loader = "..."',
        )
    return Setting('loader', loader_of_url(str(url.value)), url.origin, ('loader',))


def _said(found: Mapping[str, Setting]) -> set[str]:
    """Keys that a weaker place cannot add, because a server is said in one of two ways: by a URL or by keys.

    A URL says where, in its query what else it likes, and who comes when it has a user. Keys that say where leave no room
    for a URL, which would bring the user and the password of another server.
    """
    if 'url' not in found:
        return {'url'} if _SERVER & found.keys() else set()
    url = str(found['url'].value)
    before, at, _ = url.rpartition('@')
    said = {'url', 'database', 'db', *_SERVER, *(key for key, _ in parse_qsl(url.partition('?')[2]))}
    if at:
        said |= {'user', 'username'}
    return said | {'password'} if at and ':' in before.partition('://')[2] else said


def _variable(name: str) -> str:
    return f'AMP_CONN_{name.upper().replace("-", "_")}'


def _from_text(variable: str, text: str) -> dict[str, Any]:
    """A URL, or a JSON object."""
    if is_url(text):
        return {'url': text}
    try:
        found = json.loads(text)
    except ValueError:
        # Not chained: the error of a parser carries the text, password and all.
        found = None
    if isinstance(found, dict):
        return found
    raise ConfigError(f'{variable} is neither a URL nor a JSON object')
