"""What a logical plan of DataFusion may contain: names that are reserved, and operations that a stream cannot do.

The texts are the server's. Sub-queries in expressions are not seen in a plan before DataFusion has made joins of them,
so that these are looked for in the optimized plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from datafusion import Expr

from amp.devserver.block_numbers import BLOCK_NUMBER, is_numbers
from amp.devserver.sql import caused_by, internal, invalid_argument

if TYPE_CHECKING:
    from datafusion.plan import LogicalPlan

__all__ = [
    'REFUSED',
    'check_incremental',
    'check_names',
    'check_optimized',
    'keeps_order',
    'nodes',
    'scanned_tables',
    'takes_first_rows',
]

_SCHEMA_ERROR = 'failed to infer SQL output schema'
REFUSED = 'invalid query: non-incremental queries are not supported for streaming, query contains'
"""How the refusals of a stream begin."""

_ROW_BY_ROW = {'Projection', 'Filter', 'Unnest', 'SubqueryAlias', 'TableScan'}
_ALLOWED = _ROW_BY_ROW | {'EmptyRelation', 'Subquery', 'Union', 'Values'}
_SUBQUERY = '(<subquery>)'
_DISTINCT_ON_BLOCK = re.compile(r'DistinctOn: on_expr=\[\[block_num\(\)[,\]]')
_BLOCK_KEYS = {'block_num()', BLOCK_NUMBER, 'group_alias_0'}
_OPERATIONS = {
    'Limit': 'Limit',
    'Aggregate': 'Aggregate',
    'Distinct': 'Distinct',
    'Sort': 'Sort',
    'WindowExpr': 'Window',
    'RecursiveQuery': 'RecursiveQuery',
}
_STREAMED_JOINS = {'Inner', 'LeftSemi', 'RightSemi'}


def nodes(plan: LogicalPlan) -> Iterator[tuple[str, LogicalPlan]]:
    """Every node below and including `plan` with the name of its kind, the outermost first."""
    yield type(plan.to_variant()).__name__, plan
    for child in plan.inputs():
        yield from nodes(child)


def scanned_tables(plan: LogicalPlan) -> list[tuple[str | None, str | None, str]]:
    """Catalog, schema and name of each table, as the query wrote them; those of sub-queries in expressions are not seen."""
    return [node.to_variant().fqn() for kind, node in nodes(plan) if kind == 'TableScan']


def keeps_order(plan: LogicalPlan) -> bool:
    """True when rows leave the plan in the order of its table's rows, and one row at a time decides what becomes of it."""
    kinds = [kind for kind, _ in nodes(plan)]
    if not set(kinds) <= _ROW_BY_ROW or kinds.count('TableScan') != 1:
        return False
    return not any(_SUBQUERY in node.display() for _, node in nodes(plan))


def takes_first_rows(plan: LogicalPlan) -> bool:
    """True when the plan has a limit and sorts nothing."""
    kinds = {kind for kind, _ in nodes(plan)}
    return 'Limit' in kinds and 'Sort' not in kinds


def check_names(plan: LogicalPlan, columns: list[str]) -> None:
    """Refuse aliases that begin with an underscore and columns of one name. Raises QueryError."""
    for kind, node in nodes(plan):
        if kind == 'Projection':
            for expression in node.to_variant().projections():
                if expression.variant_name() == 'Alias':
                    _check_alias(expression.to_variant().alias())
    duplicates = sorted({name for name in columns if columns.count(name) > 1})
    if duplicates:
        names = ', '.join(f'"{name}"' for name in duplicates)
        text = f'Duplicate field names detected in plan schema: [{names}]. Please alias your columns to be unique.'
        raise internal(caused_by(_SCHEMA_ERROR, text))


def _check_alias(alias: str) -> None:
    if alias.startswith('_') and not alias.startswith('__unnest_placeholder'):
        raise invalid_argument(
            caused_by(
                _SCHEMA_ERROR,
                f"expression contains a column alias starting with '_': '{alias}'. "
                'Underscore-prefixed names are reserved. Please rename your column',
            )
        )


def check_incremental(plan: LogicalPlan) -> None:
    """Refuse what cannot be computed microbatch by microbatch. Raises QueryError (INVALID_ARGUMENT)."""
    for kind, node in nodes(plan):
        if kind in _OPERATIONS and not _goes_by_block(kind, node):
            raise invalid_argument(f'{REFUSED} non-incremental operation: {_OPERATIONS[kind]}')
        if kind == 'Join':
            _check_join(node)
        elif kind not in _ALLOWED and kind not in _OPERATIONS:
            raise invalid_argument(f'{REFUSED} invalid operation: {kind}')
        if kind == 'Projection':
            _check_block_num(node)


def check_optimized(plan: LogicalPlan, networks_of: Callable[[str], set[str]]) -> None:
    """Refuse what only the optimized plan shows, joins and groups of sub-queries, and joins across networks.

    The plan is that of the statement with block numbers; `networks_of` tells the networks of a dataset. Raises
    QueryError.
    """
    joins = []
    for kind, node in nodes(plan):
        if _is_join(kind, node):
            _check_join(node)
            if any(_is_join(*below) for side in node.inputs() for below in nodes(side)):
                raise invalid_argument(f'{REFUSED} non-incremental operation: StackedJoins')
            joins.append(node)
        elif kind in {'Aggregate', 'Limit'} and not _goes_by_block(kind, node):
            raise invalid_argument(f'{REFUSED} non-incremental operation: {kind}')
    for node in joins:
        networks = sorted(set().union(*(networks_of(schema or '') for _, schema, _ in scanned_tables(node))))
        if len(networks) > 1:
            listed = ', '.join(f'"{network}"' for network in networks)
            text = 'streaming query contains a cross-network join: join across multiple networks: {' + listed + '}'
            raise internal(caused_by('streaming query execution error', text))


def _is_join(kind: str, node: LogicalPlan) -> bool:
    """True for a join that the statement has written, or a sub-query in it has become."""
    return kind == 'Join' and not is_numbers(node.inputs()[1])


def _check_join(node: LogicalPlan) -> None:
    join = str(node.to_variant().join_type())
    if join not in _STREAMED_JOINS:
        raise invalid_argument(f'{REFUSED} non-incremental operation: Join({join})')


def _goes_by_block(kind: str, node: LogicalPlan) -> bool:
    """True for groups of which none spans blocks: their first key is `block_num()`."""
    if kind == 'Distinct':
        return _DISTINCT_ON_BLOCK.match(node.display()) is not None
    if kind != 'Aggregate':
        return False
    keys = node.to_variant().group_by_exprs()
    # The optimizer computes a call once and names it; for count(DISTINCT ...) it groups twice.
    return bool(keys) and any(name in _BLOCK_KEYS for name in Expr(keys[0]).canonical_name().split(' AS '))


def _check_block_num(projection: LogicalPlan) -> None:
    below = projection.inputs()[0]
    while type(below.to_variant()).__name__ == 'Filter':
        below = below.inputs()[0]
    if type(below.to_variant()).__name__ != 'Join' or str(below.to_variant().join_type()) != 'Inner':
        return
    for expression in projection.to_variant().projections():
        if expression.variant_name() == 'Column' and expression.to_variant().name() == '_block_num':
            text = (
                'Error during planning: selecting `_block_num` from a multi-table context (e.g. a join) is ambiguous. '
                'Use the `block_num()` function instead to get the correct value'
            )
            raise invalid_argument(caused_by('failed to plan SQL query', text))
