from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp.errors import IntegrityError
from amp.streaming.ledger import (
    MAX_COUNTER,
    MAX_EPOCH,
    MAX_STREAM_NUMBER,
    Entry,
    IdRun,
    StreamState,
    admit,
    id_runs,
    invalidate,
    merge_ranges,
    stream_interval,
    transaction_id,
)
from amp.streaming.types import BatchIdentifier, BlockRange

pytestmark = pytest.mark.unit
quick = settings(max_examples=100, derandomize=True)


def r(start: int, end: int, branch: str = 'a', parent: str | None = None, network: str = 'eth') -> BlockRange:
    """A range of a branch: block n of branch a has the hash `an`."""
    return BlockRange(network, start, end, f'{branch}{end}', f'{parent or branch}{start - 1}' if start else None)


def tx(counter: int, epoch: int = 1, number: int = 1) -> int:
    return transaction_id(number, epoch, counter)


def state_of(*ranges: BlockRange, retention: int = 10**9) -> StreamState:
    state = StreamState(1, 1)
    for i, span in enumerate(ranges):
        state = state.append(tx(i), [span]).prune(retention)
    return state


def spans(state: StreamState) -> list[tuple[int, int]]:
    return [(e.ranges[0].start, e.ranges[0].end) for e in state.entries]


def counters(runs: tuple[IdRun, ...]) -> list[tuple[int, int]]:
    return [(run.first - tx(0), run.last - tx(0)) for run in runs]


# Ids


def test_ids_are_63_bits_rise_with_epoch_and_counter_and_stay_in_their_interval() -> None:
    assert transaction_id(MAX_STREAM_NUMBER, MAX_EPOCH, MAX_COUNTER) == 2**63 - 1
    assert transaction_id(1, 0, MAX_COUNTER) < transaction_id(1, 1, 0)
    assert stream_interval(1).last + 1 == stream_interval(2).first
    for parts in [
        (0, 0, 0),
        (MAX_STREAM_NUMBER + 1, 0, 0),
        (1, MAX_EPOCH + 1, 0),
        (1, 0, MAX_COUNTER + 1),
        (1, -1, 0),
        (1, 0, -1),
    ]:
        with pytest.raises(IntegrityError):
            transaction_id(*parts)


# The rule of acceptance (vectors 1-3, 13-15 and 19 restated: what is undone, what stays, where it resumes)

HISTORY = [r(0, 9), r(10, 19), r(20, 29)]


@pytest.mark.parametrize(
    ('history', 'incoming', 'kept', 'undone', 'reconnect'),
    [
        pytest.param(HISTORY, r(30, 39), 3, [], False, id='forward'),
        pytest.param(HISTORY, r(30, 39, 'b', 'b'), 2, [(2, 2)], True, id='another parent of the next block'),
        pytest.param(HISTORY, r(20, 25, 'b', 'a'), 2, [(2, 2)], False, id='exactly the last unit'),
        pytest.param(HISTORY, r(25, 35, 'b', 'a'), 2, [(2, 2)], True, id='1 inside the last unit'),
        pytest.param(HISTORY, r(10, 35, 'b', 'a'), 1, [(1, 2)], False, id='14 several units'),
        pytest.param(HISTORY, r(15, 35, 'b', 'a'), 1, [(1, 2)], True, id='inside an older unit'),
        pytest.param(HISTORY, r(20, 25, 'b', 'b'), 1, [(1, 2)], True, id='the unit before has another hash'),
        pytest.param(HISTORY, r(29, 35, 'b', 'b'), 2, [(2, 2)], True, id='unknown cursor: starts at its number'),
        pytest.param(HISTORY, r(0, 35, 'b', 'a'), 0, [(0, 2)], False, id='from the beginning'),
        pytest.param(HISTORY, r(31, 35), 3, [], True, id='a gap takes nothing back'),
        pytest.param(HISTORY, r(100, 135), 3, [], True, id='a wide gap'),
        pytest.param(
            HISTORY, BlockRange('eth', 31, 35, 'a35', 'a29'), 3, [], True, id='the right parent, a block late'
        ),
        pytest.param(HISTORY, BlockRange('eth', 29, 35, 'a35', 'a29'), 2, [(2, 2)], True, id='a block early'),
        pytest.param([r(0, 0), r(1, 1), r(2, 2)], r(2, 3, 'b', 'a'), 2, [(2, 2)], False, id='2'),
        pytest.param([r(0, 0), r(1, 2)], r(2, 3, 'b', 'a'), 1, [(1, 1)], True, id='3'),
        pytest.param([r(100, 110), r(111, 120)], r(100, 130, 'b', 'b'), 0, [(0, 1)], False, id='19 from its origin'),
        pytest.param([r(100, 110)], r(105, 130, 'b', 'a'), 0, [(0, 0)], True, id='back to the origin, then again'),
        pytest.param([], r(5, 9), 0, [], False, id='a new stream begins anywhere'),
    ],
)
def test_the_rule_of_acceptance(
    history: list[BlockRange], incoming: BlockRange, kept: int, undone: list[tuple[int, int]], reconnect: bool
) -> None:
    state = state_of(*history)
    answer = admit(state, [incoming])
    assert answer.below is None
    assert answer.reconnect == reconnect
    rest = answer.undo.state if answer.undo else state
    assert rest.entries == state.entries[:kept]
    assert counters(answer.undo.runs if answer.undo else ()) == undone
    if answer.undo:
        assert answer.undo.dropped == state.entries[kept:]
        assert rest.position.to_dict() == state_of(*history[:kept]).position.to_dict()


