"""What a load that is run again still has to do: what its lanes remember, and what is missing from it."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.streaming.ledger import StreamState, transaction_id
from amp.streaming.parallel import RangeQueue, missing
from amp.streaming.types import BlockRange

pytestmark = pytest.mark.unit


@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(0, 40))
def test_what_is_missing_is_what_is_not_there(done, start, end):
    ranges: list[BlockRange] = []
    for block in sorted(done):
        if ranges and ranges[-1].end == block - 1:
            ranges[-1] = BlockRange('n', ranges[-1].start, block)
        else:
            ranges.append(BlockRange('n', block, block))
    found = missing(ranges, start, end, 'n')
    assert {b for r in found for b in range(r.start, r.end + 1)} == set(range(start, end + 1)) - done
    assert missing(ranges, 0, 10, 'other') == (BlockRange('other', 0, 10),)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_reruns_with_other_partition_sizes_take_every_block_once(sizes, pieces):
    state, taken = StreamState(3, 1), []
    for at, size in enumerate(sizes):
        queue = RangeQueue(missing(state.history(), 0, 60, 'n'), size)
        for piece in islice(iter(queue.take, None), None if at == len(sizes) - 1 else pieces):
            state = state.fill(
                transaction_id(3, 1, len(taken)), BlockRange('n', piece.start_block, piece.end_block - 1)
            )
            taken += range(piece.start_block, piece.end_block)
    assert sorted(taken) == list(range(61))


def test_units_of_a_lane_come_in_any_order_and_keep_the_newest_id():
    state = StreamState(3, 1)
    for counter, (start, end) in enumerate([(500, 599), (0, 99), (100, 199)]):
        state = state.fill(transaction_id(3, 1, counter), BlockRange('n', start, end))
    assert [(r.start, r.end) for r in state.history()] == [(0, 199), (500, 599)]
    assert [e.last_id for e in state.entries] == [transaction_id(3, 1, 2)]
    assert state.settle() is None
    assert StreamState.from_json(3, 1, state.to_json()) == state


def test_units_near_the_head_can_be_taken_back():
    ids = [transaction_id(3, 1, n) for n in range(4)]
    state = StreamState(3, 1).fill(ids[0], BlockRange('n', 0, 99))
    state = state.fill(ids[1], BlockRange('n', 200, 299), final=False)
    state = state.fill(ids[2], BlockRange('n', 100, 199))
    state = state.fill(ids[3], BlockRange('n', 300, 399), final=False)
    assert [(r.start, r.end) for r in state.history()] == [(0, 399)]
    undo = state.settle()
    assert [(run.first, run.last) for run in undo.runs] == [(ids[1], ids[1]), (ids[3], ids[3])]
    assert [(r.start, r.end) for r in undo.state.history()] == [(0, 199)]
    assert undo.state.settle() is None
