"""Client and Query against real Flight servers that speak Amp's wire, or break it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.flight as fl
import pytest

import amp
from amp.query import Query
from amp.streaming.types import BlockRange, ResumeWatermark
from tests.support.flight_servers import SCHEMA, Answer, FlightServer, complete, failure, metadata, rows, silence

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = 30.0  # seconds; nothing takes as long, unless it waits for ever

Read = Callable[[Query], pa.Table]
READS: dict[str, Read] = {
    'to_arrow': Query.to_arrow,
    'stream': lambda query: pa.Table.from_batches(query.stream(), SCHEMA),
    'to_reader': lambda query: query.to_reader().read_all(),
    'capsule': pa.table,
}
every_way = pytest.mark.parametrize('read', READS.values(), ids=READS)


@pytest.fixture
def server() -> Iterator[FlightServer]:
    with FlightServer() as running:
        yield running


@pytest.fixture
def client(server: FlightServer) -> Iterator[amp.Client]:
    with amp.Client(server.url) as connected:
        yield connected


def wait_until(condition: Callable[[], bool], seconds: float = QUICK) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.01)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in {'amp-reader', 'amp-flight-call'}]


# What a result is


@every_way
def test_a_result_comes_back_whole_and_in_order(server: FlightServer, client: amp.Client, read: Read) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3), rows(3, 0), rows(3, 4))])
    assert read(client.sql('q')).equals(pa.Table.from_batches([rows(0, 7)]))
    assert not readers()


@every_way
def test_an_empty_result_has_its_columns(server: FlightServer, client: amp.Client, read: Read) -> None:
    server.answers['q'] = Answer([complete(rows(0, 0))])
    result = read(client.sql('q'))
    assert result.num_rows == 0
    assert result.schema == SCHEMA


@every_way
def test_all_endpoints_are_read(server: FlightServer, client: amp.Client, read: Read) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3)), complete(rows(3, 3)), complete(rows(6, 1))])
    assert read(client.sql('q')).equals(pa.Table.from_batches([rows(0, 7)]))


def test_parts_are_read_where_the_server_says(server: FlightServer, client: amp.Client) -> None:
    with FlightServer() as other:
        parts = [complete(rows(0, 3)), complete(rows(3, 3))]
        server.answers['q'] = Answer(parts, locations=['https://elsewhere/x', f'grpc+tcp://127.0.0.1:{other.port}'])
        other.answers['q'] = Answer(parts)
        assert client.sql('q').to_arrow().num_rows == 6
        assert [call.method for call in other.calls] == ['DO_GET', 'DO_GET']


def test_a_location_that_is_down_is_stepped_over(server: FlightServer, client: amp.Client) -> None:
    locations = ['grpc://127.0.0.1:1', 'arrow-flight-reuse-connection://?']
    server.answers['q'] = Answer([complete(rows(0, 3))], locations=locations)
    assert client.sql('q').to_arrow().num_rows == 3


def test_parts_with_other_columns_are_refused(server: FlightServer, client: amp.Client) -> None:
    other = pa.record_batch({'x': [1]})
    server.answers['q'] = Answer([complete(rows(0, 3)), complete(other)])
    with pytest.raises(amp.ProtocolError, match='different columns'):
        client.sql('q').to_arrow()


def test_schema_runs_nothing(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([[failure(RuntimeError('run'))]])
    assert client.sql('q').schema() == SCHEMA
    assert [call.method for call in server.calls] == ['GET_FLIGHT_INFO']


def test_messages_above_every_default_limit(server: FlightServer, client: amp.Client) -> None:
    big = pa.record_batch({'n': [1], 'text': ['x' * 40_000_000]}, schema=SCHEMA)
    server.answers['q'] = Answer([complete(big)])
    assert client.sql('q').to_arrow().column('text').nbytes > 40_000_000


def test_to_pandas(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))])
    assert client.sql('q').to_pandas()['n'].tolist() == [0, 1, 2]


def test_duckdb_reads_a_query(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3), rows(3, 4))])
    query = client.sql('q')
    with duckdb.connect() as connection:
        connection.register('answer', query.to_reader())
        assert connection.sql('SELECT count(*), sum(n) FROM answer').fetchall() == [(7, 21)]
        assert connection.sql('SELECT count(*), sum(n) FROM query').fetchall() == [(7, 21)]


def test_duckdb_gets_the_error_of_a_result_that_breaks(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([[(rows(0, 3), metadata())]])
    reader = client.sql('q').to_reader()
    with duckdb.connect() as connection:
        connection.register('answer', reader)
        with pytest.raises(duckdb.Error, match='completion batch'):
            connection.sql('SELECT sum(n) FROM answer').fetchall()


def test_batch_size_bounds_the_rows_of_a_batch(server: FlightServer, client: amp.Client, tmp_path: Path) -> None:
    server.answers['q'] = Answer([complete(rows(0, 10))])
    result = client.sql('q').load(f'duckdb:///{tmp_path}/x.duckdb', 'rows', batch_size=4)
    assert result.rows_loaded == 10
    assert result.metadata['batches_processed'] == 3


# Headers


def test_a_batch_query_leaves_the_choice_to_the_sql(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))])
    client.sql('q').to_arrow()
    assert all('amp-stream' not in call.headers for call in server.calls)


def test_sql_that_asks_for_a_stream_is_collected_as_a_batch_query(server: FlightServer, client: amp.Client) -> None:
    sql = 'SELECT 1\nSETTINGS stream = true'
    server.answers[sql] = Answer([complete(rows(0, 3))])
    client.sql(sql).to_arrow()
    list(client.sql(sql).stream())
    plans = [call.headers.get('amp-stream') for call in server.calls if call.method == 'GET_FLIGHT_INFO']
    assert plans == ['false', None]


def test_a_stream_sends_its_position(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))])
    position = ResumeWatermark([BlockRange('testnet', 0, 41, '0x' + 'cc' * 32)])
    with client.sql('q').responses(position) as responses:
        received = list(responses)
    assert [response.metadata.ranges_complete for response in received] == [False, True]
    plan = server.calls[0]
    assert plan.headers['amp-stream'] == 'true'
    assert json.loads(plan.headers['amp-resume']) == {'testnet': {'number': 41, 'hash': '0x' + 'cc' * 32}}


def test_the_token_goes_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with FlightServer(token='open sesame') as server:
        server.answers['q'] = Answer([complete(rows(0, 3))])
        with amp.Client(server.url, auth_token='open sesame') as client:
            assert client.sql('q').to_arrow().num_rows == 3
        assert {call.headers['authorization'] for call in server.calls} == {'Bearer open sesame'}
        with amp.Client(server.url, auth_token='wrong') as client, pytest.raises(amp.AuthError) as caught:
            client.sql('q').to_arrow()
        assert 'wrong' not in str(caught.value)
        monkeypatch.setenv('AMP_AUTH_TOKEN', 'open sesame')
        with amp.Client(query_url=server.url) as client:
            assert client.sql('q').to_arrow().num_rows == 3


# What goes wrong


@every_way
def test_a_result_without_completion_batch_is_no_result(server: FlightServer, client: amp.Client, read: Read) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))[:-1]])
    with pytest.raises((amp.IncompleteResultError, pa.ArrowException), match='completion batch'):
        read(client.sql('q'))
    assert not readers()


def test_each_part_must_be_complete(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))[:-1], complete(rows(3, 3))])
    with pytest.raises(amp.IncompleteResultError):
        client.sql('q').to_arrow()


def test_a_result_without_parts_is_no_result(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([])
    with pytest.raises(amp.IncompleteResultError, match='no endpoint'):
        client.sql('q').to_arrow()


def test_batches_come_before_the_error_that_follows_them(server: FlightServer, client: amp.Client) -> None:
    lost = failure(fl.FlightUnavailableError('going down'))
    server.answers['q'] = Answer([[(rows(0, 3), metadata()), (rows(3, 3), metadata()), lost]])
    received = []
    with pytest.raises(amp.ConnectError, match='broke off: going down') as caught:
        received.extend(batch.num_rows for batch in client.sql('q').stream())
    assert received == [3, 3]
    assert caught.value.context['query'] == 'q'


@pytest.mark.parametrize('raw', [b'{', b'[]', b'{"ranges": 1}', b'{"ranges":[{"network":"x"}]}', b'\xff'])
def test_metadata_that_does_not_parse(server: FlightServer, client: amp.Client, raw: bytes) -> None:
    server.answers['q'] = Answer([[(rows(0, 3), raw)]])
    with pytest.raises(amp.ProtocolError):
        client.sql('q').to_arrow()


def test_a_stream_needs_metadata_and_one_endpoint(server: FlightServer, client: amp.Client) -> None:
    server.answers['bare'] = Answer([[(rows(0, 3), None)]])
    server.answers['parts'] = Answer([complete(rows(0, 3)), complete(rows(3, 3))])
    with client.sql('bare').responses() as responses, pytest.raises(amp.ProtocolError, match='no metadata'):
        next(responses)
    with client.sql('parts').responses() as responses, pytest.raises(amp.ProtocolError, match='2 parts'):
        next(responses)


@contextmanager
def own_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its URL."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'tests.support.flight_servers'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY / 'src')},
    )
    try:
        assert process.stdout is not None
        yield process, f'grpc://127.0.0.1:{int(process.stdout.readline())}'
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_dies_mid_result() -> None:
    with own_process() as (process, url), amp.Client(url) as client:
        batches = client.sql('SELECT rows').stream()
        assert next(batches).num_rows == 5
        process.kill()
        with pytest.raises(amp.ConnectError) as caught:
            list(batches)
        assert caught.value.retryable
        with pytest.raises(amp.ConnectError, match=re.escape(url)):
            client.sql('SELECT rows').to_arrow()
    assert not readers()


@every_way
def test_nobody_listens(read: Read) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
    with amp.Client(f'grpc://127.0.0.1:{port}') as client, pytest.raises(amp.ConnectError) as caught:
        read(client.sql('q'))
    assert f'grpc://127.0.0.1:{port}' in str(caught.value)
    assert 'is it running' in str(caught.value)


def test_a_name_that_does_not_resolve() -> None:
    with amp.Client('grpc://nowhere.invalid') as client, pytest.raises(amp.ConnectError, match='the right name'):
        client.sql('q').to_arrow()


def test_a_server_that_never_answers_is_given_up() -> None:
    with (
        socket.create_server(('127.0.0.1', 0)) as mute,
        amp.Client(f'grpc://127.0.0.1:{mute.getsockname()[1]}', connect_timeout=0.3) as client,
        pytest.raises(amp.ConnectError, match='in time'),
    ):
        client.sql('q').to_arrow()


def test_the_deadline_does_not_end_a_silent_stream(server: FlightServer) -> None:
    later = threading.Event()
    server.answers['q'] = Answer([complete(rows(0, 3))], before_schema=lambda _: later.wait(QUICK) and None)
    with amp.Client(server.url, connect_timeout=3.0) as client, client.sql('q').responses() as responses:
        assert responses.get(timeout=3.5) is None
        later.set()
        assert next(responses).num_rows == 3


def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost',
         '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', str(key), '-out', str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    pem = certificate.read_bytes()
    with FlightServer(tls=(pem, key.read_bytes())) as server:
        server.answers['q'] = Answer([complete(rows(0, 3))])
        url = f'grpc+tls://127.0.0.1:{server.port}'
        with amp.Client(url, tls_root_certs=pem, auth_token='secret') as client:
            assert client.sql('q').to_arrow().num_rows == 3
            server.answers['q'] = Answer([complete(rows(0, 3))], locations=['grpc://127.0.0.1:1'])
            with pytest.raises(amp.AuthError, match='without TLS'):
                client.sql('q').to_arrow()
        with amp.Client(url) as client, pytest.raises(amp.ConnectError, match='tls_root_certs'):
            client.sql('q').to_arrow()
        with amp.Client(server.url) as client, pytest.raises(amp.ConnectError, match=re.escape('grpc+tls://')):
            client.sql('q').to_arrow()


def test_no_tls_where_it_is_expected(server: FlightServer) -> None:
    with (
        amp.Client(f'grpc+tls://127.0.0.1:{server.port}') as client,
        pytest.raises(amp.ConnectError, match=re.escape(f'a server without TLS is {server.url}')),
    ):
        client.sql('q').to_arrow()


def test_what_a_client_refuses_before_it_connects() -> None:
    with pytest.raises(amp.ConfigError, match='no Amp server'):
        amp.Client()
    with pytest.raises(amp.ConfigError, match='two servers'):
        amp.Client('grpc://a', query_url='grpc://b')
    with pytest.raises(amp.ConfigError, match='did you mean grpc://localhost'):
        amp.Client('localhost')
    with pytest.raises(amp.ConfigError, match='empty'):
        amp.Client('grpc://localhost').sql(' \n')


def test_a_closed_client_says_so(server: FlightServer) -> None:
    client = amp.Client(server.url)
    client.close()
    client.close()
    with pytest.raises(amp.ConfigError, match='closed'):
        client.sql('q').to_arrow()


def test_no_secret_in_a_repr() -> None:
    client = amp.Client('grpc://localhost', auth_token='hunter2')
    assert 'hunter2' not in f'{client!r} {client.transport!r} {client.sql("SELECT 1")!r}'


# Stopping


def test_a_stream_left_early_is_cancelled(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([[(rows(0, 3), metadata()), silence]])
    batches = client.sql('q').stream()
    assert next(batches).num_rows == 3
    assert not server.cancelled.is_set()
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < QUICK
    assert server.cancelled.wait(QUICK)
    assert not readers()


@pytest.mark.parametrize('batches', [0, 1])
def test_a_reader_left_early_is_cancelled(server: FlightServer, client: amp.Client, batches: int) -> None:
    server.answers['q'] = Answer([[(rows(0, 3), metadata()), silence]])
    reader = client.sql('q').to_reader()
    for _ in range(batches):
        assert reader.read_next_batch().num_rows == 3
    del reader
    assert server.cancelled.wait(QUICK)
    wait_until(lambda: not readers())


def test_a_stream_is_not_asked_for_before_its_first_batch_is(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))])
    batches = client.sql('q').stream()
    assert not server.calls
    assert next(batches).num_rows == 3


def test_a_stream_that_has_not_begun_can_be_closed_at_once(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))], before_schema=silence)
    responses = client.sql('q').responses()
    assert responses.get(timeout=0.05) is None
    assert server.silent.wait(QUICK)
    started = time.monotonic()
    responses.close()
    assert time.monotonic() - started < QUICK
    assert 'amp-reader' not in readers()
    server.stopping.set()
    wait_until(lambda: not readers())


_INTERRUPTED = """
import sys, threading, time
import amp
query = amp.Client(sys.argv[1]).sql(sys.argv[2])
print('ready', flush=True)
try:
    if sys.argv[3] == 'stream':
        for batch in query.stream():
            print(batch.num_rows, flush=True)
    elif sys.argv[3] == 'load':
        for result in query.load('duckdb:///:memory:', 'rows', stream=True):
            print(result, flush=True)
    else:
        query.to_arrow()