def test_an_undo_says_which_blocks_are_off_the_chain() -> None:
    answer = admit(state_of(*HISTORY), [r(25, 27, 'b', 'a')])
    assert answer.undo is not None
    assert [(x.start, x.end) for x in answer.undo.invalidated] == [(25, 29)]
    assert answer.undo.is_reorg


def test_a_replay_of_a_committed_microbatch_is_taken_back_first_and_is_no_reorg() -> None:
    answer = admit(state_of(*HISTORY), [HISTORY[2]])
    assert answer.undo is not None
    assert counters(answer.undo.runs) == [(2, 2)]
    assert not answer.reconnect
    assert not answer.undo.is_reorg


@pytest.mark.parametrize('start', [0, 5, 19, 20])
def test_final_history_is_never_dropped(start: int) -> None:
    state = state_of(r(0, 19), *[r(n, n) for n in range(20, 60)], retention=5)
    assert state.segments[-1].end > 20
    answer = admit(state, [r(start, 80, 'b', 'b')])
    assert answer.undo is None
    assert answer.below == state.segments[-1]
    assert invalidate(state, [r(start, 80)]).below == state.segments[-1]


def test_the_block_after_final_history_with_another_parent_is_below_it() -> None:
    state = state_of(*[r(n, n) for n in range(40)], retention=5)
    end = state.segments[-1].end
    assert admit(state, [r(end + 1, 50, 'b', 'b')]).below == state.segments[-1]
    answer = admit(state, [r(end + 1, 50, 'b', 'a')])
    assert answer.undo is not None
    assert answer.undo.state.entries == ()
    assert answer.undo.state.position.to_dict() == {'eth': {'number': end, 'hash': f'a{end}'}}
    assert not answer.reconnect


def test_a_stream_that_was_undone_to_nothing_begins_at_its_origin_again() -> None:
    answer = admit(state_of(r(100, 109)), [r(105, 120, 'b', 'a')])
    assert answer.undo is not None
    empty = StreamState.from_json(1, 2, answer.undo.state.to_json())
    assert not empty.position
    assert admit(empty, [r(105, 120, 'b')]).reconnect
    assert admit(empty, [r(101, 120, 'b')]).reconnect
    assert not admit(empty, [r(100, 120, 'b')]).reconnect


def test_one_network_of_two_takes_back_the_entries_that_hold_both() -> None:
    """Vector 12: the other network's rows of that entry go too, so the stream must be asked again."""
    state = StreamState(1, 1).append(tx(0), [r(0, 10), r(0, 10, network='polygon')])
    answer = admit(state, [r(5, 12, 'b', 'a'), r(11, 20, network='polygon')])
    assert answer.undo is not None
    assert answer.undo.state.entries == ()
    assert answer.reconnect


def test_a_reorg_of_one_network_leaves_the_entries_of_another() -> None:
    state = StreamState(1, 1)
    for i in range(6):
        start = i // 2 * 10
        state = state.append(tx(i), [r(start, start + 9, network='eth' if i % 2 else 'polygon')])
    answer = invalidate(state, [BlockRange('eth', 10, 40)])
    assert answer.undo is not None
    assert counters(answer.undo.runs) == [(3, 3), (5, 5)]
    assert {x.network: x.end for x in answer.undo.state.position.ranges} == {'eth': 9, 'polygon': 29}


