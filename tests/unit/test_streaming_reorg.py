from __future__ import annotations

import pyarrow as pa
import pytest

from amp.errors import ProtocolError
from amp.streaming.reorg import ZERO_HASH, ReorgAwareStream, check_ranges, detect_reorg
from amp.streaming.types import BatchMetadata, BlockRange, ResponseBatch, ResumeWatermark

pytestmark = pytest.mark.unit


def r(start: int, end: int, end_hash: str | None = 'H', prev: str | None = 'P', network: str = 'eth') -> BlockRange:
    return BlockRange(network, start, end, end_hash, prev)


def spans(ranges: tuple[BlockRange, ...]) -> list[tuple[str, int, int]]:
    return [(x.network, x.start, x.end) for x in ranges]


@pytest.mark.parametrize(
    ('previous', 'incoming', 'invalidated'),
    [
        pytest.param([r(100, 199, 'B', 'A')], [r(150, 199, 'C', 'X')], [('eth', 150, 199)], id='1 inside'),
        pytest.param([r(2, 2, 'c', 'b')], [r(2, 3, 'd', 'b')], [('eth', 2, 3)], id='2 at the boundary'),
        pytest.param([r(1, 2, 'c', 'a')], [r(2, 3, 'd', 'b')], [('eth', 2, 3)], id='3 inside a microbatch'),
        pytest.param([r(0, 10, 'e0')], [r(5, 12, 'e1', 'x')], [('eth', 5, 12)], id='4 another epoch'),
        pytest.param([r(0, 10, 'A')], [r(11, 20, 'B', 'A')], [], id='4 forward'),
        pytest.param([r(0, 10, 'A')], [r(0, 10, 'A')], [], id='4 identical'),
        pytest.param([r(0, 100)], [r(50, 80, 'K', 'M')], [('eth', 50, 100)], id='5 max of ends'),
        pytest.param([r(0, 100)], [r(50, 200, 'K', 'M')], [('eth', 50, 200)], id='6 longer'),
        pytest.param(
            [r(0, 10, 'A'), r(0, 10, 'p', network='polygon')],
            [r(5, 12, 'B', 'x'), r(11, 20, 'q', 'p', network='polygon')],
            [('eth', 5, 12)],
            id='12 one of two networks',
        ),
        pytest.param([r(5, 10, 'A', 'P')], [r(5, 12, 'B', 'P')], [('eth', 5, 12)], id='exact boundary'),
        pytest.param([], [r(77, 80)], [], id='nothing known'),
    ],
)
def test_what_a_range_invalidates(
    previous: list[BlockRange], incoming: list[BlockRange], invalidated: list[tuple[str, int, int]]
) -> None:
    assert spans(detect_reorg(previous, incoming)) == invalidated


@pytest.mark.parametrize(
    ('rule', 'previous', 'incoming'),
    [
        pytest.param('HashMismatchOnConsecutiveBlocks', [r(0, 100)], [r(101, 200, 'K', 'Z')], id='7'),
        pytest.param('Gap', [r(0, 100)], [r(150, 200, 'K', 'H')], id='8'),
        pytest.param('Gap', [r(0, 100)], [r(102, 200, 'K', 'H')], id='8 one block'),
        pytest.param('InvalidReorg', [r(0, 10)], [r(10, 20, 'K', 'H')], id='9'),
        pytest.param('NetworkCountChanged', [r(0, 1), r(0, 1, network='polygon')], [r(2, 3, 'K', 'H')], id='11 fewer'),
        pytest.param('NetworkCountChanged', [r(0, 1)], [r(2, 3, 'K', 'H'), r(2, 3, network='polygon')], id='11 more'),
        pytest.param('UnexpectedNetwork', [r(0, 1)], [r(2, 3, network='polygon')], id='11 another'),
    ],
)
def test_a_broken_promise_between_ranges(rule: str, previous: list[BlockRange], incoming: list[BlockRange]) -> None:
    with pytest.raises(ProtocolError) as caught:
        detect_reorg(previous, incoming)
    assert caught.value.context['rule'] == rule