except KeyboardInterrupt:
    left = [t.name for t in threading.enumerate() if t.name == 'amp-reader']
    print('interrupted', left, flush=True)
    raise SystemExit(130)
"""


@pytest.mark.parametrize('way', ['stream', 'to_arrow', 'load'])
@pytest.mark.parametrize('sql', ['SELECT rows', 'SELECT silence'])
def test_ctrl_c_ends_a_silent_query(sql: str, way: str) -> None:
    with own_process() as (server, url):
        child = subprocess.Popen(
            [sys.executable, '-c', _INTERRUPTED, url, sql, way],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(REPOSITORY / 'src')},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == 'ready\n'
        if (sql, way) == ('SELECT rows', 'stream'):
            assert [child.stdout.readline(), child.stdout.readline()] == ['5\n', '5\n']
        assert server.stdout is not None
        assert server.stdout.readline() == 'silent\n'
        started = time.monotonic()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert time.monotonic() - started < QUICK
        assert out.endswith('interrupted []\n')
        assert err == ''
        assert child.returncode == 130


# Connections


def test_a_name_stands_for_a_destination(server: FlightServer, client: amp.Client, tmp_path: Path) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))])
    client.configure_connection('here', 'duckdb', {'path': str(tmp_path / 'here.duckdb')})
    assert client.list_connections() == {'here': 'duckdb'}
    result = client.sql('q').load('here', 'rows')
    assert isinstance(result, amp.LoadResult)
    assert result.rows_loaded == 3
    with duckdb.connect(str(tmp_path / 'here.duckdb')) as connection:
        assert connection.sql('SELECT count(*) FROM rows').fetchall() == [(3,)]


def test_connections_and_loaders_that_are_not_there(client: amp.Client) -> None:
    assert 'duckdb' in client.get_available_loaders()
    with pytest.raises(ValueError, match='duckdb'):
        client.configure_connection('x', 'duckbd', {})
    with pytest.raises(ValueError, match='name'):
        client.configure_connection('duckdb:///x', 'duckdb', {})
    with pytest.raises(ValueError, match="no connection 'nowhere'"):
        client.sql('q').load('nowhere', 'rows')
    with pytest.raises(ValueError, match='batch_size'):
        client.sql('q').load('duckdb:///:memory:', 'rows', batch_size=0)


def test_an_unknown_option_is_named(server: FlightServer, client: amp.Client) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))])
    with pytest.raises((TypeError, ValueError), match='colour'):
        client.sql('q').load('duckdb:///:memory:', 'rows', colour='red')
    wait_until(lambda: not readers())


def test_a_load_of_a_result_that_breaks_leaves_nothing(
    server: FlightServer, client: amp.Client, tmp_path: Path
) -> None:
    server.answers['q'] = Answer([complete(rows(0, 3))[:-1]])
    path = tmp_path / 'broken.duckdb'
    with pytest.raises(amp.AmpError, match='completion batch'):
        client.sql('q').load(f'duckdb:///{path}', 'rows')
    with duckdb.connect(str(path)) as connection:
        assert connection.sql("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'rows'").fetchall() == [(0,)]
