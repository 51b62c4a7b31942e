"""Arrow columns as text, a whole column at a time: what the JSON, CSV and table outputs are made of.

Bytes become `0x` hex, decimals and 64-bit integers keep every digit, timestamps are ISO 8601 (with `Z` when the column
has a zone), nested values are JSON. Nothing here makes a Python object of a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

__all__ = ['Text', 'csv_header', 'csv_lines', 'display_text', 'joined', 'json_lines', 'plain_text']

pc: Any = pyarrow.compute  # whose stubs know few of these calls

Column = Any  # a pyarrow array; the stubs cannot say of which type
Text = Any  # a pyarrow array of large_string

_LARGE = pa.large_string()
_SHORT_ESCAPES = (('\\', '\\\\'), ('"', '\\"'), ('\n', '\\n'), ('\r', '\\r'), ('\t', '\\t'))
_OTHER_CONTROLS = [chr(code) for code in range(32) if chr(code) not in '\n\r\t']


def json_lines(batch: pa.RecordBatch) -> Text:
    """One JSON object a row. Decimals are JSON strings (a number would lose digits in most readers), NULL is null."""
    return _json_object(batch.columns, batch.schema.names, batch.num_rows)


def csv_lines(batch: pa.RecordBatch) -> Text:
    """One CSV line a row, without the line end. NULL is an empty field, an empty text is `""`.

    A NULL that is alone in its row is `""` too: readers skip an empty line.
    """
    fields = [_csv_field(plain_text(column)) for column in batch.columns]
    if len(fields) == 1:
        return pc.if_else(pc.equal(fields[0], ''), '""', fields[0])
    return _join(fields, ',') if fields else _repeat('', batch.num_rows)


def csv_header(names: Sequence[str]) -> str:
    """The first line of a CSV file, without the line end."""
    return ','.join('"' + name.replace('"', '""') + '"' if re.search(r'[",\r\n]|^$', name) else name for name in names)


def display_text(column: Column, most: int = 44) -> list[str]:
    """A short column for a screen: NULL is empty, long hex loses its middle, long text its end and its line breaks."""
    text = pc.fill_null(plain_text(column), '')
    text = pc.replace_substring_regex(text, r'^(0x[0-9a-f]{8})[0-9a-f]{7,}([0-9a-f]{6})$', r'\1…\2')
    text = pc.replace_substring_regex(text, r'[\x00-\x1f\x7f]+', ' ')
    too_long = pc.greater(pc.utf8_length(text), most)
    cut = joined(pc.utf8_slice_codeunits(text, 0, most - 1), '…')
    return [str(value) for value in pc.if_else(too_long, cut, text)]


def plain_text(column: Column) -> Text:
    """Every value as text; NULL stays NULL."""
    column = _plain(column)
    kind = column.type
    if _is_binary(kind):
        return _hex(column)
    if pa.types.is_timestamp(kind):
        return _iso(column)
    if pa.types.is_nested(kind):
        return _keep_nulls(column, _json(column))
    return column.cast(_LARGE)


def _plain(column: Column) -> Column:
    """Without dictionaries and extension types, which are only another way to store the same values."""
    if isinstance(column, pa.ExtensionArray):
        return _plain(column.storage)
    if pa.types.is_dictionary(column.type):
        return _plain(column.cast(column.type.value_type))
    return column


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _hex(column: Column) -> Text:
    """`0x` and lower-case hex: the bytes of the whole column are converted in one call."""
    binary = pc.fill_null(column.cast(pa.large_binary()), b'')
    _, offsets, values = binary.buffers()
    every = pa.Array.from_buffers(pa.int64(), len(binary) + 1, [None, offsets], offset=binary.offset)
    if len(binary) == 0 or values is None:
        digits = _repeat('', len(binary))
    else:
        first, last = every[0], every[-1]
        raw = memoryview(values)[int(str(first)) : int(str(last))].hex().encode()
        doubled = pc.multiply(pc.subtract(every, first), 2)
        digits = pa.Array.from_buffers(_LARGE, len(binary), [None, doubled.buffers()[1], pa.py_buffer(raw)])
    return _keep_nulls(column, joined('0x', digits))


def _iso(column: Column) -> Text:
    kind = column.type
    text = pc.replace_substring(column.cast(pa.timestamp(kind.unit)).cast(_LARGE), ' ', 'T', max_replacements=1)
    text = pc.replace_substring_regex(text, r'\.0+$', '')
    return joined(text, 'Z') if kind.tz else text


def _csv_field(text: Text) -> Text:
    special = pc.or_(pc.match_substring_regex(text, r'[",\r\n]'), pc.equal(text, ''))
    if _any(special):
        quoted = joined('"', pc.replace_substring(text, '"', '""'), '"')
        text = pc.if_else(special, quoted, text)
    return pc.fill_null(text, '')


def _json(column: Column) -> Text:
    """JSON values; NULL is the text `null`."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        text = _json_object(column.flatten(), names, len(column))
    elif pa.types.is_map(kind):
        text = _json_list(column.cast(pa.list_(pa.struct([('key', kind.key_type), ('value', kind.item_type)]))))
    elif pa.types.is_nested(kind):
        text = _json_list(column)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        text = column.cast(_LARGE)
    elif pa.types.is_floating(kind):
        text = column.cast(_LARGE)
        text = pc.if_else(pc.is_finite(column), text, joined('"', text, '"'))
    else:
        text = joined('"', _escape(plain_text(column)), '"')
    return pc.fill_null(_keep_nulls(column, text), 'null')


def _json_list(column: Column) -> Text:
    kind = column.type
    if not pa.types.is_large_list(kind):
        column = column.cast(pa.large_list(kind.value_field))
    full = pc.if_else(pc.is_null(column), pa.scalar([], column.type), column) if column.null_count else column
    items = _json(full.flatten())
    lengths = pc.fill_null(pc.list_value_length(full), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    inside = pc.binary_join(pa.LargeListArray.from_arrays(offsets, items), pa.scalar(',', _LARGE))
    return joined('[', inside, ']')


def _json_object(columns: Sequence[Column], names: Sequence[str], rows: int) -> Text:
    if not columns:
        return _repeat('{}', rows)
    parts: list[Column | str] = []
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        key = '"' + _escape_one(name) + '":'
        parts += [('{' if index == 0 else ',') + key, _json(column)]
    return joined(*parts, '}')


def _escape(text: Text) -> Text:
    for plain, escaped in _SHORT_ESCAPES:
        text = pc.replace_substring(text, plain, escaped)
    if _any(pc.match_substring_regex(text, r'[\x00-\x1f]')):
        for control in _OTHER_CONTROLS:
            text = pc.replace_substring(text, control, f'\\u{ord(control):04x}')
    return text


def _escape_one(text: str) -> str:
    return str(_escape(pa.array([text], _LARGE))[0])


def _any(mask: Column) -> bool:
    return str(pc.any(mask, min_count=0)).lower() == 'true'


def _keep_nulls(column: Column, text: Text) -> Text:
    return pc.if_else(pc.is_valid(column), text, pa.scalar(None, _LARGE)) if column.null_count else text


def _repeat(text: str, count: int) -> Text:
    return pa.repeat(pa.scalar(text, _LARGE), count)


def joined(*parts: Column | str) -> Text:
    """The texts of several columns, or a text for every row, put together row by row."""
    return _join(parts, '')


def _join(parts: Sequence[Column | str], separator: str) -> Text:
    texts = [pa.scalar(part, _LARGE) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar(separator, _LARGE))
