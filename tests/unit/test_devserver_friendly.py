"""The friendly texts and codes: every error of the server's kind has one, and none loses what was said."""

from __future__ import annotations

import pytest

from amp.devserver import schemas
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.friendly import friendly
from amp.devserver.sql import Statement, caused_by, internal, invalid_argument, parse_statement
from amp.errors import QueryError

pytestmark = pytest.mark.unit

DATASETS = {'eth_rpc': ('blocks', 'transactions', 'logs'), 'other': ('CamelCase',)}


@pytest.fixture(scope='module')
def engine() -> Engine:
    return Engine({'eth_rpc': Chain('simnet', schemas.EVM_RPC)})


@pytest.mark.parametrize(
    ('sql', 'code', 'told'),
    [
        ('SELECT hashh FROM eth_rpc.blocks', 'INVALID_ARGUMENT', "there is no column 'hashh' (did you mean hash?)"),
        (
            'SELECT qqqqqq FROM eth_rpc.blocks',
            'INVALID_ARGUMENT',
            "there is no column 'qqqqqq' (there are _block_num, ",
        ),
        ('SELECT b.hashh FROM eth_rpc.blocks b', 'INVALID_ARGUMENT', "there is no column 'b.hashh' (did you mean"),
        ('SELECT 1 FROM eth_rpcs.blocks', 'NOT_FOUND', "there is no dataset 'eth_rpcs' (did you mean eth_rpc?)"),
        ('SELECT 1 FROM unknown.blocks', 'NOT_FOUND', 'this server has eth_rpc with blocks, transactions, logs; other'),
        ('SELECT 1 FROM blocks', 'NOT_FOUND', 'a table is named without its dataset (write dataset.table; '),
        ('SELECT 1 FROM eth_rpc.block', 'NOT_FOUND', "dataset eth_rpc has no table 'block' (did you mean blocks?)"),
        ('SELECT 1 FROM eth_rpc.zzz', 'NOT_FOUND', 'it has blocks, transactions, logs'),
        ('SELECT 1 FROM amp.eth_rpc.blocks', 'INVALID_ARGUMENT', 'has two parts, dataset.table (write eth_rpc.blocks)'),
        ('SELEC 1', 'INVALID_ARGUMENT', 'the SQL cannot be read: Expected: an SQL statement, found: SELEC at Line: 1'),
        ('SELECT 1 FROM a-b.c', 'INVALID_ARGUMENT', '(names with /, @ or - need double quotes)'),
        ('DROP TABLE x', 'INVALID_ARGUMENT', 'this server answers queries and changes nothing (write a SELECT)'),
        ('SELECT 1; SELECT 2', 'INVALID_ARGUMENT', 'Expected a single SQL statement, found 2'),
        ('SELECT 1 AS _x', 'INVALID_ARGUMENT', "expression contains a column alias starting with '_': '_x'"),
        ('SELECT nothing(1)', 'INVALID_ARGUMENT', "there is no function 'nothing'"),
        (
            'SELECT eth_call(1)',
            'INVALID_ARGUMENT',
            'eth_call needs its dataset (write dataset.eth_call(from, to, input, bl',
        ),
        ("SELECT eth_rpc.eth_call(NULL, x'00', NULL, 1)", 'INVALID_ARGUMENT', "dataset 'eth_rpc' has no node to call"),
        (
            "SELECT evm_decode_type('x', 'uint8', 3)",
            'INVALID_ARGUMENT',
            'evm_decode_type takes (Binary, Utf8), not (Utf8, ',
        ),
        (
            "SELECT evm_encode_hex('0x1')",
            'INVALID_ARGUMENT',
            'evm_encode_hex: invalid hex string: odd number of digits',
        ),
        (
            'SELECT a.hash, b.hash FROM eth_rpc.blocks a JOIN eth_rpc.blocks b ON a.hash = b.hash',
            'INVALID_ARGUMENT',
            'give one of each pair an alias: AS',
        ),
    ],
)
def test_planning_errors_for_people(engine, sql, code, told):
    with pytest.raises(QueryError) as caught:
        engine.prepare(parse_statement(sql))
    error = friendly(caught.value, DATASETS)
    assert told in str(error)
    assert error.context['code'] == code
    assert 'Caused by' not in str(error)


@pytest.mark.parametrize(
    ('sql', 'told'),
    [
        ('SELECT hash FROM eth_rpc.blocks LIMIT 3', 'it contains Limit (a stream has no end'),
        (
            'SELECT count(*) FROM eth_rpc.blocks',
            'it contains Aggregate (group by the block first, GROUP BY block_num()',
        ),
        ('SELECT DISTINCT miner FROM eth_rpc.blocks', 'it contains Distinct (use UNION ALL'),
        ('SELECT hash FROM eth_rpc.blocks ORDER BY hash', 'it contains Sort (leave ORDER BY out'),
        ('SELECT row_number() OVER () AS n FROM eth_rpc.blocks', 'it contains Window (compute it'),
        (
            'SELECT a.hash FROM eth_rpc.blocks a LEFT JOIN eth_rpc.logs b ON a.hash = b.block_hash',
            'it contains Join (inner joins and left or right semi joins',
        ),
    ],
)
def test_what_cannot_be_streamed_and_what_to_do_instead(engine, sql, told):
    with pytest.raises(QueryError) as caught:
        engine.check_incremental(engine.prepare(Statement(sql)))
    error = friendly(caught.value, DATASETS)
    assert str(error).startswith('the query cannot be streamed: ')
    assert told in str(error)
    assert error.context['code'] == 'INVALID_ARGUMENT'


@pytest.mark.parametrize(
    ('error', 'code', 'told'),
    [
        (
            internal(caused_by('x', 'Schema error: No field named camelcase. Valid fields are other.t."camelCase".')),
            'INVALID_ARGUMENT',
            'names with capital letters need double quotes: "camelCase"',
        ),
        (
            internal(caused_by('x', "expected cursor for network 'a', but cursor only contains networks: [b, c]")),
            'INVALID_ARGUMENT',
            "the query follows the network 'a', the cursor in amp-resume is of [b, c]",
        ),
        (
            internal(caused_by('x', 'multiple networks in dependency tree: a and b')),
            'INVALID_ARGUMENT',
            'make a stream',
        ),
        (
            internal(caused_by('query execution error', 'Arrow error: Divide by zero error')),
            'INTERNAL',
            'Divide by zero',
        ),
        (QueryError('no causes', code='RESOURCE_EXHAUSTED'), 'RESOURCE_EXHAUSTED', 'no causes'),
        (invalid_argument('ticket decoding error'), 'INVALID_ARGUMENT', 'ticket decoding error'),
    ],
)
def test_other_errors(error, code, told):
    explained = friendly(error, DATASETS)
    assert told in str(explained)
    assert explained.context['code'] == code
