"""References to datasets in all their forms, reserved aliases at any depth, and statements beyond the limits."""

from __future__ import annotations

import random
import re
import threading

import pytest

from amp.devserver import schemas
from amp.devserver.catalog import version_key
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.limits import MAX_CHAIN
from amp.devserver.names import SEMVER, dataset_name
from amp.devserver.sql import parse_statement, tokens_of
from amp.errors import QueryError

pytestmark = pytest.mark.unit


@pytest.fixture(scope='module')
def engine() -> Engine:
    return Engine({'eth_rpc': Chain('simnet', schemas.EVM_RPC)})


def refusal(engine: Engine, sql: str) -> QueryError:
    with pytest.raises(QueryError) as caught:
        engine.prepare(parse_statement(sql))
    return caught.value


@pytest.mark.parametrize(
    ('reference', 'name'),
    [
        ('eth_rpc', 'eth_rpc'),
        ('_x9', '_x9'),
        ('edge/eth_rpc', 'eth_rpc'),
        ('_/eth_rpc@0.0.1', 'eth_rpc'),
        ('0x_9/eth_rpc@10.20.30-rc.1+build.5', 'eth_rpc'),
        ('eth_rpc@latest', 'eth_rpc'),
        ('eth_rpc@dev', 'eth_rpc'),
        ('eth_rpc@' + 'a0' * 32, 'eth_rpc'),
        ('', None),
        ('9eth', None),
        ('Eth', None),
        ('eth-rpc', None),
        ('a/b/c', None),
        ('/eth_rpc', None),
        ('Edge/eth_rpc', None),
        ('eth_rpc@', None),
        ('eth_rpc@1.0', None),
        ('eth_rpc@v1.0.0', None),
        ('eth_rpc@LATEST', None),
        ('eth_rpc@' + 'A0' * 32, None),
        ('eth_rpc@1.0.0@dev', None),
        ('eth_rpc\n', None),
    ],
)
def test_dataset_references(reference, name):
    assert dataset_name(reference) == name


def test_versions_have_the_order_of_semver():
    ordered = ['1.0.0-alpha', '1.0.0-alpha.1', '1.0.0-alpha.beta', '1.0.0-beta', '1.0.0-beta.2', '1.0.0-beta.11']
    ordered += ['1.0.0-rc.2', '1.0.0-rc.10', '1.0.0', '1.9.0', '1.10.0', f'1.10.{"9" * 5000}']
    assert sorted(random.Random(5).sample(ordered, len(ordered)), key=version_key) == ordered


@pytest.mark.parametrize(
    'version', ['01.0.0', '1.0.0-..', '1.0.0-01', '1.0.0-', '1.0.0-a..b', '1.0.0+', '1.0', 'v1.0.0', '1.0.0\n']
)
def test_what_is_no_version(version):
    assert re.fullmatch(SEMVER, version) is None
    assert dataset_name(f'eth_rpc@{version}') is None


@pytest.mark.parametrize('version', ['0.0.1', '1.0.0-0', '1.0.0-0a.1', '1.0.0--', '1.0.0+01', '1.0.0-rc.1+b.7'])
def test_what_is_a_version(version):
    assert re.fullmatch(SEMVER, version)
    assert dataset_name(f'eth_rpc@{version}') == 'eth_rpc'


@pytest.mark.parametrize(
    ('sql', 'told'),
    [
        ('SELECT 1 FROM "a b".c', "Invalid dataset reference: 'a b'"),
        ('SELECT 1 FROM "eth_rpc@1.0".blocks', "Invalid dataset reference: 'eth_rpc@1.0'"),
        ('SELECT 1 FROM eth_rpc."a b"', "Invalid table name: 'a b'"),
        (f'SELECT 1 FROM eth_rpc.{"b" * 64}', 'Invalid table name: '),
        (
            'SELECT 1 FROM amp.eth_rpc.blocks',
            'Catalog-qualified table references are not supported: amp.eth_rpc.blocks',
        ),
        ('SELECT 1 FROM other.eth_rpc.blocks', 'Catalog-qualified table references are not supported: other.eth_rpc.'),
        ('SELECT 1 WHERE EXISTS (SELECT 1 FROM amp.eth_rpc.blocks)', 'Catalog-qualified table references'),
        ('SELECT 1 FROM eth_rpc.logs a, amp.eth_rpc.blocks b', 'Catalog-qualified table references'),
    ],
)
def test_what_is_no_reference_is_the_users_fault(engine, sql, told):
    error = refusal(engine, sql)
    assert str(error).startswith(f'Failed to resolve table references from SQL | Caused by: {told}')
    assert error.context['code'] == 'INVALID_ARGUMENT'


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT t.from, to FROM eth_rpc.transactions t',
        'SELECT 1 FROM eth_rpc.transactions t WHERE t.to IS DISTINCT FROM t.from',
        'SELECT extract(year FROM t.timestamp) AS y FROM eth_rpc.blocks t',
        "SELECT trim(both 'x' FROM 'xax') AS a, substring('abc' FROM 2) AS b",
        'SELECT 1 FROM generate_series(1, 2)',
        'WITH blocks AS (SELECT 1 AS x) SELECT x FROM blocks',
        'SELECT b._block_num FROM (SELECT * FROM eth_rpc.blocks) b JOIN eth_rpc.logs _l USING (_block_num)',
        "SELECT 'a AS _x' AS y, unnest([1, 2]) AS z, named_struct('_a', 1) AS s, 'say \" AS _q' AS \"q_AS _q\"",
    ],
)
def test_other_meanings_of_the_same_words(engine, sql):
    engine.prepare(parse_statement(sql))


