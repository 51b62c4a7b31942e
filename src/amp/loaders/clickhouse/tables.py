"""Tables of ClickHouse: made, looked at, and read so that unfinished units and replaced rows do not show."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from amp.errors import DestinationError, SchemaError
from amp.loaders.clickhouse.documents import DOCUMENTS
from amp.loaders.clickhouse.session import ACCESS_DENIED, Session, code_of, literal, quote
from amp.loaders.clickhouse.types import VERSION, Column, column_ddl
from amp.loaders.sql import in_runs
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.streaming.ledger import IdRun

__all__ = ['COMMITTED', 'ClickHouseTables', 'Table']

COMMITTED = '_committed'
"""What the name of a view has after that of its table."""

_BLOCKS = ('_block_num', 'block_num', 'block_number', 'number')
_VIEW_COMMENT = 'amp: the rows of finished units'
_KEYED_BY = 'newest row of each key: '
# Blocks as they come in make one file each, not two a column: less to wait for. Merges make them columns.
_SMALL_PART = 64 * 1024**2
_INDEX = '_amp_tx_id_range'

logger = logging.getLogger('amp.loaders.clickhouse')


@dataclass(frozen=True)
class Table:
    """A table as it is: its quoted name, its columns by name, engine and partition key."""

    name: str
    quoted: str
    columns: Mapping[str, Column]
    engine: str
    partition_key: str

    @property
    def users(self) -> list[Column]:
        """The columns that are not amp's own."""
        return [c for c in self.columns.values() if c.name not in {*STAMP_COLUMNS, VERSION}]

    @property
    def keys(self) -> list[str] | None:
        """The columns by which rows replace each other; None when they do not."""
        column = self.columns.get(VERSION)
        if column is None or not column.comment.startswith(_KEYED_BY):
            return None
        keys: list[str] = json.loads(column.comment.removeprefix(_KEYED_BY))
        return keys

    @property
    def swaps_parts(self) -> bool:
        """True when all rows of another table can become its own at one moment."""
        return self.engine.endswith('MergeTree') and not self.partition_key

    def rows(self, hidden: str) -> str:
        """A query for all columns of the rows that show; `hidden` is a condition on what does not."""
        shown = f'SELECT * FROM {self.quoted}' + (f' WHERE NOT ({hidden})' if TX_ID in self.columns and hidden else '')
        if self.keys is None:
            return shown
        listed = ', '.join(quote(key) for key in self.keys)
        return f'SELECT * FROM ({shown}) ORDER BY {quote(VERSION)} DESC LIMIT 1 BY {listed}'


