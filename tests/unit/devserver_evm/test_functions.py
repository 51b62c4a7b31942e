"""The functions in SQL: their results and result types, how calls are found in a statement, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from amp.devserver import schemas
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.evm.arrow_text import parse_types
from amp.devserver.evm.calls import find_calls
from amp.devserver.evm.functions import BUILDERS
from amp.devserver.sql import parse_statement
from amp.errors import QueryError

pytestmark = pytest.mark.unit

TRANSFER = "'Transfer(address indexed from, address indexed to, uint256 value)'"
TOPIC = 'ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef'
ALICE, BOB = b'\xaa' * 20, b'\xbb' * 20


def word(value: int | bytes) -> bytes:
    return value.rjust(32, b'\0') if isinstance(value, bytes) else value.to_bytes(32, 'big')


def log(number: int, *topics: bytes, data: bytes = b'') -> dict:
    row = {
        field.name: bytes(field.type.byte_width) for field in schemas.LOGS if pa.types.is_fixed_size_binary(field.type)
    }
    row |= {'_block_num': number, 'block_num': number, 'timestamp': number, 'tx_index': 0, 'log_index': 0}
    row |= {f'topic{at}': topics[at] if at < len(topics) else None for at in range(4)}
    return row | {'address': ALICE, 'data': data}


LOGS = [
    log(1, bytes.fromhex(TOPIC), word(ALICE), word(BOB), data=word(10**18)),
    log(2, bytes.fromhex(TOPIC), word(BOB), word(ALICE), data=word(2**256 - 1)),
    # An ERC-721 transfer: the number is a topic, and there is no data.
    log(3, bytes.fromhex(TOPIC), word(ALICE), word(BOB), word(7)),
    log(4, bytes.fromhex(TOPIC), data=word(5) + b'and more'),
    log(5, data=word(5)[:31]),
]


@pytest.fixture(scope='module')
def engine() -> Engine:
    return Engine({'eth_rpc': Chain('simnet', schemas.EVM_RPC)})


@pytest.fixture
def query(engine):
    batch = pa.RecordBatch.from_pylist(LOGS, schema=schemas.LOGS)
    rows = {'logs': [batch.slice(0, 2), batch.slice(2)]}

    def run(sql: str) -> pa.Table:
        prepared = engine.prepare(parse_statement(sql))
        found = list(engine.run(prepared, lambda name: rows.get(name[1], [])))
        for result in found:
            result.validate(full=True)
        return pa.Table.from_batches(found, schema=prepared.schema)

    return run


@pytest.fixture
def value(query):
    """The only value of `SELECT <expression>`, and its type."""

    def run(expression: str):
        table = query(f'SELECT {expression} AS it')
        return table['it'][0].as_py(), table.schema.field('it').type

    return run


def test_transfers_are_decoded_as_far_as_they_are_transfers(query):
    table = query(f'SELECT evm_decode_log(topic1, topic2, topic3, data, {TRANSFER}) AS event FROM eth_rpc.logs')
    field = table.schema.field('event')
    assert field.type == pa.struct([('from', pa.binary(20)), ('to', pa.binary(20)), ('value', pa.string())])
    assert not field.nullable
    assert table['event'].to_pylist() == [
        {'from': ALICE, 'to': BOB, 'value': '1000000000000000000'},
        {'from': BOB, 'to': ALICE, 'value': str(2**256 - 1)},
        {'from': ALICE, 'to': BOB, 'value': None},
        {'from': None, 'to': None, 'value': '5'},
        {'from': None, 'to': None, 'value': None},
    ]


def test_fields_filters_and_the_old_name(query):
    table = query(
        f"SELECT shift_units(evm_decode(topic1, topic2, topic3, data, {TRANSFER})['value'], -18) AS amount, "
        f"evm_decode_hex(evm_decode_log(topic1, topic2, topic3, data, {TRANSFER})['from']) AS sender "
        f'FROM eth_rpc.logs WHERE topic0 = evm_topic({TRANSFER}) AND topic3 IS NULL AND topic1 IS NOT NULL LIMIT 1'
    )
    assert table.to_pylist() == [{'amount': '1', 'sender': '0x' + ALICE.hex()}]


def test_columns_are_named_as_the_server_names_them(query):
    sql = f'SELECT evm_topic({TRANSFER}), shift_units(1, 1), evm_decode_hex(topic0) FROM eth_rpc.logs l LIMIT 1'
    assert query(sql).schema.names == [
        f'evm_topic(Utf8("{TRANSFER[1:-1]}"))',
        'shift_units(Int64(1),Int64(1))',
        'evm_decode_hex(l.topic0)',
    ]


def test_grouping_by_a_call_that_is_also_selected(query):
    table = query(
        'SELECT Evm_Decode_Hex(address), count(*) AS n FROM eth_rpc.logs '
        'GROUP BY evm_decode_hex( address ) ORDER BY evm_decode_hex(address)'
    )
    assert table['n'].to_pylist() == [5]


def test_the_same_words_may_mean_columns_of_different_types(query):
    table = query(
        'SELECT x.a, y.b, z.c FROM (SELECT shift_units(v, 1) AS a FROM (SELECT 1 AS v)) x, '
        "(SELECT shift_units(v, 1) AS b FROM (SELECT '2' AS v)) y, "
        '(SELECT shift_units(v, 1) AS c FROM (SELECT 1.5 AS v)) z'
    )
    assert table.to_pylist() == [{'a': '10', 'b': '20', 'c': '15'}]


def test_types_of_arguments_are_found_even_where_one_could_be_made_of_the_other(query):
    table = query(
        "SELECT (SELECT evm_decode_type(evm_encode_type(v, 'int8'), 'int8') FROM (SELECT 1 AS v)) AS a, "
        "(SELECT evm_encode_type(v, 'int8') FROM (SELECT arrow_cast(2, 'Int8') AS v)) AS b, "
        "(SELECT evm_encode_type(v, 'int8') FROM (SELECT 3 AS v)) AS c"
    )
    assert table.to_pylist() == [{'a': 1, 'b': word(2), 'c': word(3)}]


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT DISTINCT ON (shift_units(tx_index, 1)) 1 AS x FROM eth_rpc.logs ORDER BY shift_units(tx_index, 1)',
        'SELECT shift_units(tx_index, 1) AS x, count(*) AS n FROM eth_rpc.logs GROUP BY shift_units(tx_index, 1) '
        'HAVING shift_units(tx_index, 1) IS NOT NULL ORDER BY shift_units(tx_index, 1)',
        'SELECT 1 AS x FROM eth_rpc.logs ORDER BY shift_units(log_index, 1) LIMIT 1',
        'SELECT 1 AS x WHERE EXISTS (SELECT 1 FROM eth_rpc.logs WHERE evm_decode_hex(address) IS NOT NULL)',
        'SELECT 1 AS x FROM eth_rpc.logs a JOIN eth_rpc.logs b ON evm_decode_hex(a.topic0) = evm_decode_hex(b.topic0) LIMIT 1',
        'SELECT max(shift_units(log_index, 1)) AS x FROM eth_rpc.logs HAVING max(shift_units(log_index, 1)) IS NOT NULL',
    ],
)
def test_calls_anywhere_in_a_statement(query, sql):
    assert query(sql).num_rows == 1


@pytest.mark.parametrize(
    ('expression', 'wanted', 'type_'),
    [
        (f'evm_topic({TRANSFER})', bytes.fromhex(TOPIC), pa.binary(32)),
        (f'"evm_topic"(({TRANSFER}))', bytes.fromhex(TOPIC), pa.binary(32)),
        (f'EVM_TOPIC($${TRANSFER[1:-1]}$$)', bytes.fromhex(TOPIC), pa.binary(32)),
        ("evm_encode_hex('0x" + 'Ab' * 20 + "')", b'\xab' * 20, pa.binary(20)),
        ("evm_encode_hex('" + '01' * 32 + "')", b'\x01' * 32, pa.binary(32)),
        ("evm_decode_hex(evm_encode_hex('0x" + 'Ab' * 20 + "'))", '0x' + 'ab' * 20, pa.string()),
        ("evm_decode_hex(arrow_cast(NULL, 'FixedSizeBinary(20)'))", None, pa.string()),
        ("shift_units('1.376988483056381409','18')", '1376988483056381409', pa.string()),
        ('shift_units(CAST(150 AS DECIMAL(30, 2)), -1)', '15', pa.string()),
        ("evm_encode_type(CAST(635 AS DECIMAL(39, 0)), 'uint256')", word(635), pa.binary()),
        ("evm_encode_type(CAST(-1 AS DECIMAL(38, 0)), 'int128')", b'\xff' * 32, pa.binary()),
        ("evm_encode_type(CAST(100 AS TINYINT), 'int8')", word(100), pa.binary()),
        ("evm_encode_type('hi', 'string')", word(32) + word(2) + b'hi' + bytes(30), pa.binary()),
        (
            "evm_encode_type(arrow_cast('hi', 'Utf8View'), 'string')",
            word(32) + word(2) + b'hi' + bytes(30),
            pa.binary(),
        ),
        ("evm_encode_type([1, 2], 'int256[]')", b''.join(map(word, (32, 2, 1, 2))), pa.binary()),
        ("evm_encode_type(arrow_cast([1, 2], 'FixedSizeList(2, Int64)'), 'int256[2]')", word(1) + word(2), pa.binary()),
        ("evm_encode_type(struct(1, true), '(int8, bool)')", word(1) + word(1), pa.binary()),
        ("evm_encode_type(CAST(NULL AS BIGINT), 'int8')", None, pa.binary()),
        ("evm_encode_params('function f()')", bytes.fromhex('26121ff0'), pa.binary()),
        (
            "evm_encode_params(evm_encode_hex('"
            + 'aa' * 20
            + "'), CAST(7 AS DECIMAL(39, 0)), 'transfer(address to, uint256 v)')",
            bytes.fromhex('a9059cbb') + word(ALICE) + word(7),
            pa.binary(),
        ),
        ("evm_decode_params(decode('26121ff0', 'hex'), 'function f()')", {}, pa.struct([])),
        ("evm_decode_params(decode('26121ff1', 'hex'), 'function f()')", None, pa.struct([])),
        (
            f"evm_decode_params(decode('a9059cbb{word(ALICE).hex()}{word(7).hex()}', 'hex'), 'transfer(address to, uint128 v)')",
            None,
            pa.struct([('to', pa.binary(20)), ('v', pa.decimal256(76, 0))]),
        ),
        (
            f"evm_decode_params(decode('a9059cbb{word(ALICE).hex()}{word(7).hex()}', 'hex'), 'transfer(address to, uint256 v)')",
            {'to': ALICE, 'v': '7'},
            pa.struct([('to', pa.binary(20)), ('v', pa.string())]),
        ),
        (
            f"evm_decode_params(decode('a9059cbb{word(ALICE).hex()}', 'hex'), 'transfer(address to, uint256 v)')",
            None,
            pa.struct([('to', pa.binary(20)), ('v', pa.string())]),
        ),
        ("evm_decode_params(x'26', 'function f()')", None, pa.struct([])),
        (
            "evm_decode_type(evm_encode_type(struct(1, 2, ['a', 'b']), '(int256, int8, string[])'), '(int256, int8, string[])')",
            {'c0': '1', 'c1': 2, 'c2': ['a', 'b']},
            pa.struct([('c0', pa.string()), ('c1', pa.int8()), ('c2', pa.list_(pa.field('item', pa.string())))]),
        ),
        ("evm_decode_type(x'00', 'uint256')", None, pa.string()),
        ("evm_decode_type(arrow_cast(NULL, 'Binary'), 'uint8')", None, pa.uint8()),
    ],
)
def test_single_values_and_their_types(value, expression, wanted, type_):
    assert value(expression) == (wanted, type_)


def test_an_event_without_parameters_is_null(query):
    table = query("SELECT evm_decode_log(topic1, topic2, topic3, data, 'Paused()') AS it FROM eth_rpc.logs")
    assert table.schema.field('it').type == pa.null()
    assert table.num_rows == 5


def test_calldata_of_many_rows(query):
    table = query(
        "SELECT evm_decode_params(x, 'f(uint256 v)')['v'] AS v FROM (SELECT CASE WHEN block_num % 2 = 1 THEN "
        "evm_encode_params(arrow_cast(block_num, 'UInt64'), 'f(uint256 v)') ELSE data END AS x FROM eth_rpc.logs)"
    )
    assert table['v'].to_pylist() == ['1', None, '3', None, '5']


PLANNED, RUN = 'failed to infer SQL output schema | Caused by: ', 'query execution error | Caused by: '


@pytest.mark.parametrize(
    ('expression', 'told'),
    [
        (
            "evm_encode_hex('0x123')",
            f'{PLANNED}Error during planning: evm_encode_hex: invalid hex string: odd number of digits',
        ),
        ("evm_encode_hex('0x1234')", 'evm_encode_hex: expected 20 or 32 bytes, got 2'),
        ("evm_encode_hex('')", 'evm_encode_hex: expected 20 or 32 bytes, got 0'),
        ("evm_encode_hex('0xzz')", "invalid hex string: invalid character 'z' at position 0"),
        ('evm_encode_hex(NULL)', 'evm_encode_hex: input cannot be null'),
        ("evm_encode_hex(concat('0x', '00'))", f'{RUN}Error during planning: evm_encode_hex: expected scalar argument'),
        ("evm_decode_hex('a')", "Failed to coerce arguments to satisfy a call to 'evm_decode_hex' function"),
        (
            "evm_topic('Transfer')",
            f"{RUN}evm_topic\ncaused by\nError during planning: parse event signature: expected '('",
        ),
        ("evm_topic('E() anonymous')", 'anonymous event E has no topic0'),
        ('evm_topic()', "'evm_topic' does not support zero arguments"),
        ("evm_decode_type(x'00', 'uint7')", "failed to parse Solidity type: expected a Solidity type, found 'uint7'"),
        (
            "evm_decode_type(x'00', concat('uint', '8'))",
            'evm_decode_type: expected scalar argument for the Solidity type',
        ),
        (
            "evm_decode_type(x'00')",
            "satisfy a call to 'evm_decode_type' function: coercion from Binary to the signature",
        ),
        ("evm_decode_params(x'00', 'f(uint8)')", 'function f has unnamed input parameter'),
        (
            "evm_decode_params(x'00', 'f')",
            f'{PLANNED}evm_decode_params\ncaused by\nError during planning: parse function signature',
        ),
        ("evm_decode_params(x'00', NULL)", 'expected Utf8, got Null'),
        (
            "evm_encode_params(1, 'f(int8 a, int8 b)')",
            'evm_encode_params: expected 2 arguments for the function signature but got 1',
        ),
        ('evm_encode_params()', "'evm_encode_params' does not support zero arguments"),
        ("evm_encode_type(CAST(-2 AS TINYINT), 'uint8')", f'{RUN}Error during planning: expected int type, got uint8'),
        ("evm_encode_type('str', 'uint256')", 'cannot convert string to solidity type uint256'),
        ("evm_encode_type(1000, 'int8')", 'cannot convert int to solidity int8: 1000 not in'),
        ("evm_encode_type(now(), 'int8')", 'evm_encode_type: unsupported type among Timestamp'),
        ('evm_encode_type(1)', 'evm_encode_type: expected at 2 arguments, but got 1'),
        ('shift_units(NULL, 3)', 'shift_units: expected numeric type or Utf8 for first argument, got Null'),
        ('shift_units(1, true)', 'shift_units: expected numeric type for second argument'),
        ("shift_units('1', 33)", 'shift_units: units must be between -32 and 32 (got 33)'),
        ("shift_units('x', 3)", "shift_units: failed to parse value: 'x' is not a number"),
        ("eth_rpc.eth_call(NULL, x'00', NULL, 'latest')", "'eth_rpc.eth_call': the dataset has no RPC provider"),
        ('eth_call(1)', "Invalid function 'eth_call'"),
        ('evm_nothing(1)', "Invalid function 'evm_nothing'"),
    ],
)
def test_refusals(query, expression, told):
    with pytest.raises(QueryError) as caught:
        query(f'SELECT {expression} AS it')
    assert told in str(caught.value)
    assert caught.value.context['code'] == 'INTERNAL'
    assert '__amp' not in str(caught.value)


def test_a_log_with_the_wrong_arguments(query):
    for call, told in [
        (
            "evm_decode_log(topic1, topic2, data, 'E()')",
            "satisfy a call to 'evm_decode_log' function: coercion from Fixed",
        ),
        (
            'evm_decode_log(topic1, topic2, topic3, data, topic0)',
            'evm_decode_log: expected a string literal for the signature',
        ),
        (
            "evm_decode_log(topic1, topic2, topic3, data, 'E(')",
            'evm_decode_log\ncaused by\nError during planning: parse event',
        ),
    ]:
        with pytest.raises(QueryError) as caught:
            query(f'SELECT {call} FROM eth_rpc.logs')
        assert told in str(caught.value)


def test_block_num_is_for_streams(engine):
    prepared = engine.prepare(parse_statement('SELECT block_num(), hash FROM eth_rpc.blocks'))
    assert prepared.schema.field('block_num()').type == pa.uint64()
    with pytest.raises(QueryError, match=r'block_num\(\) is only supported in streaming queries'):
        engine.check_batch(prepared)
    engine.check_batch(engine.prepare(parse_statement("SELECT block_num, 'block_num()' AS b FROM eth_rpc.blocks")))


@pytest.mark.parametrize(
    ('sql', 'wanted'),
    [
        ('SELECT \'evm_topic(1)\', "evm_topic(2)" -- evm_topic(3)\n/* evm_topic(4) /* */ evm_topic(5) */', []),
        ('SELECT evm_topic, x.evm_topic(1)', []),
        ('SELECT evm_topic(', []),
        ("SELECT e'it\\'s evm_topic(1)', evm_topic(2)", [('evm_topic', None, 1)]),
        ('SELECT evm_topic /* here */ (f(1, 2), [3, 4], {5: 6}, (7))', [('evm_topic', None, 4)]),
        ('SELECT evm_topic(evm_topic(1))', [('evm_topic', None, 1), ('evm_topic', None, 1)]),
        (
            'SELECT "_/a@1.0.0".eth_call(1), b."eth_call"(), c.d.eth_call(1), eth_call(1)',
            [('eth_call', '_/a@1.0.0', 1), ('eth_call', 'b', 0)],
        ),
        ('SELECT EVM_TOPIC(1), "EVM_TOPIC"(1)', [('evm_topic', None, 1)]),
    ],
)
def test_finding_calls(sql, wanted):
    calls = find_calls(sql, {'evm_topic'}, {'eth_call'})
    assert [(call.function, call.dataset, len(call.arguments)) for call in calls] == wanted


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('', []),
        ('Int64, Utf8View, Null', [pa.int64(), pa.string(), pa.null()]),
        ('Decimal128(38, -2)', [pa.decimal128(38, -2)]),
        ('List(non-null FixedSizeBinary(32))', [pa.list_(pa.field('item', pa.binary(32), nullable=False))]),
        ("FixedSizeList(3 x Int8, field: 'x')", [pa.list_(pa.field('x', pa.int8()), 3)]),
        (
            'Struct("a b": non-null Int64, "c\\"d": Utf8), Struct()',
            [pa.struct([pa.field('a b', pa.int64(), nullable=False), pa.field('c"d', pa.string())]), pa.struct([])],
        ),
        ('Timestamp(ns, "+00:00")', None),
        ('Dictionary(Int32, Utf8)', None),
        ('Int64 Utf8', None),
        ('Struct("a"', None),
    ],
)
def test_types_in_messages(text, wanted):
    assert parse_types(text) == wanted


HASH, BYTES, TEXT = pa.binary(32), pa.binary(), pa.string()


@pytest.mark.parametrize('rows', [0, 3])
@pytest.mark.parametrize(
    ('call', 'types'),
    [
        (f'evm_decode_log(a, b, c, d, {TRANSFER})', [HASH, HASH, HASH, BYTES, TEXT]),
        ("evm_decode_log(a, b, c, d, 'E(bool indexed x, string[2][] y)')", [HASH, HASH, HASH, BYTES, TEXT]),
        ("evm_decode_params(a, 'f(uint8 x, (string, int8[2]) y)')", [BYTES, TEXT]),
        ("evm_decode_params(a, 'f()')", [BYTES, TEXT]),
        ("evm_decode_type(a, 'string[2][]')", [BYTES, TEXT]),
        ("evm_encode_type(a, 'bytes32')", [HASH, TEXT]),
        ("evm_encode_type(a, 'string')", [TEXT, TEXT]),
        ("evm_encode_type(a, 'uint8[]')", [pa.list_(pa.uint8()), TEXT]),
        ("evm_encode_type(a, 'uint8[2]')", [pa.list_(pa.uint8(), 2), TEXT]),
        ("evm_encode_type(a, '(uint8,string)')", [pa.struct([('a', pa.uint8()), ('b', TEXT)]), TEXT]),
        ("evm_encode_type(a, 'bool')", [pa.bool_(), TEXT]),
        ("evm_encode_params(a, 'f(uint256 x)')", [pa.decimal128(38, 0), TEXT]),
        ('evm_decode_hex(a)', [HASH]),
        ('shift_units(a, b)', [pa.float64(), pa.int8()]),
        ('shift_units(a, b)', [TEXT, TEXT]),
        ("evm_topic('E()')", [TEXT]),
    ],
)
def test_columns_without_rows_or_without_values(call, types, rows):
    [found] = find_calls(f'SELECT {call}', BUILDERS)
    made = BUILDERS[found.function](found, types)
    assert list(made.arguments) == types
    columns = [
        [pa.nulls(rows, type_) for type_ in types],
        [pa.array([None] * (rows + 2), type_).slice(2) for type_ in types],
    ]
    for given in columns:
        result = made.run(*given)
        result.validate(full=True)
        assert (len(result), result.type) == (rows, made.result.type)
        if not call.startswith(('evm_decode_log', 'evm_topic')):
            assert result.null_count == rows
