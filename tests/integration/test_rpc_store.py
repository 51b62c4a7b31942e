"""A node's history in Parquet files: fetched in parallel, gone on with after a crash, and what a bad node does to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp
from amp.devserver.anvil import Anvil, find_anvil, install_anvil
from amp.errors import ConfigError, ConnectError, SourceError
from tests.support.bare_client import BareClient
from tests.support.node_front import NodeFront
from tests.support.ports import free_port

pytestmark = pytest.mark.integration

SECONDS = 60
BLOCKS = 1300
RUNS = [(0, 499), (500, 999)]
FINAL = 1000
TABLES = ('blocks', 'transactions', 'logs')


@pytest.fixture(scope='module')
def long_chain():
    with Anvil(install_anvil(), port=free_port()) as anvil:
        token = anvil.deploy_erc20()
        for step in range(40):
            anvil.transfer(token, anvil.accounts[1], step)
            anvil.mine(10)
        anvil.mine(BLOCKS - anvil.block_number)
        yield anvil


@pytest.fixture
def front(long_chain):
    with NodeFront(long_chain.url) as front:
        yield front


def settled(folder) -> list[tuple[int, int]]:
    """The runs of blocks in the files."""
    ranges = [
        json.loads(pq.read_metadata(f).metadata[b'nozzle_metadata'])['ranges'][0]
        for f in sorted(folder.glob('blocks/*.parquet'))
    ]
    return [(r['numbers']['start'], r['numbers']['end']) for r in ranges]


def until(condition, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f'{what} has not come to pass'
        time.sleep(0.01)


def same_rows(one: LocalAmp, other: LocalAmp) -> None:
    for table in TABLES:
        assert one.canonical(table).equals(other.canonical(table)), table


def test_history_is_settled_in_files_and_served_from_them(long_chain, tmp_path):
    with LocalAmp.from_rpc(long_chain.url) as memory, LocalAmp.from_rpc(long_chain.url, store=tmp_path) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        memory.wait_for_block(BLOCKS, timeout=SECONDS)
        runs = settled(tmp_path)
        assert runs == RUNS
        same_rows(amp, memory)
        with BareClient(amp.url) as client, BareClient(memory.url) as plain:
            for sql in (
                'SELECT count(*) AS n, max(block_num) AS last FROM eth_rpc.blocks',
                'SELECT l.block_num, b.hash, l.data FROM eth_rpc.logs l JOIN eth_rpc.blocks b USING (block_num) ORDER BY 1',
                'SELECT block_num, hash FROM eth_rpc.blocks WHERE block_num BETWEEN 990 AND 1010 ORDER BY 1',
            ):
                assert client.query(sql).equals(plain.query(sql)), sql
            with client.stream('SELECT block_num FROM eth_rpc.blocks') as stream:
                spans = [stream.microbatch()[-1].span for _ in range(2)]
            assert spans == [(0, 999), (1000, BLOCKS)]
            cursor = {'anvil': {'number': 700, 'hash': amp.block_hash(700)}}
            with client.stream('SELECT block_num FROM eth_rpc.blocks', cursor) as stream:
                assert stream.microbatch()[-1].span == (701, BLOCKS)


def test_the_files_are_such_as_amp_writes(long_chain, tmp_path):
    with LocalAmp.from_rpc(long_chain.url, store=tmp_path / 'eth_rpc') as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        hashes = {n: amp.block_hash(n) for n in (499, 999)}
        stamp = int(long_chain.call('eth_getBlockByNumber', hex(999), False)['timestamp'], 16)
        seen = {table: amp.canonical(table) for table in TABLES}
    for table in TABLES:
        file = sorted((tmp_path / 'eth_rpc' / table).glob('*.parquet'))[1]
        opened = pq.ParquetFile(file)
        said = opened.metadata.metadata
        described = json.loads(said[b'nozzle_metadata'])
        assert described['table'] == table
        assert described['filename'] == file.name
        assert file.name.startswith('000000500-')
        assert described['created_at'].keys() == {'secs', 'nanos'}
        assert described['ranges'] == [
            {
                'numbers': {'start': 500, 'end': 999},
                'network': 'anvil',
                'hash': hashes[999],
                'prev_hash': hashes[499],
                'timestamp': stamp,
            }
        ]
        assert (said[b'generation'], said[b'parent_file_ids']) == (b'0', b'[]')
        assert opened.metadata.row_group(0).column(0).compression == 'ZSTD'
    # What was written is a directory of datasets by itself.
    with LocalAmp.from_parquet(tmp_path) as stored:
        assert stored.network == 'anvil'
        assert stored.head == (FINAL - 1, hashes[FINAL - 1])
        for table in TABLES:
            whole = seen[table]
            assert stored.canonical(table).equals(whole.filter(pa.compute.less(whole['_block_num'], FINAL)))


def test_a_server_that_was_killed_goes_on_where_it_stopped(long_chain, front, tmp_path):
    program = (
        'import sys, time\n'
        'from amp.devserver import LocalAmp\n'
        'with LocalAmp.from_rpc(sys.argv[1], store=sys.argv[2], workers=3, segment_blocks=100):\n'
        '    time.sleep(600)\n'
    )
    killed = threading.Event()

    def held_from_700(call, answer):
        if call['method'] == 'eth_getBlockByNumber' and call['params'][1] and int(call['params'][0], 16) >= 700:
            killed.wait(SECONDS)
        return answer

    front.change = held_from_700
    child = subprocess.Popen([sys.executable, '-c', program, front.url, str(tmp_path)])
    try:
        until(lambda: len(list(tmp_path.glob('blocks/*.parquet'))) >= 2, 'two runs of blocks')
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        killed.set()
    kept = settled(tmp_path)
    # What a crash can leave: a file of a table whose run is not whole, and one half written.
    leftover = next(tmp_path.glob('logs/*.parquet'))
    shutil.copy(leftover, leftover.with_name('000009999-0123456789abcdef.parquet'))
    leftover.with_name('000009998-0123456789abcdef.tmp').write_bytes(b'PAR1')
    front.asked.clear()
    with (
        LocalAmp.from_rpc(front.url, store=tmp_path, segment_blocks=100) as amp,
        LocalAmp.from_rpc(long_chain.url) as memory,
    ):
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        memory.wait_for_block(BLOCKS, timeout=SECONDS)
        same_rows(amp, memory)
        with BareClient(amp.url) as client:
            assert client.query('SELECT count(*) AS n FROM eth_rpc.logs')['n'].to_pylist() == [
                memory.canonical('logs').num_rows
            ]
    again = [n for start, end in kept for n in range(start, end + 1) if front.asked[n]]
    assert 2 <= len(kept) <= 7
    assert again == []
    assert settled(tmp_path) == [(at, at + 99) for at in range(0, 1200, 100)]


def test_head_blocks_are_settled_when_they_are_final(tmp_path):
    with Anvil(find_anvil(), port=free_port()) as anvil:
        token = anvil.deploy_erc20()
        anvil.mine(299)
        with LocalAmp.from_rpc(anvil.url, store=tmp_path, finality=10) as amp:
            amp.wait_for_block(300)
            for step in range(6):
                anvil.transfer(token, anvil.accounts[1], step)
                anvil.mine(45)
                amp.sync()
            assert settled(tmp_path) == [(0, 499)]
            anvil.reorg(8)
            anvil.mine(2)
            amp.sync()
            assert amp.head == (572, anvil.call('eth_getBlockByNumber', 'latest', False)['hash'])
            assert amp.canonical('blocks')['block_num'].to_pylist() == list(range(573))
        # A reorg of what was final is said, and the server stays up.
        with LocalAmp.from_rpc(anvil.url, store=tmp_path, finality=10) as amp, BareClient(amp.url) as client:
            amp.wait_for_block(572)
            anvil.reorg(100)
            anvil.mine(1)
            until(lambda: amp.source_error is not None, 'an error')
            assert 'has replaced block 499, which was final' in str(amp.source_error)
            assert client.query('SELECT count(*) AS n FROM eth_rpc.blocks')['n'].to_pylist() == [573]
        with pytest.raises(ConfigError, match='has another block 499 than the store'):
            LocalAmp.from_rpc(anvil.url, store=tmp_path, finality=10)


def test_a_busy_node_is_asked_again_after_the_pause_that_it_names(front):
    front.statuses += [(429, {'Retry-After': '1'}), (503, {}), (429, {})]
    begun = time.monotonic()
    with LocalAmp.from_rpc(front.url, start_block=BLOCKS - 40) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        assert time.monotonic() - begun >= 1
        assert amp.source_error is None


def test_a_node_that_says_in_json_that_it_is_busy(front):
    tired = 3

    def limited(call, answer):
        nonlocal tired
        if call['method'] == 'eth_getBlockReceipts' and tired:
            tired -= 1
            return {'jsonrpc': '2.0', 'id': call['id'], 'error': {'code': -32005, 'message': 'limit exceeded'}}
        return answer

    front.change = limited
    with LocalAmp.from_rpc(front.url) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        assert amp.canonical('logs').num_rows == 41


def test_a_node_that_is_always_busy_is_an_error_that_says_so(front):
    with LocalAmp.from_rpc(front.url, network='anvil', start_block=BLOCKS) as amp, BareClient(amp.url) as client:
        amp.wait_for_block(BLOCKS)
        front.statuses += [(429, {'Retry-After': '0'})] * 6
        until(lambda: amp.source_error is not None, 'an error')
        assert 'is busy: HTTP 429, 6 times in a row' in str(amp.source_error)
        assert client.query('SELECT count(*) AS n FROM eth_rpc.blocks')['n'].to_pylist() == [1]


def test_the_pace_is_kept(front):
    begun = time.monotonic()
    with LocalAmp.from_rpc(front.url, start_block=BLOCKS - 149, calls_per_second=100) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
    assert time.monotonic() - begun >= 1.3


def test_a_node_that_takes_few_calls_at_once(front):
    front.most_calls = 1
    with LocalAmp.from_rpc(front.url, start_block=380) as amp:
        amp.wait_for_block(430, timeout=SECONDS)
        assert amp.canonical('transactions').num_rows


@pytest.mark.parametrize(
    ('method', 'said'), [('eth_getBlockByNumber', 'null for block 20'), ('eth_getBlockReceipts', 'null for receipts')]
)
def test_a_pruned_node_is_an_error_that_says_so(front, method, said):
    def pruned(call, answer):
        old = (
            call['method'] == method
            and call['params'][0].startswith('0x')
            and int(call['params'][0], 16) in range(20, 30)
        )
        return {**answer, 'result': None} if old else answer

    front.change = pruned
    with LocalAmp.from_rpc(front.url) as amp:
        until(lambda: amp.source_error is not None, 'an error')
        assert said in str(amp.source_error)
        assert 'pruned' in str(amp.source_error)
        front.change = lambda call, answer: answer
        amp.wait_for_block(BLOCKS, timeout=SECONDS)


def test_a_slow_node(front):
    front.delay = 60.0
    with pytest.raises(ConnectError, match=r'has not answered within 0\.2 s'):
        LocalAmp.from_rpc(front.url, timeout=0.2)


@pytest.mark.parametrize('body', [b'<html>', b'[1, 2]', b'"no"', b'{"jsonrpc": "2.0", "id": 1, "result": null}'])
def test_a_node_that_is_none(front, body):
    front.body = body
    with pytest.raises(SourceError, match='the node http://127'):
        LocalAmp.from_rpc(front.url)


def test_blocks_of_an_unknown_form(front):
    def strange(call, answer):
        if isinstance(answer.get('result'), dict):
            answer['result'].pop('logsBloom', None)
        return answer

    front.change = strange
    with LocalAmp.from_rpc(front.url, start_block=BLOCKS - 5) as amp:
        until(lambda: amp.source_error is not None, 'an error')
        assert 'in a way that is not known' in str(amp.source_error)
        assert 'logsBloom' in str(amp.source_error)


def test_a_store_is_of_one_chain_and_of_one_server(front, long_chain, tmp_path):
    with LocalAmp.from_rpc(front.url, store=tmp_path, start_block=700) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        with pytest.raises(ConfigError, match='another process has the store'):
            LocalAmp.from_rpc(long_chain.url, store=tmp_path, start_block=700)
    with pytest.raises(ConfigError, match='start_block 700, and 0 is wanted'):
        LocalAmp.from_rpc(front.url, store=tmp_path)
    front.change = lambda call, answer: {**answer, 'result': '0x1'} if call['method'] == 'eth_chainId' else answer
    with pytest.raises(ConfigError, match='chain_id 31337, and 1 is wanted'):
        LocalAmp.from_rpc(front.url, network='anvil', store=tmp_path, start_block=700)
    with pytest.raises(ConfigError, match='network anvil, and mainnet is wanted'):
        LocalAmp.from_rpc(front.url, store=tmp_path, start_block=700)


def test_a_node_that_becomes_another_chain_is_not_followed(front):
    with LocalAmp.from_rpc(front.url, start_block=BLOCKS - 5, poll_seconds=0.01) as amp, BareClient(amp.url) as client:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        front.change = lambda call, answer: {**answer, 'result': '0x5'} if call['method'] == 'eth_chainId' else answer
        front.statuses.append((500, {}))
        until(lambda: 'is on chain id 5, and what is stored is of 31337' in str(amp.source_error), 'the error')
        assert client.query('SELECT count(*) AS n FROM eth_rpc.blocks')['n'].to_pylist() == [6]
        front.change = lambda call, answer: answer
        until(lambda: amp.source_error is None, 'recovery')


def test_what_is_stored_is_served_while_the_node_is_away(front, tmp_path):
    with LocalAmp.from_rpc(front.url, store=tmp_path) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
    with LocalAmp.from_rpc('http://127.0.0.1:9', store=tmp_path) as amp, BareClient(amp.url) as client:
        assert client.query('SELECT count(*) AS n FROM eth_rpc.blocks')['n'].to_pylist() == [FINAL]
        until(lambda: amp.source_error is not None, 'an error')
        assert 'does not answer' in str(amp.source_error)
    with pytest.raises(ConnectError, match='does not answer'):
        LocalAmp.from_rpc('http://127.0.0.1:9', store=tmp_path / 'empty')


def test_a_damaged_file_is_fetched_again(front, tmp_path, caplog):
    with LocalAmp.from_rpc(front.url, store=tmp_path) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        seen = {table: amp.canonical(table) for table in TABLES}
    damaged = sorted(tmp_path.glob('logs/*.parquet'))[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    front.asked.clear()
    with LocalAmp.from_rpc(front.url, store=tmp_path) as amp:
        amp.wait_for_block(BLOCKS, timeout=SECONDS)
        for table in TABLES:
            assert amp.canonical(table).equals(seen[table])
    assert f'{damaged} cannot be read' in caplog.text
    assert {n for n in front.asked if n < FINAL} == set(range(500, 1000))
