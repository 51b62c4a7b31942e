"""The ClickHouse destination: the real engine, over HTTP through the real client, and inside this process."""

from __future__ import annotations

from typing import Any

import pytest

from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests
from tests.integration.loaders.test_base_types import BaseTypeTests

pytestmark = [pytest.mark.integration, pytest.mark.clickhouse]


class ServerConfig(LoaderTestConfig):
    loader_class = ClickHouseLoader
    config_fixture_name = 'clickhouse_test_config'

    def get_row_count(self, loader, table_name):
        [[count]] = loader.session.run(f'SELECT count() FROM {loader.tables.quoted(table_name)}')
        return count

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        sql = f'SELECT * FROM {loader.tables.quoted(table_name)}'
        sql += f' WHERE {where}' if where else ''
        sql += f' ORDER BY {order_by}' if order_by else ''
        names = self.get_column_names(loader, table_name)
        return [dict(zip(names, row, strict=True)) for row in loader.session.run(sql)]

    def cleanup_table(self, loader, table_name):
        loader.session.do(f'DROP VIEW IF EXISTS {loader.tables.quoted(table_name + "_committed")}')
        loader.session.do(f'DROP TABLE IF EXISTS {loader.tables.quoted(table_name)}')

    def get_column_names(self, loader, table_name):
        return list(loader.tables.get(table_name).columns)


class FolderConfig(ServerConfig):
    config_fixture_name = 'clickhouse_folder'


class TestServerLoader(BaseLoaderTests):
    config = ServerConfig()


class TestServerStreaming(BaseStreamingTests):
    config = ServerConfig()


class TestServerTypes(BaseTypeTests):
    config = ServerConfig()


class TestFolderLoader(BaseLoaderTests):
    config = FolderConfig()


class TestFolderStreaming(BaseStreamingTests):
    config = FolderConfig()


class TestFolderTypes(BaseTypeTests):
    config = FolderConfig()
