"""An example of a third-party loader without transactions: exactly-once by undo of id runs.

Rows lie in a SQLite file as small Arrow pieces, each committed by itself, so a batch that is being written, and a range
that is being deleted, can be seen half done, as in any destination that commits by itself. What makes it exactly-once
is `_delete_runs` and documents that are replaced by compare-and-set.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from amp.errors import LoadError
from amp.loaders.base import DataLoader
from amp.loaders.by_id import UndoById
from amp.loaders.points import reached
from amp.loaders.stamps import TX_ID, without_stamps
from amp.streaming.ledger import IdRun

_PIECES = 3


@dataclass(frozen=True)
class ByIdConfig:
    path: str


class ByIdLoader(DataLoader[ByIdConfig]):
    """Appends to a SQLite file."""

    _connection: sqlite3.Connection | None = None

    def _get_required_config_fields(self) -> list[str]:
        return ['path']

    def connect(self) -> None:
        self._connection = sqlite3.connect(self.config.path, isolation_level=None, timeout=20, check_same_thread=False)
        # A killed process loses nothing that was committed; only a machine that loses power could.
        self._run('PRAGMA synchronous = OFF')
        self._run('CREATE TABLE IF NOT EXISTS documents (key TEXT PRIMARY KEY, text TEXT NOT NULL)')
        self._run('CREATE TABLE IF NOT EXISTS tables (name TEXT PRIMARY KEY, columns BLOB NOT NULL)')
        self._run('CREATE TABLE IF NOT EXISTS pieces (name TEXT NOT NULL, id INTEGER NOT NULL, rows BLOB NOT NULL)')
        self._run('CREATE INDEX IF NOT EXISTS pieces_by_id ON pieces (name, id)')
        self._is_connected = True

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._is_connected = False

    def is_transient(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY

    # Rows

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        columns = schema.serialize().to_pybytes()
        self._run('INSERT INTO tables VALUES (?, ?) ON CONFLICT DO NOTHING', table_name, columns)

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        schema = self._stored_schema(table_name)
        has_id = batch.num_rows and TX_ID in batch.schema.names
        tx_id = batch.column(TX_ID)[0].as_py() if has_id else 0
        rows = max(1, -(-batch.num_rows // _PIECES))
        for at in range(0, batch.num_rows, rows):
            piece = batch.slice(at, rows).select(schema.names)
            self._run('INSERT INTO pieces VALUES (?, ?, ?)', table_name, tx_id, piece.serialize().to_pybytes())
            reached('by_id.piece_written')
        return batch.num_rows

    def _delete_runs(self, table_name: str, runs: Sequence[IdRun]) -> int:
        rows = 0
        for run in runs:
            found = self._run('SELECT rowid, rows FROM pieces WHERE name = ? AND id BETWEEN ? AND ?', table_name, *run)
            for rowid, piece in found:
                self._run('DELETE FROM pieces WHERE rowid = ?', rowid)
                reached('by_id.piece_deleted')
                rows += self._read_piece(piece, self._stored_schema(table_name)).num_rows
        return rows

    def _clear_table(self, table_name: str) -> None:
        self._run('DELETE FROM pieces WHERE name = ?', table_name)

    # Documents

    def _read_state(self, key: str) -> str | None:
        found = self._run('SELECT text FROM documents WHERE key = ?', key)
        return found[0][0] if found else None

    def _write_state(self, key: str, text: str, expected: str | None) -> bool:
        reached('by_id.before_document')
        if expected is None:
            sql = 'INSERT INTO documents (text, key) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1'
            return bool(self._run(sql, text, key))
        return bool(
            self._run('UPDATE documents SET text = ? WHERE key = ? AND text = ? RETURNING 1', text, key, expected)
        )

    # Looking

    def table_exists(self, table_name: str) -> bool:
        return bool(self._run('SELECT 1 FROM tables WHERE name = ?', table_name))

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        if not self.table_exists(table_name):
            return None
        rows = sum(batch.num_rows for batch in self.scan(table_name))
        columns = without_stamps(self._stored_schema(table_name).empty_table().to_batches()[0]).schema.names
        return {'table_name': table_name, 'row_count': rows, 'exists': True, 'columns': columns}

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The rows of units that are done."""
        schema = self._stored_schema(table_name)
        hidden = self.streaming_destination().uncommitted(table_name)
        where = ''.join(f' AND NOT id BETWEEN {run.first} AND {run.last}' for run in hidden)
        found = self._run(f'SELECT rows FROM pieces WHERE name = ?{where}', table_name)
        pieces = self._visible(found, schema)
        empty = without_stamps(pa.RecordBatch.from_pylist([], schema=schema))
        return pa.RecordBatchReader.from_batches(empty.schema, pieces)

    def count_raw(self, table_name: str) -> int:
        """Every row that lies there, of whatever unit."""
        schema = self._stored_schema(table_name)
        found = self._run('SELECT rows FROM pieces WHERE name = ?', table_name)
        return sum(self._read_piece(piece, schema).num_rows for (piece,) in found)

    def streaming_destination(self) -> UndoById:
        found = super().streaming_destination()
        assert isinstance(found, UndoById)
        return found

    def _visible(self, found: list[tuple[Any, ...]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for (piece,) in found:
            yield without_stamps(self._read_piece(piece, schema))

    def _read_piece(self, piece: bytes, schema: pa.Schema) -> pa.RecordBatch:
        return pa.ipc.read_record_batch(pa.py_buffer(piece), schema)

    def _stored_schema(self, table_name: str) -> pa.Schema:
        found = self._run('SELECT columns FROM tables WHERE name = ?', table_name)
        if not found:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        return pa.ipc.read_schema(pa.py_buffer(found[0][0]))

    def _run(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(sql, values).fetchall()
