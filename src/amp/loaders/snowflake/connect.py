"""Sessions of Snowflake: logging in, keeping a few, and saying in one sentence what went wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import snowflake.connector
from snowflake.connector import errors

from amp.errors import DestinationError, redact
from amp.loaders.snowflake.config import SnowflakeConnectionConfig
from amp.streaming.error_kinds import ErrorClassifier, http_status

__all__ = ['Session', 'Sessions', 'explained', 'is_transient']

_LONGEST_SILENCE = 60
_HINTS = {
    625: 'another transaction holds the table; it is tried again',
    606: 'name a warehouse that the role may use: `warehouse` in the configuration',
    2003: 'the table, stage or schema is not there, or the role may not see it',
    2043: 'the object is not there, or the role may not see it',
    3001: 'the role lacks a privilege: GRANT it, or use another role',
    100038: 'a value does not fit its column',
    100035: 'a value does not fit its column',
    390100: 'check user and password',
    390144: 'the key does not fit: check user, account and private_key',
    390303: 'the token is not the right one, or is over: get another',
}


def dial(config: SnowflakeConnectionConfig, *, autocommit: bool) -> Any:
    """A connection of the driver. Raises DestinationError."""
    silence = min(config.network_timeout, _LONGEST_SILENCE)
    try:
        connection = snowflake.connector.connect(
            **config.login(),
            paramstyle='qmark',
            autocommit=autocommit,
            login_timeout=config.login_timeout,
            network_timeout=config.network_timeout,
            # A statement that runs longer is asked for again and again: each answer comes soon.
            socket_timeout=silence,
            client_session_keep_alive=True,
            application=config.application,
            session_parameters={
                'TIMEZONE': 'UTC',
                'LOCK_TIMEOUT': config.lock_timeout,
                'CLIENT_OUT_OF_BAND_TELEMETRY_ENABLED': False,
            },
        )
        _bound_uploads(connection, silence)
        with connection.cursor() as cursor:
            # A login with the name of a schema that is not there succeeds.
            cursor.execute('SELECT CURRENT_SCHEMA()')
            current = cursor.fetchone()
    except errors.Error as error:
        raise _not_connected(config, error) from None
    if current == (None,):
        connection.close()
        raise _failed(
            f'Snowflake has no schema {config.database}.{config.schema}, or this user may not see it',
            hint='check database, schema and role',
        )
    return connection


def _bound_uploads(connection: Any, silence: int) -> None:
    """Let no request of the driver, nor one to a stage, wait longer than so many seconds for a byte.

    The driver has no option for stages: it waits ten minutes for each answer to an upload.
    """
    sessions = getattr(connection.rest, 'session_manager', None)
    if sessions is None:  # older drivers have none
        return
    make_adapter = sessions.adapter_factory

    def make_bounded(*args: Any, **kwargs: Any) -> Any:
        adapter = make_adapter(*args, **kwargs)
        send = adapter.send

        def send_bounded(request: Any, *, timeout: Any = None, **options: Any) -> Any:
            connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
            return send(request, timeout=(connect, silence if read is None else min(read, silence)), **options)

        adapter.send = send_bounded
        return adapter

    sessions.adapter_factory = make_bounded
    # Those of the login were made without.
    sessions.close()


class Session:
    """One session. Statements go out one after the other; `?` stands for a value."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.broken = False

    @property
    def connection(self) -> Any:
        """The driver's connection."""
        return self._connection

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement; the rows that it gives."""
        with self._cursor() as cursor:
            cursor.execute(sql, list(values) or None)
            return list(cursor.fetchall())

    def named(self, sql: str) -> list[dict[str, Any]]:
        """One statement; the rows that it gives, by the names of their columns in lower case."""
        with self._cursor() as cursor:
            cursor.execute(sql)
            names = [column[0].lower() for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def tables(self, sql: str) -> Iterator[pa.Table]:
        """One query; its rows as Arrow, as they are fetched."""
        with self._cursor() as cursor:
            cursor.execute(sql)
            yield from cursor.fetch_arrow_batches()

    def count(self, sql: str, values: Sequence[Any] = ()) -> int:
        """One statement that changes rows; how many."""
        with self._cursor() as cursor:
            cursor.execute(sql, list(values) or None)
            return int(cursor.rowcount or 0)

    def rollback(self) -> None:
        """End the transaction that is open. One that cannot be ended by words ends with its session."""
        try:
            self.run('ROLLBACK')
        except errors.Error:
            self.broken = True

    def close(self) -> None:
        """Log out; never raises for a server that is gone."""
        self.broken = True
        with suppress(errors.Error, OSError):
            self._connection.close(retry=False)

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        cursor = self._connection.cursor()
        try:
            yield cursor
        except errors.Error as error:
            # What is left open by a failure of the connection, a new session will not see.
            self.broken |= is_transient(error) and error.errno != 625
            raise
        finally:
            cursor.close()


class Sessions:
    """At most `pool_size` at a time; what was given back is used again."""

    def __init__(self, config: SnowflakeConnectionConfig) -> None:
        self._config = config
        self._free = threading.BoundedSemaphore(config.pool_size)
        self._idle: list[Session] = []
        self._lock = threading.Lock()

    def open(self, *, autocommit: bool) -> Session:
        """A session outside the pool; those in it do not commit by themselves."""
        return Session(dial(self._config, autocommit=autocommit))

    def take(self) -> Session:
        """A session; waits for one to be given back. Raises DestinationError when there is none to be had."""
        if not self._free.acquire(timeout=self._config.network_timeout):
            raise _failed(f'all {self._config.pool_size} sessions are in use', hint='raise pool_size', retryable=True)
        try:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            return kept if kept is not None else self.open(autocommit=False)
        except BaseException:  # whatever it is, its place in the pool is free again
            self._free.release()
            raise

    def give(self, session: Session) -> None:
        """Take a session back; a broken one is closed."""
        if session.broken:
            session.close()
        else:
            with self._lock:
                self._idle.append(session)
        self._free.release()

    @contextmanager
    def borrowed(self) -> Iterator[Session]:
        """A session for a while."""
        session = self.take()
        try:
            yield session
        finally:
            self.give(session)

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()


def is_transient(error: BaseException) -> bool:
    """True when the error may be gone the next time: by the driver's class, its code or its SQLSTATE, never by text."""
    return isinstance(error, errors.Error) and ErrorClassifier.is_transient(error)


