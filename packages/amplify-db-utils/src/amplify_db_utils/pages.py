"""Checksums of the pages of Parquet files on a disk, for a reader that does not look at them itself.

Every page carries a CRC-32 in its header (where its writer put one). A header is a struct in Thrift's compact protocol,
of which three numbers matter here.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from amplify_db_utils.errors import DamagedData

_SIZE, _CRC = 3, 4  # fields of a page's header
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_FIXED = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8}  # bytes after the lead
_INTEGERS = {4, 5, 6}
_MOST_KNOWN = 100_000  # files


@dataclass
class _File:
    """What is known of a file as it was when it had that size and time."""

    stamp: tuple[int, int, int]
    schema: pa.Schema
    rows: int
    checked: set[str] = field(default_factory=set)


class Checks:
    """The files that were looked at, and which of their columns are whole. A file that changes is looked at anew."""

    def __init__(self) -> None:
        self._known: dict[str, _File] = {}

    def plain(self, paths: Sequence[str], sizes: Sequence[int], rows: Sequence[int | None], columns: pa.Schema) -> bool:
        """Whether every file has the columns with exactly these types; their pages are checked then.

        `sizes` in bytes and numbers of `rows` are those of the log. Raises DamagedData, OSError or pyarrow's errors.
        """
        todo: list[tuple[str, _File, list[str]]] = []
        for path, size, count in zip(paths, sizes, rows, strict=True):
            file = self._file(path, size)
            if count is not None and file.rows != count:
                raise DamagedData(f'{path!r} was changed: it has {file.rows} rows, in the log {count}')
            names = [name for name in columns.names if name not in file.checked]
            if not names:
                continue
            if any(file.schema.get_field_index(name) < 0 for name in names):
                return False
            if any(file.schema.field(name).type != columns.field(name).type for name in names):
                return False
            todo.append((path, file, names))
        if todo:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
                list(pool.map(lambda one: _check(*one), todo))
        return True

    def _file(self, path: str, size: int) -> _File:
        status = os.stat(path)  # noqa: PTH116 - of very many files
        if status.st_size != size:
            raise DamagedData(f'{path!r} was changed: its size is {status.st_size}, in the log {size}')
        stamp = status.st_size, status.st_mtime_ns, status.st_ino
        known = self._known.get(path)
        if known is None or known.stamp != stamp:
            metadata = pq.read_metadata(path)
            known = _File(stamp, metadata.schema.to_arrow_schema(), metadata.num_rows)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[path] = known
        return known


def _check(path: str, file: _File, names: Sequence[str]) -> None:
    metadata = pq.read_metadata(path)
    with open(path, 'rb') as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
        for start, end in _chunks(metadata, set(names)):
            with memoryview(data) as whole, whole[start:end] as chunk:
                try:
                    _check_chunk(chunk)
                except IndexError as error:
                    raise DamagedData(f'{path!r} is damaged: a page has no header') from error
                except ValueError as error:
                    raise DamagedData(f'{path!r} is damaged: {error}') from error
    file.checked.update(names)


def _chunks(metadata: pq.FileMetaData, names: set[str]) -> Iterable[tuple[int, int]]:
    places = [at for at in range(metadata.num_columns) if metadata.schema.column(at).path in names]
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        for at in places:
            column = described.column(at)
            start = column.data_page_offset
            if column.dictionary_page_offset:
                start = min(start, column.dictionary_page_offset)
            yield start, start + column.total_compressed_size


def _check_chunk(chunk: memoryview) -> None:
    at = 0
    while at < len(chunk):
        fields, begin = _header(chunk, at)
        at = begin + fields[_SIZE]
        if fields[_SIZE] < 0 or at > len(chunk):
            raise ValueError('a page goes beyond its column')
        with chunk[begin:at] as page:
            if _CRC in fields and zlib.crc32(page) != fields[_CRC] & 0xFFFFFFFF:
                raise ValueError('a page differs from its checksum')


def _header(data: memoryview, at: int) -> tuple[dict[int, int], int]:
    """The whole numbers of the struct that begins at `at`, and where it ends."""
    numbers: dict[int, int] = {}
    number = 0
    while True:
        lead = data[at]
        at += 1
        kind = lead & 15
        if kind == _STOP:
            if _SIZE not in numbers:
                raise ValueError('a page has no size')
            return numbers, at
        if lead >> 4:
            number += lead >> 4
        else:
            number, at = _whole(data, at)
        if kind in _INTEGERS:
            numbers[number], at = _whole(data, at)
        else:
            at = _skip(data, at, kind)


def _whole(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _skip(data: memoryview, at: int, kind: int) -> int:
    if kind in _FIXED:
        return at + _FIXED[kind]
    if kind in _INTEGERS:
        return _varint(data, at)[1]
    if kind == _BINARY:
        size, at = _varint(data, at)
        return at + size
    if kind in {_LIST, _SET}:
        return _skip_list(data, at)
    if kind == _STRUCT:
        return _skip_struct(data, at)
    raise ValueError(f'a page has a header with {kind} in it')


def _skip_list(data: memoryview, at: int) -> int:
    lead = data[at]
    at += 1
    size = lead >> 4
    if size == 15:
        size, at = _varint(data, at)
    for _ in range(size):
        at = at + 1 if lead & 15 in {_TRUE, _FALSE} else _skip(data, at, lead & 15)
    return at


def _skip_struct(data: memoryview, at: int) -> int:
    while True:
        lead = data[at]
        at += 1
        if lead & 15 == _STOP:
            return at
        if not lead >> 4:
            at = _varint(data, at)[1]
        at = _skip(data, at, lead & 15)
