"""Names and types of Snowflake: how a column is called and kept there, and in which form its values travel.

A name in lower case that needs no quotes is written in upper case, as Snowflake itself does with `select block_num
from logs`; every other name is kept to the letter, in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

from amp.errors import ConfigError, SchemaError
from amp.loaders.arrow_types import AS, Landing, land, type_table
from amp.loaders.json_text import hex_text, is_list, json_text
from amp.loaders.sql import quote

__all__ = [
    'VARIANT',
    'cast_of',
    'joined',
    'json_arrays',
    'json_objects',
    'landings',
    'name_in',
    'name_out',
    'quoted',
    'read_schema',
    'selected',
    'texts',
    'wire_of',
]

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

_PLAIN = re.compile(r'[a-z_][a-z0-9_$]*')
_PLAIN_UPPER = re.compile(r'[A-Z_][A-Z0-9_$]*')
_NUMBER = re.compile(r'NUMBER\((\d+),(\d+)\)')
_LONGEST_NAME = 255
VARIANT = 'VARIANT'
_MOST_DIGITS, _MOST_SCALE = 38, 37


def name_in(name: str) -> str:
    """The name under which Snowflake keeps it. Raises ConfigError for one that is too long."""
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f'the name {name[:40]!r}... is longer than the {_LONGEST_NAME} characters of Snowflake')
    return name.upper() if _PLAIN.fullmatch(name) else name


def name_out(stored: str) -> str:
    """The name that a user knows, of the one that Snowflake keeps."""
    return stored.lower() if _PLAIN_UPPER.fullmatch(stored) else stored


def quoted(*names: str) -> str:
    """Names as SQL. Raises ConfigError."""
    return quote(*map(name_in, names))


def landings(schema: pa.Schema) -> list[Landing]:
    """How the columns of `schema` land. Raises SchemaError, by column and type."""
    names = [name_in(name) for name in schema.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SchemaError(
            f'two columns are named {twice!r}, which is what Snowflake makes of lower case', column=name_out(twice)
        )
    return [_landing(_fitting(field)) for field in schema]


def _landing(field: pa.Field[Any]) -> Landing:
    landing = type_table('snowflake').landing(field)
    return landing if landing.column != VARIANT or _is_exact(field.type) else replace(landing, column='VARCHAR')


def _is_exact(kind: Any) -> bool:
    """Whether a VARIANT keeps every value inside: what is no whole number of at most 38 digits may become a double."""
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind) or is_list(kind):
        return _is_exact(kind.value_type)
    if pt.is_map(kind):
        return _is_exact(kind.key_type) and _is_exact(kind.item_type)
    if pt.is_struct(kind):
        return all(_is_exact(field.type) for field in kind)
    if pt.is_decimal(kind):
        return bool(kind.scale == 0 and kind.precision <= _MOST_DIGITS)
    return not pt.is_floating(kind)


def _fitting(field: pa.Field[Any]) -> pa.Field[Any]:
    """A wide decimal of few digits as a narrow one; a decimal that Snowflake has not is refused."""
    kind: Any = field.type
    if not pt.is_decimal(kind) or (field.metadata or {}).get(AS):
        return field
    digits = max(kind.precision - min(kind.scale, 0), kind.scale)
    if pt.is_decimal256(kind) and digits <= _MOST_DIGITS and kind.scale >= 0:
        field = field.with_type(pa.decimal128(kind.precision, kind.scale))
    elif pt.is_decimal256(kind) and kind.scale == 0:
        return field
    if digits > _MOST_DIGITS or kind.scale > _MOST_SCALE:
        raise SchemaError(
            f'Snowflake has no NUMBER for column {field.name!r} of type {kind}: 38 digits, 37 of them after the point',
            hint=f"land it as text with column_types={{{field.name!r}: 'text'}}",
            column=field.name,
        )
    return field


def wire_of(batch: pa.RecordBatch, landed: Sequence[Landing]) -> pa.RecordBatch:
    """The batch in its wire form, under the names that Snowflake keeps. Raises SchemaError, by column."""
    return land(batch, landed).rename_columns([name_in(name) for name in batch.schema.names])


def cast_of(column: str, expression: str) -> str:
    """SQL that makes a value of a column's type of an expression that gives its text (see `texts`)."""
    if column.startswith('BINARY'):
        return f"TO_BINARY({expression}, 'HEX')"
    if column == VARIANT:
        return f'PARSE_JSON({expression})'
    return expression if column == 'VARCHAR' else f'CAST({expression} AS {column})'