class ClickHouseTables:
    """The tables of the database of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._database = session.config.database

    def quoted(self, name: str) -> str:
        """Database and table."""
        return quote(self._database, name)

    def find(self, name: str) -> Table | None:
        """The table as it is now; None when it is not there."""
        rows = self._session.run(
            'SELECT t.engine, t.partition_key, c.name, c.type, c.comment FROM system.columns AS c '
            'JOIN system.tables AS t ON t.database = c.database AND t.name = c.table '
            f'WHERE c.database = {literal(self._database)} AND c.table = {literal(name)} '
            f'AND t.database = {literal(self._database)} AND t.name = {literal(name)} '
            "AND c.default_kind NOT IN ('MATERIALIZED', 'ALIAS', 'EPHEMERAL') ORDER BY c.position"
        )
        if not rows:
            return None
        columns = {column: Column(column, kind, comment) for _, _, column, kind, comment in rows}
        return Table(name, self.quoted(name), columns, *rows[0][:2])

    def get(self, name: str) -> Table:
        """The table as it is now. Raises DestinationError when it is not there."""
        table = self.find(name)
        if table is None:
            raise DestinationError(f'the table {name!r} does not exist', table=name)
        return table

    def create(self, schema: pa.Schema, name: str) -> None:
        """Make a table for `schema`, ordered by block where there is one. Raises SchemaError."""
        self._session.do(create_statement(schema, self.quoted(name), durable=self._session.config.durable))

    def add_columns(self, fields: Sequence[pa.Field[Any]], name: str) -> None:
        """Add columns; rows that are there have null in them, or are of no unit."""
        for field in fields:
            column = column_ddl(field if field.name in STAMP_COLUMNS else field.with_nullable(True))
            self._session.do(f'ALTER TABLE {self.quoted(name)} ADD COLUMN IF NOT EXISTS {column}')
            if field.name == TX_ID:
                index = f'{_INDEX} {quote(TX_ID)} TYPE minmax GRANULARITY 1'
                self._session.do(f'ALTER TABLE {self.quoted(name)} ADD INDEX IF NOT EXISTS {index}')

    def key_by(self, table: Table, keys: Sequence[str]) -> Table:
        """Let the newest row of each key be the one that shows. Raises SchemaError."""
        missing = [key for key in keys if key not in table.columns]
        if missing:
            raise SchemaError(
                f'the key column {missing[0]!r} is not in the table', hint=f'columns: {", ".join(table.columns)}'
            )
        if table.keys == list(keys):
            return table
        if table.keys is not None:
            raise SchemaError(
                f'rows of {table.name!r} replace each other by {", ".join(table.keys)}, not by {", ".join(keys)}',
                hint='load with those key_columns, or into another table',
            )
        if self._session.run(f'SELECT 1 FROM {table.quoted} LIMIT 1'):
            raise SchemaError(
                f'the table {table.name!r} was filled without a key, so rows cannot replace each other in it',
                hint='load by key into a table of its own, from its first row on',
            )
        comment = literal(_KEYED_BY + json.dumps(list(keys)))
        self._session.do(
            f'ALTER TABLE {table.quoted} ADD COLUMN IF NOT EXISTS {quote(VERSION)} UInt64 DEFAULT 0 COMMENT {comment}'
        )
        keyed = self.get(table.name)
        if TX_ID in keyed.columns:
            self.show_committed(keyed)
        return keyed

    def show_committed(self, table: Table) -> None:
        """Make, or make again, the view `<table>_committed`; a table of that name is left alone."""
        name = table.name + COMMITTED
        found = self._session.run(
            f'SELECT comment FROM system.tables WHERE database = {literal(self._database)} AND name = {literal(name)}'
        )
        if found and found[0][0] != _VIEW_COMMENT:
            logger.warning('there is a table %s already, so no view of the committed rows is made', name)
            return
        columns = ', '.join(quote(column.name) for column in table.users)
        rows = table.rows(_hidden(quote(self._database, DOCUMENTS), table.name))
        try:
            self._session.do(
                f'CREATE OR REPLACE VIEW {self.quoted(name)} AS SELECT {columns} FROM ({rows}) '
                f'COMMENT {literal(_VIEW_COMMENT)}'
            )
        except DestinationError as error:
            if code_of(error) != ACCESS_DENIED:
                raise
            logger.warning('the user may not create views, so there is no %s', name)

    def delete_runs(self, table: Table, runs: Sequence[IdRun], scope: str) -> int:
        """Delete rows by id; first end what still inserts such rows. The number deleted."""
        if not runs or TX_ID not in table.columns:
            return 0
        first, last = (f"toInt64OrZero(splitByChar(' ', Settings['log_comment'])[{n}])" for n in (-2, -1))
        overlap = ' OR '.join(f'({last} >= {run.first} AND {first} <= {run.last})' for run in runs)
        self._session.do(
            f"KILL QUERY WHERE startsWith(Settings['log_comment'], {literal(scope + ' ')}) AND ({overlap}) SYNC"
        )
        where = in_runs(quote(TX_ID), runs)
        [[rows]] = self._session.run(f'SELECT count() FROM {table.quoted} WHERE {where}')
        if rows:
            self._session.do(f'DELETE FROM {table.quoted} WHERE {where}')
        return int(rows)


def create_statement(schema: pa.Schema, table: str, *, durable: bool) -> str:
    """The statement that makes a quoted table, ordered by block where there is one. Raises SchemaError."""
    listed = [column_ddl(field) for field in schema]
    if TX_ID in schema.names:
        listed.append(f'INDEX {_INDEX} {quote(TX_ID)} TYPE minmax GRANULARITY 1')
    order = _order(schema)
    settings = [f'min_bytes_for_wide_part = {_SMALL_PART}']
    if order is not None and order.nullable:
        settings.append('allow_nullable_key = 1')
    if durable:
        settings += ['fsync_after_insert = 1', 'fsync_part_directory = 1']
    return (
        f'CREATE TABLE IF NOT EXISTS {table} ({", ".join(listed)}) '
        f'ENGINE = MergeTree ORDER BY {quote(order.name) if order is not None else "tuple()"}'
        f' SETTINGS {", ".join(settings)}'
    )


def _order(schema: pa.Schema) -> pa.Field[Any] | None:
    names = {name.lower(): name for name in reversed(schema.names)}
    found = [schema.field(names[name]) for name in (*_BLOCKS, TX_ID) if name in names]
    return next((f.with_nullable(f.nullable and f.name != TX_ID) for f in found if pt.is_integer(f.type)), None)


def _hidden(documents: str, table: str) -> str:
    """The condition of `UndoById.uncommitted`, found out by the server itself."""
    last = "bitShiftLeft(JSONExtractInt(text, 'number') + 1, 51) - 1"
    open_end = f"[(JSONExtractInt(text, 'last_done') + 1, {last})]"
    runs = f"arrayConcat(JSONExtract(text, 'dead', 'Array(Tuple(Int64, Int64))'), {open_end})"
    newest = (
        f'SELECT argMax(text, version) AS text FROM {documents} '
        f'WHERE JSONExtractString(key, 1) = {literal(table)} GROUP BY key'
    )
    return (
        f'arrayExists(run -> {quote(TX_ID)} >= run.1 AND {quote(TX_ID)} <= run.2, '
        f'(SELECT arrayFlatten(groupArray({runs})) FROM ({newest})))'
    )
