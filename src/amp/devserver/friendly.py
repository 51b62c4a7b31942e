"""Errors for people: what is wrong, what there is instead, what to write; and codes that say whose fault it was.

Amp's own errors name the step that failed, and count a mistyped column among its internal errors. A server that is to
stand in for Amp must say the same; one that somebody learns with may say more. This is off unless asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from amp.errors import QueryError

__all__ = ['friendly']

Datasets = Mapping[str, Sequence[str]]
"""The tables of each dataset."""

_DATASET = re.compile(r'Dataset not found: (?P<name>.*)')
_TABLE = re.compile(r'Table (?P<table>\S*) not found in dataset (?P<dataset>.*)')
_COLUMN = re.compile(
    r"No field named (?P<name>.+?)\.(?:\s*Did you mean '(?P<guess>[^']*)'\?\.?)?(?: Valid fields are (?P<fields>.*?)\.)?$",
    re.DOTALL,
)
_CATALOG = re.compile(r'Catalog-qualified table references are not supported: [^.]*\.(?P<rest>.*)')
_OPERATION = re.compile(r'non-incremental operation: (?P<name>\w+)')
_CURSOR = re.compile(
    r"expected cursor for network '(?P<wanted>[^']*)', but cursor only contains networks: (?P<given>\[.*\])"
)
_COERCION = re.compile(
    r"satisfy a call to '(?P<name>[^']+)' function: coercion from (?P<given>.*?) to the signature (?P<wanted>.*?) failed",
    re.DOTALL,
)
_FUNCTION = re.compile(r"Invalid function '(?P<name>[^']*)'")
_NETWORKS = re.compile(r'multiple networks')
_READ_ONLY = re.compile(r'read-only constraints')
_DUPLICATES = re.compile(r'(?P<told>Duplicate field names detected in plan schema: \[.*\])')
_PARSER = re.compile(r'sql parser error: (?P<told>.*)', re.DOTALL)
_PLANNING = re.compile(r'^(failed to (infer|plan) SQL|Failed to resolve)')
_PREFIXES = re.compile(r'^(Error during planning|Schema error|Execution error): ')

_INSTEAD = {
    'Limit': 'a stream has no end to count to: leave LIMIT out, and stop reading when you have enough',
    'Aggregate': 'group by the block first, GROUP BY block_num(), ...: what spans blocks is never finished',
    'Distinct': 'use UNION ALL for UNION, and SELECT DISTINCT ON (block_num(), ...) for DISTINCT',
    'Sort': 'leave ORDER BY out: the rows of a stream come in the order of their blocks',
    'Window': 'compute it over the rows where they are loaded',
    'StackedJoins': 'join two tables at most, or make one of the joins a dataset of its own',
    'RecursiveQuery': 'ask for it as a batch query',
    'Join': 'inner joins and left or right semi joins can be streamed; outer and anti joins cannot',
}

Explained = tuple[str, str, str | None]
"""A code, a text, and a hint."""


def friendly(error: QueryError, datasets: Datasets) -> QueryError:
    """The same error for a person; its code is INVALID_ARGUMENT or NOT_FOUND where the query is at fault."""
    told = str(error)
    for pattern, explain in _EXPLANATIONS:
        match = pattern.search(told)
        if match is not None:
            code, text, hint = explain(match, datasets)
            return QueryError(text, hint=hint, code=code)
    last = told.rpartition('Caused by: ')[2].rpartition(' -> ')[2].rpartition('caused by\n')[2]
    code = 'INVALID_ARGUMENT' if _PLANNING.search(told) else str(error.context.get('code', 'INTERNAL'))
    return QueryError(_PREFIXES.sub('', last), code=code)


def _dataset(match: re.Match[str], datasets: Datasets) -> Explained:
    name = match['name']
    if not name or name == 'public':
        return 'NOT_FOUND', 'a table is named without its dataset', f'write dataset.table; {_there_is(datasets)}'
    hint = _similar(name, datasets) or _there_is(datasets)
    return 'NOT_FOUND', f'there is no dataset {name!r}', hint


def _there_is(datasets: Datasets) -> str:
    listed = '; '.join(f'{name} with {", ".join(tables)}' for name, tables in sorted(datasets.items()))
    return f'this server has {listed}' if listed else 'this server has no dataset'


def _table(match: re.Match[str], datasets: Datasets) -> Explained:
    dataset = match['dataset'].rpartition('/')[2].partition('@')[0]
    tables = datasets.get(dataset, ())
    hint = _similar(match['table'], tables) or f'it has {", ".join(tables)}'
    return 'NOT_FOUND', f'dataset {match["dataset"]} has no table {match["table"]!r}', hint


def _column(match: re.Match[str], _: Datasets) -> Explained:
    name = match['name'].strip('"')
    fields = [field.strip() for field in (match['fields'] or '').split(',') if field.strip()]
    plain = {field.rpartition('.')[2].strip('"'): field for field in fields}
    short = name.rpartition('.')[2].strip('"')
    same = next((field for field in plain if field.lower() == short.lower() and field != short), None)
    hint: str | None
    if same is not None:
        hint = f'names with capital letters need double quotes: "{same}"'
    elif match['guess']:
        hint = f'did you mean {match["guess"]}?'
    else:
        hint = _similar(short, plain) or (f'there are {", ".join(plain)}' if plain else None)
    return 'INVALID_ARGUMENT', f'there is no column {name!r}', hint


def _similar(name: str, names: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(name, list(names), n=1)
    return f'did you mean {found[0]}?' if found else None


def _catalog(match: re.Match[str], _: Datasets) -> Explained:
    return 'INVALID_ARGUMENT', 'a table reference has two parts, dataset.table', f'write {match["rest"]}'


def _operation(match: re.Match[str], _: Datasets) -> Explained:
    name = match['name']
    return 'INVALID_ARGUMENT', f'the query cannot be streamed: it contains {name}', _INSTEAD.get(name)


def _cursor(match: re.Match[str], _: Datasets) -> Explained:
    text = f'the query follows the network {match["wanted"]!r}, the cursor in amp-resume is of {match["given"]}'
    return 'INVALID_ARGUMENT', text, 'a stream resumes only with a cursor of its own network'


def _coercion(match: re.Match[str], _: Datasets) -> Explained:
    wanted = re.sub(r'^Exact\(\[(.*)\]\)$', r'\1', match['wanted'])
    text = f'{match["name"]} takes ({wanted}), not ({match["given"]})'
    return 'INVALID_ARGUMENT', text, 'see docs/local_amp.md for the functions' if 'evm' in match['name'] else None


def _function(match: re.Match[str], _: Datasets) -> Explained:
    name = match['name']
    if name == 'eth_call':
        return 'INVALID_ARGUMENT', 'eth_call needs its dataset', 'write dataset.eth_call(from, to, input, block)'
    if name.endswith('.eth_call'):
        dataset = name.removesuffix('.eth_call')
        return 'INVALID_ARGUMENT', f'dataset {dataset!r} has no node to call', 'serve it from one, with --rpc'
    return 'INVALID_ARGUMENT', f'there is no function {name!r}', None


def _networks(_: re.Match[str], __: Datasets) -> Explained:
    return 'INVALID_ARGUMENT', 'a stream follows one network, and the query reads several', 'make a stream for each'


def _read_only(_: re.Match[str], __: Datasets) -> Explained:
    return 'INVALID_ARGUMENT', 'this server answers queries and changes nothing', 'write a SELECT'


def _duplicates(match: re.Match[str], _: Datasets) -> Explained:
    return 'INVALID_ARGUMENT', match['told'], 'name the columns that you want, and give one of each pair an alias: AS'


def _syntax(match: re.Match[str], _: Datasets) -> Explained:
    hint = 'names with /, @ or - need double quotes' if re.search(r'found: [-/@]', match['told']) else None
    return 'INVALID_ARGUMENT', f'the SQL cannot be read: {match["told"]}', hint


_EXPLANATIONS: list[tuple[re.Pattern[str], Callable[[re.Match[str], Datasets], Explained]]] = [
    (_DATASET, _dataset),
    (_TABLE, _table),
    (_CATALOG, _catalog),
    (_OPERATION, _operation),
    (_CURSOR, _cursor),
    (_COERCION, _coercion),
    (_FUNCTION, _function),
    (_NETWORKS, _networks),
    (_READ_ONLY, _read_only),
    (_DUPLICATES, _duplicates),
    (_PARSER, _syntax),
    (_COLUMN, _column),
]
