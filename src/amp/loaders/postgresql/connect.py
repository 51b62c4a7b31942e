"""Connections to PostgreSQL: opening them, keeping a few, and saying in one sentence what went wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors

from amp.errors import DestinationError, redact

__all__ = [
    'Connection',
    'Connections',
    'PostgreSQLConfig',
    'begin',
    'explained',
    'is_lock_timeout',
    'is_transient',
    'run_on',
]

Connection = psycopg.Connection[tuple[Any, ...]]

# Classes and codes that may be gone the next time: connection, server going down or starting, serialization, deadlock,
# lock timeout, too many connections, out of memory or of locks for the moment.
_TRANSIENT = ('08', '57P0', '40001', '40P01', '55P03', '53300', '53200', '25P03')
_HINTS = {
    '42501': 'the user lacks a privilege: GRANT it, or use another user',
    '53100': 'the disk of the server is full; nothing of the unit was kept',
    '42P01': 'the table is not there: leave out create_table=False to make it',
    '23505': 'the table has a unique index that the rows break; mode=upsert replaces by key',
    '23502': 'a column of the table is NOT NULL and the rows have none for it',
    '22003': 'a number is too large for its column',
    '40P01': 'another transaction held what this one needed; it is tried again',
    '55P03': 'another transaction holds the rows; it is tried again',
}


@dataclass(frozen=True)
class PostgreSQLConfig:
    """Where the database is. `host` may be the folder of a Unix socket.

    `max_connections` bounds what one loader opens, `connect_timeout` and `lock_timeout` are seconds: how long to wait
    for the server, and for rows that another transaction holds. After `timeout` seconds without a sign of the server a
    connection is given up. `application_name` is what the server shows of us.
    """

    host: str
    database: str
    port: int = 5432
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    schema: str = 'public'
    max_connections: int = 10
    sslmode: str | None = None
    connect_timeout: int = 10
    lock_timeout: int = 10
    timeout: int = 1800
    application_name: str = 'amp'


class _Impatient(psycopg.Connection[tuple[Any, ...]]):
    """Gives up on a server that says nothing for too long.

    TCP notices when the other machine is gone, but not while something on the way still answers for it.
    """

    longest_silence: float = 0.0

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """What the driver calls for all that goes over the wire."""
        return super().wait(self._while_heard(gen), *args, **kwargs)

    def _while_heard(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                if ready:
                    heard = now
                elif 0 < self.longest_silence < now - heard:
                    self.close()
                    raise errors.ConnectionTimeout(f'no sign of the server for {self.longest_silence:.0f} s')
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value


class Connections:
    """At most `max_connections` at a time; what was given back is used again."""

    def __init__(self, config: PostgreSQLConfig) -> None:
        self._config = config
        self._free = threading.BoundedSemaphore(max(config.max_connections, 1))
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def take(self) -> Connection:
        """An open connection. Raises DestinationError when there is none to be had."""
        if not self._free.acquire(timeout=self._config.connect_timeout):
            raise _failed(
                f'all {self._config.max_connections} connections to PostgreSQL are in use',
                hint='raise max_connections, or close readers that are done',
                retryable=True,
            )
        try:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            return kept if kept is not None else _dial(self._config)
        except BaseException:  # whatever it is, its place in the pool is free again
            self._free.release()
            raise

    def give(self, connection: Connection) -> None:
        """Take a connection back. One that is in the middle of something is closed, which ends its transaction."""
        in_use = not connection.closed and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        if in_use:
            connection.close()
        with self._lock:
            if not connection.closed:
                self._idle.append(connection)
        self._free.release()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def replace(self, connection: Connection) -> Connection:
        """Another connection in the place of one that is gone."""
        connection.close()
        self.close()
        return _dial(self._config)


def begin(connection: Connection, more: str, config: PostgreSQLConfig) -> None:
    """Open a transaction; locks are waited for `lock_timeout` seconds. `more` are statements of the same message."""
    connection.execute(f"BEGIN; SET LOCAL lock_timeout = '{int(config.lock_timeout)}s'; {more}".encode())


def run_on(connection: Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """One statement; the rows that it gives, none for one that gives no rows."""
    cursor = connection.execute(sql.encode(), list(values) if values else None)
    return cursor.fetchall() if cursor.description is not None else []


def _dial(config: PostgreSQLConfig) -> Connection:
    settings: dict[str, Any] = {
        'user': config.user,
        'password': config.password,
        'sslmode': config.sslmode,
    }
    try:
        connection = _Impatient.connect(
            host=config.host,
            port=config.port,
            dbname=config.database,
            autocommit=True,
            # Placeholders are the server's own ($1), so a percent sign in a name means nothing.
            cursor_factory=psycopg.RawCursor,
            connect_timeout=config.connect_timeout,
            application_name=config.application_name,
            client_encoding='UTF8',
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
            **{key: value for key, value in settings.items() if value is not None},
        )
        connection.longest_silence = config.timeout
    except psycopg.Error as error:
        raise _not_connected(config, error) from None
    return connection


def _not_connected(config: PostgreSQLConfig, error: psycopg.Error) -> DestinationError:
    """Before a session stands the driver has no codes: what the server answered is only in its text."""
    where = f'{config.host}:{config.port}'
    text = _clean(config, str(error)).split('failed: ', 2)[-1].splitlines()[0]
    answered = text.startswith('FATAL')
    busy = any(
        word in text for word in ('too many', 'remaining connection', 'starting up', 'shutting down', 'recovery')
    )
    if error.pgconn is not None and error.pgconn.needs_password:
        return _failed(f'PostgreSQL at {where} asks for a password', hint='set `password` in the configuration')
    if answered and not busy:
        told = text.removeprefix('FATAL:').strip()
        return _failed(f'PostgreSQL at {where} refuses: {told}', hint='check user, password and database')
    if busy:
        return _failed(f'PostgreSQL at {where} takes no connection now: {text}', hint='try again', retryable=True)
    permanent = any(word in text for word in ('sslmode', 'does not support SSL', 'certificate'))
    return _failed(
        f'PostgreSQL at {where} cannot be reached: {text}',
        hint='check sslmode' if permanent else 'check host and port, and that the server is running',
        retryable=not permanent,
    )


def is_transient(error: BaseException) -> bool:
    """True when the error may be gone the next time, by its SQLSTATE; a connection that broke has none."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_TRANSIENT)


