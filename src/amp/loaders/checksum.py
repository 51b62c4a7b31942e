"""A checksum of rows that does not depend on their order, and counts each of them.

Every row becomes 64 bits, made of the values alone: how an array is sliced, chunked, offset or encoded does not
matter, nor what lies under a null. The checksum is the sum of those bits modulo 2^64, with the number of rows: it can
be added up over batches in any order, and a row that is there twice counts twice. It finds accidents, not attacks.

Values are compared as values of one Arrow type, so `conform` first casts the columns of one side to the types of the
other. Texts and bytes of any width count alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from amp.errors import SchemaError
from amp.loaders.list_views import without_views

__all__ = ['Checksum', 'Words', 'checksum', 'conform', 'row_hashes']

Words: TypeAlias = npt.NDArray[np.uint64]

# The stubs know arrays of one type at a time.
_Array: TypeAlias = Any
pc: Any = pyarrow.compute

_ROWS = 65_536  # rows hashed at a time: what lies beside them stays small
_LITTLE = np.dtype('<u8')
_GOLDEN = 0x9E3779B97F4A7C15
_NULL = 0xD6E8FEB86659FD93
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of any number of rows; `a + b` is that of both together."""

    rows: int = 0
    value: int = 0

    def __add__(self, other: Checksum) -> Checksum:
        return Checksum(self.rows + other.rows, (self.value + other.value) & _MASK)

    def __str__(self) -> str:
        return f'{self.value:016x}/{self.rows}'


def checksum(data: pa.RecordBatch | pa.Table | Iterable[pa.RecordBatch]) -> Checksum:
    """The checksum of a batch, a table, or a reader's batches. Raises SchemaError for a type that has no values."""
    if isinstance(data, pa.RecordBatch):
        batches: Iterable[pa.RecordBatch] = [data]
    else:
        batches = data.to_batches() if isinstance(data, pa.Table) else data
    total = Checksum()
    for batch in batches:
        hashes = row_hashes(batch)
        total += Checksum(len(hashes), int(hashes.sum(dtype=np.uint64)))
    return total


