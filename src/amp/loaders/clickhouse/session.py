"""One connection to ClickHouse, to a server over HTTP or to the engine inside this process, and what its errors mean."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError, Error, OperationalError, StreamFailureError
from urllib3.exceptions import HTTPError

from amp.errors import ConfigError, DestinationError, MissingExtraError, redact

__all__ = ['ClickHouseConfig', 'Session', 'code_of', 'explained', 'is_transient', 'literal', 'quote']

UNKNOWN_TABLE = 60
ACCESS_DENIED = 497

# Time and memory that ran out, the network behind the server, a table or keeper that is not ready, too much at once.
_TRANSIENT = frozenset(
    {159, 160, 202, 203, 209, 210, 236, 241, 242, 252, 265, 279, 285, 286, 290, 319, 341, 394, 425, 439, 473, 745, 999}
)
_HINTS = {
    16: 'the table has no such column',
    60: 'the table is not there: leave out create_table=False to make it',
    81: 'the database is not there: CREATE DATABASE it, or name another one',
    192: 'check username and password',
    193: 'check username and password',
    194: 'check username and password',
    516: 'check username and password',
    497: 'the user lacks a privilege: GRANT it, or use another user',
    164: 'the user may only read',
    243: 'the disk of the server is full',
    252: 'the server merges slower than rows come; it is tried again',
    349: 'a column of the table is not Nullable and the rows have a null in it',
}
# What holds for every statement. async_insert would answer before rows are durable, null_as_default would put
# zeros where nulls were, and numbers of 64 bits would come as texts from older servers.
_SETTINGS: Mapping[str, Any] = {
    'async_insert': 0,
    'input_format_null_as_default': 0,
    'output_format_json_quote_64bit_integers': 0,
    'mutations_sync': 2,
    'lightweight_deletes_sync': 2,
}
# The first is the older word for it, the second overrules it.
_KEEP_FIRST: Mapping[str, Any] = {'insert_deduplicate': 1, 'deduplicate_insert': 'enable'}

_engine_lock = threading.Lock()
_open_paths: Counter[str] = Counter()


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.msg == 'Unexpected Http Driver Exception')


# A client that scrubs errors, as those here do, logs what it raises, traceback and all; it is told once, in a sentence.
logging.getLogger('clickhouse_connect.driver._backend.http_sync').addFilter(_is_not_raised_too)


@dataclass(frozen=True)
class ClickHouseConfig:
    """A server (`host`, `port`, ...), or with `interface='chdb'` the engine in this process on the folder `path`.

    `secure`: TLS, checked against the authorities of the system or those in the file `ca_cert`. `durable`: the server
    has every insert on disk before it answers. `timeout`: seconds to wait for an answer.
    """

    host: str = ''
    port: int = 8123
    database: str = 'default'
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    secure: bool = False
    ca_cert: str | None = None
    interface: str | None = None
    path: str | None = None
    durable: bool = True
    compress: bool = True
    connect_timeout: int = 10
    timeout: int = 300

    @property
    def is_embedded(self) -> bool:
        """True for the engine in this process."""
        return self.interface == 'chdb'

    @property
    def where(self) -> str:
        """For messages."""
        return f'the folder {self.path}' if self.is_embedded else f'{self.host}:{self.port}'


class Session:
    """Statements, inserts and streams of rows. Raises DestinationError, its `context['code']` ClickHouse's own."""

    def __init__(self, config: ClickHouseConfig) -> None:
        self.config = config
        self._path = _take_path(config) if config.is_embedded else None
        try:
            with explained(config, connecting=True):
                self._client = self._embedded() if config.is_embedded else self._remote()
                if config.is_embedded and config.database != 'default':
                    self._client.command(f'CREATE DATABASE IF NOT EXISTS {quote(config.database)}')
                self._client.database = config.database
                known = self._client.server_settings
                if not known:
                    # Of settings that it does not know of, the driver sends none.
                    raise pa.ArrowInvalid('no settings came')
                self._keep_first = {name: value for name, value in _KEEP_FIRST.items() if name in known}
                self.run('SELECT 1')
        except BaseException:  # whatever it is, no connection stays open
            self.close()
            raise

    _client: Any = None

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        if self._client is not None:
            self._client.close()
        if self._path is not None:
            with _engine_lock:
                _open_paths[self._path] -= 1
        self._client = self._path = None

    def run(self, sql: str) -> list[list[Any]]:
        """The rows of a query."""
        with explained(self.config):
            # One document, since an answer that is cut within its headers passes for an empty one.
            rows: list[list[Any]] = json.loads(self._client.raw_query(sql, fmt='JSONCompact'))['data']
        return rows

    def do(self, sql: str) -> None:
        """A statement that gives no rows."""
        with explained(self.config):
            self._client.command(sql)

    def insert(self, table: str, rows: pa.Table, token: str | None = None, label: str | None = None) -> None:
        """Rows into a quoted table, columns by name, in one statement.

        Of inserts with one `token` the server keeps the first; without one nothing is taken for a repeat. `label` is
        how `system.processes` shows the insert, as the setting log_comment.
        """
        # Servers may be set to drop a block that is like an earlier one; a token that is new tells it from all others.
        settings: dict[str, Any] = {'insert_deduplication_token': token or secrets.token_hex(16)}
        if token is not None:
            settings |= self._keep_first
        if label is not None:
            settings['log_comment'] = label
        columns = ', '.join(quote(name) for name in rows.schema.names)
        codec: Literal['lz4'] | None = 'lz4' if self.config.compress and not self.config.is_embedded else None
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_table(rows)
        # insert_arrow does the same, but takes a column named "x" in quotes for x. A body that is not bytes is never
        # sent a second time by the driver: rows would be there twice.
        with explained(self.config):
            self._client.raw_insert(f'{table} ({columns})', None, sink.getvalue(), settings=settings, fmt='ArrowStream')

    def stream(self, sql: str) -> Generator[pa.RecordBatch, None, None]:
        """The rows of a query as they come, on a connection of their own."""
        sql = f'{sql} SETTINGS output_format_arrow_string_as_string = 0'
        with explained(self.config):
            yield from self._stream_remote(sql) if self._path is None else self._stream_embedded(self._path, sql)

    def _stream_remote(self, sql: str) -> Iterator[pa.RecordBatch]:
        answer = self._client.raw_stream(sql, fmt='ArrowStream')
        try:
            reader = pa.ipc.open_stream(answer)
            yield from reader
        finally:
            answer.close()

    def _stream_embedded(self, path: str, sql: str) -> Iterator[pa.RecordBatch]:
        """Each chunk that the engine gives is a stream of its own; the client would collect them all."""
        import chdb

        handle = chdb.connect(path)  # type: ignore[no-untyped-call, unused-ignore]
        try:
            with handle.send_query(sql, 'ArrowStream') as chunks:
                for chunk in chunks:
                    data = chunk.bytes()
                    if data:
                        yield from pa.ipc.open_stream(io.BytesIO(data))
        finally:
            handle.close()

    def _remote(self) -> Any:
        config = self.config
        return clickhouse_connect.get_client(
            host=config.host,
            port=config.port,
            interface='https' if config.secure else 'http',
            ca_cert=config.ca_cert,
            username=config.username,
            password=config.password or '',
            connect_timeout=config.connect_timeout,
            send_receive_timeout=config.timeout,
            compress=config.compress,
            settings=dict(_SETTINGS),
            # Scans and loads share the client; in a session one would wait for the other.
            autogenerate_session_id=False,
            dedicated_pool=True,
            show_clickhouse_errors='scrub',
        )

    def _embedded(self) -> Any:
        try:
            return clickhouse_connect.get_client(
                interface='chdb', path=self._path, settings=dict(_SETTINGS), show_clickhouse_errors='scrub'
            )
        except ImportError as error:
            raise MissingExtraError('chdb', 'chdb') from error


