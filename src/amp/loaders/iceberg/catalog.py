"""Where the tables of an Iceberg destination are listed: opening a catalog, naming tables, and telling its errors.

Without a catalog of its own a warehouse on a local disk keeps one in a SQLite file, `<warehouse>/catalog.db`. Any other
catalog that pyiceberg knows is named by `catalog_config`, or by a URL whose scheme says which.
"""

from __future__ import annotations

import errno
import hashlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
from pydantic import ValidationError
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitStateUnknownException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    RESTError,
    ServerError,
    UnauthorizedError,
    ValidationException,
)
from pyiceberg.exceptions import ValidationError as DamagedMetadataError
from pyiceberg.table import Table

from amp.config.urls import server_of_url
from amp.errors import AmpError, ConfigError, DestinationError, MissingExtraError, redact
from amp.loaders.options import check_name
from amp.streaming.error_kinds import ErrorClassifier

try:
    from sqlalchemy import URL
    from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
except ImportError:  # pyiceberg without a SQL catalog

    class SQLAlchemyError(Exception):  # type: ignore[no-redef]
        """Never raised: there is nothing to raise it."""

    class DBAPIError(SQLAlchemyError):  # type: ignore[no-redef]
        """Never raised either."""

        orig: BaseException | None = None
        connection_invalidated = False

    class OperationalError(DBAPIError):  # type: ignore[no-redef]
        """Nor this."""

    URL = None  # type: ignore[assignment,misc]

__all__ = [
    'LOCK_SECONDS',
    'CatalogTables',
    'config_from_iceberg_url',
    'explained',
    'is_transient_failure',
]

LOCK_SECONDS = 30
_NUMBERS = ('compact_every', 'expire_every', 'keep_snapshots', 'keep_minutes')
_SWITCH = {'true': True, '1': True, 'false': False, '0': False}
_PLAIN_NAME = re.compile(r'[A-Za-z0-9_\-]{1,100}')
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def config_from_iceberg_url(url: str) -> dict[str, Any]:
    """The configuration that a URL spells. Raises ConfigError.

    `iceberg:///dir` (relative) and `iceberg:////dir`: a warehouse on disk with a SQLite catalog inside.
    `iceberg+http://host:8181/path?warehouse=...`, `iceberg+https://...`: a REST catalog.
    `iceberg+postgresql://user:password@host/db?warehouse=...`, `iceberg+sqlite:////file?warehouse=...`: a SQL catalog.
    `namespace=` and the other fields of the configuration are its own; any other parameter is the catalog's.
    """
    scheme, _, rest = url.partition('://')
    kind = scheme.partition('+')[2].lower()
    rest, _, query = rest.partition('?')
    given = dict(parse_qsl(query, keep_blank_values=True))
    own: dict[str, Any] = {key: given.pop(key) for key in ('namespace',) if key in given}
    own |= {
        key: _number(key, given.pop(key)) for key in ('compact_every', 'expire_every', 'keep_snapshots') if key in given
    }
    if 'sync' in given:
        own['sync'] = _switch('sync', given.pop('sync'))
    if not kind:
        if not rest.startswith('/') or not rest.removeprefix('/'):
            raise ConfigError(
                f'{redact(url)!r} does not name a warehouse',
                hint='three slashes for a relative path (iceberg:///warehouse), four for an absolute one',
            )
        own['warehouse'] = unquote(rest.removeprefix('/'))
    elif kind in {'http', 'https'}:
        server_of_url(url)
        given = {'type': 'rest', 'uri': f'{kind}://{rest}', **given}
    elif kind == 's3':
        raise ConfigError(
            'a bucket alone is no Iceberg catalog',
            hint='name one that lists its tables: iceberg+https://rest-catalog/?warehouse=... or '
            'iceberg+postgresql://host/db?warehouse=s3://bucket/path',
        )
    else:
        server_of_url(url)
        given = {'type': 'sql', 'uri': f'{kind}://{rest}', **given}
    return {**own, 'catalog_config': given} if given else own


