"""What a backend tells the inherited tests about itself, and the fixtures that they use."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import pytest

from amp.loaders.base import DataLoader


class LoaderTestConfig:
    """One a backend: which loader, where its server is, and how to look into it without the loader's own words."""

    loader_class: ClassVar[type[DataLoader[Any]]]
    config_fixture_name: ClassVar[str]
    supports_overwrite: ClassVar[bool] = True
    supports_streaming: ClassVar[bool] = True
    supports_multi_network: ClassVar[bool] = True
    supports_null_values: ClassVar[bool] = True

    def get_row_count(self, loader: DataLoader[Any], table_name: str) -> int:
        raise NotImplementedError

    def query_rows(
        self, loader: DataLoader[Any], table_name: str, where: str | None = None, order_by: str | None = None
    ) -> list[dict[str, Any]]:
        raise NotImplementedError

    def cleanup_table(self, loader: DataLoader[Any], table_name: str) -> None:
        raise NotImplementedError

    def get_column_names(self, loader: DataLoader[Any], table_name: str) -> list[str]:
        raise NotImplementedError


class KeyValueTestConfig(LoaderTestConfig):
    """For destinations that have no language to ask in: what is there, the loader itself says."""

    def get_row_count(self, loader: DataLoader[Any], table_name: str) -> int:
        return loader.get_table_info(table_name)['row_count']

    def query_rows(
        self, loader: DataLoader[Any], table_name: str, where: str | None = None, order_by: str | None = None
    ) -> list[dict[str, Any]]:
        return loader.stamped_scan(table_name).read_all().to_pylist()

    def cleanup_table(self, loader: DataLoader[Any], table_name: str) -> None:
        loader.drop_table(table_name)

    def get_column_names(self, loader: DataLoader[Any], table_name: str) -> list[str]:
        return loader.get_table_info(table_name)['columns']


@pytest.fixture
def loader(request: pytest.FixtureRequest) -> DataLoader[Any]:
    """A loader that is not connected yet, built from the test class's `config`."""
    config = request.cls.config
    return config.loader_class(dict(request.getfixturevalue(config.config_fixture_name)))


@pytest.fixture
def test_table_name() -> str:
    return f'test_{uuid.uuid4().hex[:12]}'


@pytest.fixture
def cleanup_tables(request: pytest.FixtureRequest):
    """Tables to drop afterwards."""
    config = request.cls.config
    cleaner = config.loader_class(dict(request.getfixturevalue(config.config_fixture_name)))
    tables: list[str] = []
    yield tables
    with cleaner:
        for table in tables:
            config.cleanup_table(cleaner, table)