def texts(column: Any) -> Any:
    """The values of a wire column as text that Snowflake casts back exactly: bytes as hex, without `0x`."""
    if pt.is_binary(column.type):
        return pc.utf8_slice_codeunits(hex_text(column), 2)
    return column.cast(pa.string())


def json_arrays(batch: pa.RecordBatch) -> Any:
    """One JSON array of texts for each row of a wire batch."""
    values = [_json_value(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    return pc.binary_join_element_wise('[', pc.binary_join_element_wise(*values, ','), ']', '')


def json_objects(batch: pa.RecordBatch, nested: Collection[str] = ()) -> Any:
    """One JSON object of texts for each row of a wire batch, with the names of its columns.

    `nested` names columns whose texts are JSON already. One that is null is left out: a VARIANT takes the null of JSON
    for a value.
    """
    members = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        value = column if name in nested else _json_value(name, column)
        members.append(pc.binary_join_element_wise(f',{json.dumps(name, ensure_ascii=False)}:', value, ''))
    # Joining with null_handling='skip' would drop a row of nothing but nulls.
    listed = pc.binary_join_element_wise(*[pc.fill_null(member, '') for member in members], '')
    return pc.binary_join_element_wise('{', pc.utf8_slice_codeunits(listed, 1), '}', '')


def _json_value(name: str, column: Any) -> Any:
    try:
        return pc.fill_null(json_text(texts(column)), 'null')
    except SchemaError as error:
        raise SchemaError(f'column {name_out(name)!r}: {error.message}', hint="loading_method='stage' can") from error


def selected(name: str, kind: str) -> str:
    """A column of a table as it is read in a query for `read_schema`: nested values as JSON."""
    return f'TO_JSON({quote(name)})' if kind in _NESTED else quote(name)


_NESTED = {VARIANT, 'ARRAY', 'OBJECT'}


def read_schema(columns: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema in which columns (stored name to Snowflake's type) are read, under the names of users."""
    return pa.schema([(name_out(name), _arrow_type(kind)) for name, kind in columns.items()])


def _arrow_type(kind: str) -> pa.DataType:
    number = _NUMBER.fullmatch(kind)
    if number is not None:
        digits, scale = int(number[1]), int(number[2])
        return pa.int64() if digits <= 19 and scale == 0 else pa.decimal128(digits, scale)
    return _TYPES.get(kind.partition('(')[0], pa.string())


_TYPES: dict[str, pa.DataType] = {
    'FLOAT': pa.float64(),
    'BOOLEAN': pa.bool_(),
    'BINARY': pa.binary(),
    'DATE': pa.date32(),
    'TIME': pa.time64('ns'),
    'TIMESTAMP_NTZ': pa.timestamp('ns'),
    'TIMESTAMP_LTZ': pa.timestamp('ns', 'UTC'),
    'TIMESTAMP_TZ': pa.timestamp('ns', 'UTC'),
}


def joined(rows: Any, separator: str) -> bytes:
    """The texts of a column without nulls, one after the other, each with the separator behind it."""
    whole = pc.binary_join_element_wise(rows, '', separator).cast(pa.large_string())
    _, offsets, data = whole.buffers()
    if data is None or not len(whole):
        return b''
    ends = memoryview(offsets).cast('B').cast('q')
    return bytes(memoryview(data)[ends[whole.offset] : ends[whole.offset + len(whole)]])
