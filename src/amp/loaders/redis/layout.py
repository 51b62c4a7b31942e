"""How rows lie in a Redis table: structure and key, decided with the first write and kept by every later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from amp.errors import ConfigError
from amp.loaders import row_columns
from amp.loaders.arrow_types import type_table
from amp.loaders.redis.store import COLLECTIONS, TableRecord
from amp.loaders.row_keys import KeySpec
from amp.loaders.types import LoadMode

__all__ = ['DEFAULT_PATTERN', 'Layout', 'aligned']

DEFAULT_PATTERN = '{table}:{id}'


@dataclass(frozen=True)
class Layout:
    """What a configuration says of tables. `pattern` None: rows are named by what wrote them."""

    structure: str = 'hash'
    pattern: str | None = None
    score: str | None = None
    rows_at_once: int = 8192

    def decide(self, record: TableRecord, table: str, mode: LoadMode, key_columns: Sequence[str]) -> TableRecord:
        """The record with its key, for a first write or a later one. Raises ConfigError or SchemaError."""
        upserts = mode in {LoadMode.UPSERT, LoadMode.MERGE}
        if record.structure != self.structure:
            raise ConfigError(
                f'the rows of {table!r} are kept as {record.structure}, not as {self.structure}',
                hint=f'data_structure={record.structure!r} loads into it; or overwrite the table',
            )
        if record.key is None:
            record = replace(record, key=self._key(record, table, key_columns if upserts else ()))
        key = record.key
        if upserts and (key is None or set(key.columns) != set(key_columns)):
            found = ', '.join(key.columns) if key is not None and key.columns else 'number'
            raise ConfigError(
                f'the rows of {table!r} are found by {found}, so they cannot be replaced by {", ".join(key_columns)}',
                hint='key_columns must be the columns of the key; load by key into a table of its own',
            )
        return replace(record, is_upserted=True) if upserts else record

    def check(self, schema: pa.Schema, table: str) -> None:
        """Raises SchemaError when rows of these columns have no key as the pattern wants it."""
        if self.pattern is not None and self.structure not in COLLECTIONS:
            KeySpec.of_pattern(self.pattern, table, schema.names).check(schema)

    def _key(self, record: TableRecord, table: str, key_columns: Sequence[str]) -> KeySpec:
        names = record.kept_schema.names
        if self.structure in COLLECTIONS:
            return _collection_key(self.pattern, table)
        if self.pattern is not None:
            key = KeySpec.of_pattern(self.pattern, table, names)
        elif key_columns:
            key = KeySpec((('text', f'{table}:'), *KeySpec.of_columns(key_columns).parts))
        else:
            key = KeySpec.of_pattern(DEFAULT_PATTERN, table, ())
        key.check(record.schema)
        return key


def _collection_key(pattern: str | None, table: str) -> KeySpec:
    text = '{table}' if pattern in {None, DEFAULT_PATTERN} else str(pattern)
    if '{' in text.replace('{table}', ''):
        raise ConfigError(
            f'key_pattern={pattern!r} names a column, but a collection has one key a table',
            hint="leave it out, or write {table} and text only; data_structure='hash' has a key a row",
        )
    return KeySpec((('text', text.replace('{table}', table)),))


def aligned(batch: pa.RecordBatch, record: TableRecord) -> pa.RecordBatch:
    """The batch in the columns of its table, without ids. Raises SchemaError for a column that does not fit."""

    def fitting(column: Any, field: pa.Field[Any]) -> tuple[Any, Any]:
        landing = type_table('redis').landing(field)
        return landing.land(column), landing.wire

    return row_columns.aligned(batch, record.kept_schema, fitting)
