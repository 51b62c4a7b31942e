"""What the local Amp makes of the text of a query, and which plans it refuses."""

from __future__ import annotations

import gc

import pytest

from amp.devserver import schemas
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.evm.binding import BoundStatement
from amp.devserver.sql import Statement, Token, parse_statement
from amp.errors import QueryError

pytestmark = pytest.mark.unit


@pytest.fixture(scope='module')
def engine() -> Engine:
    return Engine({'eth_rpc': Chain('simnet', schemas.EVM_RPC)})


@pytest.mark.parametrize(
    ('sql', 'text', 'stream'),
    [
        ('SELECT 1', 'SELECT 1', False),
        ('SELECT 1 ; ', 'SELECT 1', False),
        ('SELECT 1 SETTINGS stream = true', 'SELECT 1', True),
        ('SELECT 1 settings STREAM=True;', 'SELECT 1', True),
        ('SELECT 1 SETTINGS stream = 1', 'SELECT 1', False),
        ('SELECT 1 SETTINGS stream = false', 'SELECT 1', False),
        ('SELECT 1 SETTINGS other = 2, stream = true', 'SELECT 1', True),
        ("SELECT ' SETTINGS stream = true'", "SELECT ' SETTINGS stream = true'", False),
        ('SELECT 1 -- SETTINGS stream = true', 'SELECT 1', False),
        ('SELECT a /* ; */ FROM t', 'SELECT a /* ; */ FROM t', False),
        ("SELECT ';', '--', '''' AS \"a;b\"", "SELECT ';', '--', '''' AS \"a;b\"", False),
        ('SELECT settings FROM t WHERE settings = true', 'SELECT settings FROM t WHERE settings = true', False),
    ],
)
def test_settings_are_taken_off_the_end(sql, text, stream):
    assert parse_statement(sql) == Statement(text, stream)


@pytest.mark.parametrize(
    ('sql', 'told'),
    [
        ('', 'invalid query: '),
        ('  \n', 'invalid query: '),
        ('-- nothing', 'SQL parse error | Caused by: No SQL statement found'),
        ('SELECT 1; SELECT 2', 'SQL parse error | Caused by: Expected a single SQL statement, found 2'),
        (
            'SELECT 1\n/* a /* b */ c',
            'SQL parse error | Caused by: Invalid SQL syntax -> sql parser error: '
            'Unexpected EOF while in a multi-line comment at Line: 2, Column: 15',
        ),
    ],
)
def test_exactly_one_statement(sql, told):
    with pytest.raises(QueryError) as caught:
        parse_statement(sql)
    assert str(caught.value).startswith(told)
    assert caught.value.context['code'] == 'INVALID_ARGUMENT'


@pytest.mark.parametrize(
    ('sql', 'code', 'told'),
    [
        (
            'SELEC 1',
            'INVALID_ARGUMENT',
            'SQL parse error | Caused by: Invalid SQL syntax -> sql parser error: Expected',
        ),
        (
            "SELECT 'abc",
            'INVALID_ARGUMENT',
            'SQL parse error | Caused by: Invalid SQL syntax -> sql parser error: Unterminated string literal',
        ),
        ('SELECT "abc', 'INVALID_ARGUMENT', 'SQL parse error | Caused by: Invalid SQL syntax -> '),
        ('SELECT "ParserError"', 'INTERNAL', 'No field named "ParserError"'),
        ('SELECT nope FROM eth_rpc.blocks', 'INTERNAL', 'No field named nope. Valid fields are '),
        ('SELECT 1 FROM other.blocks', 'INTERNAL', 'Dataset not found: other'),
        ('SELECT 1 FROM blocks', 'INTERNAL', 'Dataset not found: '),
        ('SELECT 1 FROM eth_rpc.nope', 'INTERNAL', 'Table nope not found in dataset eth_rpc'),
        (
            'SELECT 1 FROM amp.eth_rpc.logs',
            'INVALID_ARGUMENT',
            'Catalog-qualified table references are not supported: ',
        ),
        ('CREATE TABLE x AS SELECT 1', 'INVALID_ARGUMENT', 'query plan violates read-only constraints'),
        ('DROP TABLE eth_rpc.logs', 'INVALID_ARGUMENT', 'query plan violates read-only constraints'),
        ('INSERT INTO eth_rpc.logs SELECT * FROM eth_rpc.logs', 'INVALID_ARGUMENT', 'violates read-only constraints'),
        ('SET x = 1', 'INVALID_ARGUMENT', 'query plan violates read-only constraints'),
        (
            'SELECT 0 AS _block_num',
            'INVALID_ARGUMENT',
            "expression contains a column alias starting with '_': '_block_num'. "
            'Underscore-prefixed names are reserved. Please rename your column',
        ),
        ('SELECT x FROM (SELECT hash AS _h, 1 AS x FROM eth_rpc.blocks)', 'INVALID_ARGUMENT', "'_h'"),
        (
            'SELECT * FROM eth_rpc.blocks a JOIN eth_rpc.blocks b ON a.hash = b.hash',
            'INTERNAL',
            'Duplicate field names detected in plan schema: [',
        ),
    ],
)
def test_refusals_have_the_servers_code_and_text(engine, sql, code, told):
    with pytest.raises(QueryError) as caught:
        engine.prepare(parse_statement(sql))
    assert told in str(caught.value)
    assert caught.value.context['code'] == code


