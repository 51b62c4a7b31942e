"""Hooks: what the author of a loader writes, each with its default and what it must return.

Only `connect`, `disconnect` and `_load_batch_impl` have none. The base calls these and never asks which loader it is.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args

import pyarrow as pa

from amp.errors import ConfigError, LoadError, redact
from amp.loaders.options import listed
from amp.loaders.readers import Counted
from amp.loaders.types import LoadMode
from amp.streaming.ledger import IdRun

TConfig = TypeVar('TConfig')


class Hooks(ABC, Generic[TConfig]):
    """The half of a loader that differs from destination to destination."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = {LoadMode.APPEND}
    # Those of them that a stream can have; None: all.
    STREAM_MODES: ClassVar[frozenset[LoadMode] | None] = None
    # Workers of a backfill write in turn, because the destination lets one writer in at a time.
    ONE_WRITER: ClassVar[bool] = False
    REQUIRES_SCHEMA_MATCH: ClassVar[bool] = True
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = False
    # Names of further keywords of a load call; None lets every keyword through to the author's method.
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = None
    # The config key that the path of a URL stands for, for destinations that are a file or a folder.
    URL_PATH_KEY: ClassVar[str | None] = None
    # Keys of the configuration that say where rows go: they are in the metadata of every load. Never a secret.
    PLACE: ClassVar[tuple[str, ...]] = ()

    config: TConfig
    name: str
    logger: logging.Logger
    _is_connected: bool
    _created_tables: dict[str, set[str]]

    @abstractmethod
    def connect(self) -> None:
        """Open the connection and set `self._is_connected`."""

    @abstractmethod
    def disconnect(self) -> None:
        """Close it and clear `self._is_connected`."""

    @abstractmethod
    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        """Load one batch; the number of rows that arrived."""

    def _parse_config(self, config: dict[str, Any]) -> TConfig:
        wanted = config_class(type(self))
        if wanted is None:
            return cast('TConfig', config)
        known = {f.name for f in fields(wanted)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ConfigError(
                f'unknown configuration key {unknown[0]!r} for {self.name}', hint=f'known keys: {listed(known)}'
            )
        try:
            return cast('TConfig', wanted(**config))
        except TypeError as error:
            raise ConfigError(f'the configuration of {self.name} does not fit: {error}') from error

    def _get_required_config_fields(self) -> list[str]:
        return []

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        """Make the table if it is not there. Destinations without tables need not override this."""

    def _clear_table(self, table_name: str) -> None:
        raise LoadError(
            f'{self.name} cannot clear the table {table_name!r}', hint='it needs _clear_table for overwrite'
        )

    def missing_permissions(self) -> Sequence[tuple[str, str]]:
        """What a connected loader lacks to make and fill tables, each with its remedy; none where that is not known."""
        path = str(getattr(self.config, self.URL_PATH_KEY, '')) if self.URL_PATH_KEY else ''
        if not path or '://' in path or not Path(path).exists() or os.access(path, os.W_OK):
            return ()
        return ((f'{path} cannot be written', 'let its owner give you the right to write'),)

    def create_statement(self, schema: pa.Schema, table_name: str) -> str | None:
        """The SQL that would make the table, None where there is none. Asks nobody: the loader need not be connected."""
        del schema, table_name
        return None

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        """Columns of `schema` that the table, which is there, lacks. None where a table has no fixed columns."""
        del schema, table_name
        return ()

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        """Add nullable columns to a table; rows that are there have null in them."""
        raise LoadError(
            f'{self.name} cannot add columns to {table_name!r}', hint='a loader can when it has _add_columns'
        )

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        """Load a whole reader; override it where the destination's bulk path takes one."""
        return sum(self._checked_count(self._load_batch_impl(batch, table_name, **kwargs)) for batch in reader)

    def _transaction(self) -> AbstractContextManager[object]:
        """What makes a plain load all or nothing; override it where the destination has transactions."""
        return nullcontext()

    def _delete_runs(self, table_name: str, runs: Sequence[IdRun]) -> int:
        """Delete the rows whose `_amp_tx_id` lies in one of the inclusive runs; the number deleted."""
        raise LoadError(
            f'{self.name} cannot take rows back, and the chain has changed under {table_name!r}',
            hint='a loader undoes reorgs when it has _delete_runs',
        )

    def is_transient(self, error: Exception) -> bool:
        """True when the driver's error may be gone the next time. Says it by type and code, never by text."""
        del error
        return False

    def table_exists(self, table_name: str) -> bool:
        """True when the table is there."""
        info = self.get_table_info(table_name)
        return table_name in self._created_tables if info is None else bool(info.get('exists', True))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """`table_name`, `row_count`, `exists`, `columns`, and `size_bytes` where known; None when not there."""
        return None

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns, None when the table is not there."""
        return None

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows of the table, the user's columns only."""
        raise LoadError(f'{self.name} cannot read {table_name!r} back', hint='a loader can when it has scan')

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows that `scan` shows, amp's own columns included: what `amp verify` looks at. Optional.

        `columns` (None: all) is what is wanted of each row; `where` keeps the rows whose column lies between two
        numbers, inclusive. The destination should do both itself.
        """
        raise LoadError(
            f'{self.name} cannot show the rows of {table_name!r} with their stamps, so they cannot be verified',
            hint='a loader can when it has stamped_scan',
        )

    def _get_batch_metadata(self, batch: pa.RecordBatch, duration: float, **kwargs: Any) -> dict[str, Any]:
        return {
            'operation': 'load_batch',
            'batch_size': batch.num_rows,
            'schema_fields': len(batch.schema),
            'throughput_rows_per_sec': rate(batch.num_rows, duration),
            **self._metadata_of_place(),
        }

    def _get_table_metadata(
        self, table: pa.Table | Counted, duration: float, batch_count: int, **kwargs: Any
    ) -> dict[str, Any]:
        return {
            'operation': 'load_table',
            'batch_count': batch_count,
            'batches_processed': batch_count,
            'total_rows': table.num_rows,
            'schema_fields': len(table.schema),
            'avg_batch_size': table.num_rows // batch_count if batch_count else 0,
            'table_size_mb': table.nbytes / 1024**2,
            'throughput_rows_per_sec': rate(table.num_rows, duration),
            **self._metadata_of_place(),
        }

    def _metadata_of_place(self) -> dict[str, Any]:
        """What the metadata of a load says of this loader's configuration: the keys in PLACE that have a value."""
        said = {key: getattr(self.config, key) for key in self.PLACE}
        return {
            key: redact(value) if isinstance(value, str) else value
            for key, value in said.items()
            if value not in (None, '')
        }

    def _checked_count(self, rows: object) -> int:
        """The number of rows that `_load_batch_impl` returned. Raises LoadError when it is no number."""
        from amp.loaders.mistakes import answer

        return int(answer(self, '_load_batch_impl', rows, int, 'the number of rows'))


def config_class(loader_class: type[Hooks[Any]]) -> Any:
    """The dataclass that a loader names as its configuration: `DataLoader[ExampleConfig]`; None without one."""
    for base in loader_class.__mro__:
        for generic in getattr(base, '__orig_bases__', ()):
            for argument in get_args(generic):
                if isinstance(argument, type) and is_dataclass(argument):
                    return argument
    return None


def rate(rows: int, duration: float) -> float:
    """Rows a second; 0.0 when no time has passed."""
    return rows / duration if duration > 0 else 0.0
