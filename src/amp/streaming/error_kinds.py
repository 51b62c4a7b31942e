"""What an error means for trying again: by its type and its code, and by its text only when there is nothing else.

Drivers are not imported: their errors are known by the attributes that carry a code (`sqlstate`, `status_code`,
botocore's `response`, a ClickHouse `code`, Snowflake's `errno`, redis's class names, ...). The tables below are the
documentation's too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from amp.errors import AmpError

__all__ = [
    'ARROW_S3',
    'BOTOCORE',
    'CLASSES',
    'CLICKHOUSE',
    'GRPC',
    'HTTP',
    'SNOWFLAKE',
    'SNOWFLAKE_CLASSES',
    'SQLSTATES',
    'TEXTS',
    'ErrorClassifier',
    'ErrorKind',
    'http_status',
]


class ErrorKind(Enum):
    """`PERMANENT` will be the same the next time; the others may be gone, and say what to do meanwhile."""

    PERMANENT = 'permanent'
    TRANSIENT = 'transient'
    RATE_LIMIT = 'rate limit'
    TIMEOUT = 'timeout'

    @property
    def is_transient(self) -> bool:
        """True when trying again may help."""
        return self is not ErrorKind.PERMANENT


_T, _R, _O = ErrorKind.TRANSIENT, ErrorKind.RATE_LIMIT, ErrorKind.TIMEOUT
_NEVER = ErrorKind.PERMANENT

# By the beginning of the SQLSTATE (PostgreSQL's appendix A).
SQLSTATES = {
    '08': _T,  # connection exceptions
    '40': _T,  # serialization failure, deadlock
    '53': _T,  # insufficient resources: disk, memory, connections
    '55006': _T,  # object in use
    '55P03': _T,  # lock not available
    '57014': _O,  # query canceled, as a statement timeout does
    '57P': _T,  # the server shuts down, or is starting
    '58': _T,  # system errors outside the server
}
# By the name of the gRPC status: what grpcio's errors answer as `code()`.
GRPC = {'UNAVAILABLE': _T, 'ABORTED': _T, 'CANCELLED': _T, 'RESOURCE_EXHAUSTED': _R, 'DEADLINE_EXCEEDED': _O}
HTTP = {408: _O, 425: _T, 429: _R, 500: _T, 502: _T, 503: _R, 504: _O}
BOTOCORE = {
    'Throttling': _R,
    'ThrottlingException': _R,
    'TooManyRequestsException': _R,
    'RequestLimitExceeded': _R,
    'ProvisionedThroughputExceededException': _R,
    'SlowDown': _R,
    'RequestTimeout': _O,
    'RequestTimeoutException': _O,
    'InternalError': _T,
    'ServiceUnavailable': _R,
}
# What Arrow's file systems say of S3, in the one error class that they have; a status it knows no name for is HTTP's.
ARROW_S3 = {
    'NETWORK_CONNECTION': _T,
    'INTERNAL_FAILURE': _T,
    'SERVICE_UNAVAILABLE': _R,
    'SLOW_DOWN': _R,
    'THROTTLING': _R,
    'REQUEST_TIMEOUT': _O,
}
CLICKHOUSE = {
    159: _O,  # TIMEOUT_EXCEEDED
    160: _O,  # TOO_SLOW
    202: _R,  # TOO_MANY_SIMULTANEOUS_QUERIES
    203: _T,  # NO_FREE_CONNECTION
    209: _O,  # SOCKET_TIMEOUT
    210: _T,  # NETWORK_ERROR
    241: _R,  # MEMORY_LIMIT_EXCEEDED
    242: _T,  # TABLE_IS_READ_ONLY
    252: _R,  # TOO_MANY_PARTS
    999: _T,  # KEEPER_EXCEPTION
}
# Numbers of Snowflake and of its driver. An HTTP status is 290000 and the status, in some versions 580000 and the status.
SNOWFLAKE = {
    603: _T,  # an internal error of the server
    604: _O,  # the statement was cancelled
    606: _NEVER,  # no warehouse is chosen, whatever its SQLSTATE says
    610: _T,
    625: _T,  # a lock that did not come in time
    630: _O,  # the statement's or the warehouse's time is over
    250_002: _T,  # the connection is closed
    250_003: _T,  # a request failed
    250_005: _T,  # the server failed
    251_011: _O,  # the connection timed out
    251_012: _T,  # the login may be tried again
    300_002: _T,
    300_010: _T,
    390_111: _T,  # the session is over: the next one is a new one
    390_112: _T,  # the token is over, as above
    390_114: _T,  # the master token is over, as above
}
# Of errors that come with none of these numbers.
SNOWFLAKE_CLASSES = {
    'TooManyRequests': _R,
    'ServiceUnavailableError': _R,
    'RequestTimeoutError': _O,
    'GatewayTimeoutError': _O,
    'InternalServerError': _T,
    'BadGatewayError': _T,
    'OtherHTTPRetryableError': _T,
    'ForbiddenError': _NEVER,
    'NonRetryableTlsError': _NEVER,
    'OperationalError': _T,
}
# By the name of the class or of one that it derives from: builtins, Arrow Flight (whose errors stand for the status of
# gRPC), psycopg, redis-py, requests, urllib3, httpx, botocore.
CLASSES = {
    'FlightUnavailableError': _T,
    'FlightCancelledError': _T,
    'FlightTimedOutError': _O,
    'gaierror': _T,
    'TimeoutError': _O,
    'TimeoutException': _O,
    'Timeout': _O,
    'ReadTimeoutError': _O,
    'ConnectTimeoutError': _O,
    'ConnectionTimeout': _O,
    'BusyLoadingError': _T,
    'TryAgainError': _T,
    'ClusterDownError': _T,
    'MaxConnectionsError': _R,
    'ConnectionError': _T,
    'ConnectError': _T,
    'NetworkError': _T,
    'ProtocolError': _T,
    'ChunkedEncodingError': _T,
    'IncompleteRead': _T,
    'EndpointConnectionError': _T,
    'InterruptedError': _T,
}
_OUR_OWN = {'amp.errors'}
# Drivers also have words for "none", such as `n/a`.
_SQLSTATE = re.compile(r'[0-9A-Z]{5}')
# A login that is refused has 08001 or 08004.
_SNOWFLAKE_STATES = ('08003', '08006', '40')

# The last resort, for errors that are nothing but text. Whole words: block 14290123 is not a 429.
TEXTS = (
    (_R, r'\b429\b|\btoo many requests\b|\brate.?limit(ed|ing|s)?(\b|_)|\bthrottl(e|ed|ing)\b|\bslow ?down\b'),
    (_O, r'\btime(d[ -])?[ -]?out\b|\b408\b|\b504\b|\bdeadline exceeded\b'),
    (_T, r'\b50[23]\b|\bservice unavailable\b|\btemporar(y|ily)\b|\btry again\b|\bbroken pipe\b'),
    (_T, r'\binternal server error\b|\b(network|host)( is)? unreachable\b|\bno route to host\b'),
    (_T, r'\bconnection (reset|refused|aborted|closed|lost|error|was closed)\b|\bclosed the connection\b'),
    (_T, r'\bdeadlock\b|\bcould not serialize\b|\bserver is starting\b'),
)
_HTTP_STATUS = re.compile(r'\bHTTP status (\d{3})\b')
_ARROW_S3 = re.compile(r'\bAWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))? during \w+ operation: ')
_TEXTS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in TEXTS)


class ErrorClassifier:
    """Tells what an error, or nothing but its text, means for trying again."""

    @staticmethod
    def classify(error: BaseException | str | None) -> ErrorKind:
        """The kind of an error; what is not known is permanent."""
        if error is None or error == '':
            return ErrorKind.PERMANENT
        if isinstance(error, str):
            return _by_text(error)
        for cause in _chain(error):
            kind = _by_code(cause)
            if kind is not None:
                return kind
        if isinstance(error, AmpError):
            return ErrorKind.TRANSIENT if error.retryable else ErrorKind.PERMANENT
        # An error of a class of its own has said by that what it is; only bare exceptions are read.
        return _by_text(str(error)) if type(error) in {Exception, RuntimeError, OSError} else ErrorKind.PERMANENT

    @staticmethod
    def is_transient(error: BaseException | str | None) -> bool:
        """True when trying again may help."""
        return ErrorClassifier.classify(error).is_transient


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it says it was raised from; urllib keeps that as the reason."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        reason = getattr(at, 'reason', None)
        at = at.__cause__ or (reason if isinstance(reason, BaseException) else None)


def _by_code(error: BaseException) -> ErrorKind | None:
    package = type(error).__module__.partition('.')[0]
    if package in _DRIVERS:
        return _DRIVERS[package](error)
    state = getattr(error, 'sqlstate', None) or getattr(error, 'pgcode', None)
    if isinstance(state, str) and _SQLSTATE.fullmatch(state):
        return next((kind for prefix, kind in SQLSTATES.items() if state.startswith(prefix)), ErrorKind.PERMANENT)
    response = getattr(error, 'response', None)
    if isinstance(response, dict):
        code = response.get('Error', {}).get('Code')
        status = response.get('ResponseMetadata', {}).get('HTTPStatusCode')
        return BOTOCORE.get(code) or HTTP.get(status, ErrorKind.PERMANENT)
    told = error.context.get('status') if isinstance(error, AmpError) else None
    of_urllib = getattr(error, 'code', None) if package == 'urllib' else None
    for status in (getattr(error, 'status_code', None), getattr(response, 'status_code', None), of_urllib, told):
        if isinstance(status, int):
            return HTTP.get(status, ErrorKind.PERMANENT)
    if type(error) is OSError and (of_s3 := _ARROW_S3.search(str(error))) is not None:
        return HTTP.get(int(of_s3[2] or 0)) or ARROW_S3.get(of_s3[1], ErrorKind.PERMANENT)
    return None if type(error).__module__ in _OUR_OWN else _first(CLASSES.get(c.__name__) for c in type(error).__mro__)


def _of_clickhouse(error: BaseException) -> ErrorKind | None:
    code = getattr(error, 'code', None)
    if isinstance(code, int):
        return CLICKHOUSE.get(code, ErrorKind.PERMANENT)
    # What answered was something before the server; the driver keeps no more of it than this.
    said = _HTTP_STATUS.search(str(error))
    return HTTP.get(int(said[1]), ErrorKind.PERMANENT) if said is not None else None


def _of_snowflake(error: BaseException) -> ErrorKind:
    code = getattr(error, 'errno', None)
    if isinstance(code, int):
        kind = SNOWFLAKE.get(code)
        if kind is not None:
            return kind
        status = http_status(code)
        if status is not None:
            return HTTP.get(status, ErrorKind.PERMANENT)
    kind = _first(SNOWFLAKE_CLASSES.get(c.__name__) for c in type(error).__mro__)
    if kind is not None:
        return kind
    state = str(getattr(error, 'sqlstate', None) or '')
    return ErrorKind.TRANSIENT if state.startswith(_SNOWFLAKE_STATES) else ErrorKind.PERMANENT


def http_status(code: int) -> int | None:
    """The HTTP status that a number of Snowflake's driver stands for; None when it stands for something else."""
    base, status = divmod(code, 1_000)
    return status if base in {290, 580} and status else None


def _of_grpc(error: BaseException) -> ErrorKind | None:
    code = getattr(error, 'code', None)
    name = getattr(code() if callable(code) else code, 'name', None)
    return None if name is None else GRPC.get(name, ErrorKind.PERMANENT)


_DRIVERS: dict[str, Callable[[BaseException], ErrorKind | None]] = {
    'clickhouse_connect': _of_clickhouse,
    'grpc': _of_grpc,
    'snowflake': _of_snowflake,
}


def _first(kinds: Iterable[ErrorKind | None]) -> ErrorKind | None:
    return next((kind for kind in kinds if kind is not None), None)


def _by_text(text: str) -> ErrorKind:
    return next((kind for kind, pattern in _TEXTS if pattern.search(text)), ErrorKind.PERMANENT)