@pytest.mark.parametrize(
    ('rule', 'ranges'),
    [
        pytest.param('InvalidPrevHash', [r(0, 10, 'H', 'N')], id='10 genesis with a parent'),
        pytest.param('MissingPrevHash', [r(100, 110, 'H', ZERO_HASH)], id='10 zero'),
        pytest.param('MissingPrevHash', [r(100, 110, 'H', None)], id='10 absent'),
        pytest.param('MissingHash', [r(0, 10, None, None)], id='no hash'),
        pytest.param('MissingHash', [r(0, 10, '', None)], id='empty hash'),
        pytest.param('DuplicateNetwork', [r(1, 2), r(3, 4)], id='11 twice'),
        pytest.param('InvalidPrevHash', [r(0, 10, 'H', 'N'), r(0, 10, 'H', 'N')], id='parents come first'),
    ],
)
def test_a_range_that_breaks_a_rule_by_itself(rule: str, ranges: list[BlockRange]) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_ranges(ranges)
    assert caught.value.context['rule'] == rule


def test_ranges_that_are_in_order() -> None:
    check_ranges([r(0, 10, 'H', None), r(0, 10, 'H', ZERO_HASH, 'polygon'), r(5, 6, network='base')])


def batches(*shown: tuple[BlockRange, bool]) -> list[ResponseBatch]:
    schema = pa.schema([('n', pa.int64())])
    return [
        ResponseBatch.data_batch(
            pa.record_batch([pa.array([] if complete else [i], pa.int64())], schema=schema),
            BatchMetadata([span], ranges_complete=complete),
        )
        for i, (span, complete) in enumerate(shown)
    ]


def test_news_of_a_reorg_comes_before_its_batch_and_no_batch_is_lost() -> None:
    """Vector 1, and the batches after a reorg that the reference client drops."""
    a, b, c = r(0, 99, 'A', None), r(100, 199, 'B', 'A'), r(150, 199, 'C', 'X')
    given = batches((a, False), (a, True), (b, False), (b, True), (c, False), (c, False), (c, True))
    got = list(ReorgAwareStream(given))
    assert [x for x in got if not x.is_reorg] == given
    assert [x.is_reorg for x in got] == [False] * 4 + [True] + [False] * 3
    assert spans(got[4].invalidation_ranges) == [('eth', 150, 199)]


def test_it_is_an_iterator_of_its_own() -> None:
    stream = ReorgAwareStream(batches((r(0, 9, 'A', None), True), (r(10, 19, 'B', 'A'), True)))
    assert next(stream).metadata.ranges[0].end == 9
    assert [x.metadata.ranges[0].end for x in stream] == [19]


def test_a_stream_that_ends_right_after_a_reorg_keeps_the_batch_that_showed_it() -> None:
    given = batches((r(5, 9, 'A'), True), (r(7, 9, 'B', 'x'), False))
    assert list(ReorgAwareStream(given))[-1] is given[-1]


def test_a_reorg_across_a_reconnect_is_seen() -> None:
    position = ResumeWatermark([BlockRange('eth', 0, 9, 'A')])
    forward, back = batches((r(10, 12, 'B', 'A'), True)), batches((r(8, 12, 'B', 'x'), True))
    assert [x.is_reorg for x in ReorgAwareStream(forward, position)] == [False]
    assert [x.is_reorg for x in ReorgAwareStream(back, position)] == [True, False]
    with pytest.raises(ProtocolError):
        list(ReorgAwareStream(batches((r(11, 12, 'B', 'A'), True)), position))


def test_batches_without_ranges_pass() -> None:
    given = [ResponseBatch.data_batch(pa.record_batch({'n': [1]}), BatchMetadata())]
    assert list(ReorgAwareStream(given)) == given
