"""The local Amp over its wire, through a bare Flight client: results, streams, resuming, reorgs, refusals."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp
from tests.support.bare_client import BareClient
from tests.support.faults import wait_until

pytestmark = pytest.mark.integration

ZERO = '0x' + '00' * 32
UNKNOWN = '0x' + 'ee' * 32
BLOCKS = 'SELECT block_num, hash FROM eth_rpc.blocks'
LOGS = 'SELECT * FROM eth_rpc.logs'


@pytest.fixture
def local_amp():
    """Starts local Amps and a client for each; stops them all."""
    started = []

    def start(**options) -> tuple[LocalAmp, BareClient]:
        amp = LocalAmp.simulate(**{'logs_per_block': 2} | options).start()
        client = BareClient(amp.url, options.get('token'))
        started.extend([client.flight.close, amp.stop])
        return amp, client

    yield start
    for stop in started:
        stop()


def cursor(amp: LocalAmp, number: int, network: str = 'simnet') -> dict:
    return {network: {'number': number, 'hash': amp.block_hash(number)}}


def table_of(microbatches) -> pa.Table:
    batches = [received.batch for microbatch in microbatches for received in microbatch]
    return pa.Table.from_batches(batches)


# Batch queries


def test_select_1_has_a_row_and_a_completion_batch(local_amp):
    _, client = local_amp(blocks=3)
    with client.open('SELECT 1') as stream:
        assert stream.schema.equals(pa.schema([pa.field('Int64(1)', pa.int64(), nullable=False)]))
        row, done = stream
    assert (row.batch.to_pydict(), row.metadata) == ({'Int64(1)': [1]}, {'ranges': [], 'ranges_complete': False})
    assert (done.rows, done.metadata) == (0, {'ranges': [], 'ranges_complete': True})


def test_flight_info_says_little(local_amp):
    _, client = local_amp(blocks=3)
    info = client.info(LOGS)
    assert (info.total_records, info.total_bytes, len(info.endpoints)) == (-1, -1, 1)
    assert list(info.endpoints[0].locations) == []


@pytest.mark.parametrize('table', ['blocks', 'transactions', 'logs'])
def test_a_batch_query_gives_the_canonical_rows_and_the_tables_coverage(local_amp, table):
    amp, client = local_amp(blocks=40)
    amp.reorg(5)
    with client.open(f'SELECT * FROM eth_rpc.{table}') as stream:
        received = list(stream)
    assert pa.Table.from_batches([r.batch for r in received]).equals(amp.canonical(table))
    for each in received:
        assert each.range == {
            'numbers': {'start': 0, 'end': 40},
            'network': 'simnet',
            'hash': amp.block_hash(40),
            'prev_hash': ZERO,
            'timestamp': amp.canonical('blocks')['timestamp'][-1].value // 10**9,
        }


def test_an_empty_result_is_two_batches_without_rows(local_amp):
    _, client = local_amp(blocks=3)
    with client.open(f'{BLOCKS} WHERE block_num > 100') as stream:
        received = list(stream)
    assert [(r.rows, r.complete) for r in received] == [(0, False), (0, True)]


def test_a_chain_without_blocks_covers_nothing(local_amp):
    _, client = local_amp()
    with client.open(BLOCKS) as stream:
        received = list(stream)
    assert [(r.rows, r.metadata) for r in received] == [
        (0, {'ranges': [], 'ranges_complete': False}),
        (0, {'ranges': [], 'ranges_complete': True}),
    ]


def test_big_batches_are_split_at_about_2_mib(local_amp):
    _, client = local_amp(blocks=60, logs_per_block=1000)
    with client.open(LOGS) as stream:
        received = list(stream)
    assert sum(r.rows for r in received) == 60_000
    assert max(r.batch.nbytes for r in received) <= 2.2 * 2**20
    assert len(received) > 5


def test_sql_does_what_datafusion_does(local_amp):
    amp, client = local_amp(blocks=30, logs_per_block=(0, 5))
    counted = client.query(
        'SELECT b.block_num, count(l.log_index) AS logs FROM eth_rpc.blocks b '
        'LEFT JOIN "any/eth_rpc@1.0.0".logs l ON b.hash = l.block_hash GROUP BY b.block_num ORDER BY b.block_num'
    )
    wanted = [0] * 30
    for number in amp.canonical('logs')['block_num'].to_pylist():
        wanted[number] += 1
    assert counted.to_pydict() == {'block_num': list(range(30)), 'logs': wanted}
    quiet = client.query(
        'SELECT count(*) AS n FROM eth_rpc.blocks WHERE hash NOT IN (SELECT block_hash FROM eth_rpc.logs)'
    )
    assert quiet['n'].to_pylist() == [wanted.count(0)]


LIMITED = [
    ('SELECT hash, block_num FROM eth_rpc.blocks LIMIT 2', 2),
    ('SELECT hash, block_num FROM eth_rpc.blocks LIMIT 0', 0),
    ('SELECT hash, block_num FROM eth_rpc.blocks LIMIT 2 OFFSET 29', 1),
    ('SELECT hash AS a, hash AS b, block_num FROM eth_rpc.blocks LIMIT 2', 2),
    ('SELECT DISTINCT parent_hash, block_num FROM eth_rpc.blocks LIMIT 2', 2),
    ('SELECT * FROM (SELECT hash, block_num FROM eth_rpc.blocks LIMIT 2) ORDER BY block_num', 2),
    ('WITH few AS (SELECT hash, block_num FROM eth_rpc.blocks LIMIT 2) SELECT * FROM few', 2),
    (
        '(SELECT hash, block_num FROM eth_rpc.blocks LIMIT 2) UNION ALL (SELECT hash, nonce FROM eth_rpc.blocks LIMIT 1)',
        3,
    ),
    (
        'SELECT hash FROM eth_rpc.blocks WHERE hash IN (SELECT few.hash FROM '
        '(SELECT hash, block_num FROM eth_rpc.blocks LIMIT 2) few)',
        2,
    ),
]


@pytest.mark.parametrize('stored', [False, True], ids=['memory', 'files'])
@pytest.mark.parametrize(('sql', 'count'), LIMITED)
def test_a_limit_holds_whatever_the_order_of_the_columns(local_amp, tmp_path, sql, count, stored):
    amp, client = local_amp(blocks=30)
    blocks = amp.canonical('blocks')
    with contextlib.ExitStack() as stack:
        if stored:
            for table in amp.datasets['eth_rpc']:
                (tmp_path / 'eth_rpc').mkdir(exist_ok=True)
                pq.write_table(amp.canonical(table), tmp_path / 'eth_rpc' / f'{table}.parquet')
            amp = stack.enter_context(LocalAmp.from_parquet(tmp_path, network='simnet'))
            client = stack.enter_context(BareClient(amp.url))
        found = client.query(sql)
    assert found.num_rows == count
    if sql.startswith('SELECT hash, block_num') and count == 2:
        assert found['block_num'].to_pylist() == blocks['block_num'].to_pylist()[:2]


def test_a_limit_holds_over_rows_that_are_worth_dividing(local_amp):
    _, client = local_amp(blocks=60, logs_per_block=1500)
    logs = 'SELECT data, log_index, block_num FROM eth_rpc.logs LIMIT 3'
    assert client.query(logs).select(['block_num', 'log_index']).to_pydict() == {
        'block_num': [0, 0, 0],
        'log_index': [0, 1, 2],
    }
    assert client.query(f'SELECT * FROM ({logs}) ORDER BY data').num_rows == 3


def test_a_ticket_may_be_used_again(local_amp):
    amp, client = local_amp(blocks=3)
    ticket = client.info(BLOCKS).endpoints[0].ticket
    assert client.flight.do_get(ticket).read_all().num_rows == 3
    amp.mine()
    assert client.flight.do_get(ticket).read_all().num_rows == 4


def test_a_million_rows_do_not_crawl(local_amp):
    """They cost less than to look at a fifth of them one by one, whatever the machine."""
    amp, client = local_amp(blocks=1000, logs_per_block=1000)
    served = []
    for _ in range(2):
        began = time.process_time()
        with client.open(LOGS) as stream:
            assert sum(r.rows for r in stream) == 1_000_000
        served.append(time.process_time() - began)
    fifth = amp.canonical('logs').slice(0, 200_000)
    began = time.process_time()
    assert len(fifth.to_pylist()) == 200_000
    assert min(served) < time.process_time() - began


# The switch between batch and stream


@pytest.mark.parametrize(
    ('sql', 'headers', 'streams'),
    [
        (BLOCKS, {}, False),
        (f'{BLOCKS} SETTINGS stream = true', {}, True),
        (f'{BLOCKS} SETTINGS stream = 1', {}, False),
        (f'{BLOCKS} SETTINGS stream = true', {'amp_stream': 'false'}, False),
        (f'{BLOCKS} SETTINGS stream = true', {'amp_stream': '0'}, False),
        (f'{BLOCKS} SETTINGS stream = true', {'amp_stream': 'maybe'}, True),
        (BLOCKS, {'amp_stream': 'TRUE'}, True),
        (BLOCKS, {'amp_stream': '1'}, True),
    ],
)
def test_header_and_settings(local_amp, sql, headers, streams):
    amp, client = local_amp(blocks=5)
    with client.open(sql, **headers) as stream:
        first = stream.microbatch()
        if streams:
            amp.mine()
            assert stream.microbatch()[-1].span == (5, 5)
        else:
            assert [r.span for r in first] == [(0, 4)] * 2
            assert list(stream) == []


# Streams


def test_microbatches_of_at_most_1000_blocks_linked_by_hash(local_amp):
    amp, client = local_amp(blocks=2500, logs_per_block=0)
    with client.stream(BLOCKS) as stream:
        microbatches = [stream.microbatch() for _ in range(3)]
    assert [m[-1].span for m in microbatches] == [(0, 999), (1000, 1999), (2000, 2499)]
    previous = ZERO
    for microbatch in microbatches:
        assert {(r.span, r.range['hash'], r.range['prev_hash']) for r in microbatch} == {
            (microbatch[-1].span, amp.block_hash(microbatch[-1].span[1]), previous)
        }
        assert microbatch[-1].rows == 0
        assert [r.complete for r in microbatch] == [False] * (len(microbatch) - 1) + [True]
        previous = microbatch[-1].range['hash']
    assert table_of(microbatches)['block_num'].to_pylist() == list(range(2500))


def test_a_microbatch_without_rows_is_its_completion_batch(local_amp):
    _, client = local_amp(blocks=5)
    with client.stream(f'{BLOCKS} WHERE block_num > 100') as stream:
        (only,) = stream.microbatch()
    assert (only.rows, only.complete, only.span) == (0, True, (0, 4))


def test_rows_come_by_block_and_block_num_only_when_selected(local_amp):
    amp, client = local_amp(blocks=50, logs_per_block=(0, 7), microbatch_max_blocks=20)
    with client.stream('SELECT log_index, block_num FROM eth_rpc.logs WHERE log_index <> 1') as stream:
        assert stream.schema.names == ['log_index', 'block_num']
        found = table_of([stream.microbatch() for _ in range(3)])
    wanted = amp.canonical('logs').select(['log_index', 'block_num'])
    assert found.to_pylist() == [row for row in wanted.to_pylist() if row['log_index'] != 1]


@pytest.mark.parametrize('selected', ['_block_num, hash', 'block_num, hash'])
def test_a_union_comes_by_block_too(local_amp, selected):
    amp, client = local_amp(blocks=30, logs_per_block=(0, 4))
    others = selected.replace('hash', 'tx_hash')
    sql = f'SELECT {selected} FROM eth_rpc.blocks UNION ALL SELECT {others} FROM eth_rpc.logs'
    with client.stream(sql) as stream:
        found = table_of([stream.microbatch()])
    numbers = found.column(0).to_pylist()
    assert numbers == sorted(numbers)
    assert found.num_rows == 30 + amp.canonical('logs').num_rows
    assert found.schema.names == selected.split(', ')


def test_nested_columns_stream_and_unnest(local_amp):
    amp, client = local_amp(blocks=10, logs_per_block=12)
    with client.stream('SELECT tx_hash, access_list FROM eth_rpc.transactions') as stream:
        found = table_of([stream.microbatch()])
    assert found.equals(amp.canonical('transactions').select(['tx_hash', 'access_list']))
    with client.stream('SELECT tx_hash, unnest(access_list) AS entry FROM eth_rpc.transactions') as stream:
        flat = table_of([stream.microbatch()])
    wanted = [entry for entries in found['access_list'].to_pylist() for entry in entries or []]
    assert flat['entry'].to_pylist() == wanted
    assert wanted


def test_silence_at_the_tip_and_news_when_there_are_some(local_amp):
    amp, client = local_amp(blocks=3)
    with client.stream(BLOCKS) as stream:
        stream.microbatch()
        got = []
        reader = threading.Thread(target=lambda: got.append(stream.microbatch()))
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        amp.mine(2)
        reader.join(60)
    assert got[0][-1].span == (3, 4)
    assert sum(r.rows for r in got[0]) == 2


def test_do_get_says_nothing_before_the_first_microbatch(local_amp):
    amp, client = local_amp(blocks=3)
    opened = []
    opener = threading.Thread(target=lambda: opened.append(client.stream(BLOCKS, cursor(amp, 2))))
    opener.start()
    opener.join(0.3)
    assert opener.is_alive()
    amp.mine()
    opener.join(60)
    with opened[0] as stream:
        assert stream.microbatch()[-1].span == (3, 3)


@pytest.mark.parametrize('sql', [BLOCKS, 'SELECT 1'])
def test_a_stream_over_nothing_ends_at_once(local_amp, sql):
    _, client = local_amp()
    with client.stream(sql) as stream:
        (only,) = stream
    assert (only.rows, only.metadata) == (0, {'ranges': [], 'ranges_complete': True})


# Resuming


def test_a_canonical_cursor_goes_on_after_it(local_amp):
    amp, client = local_amp(blocks=3)
    with client.stream(BLOCKS, {'other': {'number': 7, 'hash': UNKNOWN}} | cursor(amp, 1)) as stream:
        done = stream.microbatch()[-1]
    assert (done.span, done.range['prev_hash']) == ((2, 2), amp.block_hash(1))


def test_the_cursor_of_an_orphan_goes_back_to_the_fork(local_amp):
    amp, client = local_amp(blocks=3)
    old = cursor(amp, 2)
    amp.reorg(2)
    with client.stream(BLOCKS, old) as stream:
        microbatch = stream.microbatch()
    assert (microbatch[-1].span, microbatch[-1].range['prev_hash']) == ((1, 3), amp.block_hash(0))
    assert ['0x' + h.hex() for h in table_of([microbatch])['hash'].to_pylist()] == [
        amp.block_hash(n) for n in (1, 2, 3)
    ]


def test_an_unknown_cursor_starts_at_its_own_number(local_amp):
    amp, client = local_amp(blocks=10)
    with client.stream(BLOCKS, {'simnet': {'number': 6, 'hash': UNKNOWN}}) as stream:
        assert stream.microbatch()[-1].span == (6, 9)
    old = cursor(amp, 9)
    amp.reorg(5)
    amp.forget_orphans()
    with client.stream(BLOCKS, old) as stream:
        assert stream.microbatch()[-1].span == (9, 10)


def test_a_cursor_above_the_chain_waits_for_it(local_amp):
    amp, client = local_amp(blocks=3)
    opened = []
    above = {'simnet': {'number': 5, 'hash': UNKNOWN}}
    opener = threading.Thread(target=lambda: opened.append(client.stream(BLOCKS, above)))
    opener.start()
    amp.mine(2)
    opener.join(0.3)
    assert opener.is_alive()
    amp.mine(1)
    opener.join(60)
    with opened[0] as stream:
        assert stream.microbatch()[-1].span == (5, 5)


@pytest.mark.parametrize('header', ['not json', '', '{"ranges":[{"network":"simnet","start":0,"end":1}]}'])
def test_a_cursor_that_does_not_parse_is_ignored(local_amp, header):
    _, client = local_amp(blocks=3)
    with client.stream(BLOCKS, header) as stream:
        assert stream.microbatch()[-1].span == (0, 2)


def test_a_cursor_of_another_network_is_refused(local_amp):
    amp, client = local_amp(blocks=3, network='mainnet')
    with pytest.raises(fl.FlightInternalError, match="expected cursor for network 'mainnet', but cursor only contains"):
        client.stream(BLOCKS, cursor(amp, 1, 'ethereum'))


def test_headers_of_do_get_are_not_read(local_amp):
    amp, client = local_amp(blocks=3)
    ticket = client.info(BLOCKS, amp_stream='true').endpoints[0].ticket
    options = fl.FlightCallOptions(headers=[(b'amp-stream', b'false'), (b'amp-resume', b'{}')], timeout=60)
    reader = client.flight.do_get(ticket, options)
    assert reader.read_chunk().data.num_rows == 3
    assert reader.read_chunk().data.num_rows == 0
    amp.mine()
    assert reader.read_chunk().data.num_rows == 1
    reader.cancel()


# Reorgs in an open stream


def spans_after(stream, count: int) -> list[tuple[tuple[int, int], str]]:
    done = [stream.microbatch()[-1] for _ in range(count)]
    return [(d.span, d.range['prev_hash']) for d in done]


def test_a_reorg_of_one_block_starts_again_at_the_fork(local_amp):
    amp, client = local_amp(blocks=1)
    with client.stream(BLOCKS) as stream:
        spans = spans_after(stream, 1)
        for _ in range(2):
            amp.mine()
            spans += spans_after(stream, 1)
        amp.reorg(1)
        spans += spans_after(stream, 1)
    assert spans == [
        ((0, 0), ZERO),
        ((1, 1), amp.block_hash(0)),
        ((2, 2), amp.block_hash(1)),
        ((2, 3), amp.block_hash(1)),
    ]


def test_a_reorg_inside_of_a_range_starts_inside_of_it(local_amp):
    amp, client = local_amp(blocks=1)
    with client.stream(BLOCKS) as stream:
        spans_after(stream, 1)
        amp.mine(2)
        assert spans_after(stream, 1)[0][0] == (1, 2)
        amp.reorg(1)
        assert spans_after(stream, 1) == [((2, 3), amp.block_hash(1))]


def test_a_reorg_that_does_not_grow_is_not_seen(local_amp):
    amp, client = local_amp(blocks=10)
    with client.stream(BLOCKS) as stream:
        spans_after(stream, 1)
        before = amp.block_hash(9)
        amp.reorg(3, extend=0)
        assert amp.block_hash(9) == before
        assert client.query(BLOCKS)['hash'].to_pylist()[-1].hex() == before[2:]
        amp.mine()
        assert spans_after(stream, 1) == [((7, 10), amp.block_hash(6))]


def test_a_branch_that_returns_has_its_old_hashes(local_amp):
    amp, client = local_amp(blocks=10)
    first = [amp.block_hash(n) for n in range(10)]
    with client.stream(BLOCKS) as stream:
        spans_after(stream, 1)
        amp.reorg(4)
        assert spans_after(stream, 1) == [((6, 10), first[5])]
        amp.switch_back()
        assert spans_after(stream, 1) == [((6, 11), first[5])]
    assert [amp.block_hash(n) for n in range(10)] == first


def test_a_running_microbatch_ends_on_its_old_snapshot(local_amp):
    amp, client = local_amp(blocks=20)
    old = amp.canonical('logs')
    fault = amp.faults.call(lambda: amp.reorg(15), after_batches=1)
    amp.faults.split(5)
    with client.stream(LOGS) as stream:
        first = stream.microbatch()
        fault.wait()
        second = stream.microbatch()
    assert table_of([first]).equals(old)
    assert second[-1].span == (5, 20)


# Refusals and ends


@pytest.mark.parametrize(
    ('sql', 'error', 'told'),
    [
        ('SELECT nope FROM eth_rpc.blocks', fl.FlightInternalError, 'failed to infer SQL output schema | Caused by: '),
        ('SELECT 1 FROM other.blocks', fl.FlightInternalError, 'Dataset not found: other'),
        ('SELEC 1', pa.ArrowInvalid, 'SQL parse error | Caused by: Invalid SQL syntax'),
        ('', pa.ArrowInvalid, 'invalid query: '),
        ('SELECT 0 AS _block_num', pa.ArrowInvalid, "column alias starting with '_': '_block_num'"),
    ],
)
def test_get_flight_info_refuses(local_amp, sql, error, told):
    _, client = local_amp(blocks=1)
    with pytest.raises(error) as caught:
        client.info(sql)
    assert told in str(caught.value)


def test_what_cannot_be_a_stream_is_refused_by_do_get_only(local_amp):
    _, client = local_amp(blocks=1)
    info = client.info('SELECT count(*) FROM eth_rpc.blocks SETTINGS stream = true')
    with pytest.raises(pa.ArrowInvalid) as caught:
        client.flight.do_get(info.endpoints[0].ticket).read_all()
    assert str(caught.value).startswith(
        'invalid query: non-incremental queries are not supported for streaming, '
        'query contains non-incremental operation: Aggregate'
    )


def test_an_execution_that_fails_ends_with_a_status(local_amp):
    _, client = local_amp(blocks=5)
    sql = 'SELECT 10 / (block_num - 3) AS x FROM eth_rpc.blocks'
    with pytest.raises(fl.FlightInternalError, match=r'query execution error \| Caused by: .*[Dd]ivide by zero'):
        client.query(sql)
    twice = r'streaming query execution error \| Caused by: streaming query execution error -> .*[Dd]ivide by zero'
    with pytest.raises(fl.FlightInternalError, match=twice):
        client.stream(sql).microbatch()


@pytest.mark.parametrize(
    ('descriptor', 'told'),
    [
        (fl.FlightDescriptor.for_path('eth_rpc', 'logs'), 'unsupported flight descriptor type: Path'),
        (fl.FlightDescriptor.for_command(b'SELECT 1'), 'ProtocolBuffers decoding error: '),
        (fl.FlightDescriptor.for_command(b'\x0a\x05a/b.c'), 'unsupported flight descriptor command: a/b.c'),
    ],
)
def test_descriptors_that_are_not_a_statement(local_amp, descriptor, told):
    _, client = local_amp()
    with pytest.raises(pa.ArrowInvalid) as caught:
        client.flight.get_flight_info(descriptor)
    assert str(caught.value).startswith(told)


def test_a_ticket_that_is_none(local_amp):
    _, client = local_amp()
    with pytest.raises(pa.ArrowInvalid, match='ticket decoding error'):
        client.flight.do_get(fl.Ticket(b'mine')).read_all()


@pytest.mark.parametrize(
    'call',
    [
        lambda c: list(c.list_flights()),
        lambda c: list(c.list_actions()),
        lambda c: list(c.do_action(fl.Action('x', b''))),
        lambda c: c.get_schema(fl.FlightDescriptor.for_command(b'x')),
        lambda c: c.do_exchange(fl.FlightDescriptor.for_command(b'x'))[1].read_chunk(),
        lambda c: c.authenticate_basic_token('user', 'password'),
    ],
)
def test_other_calls_are_unimplemented(local_amp, call):
    _, client = local_amp()
    with pytest.raises(NotImplementedError):
        call(client.flight)


def test_do_put_is_unimplemented(local_amp):
    _, client = local_amp()
    writer, _ = client.flight.do_put(fl.FlightDescriptor.for_command(b'x'), pa.schema([('a', pa.int64())]))
    with pytest.raises(NotImplementedError):
        writer.close()


def test_a_token_is_asked_for_on_both_calls(local_amp):
    amp, client = local_amp(blocks=2, token='secret')
    assert client.query(BLOCKS).num_rows == 2
    ticket = client.info(BLOCKS).endpoints[0].ticket
    for token in (None, 'wrong'):
        with BareClient(amp.url, token) as stranger:
            with pytest.raises(fl.FlightUnauthenticatedError):
                stranger.info(BLOCKS)
            with pytest.raises(fl.FlightUnauthenticatedError):
                stranger.flight.do_get(ticket).read_all()


def test_a_client_that_leaves_leaves_no_thread_behind(local_amp):
    amp, client = local_amp(blocks=2)
    # Threads that run Python now; those that gRPC keeps for later calls do not.
    before = set(sys._current_frames())
    for _ in range(3):
        with client.stream(BLOCKS) as stream:
            stream.microbatch()
    wait_until(lambda: amp.open_streams == 0)
    wait_until(lambda: set(sys._current_frames()) <= before)


ENDLESS = 'SELECT sum(value) AS n FROM generate_series(1, 100000000000)'


@pytest.fixture
def nothing_is_computed():
    """Whether what this test asked for is over; threads of servers that others share are theirs."""
    of_others = set(threading.enumerate())
    return lambda: not any(t.name == 'amp-devserver-ahead' for t in set(threading.enumerate()) - of_others)


def test_a_query_ends_with_its_client(local_amp, nothing_is_computed):
    _, client = local_amp(blocks=3)
    ticket = client.info(ENDLESS).endpoints[0].ticket
    with pytest.raises(fl.FlightTimedOutError):
        client.flight.do_get(ticket, fl.FlightCallOptions(timeout=0.5)).read_all()
    wait_until(nothing_is_computed)
    assert client.query('SELECT 1 AS one')['one'].to_pylist() == [1]


def test_stopping_ends_a_query(local_amp, nothing_is_computed):
    amp, client = local_amp(blocks=3)
    ticket = client.info(ENDLESS).endpoints[0].ticket
    found = []

    def ask() -> None:
        try:
            client.flight.do_get(ticket).read_all()
        except fl.FlightError as error:
            found.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: not nothing_is_computed())
    amp.stop()
    asking.join(60)
    assert [type(error) for error in found] == [fl.FlightUnavailableError]
    wait_until(nothing_is_computed)


def test_stopping_ends_open_streams_and_the_port_serves_again(local_amp):
    amp, client = local_amp(blocks=2)
    with client.stream(BLOCKS) as stream:
        stream.microbatch()
        amp.stop()
        # It would still be waiting for the stream, had that not ended.
        assert 'amp-devserver-close' not in [thread.name for thread in threading.enumerate()]
        with pytest.raises(fl.FlightUnavailableError):
            stream.raw_chunk()
    url = amp.url
    amp.mine()
    amp.start()
    assert amp.url == url
    with BareClient(url) as again:
        assert again.query(BLOCKS).num_rows == 3


def test_many_streams_at_once(local_amp):
    amp, client = local_amp(blocks=20, microbatch_max_blocks=4)
    streams = [client.stream(LOGS) for _ in range(12)]
    for stream in streams:
        assert table_of([stream.microbatch() for _ in range(5)]).num_rows == 40
    amp.mine()
    for stream in streams:
        with stream:
            assert stream.microbatch()[-1].span == (20, 20)
