"""What users hand in, as Arrow tables of the stored schema; or an error that says which column and record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain, repeat
from operator import itemgetter, sub
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from amplify_db_utils._arrow import Array, Column, Field, Kind, nulls
from amplify_db_utils.cells import parts, plain_columns
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

_INFERRED = {pa.string(), pa.int64()}  # not real numbers: with those Arrow takes True for 1.0
_PANDAS = ('pandas', 'Timestamp')
_FOREIGN: dict[str, tuple[type, ...]] = {
    _NUMBER: (bool,),
    _TEXT: (bytes,),
    _BYTES: (str,),
    _MOMENT: (int, float, str),
}


def as_table(records: Any, schema: pa.Schema, keys: Sequence[str] = ()) -> pa.Table:
    """The records as a table with the stored types of a declared schema; columns that it lacks are left out.

    Takes dicts, an Arrow table, batch or reader, or a DataFrame. Raises BadRecord where a value does not fit its column
    exactly, a required value is missing, or a partition key of `keys` is.
    """
    if isinstance(records, pa.RecordBatch):
        records = pa.Table.from_batches([records])
    elif isinstance(records, pa.RecordBatchReader):
        records = records.read_all()
    elif _is_frame(records):
        records = _from_frame(records, schema)
    if isinstance(records, pa.Table):
        return _from_arrow(records, schema, keys)
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Sequence):
        raise BadRecord(f'records are a list of dicts, an Arrow table or a DataFrame, not {type(records).__name__}')
    return _from_dicts(records, schema, keys)


def _is_frame(records: Any) -> bool:
    return type(records).__module__.partition('.')[0] == 'pandas' and hasattr(records, 'columns')


def _from_frame(frame: Any, schema: pa.Schema) -> pa.Table:
    try:
        known = frame.loc[:, frame.columns.isin(schema.names)]
        texts = {name: _json_of_frame(known[name], schema.field(name)) for name in _with_dicts(known, schema)}
        table = pa.Table.from_pandas(known.drop(columns=list(texts)), preserve_index=False)
        for name, text in texts.items():
            table = table.append_column(name, text)
    except BadRecord:
        raise
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise BadRecord(f'the DataFrame is no table: {error}') from error
    return table


def _with_dicts(frame: Any, schema: pa.Schema) -> list[str]:
    """The columns declared as JSON that hold dicts: Arrow would make them one struct with the keys of all."""
    texts = [field.name for field in schema if pa.types.is_large_string(field.type)]
    once = [name for name in texts if list(frame.columns).count(name) == 1]
    return [name for name in once if any(isinstance(value, dict | list) for value in frame[name])]


def _json_of_frame(column: Any, field: Field) -> Array:
    return _json(column.astype(object).where(column.notna(), None).tolist(), field, 0)


def _from_arrow(table: pa.Table, schema: pa.Schema, keys: Sequence[str]) -> pa.Table:
    columns, fields = [], []
    for field in schema:
        at = table.schema.get_all_field_indices(field.name)
        if len(at) > 1:
            raise BadRecord(f'column {field.name!r} occurs {len(at)} times')
        if not at and (field.name in keys or not field.nullable):
            raise BadRecord(_missing(field, keys))
        stored = pa.field(field.name, stored_type(field.type), field.nullable)
        column = _cast(table.column(at[0]), field, stored.type) if at else nulls(table.num_rows, stored.type)
        _check_nulls(column, field)
        columns.append(column)
        fields.append(stored)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _missing(field: Field, keys: Sequence[str]) -> str:
    what = 'partition key' if field.name in keys else 'column'
    return f'Missing required {what} {field.name!r}'


def _check_nulls(column: Column | Array, field: Field, start: int = 0) -> None:
    if column.null_count and not field.nullable:
        at = pc.index(column.is_null(), True).as_py()
        raise BadRecord(f'column {field.name!r} is required and null in record {start + at}')


def _family(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    return next((name for name, test in _FAMILIES if test(kind)), str(kind))


def _cast(column: Column, field: Field, stored: pa.DataType) -> Column:
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


def _from_dicts(records: Sequence[Any], schema: pa.Schema, keys: Sequence[str]) -> pa.Table:
    required = {field.name for field in schema if field.name in keys or not field.nullable}
    plain = plain_columns(records, schema, required)
    columns = {name: [_as_stored(column, schema.field(name))] for name, column in plain.items()}
    others = [field for field in schema if field.name not in plain]
    for start, part in parts(records) if others else ():
        for field in others:
            column = _array(_values(part, start, field, keys), field, start)
            columns.setdefault(field.name, []).append(_as_stored(column, field, start))
    stored = pa.schema([pa.field(field.name, stored_type(field.type), field.nullable) for field in schema])
    chunked = [pa.chunked_array(columns.get(field.name, []), field.type) for field in stored]
    return pa.Table.from_arrays(chunked, schema=stored)


def _as_stored(column: Array, field: Field, start: int = 0) -> Array:
    _check_nulls(column, field, start)
    try:
        return column.cast(stored_type(field.type))
    except pa.ArrowException as error:
        raise BadRecord(f'column {field.name!r} of {field.type}: {error}') from error


def _values(part: Sequence[Mapping[str, Any]], start: int, field: Field, keys: Sequence[str]) -> list[Any]:
    try:
        return list(map(itemgetter(field.name), part))
    except KeyError:
        return _with_holes(part, start, field, keys)
    except (TypeError, AttributeError):
        raise BadRecord(_no_dict(part, start)) from None


def _with_holes(part: Sequence[Mapping[str, Any]], start: int, field: Field, keys: Sequence[str]) -> list[Any]:
    if field.name in keys or not field.nullable:
        at = next(at for at, record in enumerate(part) if field.name not in record)
        raise BadRecord(f'{_missing(field, keys)} in record {start + at}')
    try:
        return [record.get(field.name) for record in part]
    except (TypeError, AttributeError):
        raise BadRecord(_no_dict(part, start)) from None


def _no_dict(part: Sequence[Any], start: int) -> str:
    at = next(at for at, record in enumerate(part) if not isinstance(record, Mapping))
    return f'record {start + at} is no dict but {type(part[at]).__name__}'


def _array(values: list[Any], field: Field, start: int) -> Array:
    kind = field.type
    try:
        quick = _inferred(values, kind) if kind in _INFERRED else _moments(values, kind)
        if quick is not None:
            return quick
        _check_kinds(values, field, start)
        return _plain(values, kind)
    except BadRecord:
        raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if pa.types.is_large_string(kind) and any(isinstance(value, dict | list) for value in values):
            return _json(values, field, start)
        raise BadRecord(_which(values, field, start, error)) from error


def _inferred(values: list[Any], kind: Kind) -> Array | None:
    """The values as Arrow takes them by itself: if that is the type, they are of one kind and nothing was converted."""
    try:
        array = _plain(values, None)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return array if array.type == kind else None


def _plain(values: list[Any], kind: Kind) -> Array:
    array: Any = pa.array(values, kind)
    whole: Array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return whole


def _check_kinds(values: list[Any], field: Field, start: int) -> None:
    """Refuse what Arrow would convert without a word: True to 1, 2.5 to 2, bytes to text, a number to a moment."""
    nested = (
        pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type)
    )
    if nested:
        _refuse(values, values, (str, bytes, Mapping), field, start)
        items = chain.from_iterable(value for value in values if value is not None)
        foreign = _foreign(field.type.value_type)
        if foreign:
            _refuse(values, items, foreign, field, start)
    else:
        _refuse(values, values, _foreign(field.type), field, start)


def _foreign(kind: pa.DataType) -> tuple[type, ...]:
    if pa.types.is_integer(kind):
        return (bool, float, Decimal)
    if pa.types.is_date(kind):
        return (int, float, str, datetime)
    return _FOREIGN.get(_family(kind), ())


def _refuse(values: Sequence[Any], items: Iterable[Any], foreign: tuple[type, ...], field: Field, start: int) -> None:
    # A set of the types is the cheapest look at every value.
    if not any(issubclass(kind, foreign) for kind in set(map(type, items))):
        return
    for at, value in enumerate(values):
        parts = value if items is not values and isinstance(value, Iterable) else [value]
        if any(isinstance(part, foreign) and not _is_whole(part) for part in parts):
            raise BadRecord(f'column {field.name!r} holds {field.type}, record {start + at} has {value!r:.100}')


def _is_whole(value: Any) -> bool:
    return isinstance(value, float | Decimal) and not isinstance(value, bool) and value % 1 == 0


def _moments(values: list[Any], kind: Kind) -> Array | None:
    """Datetimes of Python or pandas, naive ones taken as UTC; None for others. Raises ArrowInvalid for too fine ones.

    They are read as what they are and then converted: Arrow's own way cuts off what a unit cannot hold.
    """
    if not pa.types.is_timestamp(kind):
        return None
    sorts = set(map(type, values)) - {type(None)}
    pandas = next((sort for sort in sorts if (sort.__module__.partition('.')[0], sort.__name__) == _PANDAS), None)
    if not sorts or not sorts <= {datetime, pandas}:
        return None
    exact = _of_python(values, kind) if pandas is None else _of_pandas(values, pandas, kind)
    return None if exact is None else exact.cast(kind)


def _of_python(values: list[Any], kind: Kind) -> Array:
    zone = getattr(values[0], 'tzinfo', None)
    always_utc = zone is not None and zone.utcoffset(None) == timedelta(0)
    epoch = datetime(1970, 1, 1, tzinfo=zone if zone is None or always_utc else UTC)
    try:
        # Three times as fast as Arrow's conversion.
        since = pa.array(list(map(sub, values, repeat(epoch))), pa.duration('us'))
    except TypeError:  # naive ones among others, or a None
        return _plain(values, pa.timestamp('us', kind.tz))
    moments: Array = since.cast(pa.int64()).cast(pa.timestamp('us', kind.tz))
    return moments


def _of_pandas(values: list[Any], sort: type[Any], kind: Kind) -> Array | None:
    try:
        nanoseconds: Any = pa.array(
            [None if at is None else at.value if type(at) is sort else sort(at).value for at in values], pa.int64()
        )
    except (OverflowError, ValueError):  # beyond the years that nanoseconds reach
        return None
    moments: Array = nanoseconds.cast(pa.timestamp('ns', kind.tz))
    return moments


def _json(values: list[Any], field: Field, start: int) -> Array:
    texts = []
    for at, value in enumerate(values):
        try:
            plain = value is None or isinstance(value, str)
            texts.append(value if plain else json.dumps(value, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BadRecord(f'column {field.name!r}, record {start + at}: no JSON: {error}') from error
    return _array(texts, field, start)


def _which(values: list[Any], field: Field, start: int, error: Exception) -> str:
    for at, value in enumerate(values):
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return f'column {field.name!r} holds {field.type}, record {start + at} has {value!r:.100}'
    return f'column {field.name!r} of {field.type}: {error}'