def row_hashes(batch: pa.RecordBatch) -> Words:
    """64 bits for each row of `batch`, by its columns in their order; their names do not count."""
    parts = [_rows(batch.slice(at, _ROWS)) for at in range(0, batch.num_rows, _ROWS)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema`, by name, cast to its types wherever all values allow it; else as they are.

    A column that cannot be cast stays, so that its values differ from those that they are compared with. Raises
    SchemaError for a column that is not there.
    """
    columns = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            raise SchemaError(f'there is no column {field.name!r} to compare', hint=f'columns: {batch.schema.names}')
        columns.append(_cast(batch.column(index), field.type))
    fields = [pa.field(f.name, column.type) for f, column in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _cast(column: _Array, kind: pa.DataType) -> _Array:
    if column.type.equals(kind) or (_is_bytes(column.type) and _is_bytes(kind)):
        return column
    try:
        return without_views(column).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return column


def _rows(batch: pa.RecordBatch) -> Words:
    total = np.zeros(batch.num_rows, np.uint64)
    for column in batch.columns:
        total = _mix(total * _word(_GOLDEN) + _values(column))
    return total


def _values(array: _Array) -> Words:
    """64 bits for each value, nulls included."""
    array = _decoded(array)
    if array.null_count == len(array):
        return np.full(len(array), _NULL, np.uint64)
    kind = array.type
    if pa.types.is_struct(kind):
        hashes = _of_struct(array)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        hashes = _of_list(array)
    elif pa.types.is_fixed_size_list(kind):
        hashes = _of_fixed_list(array)
    elif pa.types.is_large_binary(kind):
        hashes = _of_bytes(array)
    elif pa.types.is_fixed_size_binary(kind):
        hashes = _of_rows_of_bytes(_raw(array, kind.byte_width).reshape(len(array), -1))
    else:
        hashes = _of_number(array)
    if array.null_count:
        hashes = np.where(_valid(array), hashes, _word(_NULL))
    return hashes


def _decoded(array: _Array) -> _Array:
    """Without what is only another way to store the same values."""
    if isinstance(array, pa.ExtensionArray):
        return _decoded(array.storage)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _decoded(array.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return _decoded(pc.run_end_decode(array))
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return without_views(array)
    if _is_bytes(kind) and not pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.large_binary())
    return array


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return pa.types.is_fixed_size_binary(kind) or any(test(kind) for test in tests)


def _of_number(array: _Array) -> Words:
    kind = array.type
    if pa.types.is_boolean(kind):
        return _mix(array.fill_null(False).cast(pa.uint8()).to_numpy().astype(np.uint64) + _word(1))
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind)):
        raise SchemaError(f'values of type {kind} cannot be compared')
    width = kind.bit_width
    raw = _raw(array, width // 8)
    if pa.types.is_floating(kind):
        numbers = raw.view(f'<f{width // 8}')
        with np.errstate(invalid='ignore'):  # under a null lie any bits, signals among them
            numbers = numbers.astype(np.float64) + 0.0
        # One zero and one NaN: which of them it is is not part of the value.
        words = np.where(np.isnan(numbers), np.nan, numbers).view(_LITTLE)
    elif width <= 64:
        signed = not pa.types.is_unsigned_integer(kind)
        words = raw.view(f'<{"i" if signed else "u"}{width // 8}').astype(np.int64 if signed else np.uint64)
        words = words.view(np.uint64)
    else:
        return _of_rows_of_bytes(raw.reshape(len(array), -1))
    return _mix(words + _word(1))


def _of_rows_of_bytes(rows: npt.NDArray[np.uint8]) -> Words:
    """Values of one width, given as a matrix of bytes."""
    count, width = rows.shape
    words = -(-width // 8)
    if width % 8:
        padded = np.zeros((count, words * 8), np.uint8)
        padded[:, :width] = rows
        rows = padded
    total = np.zeros(count, np.uint64)
    if words:
        matrix = rows.reshape(count, -1).view(_LITTLE)
        for position in range(words):
            total += _mix(matrix[:, position] + _word((position + 1) * _GOLDEN))
    return _mix(total + _word((width + 1) * _NULL))


def _of_bytes(array: _Array) -> Words:
    """Values of any width: the sum of their eight-byte words, each mixed with its place."""
    offsets = _offsets(array)
    lengths = np.diff(offsets)
    values = _bytes_of(array.buffers()[2])[offsets[0] : offsets[-1]]
    if len(lengths) and (lengths == lengths[0]).all():
        return _of_rows_of_bytes(values.reshape(len(lengths), int(lengths[0])))
    counts = -(-lengths // 8)
    if (lengths % 8).any():
        padded = np.zeros(int(counts.sum()) * 8, np.uint8)
        shift = _starts(counts) * 8 - (offsets[:-1] - offsets[0])
        padded[np.arange(len(values)) + np.repeat(shift, lengths)] = values
        values = padded
    total = _sum_by_place(values.view(_LITTLE), counts)
    return _mix(total + (lengths.astype(np.uint64) + _word(1)) * _word(_NULL))


def _of_list(array: _Array) -> Words:
    offsets = _offsets(array)
    items = array.keys if pa.types.is_map(array.type) else array.values
    first, length = int(offsets[0]), int(offsets[-1] - offsets[0])
    hashes = _values(items.slice(first, length))
    if pa.types.is_map(array.type):
        hashes = _mix(hashes * _word(_GOLDEN) + _values(array.items.slice(first, length)))
    return _of_items(hashes, np.diff(offsets))


def _of_fixed_list(array: _Array) -> Words:
    size = array.type.list_size
    hashes = _values(array.values.slice(array.offset * size, len(array) * size))
    return _of_items(hashes, np.full(len(array), size, np.int64))


def _of_items(hashes: Words, counts: npt.NDArray[np.int64]) -> Words:
    total = _sum_by_place(hashes, counts)
    return _mix(total + (counts.astype(np.uint64) + _word(1)) * _word(_NULL))


def _of_struct(array: _Array) -> Words:
    total = np.zeros(len(array), np.uint64)
    for index in range(array.type.num_fields):
        total = _mix(total * _word(_GOLDEN) + _values(array.field(index)))
    return _mix(total + _word(_GOLDEN))


def _sum_by_place(words: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> Words:
    """For each of the runs of `counts` words: the sum of them, each mixed with its place in the run."""
    total = np.zeros(len(counts), np.uint64)
    filled = counts > 0
    if filled.any():
        starts = _starts(counts)
        places = np.arange(len(words), dtype=np.int64) - np.repeat(starts, counts) + 1
        mixed = _mix(words + places.astype(np.uint64) * _word(_GOLDEN))
        total[filled] = np.add.reduceat(mixed, starts[filled])
    return total


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.cumsum(counts) - counts


def _mix(words: Words) -> Words:
    """A bijection in which every bit moves every other (the finaliser of SplitMix64)."""
    mixed = words ^ (words >> _word(30))
    mixed *= _word(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> _word(27)
    mixed *= _word(0x94D049BB133111EB)
    mixed ^= mixed >> _word(31)
    return cast('Words', mixed)


def _word(number: int) -> np.uint64:
    return np.uint64(number & _MASK)


def _offsets(array: _Array) -> npt.NDArray[np.int64]:
    """Where the values of a list or of bytes begin and end, for this slice of them."""
    kind = array.type
    wide = pa.types.is_large_list(kind) or pa.types.is_large_binary(kind)
    raw = _bytes_of(array.buffers()[1]).view('<i8' if wide else '<i4')
    return raw[array.offset : array.offset + len(array) + 1].astype(np.int64)


def _raw(array: _Array, width: int) -> npt.NDArray[np.uint8]:
    """The bytes of values of `width` bytes each."""
    return _bytes_of(array.buffers()[1])[array.offset * width : (array.offset + len(array)) * width]


def _bytes_of(buffer: Any) -> npt.NDArray[np.uint8]:
    return np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.zeros(0, np.uint8)


def _valid(array: _Array) -> npt.NDArray[np.bool_]:
    return cast('npt.NDArray[np.bool_]', pc.is_valid(array).to_numpy(zero_copy_only=False))