def test_ranges_without_hashes_are_held_to_their_order_only() -> None:
    state = StreamState(1, 1).append(tx(0), [BlockRange('eth', 0, 9)]).append(tx(1), [BlockRange('eth', 10, 19)])
    assert admit(state, [BlockRange('eth', 25, 30)]).undo is None
    again = admit(state, [BlockRange('eth', 12, 30)])
    assert again.undo is not None
    assert counters(again.undo.runs) == [(1, 1)]
    assert not again.reconnect


def test_news_about_blocks_that_are_not_here_takes_nothing_back() -> None:
    assert invalidate(state_of(*HISTORY), [r(30, 40)]).undo is None
    assert invalidate(state_of(*HISTORY), [r(5, 40, network='base')]).undo is None


# The window


@pytest.mark.parametrize(
    ('retention', 'ranges', 'kept'),
    [
        pytest.param(10, [(0, 5), (6, 10), (11, 20), (21, 25)], [(11, 20), (21, 25)], id='18 cutoff 11 from the start'),
        pytest.param(5, [(0, 5), (6, 10)], [(0, 5), (6, 10)], id='18 cutoff 1'),
        pytest.param(5, [(0, 5), (6, 10), (11, 15)], [(6, 10), (11, 15)], id='18 cutoff 6'),
        pytest.param(0, [(0, 5), (6, 10), (11, 15)], [(11, 15)], id='nothing but the newest'),
        pytest.param(10, [(0, 5), (6, 1000)], [(0, 5), (6, 1000)], id='a wide unit does not push out by its end'),
    ],
)  # fmt: skip
def test_what_leaves_the_window(retention: int, ranges: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
    state = state_of(*[r(s, e) for s, e in ranges], retention=retention)
    assert spans(state) == kept
    gone = ranges[: len(ranges) - len(kept)]
    assert [(s.start, s.end) for s in state.segments] == ([(gone[0][0], gone[-1][1])] if gone else [])
    assert all(s.hash == f'a{s.end}' for s in state.segments)
    assert state.window_first_id() == tx(len(gone))


def history_key(state: StreamState) -> tuple[object, ...]:
    return (state.history(), state.position, dict(state.origins))


widths = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@quick
@given(widths, st.integers(0, 100), st.integers(0, 50))
def test_pruning_changes_neither_position_nor_coverage_and_a_state_reads_back(
    sizes: list[int], retention: int, first: int
) -> None:
    state, unpruned, at = StreamState(1, 1), StreamState(1, 1), first
    for i, size in enumerate(sizes):
        state = state.append(tx(i), [r(at, at + size - 1)]).prune(retention)
        unpruned = unpruned.append(tx(i), [r(at, at + size - 1)])
        at += size
        assert history_key(state) == history_key(unpruned)
        assert state.entries == unpruned.entries[len(unpruned.entries) - len(state.entries) :]
        last = unpruned.entries[-1].ranges[0]
        for entry in state.entries[:-1]:
            assert entry.ranges[0].end >= last.start - retention
        assert len(state.segments) <= 1
        assert StreamState.from_json(1, 1, state.to_json()) == state
        assert state.prune(retention) == state


@pytest.mark.parametrize('shape', ['even', 'random', 'falling', 'rising', 'sawtooth'])
def test_the_state_stays_small_however_long_the_window_is(shape: str) -> None:
    chance = random.Random(1)
    sizes = {
        'even': [1] * 2000,
        'random': [chance.randint(1, 1000) for _ in range(2000)],
        'falling': [max(1, 900 - i) for i in range(2000)],
        'rising': list(range(1, 2001)),
        'sawtooth': [1 + i % 7 for i in range(2000)],
    }[shape]
    state, at = StreamState(1, 1), 0
    for i, size in enumerate(sizes):
        state = state.append(tx(i), [r(at, at + size - 1)]).prune(10**9)
        at += size
        assert len(state.entries) <= 512
    assert state.history() == (BlockRange('eth', 0, at - 1, f'a{at - 1}', None),)
    assert state.position.ranges[0].end == at - 1
    assert [e.first_id for e in state.entries] == [tx(0), *(e.last_id + 1 for e in state.entries[:-1])]
    assert len(state.entries) > 250
    assert all(e.first_id == e.last_id for e in state.entries[-256:])
    assert StreamState.from_json(1, 1, state.to_json()) == state


def test_a_reorg_inside_a_pair_takes_the_pair_back_and_asks_again() -> None:
    state = state_of(*[r(n, n) for n in range(600)])
    pair = next(e for e in state.entries if e.first_id != e.last_id)
    inner = pair.ranges[0].end
    answer = admit(state, [r(inner, 700, 'b', 'a')])
    assert answer.undo is not None
    assert answer.reconnect
    assert answer.undo.runs[0].first == pair.first_id
    assert answer.undo.runs[-1].last == tx(599)


@quick
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=40), st.integers(0, 80))
def test_runs_cover_exactly_the_ids_of_what_is_dropped(sizes: list[tuple[int, int]], start: int) -> None:
    state, at, counter = StreamState(1, 1), 0, 0
    for size, skipped in sizes:  # abandoned microbatches use ids up
        counter += 1 + skipped
        state = state.append(tx(counter), [r(at, at + size - 1)])
        at += size
    answer = admit(state, [r(start, start + 100, 'b', 'a')])
    runs = answer.undo.runs if answer.undo else ()
    kept = answer.undo.state.entries if answer.undo else state.entries
    dropped = {e.first_id for e in state.entries} - {e.first_id for e in kept}
    covered = {i for run in runs for i in range(run.first, run.last + 1)}
    assert covered == dropped
    assert all(run.last + 1 < after.first for run, after in pairwise(runs))
    assert all((e.ranges[0].end >= start) == (e.first_id in dropped) for e in state.entries)


