"""What users hand in, as one Arrow table of the stored schema; or an error that says which column and record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from amplify_db_utils.errors import BadRecord
from amplify_db_utils.schema import stored_type

_TEXT, _NUMBER, _MOMENT, _BYTES = 'text', 'number', 'date or time', 'bytes'
_FAMILIES: tuple[tuple[str, Callable[[pa.DataType], bool]], ...] = (
    ('null', pa.types.is_null),
    ('yes/no', pa.types.is_boolean),
    (_NUMBER, pa.types.is_integer),
    (_NUMBER, pa.types.is_floating),
    (_NUMBER, pa.types.is_decimal),
    (_TEXT, pa.types.is_string),
    (_TEXT, pa.types.is_large_string),
    (_TEXT, pa.types.is_string_view),
    (_BYTES, pa.types.is_binary),
    (_BYTES, pa.types.is_large_binary),
    (_BYTES, pa.types.is_binary_view),
    (_BYTES, pa.types.is_fixed_size_binary),
    (_MOMENT, pa.types.is_timestamp),
    (_MOMENT, pa.types.is_date),
    ('time of day', pa.types.is_time),
    ('duration', pa.types.is_duration),
    ('list', pa.types.is_list),
    ('list', pa.types.is_large_list),
    ('list', pa.types.is_fixed_size_list),
    ('struct', pa.types.is_struct),
    ('map', pa.types.is_map),
)


def to_stored(records: Any, schema: pa.Schema, keys: Sequence[str] = ()) -> pa.Table:
    """The records as a table with the stored types of a declared schema. Columns that it lacks are left out.

    Takes dicts, an Arrow table, batch or reader, or a DataFrame. Raises BadRecord where a value does not fit its column
    exactly, a required value is missing, or a partition key of `keys` is.
    """
    if isinstance(records, pa.RecordBatch):
        records = pa.Table.from_batches([records])
    elif isinstance(records, pa.RecordBatchReader):
        records = records.read_all()
    elif _is_frame(records):
        records = _from_frame(records)
    if isinstance(records, pa.Table):
        return _from_arrow(records, schema, keys)
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Sequence):
        raise BadRecord(f'records are a list of dicts, an Arrow table or a DataFrame, not {type(records).__name__}')
    return _from_dicts(records, schema, keys)


def _is_frame(records: Any) -> bool:
    return type(records).__module__.partition('.')[0] == 'pandas' and hasattr(records, 'columns')


def _from_frame(frame: Any) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise BadRecord(f'the DataFrame is no table: {error}') from error


def _from_arrow(table: pa.Table, schema: pa.Schema, keys: Sequence[str]) -> pa.Table:
    columns, fields = [], []
    for field in schema:
        at = table.schema.get_all_field_indices(field.name)
        if len(at) > 1:
            raise BadRecord(f'column {field.name!r} occurs {len(at)} times')
        if not at and (field.name in keys or not field.nullable):
            raise BadRecord(_missing(field, keys))
        stored = pa.field(field.name, stored_type(field.type), field.nullable)
        column = _cast(table.column(at[0]), field, stored.type) if at else pa.nulls(table.num_rows, stored.type)
        _check_nulls(column, field)
        columns.append(column)
        fields.append(stored)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _missing(field: pa.Field, keys: Sequence[str]) -> str:
    what = 'partition key' if field.name in keys else 'column'
    return f'Missing required {what} {field.name!r}'


def _check_nulls(column: pa.ChunkedArray | pa.Array, field: pa.Field) -> None:
    if column.null_count and not field.nullable:
        at = pc.index(column.is_null(), True).as_py()
        raise BadRecord(f'column {field.name!r} is required and null in record {at}')


def _family(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    return next((name for name, test in _FAMILIES if test(kind)), str(kind))


def _cast(column: pa.ChunkedArray, field: pa.Field, stored: pa.DataType) -> pa.ChunkedArray:
    given, wanted = _family(column.type), _family(field.type)
    if column.type == stored == field.type:
        return column
    if given not in {wanted, 'null'}:
        raise BadRecord(
            f'column {field.name!r} holds {wanted} ({field.type}), the records bring {given} ({column.type})'
        )
    try:
        if column.type == field.type:
            return column.cast(stored)
        if wanted == _MOMENT and pa.types.is_timestamp(field.type) and pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp(column.type.unit, field.type.tz))  # naive means UTC
        return column.cast(field.type).cast(stored)
    except pa.ArrowException as error:
        raise BadRecord(f'column {field.name!r} of {field.type} cannot hold the records exactly: {error}') from error


def _from_dicts(records: Sequence[Mapping[str, Any]], schema: pa.Schema, keys: Sequence[str]) -> pa.Table:
    columns, fields = [], []
    for field in schema:
        stored = pa.field(field.name, stored_type(field.type), field.nullable)
        column = _column(records, field, required=field.name in keys or not field.nullable, keys=keys)
        if column.type != stored.type:
            try:
                column = column.cast(stored.type)
            except pa.ArrowException as error:
                raise BadRecord(f'column {field.name!r} of {field.type}: {error}') from error
        _check_nulls(column, field)
        columns.append(column)
        fields.append(stored)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _column(records: Sequence[Mapping[str, Any]], field: pa.Field, *, required: bool, keys: Sequence[str]) -> pa.Array:
    try:
        values = list(map(itemgetter(field.name), records))
    except KeyError:
        if required:
            at = next(at for at, record in enumerate(records) if field.name not in record)
            raise BadRecord(f'{_missing(field, keys)} in record {at}') from None
        values = [record.get(field.name) for record in records]
    except TypeError:
        at = next(at for at, record in enumerate(records) if not isinstance(record, Mapping))
        raise BadRecord(f'record {at} is no dict but {type(records[at]).__name__}') from None
    return _array(values, field)


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    kind = field.type
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            _no_bools(values, field)
        array = pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if pa.types.is_large_string(kind) and any(isinstance(value, dict | list) for value in values):
            return _json(values, field)
        raise BadRecord(_which(values, field, error)) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _no_bools(values: list[Any], field: pa.Field) -> None:
    # To Arrow True is 1. A set of the types is the cheapest look at every value.
    if bool in set(map(type, values)):
        at = next(at for at, value in enumerate(values) if isinstance(value, bool))
        raise BadRecord(f'column {field.name!r} holds numbers, record {at} has {values[at]}')


def _json(values: list[Any], field: pa.Field) -> pa.Array:
    texts = []
    for at, value in enumerate(values):
        try:
            texts.append(value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError) as error:
            raise BadRecord(f'column {field.name!r}, record {at}: no JSON: {error}') from error
    return _array(texts, field)


def _which(values: list[Any], field: pa.Field, error: Exception) -> str:
    for at, value in enumerate(values):
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return f'column {field.name!r} holds {field.type}, record {at} has {value!r:.100}'
    return f'column {field.name!r} of {field.type}: {error}'
