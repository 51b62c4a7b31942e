"""The faults of the local Amp, as a client sees them."""

from __future__ import annotations

import threading

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from amp.devserver import LocalAmp
from tests.support.bare_client import BareClient

pytestmark = pytest.mark.integration

BLOCKS = 'SELECT block_num FROM eth_rpc.blocks'


@pytest.fixture
def amp():
    with LocalAmp.simulate(blocks=20, logs_per_block=1, microbatch_max_blocks=10) as amp:
        amp.faults.split(4)
        yield amp


@pytest.fixture
def client(amp):
    with BareClient(amp.url) as client:
        yield client


def shape(microbatch) -> list[tuple[int, bool]]:
    return [(r.rows, r.complete) for r in microbatch]


def test_split(client):
    with client.stream(BLOCKS) as stream:
        assert shape(stream.microbatch()) == [(4, False), (4, False), (2, False), (0, True)]


def test_cut_inside_of_a_microbatch_once(amp, client):
    amp.faults.cut(after_batches=2, at_block=15)
    with client.stream(BLOCKS) as stream:
        assert stream.microbatch()[-1].span == (0, 9)
        assert [stream.raw_chunk().data.num_rows for _ in range(2)] == [4, 4]
        with pytest.raises(fl.FlightUnavailableError):
            stream.raw_chunk()
    with client.stream(BLOCKS) as stream:
        assert [stream.microbatch()[-1].span for _ in range(2)] == [(0, 9), (10, 19)]


def test_a_late_cut_comes_before_the_completion_batch(amp, client):
    fault = amp.faults.cut(after_batches=99)
    with client.stream(BLOCKS) as stream:
        assert [stream.raw_chunk().data.num_rows for _ in range(3)] == [4, 4, 2]
        with pytest.raises(fl.FlightUnavailableError):
            stream.raw_chunk()
    fault.wait()
    assert fault.fired == 1


def test_cut_of_a_batch_query(amp, client):
    amp.faults.cut(after_batches=1)
    with pytest.raises(fl.FlightUnavailableError):
        client.query(BLOCKS)
    assert client.query(BLOCKS).num_rows == 20


def test_a_clean_end_without_completion(amp, client):
    amp.faults.end_early(after_batches=1)
    with client.open(BLOCKS) as stream:
        assert shape(stream) == [(4, False)]
    amp.faults.end_early(after_batches=1)
    with client.stream(BLOCKS) as stream:
        assert shape(stream) == [(4, False)]


@pytest.mark.parametrize(
    ('code', 'kind'),
    [
        ('INTERNAL', fl.FlightInternalError),
        ('INVALID_ARGUMENT', pa.ArrowInvalid),
        ('UNAUTHENTICATED', fl.FlightUnauthenticatedError),
        ('PERMISSION_DENIED', fl.FlightUnauthorizedError),
        ('DEADLINE_EXCEEDED', fl.FlightTimedOutError),
        ('CANCELLED', fl.FlightCancelledError),
        ('UNAVAILABLE', fl.FlightUnavailableError),
        ('UNIMPLEMENTED', NotImplementedError),
        ('NOT_FOUND', pa.ArrowKeyError),
    ],
)
def test_statuses_inside_of_a_result_and_instead_of_one(amp, client, code, kind):
    amp.faults.error(code, 'on purpose', after_batches=1)
    with client.stream(BLOCKS) as stream:
        assert stream.raw_chunk().data.num_rows == 4
        with pytest.raises(kind, match='on purpose'):
            stream.raw_chunk()
    for call in ('get_flight_info', 'do_get'):
        amp.faults.refuse(code, 'not now', call=call)
        with pytest.raises(kind, match='not now'):
            client.query(BLOCKS)
    assert client.query(BLOCKS).num_rows == 20


def test_keep_alives_anywhere(amp, client):
    amp.faults.keep_alive(2, after_batches=1)
    with client.stream(BLOCKS) as stream:
        first = stream.microbatch()
        assert shape(first) == [(4, False), (0, False), (0, False), (4, False), (2, False), (0, True)]
        assert {r.span for r in first} == {(0, 9)}
    amp.faults.keep_alives()
    with client.stream(f'{BLOCKS} WHERE block_num < 2') as stream:
        assert shape(stream.microbatch()) == [(0, False), (2, False), (0, False), (0, True)]
        assert shape(stream.microbatch()) == [(0, False), (0, True)]


def test_stall_until_released(amp, client):
    fault = amp.faults.stall(after_batches=1)
    got = []
    with client.stream(BLOCKS) as stream:
        reader = threading.Thread(target=lambda: got.append(stream.microbatch()))
        reader.start()
        fault.wait()
        reader.join(0.2)
        assert reader.is_alive()
        fault.release()
        reader.join(60)
    assert len(got[0]) == 4


def test_a_stalled_stream_does_not_hold_the_server(amp, client):
    amp.faults.stall(after_batches=1)
    with client.stream(BLOCKS) as stream:
        assert stream.raw_chunk().data.num_rows == 4
        amp.stop()


def test_a_cursor_ignored_once(amp, client):
    cursor = {'simnet': {'number': 9, 'hash': amp.block_hash(9)}}
    amp.faults.ignore_cursor()
    for start in (0, 10):
        with client.stream(BLOCKS, cursor) as stream:
            assert stream.microbatch()[-1].span[0] == start


def test_a_microbatch_twice(amp, client):
    amp.faults.repeat_microbatch()
    with client.stream(BLOCKS) as stream:
        found = [stream.microbatch() for _ in range(3)]
    assert [m[-1].span for m in found] == [(0, 9), (0, 9), (10, 19)]
    assert shape(found[0]) == shape(found[1])


def test_metadata_overridden(amp, client):
    amp.faults.override_metadata(b'{"ranges": 7}', after_batches=1)
    amp.faults.override_metadata(b'\xff', at_completion=True)
    amp.faults.override_metadata(None, at_block=12)
    with client.stream(BLOCKS) as stream:
        chunks = [stream.raw_chunk() for _ in range(5)]
    raw = [c.app_metadata.to_pybytes() if c.app_metadata else b'' for c in chunks]
    assert [raw[1], raw[3], raw[4]] == [b'{"ranges": 7}', b'\xff', b'']
    assert b'"ranges_complete":false' in raw[0]


def test_clear_disarms(amp, client):
    amp.faults.cut()
    amp.faults.refuse('UNAVAILABLE')
    amp.faults.keep_alives()
    amp.faults.clear()
    assert client.query(BLOCKS).num_rows == 20


def test_a_code_that_does_not_exist(amp):
    with pytest.raises(ValueError, match='UNAVAILABLE'):
        amp.faults.error('SOCKET_CLOSED')
