"""Where a Delta table lies: its folder as a name that is safe everywhere, and the files of amp beside its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from amp.errors import ConfigError
from amp.loaders.options import check_name

__all__ = ['Files', 'folder_name', 'joined', 'located', 'name_of_folder']

_PLAIN = re.compile(r'[A-Za-z0-9._-]')
_ESCAPED = re.compile(rb'__([0-9A-F]{2})')
_LONGEST = 200

# Options of the HTTP client, which obstore takes apart from those of the store.
_CLIENT_OPTIONS = frozenset(
    {'allow_http', 'allow_invalid_certificates', 'connect_timeout', 'pool_idle_timeout', 'proxy_url', 'timeout'}
)
# Options that speak of how delta-rs commits or retries; they say nothing of how a file is reached.
_OF_DELTA = frozenset(
    {
        'allow_unsafe_rename',
        'conditional_put',
        'copy_if_not_exists',
        'delta_dynamo_table_name',
        'dynamo_lock_table_name',
        'ec2_metadata_disabled',
        'force_credential_load',
        'max_retries',
        'retry_timeout',
        's3_allow_unsafe_rename',
        's3_locking_provider',
    }
)


def folder_name(name: str) -> str:
    """A table's or stream's name as the name of a folder; other bytes than letters, digits, `._-` as `__` and two hex
    digits. (Delta implementations encode what is special in a URL once too often.) Raises ConfigError.
    """
    check_name(name)
    parts = []
    for i, character in enumerate(name):
        twice = character == '_' and name[i + 1 : i + 2] == '_'
        if _PLAIN.fullmatch(character) and not twice and not (i == 0 and character == '.'):
            parts.append(character)
        else:
            parts += [f'__{byte:02X}' for byte in character.encode()]
    folder = ''.join(parts)
    if len(folder) > _LONGEST:
        raise ConfigError(f'the name {name[:60]!r}... is too long for a folder', hint=f'at most {_LONGEST} characters')
    return folder


def name_of_folder(folder: str) -> str:
    """The name that `folder_name` made a folder of."""
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), folder.encode()).decode(errors='replace')


def located(place: str) -> str:
    """A path made absolute, or a URL without its final slash. Raises ConfigError."""
    if place.startswith('file://'):
        place = url2pathname(urlsplit(place).path)
    if '://' in place:
        return place.rstrip('/')
    path = str(Path(place).expanduser().resolve())
    if '%' in path:
        raise ConfigError(
            f'the path {path!r} has a %, which Delta Lake takes for an escape', hint='choose another path'
        )
    return path


def joined(place: str, folder: str) -> str:
    """A folder in a place."""
    return f'{place}/{folder}'


class Files:
    """Files under a place, local or in an object store; paths are relative, their parts divided by `/`."""

    def __init__(self, place: str, storage_options: Mapping[str, str] | None = None) -> None:
        self._place = place
        self._options = dict(storage_options or {})
        self._opened: ObjectStore | None = None

    @property
    def store(self) -> ObjectStore:
        """The store itself, for those who read and write much. Raises ConfigError for options that it does not know."""
        if self._opened is None:
            self._opened = _open(self._place, self._options)
        return self._opened

    def write(self, path: str, text: str) -> None:
        """Write a whole file; nobody sees a part of it."""
        obstore.put(self.store, path, text.encode())

    def read(self, path: str) -> str:
        """Raises FileNotFoundError."""
        return bytes(obstore.get(self.store, path).bytes()).decode()

    def delete(self, path: str) -> None:
        """Harmless when it is not there."""
        try:
            obstore.delete(self.store, path)
        except FileNotFoundError:
            return

    def folders(self, path: str = '') -> list[str]:
        """Names of the folders in a folder."""
        found: Any = obstore.list_with_delimiter(self.store, path or None)
        return sorted(prefix.rstrip('/').rpartition('/')[2] for prefix in found['common_prefixes'])

    def names(self, path: str) -> list[str]:
        """Names of the files in a folder."""
        found: Any = obstore.list_with_delimiter(self.store, path or None)
        return sorted(str(each['path']).rpartition('/')[2] for each in found['objects'])


def _open(place: str, options: Mapping[str, str]) -> ObjectStore:
    if '://' not in place:
        return LocalStore(place, mkdir=True)
    config, client = {}, {}
    for key, value in options.items():
        short = key.lower().removeprefix('aws_').removeprefix('azure_').removeprefix('google_')
        if short in _CLIENT_OPTIONS:
            client[short] = value.lower() == 'true' if value.lower() in {'true', 'false'} else value
        elif short not in _OF_DELTA and not short.startswith('delta_'):
            config[key] = value
    opened: Any = from_url
    try:
        store: ObjectStore = opened(place, config=config, client_options=client)
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise ConfigError(f'the options for {place} do not fit: {str(error).splitlines()[0]}') from error
    return store