@pytest.mark.parametrize(
    'reference',
    ['eth_rpc.logs', '"eth_rpc".logs', '"edge/eth_rpc".logs', '"_/eth_rpc@0.0.1".logs', '"eth_rpc@dev".logs'],
)
def test_a_dataset_goes_by_all_its_references(engine, reference):
    query = engine.prepare(Statement(f'SELECT * FROM {reference}'))
    assert query.tables == (('eth_rpc', 'logs'),)
    assert query.schema.equals(schemas.LOGS)


@pytest.mark.parametrize('table', list(schemas.EVM_RPC))
def test_select_star_has_the_schema_of_the_table(engine, table):
    assert engine.prepare(Statement(f'SELECT * FROM eth_rpc.{table}')).schema.equals(schemas.EVM_RPC[table])


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT * FROM eth_rpc.logs',
        'SELECT tx_hash, log_index + 1 AS next FROM eth_rpc.logs WHERE topic1 IS NOT NULL',
        'SELECT hash FROM eth_rpc.blocks UNION ALL SELECT tx_hash FROM eth_rpc.transactions',
        'WITH t AS (SELECT block_num AS b FROM eth_rpc.logs) SELECT b FROM t WHERE b > 3',
        'SELECT unnest(access_list) FROM eth_rpc.transactions',
        'SELECT 1',
        'SELECT b.hash FROM eth_rpc.blocks b JOIN eth_rpc.logs l ON b.hash = l.block_hash',
        'SELECT b.hash, l.tx_hash FROM eth_rpc.blocks b, eth_rpc.logs l WHERE b.hash = l.block_hash',
        'SELECT hash FROM eth_rpc.blocks b LEFT SEMI JOIN eth_rpc.logs l ON b.hash = l.block_hash',
        'SELECT tx_hash FROM eth_rpc.blocks b RIGHT SEMI JOIN eth_rpc.logs l ON b.hash = l.block_hash',
        'SELECT hash FROM eth_rpc.blocks WHERE hash IN (SELECT block_hash FROM eth_rpc.logs)',
        'SELECT hash FROM eth_rpc.blocks b WHERE EXISTS (SELECT 1 FROM eth_rpc.logs l WHERE l.block_hash = b.hash)',
        'SELECT b.hash FROM eth_rpc.blocks b JOIN eth_rpc.logs l ON b.hash = l.block_hash UNION ALL '
        'SELECT b.hash FROM eth_rpc.blocks b JOIN eth_rpc.transactions t ON b.hash = t.block_hash',
        'SELECT block_num() AS b, address, count(*) AS n FROM eth_rpc.logs GROUP BY block_num(), address',
        'SELECT block_num() AS b, count(DISTINCT address) AS n FROM eth_rpc.logs GROUP BY 1 HAVING count(*) > 1',
        'SELECT DISTINCT ON (block_num(), address) address, log_index FROM eth_rpc.logs',
        'SELECT p FROM (VALUES (1), (2)) AS v(p)',
    ],
)
def test_what_may_stream(engine, sql):
    engine.check_incremental(engine.prepare(Statement(sql)))