def _number(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f'{value!r} is not a value for {key}') from error


def _switch(key: str, value: str) -> bool:
    if value.lower() not in _SWITCH:
        raise ConfigError(f'{value!r} is not a value for {key}')
    return _SWITCH[value.lower()]


class CatalogTables:
    """The tables of one namespace of a catalog. Raises DestinationError with what is wrong."""

    def __init__(self, warehouse: str, catalog_config: Mapping[str, Any], namespace: str, *, sync: bool = True) -> None:
        self.namespace = tuple(namespace.split('.'))
        self._warehouse = warehouse or str(catalog_config.get('warehouse', ''))
        self.shown = warehouse or redact(str(catalog_config.get('uri') or catalog_config.get('name') or 'the catalog'))
        with explained(self.shown):
            self.catalog = _open(self._warehouse, catalog_config, sync)
            with suppress(NamespaceAlreadyExistsError):
                self.catalog.create_namespace_if_not_exists(self.namespace)

    def close(self) -> None:
        """Let go of its connections."""
        self.catalog.close()

    def find(self, name: str) -> Table | None:
        """A table as it is now; None when it is not there. Raises ConfigError for what is no name of a table."""
        check_name(name)
        with explained(self.shown):
            try:
                try:
                    return self.catalog.load_table((*self.namespace, name))
                except FileNotFoundError:
                    # Old metadata is deleted by those who commit; the catalog names a newer one by now, or it is gone.
                    return self.catalog.load_table((*self.namespace, name))
            except NoSuchTableError:
                return None

    def get(self, name: str) -> Table:
        """A table as it is now. Raises DestinationError when it is not there."""
        table = self.find(name)
        if table is None:
            raise DestinationError(f'the table {name!r} does not exist', table=name)
        return table

    def names(self) -> list[str]:
        """The names of the tables of the namespace."""
        with explained(self.shown):
            return sorted(identifier[-1] for identifier in self.catalog.list_tables(self.namespace))

    def drop(self, name: str) -> None:
        """Take a table off the catalog; harmless when it is not there. Its files stay."""
        with explained(self.shown), suppress(NoSuchTableError):
            self.catalog.drop_table((*self.namespace, name))

    def location(self, name: str) -> str | None:
        """Where a table of this name is to lie; None where the catalog may decide.

        A name is text of any kind, a folder is not: what could leave the warehouse or confuse a reader is replaced.
        """
        if _PLAIN_NAME.fullmatch(name):
            return None
        folder = re.sub(r'[^A-Za-z0-9_\-]', '_', name)[:60]
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        root = str(self.catalog.properties.get('warehouse', self._warehouse)).rstrip('/')
        return f'{root}/{"/".join(self.namespace)}/{folder}-{digest}' if root else None


def _open(warehouse: str, given: Mapping[str, Any], sync: bool) -> Catalog:
    properties = {key: str(value) for key, value in given.items() if key != 'name'}
    if sync and '://' not in warehouse.removeprefix('file://'):
        properties.setdefault('py-io-impl', 'amp.loaders.iceberg.io.SyncedFileIO')
    name = str(given.get('name', 'default'))
    if 'uri' in properties or ('type' in properties and properties['type'] != 'sql') or 'name' in given:
        if warehouse:
            properties['warehouse'] = warehouse
        return load_catalog(name, **properties)
    if not warehouse or '://' in warehouse.removeprefix('file://'):
        raise ConfigError(
            'an Iceberg destination needs a warehouse on disk, or a catalog',
            hint="for example iceberg:///warehouse, or catalog_config={'type': 'rest', 'uri': 'https://...'}",
        )
    if URL is None:
        raise MissingExtraError('iceberg', 'sqlalchemy')
    folder = Path(warehouse.removeprefix('file://')).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    query = {'timeout': str(properties.pop('lock_seconds', LOCK_SECONDS))}
    uri = URL.create('sqlite', database=str(folder / 'catalog.db'), query=query)
    # A `#` or `?` in a path would end it for whoever reads it as a URL.
    root = str(folder) if re.search(r'[#?%]', str(folder)) else f'file://{folder}'
    return load_catalog(
        name, **{**properties, 'type': 'sql', 'uri': uri.render_as_string(hide_password=False), 'warehouse': root}
    )


