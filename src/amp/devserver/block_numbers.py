"""`block_num()` in a stream: every SELECT that calls it gets the numbers of blocks beside its tables.

In a plan nothing tells of which block a row is once tables are joined, or once a sub-query has left `_block_num` out. So
the text says `FROM ... LEFT JOIN (numbers of blocks) ON true`, the call becomes the column of that relation, and whoever
runs the plan ties each row to the number of its own block (`deltas`). A left join is what DataFusion moves nothing
through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
from datafusion import udf

from amp.devserver.evm.calls import Call, find_calls
from amp.devserver.evm.words import Column
from amp.devserver.sql import Token, invalid_argument, tokens_of

if TYPE_CHECKING:
    from datafusion.plan import LogicalPlan

__all__ = ['BLOCK_NUMBER', 'NUMBERS', 'NUMBERS_SCHEMA', 'is_numbers', 'opaque', 'with_block_numbers']

NUMBERS = ('block_num__amp__', 'numbers')
"""The table of numbers, named as a dataset's table is."""
NUMBERS_SCHEMA = pa.schema([pa.field('_block_num', pa.uint64(), nullable=False)])

_COLUMN = 'block_num__amp__number'
# A function around the column: DataFusion then knows nothing that it could use to move the join.
_FUNCTION = 'block_num__amp__of'
BLOCK_NUMBER = f'{_FUNCTION}({_COLUMN})'
"""What a call is in a plan."""
_RELATION = f'(SELECT _block_num AS {_COLUMN} FROM {".".join(NUMBERS)})'
_AFTER_FROM = {'where', 'group', 'having', 'order', 'limit', 'window', 'qualify', 'union', 'except', 'intersect'}
_SETS = {'union', 'except', 'intersect'}

_Edit = tuple[int, int, str]


def _itself(column: Column) -> Column:
    return column


opaque = udf(_itself, [pa.uint64()], pa.field('result', pa.uint64()), 'immutable', _FUNCTION)
"""The same numbers, from a function that DataFusion knows nothing about; the rewritten statements call it."""


def is_numbers(plan: LogicalPlan) -> bool:
    """True for what `block_num()` was made of."""
    node = plan.to_variant()
    if type(node).__name__ == 'TableScan':
        _, dataset, table = node.fqn()
        return (dataset, table) == NUMBERS
    inputs = plan.inputs()
    return len(inputs) == 1 and is_numbers(inputs[0])


@dataclass
class _Select:
    """A SELECT that is being read; what would have to change if it calls `block_num()`."""

    calls: list[Token] = field(default_factory=list)
    wildcards: list[Token] = field(default_factory=list)
    commas: list[Token] = field(default_factory=list)
    in_from: bool = False
    end: int | None = None

    def edits(self) -> list[_Edit]:
        """The changes, as places in the text and what comes there."""
        if not self.calls:
            return []
        if self.end is None:
            # Without a table: what is constant is of block 0.
            return [(call.start, call.end, "arrow_cast(0, 'UInt64'") for call in self.calls]
        return [
            *((call.start, call.end, f'{_FUNCTION}({_COLUMN}') for call in self.calls),
            *((star.end, star.end, f' EXCLUDE ({_COLUMN})') for star in self.wildcards),
            *((comma.start, comma.end, ' CROSS JOIN ') for comma in self.commas),
            (self.end, self.end, f' LEFT JOIN {_RELATION} ON true '),
        ]


def with_block_numbers(sql: str) -> str:
    """The statement with a column for each `block_num()`; the same text when it calls none.

    Raises QueryError for a call in the condition of a join.
    """
    calls = {call.start: Token('word', call.function, call.start, call.inside) for call in _calls(sql)}
    if not calls:
        return sql
    edits = [edit for select in _selects(sql, calls) for edit in select.edits()]
    parts, at = [], 0
    for start, end, text in sorted(edits):
        parts += [sql[at:start], text]
        at = end
    return ''.join([*parts, sql[at:]])


def _calls(sql: str) -> list[Call]:
    return [call for call in find_calls(sql, {'block_num'}) if not call.arguments]


def _selects(sql: str, calls: dict[int, Token]) -> list[_Select]:
    tokens = tokens_of(sql)
    found: list[_Select] = []
    # One for each open parenthesis, and one outside of all: the SELECT that is being read there.
    levels: list[_Select | None] = [None]
    for at, token in enumerate(tokens):
        before = tokens[at - 1].word if at else ''
        following = tokens[at + 1].word if at + 1 < len(tokens) else ''
        select = levels[-1]
        if token.text == '(':
            levels.append(None)
        elif token.text == ')' and len(levels) > 1:
            _close(levels.pop(), token.start)
        if token.start in calls:
            scope = next((level for level in reversed(levels) if level is not None), None)
            if scope is not None:
                if scope.in_from:
                    raise invalid_argument(
                        'invalid query: block_num() is not known in the condition of a join, before there is a row; '
                        'it is in WHERE'
                    )
                scope.calls.append(calls[token.start])
        elif token.kind == 'word' and token.word == 'select' and before != '.':
            found.append(_Select())
            levels[-1] = found[-1]
        elif select is not None:
            _read(select, token, before, following)
            if token.kind == 'word' and token.word in _SETS:
                levels[-1] = None
    _close(levels[0], len(sql))
    return found


def _close(select: _Select | None, end: int) -> None:
    if select is not None and select.in_from:
        select.in_from, select.end = False, end


def _read(select: _Select, token: Token, before: str, following: str) -> None:
    """A token of this SELECT, outside of all parentheses in it."""
    if token.text == '*' and before != '.' and following in {',', 'from'} and select.end is None:
        select.wildcards.append(token)
    elif token.text == ',' and select.in_from:
        select.commas.append(token)
    elif token.kind == 'word' and token.word == 'from' and before not in {'.', 'distinct'} and select.end is None:
        select.in_from = True
    elif token.kind == 'word' and token.word in _AFTER_FROM and before != '.' and select.in_from:
        _close(select, token.start)
