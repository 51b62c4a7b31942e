"""A real EVM node behind the local Amp: what queries see is what the node says, through reorgs and outages."""

from __future__ import annotations

import base64
import re
import sys
import threading

import pytest

from amp.devserver import LocalAmp
from amp.devserver.anvil import Anvil, find_anvil, install_anvil
from amp.devserver.simulator import TRANSFER_TOPIC
from amp.errors import ConfigError, ConnectError
from tests.support.bare_client import BareClient
from tests.support.faults import wait_until
from tests.support.node_front import NodeFront
from tests.support.ports import free_port

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def anvil_binary():
    return install_anvil()


@pytest.fixture
def anvil(anvil_binary):
    with Anvil(anvil_binary, port=free_port()) as node:
        yield node


def same_logs(amp: LocalAmp, anvil: Anvil) -> int:
    """Compare every column of every logs row with eth_getLogs; the number of rows."""
    said = anvil.call('eth_getLogs', {'fromBlock': '0x0', 'toBlock': 'latest'})
    blocks = {}
    for log in said:
        blocks.setdefault(log['blockNumber'], anvil.call('eth_getBlockByNumber', log['blockNumber'], False))
    wanted = [
        {
            '_block_num': int(log['blockNumber'], 16),
            'block_hash': log['blockHash'],
            'block_num': int(log['blockNumber'], 16),
            'timestamp': int(blocks[log['blockNumber']]['timestamp'], 16),
            'tx_hash': log['transactionHash'],
            'tx_index': int(log['transactionIndex'], 16),
            'log_index': int(log['logIndex'], 16),
            'address': log['address'].lower(),
            **{f'topic{i}': log['topics'][i] if i < len(log['topics']) else None for i in range(4)},
            'data': log['data'],
        }
        for log in said
    ]
    found = amp.canonical('logs').to_pylist()
    for row in found:
        row['timestamp'] = row['timestamp'].value // 10**9
        for key, value in row.items():
            row[key] = '0x' + value.hex() if isinstance(value, bytes) else value
    assert found == wanted
    return len(found)


def same_blocks(amp: LocalAmp, anvil: Anvil) -> None:
    blocks, transactions = amp.canonical('blocks').to_pylist(), amp.canonical('transactions').to_pylist()
    assert [b['block_num'] for b in blocks] == list(range(anvil.block_number + 1))
    sent = []
    for block in blocks:
        said = anvil.call('eth_getBlockByNumber', hex(block['block_num']), True)
        sent += said['transactions']
        assert '0x' + block['hash'].hex() == said['hash']
        assert '0x' + block['parent_hash'].hex() == said['parentHash']
        assert '0x' + block['state_root'].hex() == said['stateRoot']
        assert '0x' + block['logs_bloom'].hex() == said['logsBloom']
        assert block['gas_used'] == int(said['gasUsed'], 16)
        assert block['base_fee_per_gas'] == int(said['baseFeePerGas'], 16)
    assert len(transactions) == len(sent)
    for row, said in zip(transactions, sent, strict=True):
        receipt = anvil.call('eth_getTransactionReceipt', said['hash'])
        assert '0x' + row['tx_hash'].hex() == said['hash']
        assert '0x' + row['from'].hex() == said['from']
        assert (row['to'] and '0x' + row['to'].hex()) == said['to']
        assert '0x' + row['input'].hex() == said['input']
        assert row['value'] == str(int(said['value'], 16))
        assert int.from_bytes(row['r'], 'big') == int(said['r'], 16)
        assert row['type'] == int(said['type'], 16)
        assert row['chain_id'] == 31337
        assert row['gas_used'] == int(receipt['gasUsed'], 16)
        assert row['status'] == (receipt['status'] == '0x1')


def test_transfers_and_reorgs_are_seen_as_the_node_says_them(anvil):
    token = anvil.deploy_erc20(supply=10**30)
    with LocalAmp.from_rpc(anvil.url) as amp, BareClient(amp.url) as client:
        assert amp.network == 'anvil'
        for block in range(8):
            for i in range(5):
                anvil.transfer(token, anvil.accounts[1 + i], 1000 * block + i)
            anvil.mine()
        amp.sync()
        same_blocks(amp, anvil)
        assert same_logs(amp, anvil) == 41

        topic = TRANSFER_TOPIC.hex()
        transfers = client.query(
            f"SELECT data, topic2 FROM eth_rpc.logs WHERE topic0 = x'{topic}' AND address = x'{token[2:]}'"
        )
        assert sum(int.from_bytes(data, 'big') for data in transfers['data'].to_pylist()) == 10**30 + sum(
            1000 * block + i for block in range(8) for i in range(5)
        )

        with client.stream('SELECT block_num, hash FROM eth_rpc.blocks') as stream:
            assert stream.microbatch()[-1].span == (0, 9)
            anvil.reorg(3)
            amp.sync()
            assert amp.block_hash(9) != anvil.call('eth_getBlockByNumber', '0x9', False)['hash']
            anvil.transfer(token, anvil.accounts[1], 5)
            anvil.mine()
            done = stream.microbatch()[-1]
        assert (done.span, done.range['prev_hash']) == ((7, 10), amp.block_hash(6))
        assert same_logs(amp, anvil) == 27
        same_blocks(amp, anvil)

        for depth in (1, 6, 2):
            anvil.reorg(depth)
            anvil.transfer(token, anvil.accounts[2], depth)
            anvil.mine(2)
            amp.sync()
            same_logs(amp, anvil)
        same_blocks(amp, anvil)


