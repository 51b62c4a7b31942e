"""amp.toml: where it is, and what it says. The project's comes before the user's, key by key.

[source]
url = "grpc://localhost:1602"

[connections.warehouse]
loader = "postgresql"          # or url = "postgresql://..."
host = "db.example.com"
database = "chain"
password = "env:WAREHOUSE_PASSWORD"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amp.errors import ConfigError

__all__ = ['ConfigFile', 'config_files', 'missing_file', 'read_file', 'user_file']

NAME = 'amp.toml'
_SECTIONS = {'source', 'connections'}
_SOURCE = {'url', 'token', 'auth'}


@dataclass(frozen=True)
class ConfigFile:
    """One file, checked. `source` and each connection are flat mappings. `is_own`: it is the user's, not a project's."""

    path: Path
    source: Mapping[str, Any]
    connections: Mapping[str, Mapping[str, Any]]
    is_own: bool = False


def _project_file() -> Path | None:
    """The amp.toml of this folder or of the nearest one above."""
    here = Path.cwd()
    return next((folder / NAME for folder in (here, *here.parents) if (folder / NAME).is_file()), None)


def user_file() -> Path:
    """The user's own: AMP_CONFIG, else amp/amp.toml in the folder for configuration."""
    if 'AMP_CONFIG' in os.environ:
        return Path(os.environ['AMP_CONFIG'])
    return Path(os.environ.get('XDG_CONFIG_HOME', '~/.config')).expanduser() / 'amp' / NAME


def config_files() -> list[ConfigFile]:
    """Those that are there, the project's first. Raises ConfigError with the file and what is wrong in it."""
    paths = dict.fromkeys(
        path.resolve() for path in (_project_file(), user_file()) if path is not None and path.is_file()
    )
    return [read_file(path) for path in paths]


def missing_file() -> Path | None:
    """What AMP_CONFIG names and is no file; None when all is well."""
    path = user_file()
    return path if os.environ.get('AMP_CONFIG') and (path.is_dir() or not path.exists()) else None


def read_file(path: Path) -> ConfigFile:
    """The file, which is there. Raises ConfigError with what is wrong in it."""
    try:
        found = tomllib.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f'{path} cannot be read: {error}') from error
    unknown = sorted(set(found) - _SECTIONS)
    if unknown:
        raise ConfigError(f'{path}: there is no section {unknown[0]!r}', hint='sections: source, connections.NAME')
    source, connections = found.get('source', {}), found.get('connections', {})
    if not isinstance(source, dict) or not set(source) <= _SOURCE:
        raise ConfigError(f'{path}: [source] holds url and token', hint='and, in your own file, auth')
    if not isinstance(connections, dict) or not all(isinstance(c, dict) for c in connections.values()):
        raise ConfigError(f'{path}: a connection is a section', hint='[connections.warehouse]')
    return ConfigFile(path, source, connections, path.resolve() == user_file().resolve())
