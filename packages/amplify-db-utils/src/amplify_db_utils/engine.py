"""DuckDB over Arrow streams: joins and distinct values. It sees numbered columns, never a name or a value of a user's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from amplify_db_utils.faults import interruptible
from amplify_db_utils.pushdown import Pushdown
from amplify_db_utils.scan import Scan

_BATCH = 1 << 16  # rows


class Engine:
    """An in-memory DuckDB; every query has a connection of its own, so that results can be read side by side."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._opened: duckdb.DuckDBPyConnection | None = None
        self.pushdown = Pushdown(self.cursor)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one query. The first one opens the database: whoever only writes never waits for it."""
        with self._lock:
            if self._opened is None:
                config: dict[str, Any] = {} if self._threads is None else {'threads': self._threads}
                self._opened = duckdb.connect(':memory:', config=config)
            return self._opened.cursor()

    def distinct(self, scan: Scan) -> Iterator[pa.RecordBatch]:
        """The distinct rows of a scan, with the declared types."""
        columns = ', '.join(f'c{at}' for at in range(len(scan.columns)))
        return self._run(f'SELECT DISTINCT {columns} FROM source_0', [scan], scan.stored, scan.declared)

    def join(
        self, left: Scan, right: Scan, on: str, columns: Sequence[tuple[str, str, str]]
    ) -> Iterator[pa.RecordBatch]:
        """The inner join of two scans; `columns` are (name in the result, 'left' or 'right', column there)."""
        sides = {'left': (0, left), 'right': (1, right)}
        chosen = [(name, *sides[side], column) for name, side, column in columns]
        listed = ', '.join(
            f'source_{at}.c{scan.columns.index(column)} AS r{i}' for i, (_, at, scan, column) in enumerate(chosen)
        )
        condition = f'source_0.c{left.columns.index(on)} = source_1.c{right.columns.index(on)}'
        stored = pa.schema([scan.stored.field(column).with_name(name) for name, _, scan, column in chosen])
        declared = pa.schema([scan.declared.field(column).with_name(name) for name, _, scan, column in chosen])
        return self._run(f'SELECT {listed} FROM source_0 JOIN source_1 ON {condition}', [left, right], stored, declared)

    def _run(
        self, query: str, scans: Sequence[Scan], stored: pa.Schema, declared: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        failures: list[Exception] = []
        with interruptible(), self.cursor() as cursor:
            for at, scan in enumerate(scans):
                cursor.register(f'source_{at}', _reader(scan, failures))
            try:
                for batch in cursor.sql(query).to_arrow_reader(_BATCH):
                    table = pa.Table.from_batches([batch]).rename_columns(stored.names)
                    yield from table.cast(stored).cast(declared).to_batches()
            except (duckdb.Error, OSError, pa.ArrowException):
                if failures:  # DuckDB tells of an error in what it reads in words of its own
                    raise failures[0] from None
                raise

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


def _reader(scan: Scan, failures: list[Exception]) -> pa.RecordBatchReader:
    schema = pa.schema([field.with_name(f'c{at}').with_nullable(True) for at, field in enumerate(scan.stored)])

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for batch in scan.stored_batches():
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        except OSError as error:
            failures.append(error)
            raise

    return pa.RecordBatchReader.from_batches(schema, batches())
