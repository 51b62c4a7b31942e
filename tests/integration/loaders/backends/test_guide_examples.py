"""The two examples of the guide inherit what every destination of amp is held to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from amp.loaders.sql import quote
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[4] / 'examples' / 'loaders'


def example(package: str, module: str) -> Any:
    source = str(EXAMPLES / package.replace('_', '-') / 'src')
    sys.path.insert(0, source)
    try:
        return importlib.import_module(f'{package}.{module}')
    finally:
        sys.path.remove(source)


SQLiteLoader = example('amp_loader_sqlite', 'sqlite_loader').SQLiteLoader
ShelfLoader = example('amp_loader_shelf', 'shelf_loader').ShelfLoader


@pytest.fixture(scope='session')
def sqlite_test_config(tmp_path_factory) -> dict[str, Any]:
    return {'path': str(tmp_path_factory.mktemp('sqlite') / 'rows.db'), 'durable': False}


@pytest.fixture(scope='session')
def shelf_test_config(tmp_path_factory) -> dict[str, Any]:
    return {'root': str(tmp_path_factory.mktemp('shelf')), 'durable': False}


class SQLiteTestConfig(LoaderTestConfig):
    loader_class = SQLiteLoader
    config_fixture_name = 'sqlite_test_config'

    def get_row_count(self, loader, table_name):
        return loader.run(f'SELECT count(*) FROM {quote(table_name)}')[0][0]

    def query_rows(self, loader, table_name, where=None, order_by=None):
        return loader.stamped_scan(table_name).read_all().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader.run(f'DROP TABLE IF EXISTS {quote(table_name)}')

    def get_column_names(self, loader, table_name):
        return loader.stamped_scan(table_name).schema.names


class TestSQLiteLoader(InterruptTests, BaseLoaderTests):
    config = SQLiteTestConfig()


class TestSQLiteStreaming(BaseStreamingTests):
    config = SQLiteTestConfig()


class TestSQLiteTypes(BaseTypeTests):
    config = SQLiteTestConfig()


class ShelfTestConfig(LoaderTestConfig):
    loader_class = ShelfLoader
    config_fixture_name = 'shelf_test_config'

    def get_row_count(self, loader, table_name):
        return loader.get_table_info(table_name)['row_count']

    def query_rows(self, loader, table_name, where=None, order_by=None):
        return loader.stamped_scan(table_name).read_all().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader._clear_table(table_name)

    def get_column_names(self, loader, table_name):
        return loader.stamped_scan(table_name).schema.names


class TestShelfLoader(BaseLoaderTests):
    config = ShelfTestConfig()


class TestShelfStreaming(BaseStreamingTests):
    config = ShelfTestConfig()


class TestShelfTypes(BaseTypeTests):
    config = ShelfTestConfig()


@pytest.fixture(params=[SQLiteLoader, ShelfLoader], ids=['sqlite', 'shelf'])
def either(request, tmp_path):
    with request.param({request.param.URL_PATH_KEY: str(tmp_path / 'x'), 'durable': False}) as opened:
        yield opened


def test_rows_of_another_type_are_refused_and_nothing_is_cast(either):
    assert either.load_table(pa.table({'n': [1]}), 't').success
    result = either.load_table(pa.table({'n': ['2']}), 't')
    assert not result.success
    assert "'n'" in result.error
    assert either.scan('t').read_all().to_pydict() == {'n': [1]}


def test_a_url_names_it(either, tmp_path):
    again = type(either)({'url': f'{either.name}:///{tmp_path / "x"}?durable=false'})
    assert again.config == either.config
