"""The block store: branches, the canonical chain, rows by block."""

from __future__ import annotations

import json
import threading

import pyarrow as pa
import pytest

from amp.devserver import schemas
from amp.devserver.chain import ZERO_HASH, Block, Chain, Segment
from amp.devserver.microbatch import Cursor, next_range, parse_cursors, start_after
from amp.devserver.simulator import Simulator, build_segment

pytestmark = pytest.mark.unit


def simulated(blocks: int, **options) -> tuple[Chain, Simulator]:
    chain = Chain('simnet', schemas.EVM_RPC)
    simulator = Simulator(chain, **options)
    simulator.mine(blocks)
    return chain, simulator


def rows(chain: Chain, table: str = 'logs', first: int = 0, last: int = 1 << 40) -> pa.Table:
    return pa.Table.from_batches(chain.snapshot().rows(table, first, last), schema=chain.schemas[table])


def numbers_and_hashes(chain: Chain) -> list[tuple[int, str]]:
    table = rows(chain, 'blocks')
    return [(n, '0x' + h.hex()) for n, h in zip(table['block_num'].to_pylist(), table['hash'].to_pylist(), strict=True)]


def test_rows_of_every_table_are_those_of_the_canonical_blocks():
    chain, _ = simulated(300, logs_per_block=(0, 9))
    blocks = numbers_and_hashes(chain)
    assert [number for number, _ in blocks] == list(range(300))
    by_number = dict(blocks)
    for table in ('logs', 'transactions'):
        found = rows(chain, table)
        assert found.num_rows > 0
        assert found['_block_num'].to_pylist() == sorted(found['_block_num'].to_pylist())
        for number, block_hash in zip(found['block_num'].to_pylist(), found['block_hash'].to_pylist(), strict=True):
            assert by_number[number] == '0x' + block_hash.hex()


def test_the_same_seed_gives_the_same_rows_in_whatever_portions_blocks_are_mined():
    at_once, _ = simulated(120, seed=7, logs_per_block=(0, 5))
    one_by_one, simulator = simulated(0, seed=7, logs_per_block=(0, 5))
    for _ in range(120):
        simulator.mine(1)
    other, _ = simulated(120, seed=8, logs_per_block=(0, 5))
    for table in schemas.EVM_RPC:
        assert rows(at_once, table).equals(rows(one_by_one, table))
        assert not rows(at_once, table).equals(rows(other, table))


def test_simulated_rows_have_the_exact_schemas_and_valid_arrays():
    chain, _ = simulated(50, logs_per_block=12)
    for table, schema in schemas.EVM_RPC.items():
        for batch in chain.snapshot().rows(table, 0, 49):
            assert batch.schema.equals(schema)
            batch.validate(full=True)
            for field, column in zip(schema, batch.columns, strict=True):
                assert field.nullable or column.null_count == 0, field.name
    transactions = rows(chain, 'transactions')
    listed = transactions['access_list'].to_pylist()
    assert {type(entry) for entry in listed} == {type(None), list}
    assert any(entry and len(entry[0]['storage_keys']) == 2 for entry in listed)


def test_a_chain_mined_block_by_block_stays_in_few_record_batches():
    chain, simulator = simulated(0, logs_per_block=2)
    for _ in range(500):
        simulator.mine(1)
    assert len(chain.snapshot().rows('logs', 0, 499)) <= 10


def test_any_run_of_blocks_can_be_read():
    chain, simulator = simulated(40, logs_per_block=3)
    simulator.reorg(7, 5)
    everything = rows(chain)
    for first, last in [(0, 0), (5, 9), (30, 36), (33, 33), (44, 44), (0, 44), (45, 99), (20, 10)]:
        wanted = everything.filter([first <= n <= last for n in everything['_block_num'].to_pylist()])
        assert rows(chain, 'logs', first, last).equals(wanted), (first, last)


def test_a_reorg_replaces_exactly_the_last_blocks_and_keeps_the_orphans():
    chain, simulator = simulated(20)
    before = numbers_and_hashes(chain)
    simulator.reorg(3, 1)
    after = numbers_and_hashes(chain)
    assert after[:17] == before[:17]
    assert len(after) == 21
    assert not {h for _, h in after[17:]} & {h for _, h in before}
    assert chain.snapshot().find(before[19][1]) is not None
    chain.forget_orphans()
    assert chain.snapshot().find(before[19][1]) is None
    assert numbers_and_hashes(chain) == after


def test_a_branch_that_is_not_higher_is_not_noticed():
    chain, simulator = simulated(20)
    before = numbers_and_hashes(chain)
    simulator.reorg(3, 0)
    assert numbers_and_hashes(chain) == before
    simulator.mine(1)
    assert [h for _, h in numbers_and_hashes(chain)[:17]] == [h for _, h in before[:17]]
    assert len(numbers_and_hashes(chain)) == 21
    assert numbers_and_hashes(chain)[17:20] != before[17:20]


def test_an_earlier_branch_can_return_with_the_same_hashes_and_rows():
    chain, simulator = simulated(20)
    before, logs = numbers_and_hashes(chain), rows(chain)
    simulator.reorg(4, 1)
    simulator.switch_back(1)
    assert numbers_and_hashes(chain)[:20] == before
    assert rows(chain, 'logs', 0, 19).equals(logs)
    assert chain.head.number == 21


def test_a_snapshot_does_not_change():
    chain, simulator = simulated(20)
    view = chain.snapshot()
    logs = pa.Table.from_batches(view.rows('logs', 0, 99))
    head = view.canonical(19)
    simulator.reorg(10, 3)
    simulator.mine(40)
    assert pa.Table.from_batches(view.rows('logs', 0, 99)).equals(logs)
    assert view.canonical(19) == head
    assert view.last == 19


