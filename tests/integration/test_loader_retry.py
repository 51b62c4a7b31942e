"""What the base does around a load that fails: again when it surely did not happen, never when nobody knows."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from amp import events
from amp.errors import LoadError
from amp.loaders.base import DataLoader
from amp.loaders.registry import create_loader
from amp.loaders.session import load_query, stream_query
from amp.loaders.types import LoadMode

pytestmark = pytest.mark.integration

FAST = {'retry': {'max_retries': 3, 'initial_backoff_ms': 1, 'jitter': False}}
BATCH = pa.record_batch({'id': [1, 2, 3]})


@dataclass
class _Config:
    text: str = ''
    failures: int = 0


class _Failing(DataLoader[_Config]):
    """Fails as its configuration says, then takes the rows."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = {LoadMode.APPEND, LoadMode.OVERWRITE}

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.calls = 0
        self.rows: list[int] = []

    def connect(self) -> None:
        self._is_connected = True

    def disconnect(self) -> None:
        self._is_connected = False

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        self.calls += 1
        if self.calls <= self.config.failures:
            raise Exception(self.config.text)
        self.rows += batch['id'].to_pylist()
        return batch.num_rows


class _Away(_Failing):
    """Cannot be reached at first."""

    dialled = 0

    def connect(self) -> None:
        self.dialled += 1
        if self.dialled <= self.config.failures:
            raise ConnectionRefusedError(self.config.text)
        super().connect()

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        self.calls += 1
        return batch.num_rows


class _Transactional(_Failing):
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True

    @contextmanager
    def _transaction(self):
        kept = list(self.rows)
        try:
            yield
        except BaseException:
            self.rows = kept
            raise
        if self.config.text == 'at the commit':
            raise ConnectionResetError('the answer to COMMIT was lost')


def loader(kind: type[_Failing] = _Failing, text: str = 'HTTP 429 Too Many Requests', failures: int = 2, **resilience):
    return kind({'text': text, 'failures': failures, 'resilience': {**FAST, **resilience}})


@pytest.fixture
def told():
    seen: list[Any] = []
    stop = events.listen(seen.append)
    yield seen
    stop()


def test_what_may_pass_is_tried_again_and_told(told):
    found = loader()
    result = found.load_batch(BATCH, 't')
    assert (result.success, result.rows_loaded, found.calls, found.rows) == (True, 3, 3, [1, 2, 3])
    assert [type(e).__name__ for e in told] == ['Retrying', 'Retrying', 'Committed']
    assert (told[0].kind, told[-1].rows) == ('rate limit', 3)


def test_a_table_is_read_again_from_its_start():
    found = loader(_Transactional, failures=2)
    table = pa.Table.from_batches([BATCH, BATCH])
    result = found.load_table(table, 't', batch_size=3)
    assert result.success, result.error
    assert found.rows == [1, 2, 3, 1, 2, 3]


def test_a_reader_cannot_be_read_again():
    found = loader(failures=1)
    result = found.load_reader(pa.RecordBatchReader.from_batches(BATCH.schema, [BATCH]), 't')
    assert not result.success
    assert found.calls == 1


def test_a_commit_of_unknown_outcome_is_never_repeated():
    found = loader(_Transactional, text='at the commit', failures=0)
    result = found.load_batch(BATCH, 't')
    assert not result.success
    assert found.calls == 1


@pytest.mark.parametrize(
    ('text', 'failures', 'resilience', 'calls'),
    [
        ('HTTP 400 Bad Request', 1, {}, 1),
        ('HTTP 503 Service Unavailable', 9, {}, 4),
        ('connection timeout', 1, {'retry': {'enabled': False}}, 1),
    ],
)
def test_what_will_not_pass_or_too_often_fails(text, failures, resilience, calls):
    found = loader(text=text, failures=failures, **resilience)
    result = found.load_batch(BATCH, 't')
    assert not result.success
    assert text in result.error
    assert found.calls == calls


def test_without_a_word_about_it_a_load_is_tried_once():
    found = _Failing({'text': 'HTTP 503', 'failures': 1})
    assert not found.load_batch(BATCH, 't').success
    assert found.calls == 1


def test_the_limiter_and_the_breaker_learn():
    found = loader(failures=1, back_pressure={'max_delay_ms': 5})
    assert found.rate_limiter.get_current_delay() == 0
    assert found.load_batch(BATCH, 't').success
    assert found.rate_limiter.get_current_delay() > 0
    tired = loader(text='HTTP 503', failures=99, retry={'enabled': False}, circuit_breaker={'failure_threshold': 2})
    for _ in range(2):
        tired.load_batch(BATCH, 't')
    refused = tired.load_batch(BATCH, 't')
    assert 'failed 2 times in a row' in refused.error
    assert tired.calls == 2


