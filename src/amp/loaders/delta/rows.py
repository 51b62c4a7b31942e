"""Arrow rows on their way into a Delta table: in the types it holds, under its columns, the newest of each key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from deltalake import ColumnProperties, DeltaTable, WriterProperties

from amp.errors import SchemaError
from amp.loaders.arrow_types import Landing, type_table
from amp.loaders.deltalog.columns import arrow_schema, refuse_twins
from amp.loaders.json_text import is_bytes, is_text

__all__ = ['Fitting', 'check_partitions', 'newest_by_key', 'table_schema', 'writer_properties']


Column: TypeAlias = 'pa.Array[Any]'

# The stubs know arrays of one type at a time.
_nulls: Any = pa.nulls
_equal: Any = pc.equal

_ROW = '_amp_row'
_NULL_FOLDER = '__HIVE_DEFAULT_PARTITION__'


def table_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of a table that is to hold rows of `schema`, all nullable. Raises SchemaError, by column."""
    refuse_twins(schema)
    landings = type_table('deltalake').landings(schema)
    return pa.schema([pa.field(landing.name, landing.wire) for landing in landings])


def check_partitions(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Whether the log, which has partition values as text, keeps those of `columns` exactly. Raises SchemaError."""
    for name in columns:
        kind = schema.field(name).type
        if is_bytes(kind):
            raise _no_partition(name, kind, "as hex, encode(column, 'hex') in the query")
        if pt.is_nested(kind):
            raise _no_partition(name, kind, 'one of its values, taken out in the query')
        # delta-rs writes -0.01 as 0.-1, which nobody can read again.
        if pt.is_decimal(kind) and kind.scale > 0:
            raise _no_partition(name, kind, 'its whole part, cast in the query')
    if columns and len(columns) == len(schema):
        raise SchemaError(
            'partition_by names every column of the rows, and nothing is left for the files',
            hint='leave out the columns that the rows are not looked up by',
        )


def _no_partition(name: str, kind: Any, instead: str) -> SchemaError:
    return SchemaError(
        f'a Delta table cannot be partitioned by column {name!r}: values of type {kind} do not come back as they were',
        hint=f'partition by text, a whole number or a date: for example {instead}',
        column=name,
    )


def writer_properties(schema: pa.Schema) -> WriterProperties:
    """How the Parquet files of a table of `schema` are written: as delta-rs does, without an index of pages over bytes.

    Hashes and addresses lie in every page from the first to the last, so that index would prune nothing.
    """
    by_file = ColumnProperties(statistics_enabled='CHUNK')
    # The compression is said because delta-rs would take properties that leave it out for those of plain files.
    return WriterProperties(
        compression='SNAPPY', column_properties={f.name: by_file for f in schema if is_bytes(f.type)}
    )


class Fitting:
    """How rows of one schema become rows of a table that may have more columns, or wider ones.

    Raises SchemaError for a type that cannot go; a value that does not fit raises it when it comes.
    """

    def __init__(self, schema: pa.Schema, table: DeltaTable, name: str) -> None:
        into = arrow_schema(table)
        partitions = table.metadata().partition_columns
        check_partitions(into, partitions)
        self.schema = into
        self._texts = [column for column in partitions if is_text(into.field(column).type)]
        self.rows = 0
        landings = {landing.name.casefold(): landing for landing in type_table('deltalake').landings(schema)}
        positions = {column.casefold(): i for i, column in enumerate(schema.names)}
        own = {column.casefold() for column in into.names}
        homeless = [column for column in schema.names if column.casefold() not in own]
        if homeless:
            # Somebody has put another table in its place since it was prepared.
            raise SchemaError(f'the table {name!r} has no column {homeless[0]!r} any more', column=homeless[0])
        self._columns = [
            (field, positions.get(field.name.casefold(), -1), landings.get(field.name.casefold())) for field in into
        ]
        for field, _, landing in self._columns:
            if landing is not None:
                _refuse_unless_castable(landing, field, name)

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as the table has them."""
        self.rows += batch.num_rows
        columns = [
            _nulls(batch.num_rows, field.type) if landing is None else _cast(landing, batch.column(position), field)
            for field, position, landing in self._columns
        ]
        landed = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        for name in self._texts:
            # delta-rs tells the partitions of one write by their folders, and null has this one.
            if pc.any(_equal(landed.column(name), _NULL_FOLDER)) == pa.scalar(True):
                raise SchemaError(
                    f'column {name!r} has the text {_NULL_FOLDER!r}, which as a partition is null',
                    hint='nothing of the unit was kept; leave the row out, or load into a table without partitions',
                    column=name,
                )
        return landed


def newest_by_key(rows: pa.Table, keys: Sequence[str], table: str) -> pa.Table:
    """The last row of each key, in the order of the rows. Raises SchemaError for a key that is missing, null or floating-point."""
    for key in keys:
        if key not in rows.schema.names:
            listed = ', '.join(rows.schema.names)
            raise SchemaError(f'the key column {key!r} is not in the rows for {table!r}', hint=f'columns: {listed}')
        if rows[key].null_count:
            raise SchemaError(
                f'{rows[key].null_count} rows for {table!r} have no value in the key column {key!r}',
                hint='a row without a key replaces nothing: leave it out in the query, or append',
                column=key,
            )
        if pt.is_floating(rows.schema.field(key).type):
            raise SchemaError(
                f'the column {key!r} of type {rows.schema.field(key).type} cannot be a key of {table!r}: NaN and -0.0 '
                'are equal in one place and not in the next',
                hint='choose a key of whole numbers, decimals, text or bytes, or cast it in the query',
                column=key,
            )
    numbered = rows.select(list(keys)).append_column(_ROW, pa.array(np.arange(rows.num_rows)))
    try:
        last = numbered.group_by(list(keys)).aggregate([(_ROW, 'max')])[f'{_ROW}_max']
    except pa.ArrowNotImplementedError as error:
        raise SchemaError(f'the key columns {", ".join(keys)} of {table!r} are of types that cannot be keys') from error
    return rows if len(last) == rows.num_rows else rows.take(np.sort(last.to_numpy()))


def _cast(landing: Landing, column: Column, field: pa.Field[Any]) -> Column:
    values = landing.land(column)
    if values.type.equals(field.type):
        return values
    try:
        return values.cast(field.type)
    except pa.ArrowInvalid as error:
        raise SchemaError(
            f'column {field.name!r} has a value that its type in the table, {field.type}, cannot hold: {error}',
            hint='nothing of the unit was kept; load into a table of another name, or cast in the query',
            column=field.name,
        ) from error


def _refuse_unless_castable(landing: Landing, field: pa.Field[Any], table: str) -> None:
    same_kind = is_text(landing.wire) == is_text(field.type) and pt.is_nested(landing.wire) == pt.is_nested(field.type)
    try:
        if same_kind:
            _nulls(0, landing.wire).cast(field.type)
            return
    except pa.ArrowNotImplementedError:
        pass
    raise SchemaError(
        f'column {field.name!r} of the table {table!r} is {field.type}, and {landing.wire} cannot become that',
        hint='load into a table of another name, or cast in the query',
        column=field.name,
    )
