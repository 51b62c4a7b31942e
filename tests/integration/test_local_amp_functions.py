"""The SQL functions over the wire, through a bare Flight client: the protocol's vectors, and a real node's chain."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import eth_abi
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from eth_hash.auto import keccak

from amp.devserver import LocalAmp
from amp.devserver.anvil import Anvil, find_anvil, install_anvil
from amp.devserver.evm.functions import BUILDERS, BY_TYPES
from tests.support.bare_client import BareClient
from tests.support.command_line import AMP, amp, end, environment, one_sentence
from tests.support.ports import free_port

pytestmark = pytest.mark.integration

TRANSFER = 'Transfer(address indexed from, address indexed to, uint256 value)'
TOPIC = 'ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef'


@pytest.fixture(scope='module')
def local():
    with LocalAmp.simulate(blocks=30, logs_per_block=20) as amp, BareClient(amp.url) as client:
        yield amp, client


def refused(ask, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        ask()
    return str(caught.value)


def test_vector_31_the_functions_of_the_protocol(local):
    _, client = local
    table = client.query(f"SELECT evm_topic('{TRANSFER}') AS t, shift_units('1.376988483056381409','18') AS s")
    assert table.to_pylist() == [{'t': bytes.fromhex(TOPIC), 's': '1376988483056381409'}]
    assert table.schema.types == [pa.binary(32), pa.string()]
    told = refused(lambda: client.info("SELECT evm_encode_hex('0x123')"), fl.FlightInternalError)
    assert 'invalid hex string: odd number of digits' in told


def test_vector_29_reserved_aliases(local):
    _, client = local
    told = refused(lambda: client.info('SELECT 0 AS _block_num'), pa.ArrowInvalid)
    assert (
        "expression contains a column alias starting with '_': '_block_num'. Underscore-prefixed names are reserved. "
        'Please rename your column'
    ) in told


def test_vector_30_unknown_columns_are_internal(local):
    _, client = local
    told = refused(lambda: client.info('SELECT nope FROM eth_rpc.blocks'), fl.FlightInternalError)
    assert 'failed to infer SQL output schema | Caused by: ' in told
    assert 'No field named nope. Valid fields are ' in told


def test_vectors_24_and_28_streams_of_what_cannot_be_streamed(local):
    _, client = local
    sql = 'SELECT count(*) AS n FROM eth_rpc.blocks SETTINGS stream = true'
    ticket = client.info(sql).endpoints[0].ticket
    told = refused(lambda: client.flight.do_get(ticket).read_all(), pa.ArrowInvalid)
    assert told.startswith(
        'invalid query: non-incremental queries are not supported for streaming, query contains non-incremental '
        'operation: Aggregate'
    )
    with client.open(sql, amp_stream='false') as stream:
        assert [received.complete for received in stream] == [False, True]


def test_block_num_is_refused_in_a_batch_query(local):
    _, client = local
    ticket = client.info('SELECT block_num() FROM eth_rpc.blocks').endpoints[0].ticket
    told = refused(lambda: client.flight.do_get(ticket).read_all(), fl.FlightInternalError)
    assert 'block_num() is only supported in streaming queries' in told


def test_decoding_in_a_stream(local):
    amp, client = local
    sql = (
        f"SELECT _block_num, evm_decode_log(topic1, topic2, topic3, data, '{TRANSFER}') AS event FROM eth_rpc.logs "
        f"WHERE topic0 = evm_topic('{TRANSFER}')"
    )
    with client.stream(sql) as stream:
        received = stream.microbatch()
    found = pa.Table.from_batches([each.batch for each in received])
    logs = amp.canonical('logs').to_pylist()
    assert found['event'].to_pylist() == [
        {
            'from': log['topic1'][12:],
            'to': log['topic2'][12:],
            'value': str(int.from_bytes(log['data'], 'big')) if len(log['data']) >= 32 else None,
        }
        for log in logs
        if log['topic0'].hex() == TOPIC
    ]


def test_hostile_statements_leave_the_server_up(local):
    _, client = local
    hostile = [
        'SELECT ' + '+'.join(['1'] * 20_000),
        'SELECT ' + '(' * 100_000,
        "SELECT evm_topic('" + 'x' * 500_000 + "')",
        "SELECT evm_decode_type(x'00', 'string" + '[1000]' * 16 + "')",
        'SELECT ' + 'evm_topic(' * 5000 + ')' * 5000,
        "SELECT 'unfinished",
        'SELECT /* unfinished',
        'SELECT evm_topic(\x00)',
        f"SELECT shift_units('1e{'9' * 9}', 1)",
    ]
    for sql in hostile:
        refused(lambda sql=sql: client.query(sql), pa.ArrowException)
    assert client.query('SELECT 1 AS one')['one'].to_pylist() == [1]


def test_many_clients_at_once_get_their_own_functions(local):
    amp, _ = local
    found: dict[int, list] = {}

    def ask(at: int) -> None:
        with BareClient(amp.url) as client:
            for units in range(5):
                table = client.query(f"SELECT shift_units({at}, {units}) AS a, evm_topic('E{at}(uint8 x)') AS t")
                found.setdefault(at, []).append((table['a'][0].as_py(), table['t'][0].as_py()))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at in range(6):
        topic = keccak(f'E{at}(uint8)'.encode())
        assert found[at] == [(str(at * 10**units), topic) for units in range(5)]


def test_friendly_errors_have_other_codes_and_texts():
    with LocalAmp.simulate(blocks=3, friendly=True) as amp, BareClient(amp.url) as client:
        told = refused(lambda: client.info('SELECT hashh FROM eth_rpc.blocks'), pa.ArrowInvalid)
        assert told.startswith("there is no column 'hashh' (did you mean hash?)")
        told = refused(lambda: client.info('SELECT 1 FROM other.blocks'), KeyError)
        assert "there is no dataset 'other' (this server has eth_rpc with blocks, transactions, logs)" in told
        cursor = {'elsewhere': {'number': 1, 'hash': '0x' + '00' * 32}}
        told = refused(lambda: client.stream('SELECT hash FROM eth_rpc.blocks', cursor), pa.ArrowInvalid)
        assert told.startswith("the query follows the network 'simnet', the cursor in amp-resume is of [elsewhere]")
        told = refused(lambda: client.query("SELECT shift_units('x', 1)"), fl.FlightInternalError)
        assert told.startswith("shift_units: failed to parse value: 'x' is not a number")


# A real node


@pytest.fixture(scope='module')
def anvil():
    with Anvil(install_anvil(), port=free_port()) as node:
        yield node


@pytest.fixture(scope='module')
def token(anvil):
    address = anvil.deploy_erc20(name='A token', symbol='TOK', supply=10**30)
    for block in range(5):
        for at in range(4):
            anvil.transfer(address, anvil.accounts[1 + at], 10**18 * block + at)
        anvil.mine()
    return address


@pytest.fixture(scope='module')
def real(anvil, token):
    with LocalAmp.from_rpc(anvil.url) as amp, BareClient(amp.url) as client:
        amp.sync()
        yield client


def test_transfers_are_decoded_as_the_abi_says(anvil, token, real):
    said = anvil.call('eth_getLogs', {'fromBlock': '0x0', 'toBlock': 'latest', 'address': token})
    wanted = []
    for log in said:
        ((sender,), (to,)) = (eth_abi.decode(['address'], bytes.fromhex(topic[2:])) for topic in log['topics'][1:])
        (value,) = eth_abi.decode(['uint256'], bytes.fromhex(log['data'][2:]))
        wanted.append({'from': sender, 'to': to, 'value': str(value), 'tx': log['transactionHash']})
    table = real.query(
        "SELECT evm_decode_hex(e['from']) AS \"from\", evm_decode_hex(e['to']) AS \"to\", e['value'] AS value, "
        'evm_decode_hex(tx_hash) AS tx FROM (SELECT tx_hash, block_num, log_index, '
        f"evm_decode_log(topic1, topic2, topic3, data, '{TRANSFER}') AS e FROM eth_rpc.logs "
        f"WHERE topic0 = evm_topic('{TRANSFER}') AND address = evm_encode_hex('{token}')) ORDER BY block_num, log_index"
    )
    assert table.to_pylist() == wanted
    assert len(wanted) == 21


def test_calldata_is_decoded_and_encodes_to_itself(anvil, token, real):
    call = 'transfer(address to, uint256 amount)'
    table = real.query(
        f"SELECT input, evm_decode_params(input, '{call}') AS p FROM eth_rpc.transactions "
        f'WHERE "to" = evm_encode_hex(\'{token}\') ORDER BY block_num, tx_index'
    )
    assert table.num_rows == 20
    for row in table.to_pylist():
        to, amount = eth_abi.decode(['address', 'uint256'], row['input'][4:])
        assert row['p'] == {'to': bytes.fromhex(to[2:]), 'amount': str(amount)}
    encoded = real.query(
        f"SELECT input = evm_encode_params(p['to'], CAST(p['amount'] AS DECIMAL(76, 0)), '{call}') AS same FROM "
        f"(SELECT input, evm_decode_params(input, '{call}') AS p FROM eth_rpc.transactions "
        f'WHERE "to" = evm_encode_hex(\'{token}\'))'
    )
    assert encoded['same'].to_pylist() == [True] * 20


def test_contracts_are_called_at_a_block(anvil, token, real):
    holder = anvil.accounts[2]
    table = real.query(
        f"SELECT block_num, evm_decode_type(c['data'], 'uint256') AS balance, c['message'] AS message FROM (SELECT block_num, "
        f"eth_rpc.eth_call(NULL, evm_encode_hex('{token}'), evm_encode_params(evm_encode_hex('{holder}'), "
        "'balanceOf(address account)'), CAST(block_num AS VARCHAR)) AS c FROM eth_rpc.blocks WHERE block_num > 0) "
        'ORDER BY block_num'
    )
    calldata = '0x70a08231' + holder[2:].lower().rjust(64, '0')
    for row in table.to_pylist():
        said = anvil.call('eth_call', {'to': token, 'data': calldata}, hex(row['block_num']))
        assert row['balance'] == str(int(said, 16))
    assert table['balance'].to_pylist()[-1] != '0'
    assert set(table['message'].to_pylist()) == {None}


def test_a_call_that_reverts_says_why(anvil, token, real):
    expression = (
        f"\"_/eth_rpc@1.0.0\".eth_call(evm_encode_hex('{anvil.accounts[9]}'), evm_encode_hex('{token}'), "
        f"evm_encode_params(evm_encode_hex('{anvil.accounts[1]}'), arrow_cast(5, 'UInt64'), 'transfer(address a, uint256 b)'), "
        "'latest')"
    )
    table = real.query(f'SELECT {expression} AS c')
    assert table.schema.field('c').type == pa.struct([('data', pa.binary()), ('message', pa.string())])
    (answer,) = table['c'].to_pylist()
    reason = 'ERC20: transfer amount exceeds balance'
    assert answer['message'] == f'execution reverted: {reason}'
    assert answer['data'] == keccak(b'Error(string)')[:4] + eth_abi.encode(['string'], [reason])
    assert real.info(f'SELECT {expression}').schema.names[0].startswith('_/eth_rpc@1.0.0.eth_call(')


def test_text_that_a_contract_returns(real, token):
    table = real.query(
        f"SELECT evm_decode_type(eth_rpc.eth_call(NULL, evm_encode_hex('{token}'), evm_encode_params('name()'), 'latest')['data'], "
        "'string') AS name, eth_rpc.eth_call(NULL, evm_encode_hex('0x"
        + '00' * 20
        + "'), NULL, 'latest')['data'] AS nothing"
    )
    assert table.to_pylist() == [{'name': 'A token', 'nothing': b''}]


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ("NULL, evm_encode_hex('{hash}'), NULL, 'latest'", "'to' address is not a valid address"),
        ("evm_encode_hex('{hash}'), evm_encode_hex('{to}'), NULL, 'latest'", "'from' address is not a valid address"),
        ("NULL, NULL, NULL, 'latest'", "'to' address is not a valid address"),
        ("NULL, evm_encode_hex('{to}'), 5, 'latest'", 'input data is not a valid data'),
        ("NULL, evm_encode_hex('{to}'), NULL, NULL", "'block' is not a valid block number or tag: Null"),
        ("NULL, evm_encode_hex('{to}'), NULL, -1", 'block number cannot be negative: -1'),
        (
            "NULL, evm_encode_hex('{to}'), NULL, 'newest'",
            'block is not a valid integer, "0x" prefixed hex integer, or tag',
        ),
        ("NULL, evm_encode_hex('{to}'), 'latest'", 'eth_call: expected 4 arguments, but got 3'),
        ("NULL, arrow_cast(NULL, 'FixedSizeBinary(20)'), NULL, 'latest'", 'to address is NULL'),
    ],
)
def test_calls_that_cannot_be_meant(real, arguments, told):
    sql = f'SELECT eth_rpc.eth_call({arguments})'.replace('{to}', '0x' + '11' * 20).replace('{hash}', '0x' + '11' * 32)
    assert told in refused(lambda: real.query(sql), fl.FlightInternalError)


def test_a_node_that_is_gone_is_a_message_in_the_row(anvil):
    with (
        Anvil(find_anvil(), port=free_port()) as other,
        LocalAmp.from_rpc(other.url) as amp,
        BareClient(amp.url) as client,
    ):
        amp.sync()
        other.stop()
        table = client.query(
            "SELECT eth_rpc.eth_call(NULL, evm_encode_hex('0x" + '11' * 20 + "'), NULL, 'latest') AS c"
        )
        assert table['c'].to_pylist() == [{'data': None, 'message': 'unexpected rpc error'}]
        assert client.query('SELECT 1 AS one').num_rows == 1


PAGE = (Path(__file__).parents[2] / 'docs' / 'local_amp.md').read_text()


@pytest.mark.parametrize('sql', re.findall(r'```sql\n(.*?)```', PAGE, flags=re.DOTALL))
def test_the_examples_of_the_page(local, sql):
    _, client = local
    if 'stream = true' in sql:
        with client.open(sql) as stream:
            assert sum(received.rows for received in stream.microbatch()) >= 1
    else:
        assert client.query(sql).num_rows >= 1


def test_the_page_names_every_function():
    assert {
        name for name in [*BUILDERS, *BY_TYPES, 'block_num'] if f'{name}(' not in PAGE and name != 'evm_decode'
    } == set()


def test_the_command_line_asks_for_friendly_errors(tmp_path):
    options = ('--simulate', '4', '--blocks', '3', '--block-time', '0', '--port', '0', '--friendly')
    command = [*AMP, 'serve', *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment()
    )
    try:
        url = process.stdout.readline().decode().strip()
        with BareClient(url) as client:
            told = refused(lambda: client.info('SELECT hashh FROM eth_rpc.blocks'), pa.ArrowInvalid)
        assert told.startswith("there is no column 'hashh' (did you mean hash?)")
        # What a user of the client sees of it.
        done = amp('query', url, 'SELECT hashh FROM eth_rpc.blocks')
        assert "there is no column 'hashh' (did you mean hash?)" in one_sentence(done)
    finally:
        assert end(process) == (130, [])


@pytest.mark.parametrize(
    ('sql', 'names'),
    [
        ('SELECT block_num(), hash FROM eth_rpc.blocks', ['block_num()', 'hash']),
        (
            'SELECT _block_num, Block_Num /* ( */ ( /* */ ) AS b, block_num() + 1 AS c FROM eth_rpc.blocks',
            ['_block_num', 'b', 'c'],
        ),
        ('SELECT block_num() AS b FROM eth_rpc.blocks WHERE block_num() < 10', ['b']),
        ('SELECT block_num() AS b FROM eth_rpc.blocks UNION ALL SELECT block_num() FROM eth_rpc.blocks', ['b']),
    ],
)
def test_block_num_in_a_stream(local, sql, names):
    _, client = local
    with client.stream(sql) as stream:
        assert stream.schema.names == names
        found = pa.Table.from_batches([received.batch for received in stream.microbatch()])
    at = 1 if names[0] == '_block_num' else 0
    assert found.schema.field(at).type == pa.uint64()
    numbers = sorted(set(found.column(at).to_pylist()))
    assert numbers == list(range(10 if 'WHERE' in sql else 30))
    if 'c' in names:
        assert found['c'].to_pylist() == [number + 1 for number in found['_block_num'].to_pylist()]
