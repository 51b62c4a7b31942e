"""Segments in files: the same rows as in memory, whatever way they were written."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp.devserver import schemas
from amp.devserver.chain import Chain
from amp.devserver.manifests import type_name
from amp.devserver.node import Pace
from amp.devserver.segments import BlockIndex, StoredSegment, StoredTable, read_blocks
from amp.devserver.simulator import Simulator, build_segment
from amp.errors import SourceError

pytestmark = pytest.mark.unit

BLOCKS = 40


@pytest.fixture(scope='module')
def made():
    chain = Chain('simnet', schemas.EVM_RPC)
    Simulator(chain, logs_per_block=(0, 9)).mine(BLOCKS)
    return chain


def rows(chain: Chain, table: str, first: int = 0, last: int = BLOCKS) -> pa.Table:
    return pa.Table.from_batches(chain.snapshot().rows(table, first, last), schema=chain.schemas[table])


def stored(chain: Chain, folder, first: int, last: int) -> StoredSegment:
    """Those blocks in one file a table."""
    tables = {}
    for name in chain.schemas:
        (folder / name).mkdir(exist_ok=True, parents=True)
        pq.write_table(rows(chain, name, first, last), folder / name / f'{first:09d}.parquet', row_group_size=7)
        tables[name] = StoredTable(folder / name, [folder / name / f'{first:09d}.parquet'])
    return StoredSegment(read_blocks([folder / 'blocks' / f'{first:09d}.parquet']), tables)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    files=st.integers(1, 4),
    group=st.integers(1, 60),
    shuffled=st.booleans(),
    first=st.integers(0, BLOCKS + 2),
    length=st.integers(0, BLOCKS),
)
def test_rows_by_block_from_any_files(made, tmp_path_factory, seed, files, group, shuffled, first, length):
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp('table')
    table = rows(made, 'logs')
    order = list(range(table.num_rows))
    if shuffled:
        chance.shuffle(order)
    cuts = sorted(chance.randrange(table.num_rows + 1) for _ in range(files - 1))
    paths = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, table.num_rows], strict=True)):
        paths.append(folder / f'{number}.parquet')
        pq.write_table(table.take(pa.array(order[start:end], pa.int64())), paths[-1], row_group_size=group)
    chance.shuffle(paths)
    found = StoredTable(folder, paths).rows(first, first + length)
    got = pa.Table.from_batches(found, schema=table.schema)
    numbers = table['_block_num']
    wanted = table.filter(pc.and_(pc.greater_equal(numbers, first), pc.less_equal(numbers, first + length)))
    keys = [('_block_num', 'ascending'), ('log_index', 'ascending')]
    assert got['_block_num'].equals(wanted['_block_num'])
    assert got.sort_by(keys).equals(wanted.sort_by(keys))
    if not shuffled and files == 1:
        assert got.equals(wanted)


def test_blocks_of_a_file_are_those_of_the_chain(made, tmp_path):
    segment = stored(made, tmp_path, 5, 20)
    view = made.snapshot()
    assert (segment.first, segment.last, len(segment.blocks)) == (5, 20, 16)
    assert list(segment.blocks) == [view.canonical(n) for n in range(5, 21)]
    assert segment.blocks[-2:] == [view.canonical(19), view.canonical(20)]
    assert segment.position(view.canonical(7).hash) == 2
    assert segment.position(view.canonical(21).hash) is None
    with pytest.raises(IndexError):
        segment.blocks[16]


def test_blocks_that_do_not_follow_each_other(made):
    table = rows(made, 'blocks')
    for broken in (
        pa.concat_tables([table.slice(0, 3), table.slice(4, 3)]),
        pa.concat_tables([table, table.slice(39)]),
    ):
        with pytest.raises(ValueError, match='does not follow'):
            BlockIndex(broken)
    with pytest.raises(ValueError, match='no rows'):
        BlockIndex(table.slice(0, 0))


def test_settled_blocks_leave_memory_and_stay_the_same(made, tmp_path):
    chain = Chain('simnet', schemas.EVM_RPC)
    simulator = Simulator(chain, logs_per_block=(0, 9))
    simulator.mine(30)
    simulator.reorg(12, 1)
    before = {name: rows(chain, name) for name in chain.schemas}
    orphans = [block for block in chain._known.near if chain.snapshot().find(block).number < 20]
    for first, last in ((0, 9), (10, 19)):
        chain.settle(stored(chain, tmp_path, first, last))
    view = chain.snapshot()
    assert {name: rows(chain, name) for name in chain.schemas} == before
    assert (view.first, view.last) == (0, 30)
    assert view.find(view.canonical(3).hash) == view.canonical(3)
    # Orphans of those heights are still known, and the branch goes on above.
    left = [block for block in orphans if view.canonical(view.find(block).number).hash != block]
    assert left
    assert not any(view.canonical(n).hash in chain._known.near for n in range(20))
    scan = view.scan('logs')
    assert [(part.first, part.last) for part in scan.stored] == [(0, 19)]
    assert sum(batch.num_rows for batch in scan.batches) == rows(chain, 'logs', 20, 30).num_rows
    simulator.reorg(5, 2)
    assert rows(chain, 'logs', 0, 19).equals(before['logs'].filter(pc.less(before['logs']['_block_num'], 20)))
    chain.forget_orphans()
    assert chain.snapshot().find(left[0]) is None


def test_a_segment_of_another_branch_is_not_settled(made, tmp_path):
    chain = Chain('simnet', schemas.EVM_RPC)
    Simulator(chain, seed=2).mine(30)
    with pytest.raises(ValueError, match='of another branch'):
        chain.settle(stored(made, tmp_path, 0, 9))
    with pytest.raises(ValueError, match='do not follow block 29'):
        chain.settle(stored(made, tmp_path, 35, 39))
    with pytest.raises(ValueError, match='of another branch'):
        chain.settle(stored(made, tmp_path, 30, 39))
    assert chain.snapshot().last == 29


def test_files_of_other_columns_and_files_that_are_none(made, tmp_path):
    pq.write_table(rows(made, 'logs'), tmp_path / 'a.parquet')
    pq.write_table(rows(made, 'blocks'), tmp_path / 'b.parquet')
    with pytest.raises(ValueError, match='other columns'):
        StoredTable(tmp_path, [tmp_path / 'a.parquet', tmp_path / 'b.parquet'])
    (tmp_path / 'c.parquet').write_bytes(b'PAR1')
    with pytest.raises(SourceError, match=r'c\.parquet cannot be read'):
        StoredTable(tmp_path, [tmp_path / 'c.parquet'])


def test_a_segment_is_the_same_through_files(made, tmp_path):
    view = made.snapshot()
    segment = build_segment([view.canonical(n) for n in range(10)], (0, 9))
    again = stored(made, tmp_path, 0, 9)
    for name in schemas.EVM_RPC:
        assert pa.Table.from_batches(again.rows(name, 2, 8)).equals(pa.Table.from_batches(segment.rows(name, 2, 8)))


def test_the_pace_of_calls():
    pace = Pace(10)
    assert pace.delay(5) == 0
    assert 0.4 < pace.delay(1) <= 0.5
    pace.pause(3)
    assert 2.5 < pace.delay(1) <= 3
    free = Pace()
    assert [free.delay(1000) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ('type_', 'named'),
    [
        (pa.uint64(), 'UInt64'),
        (pa.binary(20), {'FixedSizeBinary': 20}),
        (pa.timestamp('ns', '+00:00'), {'Timestamp': ['Nanosecond', '+00:00']}),
        (pa.timestamp('s'), {'Timestamp': ['Second', None]}),
        (pa.decimal128(38, 0), {'Decimal128': [38, 0]}),
        (pa.decimal256(76, 2), {'Decimal256': [76, 2]}),
    ],
)
def test_types_as_manifests_name_them(type_, named):
    assert type_name(type_) == named


def test_nested_types_as_manifests_name_them():
    inner = {'nullable': False, 'dict_id': 0, 'dict_is_ordered': False, 'metadata': {}}
    address = {'name': 'address', 'data_type': {'FixedSizeBinary': 20}, **inner}
    keys = {
        'name': 'storage_keys',
        'data_type': {'List': {'name': 'item', 'data_type': {'FixedSizeBinary': 32}, **inner}},
    }
    item = {'name': 'item', 'data_type': {'Struct': [address, {**keys, **inner}]}, **inner}
    assert type_name(schemas.TRANSACTIONS.field('access_list').type) == {'List': item}