def test_more_blocks_than_one_request_takes(anvil):
    anvil.mine(130)
    with LocalAmp.from_rpc(anvil.url, network='here', start_block=5) as amp:
        amp.wait_for_block(130)
        assert amp.canonical('blocks')['block_num'].to_pylist() == list(range(5, 131))
        anvil.reorg(70)
        anvil.mine(60)
        amp.sync()
        assert amp.head == (190, anvil.call('eth_getBlockByNumber', 'latest', False)['hash'])


def test_reorgs_while_it_follows(anvil):
    token = anvil.deploy_erc20()
    with LocalAmp.from_rpc(anvil.url, poll_seconds=0.01) as amp:
        for step in range(25):
            anvil.transfer(token, anvil.accounts[1], step)
            anvil.mine(2)
            if step % 3 == 2:
                anvil.reorg(1 + step % 5)
        anvil.mine(8)
        amp.wait_for_block(anvil.block_number)
        amp.sync()
        same_logs(amp, anvil)
        same_blocks(amp, anvil)


def test_an_outage_is_reported_and_waited_out(anvil):
    anvil.mine(3)
    with LocalAmp.from_rpc(anvil.url, poll_seconds=0.01) as amp, BareClient(amp.url) as client:
        amp.wait_for_block(3)
        anvil.stop()
        wait_until(lambda: amp.source_error is not None)
        assert 'does not answer' in str(amp.source_error)
        with pytest.raises(ConnectError, match='does not answer'):
            amp.sync()
        assert client.query('SELECT * FROM eth_rpc.blocks').num_rows == 4
        # The same port, another chain: it is taken over once it is higher.
        anvil.start()
        anvil.mine(6)
        amp.wait_for_block(6)
        amp.sync()
        assert amp.source_error is None
        same_blocks(amp, anvil)


def _empty(call, answer):
    return {**answer, 'result': {}} if call['params'][:1] == ['finalized'] else answer


def _words(call, answer):
    return {**answer, 'result': 'soon'} if call['params'][:1] == ['finalized'] else answer


def _far_future(call, answer):
    if isinstance(answer.get('result'), dict) and 'timestamp' in answer['result']:
        answer['result']['timestamp'] = '0xffffffffffffffff'
    return answer


def _strange_id(call, answer):
    return {**answer, 'id': [answer['id']]} if call['method'] == 'eth_blockNumber' else answer


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (_empty, r'answers eth_getBlockByNumber\(finalized\) with None'),
        (_words, r"answers eth_getBlockByNumber\(finalized\) with 'soon'"),
        (_far_future, 'describes blocks 0-3 in a way that is not known'),
        (_strange_id, 'refuses eth_blockNumber: no answer'),
    ],
)
def test_an_answer_that_cannot_be_meant_is_told_and_asked_for_again(anvil, change, told):
    anvil.mine(3)
    with NodeFront(anvil.url) as front:
        front.change = change
        with LocalAmp.from_rpc(front.url, poll_seconds=0.01) as amp:
            wait_until(lambda: amp.source_error is not None)
            assert re.search(told, str(amp.source_error))
            front.change = lambda call, answer: answer
            amp.wait_for_block(3)
            amp.sync()
            same_blocks(amp, anvil)


def test_the_user_of_a_url_is_sent_and_never_told(anvil):
    anvil.mine(2)
    with NodeFront(anvil.url) as front:
        address = front.url.removeprefix('http://')
        url = f'http://us%40er:s3%2Fcret@{address}/v3/apikey?token=apikey'
        with LocalAmp.from_rpc(url, poll_seconds=0.01) as amp:
            amp.wait_for_block(2)
            assert front.headers['authorization'] == f'Basic {base64.b64encode(b"us@er:s3/cret").decode()}'
            assert front.path == '/v3/apikey?token=apikey'
            front.change = _empty
            wait_until(lambda: amp.source_error is not None)
            assert f'the node http://{address} answers' in str(amp.source_error)
    with pytest.raises(ConnectError) as caught:
        LocalAmp.from_rpc(url)
    assert str(caught.value).startswith(f'the node http://{address} does not answer')


@pytest.mark.parametrize(
    'url',
    [
        'ws://user:s3cret@127.0.0.1/s3cret',
        'http://user:s3/cret@127.0.0.1',
        'http://user:1/s3cret@127.0.0.1',
        'http://127.0.0.1:s3cret',
        'http:///s3cret',
        'http://[s3cret',
        'http://127.0.0.1/s3 cret',
    ],
)
def test_a_url_that_cannot_be_meant_is_not_told(url):
    with pytest.raises(ConfigError) as caught:
        LocalAmp.from_rpc(url)
    assert 'cret' not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_node_that_never_was():
    with pytest.raises(ConnectError, match='does not answer'):
        LocalAmp.from_rpc('http://127.0.0.1:9')
    with pytest.raises(ConfigError, match='not the URL of a node'):
        LocalAmp.from_rpc('127.0.0.1:8545')


def test_anvil_is_installed_once_by_many(tmp_path, anvil_binary):
    found = []
    installers = [threading.Thread(target=lambda: found.append(install_anvil(tmp_path / 'cache'))) for _ in range(2)]
    for installer in installers:
        installer.start()
    for installer in installers:
        installer.join()
    assert len(found) == 2
    assert found[0] == found[1] == find_anvil(tmp_path / 'cache')
    with Anvil(found[0], port=free_port()) as node:
        assert node.deploy_erc20().startswith('0x')


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
    monkeypatch.setenv('AMP_CACHE_DIR', str(tmp_path / 'cache'))
    assert find_anvil() is None
    with pytest.raises(ConfigError, match=r'install Node\.js'):
        install_anvil()
    with pytest.raises(ConfigError, match='anvil is not installed'):
        Anvil()
