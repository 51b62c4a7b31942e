"""Replacing rows by key in PostgreSQL: rows wait in a temporary table, and take their places at the end of the unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amp.errors import SchemaError
from amp.loaders.sql import REPLACED_BY, quote, same_keys
from amp.loaders.stamps import TX_ID

__all__ = ['STAGE', 'ensure_key_index', 'make_stage', 'replace_by_key']

Run = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

STAGE = 'pg_temp."_amp_stage"'
_ORDER = '"_amp_row"'


def make_stage(run: Run, columns: Mapping[str, str], names: Sequence[str], keys: Sequence[str]) -> None:
    """A temporary table for rows with the columns `names`; it goes with the transaction. Raises SchemaError."""
    missing = [k for k in keys if k not in names]
    if missing:
        raise SchemaError(f'the key column {missing[0]!r} is not in the rows', hint=f'columns: {", ".join(names)}')
    unknown = [n for n in names if n not in columns]
    if unknown:
        raise SchemaError(f'the table has no column {unknown[0]!r}', hint=f'its columns: {", ".join(columns)}')
    listed = ', '.join(f'{quote(name)} {columns[name]}' for name in names)
    run(
        f'CREATE TEMP TABLE "_amp_stage" ({listed}, {_ORDER} bigint GENERATED ALWAYS AS IDENTITY) ON COMMIT DROP',
        (),
    )


def replace_by_key(run: Run, table: str, names: Sequence[str], keys: Sequence[str], before: str | None) -> None:
    """The staged rows take the place of those with the same keys; of several with one key the last counts.

    `before` is the quoted table where rows that a stream replaces are kept for an undo; its columns are
    those of the table itself.
    """
    run(f'ANALYZE {STAGE}', ())
    same = _condition(run, keys)
    listed = ', '.join(quote(n) for n in names)
    partition = ', '.join(quote(k) for k in keys)
    newest = f'(SELECT DISTINCT ON ({partition}) {listed} FROM {STAGE} ORDER BY {partition}, {_ORDER} DESC)'
    if before is not None:
        tx = quote(TX_ID)
        run(
            f'INSERT INTO {before} ({_own_columns(run, before)}, {quote(REPLACED_BY)}) '
            f'SELECT {_own_columns(run, before, "t.")}, s.{tx} FROM {table} t '
            f'JOIN {newest} s ON {same} WHERE t.{tx} IS DISTINCT FROM s.{tx}',
            (),
        )
    run(f'DELETE FROM {table} t USING {STAGE} s WHERE {same}', ())
    run(f'INSERT INTO {table} ({listed}) SELECT {listed} FROM {newest} s', ())
    run(f'DROP TABLE {STAGE}', ())


def ensure_key_index(run: Run, table: str, keys: Sequence[str]) -> None:
    """An index by which replaced rows are found; harmless when one begins with these columns."""
    found = run(
        'SELECT 1 FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indpred IS NULL AND i.indisvalid AND '
        '(SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE "C") FROM pg_attribute a '
        'WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:$2 - 1])) = $3::text[] '
        'LIMIT 1',
        (table, len(keys), sorted(keys)),
    )
    if not found:
        run(f'CREATE INDEX ON {table} ({", ".join(quote(k) for k in keys)})', ())


def _condition(run: Run, keys: Sequence[str]) -> str:
    """Equality of keys that an index and a hash join can use; only rows with null keys need the slow one."""
    nulls = ' OR '.join(f'{quote(k)} IS NULL' for k in keys)
    [(any_null,)] = run(f'SELECT EXISTS (SELECT FROM {STAGE} WHERE {nulls})', ())
    if any_null:
        return same_keys('t', 's', keys)
    return ' AND '.join(f't.{quote(k)} = s.{quote(k)}' for k in keys)


def _own_columns(run: Run, before: str, prefix: str = '') -> str:
    rows = run(
        'SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped '
        'AND attname <> $2 ORDER BY attnum',
        (before, REPLACED_BY),
    )
    return ', '.join(prefix + quote(name) for (name,) in rows)