def quote(*names: str) -> str:
    """Identifiers as ClickHouse writes them, joined by dots. Raises ConfigError for a name that cannot be."""
    for name in names:
        if not name or '\x00' in name:
            raise ConfigError(f'{name!r} is not a name for a table, database or column')
    return '.'.join('`' + name.replace('\\', '\\\\').replace('`', '\\`') + '`' for name in names)


def literal(text: str) -> str:
    """A text as ClickHouse writes it."""
    return "'" + text.replace('\\', '\\\\').replace("'", "\\'") + "'"


def code_of(error: BaseException) -> int | None:
    """ClickHouse's code of a driver's error or of ours; None when the server had no word in it."""
    if isinstance(error, DestinationError):
        code = error.context.get('code')
        return code if isinstance(code, int) else None
    return error.code if isinstance(error, Error) else None


def is_transient(error: BaseException) -> bool:
    """True when it may be gone the next time: by ClickHouse's code; without one, when the connection broke."""
    code = code_of(error)
    if code is not None:
        return code in _TRANSIENT
    return isinstance(error, OperationalError | StreamFailureError | HTTPError | ConnectionError)


@contextmanager
def explained(config: ClickHouseConfig, *, connecting: bool = False) -> Iterator[None]:
    """Errors of the driver as one sentence each, marked as worth trying again or not."""
    try:
        yield
    except (ClickHouseError, HTTPError, ConnectionError) as error:
        code = code_of(error)
        failed = DestinationError(
            f'ClickHouse at {config.where} {_sentence(config, error, code, connecting)}',
            hint=_hint(config, code, connecting),
            code=code,
        )
        failed.retryable = is_transient(error)
        raise failed from error
    except (pa.ArrowInvalid, json.JSONDecodeError) as error:
        broken = DestinationError(f'the answer of ClickHouse at {config.where} broke off', hint='try again')
        broken.retryable = True
        raise broken from error


