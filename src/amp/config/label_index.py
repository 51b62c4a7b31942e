"""Finding the rows of a label by key: built once, asked for every batch.

A key column is compared in one *form*: bytes, hex digits, whole numbers, text, or the type that both sides have. What
cannot be said in that form is null, and null matches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from amp.config.bytes_table import BytesTable, Places, read_ahead
from amp.config.hex_text import Column, as_digits, decode_hex, encode_hex, fixed_width
from amp.config.label_file import hex_width, plain
from amp.errors import ConfigError

__all__ = ['Form', 'LabelIndex', 'form_of']

pc: Any = pyarrow.compute
_MOST_NAMED = 5
_ADDRESS = 20
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Form:
    """How one key column is compared. `name`: bytes, digits (both with `width`), number, text, binary or same."""

    name: str
    width: int = 0

    def of(self, values: Column) -> Column:
        """The values in this form; null for one that cannot be said in it, and so equals nothing."""
        kind = values.type
        match self.name:
            case 'bytes':
                return decode_hex(values, self.width) if _is_text(kind) else fixed_width(values, self.width)
            case 'digits':
                is_text = _is_text(kind)
                return as_digits(values, 2 * self.width) if is_text else encode_hex(fixed_width(values, self.width))
            case 'number':
                return _as_int64(values)
            case 'text':
                return values.cast(pa.string())
            case 'binary':
                return values.cast(pa.binary())
        return values


def form_of(label: Column, kind: pa.DataType, where: str) -> Form:
    """How label keys and stream keys of type `kind` are compared. Raises ConfigError, saying `where`, for no way."""
    own = label.type
    if pa.types.is_floating(own) or pa.types.is_floating(kind):
        raise ConfigError(f'{where}: a floating-point number is no key ({own} in the label, {kind} in the stream)')
    form = _form_of_text(label, kind, where) if _is_text(own) else _form_of_others(label, kind, where)
    if form is None:
        raise ConfigError(
            f'{where}: {own} in the label cannot be compared with {kind} in the stream',
            hint='CAST the column in the query',
        )
    return form


def _form_of_others(label: Column, kind: pa.DataType, where: str) -> Form | None:
    own = label.type
    if pa.types.is_fixed_size_binary(own) and (_is_text(kind) or _is_bytes(kind)):
        width = own.byte_width
        if pa.types.is_fixed_size_binary(kind) and kind.byte_width != width:
            raise ConfigError(f'{where}: the label has {width} bytes and the stream {kind.byte_width}: never equal')
        return Form('digits' if _is_text(kind) else 'bytes', width)
    if pa.types.is_binary(own):
        return Form('binary') if _is_bytes(kind) else _digits_of(label) if _is_text(kind) else None
    if pa.types.is_integer(own) and pa.types.is_integer(kind):
        return Form('same' if own == kind else 'number')
    if _is_whole(own) and (_is_whole(kind) or _is_text(kind)):
        return Form('text')
    return Form('same') if own == kind and not pa.types.is_nested(own) else None


def _form_of_text(label: Column, kind: pa.DataType, where: str) -> Form | None:
    width = hex_width(label)
    if _is_text(kind):
        # Addresses come in any case: when all of the label's keys are hex of an address's or hash's length, so compare.
        is_hex = width in {20, 32} and not _not_hex(label, width)
        return Form('digits', width) if is_hex and width else Form('text')
    if _is_whole(kind):
        return Form('text')
    if not _is_bytes(kind):
        return None
    if label.null_count == len(label):
        return Form('bytes', _ADDRESS)
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
    at = pc.index(_is_not_hex(label, width), True).as_py() if width else pc.index(pc.is_valid(label), True).as_py()
    if at >= 0 or width is None:
        raise ConfigError(
            f'{where}: the stream has {kind}, and row {at + 1} of the label is not hex of that: '
            f'{label[at].as_py()[:80]!r}',
            row=at + 1,
        )
    return Form('bytes', width)


def _digits_of(label: Column) -> Form | None:
    """Bytes of no fixed size, to be compared with text: possible when all are of one length."""
    lengths = pc.unique(pc.binary_length(label.drop_null())).to_pylist()
    return Form('digits', lengths[0] if lengths else _ADDRESS) if len(lengths) < 2 else None


class LabelIndex:
    """The rows of a label by the key of some of its columns. Immutable: threads share it."""

    def __init__(self, name: str, table: pa.Table, columns: Sequence[str], forms: Sequence[Form], many: bool) -> None:
        """Raises ConfigError, which names the keys, when a key is there twice and not `many`."""
        self._forms = tuple(forms)
        keys = [form.of(plain(table[column])) for column, form in zip(columns, forms, strict=True)]
        self._columns = [_Distinct(values) for values in keys]
        self._pairs: list[Column] = []
        codes = self._codes(keys, learn=True)
        rows = np.flatnonzero(codes >= 0)
        found = codes[rows]
        order = np.argsort(found, kind='stable')
        counts = np.bincount(found)
        is_unique = not len(counts) or counts.max() == 1
        if not is_unique and not many:
            raise _doubled(name, table, columns, rows, found, counts)
        self._starts = None if is_unique else np.r_[0, np.cumsum(counts)].astype(np.int64)
        # In the order of the codes, so that a code is a row; the last one is null, for keys that are not there.
        self._nowhere = len(rows)
        in_order: Column = pa.array(np.append(rows[order], 0), mask=np.arange(len(rows) + 1) == len(rows))
        ordered = table.take(in_order).combine_chunks()
        self._values = {column: plain(ordered[column]) for column in ordered.column_names}
        # Arrow takes rows several times faster from what cannot be null.
        self._solid = {
            column: _without_validity(values)
            for column, values in self._values.items()
            if _is_flat(values.type) and values.null_count == 1
        }

    def find(self, keys: Sequence[Column], left: bool) -> tuple[Column | None, Column]:
        """Which rows of the stream stay (None: each, once), in order, and for each its place in the label."""
        codes = self._codes([form.of(plain(values)) for form, values in zip(self._forms, keys, strict=True)])
        if self._starts is not None:
            return self._find_many(codes, self._starts, left)
        if left:
            return None, pa.array(np.where(codes >= 0, codes, self._nowhere))
        rows = np.flatnonzero(codes >= 0)
        if len(rows) == len(codes):
            return None, pa.array(codes)
        return pa.array(rows), pa.array(codes.take(rows))

    def take(self, columns: Sequence[str], places: Column, left: bool) -> list[Column]:
        """These columns of the label at the places that `find` gave; null where a row has no label."""
        validity = pc.not_equal(places, self._nowhere).buffers()[1] if left else None
        taken = []
        for column in columns:
            solid = self._solid.get(column)
            if solid is not None:
                for memory in filter(None, solid.buffers()):
                    read_ahead(np.frombuffer(memory, np.uint8), len(places))
            values = (self._values[column] if solid is None else solid).take(places)
            if solid is not None and validity is not None:
                values = pa.Array.from_buffers(values.type, len(values), [validity, *values.buffers()[1:]])
            taken.append(values)
        return taken

    def _find_many(self, codes: Places, starts: npt.NDArray[np.int64], left: bool) -> tuple[Column, Column]:
        present = codes >= 0
        firsts = np.where(present, starts[codes], self._nowhere)
        matches = np.where(present, starts[codes + 1] - firsts, 1 if left else 0)
        rows = np.repeat(np.arange(len(codes)), matches)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(matches) - matches, matches)
        return pa.array(rows), pa.array(firsts[rows] + nth)

    def _codes(self, keys: Sequence[Column], learn: bool = False) -> Places:
        """One number for each key, -1 where the label has none such. Several columns are folded two by two."""
        codes = self._columns[0].find(keys[0])
        for number, (column, values) in enumerate(zip(self._columns[1:], keys[1:], strict=True)):
            found = column.find(values)
            known = (codes >= 0) & (found >= 0)
            pairs = np.where(known, codes.astype(np.int64) * len(column) + found, -1)
            if learn:
                self._pairs.append(pa.array(pairs[known]).unique())
            codes = _places(pa.array(pairs), self._pairs[number])
        return codes


class _Distinct:
    """The different values of one key column, and which of them another column has."""

    def __init__(self, values: Column) -> None:
        distinct = values.drop_null().unique()
        self._table = BytesTable(distinct) if pa.types.is_fixed_size_binary(values.type) else None
        self._values = distinct if self._table is None else self._table.values

    def __len__(self) -> int:
        return len(self._values)

    def find(self, values: Column) -> Places:
        return _places(values, self._values) if self._table is None else self._table.find(values)


def _places(values: Column, among: Column) -> Places:
    """For each value its place among different ones; -1 where it has none, and for null."""
    places: Places = pc.index_in(values, value_set=among, skip_nulls=True).fill_null(-1).to_numpy()
    return places


def _doubled(
    name: str,
    table: pa.Table,
    columns: Sequence[str],
    rows: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
) -> ConfigError:
    doubled = np.flatnonzero(counts > 1)
    shown = []
    for code in doubled[:_MOST_NAMED]:
        at = rows[codes == code]
        values = (table[column][int(at[0])].as_py() for column in columns)
        key = ', '.join('0x' + value.hex() if isinstance(value, bytes) else repr(value) for value in values)
        shown.append(f'{key} (rows {", ".join(str(row + 1) for row in at[:_MOST_NAMED])})')
    more = f', and {len(doubled) - _MOST_NAMED} more' if len(doubled) > _MOST_NAMED else ''
    return ConfigError(
        f'the label {name!r} has keys more than once in {", ".join(columns)}: {"; ".join(shown)}{more}',
        hint='join by further columns too, correct the file, or say many=True to have a row for each',
        label=name,
    )


def _is_not_hex(label: Column, width: int) -> Any:
    return pc.and_(pc.is_valid(label), pc.is_null(decode_hex(label, width)))


def _not_hex(label: Column, width: int | None) -> bool:
    return width is None or bool(pc.any(_is_not_hex(label, width)).as_py())


def _as_int64(values: Column) -> Column:
    if not pa.types.is_uint64(values.type):
        return values.cast(pa.int64())
    fits = pc.less_equal(values, pa.scalar(_INT64_MAX, pa.uint64()))
    return pc.if_else(fits, values, pa.scalar(None, pa.uint64())).cast(pa.int64())


def _is_flat(kind: pa.DataType) -> bool:
    """True when all there is of a value stands in the buffers of its own array."""
    is_bytes = pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return is_bytes or pa.types.is_primitive(kind) or pa.types.is_decimal(kind)


def _without_validity(values: Column) -> Column:
    return pa.Array.from_buffers(values.type, len(values), [None, *values.buffers()[1:]], 0, values.offset)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_fixed_size_binary,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def _is_whole(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and getattr(kind, 'scale', None) == 0)
