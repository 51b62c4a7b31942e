"""By which key a row is found in a key-value destination: literal text and values of columns, in one piece of bytes.

Bytes go in as they are, everything else as text. Where several columns make a key, text is escaped and bytes of no
fixed width are written in hex, so that two different rows never come to one key. A row that has no key column is named
by what wrote it: `<transaction id>:<row number>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

from amp.errors import ConfigError, SchemaError
from amp.loaders.json_text import hex_text, is_bytes, is_list, is_text, plain

__all__ = ['ROW', 'KeySpec', 'Numbering']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array. Its stubs know arrays of one type only."""

ROW = ''
"""Stands in the place of a column's name where the row is named by what wrote it."""

_PLACE = re.compile(r'\{([^{}]+)\}')
_SEPARATOR = ':'


@dataclass(frozen=True)
class Numbering:
    """The transaction id of a batch, and the number of its first row within that transaction."""

    tx_id: int
    first_row: int = 0


@dataclass(frozen=True)
class KeySpec:
    """What a key is made of: pairs (`text`, literal) and (`column`, name); the name ROW is the row's own number."""

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def of_columns(cls, names: Sequence[str]) -> KeySpec:
        """The values of columns, with colons between them."""
        parts: list[tuple[str, str]] = []
        for name in names:
            parts += [('text', _SEPARATOR), ('column', name)]
        return cls(tuple(parts[1:]))

    @classmethod
    def of_pattern(cls, pattern: str, table: str, columns: Sequence[str]) -> KeySpec:
        """Of text with `{column}` in it. `{table}` is the table's name, and `{id}` the row's own number where the rows
        have no column `id`. Raises ConfigError for a pattern that names no column.
        """
        parts: list[tuple[str, str]] = []
        for number, piece in enumerate(_PLACE.split(pattern)):
            if number % 2 == 0:
                parts += [('text', piece)] if piece else []
            elif piece == 'table' and piece not in columns:
                parts.append(('text', table))
            else:
                parts.append(('column', ROW if piece == 'id' and piece not in columns else piece))
        if not any(kind == 'column' for kind, _ in parts):
            raise ConfigError(
                f'key_pattern={pattern!r} gives every row the same key', hint='name a column in it: {block_num}'
            )
        return cls(tuple(parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns whose values are in the key."""
        return tuple(name for kind, name in self.parts if kind == 'column' and name != ROW)

    @property
    def is_numbered(self) -> bool:
        """True when rows are named by what wrote them, so that no two ever have one key."""
        return ('column', ROW) in self.parts

    @property
    def is_counted(self) -> bool:
        """True when the numbering of rows is all that is to be known for making their keys again."""
        return self.is_numbered and not self.columns

    def counted(self, rows: int, numbering: Numbering) -> Column:
        """The keys of so many rows, where they are counted."""
        return self._joined([_numbers(rows, numbering) if kind == 'column' else text for kind, text in self.parts])

    def check(self, schema: pa.Schema) -> None:
        """Raises SchemaError when a column is not there, or has no values that a key can be made of."""
        for name in self.columns:
            if name not in schema.names:
                raise SchemaError(
                    f'the key column {name!r} is not in the rows', hint=f'columns: {", ".join(schema.names)}'
                )
            kind: Any = schema.field(name).type
            if is_list(kind) or pt.is_struct(kind) or pt.is_map(kind) or pt.is_null(kind):
                raise SchemaError(f'the column {name!r} of type {kind} cannot be a key', column=name)

    def encode(self, batch: pa.RecordBatch, numbering: Numbering) -> Column:
        """The key of each row, as `binary`. Raises SchemaError for a null in a key column, by row."""
        several = len(self.columns) > 1
        pieces: list[Any] = []
        for kind, name in self.parts:
            if kind == 'text':
                pieces.append(name)
            elif name == ROW:
                pieces.append(_numbers(batch.num_rows, numbering))
            else:
                pieces.append(_piece(name, batch.column(name), several=several))
        return self._joined(pieces)

    @staticmethod
    def _joined(pieces: Sequence[Column | str]) -> Column:
        if len(pieces) == 1:
            return pieces[0]
        said = [pa.scalar(piece.encode(), pa.binary()) if isinstance(piece, str) else piece for piece in pieces]
        joined: Column = pc.binary_join_element_wise(*said, pa.scalar(b'', pa.binary()))
        return joined

    def key_of(self, value: Any, schema: pa.Schema) -> bytes:
        """The key of one row, from what a person says: the value of the key column, several as a tuple or a mapping.

        Text or bytes for a key of several parts is the whole key.
        """
        names = self.columns
        if self.is_numbered or (len(names) > 1 and isinstance(value, str | bytes)):
            return value.encode() if isinstance(value, str) else bytes(value)
        values = value if isinstance(value, Mapping) else dict(zip(names, _several(value, names), strict=True))
        try:
            row = pa.record_batch({name: pa.array([values[name]], _plain_type(schema, name)) for name in names})
        except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ConfigError(f'{value!r} is not a key of {", ".join(names)}: {error}') from error
        key: bytes = self.encode(row, Numbering(0))[0].as_py()
        return key


def _several(value: Any, names: Sequence[str]) -> Sequence[Any]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(values) != len(names):
        raise ConfigError(f'{value!r} is not a key: it is made of {", ".join(names)}')
    return values


def _plain_type(schema: pa.Schema, name: str) -> Any:
    kind: Any = schema.field(name).type
    return kind.value_type if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind) else kind


def _numbers(rows: int, numbering: Numbering) -> Column:
    counted = pa.array(np.arange(numbering.first_row, numbering.first_row + rows)).cast(pa.string())
    joined: Column = pc.binary_join_element_wise(f'{numbering.tx_id}:', counted, '')
    return joined.cast(pa.binary())


def _piece(name: str, column: Any, *, several: bool) -> Column:
    values = plain(column)
    if values.null_count:
        first = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise SchemaError(
            f'the key column {name!r} is null in {values.null_count} of {len(values)} rows, first in row {first}',
            hint='every row needs a key: leave such rows out in the query, or choose another key column',
            column=name,
        )
    if is_bytes(values.type):
        if several and not pt.is_fixed_size_binary(values.type):
            return hex_text(values).cast(pa.binary())
        return values.cast(pa.binary())
    texts = values.cast(pa.string())
    if several and is_text(values.type):
        texts = pc.replace_substring(pc.replace_substring(texts, '%', '%25'), _SEPARATOR, '%3A')
    return texts.cast(pa.binary())
