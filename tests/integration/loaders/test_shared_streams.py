"""Streams of several destinations that can do the same: a backend with a fixture `db`, a connected loader, subclasses."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from amp.errors import ConfigError, SchemaError
from amp.loaders.base import LoadResult
from amp.streaming import ResponseBatch
from tests.integration.loaders.test_base_streaming import eth, response

THREE = [
    response(eth(0, 9, '0xa'), 1, 9),
    response(eth(10, 19, '0xb', '0xa'), 11, 19),
    response(eth(20, 29, '0xc', '0xb'), 21, 29),
]
ALL_OF_THREE = [1, 9, 11, 19, 21, 29]


def chain(start: int, count: int, width: int = 10, branch: str = 'a') -> list[ResponseBatch]:
    """Linked microbatches, `width` blocks and two rows each."""
    return [
        response(
            eth(i * width, i * width + width - 1, f'0x{branch}{i}', f'0x{branch}{i - 1}' if i else None),
            i * width,
            i * width + width - 1,
        )
        for i in range(start, start + count)
    ]


def stream(loader: Any, *responses: ResponseBatch, table: str = 't', **options: Any) -> list[LoadResult]:
    return list(loader.load_stream_continuous(responses, table, **options))


def numbers(loader: Any, table: str = 't') -> list[int]:
    return sorted(loader.scan(table).read_all()['block_num'].to_pylist())


class OneTableTests:
    """Several streams, and one that begins again, in one table."""

    def test_two_streams_in_one_table_undo_only_their_own(self, db):
        stream(db, response(eth(0, 9, '0xa'), 1), stream_name='one')
        stream(db, response(eth(0, 9, '0xb'), 2), stream_name='two')
        stream(db, ResponseBatch.reorg_batch([eth(0, 9, '0xc')]), stream_name='one')
        assert numbers(db) == [2]
        assert [info.state.number for info in db.list_streams()] == [1, 2]
        with pytest.raises(ConfigError, match='two'):
            stream(db, response(eth(0, 9, '0xa'), 1), stream_name='one', mode='overwrite')

    def test_overwrite_in_a_stream_begins_again_once(self, db):
        plain = db.load_table(pa.table({'block_num': pa.array([99], pa.int64()), 'tx_hash': ['plain']}), 't')
        assert plain.success, plain.error
        stream(db, response(eth(0, 9, '0xa'), 1), mode='overwrite')
        assert numbers(db) == [1]
        stream(db, response(eth(10, 19, '0xb', '0xa'), 11), mode='overwrite')
        assert numbers(db) == [1, 11], 'on resume it means append'
        stream(db, response(eth(0, 9, '0xa'), 2), mode='overwrite', resume=False)
        assert numbers(db) == [2]


class NewColumnsTests:
    """Rows that come with a column more."""

    def test_a_stream_with_new_columns_is_refused_with_the_difference_or_widens_its_table(self, db):
        stream(db, THREE[0])
        batch = THREE[1].data.append_column('added', pa.array([2**64 - 1, None], pa.uint64()))
        wider = ResponseBatch.data_batch(batch, THREE[1].metadata)
        with pytest.raises(SchemaError, match='lacks: added uint64'):
            stream(db, wider, schema_evolution='freeze')
        assert numbers(db) == [1, 9]
        stream(db, wider, schema_evolution='evolve')
        found = db.scan('t').read_all().sort_by('block_num').to_pydict()
        assert [None if n is None else int(n) for n in found['added']] == [None, None, 2**64 - 1, None]
        assert 'added' in db.get_table_info('t')['columns']
