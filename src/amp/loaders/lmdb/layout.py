"""How rows lie in an LMDB table: decided by the configuration with the first write, and kept by every later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from amp.errors import ConfigError, SchemaError
from amp.loaders import row_columns
from amp.loaders.arrow_types import type_table
from amp.loaders.json_text import plain
from amp.loaders.lmdb.catalog import TableRecord
from amp.loaders.lmdb.table import kept_schema
from amp.loaders.row_keys import ROW, KeySpec
from amp.loaders.types import LoadMode

__all__ = ['Layout', 'aligned']


@dataclass(frozen=True)
class Layout:
    """What a configuration says of tables that are yet to be written."""

    layout: str | None = None
    serialization: str = 'arrow'
    key_column: str | None = None
    key_pattern: str | None = None

    @property
    def is_by_row(self) -> bool:
        """True when it asks for rows rather than whole batches."""
        keyed = self.key_column is not None or self.key_pattern is not None
        return keyed or self.layout == 'rows' or self.serialization == 'msgpack'

    def decide(self, record: TableRecord, table: str, mode: LoadMode, key_columns: Sequence[str]) -> TableRecord:
        """The record with its layout, for a first write or a later one. Raises ConfigError or SchemaError."""
        upserts = mode in {LoadMode.UPSERT, LoadMode.MERGE}
        key = self._key(table, kept_schema(record).names)
        if key is None and upserts:
            key = KeySpec.of_columns(key_columns)
        if record.layout is None:
            record = self._decided(record, key)
        elif key is not None and key != record.key:
            raise ConfigError(
                f'the rows of {table!r} are found by {_told(record)}, not by {", ".join(key.columns) or "number"}',
                hint='leave the key out of the configuration, or use another table',
            )
        if upserts and (record.key is None or set(record.key.columns) != set(key_columns)):
            raise ConfigError(
                f'the rows of {table!r} are found by {_told(record)}, so they cannot be replaced by '
                f'{", ".join(key_columns)}',
                hint='key_columns must be the columns of the key; load by key into a table of its own',
            )
        return record

    def begun(self, schema: pa.Schema, table: str) -> TableRecord:
        """The record of a new table. Raises SchemaError for columns that it cannot keep or find rows by."""
        key = self._key(table, schema.names)
        if key is not None:
            key.check(schema)
        return TableRecord(self.landed(schema, None))

    def landed(self, schema: pa.Schema, layout: str | None) -> pa.Schema:
        """The columns as a table keeps them. Raises SchemaError for one that it cannot keep."""
        if layout == 'rows' or (layout is None and self.is_by_row):
            landings = type_table('lmdb').landings(schema)
            return pa.schema([pa.field(landing.name, landing.wire) for landing in landings])
        return pa.schema([pa.field(field.name, _plain_type(field)) for field in schema])

    def _key(self, table: str, columns: Sequence[str]) -> KeySpec | None:
        if self.key_column is not None:
            return KeySpec.of_columns([self.key_column])
        if self.key_pattern is not None:
            return KeySpec.of_pattern(self.key_pattern, table, columns)
        return None

    def _decided(self, record: TableRecord, key: KeySpec | None) -> TableRecord:
        if key is None and not self.is_by_row:
            return replace(record, layout='batches')
        key = key or KeySpec((('column', ROW),))
        key.check(record.schema)
        schema = self.landed(record.schema, 'rows')
        return TableRecord(schema, 'rows', self.serialization, key)


def aligned(batch: pa.RecordBatch, record: TableRecord, layout: Layout) -> pa.RecordBatch:
    """The batch in the columns of its table, without ids. Raises SchemaError for a column that does not fit."""
    landed = layout.landed(batch.schema, record.layout)

    def fitting(column: Any, field: pa.Field[Any]) -> tuple[Any, Any]:
        by_row = record.layout == 'rows'
        taken = type_table('lmdb').landing(field).land(column) if by_row else plain(column)
        return taken, landed.field(field.name).type

    return row_columns.aligned(batch, kept_schema(record), fitting)


def _plain_type(field: pa.Field[Any]) -> Any:
    kind: Any = field.type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    if 'dictionary' in str(kind) or isinstance(kind, pa.BaseExtensionType):
        raise SchemaError(f'LMDB has no type for column {field.name!r} of type {kind}', column=field.name)
    return kind


def _told(record: TableRecord) -> str:
    if record.key is None:
        return 'number, in whole batches'
    return ', '.join(record.key.columns) or 'number'
