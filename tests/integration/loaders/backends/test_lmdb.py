"""The LMDB destination."""

from __future__ import annotations

from typing import Any

import pytest

from amp.loaders.implementations.lmdb_loader import LMDBLoader
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests

pytestmark = [pytest.mark.integration, pytest.mark.lmdb]


class LMDBTestConfig(LoaderTestConfig):
    loader_class = LMDBLoader
    config_fixture_name = 'lmdb_test_config'

    def get_row_count(self, loader, table_name):
        return loader.get_table_info(table_name)['row_count']

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        return loader.stamped_scan(table_name).read_all().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader.drop_table(table_name)

    def get_column_names(self, loader, table_name):
        return loader.get_table_info(table_name)['columns']


class TestLMDBLoader(BaseLoaderTests):
    config = LMDBTestConfig()


class TestLMDBStreaming(BaseStreamingTests):
    config = LMDBTestConfig()


class _ByRow:
    """The same with every row found by a key of its own."""

    @pytest.fixture
    def lmdb_test_config(self, tmp_path):
        return {'db_path': str(tmp_path / 'db'), 'layout': 'rows', 'serialization': self.serialization, 'sync': False}


class TestLMDBRows(_ByRow, BaseLoaderTests):
    serialization = 'arrow'
    config = LMDBTestConfig()


class TestLMDBRowsStreaming(_ByRow, BaseStreamingTests):
    serialization = 'arrow'
    config = LMDBTestConfig()


class TestLMDBMsgpack(_ByRow, BaseLoaderTests):
    serialization = 'msgpack'
    config = LMDBTestConfig()


class TestLMDBMsgpackStreaming(_ByRow, BaseStreamingTests):
    serialization = 'msgpack'
    config = LMDBTestConfig()
