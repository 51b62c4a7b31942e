"""A label file as a table: CSV or Parquet in, typed columns out, and nothing of what the file says lost.

A CSV is read as text first. A column becomes something else only when its text could be written again from it: `007`,
`1.10` beside `1.1`, `12345678901234567890` and mixed columns stay text. Columns of addresses become bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from amp.config.hex_text import Column, decode_hex, fixed_width
from amp.errors import ConfigError

__all__ = ['hex_width', 'is_address_name', 'plain', 'read_label']

pc: Any = pyarrow.compute

_INFERRED: tuple[tuple[str, pa.DataType], ...] = (
    (r'^(0|-?[1-9][0-9]*)$', pa.int64()),
    (r'^(true|false)$', pa.bool_()),
    (r'^(True|False)$', pa.bool_()),
    (r'^\d{4}-\d{2}-\d{2}$', pa.date32()),
    (r'^\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}(\.\d{1,6})?$', pa.timestamp('us')),
    (r'^\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$', pa.timestamp('us', 'UTC')),
)
_DECIMAL = r'^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.[0-9]+)$'
_BLOCK_BYTES = 16 * 1024**2


def read_label(path: Path, binary_columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a CSV (also `.tsv` and compressed) or Parquet file, one chunk a column.

    Columns of hex whose name contains `address`, and those of `binary_columns`, become fixed-size binary; an empty
    `binary_columns` leaves all as they are. Raises FileNotFoundError, and ConfigError, which for a value that is not
    hex names row and column.
    """
    try:
        with path.open('rb') as file:
            is_parquet = file.read(4) == b'PAR1'
        table = _read_parquet(path) if is_parquet else _read_csv(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f'the label file {path} cannot be read: {error.strerror or error}') from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ConfigError(f'the label file {path} does not parse: {error}') from error
    _check_names(table.column_names, binary_columns or (), path)
    columns = [_typed(table, name, binary_columns, path, is_parquet) for name in table.column_names]
    return pa.table(columns, names=table.column_names)


def is_address_name(name: str) -> bool:
    """True for the name of a column that holds addresses, as far as a name can say."""
    return 'address' in name.casefold()


def plain(values: Column) -> Column:
    """The same values without dictionary, view or large offsets, in one piece."""
    if isinstance(values, pa.ChunkedArray):
        # With one chunk, combining would copy it all the same.
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    kind: Any = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return values.cast(pa.binary())
    return values


def hex_width(texts: Column) -> int | None:
    """How many bytes most values have that are meant as hex: with `0x`, or 40 or 64 digits. None when none is.

    Values that are hex decide, if there are any, and the longer ones where two widths are as frequent: of an address and
    what is left of one, the address is right.
    """
    lengths = pc.binary_length(texts)
    prefixed = pc.starts_with(texts, '0x', ignore_case=True)
    bare = pc.and_(pc.is_in(lengths, pa.array([40, 64], pa.int32())), _matches(texts, '^[0-9a-fA-F]*$'))
    digits = pc.if_else(prefixed, pc.subtract(lengths, 2), lengths)
    for meant in (pc.or_(bare, _matches(texts, '^0[xX]([0-9a-fA-F]{2})+$')), pc.or_(bare, prefixed)):
        found = digits.filter(meant).drop_null()
        if len(found):
            counted = np.bincount(found.to_numpy())
            return int(len(counted) - 1 - counted[::-1].argmax()) // 2 or None
    return None


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read()


def _read_csv(path: Path) -> pa.Table:
    from pyarrow import csv

    read = csv.ReadOptions(block_size=_BLOCK_BYTES)
    parse = csv.ParseOptions(delimiter='\t' if '.tsv' in path.suffixes else ',', newlines_in_values=True)
    with csv.open_csv(path, read, parse, csv.ConvertOptions()) as reader:
        names = reader.schema.names
    # `NA` and `null` are symbols of tokens; only an empty field says nothing.
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[''], strings_can_be_null=True
    )
    return csv.read_csv(path, read, parse, convert)


def _check_names(names: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f'the label file {path} has two columns {doubled[0]!r}')
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ConfigError(f'the label file {path} has no column {unknown[0]!r}', hint=f'it has: {", ".join(names)}')


def _typed(table: pa.Table, name: str, binary_columns: Sequence[str] | None, path: Path, is_parquet: bool) -> Column:
    values = plain(table[name])
    is_named = name in (binary_columns or ())
    wants_none = binary_columns is not None and not len(binary_columns)
    if is_named or (is_address_name(name) and not wants_none):
        found = _as_bytes(values, name, is_named, path)
        if found is not None:
            return found
    return values if is_parquet or not pa.types.is_string(values.type) else _inferred(values)


def _as_bytes(values: Column, name: str, is_named: bool, path: Path) -> Column | None:
    if pa.types.is_binary(values.type):
        return _uniform(values)
    if not pa.types.is_string(values.type):
        return _refuse(values, name, path) if is_named else None
    width = hex_width(values)
    if width is None and is_named:
        width = _first_length(values) // 2 or 20
    if width is None:
        return None
    decoded = decode_hex(values, width)
    bad = pc.and_(pc.is_valid(values), pc.is_null(decoded))
    at = pc.index(bad, True).as_py()
    if at >= 0:
        raise ConfigError(
            f'row {at + 1} of column {name!r} in {path} is not hex of {width} bytes: {values[at].as_py()[:80]!r}',
            hint='correct the value, or say binary_columns=[] to keep every column as it is',
            row=at + 1,
            column=name,
        )
    return decoded


def _refuse(values: Column, name: str, path: Path) -> Column | None:
    if pa.types.is_fixed_size_binary(values.type):
        return None
    raise ConfigError(f'column {name!r} in {path} is {values.type}, so it is not hex')


def _uniform(values: Column) -> Column | None:
    lengths = pc.min_max(pc.binary_length(values)).as_py()
    width = lengths['min']
    return fixed_width(values, width) if width and width == lengths['max'] else None


def _first_length(texts: Column) -> int:
    present = texts.drop_null()
    return len(present[0].as_py()) if len(present) else 0


def _inferred(texts: Column) -> Column:
    if texts.null_count == len(texts):
        return texts
    for pattern, kind in _INFERRED:
        if pc.all(_matches(texts, pattern)).as_py():
            try:
                return texts.cast(kind)
            except pa.ArrowInvalid:
                # A number beyond 64 bits, a 30th of February: it stays the text that it is.
                return texts
    numbers = texts.cast(pa.float64()) if pc.all(_matches(texts, _DECIMAL)).as_py() else None
    return texts if numbers is None or not _says_the_same(texts, numbers) else numbers


def _says_the_same(texts: Column, numbers: Column) -> bool:
    """True when the decimal texts could be written again from the doubles. `1.10` can where all have two decimals."""
    has_point = pc.match_substring(texts, '.')
    shortest = pc.if_else(has_point, pc.utf8_rtrim(pc.utf8_rtrim(texts, '0'), '.'), texts)
    if not pc.all(pc.equal(shortest, numbers.cast(pa.string()))).as_py():
        return False
    decimals = pc.subtract(pc.utf8_length(texts), pc.find_substring(texts, '.'))
    is_uniform = pc.all(has_point).as_py() and pc.count_distinct(decimals).as_py() == 1
    return is_uniform or not pc.any(_matches(texts, r'\.[0-9]+0$')).as_py()


def _matches(texts: Column, pattern: str) -> Any:
    return pc.match_substring_regex(texts, pattern)
