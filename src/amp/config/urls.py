"""A destination as a URL: the scheme names the loader, the rest becomes its configuration.

Paths follow SQLAlchemy's habit: three slashes, then a relative path; four, an absolute one.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from amp.errors import ConfigError, redact

__all__ = ['config_from_place', 'config_from_url', 'is_url', 'loader_of_url', 'server_of_url']


def is_url(text: str) -> bool:
    """True when the text is a destination's URL rather than a configured name."""
    return '://' in text


def loader_of_url(url: str) -> str:
    """The name of the loader: the scheme up to a `+`. Raises ConfigError."""
    scheme = url.partition('://')[0]
    if not scheme or not scheme.replace('+', '').replace('-', '').isalnum():
        raise ConfigError(
            f'{redact(url)!r} is not the URL of a destination',
            hint='for example duckdb:///chain.db or postgresql://host/db',
        )
    name = scheme.partition('+')[0].lower()
    return {'postgres': 'postgresql'}.get(name, name)


def config_from_url(url: str, config_class: type | None, path_key: str | None) -> dict[str, Any]:
    """The configuration that a URL spells: path or host, user, password, database, and every `?key=value`.

    `config_class` is the dataclass whose fields give the types, `path_key` the field that a path stands for.
    Raises ConfigError for a URL that does not parse.
    """
    if path_key is not None:
        scheme, _, rest = url.partition('://')
        rest, _, query = rest.partition('?')
        if rest and not rest.startswith('/') and rest != ':memory:':
            raise ConfigError(
                f'{redact(url)!r} names a host, but this destination is a path',
                hint=f'three slashes for a relative path: {scheme}:///{rest}',
            )
        path = unquote(rest.removeprefix('/')) or ':memory:'
        return {path_key: path, **_typed(config_class, parse_qsl(query))}
    parts, port = server_of_url(url)
    known: dict[str, Any] = {
        'host': parts.hostname,
        'port': port,
        'user': unquote(parts.username) if parts.username else None,
        'password': unquote(parts.password) if parts.password else None,
        'database': unquote(parts.path.removeprefix('/')) or None,
    }
    given = {key: value for key, value in known.items() if value is not None}
    return {**given, **_typed(config_class, parse_qsl(parts.query))}


def server_of_url(url: str) -> tuple[SplitResult, int | None]:
    """The parts of a URL that names a server, and its port. Raises ConfigError, which holds nothing of the URL but its scheme.

    A password with a `/`, `?` or `#` of its own ends the server's part before the `@`: that is refused too, since what
    follows would be taken for a path, and shown as one.
    """
    found = _split(url)
    if found is None:
        scheme = url.partition('://')[0]
        raise ConfigError(
            f'what follows {scheme}:// is not a URL of a server',
            hint='percent-encode the user and the password (/ is %2F, ? is %3F, # is %23, @ is %40, [ is %5B); a port is a number',
        )
    return found


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    """None for one that does not parse: the parser's error quotes what it takes for a port, and that may be the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    # In a query a value may have one.
    stray = [parts.path, parts.fragment, *(pair for pair in parts.query.split('&') if '=' not in pair)]
    return None if any('@' in text for text in stray) else (parts, port)


def config_from_place(url: str, config_class: type | None, path_key: str) -> dict[str, Any]:
    """The configuration in a URL of a folder or of an object store: `scheme:///dir`, `scheme+s3://bucket/prefix`.

    Raises ConfigError for a folder that is written as a host.
    """
    scheme, _, rest = url.partition('://')
    store = scheme.partition('+')[2]
    if not store:
        return config_from_url(url, config_class, path_key)
    path, _, query = rest.partition('?')
    return {path_key: f'{store}://{path}', **_typed(config_class, parse_qsl(query))}


def _typed(config_class: type | None, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    types = {f.name: str(f.type) for f in fields(config_class)} if is_dataclass(config_class) else {}
    return {key: _converted(key, value, types.get(key, 'str')) for key, value in pairs}


def _converted(key: str, value: str, wanted: str) -> Any:
    try:
        if wanted.startswith('int'):
            return int(value)
        if wanted.startswith('bool'):
            return {'true': True, '1': True, 'false': False, '0': False}[value.lower()]
    except (ValueError, KeyError) as error:
        raise ConfigError(f'{value!r} is not a value for {key}') from error
    return value
