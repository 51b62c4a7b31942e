"""What Amp's Flight SQL looks like on the wire: the command, the headers, the address of a server. Pure functions.

Amp knows one Flight SQL command, `CommandStatementQuery` inside a `google.protobuf.Any`. Both messages are nothing but
length-delimited fields, so they are written here by hand and no protobuf runtime is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from amp.errors import ConfigError, ProtocolError, redact
from amp.streaming.types import ResumeWatermark

__all__ = [
    'AUTHORIZATION_HEADER',
    'DEFAULT_PORT',
    'RESUME_HEADER',
    'SCHEMES',
    'STREAM_HEADER',
    'Endpoint',
    'Headers',
    'authorization_headers',
    'decode_statement_query',
    'encode_statement_query',
    'parse_endpoint',
    'query_headers',
]

Headers = list[tuple[str, str]]

STATEMENT_QUERY_TYPE = 'type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery'
STREAM_HEADER = 'amp-stream'
RESUME_HEADER = 'amp-resume'
AUTHORIZATION_HEADER = 'authorization'
DEFAULT_PORT = 1602

_LOOPBACK = {'localhost', '127.0.0.1', '::1'}
SCHEMES = {'grpc': False, 'grpc+tcp': False, 'grpc+tls': True}
_MEANT = {'http': 'grpc', 'https': 'grpc+tls', 'grpcs': 'grpc+tls', 'tls': 'grpc+tls', 'tcp': 'grpc', 'amp': 'grpc'}

# Wire types of protobuf: the low three bits of a field's key.
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MOST_VARINT_BYTES = 10


def encode_statement_query(sql: str) -> bytes:
    """The `cmd` of a FlightDescriptor that asks for `sql`."""
    statement = _field(1, sql.encode())
    return _field(1, STATEMENT_QUERY_TYPE.encode()) + _field(2, statement)


def decode_statement_query(data: bytes) -> str:
    """The SQL inside such a `cmd`. Raises ValueError that names what is wrong with it."""
    wrapper = dict(_length_delimited_fields(data, 'google.protobuf.Any'))
    if 1 not in wrapper:
        raise ValueError('not a google.protobuf.Any: it has no type_url')
    type_url = _text(wrapper[1], 'the type_url')
    if type_url != STATEMENT_QUERY_TYPE:
        raise ValueError(f'unsupported flight descriptor command: {type_url}')
    statement = dict(_length_delimited_fields(wrapper.get(2, b''), 'CommandStatementQuery'))
    return _text(statement.get(1, b''), 'the query')


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int, message: str) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError(f'not a {message}: a number at byte {at} has no end')


def _length_delimited_fields(data: bytes, message: str) -> Iterator[tuple[int, bytes]]:
    """Field numbers and values; fields of other wire types (none that Amp knows) are stepped over."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at, message)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError(f'not a {message}: field number 0')
        if wire_type == _VARINT:
            _, at = _read_varint(data, at, message)
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, at = _read_varint(data, at, message)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise ValueError(f'not a {message}: field {number} has the unknown wire type {wire_type}')
        if at + size > len(data):
            raise ValueError(f'not a {message}: field {number} says {size} bytes and {len(data) - at} are left')
        if wire_type == _LENGTH_DELIMITED:
            yield number, data[at : at + size]
        at += size


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'{name} is not UTF-8: {error}') from error


def authorization_headers(token: str | None) -> Headers:
    """The bearer token, for every call; nothing without one. Raises ConfigError for a token no header can carry."""
    if not token:
        return []
    if not (token.isascii() and token.isprintable()) or token != token.strip():
        raise ConfigError('the auth token holds a character that no header can carry', hint='check for a line break')
    return [(AUTHORIZATION_HEADER, f'Bearer {token}')]


def query_headers(
    token: str | None = None, *, streaming: bool | None = None, resume: ResumeWatermark | None = None
) -> Headers:
    """The headers of GetFlightInfo; `streaming=None` leaves the choice to the SQL.

    Raises ProtocolError for a position whose ranges have no hashes: the server would ignore it and start at the first
    block.
    """
    headers = authorization_headers(token)
    if streaming is not None:
        headers.append((STREAM_HEADER, 'true' if streaming else 'false'))
    if resume:
        if any(block_range.hash is None for block_range in resume.ranges):
            ranges = ', '.join(map(str, resume.ranges))
            raise ProtocolError(f'a position without block hashes cannot be resumed from: {ranges}')
        headers.append((RESUME_HEADER, resume.to_json()))
    return headers


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens. `str()` is the URL a user would type, `location` what pyarrow connects to."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False

    def __str__(self) -> str:
        return f'{"grpc+tls" if self.tls else "grpc"}://{self._authority}'

    @property
    def location(self) -> str:
        """A Flight location URI."""
        return f'{"grpc+tls" if self.tls else "grpc+tcp"}://{self._authority}'

    @property
    def is_loopback(self) -> bool:
        """True for this machine itself."""
        return self.host in _LOOPBACK

    @property
    def _authority(self) -> str:
        return f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}'


def parse_endpoint(url: str) -> Endpoint:
    """The server that `url` names: `grpc://host[:port]`, or `grpc+tls://` with TLS; the port defaults to 1602.

    Raises ConfigError that says what is wrong and, where it can be guessed, what was meant.
    """
    text = url.strip()
    if '://' not in text:
        raise ConfigError(f'{redact(url)!r} is not the URL of an Amp server', hint=_example(text))
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(''), None, None
    if not parts.scheme:
        # Neither chained nor told: the parser's error quotes what it takes for a port, and that may be a password.
        shown = f'what follows {text.partition("://")[0]}://' if '@' in text else repr(text)
        raise ConfigError(f'{shown} is not a URL with a host and a port', hint=_example())
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f'{redact(url)!r} has the scheme {parts.scheme!r}, which is not one of an Amp server',
            hint=_scheme_hint(parts, host, port),
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f'{redact(url)!r} has a user in it', hint='give the token as auth_token= or AMP_AUTH_TOKEN')
    if not host:
        raise ConfigError(f'{redact(url)!r} names no host', hint=_example())
    if parts.path not in {'', '/'} or parts.query or parts.fragment:
        raise ConfigError(f'{redact(url)!r} has something after the port', hint='an Amp URL is scheme, host and port')
    if port == 0:
        raise ConfigError(f'{redact(url)!r} names port 0', hint=f'leave it out for {DEFAULT_PORT}')
    return Endpoint(host, port if port is not None else DEFAULT_PORT, SCHEMES[parts.scheme])


def _example(host: str = '') -> str:
    plain = host.rstrip('/')
    if plain and '@' not in plain and '/' not in plain and not plain.startswith(':') and ' ' not in plain:
        return f'did you mean grpc://{plain} ?'
    return f'for example grpc://localhost:{DEFAULT_PORT}'


def _scheme_hint(parts: SplitResult, host: str | None, port: int | None) -> str:
    import difflib

    guesses = difflib.get_close_matches(parts.scheme, ['grpc+tls', 'grpc'], n=1, cutoff=0.5)
    meant = _MEANT.get(parts.scheme) or (guesses[0] if guesses else None)
    if meant is None or not host:
        return 'an Amp URL begins with grpc:// or, with TLS, grpc+tls://'
    endpoint = Endpoint(host, port or DEFAULT_PORT, SCHEMES[meant])
    return f'did you mean {endpoint} ?'
