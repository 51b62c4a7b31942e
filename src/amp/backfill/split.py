"""A query that can be asked for some of its blocks: parsed, judged, and wrapped so that it keeps its meaning."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from amp.errors import ConfigError
from amp.loaders.status import as_table

__all__ = ['BLOCK_NUMBER', 'Splittable', 'with_block_number']

BLOCK_NUMBER = '_block_num'
"""The column that every table of Amp has."""

# No word of SQL has this in it, so the name needs no quotes and the query stays easy to read.
_PLAIN = re.compile(r'[a-z_]*block[a-z0-9_]*')


class Splittable:
    """`query` with `block_column` among its columns. Raises ConfigError, with the reason, when it cannot be split.

    A part of a split query is the same rows as that part of the whole only when each row depends on its own block
    alone: no LIMIT, no aggregate or window over all blocks, no DISTINCT, no order across parts.
    """

    def __init__(self, query: str, block_column: str) -> None:
        self._table = as_table(query)
        quoted = '"' + block_column.replace('"', '""') + '"'
        self._column = block_column if _PLAIN.fullmatch(block_column) else quoted
        self.joins = _judge(self._table, block_column)
        """True when rows meet rows of other blocks: such a query can be split, but not handed over to a stream."""

    def of(self, start: int, end: int) -> str:
        """The query for the blocks from `start` up to, not including, `end`."""
        return f'SELECT * FROM {self._table} WHERE {self._column} >= {start:d} AND {self._column} < {end:d}'


def with_block_number(query: str) -> str | None:
    """`query`, whose outermost SELECT gives Amp's own block number too, as something to select from.

    Only for looking at some rows: over a join or a sub-query that hides the column the server refuses it. None for a
    star, which has the column already where there is one.
    """
    from sqlglot import TokenType, tokenize

    table = as_table(query)
    tokens = tokenize(table, read='postgres')
    depth, places = 0, []
    for token, following in pairwise(tokens):
        depth += (token.token_type is TokenType.L_PAREN) - (token.token_type is TokenType.R_PAREN)
        if depth == 1 and token.token_type is TokenType.SELECT:
            if following.token_type is TokenType.STAR:
                return None
            places.append(token.end + 1)
    for place in reversed(places):
        table = f'{table[:place]} {BLOCK_NUMBER}, {table[place:]}'
    return table


def _judge(table: str, block_column: str) -> bool:
    # Not at the top: it is a large library, and only a backfill wants it.
    import sqlglot
    from sqlglot import exp

    try:
        parsed: Any = sqlglot.parse_one(f'SELECT * FROM {table}', dialect='postgres')
    except sqlglot.errors.ParseError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'the query cannot be read, so it cannot be split: {reason}', hint='load it without workers'
        ) from error
    query = parsed.find(exp.Subquery).this
    refused = _reason(query, exp)
    if refused is not None:
        raise ConfigError(
            f'the query cannot be split by blocks: {refused}', hint='load it in one piece, without workers'
        )
    names = _column_names(query)
    if names is not None and block_column not in names:
        raise ConfigError(
            f'the query does not select {block_column!r}, the column by which it would be split',
            hint=f'its columns: {", ".join(names)}; select the block number, or name its column with block_column',
        )
    return query.find(exp.Join, exp.In, exp.Exists) is not None and (
        query.find(exp.Join) is not None or len(list(query.find_all(exp.Table))) > 1
    )


def _reason(query: Any, exp: Any) -> str | None:
    """Why a part of the query is not a part of its rows; looked for in sub-queries and CTEs as well."""
    for kind, reason in (
        (exp.Limit, 'LIMIT counts rows over all blocks'),
        (exp.Fetch, 'FETCH counts rows over all blocks'),
        (exp.Offset, 'OFFSET counts rows over all blocks'),
        (exp.Distinct, 'DISTINCT compares rows of all blocks'),
        (exp.Window, 'a window looks at rows of other blocks'),
        (exp.Group, 'GROUP BY may join rows of several blocks'),
        (exp.AggFunc, 'an aggregate is over all blocks'),
        (exp.Except, 'EXCEPT compares rows of all blocks'),
        (exp.Intersect, 'INTERSECT compares rows of all blocks'),
    ):
        if query.find(kind) is not None:
            return reason
    if any(union.args.get('distinct') is not False for union in query.find_all(exp.Union)):
        return 'UNION without ALL compares rows of all blocks'
    return 'ORDER BY is an order across parts' if query.args.get('order') is not None else None


def _column_names(query: Any) -> list[str] | None:
    """The names of the output columns; None when a star hides them."""
    names = query.named_selects if hasattr(query, 'named_selects') else []
    return None if not names or '*' in names or query.is_star else list(names)
