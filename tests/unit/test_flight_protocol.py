"""The command, the headers, the addresses, and what the errors of pyarrow.flight mean."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.errors import AmpError, AuthError, ConfigError, ConnectError, ProtocolError, QueryError, SourceError
from amp.flight.failures import from_flight, server_text
from amp.flight.protocol import (
    Endpoint,
    authorization_headers,
    decode_statement_query,
    encode_statement_query,
    parse_endpoint,
    query_headers,
)
from amp.streaming.types import BlockRange, ResumeWatermark

pytestmark = pytest.mark.unit

TYPE_URL = b'type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery'
HASH = '0x' + 'ab' * 32


def test_the_bytes_of_a_short_query() -> None:
    statement = b'\x0a\x08SELECT 1'
    assert encode_statement_query('SELECT 1') == b'\x0a\x43' + TYPE_URL + b'\x12\x0a' + statement
    assert len(TYPE_URL) == 0x43


@given(st.text(max_size=50), st.integers(0, 400))
def test_every_text_comes_back(text: str, repeat: int) -> None:
    sql = text * repeat
    assert decode_statement_query(encode_statement_query(sql)) == sql


def test_a_command_cut_anywhere_is_an_error() -> None:
    whole = encode_statement_query('SELECT ' + 'x' * 300)
    type_url_alone = 2 + len(TYPE_URL)
    for size in range(len(whole)):
        if size == type_url_alone:
            assert decode_statement_query(whole[:size]) == ''
        else:
            with pytest.raises(ValueError, match=r'Any|CommandStatementQuery'):
                decode_statement_query(whole[:size])


@given(st.binary(max_size=200))
def test_any_bytes_give_text_or_value_error(data: bytes) -> None:
    try:
        decode_statement_query(data)
    except ValueError:
        return


def test_unknown_fields_are_stepped_over() -> None:
    statement = b'\x0a\x01x' + b'\x12\x03abc' + b'\x18\x96\x01' + b'\x25abcd' + b'\x29abcdefgh'
    command = b'\x0a\x43' + TYPE_URL + b'\x12' + bytes([len(statement)]) + statement
    assert decode_statement_query(command) == 'x'


@pytest.mark.parametrize(
    ('data', 'says'),
    [
        (b'', 'no type_url'),
        (b'SELECT 1', 'google.protobuf.Any'),
        (b'\x0a\x03abc', 'unsupported flight descriptor command: abc'),
        (b'\x0a\x43' + TYPE_URL + b'\x12\x05\x0a\x08S', 'CommandStatementQuery|says 5 bytes'),
        (b'\x0a\x43' + TYPE_URL + b'\x12\x03\x0a\x01\xff', 'not UTF-8'),
    ],
)
def test_what_is_wrong_with_a_command_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_statement_query(data)


def test_a_batch_query_sends_no_stream_header() -> None:
    assert query_headers() == []
    assert query_headers('secret') == [('authorization', 'Bearer secret')]
    assert query_headers(streaming=True) == [('amp-stream', 'true')]
    assert query_headers(streaming=False) == [('amp-stream', 'false')]


def test_the_resume_header_is_the_servers_cursor() -> None:
    position = ResumeWatermark([BlockRange('mainnet', 0, 99, HASH)])
    headers = dict(query_headers(streaming=True, resume=position))
    assert json.loads(headers['amp-resume']) == {'mainnet': {'number': 99, 'hash': HASH}}
    assert query_headers(resume=ResumeWatermark()) == []


def test_a_position_without_hash_is_refused_rather_than_ignored() -> None:
    with pytest.raises(ProtocolError, match='mainnet 0-99'):
        query_headers(resume=ResumeWatermark([BlockRange('mainnet', 0, 99)]))


@pytest.mark.parametrize('token', ['hunter2\n', ' hunter2', 'hunter2ö'])
def test_a_token_that_no_header_carries_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        authorization_headers(token)
    assert 'hunter2' not in str(caught.value)


@pytest.mark.parametrize(
    ('url', 'endpoint', 'location'),
    [
        ('grpc://localhost', Endpoint('localhost', 1602), 'grpc+tcp://localhost:1602'),
        ('grpc://10.0.0.1:99/', Endpoint('10.0.0.1', 99), 'grpc+tcp://10.0.0.1:99'),
        (' grpc+tcp://h:1 ', Endpoint('h', 1), 'grpc+tcp://h:1'),
        ('grpc+tls://amp.example', Endpoint('amp.example', 1602, tls=True), 'grpc+tls://amp.example:1602'),
        ('grpc://[::1]:5', Endpoint('::1', 5), 'grpc+tcp://[::1]:5'),
    ],
)
def test_addresses(url: str, endpoint: Endpoint, location: str) -> None:
    assert parse_endpoint(url) == endpoint
    assert endpoint.location == location
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ('url', 'says'),
    [
        ('localhost:1602', 'did you mean grpc://localhost:1602 ?'),
        ('gprc://h:7', 'did you mean grpc://h:7 ?'),
        ('grcp+tls://h:7', 'did you mean grpc+tls://h:7 ?'),
        ('http://h', 'did you mean grpc://h:1602 ?'),
        ('https://h', 'did you mean grpc+tls://h:1602 ?'),
        ('postgresql://h/db', 'begins with grpc://'),
        ('', 'for example grpc://'),
        ('grpc//h', 'for example grpc://'),
        ('grpc://', 'names no host'),
        ('grpc://h:port', 'not a URL'),
        ('grpc://h:99999', 'not a URL'),
        ('grpc://h:0', 'port 0'),
        ('grpc://h:1/x', 'after the port'),
        ('grpc://h:1?x=1', 'after the port'),
        ('grpc://user:hunter2@h', 'AMP_AUTH_TOKEN'),
        ('grpc://user:hunter2/x@h', 'what follows grpc:// is not a URL'),
        ('grpc://user/x:hunter2@h', 'after the port'),
    ],
)
def test_what_is_wrong_with_an_address_is_named(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoint(url)
    assert says in str(caught.value)
    assert 'hunter2' not in str(caught.value)


TAIL = '. gRPC client debug context: INTERNAL:much more {grpc_status:13}. Client context: OK'
TRACE = '. Detail: Python exception: Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: no\n'
COLUMN = 'failed to infer SQL output schema | Caused by: Schema error: No field named nope. Valid fields are a.'


@pytest.mark.parametrize(
    ('error', 'kind', 'says'),
    [
        (fl.FlightInternalError(f'Flight returned internal error, with message: {COLUMN}'), QueryError, 'nope'),
        (fl.FlightInternalError(f'{COLUMN}. Detail: Internal{TAIL}'), QueryError, 'Valid fields are a'),
        (
            fl.FlightInternalError('error creating physical catalog | Caused by: Table d.t has not been synced'),
            QueryError,
            'dataset.table',
        ),
        (
            pa.ArrowInvalid(f'Flight returned invalid argument error, with message: SQL parse error{TAIL}'),
            QueryError,
            'SQL parse error',
        ),
        (pa.ArrowInvalid(f'SQL parse error{TRACE}'), QueryError, 'SQL parse error'),
        (pa.lib.ArrowKeyError(f'Flight returned not found error, with message: table x{TAIL}'), QueryError, 'table x'),
        (
            pa.ArrowInvalid('gRPC returned resource exhausted error, with message: Resources exhausted: 5 GB'),
            SourceError,
            'fewer columns',
        ),
        (fl.FlightServerError(f'Resources exhausted: 5 GB{TRACE}'), SourceError, 'fewer columns'),
        (fl.FlightTimedOutError('Deadline Exceeded'), ConnectError, 'did not answer in time'),
        (
            fl.FlightUnavailableError(
                'Flight returned unavailable error, with message: failed to connect to all addresses; last error: '
                'UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused'
            ),
            ConnectError,
            'cannot reach the Amp server at grpc://h:1602',
        ),
        (
            fl.FlightInternalError('Received RST_STREAM with error code 2. Detail: Internal'),
            ConnectError,
            'broke off',
        ),
        (fl.FlightCancelledError('Flight cancelled call, with message: .'), ConnectError, 'broke off'),
        (fl.FlightUnauthenticatedError('no token. Detail: Unauthenticated'), AuthError, 'AMP_AUTH_TOKEN'),
        (fl.FlightUnauthorizedError('denied. Detail: Unauthorized'), AuthError, 'does not allow'),
        (
            pa.ArrowNotImplementedError('Flight returned unimplemented error, with message: get_flight_info'),
            SourceError,
            'is this the address of an Amp server?',
        ),
        (fl.FlightInternalError('query execution error | Caused by: disk'), SourceError, 'failed to run'),
        (pa.ArrowInvalid('Unexpected end of stream'), ProtocolError, 'cannot be read'),
    ],
)
def test_what_errors_mean(error: Exception, kind: type[AmpError], says: str) -> None:
    meant = from_flight(error, Endpoint('h'), 'SELECT 1')
    assert type(meant) is kind
    assert says in str(meant)
    assert meant.context['endpoint'] == 'grpc://h:1602'
    assert meant.context['query'] == 'SELECT 1'
    assert 'debug context' not in str(meant)
    assert 'Traceback' not in str(meant)


def test_only_lost_connections_may_be_tried_again() -> None:
    lost = from_flight(fl.FlightUnavailableError('Socket closed'), Endpoint('h'))
    wrong = from_flight(fl.FlightInternalError(COLUMN), Endpoint('h'))
    assert lost.retryable
    assert not wrong.retryable


def test_an_error_wrapped_twice_is_told_once() -> None:
    text = 'streaming query execution error | Caused by: streaming query execution error -> no such file'
    assert server_text(fl.FlightInternalError(text)) == 'streaming query execution error: no such file'


def test_passwords_in_server_texts_are_hidden() -> None:
    text = server_text(fl.FlightInternalError('cannot open postgresql://me:hunter2@db/x'))
    assert 'hunter2' not in text