@contextmanager
def explained(config: SnowflakeConnectionConfig, table: str | None = None) -> Iterator[None]:
    """Errors of the driver as one sentence each, marked as worth trying again or not."""
    try:
        yield
    except errors.Error as error:
        code = getattr(error, 'errno', None)
        raise _failed(
            f'Snowflake at {config.place} failed: {_told(config, error)}',
            hint=_HINTS.get(code or 0)
            or ('the connection broke' if isinstance(error, errors.OperationalError) else None),
            retryable=is_transient(error),
            table=table,
            code=code,
            sqlstate=getattr(error, 'sqlstate', None),
        ) from error


def _not_connected(config: SnowflakeConnectionConfig, error: Any) -> DestinationError:
    code = getattr(error, 'errno', None)
    # The driver says OperationalError when nothing answered, DatabaseError when Snowflake said no; and what answers 503
    # is the service, or what stands before it.
    unreachable = isinstance(error, errors.OperationalError)
    transient = is_transient(error)
    hint = _HINTS.get(code or 0, 'it is busy or away: try again later' if transient else 'check user and login')
    return _failed(
        f'Snowflake at {config.account} {"cannot be reached" if unreachable else "refuses"}: {_told(config, error)}',
        hint='check account, host and network' if unreachable else hint,
        retryable=transient,
        code=code,
        status=http_status(code or 0),
    )


def _told(config: SnowflakeConnectionConfig, error: Any) -> str:
    text = str(getattr(error, 'raw_msg', None) or getattr(error, 'msg', None) or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = redact(' '.join(lines[:2]) if lines else type(error).__name__)
    for secret in (config.password, config.token, config.private_key, config.private_key_passphrase):
        # A secret that is also a name would only make the sentence unreadable.
        if secret and secret not in {config.user, config.database, config.account, config.schema}:
            told = told.replace(secret, '***')
    return told


def _failed(message: str, *, hint: str | None, retryable: bool = False, **context: object) -> DestinationError:
    error = DestinationError(message, hint=hint, **context)
    error.retryable = retryable
    return error
