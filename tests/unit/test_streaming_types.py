from __future__ import annotations

import hashlib
import json
import pickle

import pyarrow as pa
import pytest

from amp.errors import ProtocolError
from amp.streaming.types import BatchIdentifier, BatchMetadata, BlockRange, ResponseBatch, ResumeWatermark
from tests.support.chain_model import Chain, Server, hash_of, read_cursor

pytestmark = pytest.mark.unit

NESTED = {
    'numbers': {'start': 100, 'end': 102},
    'network': 'mainnet',
    'hash': '0xa',
    'prev_hash': '0xb',
    'timestamp': 17,
}


def test_a_range_reads_the_nested_and_the_flat_form() -> None:
    expected = BlockRange('mainnet', 100, 102, '0xa', '0xb')
    flat = {'network': 'mainnet', 'start': 100, 'end': 102, 'hash': '0xa', 'prev_hash': '0xb'}
    assert BlockRange.from_dict(NESTED) == BlockRange.from_dict(flat) == expected
    assert BlockRange.from_dict(NESTED).timestamp == 17
    assert expected.to_dict() == flat
    assert BlockRange('mainnet', 1, 2).to_dict() == {'network': 'mainnet', 'start': 1, 'end': 2}


@pytest.mark.parametrize(
    'broken',
    [
        {'numbers': {'start': 1}},
        {'numbers': {'start': 2, 'end': 1}},
        {'numbers': {'start': -1, 'end': 1}},
        {'numbers': {'start': 1, 'end': True}},
        {'numbers': {'start': 1.0, 'end': 2}},
        {'numbers': None},
        {'numbers': [1, 2]},
        {'network': ''},
        {'network': None},
        {'hash': 7},
        {'prev_hash': ['0x']},
        {'timestamp': 'now'},
    ],
)
def test_a_malformed_range_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        BlockRange.from_dict({**NESTED, **broken})


@pytest.mark.parametrize(('start', 'end', 'network'), [(2, 1, 'a'), (-1, 1, 'a'), (0, 1, '')])
def test_a_range_that_cannot_be_raises_value_error(start: int, end: int, network: str) -> None:
    with pytest.raises(ValueError):
        BlockRange(network, start, end)


def test_what_ranges_share() -> None:
    r = BlockRange('a', 10, 20)
    assert [r.overlaps_with(BlockRange('a', s, e)) for s, e in [(0, 9), (0, 10), (15, 15), (20, 30), (21, 30)]] == [
        False, True, True, True, False,
    ]  # fmt: skip
    assert not r.overlaps_with(BlockRange('b', 10, 20))
    assert not r.invalidates(BlockRange('b', 10, 20))
    assert [r.contains_block(n) for n in (9, 10, 20, 21)] == [False, True, True, False]


def test_a_merged_range_has_the_hashes_of_its_ends() -> None:
    early, late = BlockRange('a', 0, 9, 'h9', 'p0'), BlockRange('a', 5, 20, 'h20', 'h4')
    assert early.merge_with(late) == late.merge_with(early) == BlockRange('a', 0, 20, 'h20', 'p0')
    with pytest.raises(ValueError):
        early.merge_with(BlockRange('b', 10, 11))


def test_metadata_ignores_unknown_keys_and_reads_buffers() -> None:
    raw = json.dumps({'ranges': [{**NESTED, 'x': 1}], 'ranges_complete': True, 'more': {}}).encode()
    expected = BatchMetadata([BlockRange('mainnet', 100, 102, '0xa', '0xb')], ranges_complete=True)
    assert BatchMetadata.from_flight_data(raw) == expected
    assert BatchMetadata.from_flight_data(pa.py_buffer(raw)) == expected
    assert BatchMetadata.from_flight_data('{"ranges":[]}') == BatchMetadata()


