"""The way to a Redis server: a client for control, plain connections for rows, and errors as sentences."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis import exceptions

from amp.errors import ConfigError, DestinationError, redact
from amp.loaders.redis.resp import Commands, Literal, command

__all__ = ['FOREIGN', 'Answers', 'Bulk', 'Place', 'Server', 'Wire', 'explained']

_NEVER_MIND = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
_LONGEST_SILENCE = 120.0
_CONNECT_SECONDS = 10.0
_WRONG_TYPE = ('WRONGTYPE', 'wrong Redis type')

FOREIGN = object()
"""In the place of an answer: the key holds something that is not ours."""


@dataclass(frozen=True)
class Place:
    """Where a server is. `cluster`: it is one node of a cluster."""

    host: str
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    cluster: bool = False

    def __str__(self) -> str:
        return f'{self.host}:{self.port}'


class Server:
    """A client for control, and new connections to where a key lives."""

    def __init__(self, place: Place) -> None:
        self.place = place
        options: dict[str, Any] = {
            'host': place.host,
            'port': place.port,
            'username': place.username,
            'password': place.password,
            'ssl': place.tls,
            'socket_timeout': _LONGEST_SILENCE,
            'socket_connect_timeout': _CONNECT_SECONDS,
            'protocol': 2,
        }
        if place.tls and place.tls_ca is not None:
            options['ssl_ca_certs'] = place.tls_ca
        with explained(place):
            if place.tls:
                _shake_hands(place)
            if place.cluster:
                if place.db:
                    raise ConfigError('a Redis cluster has one database only', hint='leave out db')
                self.client: Any = redis.RedisCluster(**options)
            else:
                self.client = redis.Redis(db=place.db, **options)
            self.client.ping()

    def wire(self, key: str) -> Wire:
        """A connection of one's own to the server that has a key."""
        with explained(self.place):
            pool = self.client.connection_pool if not self.place.cluster else self._pool_of(key)
            connection = pool.connection_class(**pool.connection_kwargs)
            connection.connect()
        return Wire(self.place, connection)

    def has_command(self, name: str) -> bool:
        """True when the server knows a command, by its modules or by itself."""
        wire = self.wire('_amp')
        try:
            told = wire.call('COMMAND', 'INFO', name)
        finally:
            wire.close()
        return bool(told) and told[0] is not None

    def run_id(self) -> str:
        """What tells this run of the server from another one: numbers of clients begin anew with it."""
        with explained(self.place):
            wire = self.wire('_amp')
            try:
                told = wire.call('INFO', 'server')
            finally:
                wire.close()
        text = told.decode() if isinstance(told, bytes) else str(told)
        lines = dict(line.split(':', 1) for line in text.splitlines() if ':' in line)
        return lines.get('run_id', '')

    def close(self) -> None:
        """Close the client."""
        with suppress(*_NEVER_MIND):
            self.client.close()

    def _pool_of(self, key: str) -> Any:
        node = self.client.get_node_from_key(key)
        return self.client.get_redis_connection(node).connection_pool


