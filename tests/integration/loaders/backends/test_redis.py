"""The Redis destination."""

from __future__ import annotations

from typing import Any

import pytest

from amp.loaders.implementations.redis_loader import RedisLoader
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests
from tests.integration.loaders.test_base_types import BaseTypeTests

pytestmark = [pytest.mark.integration, pytest.mark.redis]


class RedisTestConfig(LoaderTestConfig):
    loader_class = RedisLoader
    config_fixture_name = 'redis_test_config'

    def get_row_count(self, loader, table_name):
        return loader.get_table_info(table_name)['row_count']

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        return loader.stamped_scan(table_name).read_all().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader.drop_table(table_name)

    def get_column_names(self, loader, table_name):
        return loader.get_table_info(table_name)['columns']


class TestRedisLoader(BaseLoaderTests):
    config = RedisTestConfig()


class TestRedisStreaming(BaseStreamingTests):
    config = RedisTestConfig()


class TestRedisTypes(BaseTypeTests):
    config = RedisTestConfig()


def _structure(name: str) -> type:
    """Every structure passes what every loader passes."""

    class Config(RedisTestConfig):
        config_fixture_name = 'structure_config'

    class Fixture:
        @pytest.fixture
        def structure_config(self, redis_test_config):
            return {**redis_test_config, 'data_structure': name}

    Fixture.config = Config()
    return Fixture


class TestStringLoader(_structure('string'), BaseLoaderTests):
    pass


class TestStringStreaming(_structure('string'), BaseStreamingTests):
    pass


class TestStringTypes(_structure('string'), BaseTypeTests):
    pass


class TestStreamLoader(_structure('stream'), BaseLoaderTests):
    pass


class TestStreamStreaming(_structure('stream'), BaseStreamingTests):
    pass


class TestSetLoader(_structure('set'), BaseLoaderTests):
    pass


class TestSetStreaming(_structure('set'), BaseStreamingTests):
    pass


class TestSortedSetLoader(_structure('sorted_set'), BaseLoaderTests):
    pass


class TestSortedSetStreaming(_structure('sorted_set'), BaseStreamingTests):
    pass


class TestListLoader(_structure('list'), BaseLoaderTests):
    pass


class TestListStreaming(_structure('list'), BaseStreamingTests):
    pass
