"""DuckDB's statements, with Ctrl-C as what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb

from amp import waiting

__all__ = ['interruptible', 'run']


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt of the driver in the block is a KeyboardInterrupt, as everywhere else in Python.

    The driver asks Python for signals while it waits and drops the exception that their handler raised: what it raises
    in its place has no class of its own.
    """
    try:
        with waiting.interruptible():
            yield
    except RuntimeError as error:
        if type(error) is RuntimeError and str(error) == 'Query interrupted':
            raise KeyboardInterrupt from error
        raise


def run(connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement and fetch its rows. Raises the driver's errors, and KeyboardInterrupt."""
    with interruptible():
        return connection.execute(sql, list(values)).fetchall()
