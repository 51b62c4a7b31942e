"""What a failure of pyarrow.flight means in amp's error tree: one sentence, what to do, and the facts.

The type decides first. Text decides only where types cannot: Amp reports an ordinary mistake in the SQL (an unknown
table or column) as INTERNAL, and gRPC reports a lost connection under several codes.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.flight as fl

from amp.errors import AuthError, ConnectError, ProtocolError, QueryError, SourceError, redact
from amp.flight.protocol import Endpoint

__all__ = ['FLIGHT_ERRORS', 'from_flight', 'server_text']

FLIGHT_ERRORS = (fl.FlightError, pa.ArrowException, OSError)

_DEBUG_TAIL = re.compile(r'\.? gRPC client debug context: .*', re.DOTALL)
_DETAIL_TAIL = re.compile(
    r'\.? Detail: (?:Python exception|Internal|Failed|TimedOut|Cancelled|Unauthenticated|Unauthorized|Unavailable)\b.*',
    re.DOTALL,
)
_PREFIX = re.compile(
    r'^(?:Unknown: )?(?:Flight|gRPC) (?:returned (?P<code>[a-z -]+?) error, with|RPC failed with) message: ?'
)
_REPEATED = re.compile(r'^(?P<text>[^:|]+) \| Caused by: (?P=text)(?: -> |$)')
_MOST_TEXT = 1000

# Mistakes in a query that the server tags as its own fault.
_PLANNING = re.compile(
    r'failed to (?:infer SQL output schema|plan SQL query|attach plan to query context|compute common ranges)'
    r'|error creating physical catalog'
    r'|query plan violates read-only constraints'
    r'|non-incremental quer'
    r'|cross-network join|multiple networks in dependency tree'
    r"|expected cursor for network '",
    re.IGNORECASE,
)
_DROPPED = re.compile(
    r'RST_STREAM|GOAWAY|Stream removed|Socket closed|Connection reset|Broken pipe|too_many_pings|end of TCP stream'
    r'|transport (?:error|closed|is closing)|Server never sent a data message',
    re.IGNORECASE,
)
_UNKNOWN_TABLE = re.compile(
    r'dataset not found|table .{1,200} not found|not found in dataset|has not been synced|resolve table', re.IGNORECASE
)
_UNKNOWN_COLUMN = re.compile(r'No field named', re.IGNORECASE)
_TLS = re.compile(r'ssl|tls|certificate|handshake', re.IGNORECASE)
_NAME = re.compile(r'resol|lookup|DNS|name or service', re.IGNORECASE)


def server_text(error: BaseException) -> str:
    """What the server said, without what pyarrow and gRPC put around it."""
    text = str(error)
    text = _DETAIL_TAIL.sub('', _DEBUG_TAIL.sub('', text))
    text = _PREFIX.sub('', text).strip().strip('"\'')
    text = _REPEATED.sub(r'\g<text> | Caused by: ', text).removesuffix(' | Caused by: ')
    text = redact(' '.join(text.replace(' | Caused by: ', ': ').split()))
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + '...'


def from_flight(error: BaseException, endpoint: Endpoint, query: str | None = None) -> SourceError | ProtocolError:
    """The amp error that `error` means; whoever raises it writes `from error`. Its context: endpoint, query, code."""
    text = server_text(error)
    where = str(endpoint)
    if isinstance(error, fl.FlightUnauthenticatedError | fl.FlightUnauthorizedError):
        return _auth(error, text, where, query)
    if isinstance(error, fl.FlightTimedOutError):
        return ConnectError(
            f'{where} did not answer in time', hint=_hint_unreachable(endpoint), endpoint=where, query=query,
            code='DEADLINE_EXCEEDED',
        )  # fmt: skip
    if isinstance(error, fl.FlightUnavailableError | fl.FlightCancelledError) or _DROPPED.search(text or str(error)):
        code = 'CANCELLED' if isinstance(error, fl.FlightCancelledError) else 'UNAVAILABLE'
        return _unreachable(text, endpoint, query, code)
    if _is_exhausted(error, text):
        return SourceError(
            f'the server ran out of resources: {text}',
            hint='ask for less at a time: fewer columns, a smaller block range',
            endpoint=where,
            query=query,
            code='RESOURCE_EXHAUSTED',
        )
    if isinstance(error, pa.ArrowNotImplementedError):
        return SourceError(
            f'{where} does not speak the Flight SQL of Amp: {text}',
            hint='is this the address of an Amp server?',
            endpoint=where,
            query=query,
            code='UNIMPLEMENTED',
        )
    return _refused(error, text, where, query)


def _auth(error: BaseException, text: str, where: str, query: str | None) -> AuthError:
    unauthenticated = isinstance(error, fl.FlightUnauthenticatedError)
    return AuthError(
        f'{where} refuses the token: {text}' if unauthenticated else f'{where} does not allow this: {text}',
        hint='give a valid one: auth_token=, AMP_AUTH_TOKEN, or amp auth login and auth=True'
        if unauthenticated
        else 'ask for the permission',
        endpoint=where,
        query=query,
        code='UNAUTHENTICATED' if unauthenticated else 'PERMISSION_DENIED',
    )


def _unreachable(text: str, endpoint: Endpoint, query: str | None, code: str) -> ConnectError:
    where = str(endpoint)
    if 'failed to connect' in text or _NAME.search(text):
        reason = text.rsplit('last error: UNKNOWN: ', 1)[-1]
        message = f'cannot reach the Amp server at {where}: {reason}'
    else:
        message = f'the connection to {where} broke off: {text or "the call was cut"}'
    return ConnectError(message, hint=_hint_unreachable(endpoint, text), endpoint=where, query=query, code=code)


def _hint_unreachable(endpoint: Endpoint, text: str = '') -> str:
    if _TLS.search(text):
        plain = Endpoint(endpoint.host, endpoint.port, tls=False)
        return f'a server without TLS is {plain}; for a private certificate give tls_root_certs='
    if _NAME.search(text):
        return f'is {endpoint.host!r} the right name?'
    if endpoint.tls:
        return 'is it running, and is the port right?'
    return 'is it running, is the port right, and does it want TLS (grpc+tls://)?'


def _is_exhausted(error: BaseException, text: str) -> bool:
    prefix = _PREFIX.match(str(error))
    return (prefix is not None and prefix['code'] == 'resource exhausted') or text.startswith('Resources exhausted')


def _refused(error: BaseException, text: str, where: str, query: str | None) -> SourceError | ProtocolError:
    code = _code(error)
    if code == 'INTERNAL' and not _PLANNING.search(text):
        return SourceError(
            f'the server failed to run the query: {text}',
            hint='its log says more; the same query may work later',
            endpoint=where,
            query=query,
            code=code,
        )
    if code is None:
        return ProtocolError(f'what {where} sent cannot be read: {text}', endpoint=where, query=query)
    return QueryError(
        f'the server refuses the query: {text}', hint=_hint_query(text), endpoint=where, query=query, code=code
    )


def _code(error: BaseException) -> str | None:
    """The gRPC status, as far as pyarrow lets it through; None for an error that no server sent."""
    if isinstance(error, fl.FlightError):
        return 'INTERNAL'
    if isinstance(error, pa.ArrowKeyError):
        return 'NOT_FOUND'
    text = str(error)
    from_server = _PREFIX.match(text) or _DEBUG_TAIL.search(text) or _DETAIL_TAIL.search(text)
    if from_server and isinstance(error, pa.ArrowInvalid):
        return 'INVALID_ARGUMENT'
    return 'INTERNAL' if from_server else None


def _hint_query(text: str) -> str:
    if 'non-incremental' in text:
        return 'a streaming query has no ORDER BY, LIMIT, DISTINCT or plain aggregate: run it without streaming'
    if 'cross-network' in text or 'multiple networks' in text:
        return 'stream one network at a time'
    if 'expected cursor for network' in text:
        return 'the stored position belongs to another network than this query'
    if _UNKNOWN_TABLE.search(text):
        return 'tables are named dataset.table; a dataset with /, @ or - in its name goes in double quotes'
    if _UNKNOWN_COLUMN.search(text):
        return 'unquoted names are folded to lower case: double quotes keep the case'
    return 'correct the SQL'