def test_runs_join_what_touches() -> None:
    entries = [Entry(5, 6, ()), Entry(1, 1, ()), Entry(2, 3, ()), Entry(9, 9, ())]
    assert id_runs(entries) == (IdRun(1, 3), IdRun(5, 6), IdRun(9, 9))


def test_merged_ranges_are_disjoint_by_network() -> None:
    got = merge_ranges([r(10, 19), r(0, 9), r(30, 39), r(5, 7, network='base')])
    assert got == (r(5, 7, network='base'), r(0, 19), r(30, 39))


def test_an_epoch_alone_moves_nothing() -> None:
    state = state_of(*HISTORY)
    later = StreamState.from_json(1, 2, state.to_json())
    assert later.entries == state.entries
    assert later.first_id > state.entries[-1].last_id
    assert StreamState(1, 7).window_first_id() == tx(0, 7)


# What a destination stored


@pytest.mark.parametrize(
    'text',
    [
        '', 'x', '[]', '5', '{}', '{"version":1}', '[' * 100_000,
        '{"version":2,"entries":[],"segments":[],"origins":{}}',
        '{"version":1,"entries":[[1,2]],"segments":[],"origins":{}}',
        '{"version":1,"entries":[],"segments":[["a",5,4,"h","p"]],"origins":{}}',
    ],
)  # fmt: skip
def test_a_state_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError):
        StreamState.from_json(1, 1, text)


def test_a_state_never_speaks_of_another_streams_rows() -> None:
    with pytest.raises(IntegrityError, match='another stream'):
        StreamState.from_json(2, 1, state_of(*HISTORY).to_json())
    reversed_ids = json.loads(state_of(r(0, 9)).to_json())
    reversed_ids['entries'][0][0] += 5
    with pytest.raises(IntegrityError):
        StreamState.from_json(1, 1, json.dumps(reversed_ids))


@pytest.mark.parametrize(
    ('batch', 'expected'),
    [
        (BatchIdentifier('eth', 10, 19, 'a19'), True),
        (BatchIdentifier('eth', 10, 19, 'b19'), False),
        (BatchIdentifier('eth', 12, 15, 'a15'), True),
        (BatchIdentifier('eth', 0, 29, 'a29'), True),
        (BatchIdentifier('eth', 20, 30, 'a30'), False),
        (BatchIdentifier('base', 10, 19, 'a19'), False),
    ],
)
def test_which_microbatches_are_committed(batch: BatchIdentifier, expected: bool) -> None:
    assert state_of(*HISTORY).contains(batch) is expected