class Wire:
    """One connection, used by one thread at a time. Raises DestinationError for whatever the server refuses."""

    def __init__(self, place: Place, connection: Any) -> None:
        self._place = place
        self._connection = connection

    @property
    def is_alive(self) -> bool:
        """False when the server has hung up: nothing else can be waiting on a connection that is idle."""
        try:
            return not self._connection.can_read(timeout=0)
        except _NEVER_MIND:
            return False

    def call(self, *arguments: Literal) -> Any:
        """Send one command and wait for its answer."""
        with explained(self._place):
            self._connection.send_packed_command([command(*arguments)], check_health=False)
            return self._connection.read_response()

    def calls(self, commands: Commands) -> list[Any]:
        """Send commands together; their answers."""
        with explained(self._place):
            self._connection.send_packed_command(commands.data, check_health=False)
            return [self._connection.read_response() for _ in range(commands.count)]

    def peek(self, commands: Commands) -> list[Any]:
        """The same for commands that look into keys; FOREIGN for a key that holds something of another type."""
        with explained(self._place):
            self._connection.send_packed_command(commands.data, check_health=False)
            return [self._peek() for _ in range(commands.count)]

    def _peek(self) -> Any:
        try:
            return self._connection.read_response()
        except exceptions.ResponseError as error:
            if not any(told in str(error) for told in _WRONG_TYPE):
                raise
            return FOREIGN

    def transact(self, commands: Commands) -> bool:
        """Run commands as one transaction; False when something that was watched has changed."""
        with explained(self._place):
            data = [command('MULTI'), *commands.data, command('EXEC')]
            self._connection.send_packed_command(data, check_health=False)
            answers = Answers(self.socket)
            # The answer to MULTI, one `QUEUED` a command, and the first line of that to EXEC.
            head = answers.lines(commands.count + 2)
            refused = next((line for line in head if line.startswith(b'-')), None)
            if refused is not None:
                raise _error(refused)
            if head[-1] in {b'*-1', b'_'}:
                return False
            answers.wait(commands.count + 2 + commands.lines)
            failed = answers.first_error
        if failed is not None:
            # What follows the error is still on its way.
            self.close()
            raise DestinationError(
                f'Redis ran a transaction of which a part failed: {failed.decode(errors="replace")[1:200]}',
                hint='a key of the table holds something else: use another table or key_pattern',
            )
        return True

    @property
    def socket(self) -> socket.socket:
        """The socket under the connection: redis-py has no other way to send and count without parsing."""
        own: socket.socket = self._connection._sock
        return own

    def close(self) -> None:
        """Hang up."""
        with suppress(*_NEVER_MIND):
            self._connection.disconnect()


