"""Columns of ClickHouse tables: made for an Arrow schema, filled without loss, and read back as Arrow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from amp.errors import SchemaError
from amp.loaders.arrow_types import Landing, kind_of, type_table
from amp.loaders.clickhouse.session import literal, quote
from amp.loaders.json_text import is_bytes, is_list, is_text, json_text
from amp.loaders.stamps import BATCH_ID, TX_ID
from amp.loaders.uint256 import uint256_bytes

__all__ = ['BYTES', 'VERSION', 'Column', 'Fit', 'column_ddl', 'read_schema', 'select_list']

BYTES = 'bytes'
"""The comment of a column whose strings are bytes."""

VERSION = '_amp_version'
"""The column by which the newest row of a key is known, in tables that are loaded by key."""

_OWN = {TX_ID: 'Int64 DEFAULT 0', BATCH_ID: "String DEFAULT ''", VERSION: 'UInt64 DEFAULT 0'}
_NUMBERS: dict[str, pa.DataType] = {
    **{f'Int{bits}': getattr(pa, f'int{bits}')() for bits in (8, 16, 32, 64)},
    **{f'UInt{bits}': getattr(pa, f'uint{bits}')() for bits in (8, 16, 32, 64)},
    'Float32': pa.float32(),
    'Float64': pa.float64(),
    'Bool': pa.bool_(),
    'Date32': pa.date32(),
}
_UNITS = {'0': 's', '3': 'ms', '6': 'us', '9': 'ns'}


@dataclass(frozen=True)
class Column:
    """A column as `system.columns` has it."""

    name: str
    kind: str
    comment: str = ''

    @property
    def plain(self) -> str:
        """The type without Nullable and LowCardinality."""
        return _plain(self.kind)

    @property
    def is_nullable(self) -> bool:
        """True when it can hold nulls."""
        return 'Nullable(' in self.kind and not self.plain.startswith('Array(')

    @property
    def arrow(self) -> pa.DataType | None:
        """The Arrow type with the same values; None when there is none."""
        return _arrow(self.kind, self.comment == BYTES)


def column_ddl(field: pa.Field[Any]) -> str:
    """A column for a field. Raises SchemaError for a type that ClickHouse has not."""
    name = quote(field.name)
    if field.name in _OWN:
        return f'{name} {_OWN[field.name]}'
    comment = f' COMMENT {literal(BYTES)}' if _holds_bytes(field) else ''
    return f'{name} {_column_type(field)}{comment}'


def _column_type(field: pa.Field[Any]) -> str:
    landing = _landing(field)
    if landing.column.startswith('Array('):
        value: Any = field.type
        return f'Array({_column_type(pa.field("", value.value_type, value.value_field.nullable))})'
    return f'Nullable({landing.column})' if field.nullable else landing.column


def _landing(field: pa.Field[Any]) -> Landing:
    kind: Any = field.type
    if is_list(kind) and (field.nullable or kind_of(kind.value_type) in {'list', 'struct', 'map'}):
        # An Array cannot be null: the server would make it empty.
        return Landing(field.name, 'String', pa.string(), json_text)
    return type_table('clickhouse').landing(field)


def _holds_bytes(field: pa.Field[Any]) -> bool:
    landing = _landing(field)
    inner: Any = landing.wire
    return pt.is_binary(inner.value_type if is_list(inner) else inner)


class Fit:
    """How rows of a schema go into the columns of a table that is there. Raises SchemaError, by column."""

    def __init__(self, schema: pa.Schema, table: Mapping[str, Column]) -> None:
        missing = [field.name for field in schema if field.name not in table]
        if missing:
            raise SchemaError(f'the table has no column {missing[0]!r}', hint=f'its columns: {", ".join(table)}')
        self._landings = [_fit(field, table[field.name]) for field in schema]
        self._nulls = [table[field.name].is_nullable for field in schema]
        self.schema = pa.schema([pa.field(landing.name, landing.wire) for landing in self._landings])

    def land(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch in the forms that are handed over."""
        columns = []
        for landing, takes_nulls, values in zip(self._landings, self._nulls, batch.columns, strict=True):
            if values.null_count and not takes_nulls:
                raise SchemaError(
                    f'column {landing.name!r} is {landing.column} in the table, and the rows have a null in it',
                    hint='make it Nullable, or filter the nulls in the query',
                    column=landing.name,
                )
            columns.append(landing.land(values))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _fit(field: pa.Field[Any], column: Column) -> Landing:
    if field.name in _OWN:
        return Landing(field.name, column.kind, field.type)
    landing = _landing(field)
    if _plain(_column_type(field)) == column.plain and not (pt.is_binary(landing.wire) and column.comment != BYTES):
        return replace(landing, column=column.kind)
    into = column.arrow
    if column.plain == 'UInt256' and (is_text(landing.wire) or _is_whole_and_wide(landing.wire)):
        return Landing(field.name, column.kind, pa.binary(32), uint256_bytes)
    if into is None or not _loses_nothing(landing.wire, into):
        raise SchemaError(
            f'column {field.name!r} is {column.kind} in the table, which cannot take {field.type} without loss',
            hint='cast it in the query, or load into another table',
            column=field.name,
        )
    convert = landing.convert
    if pt.is_integer(landing.wire) and pt.is_decimal(into):
        # Arrow wants room for every number of the type; what counts is those that come.
        convert = partial(_cast, kind=pa.decimal256(76, into.scale))
    return Landing(field.name, column.kind, into, convert)


