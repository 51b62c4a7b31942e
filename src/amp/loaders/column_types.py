"""A column in another form than the destination's own for its type, because the user asked for it, by name.

`text`: the value as text: numbers in decimal digits, bytes as `0x` and hex digits, nested values as JSON.
`decimal`: text that holds whole numbers, and decimal256, land as the destination's widest number (PostgreSQL:
numeric(78,0), which holds every uint256). `split`: a timestamp with nanoseconds becomes its microseconds and a column `<name>_ns` with the
0 to 999 nanoseconds below, for destinations that keep microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

from amp.errors import ConfigError, SchemaError
from amp.loaders.arrow_types import AS, kind_of
from amp.loaders.json_text import hex_text, is_bytes, is_text, json_text, plain

__all__ = ['FORMS', 'ColumnTypes']

FORMS = ('text', 'decimal', 'split')

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = 'pa.Array[Any]'


class ColumnTypes:
    """A step of a load: `wishes` names columns and the form that each shall have. Raises ConfigError."""

    def __init__(self, wishes: Mapping[str, str]) -> None:
        for column, form in wishes.items():
            if form not in FORMS:
                raise ConfigError(f'column_types of {column!r}: there is no form {form!r}', hint=f'forms: {FORMS}')
        self._wishes = dict(wishes)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema with the wished forms. Raises SchemaError for a column that is not there, or has no such form."""
        missing = [name for name in self._wishes if schema.get_field_index(name) < 0]
        if missing:
            raise SchemaError(
                f'column_types names the column {missing[0]!r}, which the rows do not have',
                hint=f'columns: {", ".join(schema.names)}',
                column=missing[0],
            )
        fields: list[pa.Field[Any]] = []
        for field in schema:
            fields += self._fields(field)
        return pa.schema(fields, metadata=cast('Any', schema.metadata))

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with the wished forms."""
        columns: list[Column] = []
        for field, column in zip(batch.schema, batch.columns, strict=True):
            form = self._wishes.get(field.name)
            columns += [column] if form in {None, 'decimal'} else _text(column) if form == 'text' else _split(column)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema(batch.schema))

    def _fields(self, field: pa.Field[Any]) -> list[pa.Field[Any]]:
        form = self._wishes.get(field.name)
        if form is None:
            return [field]
        kind: Any = plain_type(field.type)
        if form == 'text':
            return [pa.field(field.name, pa.string(), field.nullable)]
        if form == 'decimal' and (is_text(kind) or pt.is_integer(kind) or pt.is_decimal(kind)):
            is_wide = pt.is_decimal256(kind) and kind.scale == 0
            return [field.with_metadata({AS: form.encode()}) if is_text(kind) or is_wide else field]
        if form == 'split' and pt.is_timestamp(kind) and kind.unit == 'ns':
            return [
                pa.field(field.name, pa.timestamp('us', kind.tz), field.nullable),
                pa.field(f'{field.name}_ns', pa.int16(), field.nullable),
            ]
        raise SchemaError(
            f'column {field.name!r} of type {field.type} cannot land as {form}',
            hint='decimal is for text and numbers, split for timestamps with nanoseconds',
            column=field.name,
        )


def plain_type(kind: Any) -> pa.DataType:
    """The type of the values, whatever encodes them."""
    plain_kind: pa.DataType = kind.value_type if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind) else kind
    return plain_kind


def _text(column: Column) -> list[Column]:
    values = plain(column)
    if is_text(values.type):
        return [values.cast(pa.string())]
    if is_bytes(values.type):
        return [hex_text(values)]
    if kind_of(values.type) in {'list', 'struct', 'map'}:
        return [json_text(values)]
    return [values.cast(pa.string())]


def _split(column: Column) -> list[Column]:
    values = plain(column)
    numbers = values.cast(pa.int64())
    whole = np.floor_divide(pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False), 1000)
    micros = pc.if_else(values.is_valid(), pa.array(whole), None)
    below = pc.subtract(numbers, pc.multiply(micros, 1000))
    return [micros.cast(pa.timestamp('us', values.type.tz)), below.cast(pa.int16())]
