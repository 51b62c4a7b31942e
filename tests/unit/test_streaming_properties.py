"""The promise of the streaming core under random chains, servers, crashes and cuts."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.chain_model import Harness

pytestmark = pytest.mark.unit

# derandomize: the suite gives the same answer every time; the slow variant below goes further.
quick = settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))

small = st.integers(0, 12)
actions = st.lists(
    st.one_of(
        st.tuples(st.just('mine'), st.integers(1, 15)),
        st.tuples(st.just('fork'), st.integers(1, 14), st.integers(1, 16)),
        st.tuples(st.just('flip'), small, st.integers(0, 10)),
        st.tuples(st.just('forget')),
        st.tuples(st.just('another'), small),
        st.tuples(st.just('ignore')),
        st.tuples(st.just('run'), st.integers(1, 12)),
        st.tuples(st.just('drain')),
        st.tuples(st.just('cut')),
        st.tuples(st.just('crash'), st.integers(0, 20)),
    ),
    max_size=30,
)


def perform(harness: Harness, action: tuple[object, ...], index: int = 0) -> None:
    engine = harness.engines[index]
    server, chain = engine.server, engine.server.chain
    match action:
        case ('mine', int(count)):
            chain.mine(count)
        case ('fork', int(depth), int(count)):
            chain.fork(depth, count)
        case ('flip', int(choice), int(count)):
            chain.flip(choice, count)
        case ('forget',):
            server.forget_orphans()
        case ('another', int(behind)):
            server.become_another(behind)
        case ('ignore',):
            server.ignore_next_header = True
        case ('run', int(most)):
            harness.run(index, most)
        case ('drain',):
            harness.run(index)
        case ('cut',):
            server.generation += 1
        case ('crash', int(points)):
            engine.crash_in = points
    if action[0] in {'mine', 'fork', 'flip'}:
        server.sync()


@quick
@given(
    actions, st.integers(0, 2**16), st.sampled_from([0, 5]), st.sampled_from([6, 20, 128]), st.sampled_from([1, 4, 40])
)
def test_the_rows_are_those_of_one_branch_whatever_happens(
    steps: list[tuple[object, ...]], seed: int, first: int, retention: int, cap: int
) -> None:
    harness = Harness(seed, first=first, retention=retention, cap=cap)
    for action in steps:
        perform(harness, action)
    harness.settle()


@quick
@given(st.lists(st.tuples(st.integers(0, 1), actions.map(lambda a: a[:3])), max_size=12), st.integers(0, 2**16))
def test_two_networks_in_one_table_never_touch_each_other(
    rounds: list[tuple[int, list[tuple[object, ...]]]], seed: int
) -> None:
    harness = Harness(seed, networks=('mainnet', 'base'), retention=20)
    for index, steps in rounds:
        for action in steps:
            perform(harness, action, index)
    harness.settle(0)
    harness.settle(1)


@quick
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 12)), max_size=8), st.integers(0, 2**16)
)
def test_a_reorg_no_deeper_than_retention_is_always_survived(forks: list[tuple[int, int, int]], seed: int) -> None:
    harness = Harness(seed, retention=20, cap=6)
    for depth, higher, mined in forks:
        harness.engines[0].server.chain.mine(mined)
        harness.engines[0].server.sync()
        harness.run()
        harness.engines[0].server.chain.fork(depth, depth + higher)
        harness.engines[0].server.sync()
        harness.run()
    harness.settle()
    assert not harness.too_deep[0]


@quick
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(0, 2**16),
)
def test_a_reorg_under_a_group_of_uncommitted_microbatches(forks: list[tuple[int, int, int]], seed: int) -> None:
    harness = Harness(seed, cap=3, group=0.0)
    chain, server = harness.engines[0].server.chain, harness.engines[0].server
    for mined, depth, messages in forks:
        chain.mine(mined)
        server.sync()
        harness.run(0, messages)
        chain.fork(depth, depth + 1)
        server.sync()
        harness.run(0, messages)
    harness.settle()


@quick
@given(st.integers(0, 2**16), st.booleans(), st.sampled_from([1, 7, 40]))
def test_a_reorg_below_the_window_is_refused_and_final_rows_stay(seed: int, forgets: bool, cap: int) -> None:
    harness = Harness(seed, retention=5, cap=cap)
    engine = harness.engines[0]
    chain, server = engine.server.chain, engine.server
    for _ in range(4):
        chain.mine(20)
        server.sync()
        harness.run()
    segment = engine.machine.committed.segments[-1]
    final = {i: list(rows) for i, rows in harness.final.items()}
    chain.fork(chain.tip.number - segment.end + 1, 200)
    server.sync()
    if forgets:
        server.forget_orphans()
    harness.run()
    assert harness.too_deep[0]
    assert final
    assert {i: engine.destination.rows[i] for i in final if final[i]} == {i: rows for i, rows in final.items() if rows}


@quick
@given(st.integers(0, 2**16), st.integers(1, 2))
def test_an_ignored_cursor_takes_back_no_final_history(seed: int, times: int) -> None:
    harness = Harness(seed, retention=5, cap=4)
    engine = harness.engines[0]
    engine.server.chain.mine(60)
    engine.server.sync()
    harness.run()
    before = engine.machine.committed.to_json()
    for _ in range(times):
        engine.server.ignore_next_header = True
        engine.server.generation += 1
        harness.run()
        assert engine.machine.committed.to_json() == before
    assert engine.undos == []
    assert engine.reconnects == times
    harness.settle()
    assert engine.undos == []


@quick
@given(st.integers(0, 2**16), st.lists(st.integers(1, 10), min_size=2, max_size=8))
def test_flipping_between_two_branches_loses_nothing(seed: int, growth: list[int]) -> None:
    harness = Harness(seed, retention=128, cap=5)
    chain, server = harness.engines[0].server.chain, harness.engines[0].server
    chain.mine(12)
    server.sync()
    harness.run()
    a = chain.tip
    chain.fork(6, 7)
    b = chain.tip
    for i, higher in enumerate(growth):
        chain.tip = a if i % 2 else b
        chain.mine(server.tip.number - chain.tip.number + higher)
        a, b = (chain.tip, b) if i % 2 else (a, chain.tip)
        server.sync()
        harness.run()
        harness.settle()
        a, b = (chain.tip, b) if i % 2 else (a, chain.tip)
    assert len(harness.engines[0].undos) >= len(growth) - 1


@settings(quick, max_examples=60)
@given(actions, st.integers(0, 2**16), st.integers(3, 10))
def test_paired_entries_keep_the_promise(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[object, ...]], seed: int, most: int
) -> None:
    monkeypatch.setattr('amp.streaming.ledger._MAX_ENTRIES', most)
    harness = Harness(seed, retention=60, cap=3)
    harness.engines[0].server.chain.mine(40)
    harness.engines[0].server.sync()
    for action in steps:
        perform(harness, action)
    harness.settle()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(200))
def test_long_lives(seed: int) -> None:
    chance = random.Random(seed)
    harness = Harness(
        seed,
        networks=('mainnet', 'base'),
        first=chance.choice([0, 7]),
        retention=chance.choice([4, 20, 64, 128, 1000]),
        cap=chance.choice([1, 5, 30]),
        group=chance.choice([0.05, 0.5, 1.0]),
    )
    for _ in range(150):
        perform(harness, random_action(chance), chance.randint(0, 1))
    harness.settle(0)
    harness.settle(1)


def random_action(chance: random.Random) -> tuple[object, ...]:
    match chance.choices(
        ['mine', 'fork', 'flip', 'forget', 'another', 'ignore', 'run', 'drain', 'cut', 'crash'],
        [5, 2, 1, 1, 0.5, 0.5, 6, 2, 1, 2],
    )[0]:
        case 'mine':
            return 'mine', chance.randint(1, 20)
        case 'fork':
            depth = chance.randint(1, 10)
            return 'fork', depth, depth + chance.randint(-2, 4) if depth > 2 else 3
        case 'flip':
            return 'flip', chance.randint(0, 50), chance.randint(0, 8)
        case 'another':
            return 'another', chance.randint(0, 5)
        case 'run':
            return 'run', chance.randint(1, 20)
        case 'crash':
            return 'crash', chance.randint(0, 30)
        case kind:
            return (kind,)
