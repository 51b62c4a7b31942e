"""A small append-only columnar store over DuckDB and Parquet, on a directory or on S3, with no server."""

from amplify_db_utils.base import ColumnarStore, Filters
from amplify_db_utils.config import DuckDBParquetConfig
from amplify_db_utils.errors import (
    BadFilter,
    BadRecord,
    CommitConflict,
    DamagedData,
    SchemaConflict,
    StorageUnavailable,
    StoreError,
    TableNotFound,
)
from amplify_db_utils.store import DuckDBParquetStore

__all__ = [
    'BadFilter',
    'BadRecord',
    'ColumnarStore',
    'CommitConflict',
    'DamagedData',
    'DuckDBParquetConfig',
    'DuckDBParquetStore',
    'Filters',
    'SchemaConflict',
    'StorageUnavailable',
    'StoreError',
    'TableNotFound',
]