class Answers:
    """Answers of a server, counted by lines."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._rest = b''
        self.count = 0
        self.nulls = 0
        self.first_error: bytes | None = None

    def lines(self, count: int) -> list[bytes]:
        """The first lines, as they are."""
        kept: list[bytes] = []
        while self.count < count:
            kept.append(self._receive())
        return b''.join(kept).split(b'\r\n')[:count]

    def wait(self, count: int) -> None:
        """Until so many lines are there, or one is an error."""
        while self.count < count and self.first_error is None:
            self._receive()

    def _receive(self) -> bytes:
        data = self._source.recv(1 << 18)
        if not data:
            raise exceptions.ConnectionError('Connection closed by server.')
        block = self._rest + data
        end = block.rfind(b'\r\n') + 2 if b'\r\n' in block else 0
        whole, self._rest = block[:end], block[end:]
        self.count += whole.count(b'\r\n')
        self.nulls += whole.count(b'$-1\r\n')
        if self.first_error is None and (whole.startswith(b'-') or b'\r\n-' in whole):
            at = 0 if whole.startswith(b'-') else whole.index(b'\r\n-') + 2
            self.first_error = whole[at : whole.index(b'\r\n', at)]
        return whole


class Bulk:
    """Commands on their way without a transaction: a few lots are sent before the answers to the first are waited for.

    So the server always has something to do, and one thread does both: a connection under TLS allows no two at once.
    """

    _LOTS_AHEAD = 3

    def __init__(self, wire: Wire) -> None:
        self.client_id = int(wire.call('CLIENT', 'ID'))
        self._wire = wire
        self._answers = Answers(wire.socket)
        self._wanted = 0
        self._ahead: deque[int] = deque()

    @property
    def nulls(self) -> int:
        """How many answers were nothing: for SET NX, keys that were there already."""
        return self._answers.nulls

    def send(self, commands: Commands) -> None:
        """Send; raises what an earlier command was refused with."""
        with explained(self._wire._place):
            self._wire._connection.send_packed_command(commands.data, check_health=False)
        self._wanted += commands.lines
        self._ahead.append(self._wanted)
        if len(self._ahead) > self._LOTS_AHEAD:
            self._catch_up(self._ahead.popleft())

    def finish(self) -> None:
        """Wait for every answer."""
        self._catch_up(self._wanted)

    def close(self) -> None:
        """Hang up."""
        self._wire.close()

    def _catch_up(self, count: int) -> None:
        with explained(self._wire._place):
            self._answers.wait(count)
            if self._answers.first_error is not None:
                raise _error(self._answers.first_error)


def _shake_hands(place: Place) -> None:
    """See that the port speaks TLS: redis-py waits for it as for the longest command. Raises OSError, DestinationError."""
    context = ssl.create_default_context()
    if place.tls_ca is not None:
        context.load_verify_locations(place.tls_ca)
    with socket.create_connection((place.host, place.port), _CONNECT_SECONDS) as plain:
        try:
            context.wrap_socket(plain, server_hostname=place.host).close()
        except ssl.SSLCertVerificationError:
            raise
        except (ssl.SSLError, TimeoutError) as error:
            told = DestinationError(
                f'Redis at {place} does not speak TLS: {redact(str(error))}',
                hint='is it a plain port? leave out tls, or write redis:// for rediss://',
            )
            raise told from error


def _error(line: bytes) -> redis.RedisError:
    """What a line says, with the class that redis-py would give it."""
    text = line.decode(errors='replace').removeprefix('-')
    code = text.split(' ', 1)[0]
    known = {
        'OOM': exceptions.OutOfMemoryError,
        'READONLY': exceptions.ReadOnlyError,
        'NOAUTH': exceptions.AuthenticationError,
        'WRONGPASS': exceptions.AuthenticationError,
        'NOPERM': exceptions.NoPermissionError,
        'LOADING': exceptions.BusyLoadingError,
    }
    kind: type[redis.RedisError] = known.get(code, exceptions.ResponseError)
    error: redis.RedisError = kind(text)
    return error


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Errors of the driver as sentences."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise _told(place, error) from error


def _told(place: Place, error: Exception) -> DestinationError:
    said = redact(str(error)) or type(error).__name__
    if 'CERTIFICATE_VERIFY_FAILED' in said:
        return DestinationError(
            f'Redis at {place} shows no certificate that is trusted here: {said}',
            hint='name who signed it with tls_ca, and the host as its certificate does',
        )
    code = said.split(' ', 1)[0].rstrip(':')
    for kinds, codes, sentence, hint, passes in _SENTENCES:
        if isinstance(error, kinds) and (not codes or code in codes):
            told = DestinationError(sentence.format(place=place, said=said), hint=hint)
            told.retryable = passes
            return told
    return DestinationError(f'Redis at {place} refused: {said}')


_SENTENCES: tuple[tuple[Any, set[str], str, str, bool], ...] = (
    (
        exceptions.OutOfMemoryError,
        set(),
        'Redis at {place} is out of memory: {said}',
        'nothing of the unit counts; raise maxmemory, make room, or set a ttl',
        False,
    ),
    (
        exceptions.ReadOnlyError,
        set(),
        'Redis at {place} is a replica, which cannot be written',
        'connect to its primary',
        True,
    ),
    (
        (exceptions.AuthenticationError, exceptions.NoPermissionError),
        set(),
        'Redis at {place} does not let this user in, or not do this: {said}',
        'check user, password and ACL',
        False,
    ),
    (
        exceptions.BusyLoadingError,
        set(),
        'Redis at {place} is loading its data',
        'it will be ready soon',
        True,
    ),
    (
        exceptions.ResponseError,
        {'NOAUTH', 'WRONGPASS', 'NOPERM'},
        'Redis at {place} does not let this user in, or not do this: {said}',
        'check user, password and ACL',
        False,
    ),
    (
        exceptions.ResponseError,
        {'OOM'},
        'Redis at {place} is out of memory: {said}',
        'nothing of the unit counts; raise maxmemory, make room, or set a ttl',
        False,
    ),
    (
        exceptions.ResponseError,
        {'MISCONF'},
        'Redis at {place} takes no writes because it cannot save them: {said}',
        'make room on its disk, or see its log',
        False,
    ),
    (
        exceptions.ResponseError,
        {'MASTERDOWN', 'TRYAGAIN', 'CLUSTERDOWN', 'LOADING', 'BUSY'},
        'Redis at {place} cannot take writes now: {said}',
        'it may pass',
        True,
    ),
    (
        (exceptions.ConnectionError, exceptions.TimeoutError, OSError),
        set(),
        'the connection to Redis at {place} failed: {said}',
        'is the server up, and reachable from here?',
        True,
    ),
)