@contextmanager
def explained(where: str) -> Iterator[None]:
    """What catalogs, files and their formats raise, as a DestinationError that says what to do."""
    try:
        yield
    except AmpError:
        raise
    except (ValidationError, DamagedMetadataError) as error:
        raise DestinationError(
            f'the metadata of a table in {where} does not parse: {_first_line(error)}',
            hint='its metadata file is damaged: restore it, or point the catalog at an older one (register_table)',
        ) from error
    except (SQLAlchemyError, RESTError, ValidationException, OSError, EOFError, pa.ArrowException) as error:
        failed = DestinationError(_sentence(error, where), hint=_hint(error))
        failed.retryable = is_transient_failure(error)
        raise failed from error


def is_transient_failure(error: Exception) -> bool:
    """True when the same may work the next time: a lock, a server that is away or busy, a commit of unknown outcome."""
    if isinstance(error, DBAPIError):
        original = error.orig
        if isinstance(original, sqlite3.Error):
            return _sqlite_code(original) in {'SQLITE_BUSY', 'SQLITE_LOCKED'}
        # An error without a code is of a connection that was not made; with one, the database has said what it is.
        unmade = isinstance(error, OperationalError) and getattr(original, 'sqlstate', None) is None
        return bool(error.connection_invalidated) or unmade or ErrorClassifier.is_transient(original)
    if isinstance(error, (CommitStateUnknownException, ServerError, ConnectionError, TimeoutError)):
        return True
    # Files of a warehouse in an object store.
    return isinstance(error, OSError) and ErrorClassifier.is_transient(error)


def _sqlite_code(error: BaseException | None) -> str:
    return '_'.join(str(getattr(error, 'sqlite_errorname', '')).split('_')[:2])


def _sentence(error: Exception, where: str) -> str:
    code = _sqlite_code(error.orig) if isinstance(error, DBAPIError) else ''
    known = {
        'SQLITE_BUSY': f'the catalog of {where} is locked by another process',
        'SQLITE_LOCKED': f'the catalog of {where} is locked by another process',
        'SQLITE_READONLY': f'the catalog of {where} may not be written',
        'SQLITE_CANTOPEN': f'the catalog of {where} cannot be opened',
        'SQLITE_FULL': f'the disk of {where} is full',
        'SQLITE_NOTADB': f'the catalog of {where} is not a SQLite database',
        'SQLITE_CORRUPT': f'the catalog of {where} is damaged',
    }
    if code in known:
        return known[code]
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return f'the disk of {where} is full: {_first_line(error)}'
    return f'Iceberg at {where}: {type(error).__name__}: {_first_line(error)}'


def _hint(error: Exception) -> str | None:
    if isinstance(error, DBAPIError):
        return {
            'SQLITE_BUSY': 'one process commits at a time; it is tried again, or choose a catalog with a server',
            'SQLITE_FULL': 'make room; nothing of the unit was kept',
            'SQLITE_NOTADB': 'is it the right folder? the catalog is the file catalog.db in it',
            'SQLITE_CORRUPT': 'restore it: tables can be registered again from their metadata files (register_table)',
        }.get(_sqlite_code(error.orig))
    if isinstance(error, (UnauthorizedError, ForbiddenError)):
        return 'check the token or credential of the catalog'
    if isinstance(error, FileNotFoundError):
        return 'the catalog names a file that is gone: restore it, or point the catalog at an older metadata file'
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return 'make room; nothing of the unit was kept'
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return 'the process needs to write there'
    return None


def _first_line(error: Exception) -> str:
    text = str(getattr(error, 'orig', None) or error).strip()
    return redact(text.splitlines()[0][:300] if text else type(error).__name__)
