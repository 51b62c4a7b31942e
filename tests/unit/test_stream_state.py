"""State stores: positions, gaps, undo and finality; in memory, and the one that remembers nothing."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings

import amp.streaming.types
from amp.errors import ConfigError
from amp.streaming.state import (
    BatchIdentifier,
    InMemoryStreamStateStore,
    NullStreamStateStore,
    StreamStateStore,
    make_local_store,
)
from amp.streaming.types import BlockRange, ResumeWatermark
from tests.unit.state_model import check_store_against_model, operations

pytestmark = pytest.mark.unit


def batch(start: int, end: int, network: str = 'eth', fork: str = '0x') -> BatchIdentifier:
    return BatchIdentifier(network, start, end, f'{fork}{end}', f'{fork}{start - 1}' if start else '')


def chain(count: int, width: int = 10, network: str = 'eth') -> list[BatchIdentifier]:
    return [batch(i * width, i * width + width - 1, network) for i in range(count)]


@pytest.fixture
def store() -> InMemoryStreamStateStore:
    return InMemoryStreamStateStore()


def spans(ranges: tuple[BlockRange, ...]) -> list[tuple[int, int]]:
    return [(r.start, r.end) for r in ranges]


def test_the_identifier_is_the_one_of_types():
    assert BatchIdentifier is amp.streaming.types.BatchIdentifier


@settings(max_examples=250)
@given(steps=operations())
def test_any_history_agrees_with_the_model(steps):
    check_store_against_model(InMemoryStreamStateStore(), 'logs', steps)


def test_nothing_committed_is_no_position(store):
    assert store.get_resume_position('c', 't') is None
    assert store.get_resume_position('c', 't', detect_gaps=True) is None
    assert store.invalidate_from_block('c', 't', 'eth', 0) == []
    assert not store.is_processed('c', 't', [])
    assert not store.is_processed('c', 't', [batch(0, 9)])


def test_position_is_the_newest_end_of_each_network_with_its_hash(store):
    store.mark_processed('c', 't', [batch(10, 19), batch(0, 9), batch(5, 7, 'base')])
    position = store.get_resume_position('c', 't')
    assert position == ResumeWatermark([batch(5, 7, 'base').to_block_range(), batch(10, 19).to_block_range()])
    assert position.to_dict() == {'base': {'number': 7, 'hash': '0x7'}, 'eth': {'number': 19, 'hash': '0x19'}}


def test_all_of_the_batches_must_be_processed(store):
    store.mark_processed('c', 't', [batch(0, 9)])
    assert store.is_processed('c', 't', [batch(0, 9)])
    assert not store.is_processed('c', 't', [batch(0, 9), batch(10, 19)])
    assert not store.is_processed('c', 't', [batch(0, 9, fork='other')])
    assert not store.is_processed('c', 't', [batch(2, 5)])


@pytest.mark.parametrize(
    ('marked', 'start_block', 'position', 'gaps'),
    [
        ([(0, 9), (11, 19)], 0, 9, [(10, 10)]),
        ([(5, 9)], 0, None, [(0, 4)]),
        ([(1, 9)], 0, None, [(0, 0)]),
        ([(5, 9)], 5, 9, []),
        ([(0, 9), (20, 29), (40, 49)], 0, 9, [(10, 19), (30, 39)]),
        ([(0, 9), (20, 29), (40, 49)], 20, 29, [(30, 39)]),
        ([(0, 9), (20, 29)], 10, 9, [(10, 19)]),
        ([(0, 9), (20, 29)], 11, None, [(11, 19)]),
        ([(0, 9), (5, 24), (20, 29)], 0, 29, []),
        ([(20, 29), (0, 9), (10, 19)], 0, 29, []),
        ([(0, 9)], 50, None, []),
    ],
)
def test_gaps_of_any_size_anywhere(store, marked, start_block, position, gaps):
    store.mark_processed('c', 't', [batch(*span) for span in marked])
    found = store.get_resume_position('c', 't', detect_gaps=True, start_block=start_block)
    assert [r.end for r in (found.ranges if found is not None else ())] == ([] if position is None else [position])
    assert spans(found.gaps if found is not None else ()) == gaps


def test_gaps_are_no_part_of_the_header():
    with_gaps = ResumeWatermark([batch(0, 9).to_block_range()], [BlockRange('eth', 10, 12)])
    assert with_gaps.to_json() == ResumeWatermark([batch(0, 9).to_block_range()]).to_json()
    assert ResumeWatermark.from_json(with_gaps.to_json()).gaps == ()


def test_undo_touches_one_network_and_returns_what_it_removed(store):
    store.mark_processed('c', 't', [*chain(5), *chain(5, network='base')])
    assert store.invalidate_from_block('c', 't', 'eth', 25) == chain(5)[2:]
    assert store.get_resume_position('c', 't').to_dict() == {
        'base': {'number': 49, 'hash': '0x49'},
        'eth': {'number': 19, 'hash': '0x19'},
    }
    assert not store.is_processed('c', 't', [batch(20, 29)])
    assert store.is_processed('c', 't', [batch(20, 29, 'base')])


def test_undo_of_a_bridge_opens_the_gap_that_it_closed(store):
    store.mark_processed('c', 't', [batch(0, 9), batch(20, 29), batch(5, 35)])
    assert store.get_resume_position('c', 't', detect_gaps=True).gaps == ()
    assert store.invalidate_from_block('c', 't', 'eth', 30) == [batch(5, 35)]
    found = store.get_resume_position('c', 't', detect_gaps=True)
    assert (found.ranges[0].end, found.ranges[0].hash) == (9, '0x9')
    assert spans(found.gaps) == [(10, 19)]


def test_a_reorg_back_to_the_same_hashes_is_processed_again(store):
    store.mark_processed('c', 't', [batch(0, 9), batch(10, 19, fork='a')])
    store.invalidate_from_block('c', 't', 'eth', 10)
    store.mark_processed('c', 't', [batch(10, 19, fork='b')])
    store.invalidate_from_block('c', 't', 'eth', 10)
    assert not store.is_processed('c', 't', [batch(10, 19, fork='a')])
    store.mark_processed('c', 't', [batch(10, 19, fork='a')])
    assert store.get_resume_position('c', 't').ranges[0].hash == 'a19'


def test_finality_changes_neither_position_nor_gaps(store):
    store.mark_processed('c', 't', [batch(0, 9), batch(10, 19), batch(30, 39), batch(40, 49)])
    before = store.get_resume_position('c', 't'), store.get_resume_position('c', 't', detect_gaps=True)
    store.cleanup_before_block('c', 't', 'eth', 45)
    assert (store.get_resume_position('c', 't'), store.get_resume_position('c', 't', detect_gaps=True)) == before
    assert [p.identifier for p in store.processed_batches('t')] == [batch(40, 49)]
    assert store.is_processed('c', 't', [batch(0, 9), batch(30, 39)])
    assert not store.is_processed('c', 't', [batch(20, 29)])
    assert store.invalidate_from_block('c', 't', 'eth', 40) == [batch(40, 49)]
    assert store.get_resume_position('c', 't').ranges[0].hash == '0x39'


def test_a_batch_across_the_final_block_can_still_be_undone(store):
    store.mark_processed('c', 't', [batch(0, 2), batch(3, 8), batch(9, 12)])
    store.cleanup_before_block('c', 't', 'eth', 5)
    assert store.invalidate_from_block('c', 't', 'eth', 6) == [batch(3, 8), batch(9, 12)]
    assert store.get_resume_position('c', 't', detect_gaps=True).ranges == (batch(0, 2).to_block_range(),)


def test_a_cut_inside_final_history_resumes_from_the_newest_known_hash(store):
    store.mark_processed('c', 't', [batch(0, 9), *(batch(s, s + 9) for s in (20, 30, 40))])
    store.cleanup_before_block('c', 't', 'eth', 1000)
    assert store.invalidate_from_block('c', 't', 'eth', 35) == []
    assert store.get_resume_position('c', 't').to_dict() == {'eth': {'number': 9, 'hash': '0x9'}}
    assert store.is_processed('c', 't', [batch(20, 29)])
    assert not store.is_processed('c', 't', [batch(30, 39)])


def test_state_costs_what_gaps_cost(store):
    for index, each in enumerate(chain(3000)):
        store.mark_processed('c', 't', [each])
        if index % 50 == 0:
            store.cleanup_before_block('c', 't', 'eth', each.start_block)
    store.cleanup_before_block('c', 't', 'eth', 10**9)
    assert sum(len(m._keys) for m in store._maps.values()) <= 4


def test_streams_are_apart_and_connections_are_not(store):
    store.mark_processed('prod', 't', [batch(0, 9)])
    store.mark_processed('prod', 't', [batch(0, 19)], stream='')
    assert store.is_processed('alias', 't', [batch(0, 9)])
    assert store.is_processed('alias', 't', [batch(0, 9)], stream='t')
    assert not store.is_processed('prod', 't', [batch(0, 9)], stream='')
    assert not store.is_processed('prod', 't', [batch(0, 9)], stream='x')
    store.invalidate_from_block('prod', 't', 'eth', 0, stream='')
    assert store.is_processed('prod', 't', [batch(0, 9)])


@pytest.mark.parametrize('bad', [(5, 4), (-1, 4), (0, 2**63)])
def test_a_bad_range_is_refused_and_nothing_is_recorded(store, bad):
    wrong = BatchIdentifier('eth', *bad, '0x')
    with pytest.raises(ValueError, match='not a range of blocks'):
        store.mark_processed('c', 't', [batch(0, 9), wrong])
    assert store.get_resume_position('c', 't') is None
    assert not store.is_processed('c', 't', [wrong])


def test_blocks_out_of_any_range_are_clamped(store):
    store.mark_processed('c', 't', [batch(0, 9)])
    assert store.get_resume_position('c', 't', detect_gaps=True, start_block=-5).gaps == ()
    assert store.invalidate_from_block('c', 't', 'eth', 10**30) == []
    assert store.invalidate_from_block('c', 't', 'eth', -1) == [batch(0, 9)]


def test_a_batch_without_a_hash_is_no_position(store):
    store.mark_processed('c', 't', [batch(0, 9), BatchIdentifier('eth', 10, 19, '')])
    assert store.get_resume_position('c', 't').ranges[0].end == 9
    assert store.is_processed('c', 't', [BatchIdentifier('eth', 10, 19, '')])


def test_processed_batches_know_when(store):
    before = datetime.now(UTC)
    store.mark_processed('c', 't', [batch(0, 9)])
    (found,) = store.processed_batches('t')
    assert found.identifier == batch(0, 9)
    assert before - timedelta(seconds=1) < found.processed_at <= datetime.now(UTC)


def test_documents(store):
    assert store.load_document(('t', 's')) is None
    assert store.replace_document(('t', 's'), 'one', None)
    assert store.replace_document(('t', ''), '', None)
    assert store.load_document(('t', 's')) == 'one'
    assert store.load_document(('t', '')) == ''
    assert not store.replace_document(('t', 's'), 'two', None)
    assert not store.replace_document(('t', 's'), 'two', 'other')
    assert store.replace_document(('t', 's'), 'two', 'one')
    assert store.replace_document(('new', ''), 'x', None)
    assert (store.load_document(('t', 's')), store.load_document(('new', ''))) == ('two', 'x')


def test_threads_lose_nothing(store):
    parts = [chain(400)[i::4] for i in range(4)]
    ready = threading.Barrier(4)

    def work(part: list[BatchIdentifier]) -> None:
        ready.wait(60)
        for each in part:
            store.mark_processed('c', 't', [each])
            store.get_resume_position('c', 't', detect_gaps=True)

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(store.processed_batches('t')) == 400
    assert store.get_resume_position('c', 't', detect_gaps=True).gaps == ()


def test_cost_does_not_grow_with_history(store):
    """A hundred times the batches, about the same time, whatever the machine: of several calls the best."""

    def best(call) -> float:
        times = []
        for _ in range(25):
            begin = time.thread_time()
            call()
            times.append(time.thread_time() - begin)
        return min(times)

    def costs(batches: list[BatchIdentifier]) -> list[float]:
        store.mark_processed('c', 't', batches)
        end = batches[-1].end_block

        def undo_and_redo() -> None:
            store.mark_processed('c', 't', [batch(0, end + 10)])  # over everything: its undo must not look at the rest
            assert len(store.invalidate_from_block('c', 't', 'eth', end + 1)) == 1

        return [
            best(lambda: store.get_resume_position('c', 't')),
            best(lambda: store.get_resume_position('c', 't', detect_gaps=True)),
            best(undo_and_redo),
        ]

    all_batches = chain(50_000)
    few, many = costs(all_batches[:500]), costs(all_batches)
    assert all(more < 20 * less for less, more in zip(few, many, strict=True)), (few, many)


def test_null_remembers_nothing():
    store = NullStreamStateStore()
    store.mark_processed('c', 't', [batch(0, 9)])
    store.cleanup_before_block('c', 't', 'eth', 5)
    assert not store.is_processed('c', 't', [batch(0, 9)])
    assert store.get_resume_position('c', 't', detect_gaps=True) is None
    assert store.invalidate_from_block('c', 't', 'eth', 0) == []
    assert store.load_document(('t', 's')) is None
    assert store.replace_document(('t', 's'), 'text', 'whatever')


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (None, InMemoryStreamStateStore),
        ({}, InMemoryStreamStateStore),
        ({'storage': 'memory'}, InMemoryStreamStateStore),
        ({'storage': 'null'}, NullStreamStateStore),
        ({'enabled': False}, NullStreamStateStore),
        ({'enabled': False, 'storage': 'lmdb', 'data_dir': 'x'}, NullStreamStateStore),
    ],
)
def test_a_configuration_makes_a_store(config, expected):
    assert type(make_local_store(config)) is expected


def test_a_store_passes_through(store):
    assert make_local_store(store) is store
    assert isinstance(store, StreamStateStore)


@pytest.mark.parametrize(
    ('config', 'named'),
    [
        ({'storage': 'redis'}, "'redis'"),
        ({'storage': ['lmdb']}, 'lmdb'),
        ({'enabled': 'no'}, "'no'"),
        ({'store': 'lmdb'}, 'store'),
        ({'data_dir': 'x'}, 'data_dir'),
        ({'storage': 'lmdb', 'connection_name': 'c', 'map_size': 3}, 'map_size'),
        ({'storage': 'lmdb'}, 'connection_name'),
        ({'storage': 'lmdb', 'connection_name': 'c', 'data_dir': 3}, 'data_dir'),
        ('lmdb', 'str'),
    ],
)
def test_what_cannot_be_meant_is_named(config, named):
    with pytest.raises(ConfigError, match=named):
        make_local_store(config)
