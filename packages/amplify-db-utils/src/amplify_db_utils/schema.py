"""Types: from a Pydantic model to Arrow, from declared to stored, and what a table may become."""

from __future__ import annotations

import base64
import types
from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Any, Union, get_args, get_origin

import pyarrow as pa
from deltalake import Field, Schema
from pydantic import BaseModel

from amplify_db_utils._arrow import Kind
from amplify_db_utils.errors import SchemaConflict

_SCALARS: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp('us', 'UTC'),
    date: pa.date32(),
    bytes: pa.binary(),
}
_STORED: dict[pa.DataType, pa.DataType] = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}
_SAME = {
    *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
    *(pa.string(), pa.binary(), pa.date32()),
}
_DECLARED = 'amplify.declared'


def to_arrow_schema(schema: Any) -> pa.Schema:
    """The Arrow schema of a Pydantic model; an Arrow schema is returned as it is.

    Optional fields and fields with a default are nullable. Raises TypeError for an annotation without a column type.
    """
    if isinstance(schema, pa.Schema):
        return schema
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        raise TypeError(f'a schema is a Pydantic model class or a pyarrow.Schema, not {schema!r}')
    fields = []
    for name, info in schema.model_fields.items():
        kind, optional = _arrow_type(info.annotation, name)
        fields.append(pa.field(name, kind, nullable=optional or not info.is_required()))
    return pa.schema(fields)


def _arrow_type(annotation: Any, name: str) -> tuple[pa.DataType, bool]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _arrow_type(args[0], name)
    if origin in {Union, types.UnionType}:
        others = [arg for arg in args if arg is not type(None)]
        if len(others) == 1:
            return _arrow_type(others[0], name)[0], len(others) < len(args)
    if annotation is dict or origin is dict:
        return pa.large_string(), False
    if origin is list and _SCALARS.get(args[0]) is not None:
        return pa.list_(_SCALARS[args[0]]), False
    if isinstance(annotation, type) and annotation in _SCALARS:
        return _SCALARS[annotation], False
    known = ', '.join(kind.__name__ for kind in _SCALARS)
    raise TypeError(
        f'Unsupported annotation of {name!r}: {annotation!r}; use {known}, dict, list of one of them, Optional'
    )


def stored_type(declared: Kind) -> pa.DataType:
    """The type in the log and in the files: the declared one, or a wider one that holds every value of it exactly.

    Raises TypeError for a type that has none.
    """
    kind: pa.DataType = declared
    if pa.types.is_dictionary(kind):
        kind = declared.value_type
    if kind in _SAME:
        return kind
    return _STORED.get(kind) or _stored_family(kind) or _stored_nested(kind)


def _stored_family(kind: Kind) -> pa.DataType | None:
    stored: pa.DataType | None = None
    if pa.types.is_timestamp(kind):
        stored = pa.int64() if kind.unit == 'ns' else pa.timestamp('us', None if kind.tz is None else 'UTC')
    elif pa.types.is_time32(kind):
        stored = pa.int32()
    elif pa.types.is_time64(kind) or pa.types.is_duration(kind):
        stored = pa.int64()
    elif pa.types.is_decimal(kind) and kind.scale >= 0:
        stored = pa.decimal128(kind.precision, kind.scale) if kind.precision <= 38 else pa.string()
    elif pa.types.is_fixed_size_binary(kind):
        stored = pa.binary()
    return stored


def _stored_nested(kind: Kind) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.field('element', stored_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(part.name, stored_type(part.type), part.nullable) for part in kind])
    if pa.types.is_map(kind):
        return pa.map_(stored_type(kind.key_type), stored_type(kind.item_type))
    raise TypeError(f'no column can be of type {kind}')


def stored_schema(declared: pa.Schema) -> pa.Schema:
    """The schema of the files, and of the log, for a declared schema."""
    return pa.schema([pa.field(part.name, stored_type(part.type), part.nullable) for part in declared])


def log_fields(declared: pa.Schema) -> list[Field]:
    """The log's fields for a declared schema. A type that is stored as another is kept in the field's metadata."""
    fields = []
    for part in declared:
        plain = pa.field(part.name, stored_type(part.type), part.nullable)
        if part.type != plain.type or part.metadata or pa.types.is_nested(part.type):
            packed = base64.b64encode(pa.schema([part]).serialize().to_pybytes())
            plain = plain.with_metadata({_DECLARED: packed})
        fields.append(plain)
    return list(Schema.from_arrow(pa.schema(fields)).fields)


def declared_schema(log_schema: pa.Schema) -> pa.Schema:
    """The declared schema behind the log's one: the inverse of `log_fields`."""
    fields = []
    for part in log_schema:
        packed = (part.metadata or {}).get(_DECLARED.encode())
        if packed is None:
            fields.append(pa.field(part.name, part.type, part.nullable))
        else:
            declared = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(packed))).field(0)
            fields.append(declared.with_nullable(part.nullable))
    return pa.schema(fields)


def check_new(schema: pa.Schema, partition_by: Sequence[str]) -> None:
    """Raise SchemaConflict or TypeError where a schema cannot be a table's."""
    names = [name.casefold() for name in schema.names]
    doubled = sorted({name for name in schema.names if names.count(name.casefold()) > 1})
    if doubled:
        raise SchemaConflict(f'columns must differ by more than case: {doubled}')
    cut = [name for name in schema.names if '\x00' in name]
    if cut:  # Arrow hands names to others as C strings
        raise SchemaConflict(f'a column name cannot hold the character NUL: {cut}')
    absent = [key for key in partition_by if key not in schema.names]
    if absent:
        raise SchemaConflict(
            f'partition_by names {absent}, not present in the schema; partition keys are ordinary columns'
        )
    if len(set(partition_by)) != len(partition_by):
        raise SchemaConflict(f'partition_by names a column twice: {list(partition_by)}')
    if len(partition_by) == len(schema):
        raise SchemaConflict('a table needs at least one column that is no partition key; partition_by takes every one')
    stored = stored_schema(schema)
    for key in partition_by:
        kind = stored.field(key).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise SchemaConflict(f'column {key!r} of type {schema.field(key).type} cannot be a partition key')


def additions(table: str, current: pa.Schema, wanted: pa.Schema) -> pa.Schema:
    """The columns that `wanted` adds to `current`. Raises SchemaConflict where it does anything else."""
    gone = [name for name in current.names if name not in wanted.names]
    if gone:
        raise SchemaConflict(
            f'table {table!r} has columns that the new schema lacks: {gone}; columns cannot be removed'
        )
    for part in current:
        new = wanted.field(part.name)
        if new.type != part.type:
            raise SchemaConflict(
                f'Cannot change type of column {part.name!r} of table {table!r}: it is {part.type}, not {new.type}'
            )
        if part.nullable and not new.nullable:
            raise SchemaConflict(f'column {part.name!r} of table {table!r} is nullable and cannot become required')
    added = [part for part in wanted if part.name not in current.names]
    required = [part.name for part in added if not part.nullable]
    if required:
        raise SchemaConflict(f'new columns of table {table!r} must be nullable, old rows have no value for {required}')
    return pa.schema(added)


def loosened(current: pa.Schema, wanted: pa.Schema) -> list[str]:
    """The required columns of `current` that `wanted` lets be null."""
    return [part.name for part in current if not part.nullable and wanted.field(part.name).nullable]
