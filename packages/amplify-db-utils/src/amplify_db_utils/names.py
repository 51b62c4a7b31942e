"""Names on disk: a table's directory, a partition's directory, and a partition value as text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from amplify_db_utils._arrow import Column, joined

NULL_DIRECTORY = '__HIVE_DEFAULT_PARTITION__'
_TAKEN = {'_registry', '_delta_log'}
_LONGEST = 180  # bytes of a name; file systems stop at 255 and a hash or a suffix must fit


def table_directory(table: Any) -> str:
    """The directory of a table under the root: the name itself where it is harmless, `~XX` bytes where it is not.

    Percent signs are not used: the log's library decodes them where it should not.
    Raises ValueError for what is no name at all.
    """
    if not isinstance(table, str) or not table:
        raise ValueError(f'a table name is a text of at least one character, not {table!r}')
    if any('\ud800' <= char <= '\udfff' for char in table):
        raise ValueError(f'a table name holds whole characters, and {table!r} half a surrogate pair')
    first_escaped = table[0] in '._' and (table[0] == '.' or table in _TAKEN)
    parts = [
        char if (char.isalnum() or char in ' _-.') and not (first_escaped and place == 0) else _bytes(char)
        for place, char in enumerate(table)
    ]
    name = ''.join(parts)
    if name[-1] in ' .':
        name = name[:-1] + _bytes(name[-1])
    if len(name.encode()) > _LONGEST:
        raise ValueError(f'a table name of {len(table)} characters is too long for a directory')
    return name


def table_name(directory: str) -> str:
    """The table whose directory that is: the inverse of `table_directory`."""
    return unquote(directory.replace('%', '%25').replace('~', '%'))


def is_table(name: str) -> bool:
    """Whether a name is that of a table, and not of a directory that the store never makes."""
    try:
        return table_name(table_directory(name)) == name
    except ValueError:
        return False


def _bytes(char: str) -> str:
    return ''.join(f'~{byte:02X}' for byte in char.encode())


def partition_directory(keys: Sequence[str], texts: Sequence[str | None]) -> str:
    """The hive directory `key=value/...` of one partition. The log has the values; the directory is for people."""
    return '/'.join(f'{_segment(key)}={_segment(text)}' for key, text in zip(keys, texts, strict=True))


def _segment(text: str | None) -> str:
    if text is None:
        return NULL_DIRECTORY
    encoded = quote(text, safe='')
    if len(encoded) <= _LONGEST:
        return encoded
    return encoded[:100].rsplit('%', 1)[0] + '~' + hashlib.sha256(text.encode()).hexdigest()[:32]


def partition_texts(column: Any) -> list[str | None]:
    """Partition values of a stored type as the log writes them: UTF-8 text, null for null."""
    kind = column.type
    if pa.types.is_string(kind):
        # The log reads an empty text as null, so emptiness needs a text of its own, and that text an escape.
        escaped = pc.if_else(pc.starts_with(column, '\\'), joined('\\', column), column)
        column = pc.if_else(pc.equal(column, pa.scalar('')), '\\0', escaped)
    elif pa.types.is_timestamp(kind):
        column = pc.cast(column.cast(pa.timestamp('us')), pa.string())
    else:
        column = pc.cast(column, pa.string())
    texts: list[str | None] = column.to_pylist()
    return texts


def partition_values(column: Any) -> Column:
    """Typed partition values as the log gives them, with the escapes of `partition_texts` undone."""
    if not pa.types.is_string(column.type):
        return cast('Column', column)
    plain = pc.if_else(pc.starts_with(column, '\\\\'), pc.utf8_slice_codeunits(column, 1), column)
    return cast('Column', pc.if_else(pc.equal(column, pa.scalar('\\0')), '', plain))


def parse_hive(path: str, keys: Sequence[str]) -> list[str | None]:
    """The partition texts in a path relative to its table, in the order of `keys`. Raises ValueError for another layout."""
    segments = path.split('/')[:-1]
    found = {unquote(key): value for key, _, value in (segment.partition('=') for segment in segments)}
    if len(segments) != len(keys) or set(found) != set(keys):
        raise ValueError(f'{path!r} is not in directories named after {list(keys)}')
    return [None if found[key] == NULL_DIRECTORY else unquote(found[key]) for key in keys]
