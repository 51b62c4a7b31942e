"""What a name stands for: a connection, put together key by key from all the places that say something about it.

From the strongest: what a program configured; AMP_CONN_<NAME>; the project's amp.toml; the user's; and the variables
that a system's own tools read (POSTGRES_*, REDIS_URL, SNOWFLAKE_*, CLICKHOUSE_*), where nothing else says it. Secrets stay
references until the connection is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amp.config.files import config_files, project_file, user_file
from amp.config.secrets import is_reference, looks_secret, resolve
from amp.errors import ConfigError, redact
from amp.loaders.urls import is_url, loader_of_url

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


@dataclass(frozen=True)
class Setting:
    """One value and where it came from. Its repr shows no secret."""

    key: str
    value: Any = field(repr=False)
    origin: str

    @property
    def shown(self) -> str:
        """The value for a person: a reference as it is, a secret as ***."""
        if is_reference(self.value):
            return str(self.value)
        return '***' if looks_secret(self.key) and self.value else redact(str(self.value))


@dataclass(frozen=True)
class Connection:
    """A name, its loader, and its settings by key."""

    name: str
    loader: str
    settings: Mapping[str, Setting]

    def config(self) -> dict[str, Any]:
        """What the loader takes, secrets resolved. Raises ConfigError."""
        return {key: self._resolved(setting) for key, setting in self.settings.items()}

    def _resolved(self, setting: Setting) -> Any:
        if not is_reference(setting.value):
            return setting.value
        project = project_file()
        if str(setting.value).startswith('cmd:') and project is not None and setting.origin == str(project.resolve()):
            # A folder that somebody else wrote must not run commands just because a name was used in it.
            raise ConfigError(
                f'{setting.key} of the connection {self.name!r} is a command in {setting.origin}, which is not run',
                hint=f'commands for secrets belong into your own {user_file()}',
            )
        return resolve(setting.value)


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
        variables = {key.removeprefix('AMP_CONN_').lower() for key in os.environ if key.startswith('AMP_CONN_')}
        return sorted({*self._configured, *files, *variables})

    def get(self, name: str) -> Connection:
        """The connection of a name. Raises ConfigError for one that is not known, or that does not say its loader."""
        found: dict[str, Setting] = {}
        for origin, layer in self._layers(name):
            whole = 'url' in layer and not found
            for key, value in layer.items():
                found.setdefault(key, Setting(key, value, origin))
            if whole and 'loader' not in layer:
                found.setdefault('loader', Setting('loader', loader_of_url(str(layer['url'])), origin))
        if not found:
            known = ', '.join(self.names())
            raise ConfigError(
                f'there is no connection {name!r}',
                hint=f'known connections: {known}' if known else 'give a URL such as duckdb:///chain.db',
            )
        loader = found.pop('loader', None)
        if loader is None:
            raise ConfigError(
                f'the connection {name!r} does not say its loader', hint='loader = "postgresql", or url = ...'
            )
        self._add_system(str(loader.value), found)
        return Connection(name, str(loader.value), found)

    def _layers(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        layers: list[tuple[str, dict[str, Any]]] = []
        if name in self._configured:
            loader, config = self._configured[name]
            layers.append(('the program', {'loader': loader, **config}))
        variable = f'AMP_CONN_{name.upper().replace("-", "_")}'
        if os.environ.get(variable):
            layers.append((variable, _from_text(variable, os.environ[variable])))
        layers += [
            (str(file.path), dict(file.connections[name])) for file in config_files() if name in file.connections
        ]
        return layers

    @staticmethod
    def _add_system(loader: str, found: dict[str, Setting]) -> None:
        # A URL says where a server is; only what it leaves out comes from elsewhere.
        taken = {'host', 'port', 'database', 'url', 'account'} if 'url' in found else set()
        for key, variables in _SYSTEM.get(loader, {}).items():
            variable = next((v for v in variables if os.environ.get(v)), None)
            if variable is not None and key not in found and key not in taken and not _has_password(key, found):
                value: Any = os.environ[variable]
                found[key] = Setting(key, int(value) if key in _WHOLE_NUMBERS and value.isdigit() else value, variable)


def _has_password(key: str, found: Mapping[str, Setting]) -> bool:
    return key in {'user', 'username', 'password'} and 'url' in found and '@' in str(found['url'].value)


def _from_text(variable: str, text: str) -> dict[str, Any]:
    """A URL, or a JSON object."""
    if is_url(text):
        return {'url': text}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'{variable} is neither a URL nor a JSON object') from error
    if not isinstance(found, dict):
        raise ConfigError(f'{variable} is neither a URL nor a JSON object')
    return found
