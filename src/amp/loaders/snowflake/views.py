"""The views beside a table: the rows that are on the chain, and the rows of units that are done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from snowflake.connector import errors

from amp.loaders.snowflake.scan import users_columns
from amp.loaders.snowflake.state import CHANNEL, TABLE
from amp.loaders.snowflake.types import name_in, name_out, quoted
from amp.loaders.snowflake.unit import MARK, MARKED_AT
from amp.loaders.sql import quote
from amp.loaders.stamps import TX_ID
from amp.streaming.ledger import StreamState

if TYPE_CHECKING:
    from amp.loaders.implementations.snowflake_loader import SnowflakeLoader

__all__ = ['COMMITTED', 'CURRENT', 'show_committed', 'show_current']

CURRENT, COMMITTED = '_current', '_committed'
"""What the name of a view has after that of its table."""

_NO_PRIVILEGE = 3001
_IDS_OF_A_STREAM = StreamState(2, 0).interval.first - StreamState(1, 0).interval.first

logger = logging.getLogger('amp.loaders.snowflake')


def show_current(loader: SnowflakeLoader, table_name: str) -> None:
    """Make `<table>_current`, or make it again: what no reorg took off the chain."""
    kept = [name for name in loader.columns(table_name) if name_out(name) not in {MARK, MARKED_AT}]
    loader.own.run(
        f'CREATE OR REPLACE VIEW {quoted(table_name + CURRENT)} AS '
        f'SELECT {", ".join(map(quote, kept))} FROM {quoted(table_name)} WHERE {quoted(MARK)} IS NULL'
    )


def show_committed(loader: SnowflakeLoader, table_name: str) -> None:
    """Make `<table>_committed`, or make it again: no rows of a channel whose unit is not done.

    A table of that name is left alone, and so is a schema in which the role may not make views.
    """
    view = table_name + COMMITTED
    found = loader.own.run(
        'SELECT table_type FROM information_schema.tables WHERE table_schema = CURRENT_SCHEMA() AND table_name = ?',
        (name_in(view),),
    )
    if found == [('BASE TABLE',)]:
        logger.warning('there is a table %s already, so no view of the committed rows is made', view)
        return
    listed = ', '.join(f't.{quote(name)}' for name in users_columns(loader.columns(table_name)))
    try:
        loader.own.run(
            f'CREATE OR REPLACE VIEW {quoted(view)} AS SELECT {listed} FROM {quoted(table_name)} t '
            f'LEFT JOIN ({_hidden(table_name)}) h ON t.{quoted(TX_ID)} BETWEEN h.first_id AND h.last_id '
            'WHERE h.first_id IS NULL'
        )
    except errors.ProgrammingError as error:
        if error.errno != _NO_PRIVILEGE:
            raise
        logger.warning('the role may not create views, so there is no %s', view)


def _hidden(table_name: str) -> str:
    """The runs of ids of `UndoById.uncommitted`, found out by the server itself."""
    name = table_name.replace('\\', '\\\\').replace("'", "\\'")
    ours = f"WHERE s.scheme = '{CHANNEL}' AND s.table_name = '{name}'"
    number = 'NUMBER(19,0)'
    return (
        f'SELECT d.value[0]::{number} AS first_id, d.value[1]::{number} AS last_id '
        f'FROM {TABLE} s, LATERAL FLATTEN(INPUT => PARSE_JSON(s.document):dead) d {ours} '
        f'UNION ALL SELECT PARSE_JSON(s.document):last_done::{number} + 1, '
        f'(s.number + 1) * {_IDS_OF_A_STREAM} - 1 FROM {TABLE} s {ours}'
    )
