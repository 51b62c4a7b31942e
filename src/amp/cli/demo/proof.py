"""The file of the demo: whether it may be written, and whether it holds what the chain says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from amp.errors import ConfigError

__all__ = ['Proof', 'compare', 'prepare']

_MARK = '_amp_demo'


@dataclass(frozen=True)
class Proof:
    """Rows in the file and on the chain, and how many of each the other lacks.

    `orphaned` are those of the surplus that the chain does not have at all; the others are there too often.
    """

    rows: int
    expected: int
    missing: int
    surplus: int
    orphaned: int

    @property
    def twice(self) -> int:
        """Rows that are on the chain, and in the file more often than there."""
        return self.surplus - self.orphaned

    @property
    def holds(self) -> bool:
        """True when both are equal, duplicates counted."""
        return self.rows == self.expected and self.missing == 0 and self.surplus == 0


def prepare(path: Path) -> None:
    """A fresh file with the demo's mark. One of an earlier demo is replaced; any other is a ConfigError."""
    wal = path.with_name(path.name + '.wal')
    if path.exists() or path.is_symlink():
        if not _is_ours(path):
            raise ConfigError(
                f'{str(path)!r} exists and is not the file of an earlier demo, so it is left alone',
                hint='choose another file: amp demo --path FILE',
            )
        path.unlink()
        wal.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(path)) as connection:
            connection.execute(f"CREATE TABLE {_MARK} AS SELECT 'made by amp demo; the next demo replaces it' AS note")
    except duckdb.IOException as error:
        raise ConfigError(
            f'the demo cannot write {str(path)!r}: {str(error).splitlines()[0]}',
            hint='choose another file: amp demo --path FILE',
        ) from error


def _is_ours(path: Path) -> bool:
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            found = connection.execute('SELECT 1 FROM duckdb_tables() WHERE table_name = ?', [_MARK]).fetchone()
    except duckdb.Error:  # not a DuckDB file, or in use
        return False
    return found is not None


def compare(path: Path, truth: pa.Table) -> Proof:
    """Compare the table `transfers` with `truth`, column by column and row by row, in DuckDB."""
    with duckdb.connect(str(path), read_only=True) as connection:
        connection.register('truth', truth)
        columns = ', '.join(f'"{name}"' for name in truth.schema.names)
        loaded, wanted = f'SELECT {columns} FROM transfers', f'SELECT {columns} FROM truth'
        surplus = f'{loaded} EXCEPT ALL {wanted}'
        same = ' AND '.join(f'surplus."{name}" IS NOT DISTINCT FROM truth."{name}"' for name in truth.schema.names)

        def count(of: str) -> int:
            row = connection.execute(f'SELECT count(*) FROM ({of})').fetchone()
            return int(row[0]) if row else 0

        return Proof(
            rows=count(loaded),
            expected=count(wanted),
            missing=count(f'{wanted} EXCEPT ALL {loaded}'),
            surplus=count(surplus),
            orphaned=count(f'SELECT * FROM ({surplus}) AS surplus ANTI JOIN truth ON {same}'),
        )
