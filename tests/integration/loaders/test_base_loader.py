"""What every loader does, whatever lies behind it. A backend subclasses this and names its LoaderTestConfig."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pytest

from amp.errors import ConfigError
from amp.loaders.base import DataLoader, LoadMode
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_streaming import eth, response


class BaseLoaderTests:
    __test__ = False
    config: ClassVar[LoaderTestConfig]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.__name__.startswith('Test')

    @pytest.fixture(autouse=True)
    def _dropped(self, test_table_name, cleanup_tables):
        cleanup_tables.append(test_table_name)

    def test_connection(self, loader: DataLoader):
        assert not loader.is_connected
        loader.connect()
        assert loader.is_connected
        assert loader.health_check()
        loader.disconnect()
        assert not loader.is_connected

    def test_context_manager(self, loader, small_test_table, test_table_name):
        with loader as entered:
            assert entered is loader
            assert loader.is_connected
            assert loader.load_table(small_test_table, test_table_name).success
        assert not loader.is_connected

    def test_batch_loading(self, loader, small_test_table, test_table_name):
        batches = small_test_table.to_batches(max_chunksize=30)
        with loader:
            for batch in batches:
                result = loader.load_batch(batch, test_table_name)
                assert result.success, result.error
                assert result.rows_loaded == batch.num_rows
                assert result.table_name == test_table_name
                assert result.loader_type == loader.name
                assert {'operation', 'batch_size', 'schema_fields', 'throughput_rows_per_sec'} <= set(result.metadata)
                assert result.metadata['operation'] == 'load_batch'
                assert result.metadata['batch_size'] == batch.num_rows
                assert {key for key in loader.PLACE if getattr(loader.config, key)} <= set(result.metadata)
            assert self.config.get_row_count(loader, test_table_name) == small_test_table.num_rows
            rows = self.config.query_rows(loader, test_table_name)
        if rows and 'id' in rows[0]:
            assert sorted(int(row['id']) for row in rows) == list(range(100))

    def test_append_mode(self, loader, small_test_table, test_table_name):
        with loader:
            for times in (1, 2):
                result = loader.load_table(small_test_table, test_table_name, mode=LoadMode.APPEND, batch_size=33)
                assert result.success, result.error
                assert result.rows_loaded == 100
                assert self.config.get_row_count(loader, test_table_name) == 100 * times
        wanted = {
            'operation': 'load_table',
            'batch_count': 4,
            'batches_processed': 4,
            'total_rows': 100,
            'schema_fields': 4,
            'avg_batch_size': 25,
        }
        assert {key: result.metadata[key] for key in wanted} == wanted
        assert result.metadata['table_size_mb'] > 0
        assert result.metadata['throughput_rows_per_sec'] > 0

    def test_overwrite_mode(self, loader, small_test_table, test_table_name):
        if not self.config.supports_overwrite:
            result = loader.load_table(small_test_table, test_table_name, mode=LoadMode.OVERWRITE)
            assert not result.success
            return
        with loader:
            assert loader.load_table(small_test_table, test_table_name).success
            smaller = small_test_table.slice(0, 70)
            result = loader.load_table(smaller, test_table_name, mode=LoadMode.OVERWRITE, batch_size=20)
            assert result.success, result.error
            assert result.rows_loaded == 70
            assert self.config.get_row_count(loader, test_table_name) == 70, 'several batches overwrite once'

    def test_null_handling(self, loader, test_table_name):
        if not self.config.supports_null_values:
            return
        table = pa.table(
            {
                'id': pa.array([1, 2, 3, 4], pa.int64()),
                'text': pa.array(['a', None, 'c', None]),
                'number': pa.array([1.5, 2.5, None, None], pa.float64()),
                'flag': pa.array([True, None, False, None]),
            }
        )
        with loader:
            result = loader.load_table(table, test_table_name)
            assert result.success, result.error
            assert result.rows_loaded == 4
            rows = {int(row['id']): row for row in self.config.query_rows(loader, test_table_name)}
        assert [rows[i]['text'] for i in (1, 2, 3, 4)] == ['a', None, 'c', None]
        assert [rows[i]['number'] for i in (1, 2, 3, 4)] == [1.5, 2.5, None, None]
        assert [rows[i]['flag'] for i in (1, 2, 3, 4)] == [True, None, False, None]

    def test_error_handling(self, loader, small_test_table, test_table_name):
        with loader:
            result = loader.load_table(small_test_table, test_table_name, create_table=False)
            assert not result.success
            assert result.rows_loaded == 0
            assert 'does not exist' in (result.error or '')
            if loader.LOAD_OPTIONS is not None:  # who does not say what he takes is given everything
                with pytest.raises(ValueError, match='no_such_option'):
                    loader.load_table(small_test_table, test_table_name, no_such_option=1)
            with pytest.raises(ValueError, match='sideways'):
                loader.load_table(small_test_table, test_table_name, mode='sideways')
            assert loader.load_table(small_test_table, test_table_name).success, 'a failure leaves the loader usable'

    def test_a_reader_or_a_batch_is_loaded_as_a_table(self, loader, small_test_table, test_table_name):
        forms = (small_test_table.to_batches()[0], small_test_table.to_reader(max_chunksize=33))
        with loader:
            for times, rows in enumerate(forms, 1):
                result = loader.load_table(rows, test_table_name)
                assert result.success, result.error
                assert result.rows_loaded == 100
                assert self.config.get_row_count(loader, test_table_name) == 100 * times

    def test_what_is_no_rows_is_told(self, loader, small_test_table, test_table_name):
        for rows in ([1], {'x': [1]}, 'rows.parquet', None):
            for load in (loader.load_table, loader.load_batch, loader.load_reader):
                with pytest.raises(ConfigError, match=f'{type(rows).__name__} is none'):
                    load(rows, test_table_name)
        with pytest.raises(ConfigError, match='load_table'):
            loader.load_batch(small_test_table, test_table_name)
        assert not loader.is_connected

    def test_what_cannot_be_a_name_is_told_in_a_sentence(self, loader, small_test_table):
        batch = small_test_table.to_batches()[0]
        given = response(eth(0, 9, '0xa'), 0, 9)
        with loader:
            for name in ('', 'half \udc80', 'a\ud83d', 'with\0nul', None, 7, b't'):
                for result in (loader.load_table(small_test_table, name), loader.load_batch(batch, name)):
                    assert f'{name!r} is not a name' in result.error
                with pytest.raises(ConfigError, match='is not a name'):
                    list(loader.load_stream_continuous([given], name))
                with pytest.raises(ConfigError, match='is not a name'):
                    list(loader.load_stream_continuous([given], 't', stream_name=name or 7))