@pytest.mark.parametrize(
    ('sql', 'operation'),
    [
        ('SELECT hash FROM eth_rpc.blocks LIMIT 3', 'non-incremental operation: Limit'),
        ('SELECT count(*) FROM eth_rpc.blocks', 'non-incremental operation: Aggregate'),
        ('SELECT DISTINCT miner FROM eth_rpc.blocks', 'non-incremental operation: Distinct'),
        (
            'SELECT miner FROM eth_rpc.blocks UNION SELECT miner FROM eth_rpc.blocks',
            'non-incremental operation: Distinct',
        ),
        ('SELECT hash FROM eth_rpc.blocks ORDER BY hash', 'non-incremental operation: Sort'),
        ('SELECT hash, row_number() OVER () AS n FROM eth_rpc.blocks', 'non-incremental operation: Window'),
        (
            'WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r WHERE x < 3) SELECT x FROM r',
            'non-incremental operation: RecursiveQuery',
        ),
        (
            'SELECT b.hash FROM eth_rpc.blocks b LEFT JOIN eth_rpc.logs l ON b.hash = l.block_hash',
            'non-incremental operation: Join(Left)',
        ),
        (
            'SELECT b.hash FROM eth_rpc.blocks b FULL JOIN eth_rpc.logs l ON b.hash = l.block_hash',
            'non-incremental operation: Join(Full)',
        ),
        (
            'SELECT b.hash FROM eth_rpc.blocks b LEFT ANTI JOIN eth_rpc.logs l ON b.hash = l.block_hash',
            'non-incremental operation: Join(LeftAnti)',
        ),
        (
            'SELECT hash FROM eth_rpc.blocks WHERE hash NOT IN (SELECT block_hash FROM eth_rpc.logs)',
            'non-incremental operation: Join(LeftAnti)',
        ),
        (
            'SELECT hash FROM eth_rpc.blocks WHERE gas_used > (SELECT max(log_index) FROM eth_rpc.logs)',
            'non-incremental operation: Aggregate',
        ),
        (
            'SELECT a.hash FROM eth_rpc.blocks a JOIN eth_rpc.blocks b ON a.hash = b.parent_hash '
            'JOIN eth_rpc.logs l ON a.hash = l.block_hash',
            'non-incremental operation: StackedJoins',
        ),
        (
            'SELECT l.log_index FROM eth_rpc.logs l JOIN eth_rpc.blocks b ON l.block_hash = b.hash '
            'WHERE l.tx_hash IN (SELECT tx_hash FROM eth_rpc.transactions)',
            'non-incremental operation: StackedJoins',
        ),
        (
            'SELECT hash FROM eth_rpc.blocks WHERE hash IN (SELECT block_hash FROM eth_rpc.logs LIMIT 3)',
            'non-incremental operation: Limit',
        ),
        (
            'SELECT _block_num, count(*) AS n FROM eth_rpc.logs GROUP BY _block_num',
            'non-incremental operation: Aggregate',
        ),
        (
            'SELECT address, count(*) AS n FROM eth_rpc.logs GROUP BY address, block_num()',
            'non-incremental operation: Aggregate',
        ),
        (
            'SELECT count(*) AS n FROM eth_rpc.logs GROUP BY block_num() / 10',
            'non-incremental operation: Aggregate',
        ),
        (
            'SELECT DISTINCT ON (address, block_num()) address FROM eth_rpc.logs',
            'non-incremental operation: Distinct',
        ),
        ('EXPLAIN SELECT hash FROM eth_rpc.blocks', 'invalid operation: Explain'),
    ],
)
def test_what_may_not_stream(engine, sql, operation):
    with pytest.raises(QueryError) as caught:
        engine.check_incremental(engine.prepare(Statement(sql)))
    refused = 'invalid query: non-incremental queries are not supported for streaming, query contains '
    assert str(caught.value).startswith(refused)
    assert operation in str(caught.value)
    assert caught.value.context['code'] == 'INVALID_ARGUMENT'


def test_nothing_is_kept_of_a_long_statement(engine):
    def objects() -> int:
        gc.collect()
        return sum(isinstance(each, (Token, BoundStatement)) for each in gc.get_objects())

    engine.prepare(parse_statement('SELECT 1 AS x'))
    before = objects()
    for number in range(3):
        text = f'SELECT {number} AS x WHERE 1 IN ({", ".join(["1"] * 20_000)})'
        assert engine.prepare(parse_statement(text)).schema.names == ['x']
    # The tokens of plans and of short statements are kept.
    assert objects() - before < 1000
