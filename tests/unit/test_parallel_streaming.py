"""Partitions, the queue that hands them out, and queries that can be split or must not be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.errors import ConfigError
from amp.streaming.parallel import (
    BlockRangePartitionStrategy,
    ParallelConfig,
    QueryPartition,
    RangeQueue,
)
from amp.streaming.types import BlockRange

pytestmark = pytest.mark.unit


def config(**changes) -> ParallelConfig:
    return ParallelConfig(**{'num_workers': 4, 'table_name': 'eth.logs', 'max_block': 1_000, **changes})


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'num_workers': 0}, 'num_workers must be >= 1'),
        ({'table_name': ''}, 'table_name is required'),
        ({'min_block': 1_000}, r'min_block \(1000\) must be < max_block \(1000\)'),
        ({'min_block': -1}, 'min_block must be >= 0'),
        ({'partition_size': 0}, 'partition_size must be >= 1'),
        ({'reorg_buffer': -1}, 'reorg_buffer must be >= 0'),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        config(**changes)


def test_without_an_end_any_beginning_will_do():
    assert config(min_block=5_000, max_block=None).max_block is None


def test_one_partition_a_worker_unless_a_size_is_given():
    strategy = BlockRangePartitionStrategy('eth.logs', '_block_num')
    found = strategy.create_partitions(config(num_workers=3))
    assert [(p.start_block, p.end_block) for p in found] == [(0, 334), (334, 668), (668, 1_000)]
    assert [p.partition_id for p in found] == [0, 1, 2]
    assert {p.block_column for p in found} == {'_block_num'}
    assert len(strategy.create_partitions(config(partition_size=100))) == 10
    small = strategy.create_partitions(config(max_block=10))
    assert (small[0].end_block, small[-1].start_block, small[-1].end_block) == (3, 9, 10)
    assert small[0].metadata['partition_size'] == 3


@given(st.integers(1, 20), st.integers(0, 10**9), st.integers(1, 10**6), st.one_of(st.none(), st.integers(10, 10**6)))
def test_partitions_cover_the_range_once(workers, start, span, size):
    made = config(num_workers=workers, min_block=start, max_block=start + min(span, 10_000), partition_size=size)
    found = BlockRangePartitionStrategy('t').create_partitions(made)
    ends = [start, *(p.end_block for p in found)]
    assert [p.start_block for p in found] == ends[:-1]
    assert ends[-1] == made.max_block
    assert all(p.start_block < p.end_block for p in found)


def test_an_open_range_has_no_partitions():
    with pytest.raises(ConfigError, match='max_block is None'):
        BlockRangePartitionStrategy('t').create_partitions(config(max_block=None))


# Splitting


def split(query: str, column: str = 'block_num') -> str:
    return BlockRangePartitionStrategy('t', column).wrap_query_with_partition(query, QueryPartition(0, 10, 20, column))


@pytest.mark.parametrize(
    'query',
    [
        'SELECT * FROM eth.logs',
        'SELECT * FROM eth.logs;',
        'SELECT block_num FROM eth.logs WHERE a = 1 OR b = 2 -- or so',
        'SELECT block_num FROM eth.logs /* LIMIT 5 */',
        "SELECT block_num, 'LIMIT 5; ORDER BY' AS text FROM eth.logs",
        'WITH big AS (\nSELECT * FROM eth.logs WHERE block_num > 5\n)\nSELECT * FROM big',
        'SELECT block_num FROM (SELECT * FROM eth.logs) AS inner_query WHERE x = 1',
        'SELECT block_num FROM a UNION ALL SELECT block_num FROM b',
        'SELECT "from", block_num FROM "space/name@1.0.0".logs',
        "SELECT block_num, evm_decode_log(topic1, topic2, topic3, data, 'T(address indexed a)')['a'] AS a FROM eth.logs",
    ],
)
def test_a_query_is_wrapped_as_it_is(query):
    found = split(query)
    assert query.rstrip(';') in found
    assert found.endswith('WHERE block_num >= 10 AND block_num < 20')


def test_only_a_column_that_is_surely_no_word_of_sql_goes_without_quotes():
    assert split('SELECT * FROM t', 'order').endswith('WHERE "order" >= 10 AND "order" < 20')
    assert split('SELECT * FROM t', 'blockNum').endswith('WHERE "blockNum" >= 10 AND "blockNum" < 20')
    assert split('SELECT * FROM t', '_block_num').endswith('WHERE _block_num >= 10 AND _block_num < 20')


def test_settings_have_no_place_inside():
    assert 'stream' not in split('SELECT * FROM eth.logs SETTINGS stream = true')


@pytest.mark.parametrize(
    ('query', 'told'),
    [
        ('SELECT * FROM eth.logs LIMIT 5', 'LIMIT'),
        ('SELECT * FROM (SELECT * FROM eth.logs LIMIT 5) AS few', 'LIMIT'),
        ('SELECT * FROM eth.logs ORDER BY block_num', 'ORDER BY'),
        ('SELECT count(*) FROM eth.logs', 'aggregate'),
        ('SELECT block_num, count(*) FROM eth.logs GROUP BY block_num', 'GROUP BY'),
        ('SELECT DISTINCT block_num FROM eth.logs', 'DISTINCT'),
        ('SELECT block_num FROM a UNION SELECT block_num FROM b', 'UNION'),
        ('SELECT block_num FROM a EXCEPT SELECT block_num FROM b', 'EXCEPT'),
        ('SELECT block_num, row_number() OVER (ORDER BY x) FROM a', 'window'),
        ('SELECT address FROM eth.logs', "does not select 'block_num'"),
        ('SELEC * FROM eth.logs', 'cannot be read'),
    ],
)
def test_a_query_that_cannot_be_split_is_refused_with_the_reason(query, told):
    with pytest.raises(ConfigError, match=told):
        split(query)


# The queue


def drained(queue: RangeQueue) -> list[tuple[int, int]]:
    found = []
    while (piece := queue.take()) is not None:
        found.append((piece.start_block, piece.end_block))
        queue.observe(piece.end_block - piece.start_block, random.randrange(10**7), random.random() * 20)
    return found


@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 3_000)), max_size=8),
    st.one_of(st.none(), st.integers(1, 5_000)),
)
def test_the_queue_hands_out_every_block_once_lowest_first(spans, size):
    ranges, at = [], 0
    for skip, length in spans:
        ranges.append(BlockRange('n', at + skip, at + skip + length - 1))
        at += skip + length
    queue = RangeQueue(ranges, size)
    found = drained(queue)
    assert [b for start, end in found for b in range(start, end)] == [
        b for r in ranges for b in range(r.start, r.end + 1)
    ]
    assert queue.blocks_left == 0
    if size is not None:
        assert all(end - start <= size for start, end in found)


def test_pieces_grow_when_they_are_fast_and_shrink_when_they_are_slow():
    queue = RangeQueue([BlockRange('n', 0, 10**9)])
    first = queue.take()
    queue.observe(first.end_block - first.start_block, 10, 0.01)
    second = queue.take()
    assert second.end_block - second.start_block == 2 * (first.end_block - first.start_block)
    queue.observe(second.end_block - second.start_block, 10, 60)
    third = queue.take()
    assert third.end_block - third.start_block == first.end_block - first.start_block