@pytest.mark.parametrize(
    'raw',
    [
        b'', b'\xff\xfe', b'null', b'[]', b'{}', b'{"ranges":{}}', b'{"ranges":[1]}', b'{"ranges":[{}]}',
        b'{"ranges":[],"ranges_complete":1}', b'{"ranges":[],"ranges_complete":null}', b'9' * 5000, b'[' * 100_000,
    ],
)  # fmt: skip
def test_malformed_metadata_is_refused_and_never_an_untracked_batch(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        BatchMetadata.from_flight_data(raw)
    assert len(str(caught.value)) < 500


def test_a_response_is_data_or_the_news_of_a_reorg() -> None:
    batch = pa.record_batch({'n': [1, 2]})
    data = ResponseBatch.data_batch(batch, BatchMetadata())
    news = ResponseBatch.reorg_batch([BlockRange('a', 1, 2)])
    assert (data.is_reorg, data.num_rows) == (False, 2)
    assert (news.is_reorg, news.num_rows, news.data) == (True, 0, None)


def test_the_header_is_the_one_that_the_server_reads() -> None:
    """Vectors 21 and 22: our header resumes at the next block; the older Python shape is ignored by the server."""
    chain = Chain('anvil', 0)
    chain.mine(2)
    server = Server(chain, 0)
    at = chain.branch(chain.tip.hash)[1]
    header = ResumeWatermark([BlockRange('anvil', 0, 1, at.hash)]).to_json()
    assert json.loads(header) == {'anvil': {'number': 1, 'hash': at.hash}}
    first = server.connect(header).get()
    assert first is not None
    assert first.metadata.ranges[0].start == 2
    assert first.metadata.ranges[0].prev_hash == at.hash
    old_shape = json.dumps({'ranges': [{'network': 'anvil', 'start': 0, 'end': 1, 'hash': at.hash}]})
    for ignored in ('not json', '', old_shape, None, header.replace(at.hash, '0x12')):
        assert read_cursor(ignored, 'anvil') is None
        first = server.connect(ignored).get()
        assert first is not None
        assert first.metadata.ranges[0].start == 0


def test_after_a_reorg_an_orphaned_cursor_starts_at_the_fork() -> None:
    """Vector 21, second half."""
    chain = Chain('anvil', 0)
    chain.mine(2)
    server = Server(chain, 0)
    header = ResumeWatermark([BlockRange('anvil', 2, 2, chain.tip.hash)]).to_json()
    chain.fork(2, 3)
    server.sync()
    message = server.connect(header).get()
    assert message is not None
    assert message.metadata.ranges[0].start == 1


def test_a_cursor_without_the_network_of_the_stream_fails_at_the_server() -> None:
    """Vector 23."""
    header = ResumeWatermark([BlockRange('ethereum', 0, 1, hash_of(1))]).to_json()
    with pytest.raises(RuntimeError, match=r"expected cursor for network 'mainnet', but .* \[ethereum\]"):
        read_cursor(header, 'mainnet')


def test_a_position_reads_back_from_its_header() -> None:
    position = ResumeWatermark([BlockRange('b', 0, 9, 'hb'), BlockRange('a', 3, 5, 'ha')])
    back = ResumeWatermark.from_json(position.to_json())
    assert [(r.network, r.end, r.hash) for r in back.ranges] == [('a', 5, 'ha'), ('b', 9, 'hb')]
    assert back.to_dict() == position.to_dict() == {'a': {'number': 5, 'hash': 'ha'}, 'b': {'number': 9, 'hash': 'hb'}}
    assert not ResumeWatermark()
    assert position


@pytest.mark.parametrize('text', ['', 'x', '[]', '5', '{"a":1}', '{"a":{"number":1}}', '{"ranges":[]}', '{"a":{"number":"1","hash":"h"}}'])  # fmt: skip
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        ResumeWatermark.from_json(text)


def test_a_batch_id_is_the_start_of_a_sha256_and_tells_branches_apart() -> None:
    r = BlockRange('eth', 1, 9, '0xa', '0xp')
    b = BatchIdentifier.from_block_range(r)
    assert b.unique_id == hashlib.sha256(b'eth:1:9:0xa:0xp').hexdigest()[:16]
    assert b.to_block_range() == r
    assert b.position_key == ('eth', 1, 9)
    others = [
        BlockRange('eth', 1, 9, '0xb', '0xp'),
        BlockRange('eth', 1, 9, '0xa', '0xq'),
        BlockRange('e', 1, 9, '0xa', '0xp'),
    ]
    assert len({b.unique_id, *(BatchIdentifier.from_block_range(o).unique_id for o in others)}) == 4
    assert [b.overlaps_or_after(n) for n in (0, 1, 9, 10)] == [True, True, True, False]
    with pytest.raises(ValueError, match='hash'):
        BatchIdentifier.from_block_range(BlockRange('eth', 1, 9))


def test_ranges_are_equal_to_a_list_and_to_a_tuple_of_the_same():
    ranges = [BlockRange('eth', 0, 9, '0xa'), BlockRange('base', 3, 4, '0xb')]
    for given in (
        BatchMetadata(ranges).ranges,
        ResumeWatermark(ranges).ranges,
        ResumeWatermark((), ranges).gaps,
        ResponseBatch.reorg_batch(ranges).invalidation_ranges,
        pickle.loads(pickle.dumps(BatchMetadata(ranges))).ranges,
    ):
        assert given == ranges
        assert ranges == given
        assert given == tuple(ranges)
        assert given != ranges[:1]
        assert given != 'ranges'
        assert hash(given) == hash(tuple(ranges))
    assert BatchMetadata().ranges == []
