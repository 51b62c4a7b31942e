"""How a query may name things: datasets as `[namespace/]name[@revision]`, tables, and no alias that begins with `_`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from amp.devserver.sql import Token, caused_by, invalid_argument, tokens_of

if TYPE_CHECKING:
    from datafusion.plan import LogicalPlan

__all__ = ['SEMVER', 'TABLE', 'check_aliases', 'check_references', 'dataset_name', 'parse_reference']

_NUMBER = r'(?:0|[1-9][0-9]*)'
_IDENTIFIER = rf'(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)'
SEMVER = (
    rf'{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?'
)
"""A version as semver.org has it, as a part of a regular expression."""
TABLE = r'[A-Za-z_][A-Za-z0-9_$]{0,62}'
"""The name of a table, likewise."""

_REVISION = rf'(?:{SEMVER}|[0-9a-f]{{64}}|latest|dev)'
_DATASET = re.compile(rf'(?:(?P<namespace>[a-z0-9_]+)/)?(?P<name>[a-z_][a-z0-9_]*)(?:@(?P<revision>{_REVISION}))?')
_TABLE = re.compile(TABLE)
_UNRESOLVED = 'Failed to resolve table references from SQL'
# Their arguments may have a FROM of another meaning.
_WITH_FROM = {'extract', 'overlay', 'position', 'substr', 'substring', 'trim'}
_UNDERSCORED = re.compile(r'\bAS\s+["`]?_')
_UNNEST = '__unnest_placeholder'


def dataset_name(reference: str) -> str | None:
    """The name in a dataset reference; None when it is no reference. Any namespace will do, and any revision."""
    match = _DATASET.fullmatch(reference)
    return match['name'] if match else None


def parse_reference(reference: str) -> tuple[str, str, str | None] | None:
    """Namespace (`_` when there is none), name and revision of a dataset reference; None when it is no reference."""
    match = _DATASET.fullmatch(reference)
    return (match['namespace'] or '_', match['name'], match['revision']) if match else None


def check_references(sql: str) -> None:
    """Refuse table references that name no dataset by their form. Raises QueryError (INVALID_ARGUMENT).

    What follows FROM and JOIN is looked at, in sub-queries too; whether the table exists is the planner's business.
    """
    tokens = tokens_of(sql)
    callers: list[str] = ['']
    for at, token in enumerate(tokens):
        if token.text == '(':
            callers.append(tokens[at - 1].word if at else '')
        elif token.text == ')' and len(callers) > 1:
            callers.pop()
        if token.kind != 'word' or token.word not in {'from', 'join'} or callers[-1] in _WITH_FROM:
            continue
        if at and (tokens[at - 1].word == 'distinct' or tokens[at - 1].text == '.'):
            # IS DISTINCT FROM, and a column of that name.
            continue
        parts = _dotted(tokens, at + 1)
        if len(parts) == 3:
            text = f'Catalog-qualified table references are not supported: {".".join(parts)}'
            raise invalid_argument(caused_by(_UNRESOLVED, text))
        if len(parts) == 2:
            dataset, table = parts
            if dataset_name(dataset) is None:
                raise invalid_argument(caused_by(_UNRESOLVED, f'Invalid dataset reference: {dataset!r}'))
            if not _TABLE.fullmatch(table):
                raise invalid_argument(caused_by(_UNRESOLVED, f'Invalid table name: {table!r}'))


def _dotted(tokens: Sequence[Token], at: int) -> list[str]:
    """The identifiers that stand there with dots between them; none for a function or a sub-query."""
    parts: list[str] = []
    while at < len(tokens):
        identifier = tokens[at].identifier
        if identifier is None:
            return []
        parts.append(identifier)
        following = tokens[at + 1].text if at + 1 < len(tokens) else ''
        if following != '.':
            return [] if following == '(' else parts
        at += 2
    return parts


def check_aliases(sql: str, plan: LogicalPlan) -> None:
    """Refuse column aliases that begin with an underscore, at any depth. Raises QueryError (INVALID_ARGUMENT)."""
    # The display has the plans of sub-queries in expressions, which cannot be reached from Python.
    display = plan.display_indent()
    if not _UNDERSCORED.search(display):
        return
    written = {token.identifier for token in tokens_of(sql)}
    shown = tokens_of(display)
    for before, token in pairwise(shown):
        alias = token.identifier
        if before.text != 'AS' or alias is None or not alias.startswith('_') or alias.startswith(_UNNEST):
            continue
        if alias in written:
            raise invalid_argument(
                caused_by(
                    'failed to infer SQL output schema',
                    f"expression contains a column alias starting with '_': '{alias}'. "
                    'Underscore-prefixed names are reserved. Please rename your column',
                )
            )