@pytest.mark.parametrize(
    ('sql', 'alias'),
    [
        ('SELECT 1 AS _x', '_x'),
        ('SELECT 1 "_x"', '_x'),
        ('SELECT hash FROM eth_rpc.blocks WHERE hash IN (SELECT hash AS _in FROM eth_rpc.blocks)', '_in'),
        ('SELECT (SELECT max(block_num) AS _m FROM eth_rpc.blocks) AS x', '_m'),
        ('SELECT CASE WHEN block_num = 1 THEN (SELECT 2 AS _c) END AS x FROM eth_rpc.blocks', '_c'),
        ('SELECT sum(block_num) AS _s FROM eth_rpc.blocks', '_s'),
        ('WITH x(_w) AS (SELECT 1) SELECT 1 AS one FROM x', '_w'),
        ('SELECT 1 AS one FROM (SELECT row_number() OVER () AS _n FROM eth_rpc.blocks)', '_n'),
    ],
)
def test_reserved_aliases_at_any_depth(engine, sql, alias):
    error = refusal(engine, sql)
    assert (
        f"expression contains a column alias starting with '_': '{alias}'. Underscore-prefixed names are reser"
        in str(error)
    )
    assert error.context['code'] == 'INVALID_ARGUMENT'


def test_comments_texts_and_names_are_one_token():
    sql = "a /* x /* y */ ' */ 'it''s' \"q\"\"r\" E'\\'' $t$ $ ' $t$ -- rest\n`b` 1.5 /* open"
    assert [(token.kind, token.text) for token in tokens_of(sql)] == [
        ('word', 'a'),
        ('text', "'it''s'"),
        ('name', '"q""r"'),
        ('text', "E'\\''"),
        ('text', "$t$ $ ' $t$"),
        ('name', '`b`'),
        ('word', '1'),
        ('mark', '.'),
        ('word', '5'),
        ('comment', '/*'),
    ]
    assert [token.literal for token in tokens_of(sql)][1:5] == ["it's", None, None, " $ ' "]
    assert [token.identifier for token in tokens_of('A "B""c" `D` 1 \'e\'')] == ['a', 'B"c', 'D', '1', None]


LONG = MAX_CHAIN + 1


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT ' + '+'.join(['1'] * 20_000),
        'SELECT 1 AS x WHERE ' + ' AND '.join(['1 = 1'] * LONG),
        ' UNION ALL '.join(['SELECT 1 AS x'] * (LONG + 1)),
        'SELECT ' + '(1 + ' * LONG + '1' + ')' * LONG,
        'SELECT ' + 'evm_topic(' * 5000 + ')' * 5000,
        'SELECT ' + '(' * 100_000,
    ],
)
def test_chains_that_would_overflow_the_stack(engine, sql):
    error = refusal(engine, sql)
    assert 'operators are chained in one expression' in str(error)
    assert error.context['code'] == 'INVALID_ARGUMENT'


@pytest.mark.parametrize(
    ('sql', 'told'),
    [
        ('SELECT 1' + ' ' * 2**20, 'the SQL query has 1048584 characters'),
        ('SELECT ' + '(' * 60 + '1' + ')' * 60, 'recursion limit exceeded'),
        ('SELECT ' + 'shift_units(' * 60 + '1' + ', 1)' * 60, 'recursion limit exceeded'),
    ],
)
def test_other_limits(engine, sql, told):
    error = refusal(engine, sql)
    assert told in str(error)
    assert error.context['code'] == 'INVALID_ARGUMENT'


def test_what_is_below_the_limits_is_planned_and_run(engine):
    statements = [
        'SELECT ' + '+'.join(['1'] * (MAX_CHAIN - 1)) + ' AS x',
        ' UNION ALL '.join(['SELECT 1 AS x'] * (MAX_CHAIN - 10)),
        'SELECT ' + ', '.join(f'{at} + {at} - 1 AS c{at}' for at in range(1000)),
        'SELECT 1 AS x WHERE 1 IN (' + ', '.join(map(str, range(5000))) + ')',
    ]
    done = []

    def run() -> None:
        # As in the server, a thread's stack is what there is.
        for sql in statements:
            query = engine.prepare(parse_statement(sql))
            done.append(sum(batch.num_rows for batch in engine.run(query, lambda _: [])))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [1, MAX_CHAIN - 10, 1, 1]
