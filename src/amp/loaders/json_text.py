"""Arrow columns as JSON text, column by column: for destinations that keep nested values as JSON.

Integers and decimals are JSON numbers, exact; bytes are `0x` and hex digits; a map is a list of
`{"key": ..., "value": ...}`, which keeps every entry; times are ISO-like text. No row is ever a Python object.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

from amp.errors import SchemaError

__all__ = ['has_nul', 'hex_text', 'is_bytes', 'is_list', 'is_text', 'json_text', 'plain']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = 'pa.Array[Any]'

_QUOTE = pa.scalar('"')
_ESCAPES = {chr(n): f'\\u{n:04x}' for n in range(1, 32)} | {'\n': '\\n', '\r': '\\r', '\t': '\\t'}


def json_text(column: Any) -> Column:
    """One JSON text for each value of `column`, null where it is null. Raises SchemaError for what JSON cannot hold."""
    kind = column.type
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return json_text(plain(column))
    if pt.is_map(kind):
        return json_text(column.cast(pa.list_(pa.struct([('key', kind.key_type), ('value', kind.item_type)]))))
    if pt.is_struct(kind):
        return _object(column)
    if is_list(kind):
        return _list(column)
    return _scalar(column)


def is_list(kind: pa.DataType) -> bool:
    """True for lists of every make."""
    return bool(
        pt.is_list(kind)
        or pt.is_large_list(kind)
        or pt.is_fixed_size_list(kind)
        or pt.is_list_view(kind)
        or pt.is_large_list_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """True for text of every make."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """True for bytes of every make."""
    return bool(
        pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind)
    )


def plain(column: Any) -> Column:
    """The column without dictionary or run-end encoding."""
    decoded: Column = column
    if pt.is_dictionary(column.type):
        decoded = column.dictionary_decode()
    elif pt.is_run_end_encoded(column.type):
        decoded = pc.run_end_decode(column)
    return decoded


def has_nul(column: Column) -> bool:
    """True when a text of the column (`string` or `large_string`) holds the character NUL."""
    data = _data(column, 'i' if pt.is_string(column.type) else 'q')
    return data is not None and b'\x00' in data.to_pybytes()


def hex_text(column: Column) -> Column:
    """`0x` and two hex digits a byte."""
    bytes_ = column.cast(pa.large_binary())
    offsets = pa.Array.from_buffers(pa.int64(), len(bytes_) + 1, [None, bytes_.buffers()[1]], offset=bytes_.offset)
    data = _data(bytes_, 'q')
    digits = data.to_pybytes().hex().encode() if data is not None else b''
    doubled = pc.multiply(pc.subtract(offsets, offsets[0]), 2)
    texts = pa.Array.from_buffers(
        pa.large_string(), len(bytes_), [None, doubled.buffers()[1], pa.py_buffer(digits)]
    ).cast(pa.string())
    return _null_where(column, _joined('0x', texts))


def _scalar(column: Column) -> Column:
    kind = column.type
    if is_bytes(kind):
        return _quoted(hex_text(column))
    if is_text(kind):
        return _escaped(column.cast(pa.string()))
    if pt.is_floating(kind):
        wide = column.cast(pa.float64()) if pt.is_float16(kind) else column
        texts = wide.cast(pa.string())
        numbers: Column = pc.if_else(pc.is_finite(wide), texts, _quoted(texts))
        return numbers
    if pt.is_duration(kind):
        return column.cast(pa.int64()).cast(pa.string())
    texts = column.cast(pa.string())
    return texts if pt.is_integer(kind) or pt.is_decimal(kind) or pt.is_boolean(kind) else _quoted(texts)


def _escaped(column: Column) -> Column:
    if has_nul(column):
        raise SchemaError('a text holds the character NUL, which JSON in a database cannot hold')
    texts = pc.replace_substring(pc.replace_substring(column, '\\', '\\\\'), '"', '\\"')
    if pc.any(pc.match_substring_regex(texts, '[\x01-\x1f]')) == pa.scalar(True):
        for character, escape in _ESCAPES.items():
            texts = pc.replace_substring(texts, character, escape)
    return _quoted(texts)


def _object(column: Any) -> Column:
    names = [field.name for field in column.type]
    if len(set(names)) < len(names):
        raise SchemaError(f'a struct has two fields of one name: {", ".join(names)}')
    parts: list[Any] = ['{']
    for number, (name, values) in enumerate(zip(names, column.flatten(), strict=True)):
        key = json.dumps(name, ensure_ascii=False)
        parts += [f'{"," if number else ""}{key}:', pc.fill_null(json_text(values), 'null')]
    if len(parts) == 1:
        parts.append(pa.repeat(pa.scalar(''), len(column)))
    return _null_where(column, _joined(*parts, '}'))


def _list(column: Any) -> Column:
    lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    texts = pc.fill_null(json_text(column.flatten()), 'null')
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ',')
    return _null_where(column, _joined('[', joined, ']'))


def _quoted(texts: Column) -> Column:
    return _joined(_QUOTE, texts, _QUOTE)


def _joined(*parts: Any) -> Column:
    texts: Column = pc.binary_join_element_wise(*parts, '')
    return texts


def _null_where(column: Column, texts: Column) -> Column:
    masked: Column = pc.if_else(pc.is_valid(column), texts, None) if column.null_count else texts
    return masked


def _data(column: Column, code: Literal['i', 'q']) -> pa.Buffer | None:
    """The bytes that the values of a column with offsets take up."""
    _, offsets, data = column.buffers()
    if data is None or offsets is None or not len(column):
        return None
    ends = memoryview(offsets).cast('B').cast(code)
    first, last = ends[column.offset], ends[column.offset + len(column)]
    return data.slice(first, last - first)
