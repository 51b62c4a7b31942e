"""What every loader does with a stream: stamps, reorgs, several networks, repeats. A backend subclasses this."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pytest

from amp.loaders.stamps import BATCH_ID, TX_ID
from amp.streaming import BatchIdentifier, BatchMetadata, BlockRange, ResponseBatch
from tests.integration.loaders.conftest import LoaderTestConfig


def response(block_range: BlockRange, *blocks: int, complete: bool = True) -> ResponseBatch:
    data = pa.record_batch(
        {
            'block_num': pa.array(blocks, pa.int64()),
            'tx_hash': [f'{block_range.network}-{block}-{block_range.hash}' for block in blocks],
        },
        schema=pa.schema([('block_num', pa.int64()), ('tx_hash', pa.string())]),
    )
    return ResponseBatch.data_batch(data, BatchMetadata([block_range], ranges_complete=complete))


def eth(start: int, end: int, own: str, parent: str | None = None) -> BlockRange:
    return BlockRange('ethereum', start, end, own, parent)


class BaseStreamingTests:
    __test__ = False
    config: ClassVar[LoaderTestConfig]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.__name__.startswith('Test')

    @pytest.fixture(autouse=True)
    def _streams(self):
        if not self.config.supports_streaming:
            pytest.skip(f'{self.config.loader_class.__name__} does not take rows back')

    @pytest.fixture(autouse=True)
    def _dropped(self, _streams, test_table_name, cleanup_tables):
        cleanup_tables.append(test_table_name)

    def blocks(self, loader, table) -> list[int]:
        return sorted(int(row['block_num']) for row in self.config.query_rows(loader, table))

    def test_streaming_metadata_columns(self, loader, test_table_name):
        r = eth(100, 102, '0xabc')
        with loader:
            results = list(loader.load_stream_continuous([response(r, 100, 101, 102)], test_table_name))
            assert [(x.success, x.rows_loaded, x.is_reorg) for x in results] == [(True, 3, False)]
            assert {BATCH_ID, TX_ID} <= set(self.config.get_column_names(loader, test_table_name))
            rows = self.config.query_rows(loader, test_table_name)
            wanted = BatchIdentifier.from_block_range(r).unique_id
            assert {row[BATCH_ID] for row in rows} == {wanted}
            assert len({int(row[TX_ID]) for row in rows}) == 1
            assert all(int(row[TX_ID]) > 0 for row in rows)

    def test_reorg_deletion(self, loader, test_table_name):
        stream = [
            response(eth(100, 101, '0xa'), 100, 101),
            response(eth(102, 103, '0xb'), 102, 103),
            response(eth(104, 105, '0xc'), 104, 105),
        ]
        with loader:
            results = list(loader.load_stream_continuous(iter(stream), test_table_name))
            assert [x.rows_loaded for x in results] == [2, 2, 2]
            news = ResponseBatch.reorg_batch([eth(104, 108, '0xd')])
            results = list(loader.load_stream_continuous(iter([news]), test_table_name))
            assert [(x.success, x.is_reorg) for x in results] == [(True, True)]
            assert [str(r) for r in results[0].invalidation_ranges] == ['ethereum 104-108']
            assert self.blocks(loader, test_table_name) == [100, 101, 102, 103]
            again = [response(eth(104, 106, '0xd', '0xb'), 104, 105, 106)]
            list(loader.load_stream_continuous(again, test_table_name))
            assert self.blocks(loader, test_table_name) == [100, 101, 102, 103, 104, 105, 106]

    def test_reorg_overlapping_ranges(self, loader, test_table_name):
        stream = [
            response(eth(90, 110, '0xa'), 90, 100, 110),
            response(eth(111, 120, '0xb', '0xa'), 111, 120),
            response(eth(121, 130, '0xc', '0xb'), 121, 130),
        ]
        with loader:
            list(loader.load_stream_continuous(stream, test_table_name))
            # From inside the second range: it goes whole, and so does all after it; the first stays.
            news = ResponseBatch.reorg_batch([eth(115, 130, '0xd')])
            [result] = loader.load_stream_continuous([news], test_table_name)
            assert result.is_reorg
            assert result.metadata['position'] == {'ethereum': {'number': 110, 'hash': '0xa'}}
            assert self.blocks(loader, test_table_name) == [90, 100, 110]

    def test_reorg_multi_network(self, loader, test_table_name):
        if not self.config.supports_multi_network:
            return
        base = BlockRange('base', 100, 110, '0xbase')
        stream = [
            response(eth(100, 110, '0xa'), 100, 110),
            response(base, 101, 109),
            response(eth(111, 112, '0xb', '0xa'), 111, 112),
        ]
        with loader:
            list(loader.load_stream_continuous(stream, test_table_name))
            news = ResponseBatch.reorg_batch([eth(105, 112, '0xc')])
            [result] = loader.load_stream_continuous([news], test_table_name)
            assert result.is_reorg
            assert self.blocks(loader, test_table_name) == [101, 109], 'only rows of the network that changed go'
            assert result.metadata['position'] == {'base': {'number': 110, 'hash': '0xbase'}}

    def test_microbatch_deduplication(self, loader, test_table_name):
        r = eth(100, 110, '0xa')
        microbatch = [
            response(r, 100, 101, complete=False),
            response(r, 105, complete=False),
            response(r, complete=False),
            response(r, 110),
        ]
        with loader:
            results = list(loader.load_stream_continuous(microbatch, test_table_name))
            assert [x.rows_loaded for x in results] == [4], 'one commit a microbatch'
            assert self.blocks(loader, test_table_name) == [100, 101, 105, 110]
            # The same microbatch again, cut at other places: rows are there once.
            replay = [response(r, 100, complete=False), response(r, 101, 105, 110)]
            results = list(loader.load_stream_continuous(replay, test_table_name))
            assert not any(x.is_reorg for x in results)
            assert self.blocks(loader, test_table_name) == [100, 101, 105, 110]
