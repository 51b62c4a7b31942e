"""Making Iceberg tables and widening them: how columns land, how tables are partitioned, what new ones are like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError

from amp.errors import ConfigError, LoadError, SchemaError
from amp.loaders.arrow_types import Landing, type_table
from amp.loaders.iceberg.catalog import CatalogTables, explained
from amp.loaders.iceberg.commit import NO_RETRIES
from amp.loaders.iceberg.files import top_columns
from amp.loaders.stamps import TX_ID

__all__ = ['add_columns', 'landings', 'make_table', 'missing_columns', 'partition_fields']

_PROPERTIES = {
    # One small manifest a commit is too many to read after a while.
    'commit.manifest-merge.enabled': 'true',
    'write.metadata.delete-after-commit.enabled': 'true',
    'write.metadata.previous-versions-max': '20',
    f'write.metadata.metrics.column.{TX_ID}': 'full',
}
_MOST_TRIES = 20
_TRANSFORMS = ('identity', 'year', 'month', 'day', 'hour', 'void')
_SIZED = re.compile(r'(?:bucket|truncate)\[(\d{1,10})\]', re.ASCII)
_EXAMPLE = "['network', 'day(timestamp)', 'bucket[16](address)']"


def landings(schema: pa.Schema) -> list[Landing]:
    """How each column lands. Raises SchemaError, by column and type, for what Iceberg cannot hold exactly."""
    names = schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or '' in names:
        raise SchemaError(f'two columns are named {twice!r}' if twice is not None else 'a column has no name')
    return [_landing(f) for f in schema]


def _landing(f: pa.Field[Any]) -> Landing:
    hint = f"land it as text with column_types={{{f.name!r}: 'text'}}, or cast in the query"
    try:
        landing = type_table('iceberg').landing(f)
    except SchemaError as error:
        if error.context.get('column') is not None:
            raise
        raise SchemaError(f'column {f.name!r} of type {f.type}: {error.message}', hint=hint, column=f.name) from error
    if _has_empty_struct(landing.wire):
        raise SchemaError(f'Iceberg has no type for column {f.name!r} of type {f.type}', hint=hint, column=f.name)
    return landing


def _has_empty_struct(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(f.type) for f in kind)
    if pa.types.is_list(kind):
        return _has_empty_struct(kind.value_type)
    return bool(pa.types.is_map(kind)) and _has_empty_struct(kind.item_type)


def partition_fields(given: Any) -> list[tuple[str, str]]:
    """Column and transform of each partition, as pyiceberg writes transforms: `day`, `bucket[16]`. Raises ConfigError."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ConfigError(
            f'partition_spec is a list of partitions, not {given!r}', hint=f'for example partition_spec={_EXAMPLE}'
        )
    found = [_partition_field(partition) for partition in given]
    columns = [column for column, _ in found]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise ConfigError(
            f'partition_spec names the column {twice!r} twice', hint='leave one of the two: a column partitions once'
        )
    return found


def _partition_field(given: object) -> tuple[str, str]:
    if isinstance(given, Mapping):
        if set(given) - {'column', 'transform'} or 'column' not in given:
            raise ConfigError(f'a partition has a column and a transform, not {dict(given)!r}')
        column, transform = given['column'], given.get('transform', 'identity')
    else:
        column, transform = given, 'identity'
        if isinstance(given, str) and given.endswith(')') and '(' in given:
            transform, _, column = given[:-1].partition('(')
    if not isinstance(column, str) or not column:
        raise ConfigError(
            f'a partition of partition_spec names a column, not {given!r}', hint=f'for example {_EXAMPLE}'
        )
    if not isinstance(transform, str) or not _is_transform(transform):
        raise ConfigError(
            f'partition_spec: {transform!r} of column {column!r} is no transform of Iceberg',
            hint=f'{", ".join(_TRANSFORMS)}, bucket[16] and truncate[10] are, with a number above 0: {_EXAMPLE}',
        )
    return column, transform


def _is_transform(text: str) -> bool:
    sized = _SIZED.fullmatch(text)
    return text in _TRANSFORMS if sized is None else 0 < int(sized.group(1)) < 2**31


def make_table(
    tables: CatalogTables,
    name: str,
    wire: pa.Schema,
    partitions: Sequence[tuple[str, str]],
    properties: Mapping[str, str],
    records: Mapping[str, str],
) -> bool:
    """Make a table with everything that it begins with, at once; False when it is there by now. Raises ConfigError."""
    for column, _ in partitions:
        if column not in wire.names:
            raise ConfigError(f'partition_spec names the column {column!r}', hint=f'columns: {", ".join(wire.names)}')
    with explained(tables.shown):
        try:
            transaction = tables.catalog.create_table_transaction(
                (*tables.namespace, name),
                wire,
                location=tables.location(name),
                properties={**_PROPERTIES, **properties, **NO_RETRIES, **records},
            )
            with transaction, transaction.update_spec() as spec:
                for column, transform in partitions:
                    _add_partition(spec, column, transform)
        except (TableAlreadyExistsError, CommitFailedException):
            return False
    return True


def _add_partition(spec: Any, column: str, transform: str) -> None:
    try:
        spec.add_field(column, transform)
    except ValueError as error:
        raise ConfigError(f'partition_spec: {transform!r} of column {column!r} is not possible: {error}') from error


def missing_columns(tables: CatalogTables, name: str, wanted: Sequence[str]) -> set[str]:
    """Which of these columns the table lacks."""
    return set(wanted) - set(top_columns(tables.get(name)))


def add_columns(tables: CatalogTables, name: str, fields: Sequence[pa.Field[Any]]) -> None:
    """Add nullable columns that are not there yet, also while others do the same. Raises LoadError."""
    for _ in range(_MOST_TRIES):
        missing = missing_columns(tables, name, [f.name for f in fields])
        if not missing:
            return
        table = tables.get(name)
        try:
            with explained(tables.shown), table.update_schema() as update:
                update.union_by_name(pa.schema([f for f in fields if f.name in missing]))
        except CommitFailedException:
            continue
    raise LoadError(f'the columns of {name!r} are changed by too many at once', hint='try again', table=name)