def _is_whole_and_wide(kind: Any) -> bool:
    return pt.is_decimal256(kind) and kind.scale == 0


def _cast(values: pa.Array[Any], kind: pa.DataType) -> pa.Array[Any]:
    return values.cast(kind)


def _loses_nothing(kind: pa.DataType, into: pa.DataType) -> bool:
    """Whether a cast either keeps a value or refuses it."""
    if pt.is_integer(kind):
        return pt.is_integer(into) or pt.is_decimal(into)
    if pt.is_float32(kind):
        return pt.is_float64(into)
    same = (pt.is_decimal, pt.is_timestamp, is_bytes, is_text)
    if any(is_kind(kind) and is_kind(into) for is_kind in same):
        return True
    return (is_bytes(kind) and is_text(into)) or (is_text(kind) and pt.is_binary(into))


def read_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema in which columns are read; what has no Arrow type is text."""
    return pa.schema([(column.name, column.arrow or pa.string()) for column in columns])


def select_list(columns: Sequence[Column]) -> str:
    """The columns as they are selected for `read_schema`."""
    return ', '.join(f'{_selected(column)} AS {quote(column.name)}' for column in columns)


def _selected(column: Column) -> str:
    name = quote(column.name)
    if column.name in {TX_ID, BATCH_ID}:
        return f'nullIf({name}, {0 if column.name == TX_ID else literal("")})'
    return name if column.arrow is not None else f'toString({name})'


def _plain(kind: str) -> str:
    for wrapper in ('LowCardinality(', 'Nullable('):
        if kind.startswith(wrapper):
            kind = kind[len(wrapper) : -1]
    return kind


def _arrow(kind: str, bytes_: bool) -> pa.DataType | None:
    kind = _plain(kind)
    if kind.startswith('Array('):
        inner = _arrow(kind[6:-1], bytes_)
        return None if inner is None else pa.list_(inner)
    if kind == 'String':
        return pa.binary() if bytes_ else pa.string()
    return _NUMBERS.get(kind) or _sized(kind)


def _sized(kind: str) -> pa.DataType | None:
    if found := re.fullmatch(r'FixedString\((\d+)\)', kind):
        return pa.binary(int(found[1]))
    if found := re.fullmatch(r'Decimal\((\d+), (\d+)\)', kind):
        precision, scale = int(found[1]), int(found[2])
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    if (found := re.fullmatch(r"DateTime64\((\d)(?:, '(.*)')?\)", kind)) and found[1] in _UNITS:
        unit: Any = _UNITS[found[1]]
        made: pa.DataType = pa.timestamp(unit, found[2] or 'UTC')
        return made
    return None
