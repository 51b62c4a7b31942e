"""Reading tables of Snowflake back: the rows that count, as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from amp.errors import LoadError
from amp.loaders.snowflake.types import name_in, name_out, quoted, read_schema, selected
from amp.loaders.snowflake.unit import MARK, MARKED_AT
from amp.loaders.sql import in_runs
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID

if TYPE_CHECKING:
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__ = ['present_columns', 'read_rows', 'users_columns', 'visible']


def present_columns(loader: SnowflakeLoader, table_name: str) -> dict[str, str]:
    """The columns of a table. Raises LoadError when there is none."""
    columns = loader.columns(table_name)
    if not columns:
        raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
    return columns


def users_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Those that are not amp's own."""
    own = {*STAMP_COLUMNS, MARK, MARKED_AT}
    return {name: kind for name, kind in columns.items() if name_out(name) not in own}


def visible(
    loader: SnowflakeLoader,
    table_name: str,
    columns: Mapping[str, str],
    where: Mapping[str, tuple[int, int]] | None = None,
) -> str:
    """A WHERE that leaves out rows off the chain, rows of units that are not done, and what `where` does not want."""
    kept = [f'{quoted(name)} BETWEEN {low:d} AND {high:d}' for name, (low, high) in (where or {}).items()]
    if name_in(MARK) in columns:
        kept.append(f'{quoted(MARK)} IS NULL')
    hidden = loader.uncommitted(table_name) if name_in(TX_ID) in columns else []
    if hidden:
        kept.append(f'({quoted(TX_ID)} IS NULL OR NOT {in_runs(quoted(TX_ID), hidden)})')
    return f' WHERE {" AND ".join(kept)}' if kept else ''


def read_rows(loader: SnowflakeLoader, table_name: str, columns: Mapping[str, str], where: str) -> pa.RecordBatchReader:
    """The rows, as they are fetched."""
    schema = read_schema(columns)

    def batches() -> Iterator[pa.RecordBatch]:
        listed = ', '.join(selected(name, kind) for name, kind in columns.items())
        with loader.explained(table_name):
            for table in loader.own.tables(f'SELECT {listed} FROM {quoted(table_name)}{where}'):
                yield from table.rename_columns(schema.names).cast(schema).to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())
