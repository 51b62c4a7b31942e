"""Streams of the local Amp over its wire: what may stream and how it is refused, joins through reorgs, signs of life."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

from amp.devserver import Faults, LocalAmp, schemas
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.service import AmpFlightServer
from amp.devserver.simulator import Simulator
from tests.support.bare_client import BareClient
from tests.support.faults import wait_until

pytestmark = pytest.mark.integration

ZERO = '0x' + '00' * 32
BLOCKS = 'SELECT block_num, hash FROM eth_rpc.blocks'
JOIN = 'SELECT block_num() AS n, b.hash, l.log_index FROM eth_rpc.blocks b JOIN eth_rpc.logs l ON b.block_num + 2 = l.block_num'
REFUSED = 'invalid query: non-incremental queries are not supported for streaming, query contains '


@pytest.fixture
def simulated():
    """Starts local Amps with a client for each; stops them all."""
    with ExitStack() as stack:

        def start(**options) -> tuple[LocalAmp, BareClient]:
            amp = stack.enter_context(LocalAmp.simulate(**{'logs_per_block': 2} | options))
            return amp, stack.enter_context(BareClient(amp.url))

        yield start


@pytest.fixture
def two_datasets():
    """Serves datasets `one` and `two`, mined so far, under these networks; gives a client and who mines them."""
    with ExitStack() as stack:

        def start(blocks: tuple[int, int] = (4, 4), network: str = 'simnet') -> tuple[BareClient, dict[str, Simulator]]:
            chains = {'one': Chain('simnet', schemas.EVM_RPC), 'two': Chain(network, schemas.EVM_RPC)}
            # The same seed makes the same blocks, as two datasets of a network have.
            simulators = {name: Simulator(chain, seed=3, logs_per_block=1) for name, chain in chains.items()}
            for simulator, number in zip(simulators.values(), blocks, strict=True):
                simulator.mine(number)
            server = AmpFlightServer('grpc://127.0.0.1:0', Engine(chains), Faults())
            stack.callback(server.close)
            return stack.enter_context(BareClient(f'grpc://127.0.0.1:{server.port}')), simulators

        yield start


def rows_of(microbatch) -> list[dict]:
    return [row for received in microbatch for row in received.batch.to_pylist()]


def in_a_thread(function) -> tuple[threading.Thread, list]:
    found: list = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    return thread, found


# Refusals


@pytest.mark.parametrize(
    ('sql', 'operation'),
    [
        ('SELECT count(*) FROM eth_rpc.blocks', 'non-incremental operation: Aggregate'),
        ('SELECT hash FROM eth_rpc.blocks LIMIT 3', 'non-incremental operation: Limit'),
        ('SELECT hash FROM eth_rpc.blocks ORDER BY hash', 'non-incremental operation: Sort'),
        ('SELECT DISTINCT miner FROM eth_rpc.blocks', 'non-incremental operation: Distinct'),
        (
            'SELECT b.hash FROM eth_rpc.blocks b LEFT JOIN eth_rpc.logs l ON b.hash = l.block_hash',
            'non-incremental operation: Join(Left)',
        ),
        (
            'SELECT a.hash FROM eth_rpc.blocks a JOIN eth_rpc.blocks b ON a.hash = b.parent_hash '
            'JOIN eth_rpc.logs l ON l.block_hash = a.hash',
            'non-incremental operation: StackedJoins',
        ),
    ],
)
def test_what_is_not_incremental_is_refused_by_do_get_only(simulated, sql, operation):
    _, client = simulated(blocks=1)
    info = client.info(f'{sql} SETTINGS stream = true')
    with pytest.raises(pa.ArrowInvalid) as caught:
        client.flight.do_get(info.endpoints[0].ticket).read_all()
    assert str(caught.value).startswith(REFUSED + operation)


@pytest.mark.parametrize('selected', ['l._block_num, b.hash', 'b.*'])
def test_a_join_does_not_say_whose_block_num(simulated, selected):
    _, client = simulated(blocks=1)
    sql = f'SELECT {selected} FROM eth_rpc.blocks b JOIN eth_rpc.logs l ON b.hash = l.block_hash'
    assert client.query(sql).num_rows == 2
    with pytest.raises(pa.ArrowInvalid, match=r'selecting `_block_num` from a multi-table context.*`block_num\(\)`'):
        client.stream(sql)


def test_networks_do_not_mix(two_datasets):
    client, _ = two_datasets(network='othernet')
    told = r'cross-network join: join across multiple networks: \{"othernet", "simnet"\}'
    with pytest.raises(fl.FlightInternalError, match=told):
        client.stream('SELECT a.hash FROM one.blocks a JOIN two.blocks b ON a.hash = b.hash')
    with pytest.raises(fl.FlightInternalError, match='multiple networks in dependency tree: othernet and simnet'):
        client.stream('SELECT hash FROM one.blocks UNION ALL SELECT hash FROM two.blocks')
    with client.open('SELECT a.hash FROM one.blocks a JOIN two.blocks b ON a.hash = b.hash') as batch:
        assert [each['network'] for each in next(iter(batch)).metadata['ranges']] == ['othernet', 'simnet']


# Two datasets of a network


def test_a_stream_over_two_datasets_goes_as_far_as_both(two_datasets):
    client, simulators = two_datasets((5, 3))
    with client.stream('SELECT a.block_num FROM one.blocks a JOIN two.blocks b ON a.hash = b.hash') as stream:
        assert stream.microbatch()[-1].span == (0, 2)
        simulators['two'].mine(3)
        microbatch = stream.microbatch()
        assert microbatch[-1].span == (3, 4)
        assert [row['block_num'] for row in rows_of(microbatch)] == [3, 4]


def test_datasets_that_disagree_wait_for_each_other(two_datasets):
    client, simulators = two_datasets()
    with client.stream('SELECT hash FROM one.blocks UNION ALL SELECT hash FROM two.blocks') as stream:
        assert stream.microbatch()[-1].span == (0, 3)
        simulators['one'].reorg(2, 1)
        thread, found = in_a_thread(stream.microbatch)
        thread.join(0.3)
        assert thread.is_alive()
        simulators['two'].reorg(2, 1)
        thread.join(60)
    assert found[0][-1].span == (2, 4)


@pytest.mark.parametrize(('blocks', 'ends'), [((4, 0), True), ((0, 4), False)])
def test_a_dataset_without_blocks_ends_the_stream_or_holds_it(two_datasets, blocks, ends):
    client, simulators = two_datasets(blocks)
    thread, found = in_a_thread(
        lambda: client.stream('SELECT hash FROM one.blocks UNION ALL SELECT hash FROM two.blocks')
    )
    if ends:
        thread.join(60)
        (only,) = found[0]
        assert (only.rows, only.metadata) == (0, {'ranges': [], 'ranges_complete': True})
        return
    thread.join(0.3)
    assert thread.is_alive()
    simulators['one'].mine(2)
    thread.join(60)
    with found[0] as stream:
        assert stream.microbatch()[-1].span == (0, 1)


# Joins


@pytest.mark.parametrize('size', [3, 1000])
def test_rows_of_a_join_come_by_the_greater_block(simulated, size):
    amp, client = simulated(blocks=20, logs_per_block=(0, 3), microbatch_max_blocks=size)
    with client.stream(JOIN) as stream:
        found = []
        while not found or found[-1][-1].span[1] < 19:
            found.append(stream.microbatch())
    for microbatch in found:
        start, end = microbatch[-1].span
        numbers = [row['n'] for row in rows_of(microbatch)]
        assert numbers == sorted(numbers)
        assert all(start <= number <= end for number in numbers)
    numbers = amp.canonical('logs')['block_num'].to_pylist()
    assert Counter(row['n'] for microbatch in found for row in rows_of(microbatch)) == Counter(
        number for number in numbers if number >= 2
    )
    for one, other in pairwise(microbatch[-1].range for microbatch in found):
        assert other['prev_hash'] == one['hash']


def test_a_resumed_join_finds_what_came_before_its_cursor(simulated):
    amp, client = simulated(blocks=10, logs_per_block=1)
    with client.stream(JOIN, {'simnet': {'number': 4, 'hash': amp.block_hash(4)}}) as stream:
        microbatch = stream.microbatch()
    assert microbatch[-1].span == (5, 9)
    assert [(row['n'], '0x' + row['hash'].hex()) for row in rows_of(microbatch)] == [
        (number, amp.block_hash(number - 2)) for number in range(5, 10)
    ]


@pytest.mark.parametrize('seed', range(5))
def test_a_join_is_rebuilt_through_reorgs(simulated, seed):
    """Who drops the rows of the blocks that a range replaces has the result over the canonical chain."""
    choice = random.Random(seed)
    amp, client = simulated(
        seed=seed, blocks=6, logs_per_block=(0, 3), microbatch_max_blocks=choice.choice([2, 5, 1000])
    )
    rows, done = [], None
    for _ in range(6):
        if choice.random() < 0.5:
            amp.mine(choice.randint(1, 4))
        else:
            amp.reorg(choice.randint(1, 5), choice.randint(1, 3))
        with client.stream(JOIN, done) as stream:
            while done is None or done['simnet']['hash'] != amp.head[1]:
                microbatch = stream.microbatch()
                start, end = microbatch[-1].span
                rows = [row for row in rows if row['n'] < start] + rows_of(microbatch)
                done = {'simnet': {'number': end, 'hash': microbatch[-1].range['hash']}}
        wanted = client.query(JOIN.replace('block_num()', 'greatest(b._block_num, l._block_num)')).to_pylist()
        assert Counter(map(str, rows)) == Counter(map(str, wanted))


@pytest.mark.parametrize(
    ('sql', 'batch'),
    [
        (JOIN, JOIN.replace('block_num()', 'greatest(b._block_num, l._block_num)')),
        ('SELECT tx_hash FROM eth_rpc.logs UNION ALL SELECT hash FROM eth_rpc.blocks',) * 2,
        (
            'SELECT hash FROM eth_rpc.blocks b WHERE EXISTS (SELECT 1 FROM eth_rpc.logs WHERE block_num = b.block_num + 9)',
        )
        * 2,
        (
            'SELECT block_num() AS n, count(*) AS c FROM eth_rpc.logs GROUP BY block_num()',
            'SELECT _block_num AS n, count(*) AS c FROM eth_rpc.logs GROUP BY _block_num',
        ),
    ],
)
def test_what_is_joined_may_be_in_files(tmp_path, sql, batch):
    made = LocalAmp.simulate(blocks=40, logs_per_block=(0, 4))
    (tmp_path / 'eth_rpc').mkdir()
    for table in ('blocks', 'logs'):
        pq.write_table(made.canonical(table), tmp_path / 'eth_rpc' / f'{table}.parquet', row_group_size=16)
    served = LocalAmp.from_parquet(tmp_path, network='simnet', microbatch_max_blocks=7)
    with served as amp, BareClient(amp.url) as client:
        with client.stream(sql) as stream:
            found = [row for _ in range(6) for row in rows_of(stream.microbatch())]
        assert Counter(map(str, found)) == Counter(map(str, client.query(batch).to_pylist()))
        assert found


def test_groups_by_block(simulated):
    amp, client = simulated(blocks=12, logs_per_block=(0, 4), microbatch_max_blocks=5)
    sql = 'SELECT block_num() AS n, count(*) AS logs FROM eth_rpc.logs GROUP BY block_num()'
    with client.stream(sql) as stream:
        assert stream.schema.equals(client.info(sql).schema)
        found = [row for _ in range(3) for row in rows_of(stream.microbatch())]
    counted = Counter(amp.canonical('logs')['block_num'].to_pylist())
    assert [(row['n'], row['logs']) for row in found] == sorted(counted.items())


def test_a_stream_and_its_flight_info_have_one_schema(simulated):
    _, client = simulated(blocks=2)
    for sql in (JOIN, f'{BLOCKS} UNION ALL {BLOCKS}', 'SELECT block_num(), l.* FROM (SELECT data FROM eth_rpc.logs) l'):
        with client.stream(sql) as stream:
            assert stream.schema.equals(client.info(sql).schema)


# Signs of life

SLOW = (
    'SELECT count(*) AS n, block_num() FROM eth_rpc.logs a JOIN eth_rpc.logs b ON a.data < b.data GROUP BY block_num()'
)


def test_a_microbatch_that_takes_long_is_kept_alive(simulated):
    amp, client = simulated(blocks=1, logs_per_block=5000)
    amp.faults.keep_alive_every(0.001)
    with client.stream(SLOW) as stream:
        first, *others, last = stream.microbatch()
    assert (first.rows, first.complete, first.span) == (0, False, (0, 0))
    assert first.range == last.range
    assert sum(received.rows for received in others) == 1
    assert last.complete


def test_nothing_is_said_between_microbatches(simulated):
    amp, client = simulated(blocks=3)
    amp.faults.keep_alive_every(0.01)
    with client.stream(BLOCKS) as stream:
        stream.microbatch()
        thread, found = in_a_thread(stream.raw_chunk)
        thread.join(0.5)
        assert thread.is_alive()
        amp.mine()
        thread.join(60)
    assert found


def test_a_client_that_leaves_a_slow_microbatch_leaves_no_thread_for_long(simulated):
    amp, client = simulated(blocks=1, logs_per_block=5000)
    amp.faults.keep_alive_every(0.001)
    before = set(sys._current_frames())
    with client.stream(SLOW) as stream:
        assert stream.raw_chunk().data.num_rows == 0
    wait_until(lambda: set(sys._current_frames()) <= before, 120)
    assert client.query(BLOCKS).num_rows == 1


def test_an_error_of_a_join_ends_the_stream_with_a_status(simulated):
    _, client = simulated(blocks=3, logs_per_block=1)
    sql = (
        'SELECT 1 / (b.block_num - 1) AS x FROM eth_rpc.blocks b JOIN eth_rpc.logs l ON b.hash = l.block_hash '
        'WHERE l.log_index >= 0'
    )
    twice = r'streaming query execution error \| Caused by: streaming query execution error -> .*[Dd]ivide by zero'
    with client.stream(sql) as stream, pytest.raises(fl.FlightInternalError, match=twice):
        stream.microbatch()
