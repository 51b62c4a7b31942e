"""Whatever a query joins, and wherever its microbatches are cut: together they are the result over the whole chain."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amp.devserver.block_numbers import with_block_numbers
from amp.devserver.chain import ZERO_HASH, Block, Chain, Segment
from amp.devserver.engine import Engine
from amp.devserver.sql import Statement
from amp.errors import QueryError

pytestmark = pytest.mark.unit

SCHEMA = pa.schema(
    [
        pa.field('_block_num', pa.uint64(), nullable=False),
        pa.field('k', pa.int64()),
        pa.field('x', pa.int64()),
        pa.field('many', pa.list_(pa.int64())),
    ]
)


def engine_over(rows: dict[str, list[tuple[int, int | None, int]]], blocks: int, first: int = 0) -> Engine:
    """Tables of (block, k, x); blocks that no row names are empty."""
    chain = Chain('net', dict.fromkeys(rows, SCHEMA))
    parent = ZERO_HASH
    for number in range(first, first + blocks):
        block = Block(number, f'0x{number + 1:064x}', parent, number)
        tables = {
            name: pa.RecordBatch.from_pylist(
                [
                    {'_block_num': number, 'k': k, 'x': x, 'many': None if k is None else list(range(k))}
                    for at, k, x in found
                    if at == number
                ],
                schema=SCHEMA,
            )
            for name, found in rows.items()
        }
        chain.extend(Segment([block], tables))
        parent = block.hash
    return Engine({'d': chain})


def streamed_rows(engine: Engine, sql: str, cuts: list[int]) -> list[list[tuple]]:
    """The rows of each microbatch; it begins at a cut and ends before the next."""
    stream = engine.check_incremental(engine.prepare(Statement(sql)))
    view = {'d': engine.datasets['d'].snapshot()}
    found = []
    for start, end in pairwise(cuts):
        batches = engine.run_blocks(stream, view, start, end - 1)
        found.append([tuple(row.values()) for batch in batches for row in batch.to_pylist()])
    return found


def batch_rows(engine: Engine, sql: str) -> list[tuple]:
    view = engine.datasets['d'].snapshot()
    batches = engine.run(engine.prepare(Statement(sql)), lambda name: view.scan(name[1]))
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


# Each query is a pair: as it is streamed, and as a batch query that says the same without block_num().
Pair = tuple[str, str]

tables = st.sampled_from(['d.a', 'd.b'])
filters = st.sampled_from(['', ' WHERE x > 1', ' WHERE k IS NOT NULL', ' WHERE x <> k'])


@st.composite
def sides(draw: st.DrawFn, alias: str) -> Pair:
    kind = draw(st.sampled_from(['table', 'query', 'union']))
    table, where = draw(tables), draw(filters)
    if kind == 'table':
        return (f'{table} AS {alias}',) * 2
    if kind == 'query':
        return tuple(f'(SELECT {more}k, x + 1 AS x FROM {table}{where}) AS {alias}' for more in ('', '_block_num, '))
    other = draw(tables)
    return tuple(
        f'(SELECT {more}k, x FROM {table}{where} UNION ALL SELECT {more}x AS k, k AS x FROM {other}) AS {alias}'
        for more in ('', '_block_num, ')
    )


@st.composite
def inner_joins(draw: st.DrawFn) -> Pair:
    left, right = draw(sides('l')), draw(sides('r'))
    on = draw(st.sampled_from(['l.k = r.k', 'l.k = r.k AND l.x < r.x', 'l.x < r.k', 'l.k = r.x + 1']))
    where = draw(st.sampled_from(['', ' WHERE {B} > 2', ' WHERE {B} <> r.x OR l.x = 1']))
    columns = draw(st.sampled_from(['{B} AS n, l.k, r.x', 'l.x AS y, r.x', '{B} + l.x AS y, r.k']))
    comma = draw(st.booleans())
    return _pair(
        columns + ' FROM {0}, {1} WHERE ' + on + (' AND (' + where[7:] + ')' if where else '')
        if comma
        else columns + ' FROM {0} JOIN {1} ON ' + on + where,
        ('block_num()', 'greatest(l._block_num, r._block_num)'),
        left,
        right,
    )


@st.composite
def semi_joins(draw: st.DrawFn) -> Pair:
    left, right = draw(sides('l')), draw(sides('r'))
    text = draw(
        st.sampled_from(
            [
                'l.k, l.x FROM {0} WHERE l.k IN (SELECT r.x FROM {1})',
                'l.k, l.x FROM {0} WHERE EXISTS (SELECT 1 FROM {1} WHERE r.k = l.k AND r.x > l.x)',
                'l.k, l.x, {B} AS n FROM {0} WHERE l.x > 0 AND l.k IN (SELECT r.k FROM {1} WHERE r.x < 3)',
                'l.k, l.x FROM {0} LEFT SEMI JOIN {1} ON l.k = r.k',
                'r.k, r.x FROM {0} RIGHT SEMI JOIN {1} ON l.k = r.k AND l.x <> r.x',
            ]
        )
    )
    return _pair(text, ('block_num()', 'l._block_num'), left, right)


@st.composite
def single_tables(draw: st.DrawFn) -> Pair:
    left = draw(sides('l'))
    text = draw(
        st.sampled_from(
            [
                'l.k, l.x FROM {0}',
                '{B} AS n, l.k FROM {0} WHERE {B} <> 2',
                'DISTINCT ON ({B}, k) k, {B} AS n FROM {0}',
                'DISTINCT ON ({B}, k) k, x FROM {0} ORDER BY {B}, k, x DESC NULLS LAST',
            ]
        )
    )
    return _pair(text, ('block_num()', 'l._block_num'), left)


@st.composite
def groups(draw: st.DrawFn) -> Pair:
    text = draw(
        st.sampled_from(
            [
                '{B} AS n, count(*) AS c, sum({X}) AS s FROM {0} GROUP BY {B}',
                '{B} AS n, {X} AS x, count(*) AS c FROM {0} GROUP BY {B}, {X} HAVING count(*) > 1',
                'count(DISTINCT {X}) AS c, {B} + 1 AS n FROM {0} GROUP BY {B}',
            ]
        )
    )
    if draw(st.booleans()):
        return _pair(text.replace('{X}', 'l.x'), ('block_num()', 'l._block_num'), draw(sides('l')))
    joined = tuple(
        f'{left} JOIN {right} ON l.k = r.k' for left, right in zip(draw(sides('l')), draw(sides('r')), strict=True)
    )
    return _pair(text.replace('{X}', 'r.x'), ('block_num()', 'greatest(l._block_num, r._block_num)'), joined)


def _pair(text: str, block: Pair, *parts: Pair) -> Pair:
    return tuple('SELECT ' + text.replace('{B}', block[at]).format(*(part[at] for part in parts)) for at in (0, 1))


@st.composite
def unions(draw: st.DrawFn) -> Pair:
    ways = st.sampled_from(
        ['k AS c, x AS d FROM {0}', 'l.k AS c, r.x AS d FROM {0} JOIN {1} ON l.k = r.k', '{B} AS c, l.k AS d FROM {0}']
    )
    found = []
    for _ in range(2):
        text = draw(ways)
        block = 'greatest(l._block_num, r._block_num)' if '{1}' in text else 'l._block_num'
        found.append(_pair(text, ('block_num()', block), draw(sides('l')), draw(sides('r'))))
    return tuple(' UNION ALL '.join(pair) for pair in zip(*found, strict=True))


rows = st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 3)), max_size=14)


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    a=rows,
    b=rows,
    cuts=st.sets(st.integers(1, 9)),
    query=st.one_of(inner_joins(), semi_joins(), single_tables(), groups(), unions()),
)
def test_the_microbatches_are_the_batch_result(a, b, cuts, query):
    engine = engine_over({'a': a, 'b': b}, 10)
    streamed, batch = query
    found = streamed_rows(engine, streamed, [0, *sorted(cuts), 10])
    assert Counter(row for microbatch in found for row in microbatch) == Counter(batch_rows(engine, batch))


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(a=rows, b=rows, cuts=st.sets(st.integers(1, 9)))
def test_rows_of_a_microbatch_come_by_block(a, b, cuts):
    engine = engine_over({'a': a, 'b': b}, 10)
    sql = 'SELECT block_num() AS n FROM d.a l JOIN d.b r ON l.k = r.k UNION ALL SELECT _block_num AS n FROM d.b'
    edges = [0, *sorted(cuts), 10]
    for microbatch, start, end in zip(streamed_rows(engine, sql, edges), edges, edges[1:], strict=False):
        numbers = [number for (number,) in microbatch]
        assert numbers == sorted(numbers)
        assert all(start <= number < end for number in numbers)


ROWS = {'a': [(0, 1, 2), (2, 2, 1), (2, None, 5)], 'b': [(1, 1, 1), (3, 2, 3)]}


def test_an_old_row_that_matches_again_is_not_new():
    rows = {'a': [(0, 1, 0)], 'b': [(1, 1, 0), (2, 1, 0), (3, 1, 0)]}
    engine = engine_over(rows, 4)
    assert streamed_rows(engine, 'SELECT k FROM d.a WHERE k IN (SELECT k FROM d.b)', [0, 1, 2, 3, 4]) == [
        [],
        [(1,)],
        [],
        [],
    ]


def test_a_block_number_of_a_late_row_of_a_semi_join_is_its_own():
    engine = engine_over({'a': [(0, 1, 0)], 'b': [(2, 1, 0)]}, 3)
    sql = 'SELECT block_num() AS n FROM d.a l LEFT SEMI JOIN d.b r ON l.k = r.k'
    assert streamed_rows(engine, sql, [0, 1, 2, 3]) == [[], [], [(0,)]]


@pytest.mark.parametrize(
    ('sql', 'wanted'),
    [
        # What no table holds is older than all blocks: it joins with every new row, and is not new itself.
        ('SELECT a.k, v.p FROM d.a a CROSS JOIN (VALUES (7)) AS v(p)', [[(1, 7)], [(2, 7), (None, 7)]]),
        ('SELECT k FROM d.a UNION ALL (VALUES (7))', [[(1,)], [(2,), (None,)]]),
        ('SELECT a.k FROM d.a a WHERE a.k IN (SELECT p FROM (VALUES (2), (3)) AS v(p))', [[], [(2,)]]),
        ('SELECT unnest(many) AS m, block_num() AS n FROM (SELECT many FROM d.a)', [[(0, 0)], [(0, 2), (1, 2)]]),
        ('SELECT m FROM (SELECT unnest(many) AS m, k FROM d.a) q JOIN d.b r ON q.k = r.k', [[(0,)], [(0,), (1,)]]),
        ('SELECT *, block_num() AS n FROM (SELECT k, x FROM d.a WHERE x > 1) q', [[(1, 2, 0)], [(None, 5, 2)]]),
        ('SELECT * FROM d.a WHERE block_num() = 0', [[(0, 1, 2, [0])], []]),
        ('SELECT k FROM d.a INTERSECT ALL SELECT k FROM d.b', [[(1,)], [(2,)]]),
        (
            'SELECT block_num() AS n FROM (SELECT block_num() AS b FROM d.a) q JOIN d.b r ON q.b = r.x + 1',
            [[], [(2,), (2,)]],
        ),
    ],
)
def test_results_by_microbatch(sql, wanted):
    found = streamed_rows(engine_over(ROWS, 4), sql, [0, 2, 4])
    assert [sorted(rows, key=repr) for rows in found] == [sorted(rows, key=repr) for rows in wanted]


def test_what_is_no_row_of_a_block_counts_when_the_chain_begins_later():
    engine = engine_over({'a': [(5, 1, 2)], 'b': []}, 3, first=4)
    sql = 'SELECT a.k, v.p FROM d.a a CROSS JOIN (VALUES (7)) AS v(p)'
    assert streamed_rows(engine, sql, [4, 5, 7]) == [[], [(1, 7)]]


@pytest.mark.parametrize('condition', ['block_num() = r.k', '(l.k = r.k AND (block_num() > 3))'])
def test_a_join_has_no_block_before_it_has_a_row(condition):
    with pytest.raises(QueryError, match=r'block_num\(\) is not known in the condition of a join') as caught:
        streamed_rows(engine_over(ROWS, 4), f'SELECT l.k FROM d.a l JOIN d.b r ON {condition}', [0, 4])
    assert caught.value.context['code'] == 'INVALID_ARGUMENT'


@pytest.mark.parametrize(
    ('sql', 'told'),
    [
        ('SELECT *, block_num() FROM d.a', 'SELECT * EXCLUDE (N), F(N) FROM d.a LEFT JOIN R ON true '),
        ('SELECT block_num()', "SELECT arrow_cast(0, 'UInt64')"),
        (
            'SELECT coalesce(block_num(), 1) FROM d.a, d.b WHERE x = 1',
            'SELECT coalesce(F(N), 1) FROM d.a CROSS JOIN  d.b  LEFT JOIN R ON true WHERE x = 1',
        ),
        (
            'SELECT k FROM (SELECT block_num() AS b FROM d.a) q UNION ALL SELECT 1 FROM d.b',
            'SELECT k FROM (SELECT F(N) AS b FROM d.a LEFT JOIN R ON true ) q UNION ALL SELECT 1 FROM d.b',
        ),
        ('SELECT x * 2, a.* FROM d.a', 'SELECT x * 2, a.* FROM d.a'),
    ],
)
def test_a_select_that_calls_block_num_gets_the_numbers(sql, told):
    relation = '(SELECT _block_num AS N FROM block_num__amp__.numbers)'
    found = with_block_numbers(sql).replace('block_num__amp__number', 'N')
    found = found.replace('(SELECT _block_num AS N FROM block_num__amp__.Ns)', 'R').replace(relation, 'R')
    assert found.replace('block_num__amp__of', 'F') == told
