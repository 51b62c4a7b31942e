"""The Snowflake destination, against an account or against fakesnow (see tests/support/snowflake.py)."""

from __future__ import annotations

from typing import Any

import pytest

from amp.loaders.implementations.snowflake_loader import SnowflakeLoader
from amp.loaders.snowflake_types import name_out, quoted
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.support.snowflake import is_real
from tests.support.snowpipe import snowpipe
from tests.support.type_extremes import other_columns

pytestmark = [pytest.mark.integration, pytest.mark.snowflake]


class SnowflakeTestConfig(LoaderTestConfig):
    loader_class = SnowflakeLoader
    config_fixture_name = 'snowflake_test_config'

    def get_row_count(self, loader, table_name):
        [(count,)] = loader.own.run(f'SELECT COUNT(*) FROM {quoted(table_name)}')
        return count

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        sql = f'SELECT * FROM {quoted(table_name)}'
        sql += f' WHERE {where}' if where else ''
        sql += f' ORDER BY {order_by}' if order_by else ''
        names = [name_out(name) for name in loader.columns(table_name)]
        return [dict(zip(names, row, strict=True)) for row in loader.own.run(sql)]

    def cleanup_table(self, loader, table_name):
        loader.own.run(f'DROP VIEW IF EXISTS {quoted(f"{table_name}_current")}')
        loader.own.run(f'DROP TABLE IF EXISTS {quoted(table_name)}')

    def get_column_names(self, loader, table_name):
        return [name_out(name) for name in loader.columns(table_name)]


@pytest.fixture(scope='session')
def snowflake_insert_config(snowflake_test_config):
    return {**snowflake_test_config, 'loading_method': 'insert'}


@pytest.fixture(scope='session')
def snowflake_pandas_config(snowflake_test_config):
    return {**snowflake_test_config, 'loading_method': 'pandas'}


@pytest.fixture(scope='session')
def snowflake_channel_config(snowflake_test_config):
    if is_real():
        yield {**snowflake_test_config, 'loading_method': 'snowpipe_streaming'}
        return
    with snowpipe(snowflake_test_config) as server:
        channel = {'loading_method': 'snowpipe_streaming', 'streaming_url': server.url, 'token': 'a-token'}
        yield {**snowflake_test_config, **channel, 'authenticator': 'snowflake'}


class InsertTestConfig(SnowflakeTestConfig):
    config_fixture_name = 'snowflake_insert_config'


class PandasTestConfig(SnowflakeTestConfig):
    config_fixture_name = 'snowflake_pandas_config'


class ChannelTestConfig(SnowflakeTestConfig):
    config_fixture_name = 'snowflake_channel_config'


class TestSnowflakeLoader(BaseLoaderTests):
    config = SnowflakeTestConfig()


class TestSnowflakeInsertLoader(BaseLoaderTests):
    config = InsertTestConfig()


class TestSnowflakePandasLoader(BaseLoaderTests):
    config = PandasTestConfig()


class TestSnowflakeChannelLoader(BaseLoaderTests):
    config = ChannelTestConfig()


class TestSnowflakeStreaming(BaseStreamingTests):
    config = SnowflakeTestConfig()


class TestSnowflakeInsertStreaming(BaseStreamingTests):
    config = InsertTestConfig()


class TestSnowflakePandasStreaming(BaseStreamingTests):
    config = PandasTestConfig()


class TestSnowflakeChannelStreaming(BaseStreamingTests):
    config = ChannelTestConfig()


# The stand-in keeps microseconds; what is handed over is checked in tests/unit/test_snowflake_types.py.
_BELOW_MICROSECONDS = set() if is_real() else {'time ns', 'naive ns', 'zoned ns'}


class TestSnowflakeTypes(BaseTypeTests):
    config = SnowflakeTestConfig()

    @pytest.mark.parametrize('name', [name for name in other_columns() if name not in _BELOW_MICROSECONDS])
    def test_another_type_lands_exactly_or_is_refused_by_name(self, db, test_table_name, cleanup_tables, name):
        super().test_another_type_lands_exactly_or_is_refused_by_name(db, test_table_name, cleanup_tables, name)