def test_a_listener_that_fails_does_not_stop_the_rows(told, caplog):
    def broken(event: object) -> None:
        raise RuntimeError('no metrics today')

    stop = events.listen(broken)
    try:
        assert loader(failures=0).load_batch(BATCH, 't').success
    finally:
        stop()
    assert 'a listener failed at Committed' in caplog.text
    assert len(told) == 1


def reader() -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(BATCH.schema, [BATCH])


def test_a_query_is_loaded_once_its_destination_can_be_reached(told):
    found = loader(_Away)
    assert load_query(found, reader(), 't').rows_loaded == 3
    assert (found.dialled, found.calls) == (3, 1)
    assert [type(e).__name__ for e in told] == ['Retrying', 'Retrying', 'Committed']


@pytest.mark.parametrize(('given', 'dialled'), [({'resilience': FAST}, 4), ({}, 1)])
def test_a_query_fails_when_its_destination_stays_away(given, dialled):
    found = _Away({'failures': 99, **given})
    with pytest.raises(LoadError, match='ConnectionRefusedError'):
        load_query(found, reader(), 't')
    assert (found.dialled, found.calls) == (dialled, 0)


def test_a_query_whose_rows_have_begun_to_flow_is_not_asked_again():
    found = loader(_Transactional, failures=1)
    with pytest.raises(LoadError, match='429'):
        load_query(found, reader(), 't')
    assert found.calls == 1


def test_an_open_breaker_costs_no_try():
    found = loader(_Away, failures=3, circuit_breaker={'failure_threshold': 2, 'recovery_ms': 50})
    assert load_query(found, reader(), 't').rows_loaded == 3
    assert found.dialled == 4


def test_a_stream_connects_as_often_as_it_is_told(told):
    query: Any = type('Q', (), {'sql': 'SELECT 1', 'responses': None})()
    found = loader(_Away, failures=99)
    with pytest.raises(ConnectionRefusedError):
        next(stream_query(found, query, 't'))
    assert (found.dialled, len(told)) == (4, 3)


def test_a_stream_that_is_stopped_while_it_waits_ends():
    query: Any = type('Q', (), {'sql': 'SELECT 1', 'responses': None})()
    found = loader(_Away, failures=99, retry={'max_retries': None, 'initial_backoff_ms': 3_600_000})
    stop = threading.Event()
    unlisten = events.listen(lambda event: stop.set())
    try:
        assert list(stream_query(found, query, 't', stop=stop)) == []
    finally:
        unlisten()
    assert found.dialled == 1


class _Busy(BaseHTTPRequestHandler):
    """Snowflake as far as the login; every statement meets the status that the server has."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get('content-length') or 0))
        statement = '/queries/v1/query-request' in self.path
        login = {
            'token': 't',
            'masterToken': 'm',
            'validityInSeconds': 3600,
            'masterValidityInSeconds': 14400,
            'sessionId': 1,
            'parameters': [],
            'sessionInfo': {'databaseName': 'D', 'schemaName': 'P', 'warehouseName': None, 'roleName': 'R'},
        }
        body = b'' if statement else json.dumps({'success': True, 'data': login}).encode()
        self.send_response(self.server.status if statement else 200)
        self.send_header('content-length', str(len(body)))
        self.send_header('content-type', 'application/json')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.snowflake
@pytest.mark.parametrize(
    ('status', 'kinds', 'hint'),
    [
        (503, ['rate limit'], 'try again later'),
        (429, ['rate limit'], 'try again later'),
        (403, [], 'check user and login'),
    ],
)
def test_a_snowflake_that_is_busy_is_tried_again(status, kinds, hint, told):
    with ThreadingHTTPServer(('127.0.0.1', 0), _Busy) as server:
        server.status = status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {'host': '127.0.0.1', 'port': server.server_port, 'protocol': 'http'}
        login = {'account': 'a', 'user': 'u', 'password': 'no word', 'database': 'd'}
        limits = {'login_timeout': 1, 'network_timeout': 1}
        once_more = {'retry': {'max_retries': 1, 'initial_backoff_ms': 1}}
        found = create_loader('snowflake', {**place, **login, **limits, 'resilience': once_more})
        with pytest.raises(LoadError, match=f'HTTP {status}') as raised:
            load_query(found, reader(), 't')
        server.shutdown()
    assert raised.value.hint is not None
    assert hint in raised.value.hint
    assert raised.value.retryable is bool(kinds)
    assert [event.kind for event in told] == kinds
