"""What a microbatch adds to the result of a query: a plan is built again over the rows of some blocks.

Each scan reads the new blocks, the old ones, or all of them. A join of two tables adds the new rows of the left with the
old ones of the right, the old ones of the left with the new ones of the right, and new with new; a semi join adds the
rows that match now and did not match before. Every row has the number of its block beside its columns, for a join the
greater one; what stands in no table is older than all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
from datafusion import Expr, col, functions, lit

from amp.devserver.block_numbers import is_numbers

if TYPE_CHECKING:
    from datafusion import DataFrame, SessionContext
    from datafusion.plan import LogicalPlan

__all__ = ['BLOCK', 'Increment', 'Part', 'Tables', 'UnsupportedError', 'quoted']

Part = Literal['new', 'old', 'all']

BLOCK = 'block_num__amp__row'
"""The column beside those of the query: the block of the row."""

_LEFT, _RIGHT = 'block_num__amp__left', 'block_num__amp__right'
_LEFT_NEW, _RIGHT_ALL = 'block_num__amp__left_new', 'block_num__amp__right_all'
_UNNESTED = '__unnest_placeholder('


class UnsupportedError(Exception):
    """A plan that the server streams and this one does not; the text names the operation."""


class Tables(Protocol):
    """Where the scans of a plan read."""

    context: SessionContext

    def scan(self, dataset: str, table: str, part: Part) -> DataFrame:
        """A table under the name that the query has for it, with all of its columns."""

    def alias(self, frame: DataFrame, name: str) -> DataFrame:
        """The same columns, as those of a relation of that name."""


class Increment:
    """Builds the frames of the microbatch that begins with the block `start`; None when no block is older."""

    def __init__(self, tables: Tables, start: int | None) -> None:
        self._tables = tables
        self._start = None if start is None else lit(pa.scalar(start, pa.uint64()))
        self._kinds: dict[str, Callable[[LogicalPlan, Part], DataFrame]] = {
            'Aggregate': self._aggregate,
            'EmptyRelation': self._constant,
            'Filter': self._filter,
            'Join': self._join,
            'Projection': self._projection,
            'Sort': lambda plan, part: self.frame(plan.inputs()[0], part),
            'SubqueryAlias': self._alias,
            'TableScan': self._scan,
            'Union': self._union,
            'Unnest': self._unnest,
            'Values': self._constant,
        }

    def frame(self, plan: LogicalPlan, part: Part = 'new') -> DataFrame:
        """The rows that an optimized plan gives for this part of the blocks, with `BLOCK` as the last column.

        Raises UnsupportedError.
        """
        kind = type(plan.to_variant()).__name__
        if kind not in self._kinds:
            raise UnsupportedError(f'invalid operation: {kind}')
        return self._kinds[kind](plan, part)

    def _scan(self, plan: LogicalPlan, part: Part) -> DataFrame:
        node = plan.to_variant()
        _, dataset, table = node.fqn()
        frame = self._tables.scan(dataset, table, part).with_column(BLOCK, col('_block_num'))
        frame = reduce(lambda found, condition: found.filter(condition), _exprs(node.filters()), frame)
        projection = node.projection()
        return frame if projection is None else frame.select(*(quoted(name) for _, name in projection), BLOCK)

    def _constant(self, plan: LogicalPlan, part: Part) -> DataFrame:
        frame = self._tables.context.create_dataframe_from_logical_plan(plan)
        frame = frame.with_column(BLOCK, lit(pa.scalar(0, pa.uint64())))
        return frame.filter(lit(False)) if part == 'new' else frame

    def _projection(self, plan: LogicalPlan, part: Part) -> DataFrame:
        return self.frame(plan.inputs()[0], part).select(*_exprs(plan.to_variant().projections()), col(BLOCK))

    def _filter(self, plan: LogicalPlan, part: Part) -> DataFrame:
        return self.frame(plan.inputs()[0], part).filter(*_exprs([plan.to_variant().predicate()]))

    def _alias(self, plan: LogicalPlan, part: Part) -> DataFrame:
        return self._tables.alias(self.frame(plan.inputs()[0], part), plan.to_variant().alias())

    def _union(self, plan: LogicalPlan, part: Part) -> DataFrame:
        return reduce(lambda one, other: one.union(other), (self.frame(each, part) for each in plan.inputs()))

    def _aggregate(self, plan: LogicalPlan, part: Part) -> DataFrame:
        node = plan.to_variant()
        # The first key is a function of the block, so that the block itself makes no more groups.
        groups = [*_exprs(node.group_by_exprs()), col(BLOCK)]
        frame = self.frame(plan.inputs()[0], part).aggregate(groups, _exprs(node.aggregate_exprs()))
        return frame.with_column_renamed(BLOCK, _LEFT).with_column(BLOCK, col(_LEFT)).drop(_LEFT)

    def _unnest(self, plan: LogicalPlan, part: Part) -> DataFrame:
        frame = self.frame(plan.inputs()[0], part)
        wanted = set(_names(self._tables, plan))
        lists = [name for name in frame.schema().names if name.startswith(_UNNESTED)]
        named = {name: f'{name[:-1]},depth=1)' for name in lists}
        if not lists or not set(named.values()) <= wanted:
            raise UnsupportedError('invalid operation: Unnest of a struct, or of lists of lists')
        frame = frame.unnest_columns(*(quoted(name) for name in lists), preserve_nulls=False)
        return reduce(lambda found, name: found.with_column_renamed(quoted(name), named[name]), lists, frame)

    def _join(self, plan: LogicalPlan, part: Part) -> DataFrame:
        left, right = plan.inputs()
        kind = str(plan.to_variant().join_type())
        if is_numbers(right):
            # A row of a semi join may be of an old block: it is new because of what it matches.
            numbers: Part = 'all' if _has_semi_join(left) else part
            frames = self._side(left, part, _LEFT), self._side(right, numbers, _RIGHT)
            return _with_greater(frames[0].join_on(frames[1], *self._conditions(plan), col(_LEFT) == col(_RIGHT)))
        if kind == 'RightSemi':
            left, right = right, left
        elif kind not in {'Inner', 'LeftSemi'}:
            raise UnsupportedError(f'non-incremental operation: Join({kind})')
        conditions = self._conditions(plan)
        if part == 'new' and self._start is None:
            part = 'all'
        if part != 'new':
            one, other = self._side(left, part, _LEFT), self._side(right, part, _RIGHT)
        else:
            one, other = self._side(left, 'all', _LEFT), self._both(right)
            one = one.with_column(_LEFT_NEW, col(_LEFT) >= self._start)
            conditions.append(col(_LEFT_NEW) == col(_RIGHT_ALL))
        if kind == 'Inner':
            return _with_greater(one.join_on(other, *conditions))
        matched = one.join_on(other, *conditions, how='semi')
        if part == 'new':
            # An old row is new in the result only when no old row has matched it before.
            before = [*self._conditions(plan), ~col(_LEFT_NEW)]
            matched = matched.join_on(self._side(right, 'old', _RIGHT), *before, how='anti').drop(_LEFT_NEW)
        return matched.with_column_renamed(_LEFT, BLOCK)

    def _side(self, plan: LogicalPlan, part: Part, block: str) -> DataFrame:
        return self.frame(plan, part).with_column_renamed(BLOCK, block)

    def _both(self, plan: LogicalPlan) -> DataFrame:
        """All rows, for the new ones of the other side; and the new rows once more, for the old ones."""
        parts: list[tuple[Part, bool]] = [('all', True), ('new', False)]
        frames = [self._side(plan, part, _RIGHT).with_column(_RIGHT_ALL, lit(mark)) for part, mark in parts]
        both = frames[0].union(frames[1])
        # A union forgets of which relation its columns are; there is one at most, as no join is below.
        relation = _relation(plan)
        return both if relation is None else self._tables.alias(both, relation)

    def _conditions(self, plan: LogicalPlan) -> list[Expr]:
        node = plan.to_variant()
        keys = [_exprs(pair) for pair in node.on()]
        equal = [one == other for one, other in keys]
        if node.null_equals_null():
            nulls = [one.is_null() & other.is_null() for one, other in keys]
            equal = [same | both for same, both in zip(equal, nulls, strict=True)]
        return [*equal, *_exprs([node.filter()])] or [lit(True)]


def _with_greater(joined: DataFrame) -> DataFrame:
    greater = functions.when(col(_LEFT) >= col(_RIGHT), col(_LEFT)).otherwise(col(_RIGHT))
    added = [name for name in (_LEFT, _RIGHT, _LEFT_NEW, _RIGHT_ALL) if name in joined.schema().names]
    return joined.with_column(BLOCK, greater).drop(*added)


def _has_semi_join(plan: LogicalPlan) -> bool:
    node = plan.to_variant()
    semi = type(node).__name__ == 'Join' and str(node.join_type()) in {'LeftSemi', 'RightSemi'}
    return semi or any(_has_semi_join(below) for below in plan.inputs())


def _relation(plan: LogicalPlan) -> str | None:
    """The name by which the columns of a side of a join are qualified."""
    node = plan.to_variant()
    kind = type(node).__name__
    if kind == 'SubqueryAlias':
        return str(node.alias())
    if kind == 'TableScan':
        return str(node.fqn()[2])
    inputs = plan.inputs()
    return _relation(inputs[0]) if len(inputs) == 1 or kind == 'Join' else None


def _exprs(found: Iterable[Any]) -> list[Expr]:
    """What the nodes of a plan have, as the frames take it."""
    return [Expr(each) for each in found if each is not None]


def _names(tables: Tables, plan: LogicalPlan) -> list[str]:
    return list(tables.context.create_dataframe_from_logical_plan(plan).schema().names)


def quoted(name: str) -> str:
    """The name as an identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
