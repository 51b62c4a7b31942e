"""The Iceberg destination, on a warehouse on disk with its SQLite catalog."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.expressions import AlwaysTrue

from amp.loaders.implementations.iceberg_loader import IcebergLoader
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests

pytestmark = [pytest.mark.integration, pytest.mark.iceberg]


class IcebergTestConfig(LoaderTestConfig):
    loader_class = IcebergLoader
    config_fixture_name = 'iceberg_test_config'

    def get_row_count(self, loader, table_name):
        return loader.tables.get(table_name).scan().count()

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        return loader.tables.get(table_name).scan(row_filter=where or AlwaysTrue()).to_arrow().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader.tables.drop(table_name)

    def get_column_names(self, loader, table_name):
        return [f.name for f in loader.tables.get(table_name).schema().fields]


class TestIcebergLoader(BaseLoaderTests):
    config = IcebergTestConfig()


class TestIcebergStreaming(BaseStreamingTests):
    config = IcebergTestConfig()
