"""What a logical plan of DataFusion may contain: names that are reserved, and operations that a stream cannot do.

The texts are the server's. Where the local Amp does less than the server (joins, sub-queries in expressions), the text
says so after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from amp.devserver.sql import caused_by, internal, invalid_argument

if TYPE_CHECKING:
    from datafusion.plan import LogicalPlan

__all__ = ['check_incremental', 'check_names', 'has_union', 'nodes', 'scanned_tables']

_SCHEMA_ERROR = 'failed to infer SQL output schema'
_REFUSED = 'invalid query: non-incremental queries are not supported for streaming, query contains'
_HERE_ONLY = ' (Amp streams it, this local server does not)'

_ALLOWED = {'Projection', 'Filter', 'Union', 'Unnest', 'SubqueryAlias', 'TableScan', 'EmptyRelation', 'Values'}
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


def has_union(plan: LogicalPlan) -> bool:
    """True when rows come from several branches, so that their order has to be made."""
    return any(kind == 'Union' for kind, _ in nodes(plan))


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
    kinds = {kind for kind, _ in nodes(plan)}
    for kind, node in nodes(plan):
        if kind in _OPERATIONS:
            raise invalid_argument(f'{_REFUSED} non-incremental operation: {_OPERATIONS[kind]}')
        if kind == 'Join':
            # "Left Join: ..." and "Cross Join: ...": the first word is the kind.
            join = node.display().split(' ', 1)[0]
            join = 'Inner' if join == 'Cross' else join
            here_only = _HERE_ONLY if join in _STREAMED_JOINS else ''
            raise invalid_argument(f'{_REFUSED} non-incremental operation: Join({join}){here_only}')
        if kind not in _ALLOWED:
            raise invalid_argument(f'{_REFUSED} invalid operation: {kind}')
        if '(<subquery>)' in node.display():
            raise invalid_argument(f'{_REFUSED} non-incremental operation: Subquery{_HERE_ONLY}')
    if 'TableScan' in kinds and kinds & {'EmptyRelation', 'Values'}:
        raise invalid_argument(f'{_REFUSED} invalid operation: rows that no table holds{_HERE_ONLY}')