@contextmanager
def explained(config: PostgreSQLConfig, table: str | None = None) -> Iterator[None]:
    """Errors of the driver as one sentence each, marked by SQLSTATE as worth trying again or not."""
    try:
        yield
    except psycopg.Error as error:
        told = error.diag.message_primary or (str(error).splitlines() or [type(error).__name__])[0]
        code = error.sqlstate
        known = _HINTS.get(code or '')
        if code is None and isinstance(error, psycopg.OperationalError):
            known = 'the connection broke: a stream goes on from what is committed; look before repeating a plain load'
        where = f'{config.host}:{config.port}/{config.database}'
        raise _failed(
            f'PostgreSQL at {where} failed: {_clean(config, told)}' + (f' [{code}]' if code else ''),
            hint=known,
            retryable=is_transient(error),
            table=table,
            sqlstate=code,
        ) from error


def is_lock_timeout(error: BaseException) -> bool:
    """True when a lock was waited for in vain."""
    return isinstance(error, errors.LockNotAvailable)


def _failed(message: str, *, hint: str | None, retryable: bool = False, **context: object) -> DestinationError:
    error = DestinationError(message, hint=hint, **context)
    error.retryable = retryable
    return error


def _clean(config: PostgreSQLConfig, text: str) -> str:
    text = redact(text)
    # A password that is also a name would only make the sentence unreadable.
    plain = {None, '', config.user, config.database, config.host, config.schema}
    return text if config.password in plain else text.replace(str(config.password), '***')