def test_who_waits_is_told_of_new_blocks():
    chain, simulator = simulated(1)
    version = chain.snapshot().version
    assert not chain.wait(version, 0.01)
    waiting = threading.Thread(target=simulator.mine, args=(1,))
    waiting.start()
    assert chain.wait(version, 60)
    waiting.join()


def test_segments_that_do_not_fit_are_refused():
    first = Block(0, '0x' + '11' * 32, ZERO_HASH, 1)
    stranger = Block(1, '0x' + '22' * 32, '0x' + '33' * 32, 2)
    with pytest.raises(ValueError, match='does not follow'):
        build_segment([first, stranger], (1, 1))
    good = build_segment([first], (1, 1))
    with pytest.raises(ValueError, match='outside of blocks'):
        Segment([Block(5, '0x' + '44' * 32, ZERO_HASH)], good.tables)
    chain = Chain('simnet', {'blocks': schemas.BLOCKS})
    with pytest.raises(ValueError, match='in a chain of'):
        chain.extend(good)
    chain = Chain('simnet', schemas.EVM_RPC)
    chain.extend(good)
    with pytest.raises(KeyError, match='not stored'):
        chain.extend(build_segment([stranger], (1, 1)))
    chain = Chain('simnet', schemas.EVM_RPC)
    with pytest.raises(ValueError, match='as its parent'):
        chain.extend(build_segment([Block(7, '0x' + '55' * 32, '0x' + '55' * 32)], (1, 1)))
    with pytest.raises(ValueError, match='blocks'):
        Simulator(chain).reorg(1, 1)


# Which range comes next


def cursor_at(chain: Chain, number: int) -> Cursor:
    return Cursor(number, chain.snapshot().canonical(number).hash)


def test_ranges_start_at_the_earliest_block_and_follow_each_other():
    chain, _ = simulated(2500, first_block=100, logs_per_block=0)
    cursor, spans = None, []
    previous = chain.snapshot().canonical(100).parent_hash
    while (found := next_range('simnet', chain.snapshot(), cursor, 1000)) is not None:
        assert found.prev_hash == previous
        assert found.hash == chain.snapshot().canonical(found.end).hash
        spans.append((found.start, found.end))
        cursor, previous = Cursor(found.end, found.hash), found.hash
    assert spans == [(100, 1099), (1100, 2099), (2100, 2599)]


@pytest.mark.parametrize('extend', [1, 5])
def test_an_orphan_leads_back_to_the_fork(extend):
    chain, simulator = simulated(50, logs_per_block=0)
    cursor = cursor_at(chain, 48)
    simulator.reorg(10, extend)
    found = next_range('simnet', chain.snapshot(), cursor, 1000)
    assert (found.start, found.end) == (40, 49 + extend)
    assert found.prev_hash == chain.snapshot().canonical(39).hash


def test_an_orphan_of_an_orphan_leads_back_to_the_deepest_fork():
    chain, simulator = simulated(50, logs_per_block=0)
    simulator.reorg(10, 1)
    cursor = cursor_at(chain, 50)
    simulator.reorg(20, 1)
    assert start_after(chain.snapshot(), cursor) == 31
    simulator.switch_back(1)
    assert start_after(chain.snapshot(), cursor) == 51


def test_an_unknown_hash_starts_at_its_own_number():
    chain, _ = simulated(50, logs_per_block=0)
    unknown = '0x' + 'ee' * 32
    assert start_after(chain.snapshot(), Cursor(30, unknown)) == 30
    assert next_range('simnet', chain.snapshot(), Cursor(50, unknown), 1000) is None
    assert next_range('simnet', chain.snapshot(), Cursor(10**9, unknown), 1000) is None


def test_at_the_tip_nothing_is_next():
    chain, simulator = simulated(50, logs_per_block=0)
    cursor = cursor_at(chain, 49)
    assert next_range('simnet', chain.snapshot(), cursor, 1000) is None
    simulator.mine(1)
    found = next_range('simnet', chain.snapshot(), cursor, 1000)
    assert (found.start, found.end, found.prev_hash) == (50, 50, cursor.hash)


def test_an_empty_chain_has_no_range():
    chain, _ = simulated(0)
    assert next_range('simnet', chain.snapshot(), None, 1000) is None


@pytest.mark.parametrize(
    'header',
    [
        None,
        '',
        'not json',
        '[]',
        '7',
        '{"ranges":[{"network":"a","start":0,"end":1,"hash":"0x00"}]}',
        '{"a":{"number":1}}',
        '{"a":{"number":"1","hash":"0x' + 'ab' * 32 + '"}}',
        '{"a":{"number":true,"hash":"0x' + 'ab' * 32 + '"}}',
        '{"a":{"number":-1,"hash":"0x' + 'ab' * 32 + '"}}',
        '{"a":{"number":1,"hash":"0xabcd"}}',
        '{"a":null}',
    ],
)
def test_a_cursor_that_does_not_parse_is_no_cursor(header):
    assert parse_cursors(header) is None


def test_a_cursor_that_parses():
    block_hash = 'AB' * 32
    header = json.dumps({'a': {'number': 1, 'hash': f'0x{block_hash}'}, 'b': {'number': 2, 'hash': block_hash}})
    wanted = '0x' + 'ab' * 32
    assert parse_cursors(header) == {'a': Cursor(1, wanted), 'b': Cursor(2, wanted)}
