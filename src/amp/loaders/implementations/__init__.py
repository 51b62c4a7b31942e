"""The package's own loaders, one file a destination, imported when they are asked for.

`__all__` is a mutable list on purpose: a loader dropped into this folder may append its class name to it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader
    from amp.loaders.implementations.deltalake_loader import DeltaLakeLoader
    from amp.loaders.implementations.duckdb_loader import DuckDBLoader
    from amp.loaders.implementations.iceberg_loader import IcebergLoader
    from amp.loaders.implementations.lmdb_loader import LMDBLoader
    from amp.loaders.implementations.parquet_loader import ParquetLoader
    from amp.loaders.implementations.postgresql_loader import PostgreSQLLoader
    from amp.loaders.implementations.redis_loader import RedisLoader
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__: list[str] = [
    'ClickHouseLoader',
    'DeltaLakeLoader',
    'DuckDBLoader',
    'IcebergLoader',
    'LMDBLoader',
    'ParquetLoader',
    'PostgreSQLLoader',
    'RedisLoader',
    'SnowflakeLoader',
]


def __getattr__(name: str) -> Any:
    if name.endswith('Loader'):
        wanted = name.removesuffix('Loader').lower() + '_loader'
        for module in pkgutil.iter_modules(__path__):
            if module.name == wanted:
                return getattr(importlib.import_module(f'{__name__}.{module.name}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
