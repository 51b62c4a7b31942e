"""A Redis server as a URL."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote

from amp.config.urls import server_of_url
from amp.errors import ConfigError, redact

__all__ = ['config_of_url']


def config_of_url(url: str) -> dict[str, Any]:
    """`redis://`, `rediss://` (TLS), `redis+cluster://`, `rediss+cluster://`: user, password, host, port, `/db`."""
    parts, port = server_of_url(url)
    scheme, _, rest = parts.scheme.partition('+')
    if scheme not in {'redis', 'rediss', 'valkey', 'valkeys'} or rest not in {'', 'cluster'}:
        raise ConfigError(f'{redact(url)!r} is not the URL of a Redis server', hint='redis://host:6379/0')
    db = parts.path.strip('/')
    if db and not db.isdigit():
        raise ConfigError(f'{db!r} is not the number of a Redis database', hint='redis://host:6379/0')
    config: dict[str, Any] = {
        'host': parts.hostname or 'localhost',
        'port': port,
        'db': int(db) if db else None,
        'username': unquote(parts.username) if parts.username else None,
        'password': unquote(parts.password) if parts.password else None,
        'tls': True if scheme.endswith('s') and scheme != 'redis' else None,
        'cluster': True if rest == 'cluster' else None,
    }
    config = {key: value for key, value in config.items() if value is not None}
    return {**config, **{key: _typed(key, value) for key, value in parse_qsl(parts.query)}}


def _typed(key: str, value: str) -> Any:
    try:
        if key in {'ttl', 'pipeline_size', 'db', 'port'}:
            return int(value)
        if key in {'tls', 'cluster'}:
            return {'true': True, '1': True, 'false': False, '0': False}[value.lower()]
    except (ValueError, KeyError) as error:
        raise ConfigError(f'{value!r} is not a value for {key}') from error
    return value