def _sentence(config: ClickHouseConfig, error: BaseException, code: int | None, connecting: bool) -> str:
    if code is not None:
        told = _clean(config, str(error))
        return f'{"refuses" if connecting else "failed"}: {told} [{code}]'
    if connecting and config.is_embedded:
        return 'cannot be opened: another process has it open, or it cannot be written'
    if is_transient(error):
        return 'cannot be reached' if connecting else 'is gone: the connection broke'
    return f'did not answer as ClickHouse does: {_clean(config, str(error))}'


def _hint(config: ClickHouseConfig, code: int | None, connecting: bool) -> str | None:
    if code is not None:
        return _HINTS.get(code)
    if connecting and config.is_embedded:
        return 'one process at a time may open a folder; a server can be shared'
    if connecting:
        return 'check host, port (8123, with TLS 8443) and secure, and that the server is running'
    return 'a stream goes on from what is committed; look before repeating a plain load'


def _clean(config: ClickHouseConfig, text: str) -> str:
    # The server repeats its prefix when one part of it asks another.
    line = redact(' '.join(text.split())).rpartition('DB::Exception: ')[2]
    line = line if len(line) <= 400 else line[:400] + ' ...'
    # A password that is also a name would only make the sentence unreadable.
    plain = {None, '', config.username, config.database, config.host}
    return line if config.password in plain else line.replace(str(config.password), '***')


def _take_path(config: ClickHouseConfig) -> str:
    """The folder as the engine compares it. Raises DestinationError while this process has another one open."""
    path = config.path or ':memory:'
    path = path if path == ':memory:' else os.path.realpath(path)
    with _engine_lock:
        other = next((open_path for open_path, count in _open_paths.items() if count and open_path != path), None)
        if other is not None:
            raise DestinationError(
                f'this process has the embedded ClickHouse open on {other}, so it cannot open {path}',
                hint='one folder at a time in a process: close the other loader, or use databases of one folder',
            )
        _open_paths[path] += 1
    return path
