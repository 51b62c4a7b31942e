"""A folder of keys and values. It has no transactions: exactly-once goes by ids.

`Shelf` is the store and knows nothing of amp; put a client of yours in its place. Of a store only this is asked: a put
that happens whole or not at all, keys that can be listed by prefix, and one compare-and-set for documents.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from amp.errors import DestinationError, LoadError, SchemaError
from amp.loaders.base import DataLoader
from amp.loaders.by_id import undo_by_id
from amp.loaders.points import reached
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.loaders.types import LoadMode
from amp.streaming.ledger import IdRun

__all__ = ['Shelf', 'ShelfConfig', 'ShelfLoader']


class Shelf:
    """Values of bytes by key, each a file. A key has two parts: a shelf, of any text, and a name on it."""

    def __init__(self, root: str, *, durable: bool = True) -> None:
        self._root = Path(root)
        self._durable = durable
        self._root.mkdir(parents=True, exist_ok=True)

    def get(self, shelf: str, name: str) -> bytes | None:
        """The value; None when there is none."""
        try:
            return self._path(shelf, name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, shelf: str, name: str, value: bytes) -> None:
        """Put a value in its place, whole: a reader never sees half of it, nor does one after a power cut."""
        path = self._path(shelf, name)
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._root, prefix='.', delete=False) as file:
            file.write(value)
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        Path(file.name).replace(path)
        self._settle(path.parent)

    def delete(self, shelf: str, name: str) -> None:
        """Take a value away; harmless when there is none."""
        self._path(shelf, name).unlink(missing_ok=True)
        self._settle(self._path(shelf, name).parent)

    def names(self, shelf: str) -> list[str]:
        """Every name on a shelf, sorted."""
        folder = self._path(shelf, '')
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def replace(self, shelf: str, name: str, value: bytes, expected: bytes | None) -> bool:
        """Put `value` where `expected` is (None: nothing), or return False. No two processes do it at once."""
        with self._alone():
            if self.get(shelf, name) != expected:
                return False
            self.put(shelf, name, value)
            return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._root / '.lock').open('w') as file:
            # The system itself lets go of it when a process dies.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, shelf: str, name: str) -> Path:
        # The prefix keeps `..` from being a way out.
        return self._root / f'shelf-{quote(shelf, safe="")}' / name

    def _settle(self, folder: Path) -> None:
        if not self._durable:
            return
        for place in (folder, folder.parent):
            handle = os.open(place, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@dataclass(frozen=True)
class ShelfConfig:
    """`root`: the folder. `durable`: a power cut costs nothing."""

    root: str
    durable: bool = True


class ShelfLoader(DataLoader[ShelfConfig]):
    """Loads into a folder: append, overwrite, exactly-once streams. A value is one batch in Arrow's own format."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = {LoadMode.APPEND, LoadMode.OVERWRITE}
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    URL_PATH_KEY: ClassVar[str | None] = 'root'

    _shelf: Shelf | None = None

    def _get_required_config_fields(self) -> list[str]:
        return ['root']

    @property
    def shelf(self) -> Shelf:
        """The store. Raises DestinationError when it is not open."""
        if self._shelf is None:
            raise DestinationError('the shelf is not open', hint='call connect() or use `with loader:`')
        return self._shelf

    def connect(self) -> None:
        """Make the folder when it is not there. Raises DestinationError."""
        try:
            self._shelf = Shelf(self.config.root, durable=self.config.durable)
        except OSError as error:
            raise DestinationError(f'{self.config.root} cannot be a shelf: {error}', hint='name a folder') from error
        self._is_connected = True

    def disconnect(self) -> None:
        """Forget the folder."""
        self._shelf = None
        self._is_connected = False

    # Rows

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        if not self.shelf.replace('schemas', _file(table_name), schema.serialize().to_pybytes(), None):
            # The table may be older than its first stream.
            present = self._schema(table_name)
            self._add_columns(
                [f for f in schema if f.name in STAMP_COLUMNS and f.name not in present.names], table_name
            )

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        present = self._schema(table_name).names
        return [field for field in schema if field.name not in present]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        wider = pa.schema([*self._schema(table_name), *fields])
        self.shelf.put('schemas', _file(table_name), wider.serialize().to_pybytes())

    def _clear_table(self, table_name: str) -> None:
        for name in self.shelf.names(_rows(table_name)):
            self.shelf.delete(_rows(table_name), name)

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        """The name of a value begins with the id of its rows, by which they can be found and taken back."""
        kept = self._schema(table_name)
        for field in batch.schema:
            if kept.field(field.name).type != field.type:
                raise SchemaError(f'column {field.name!r} is {kept.field(field.name).type} there, not {field.type}')
        if batch.num_rows:
            # All rows of a batch of a stream have one id; those of a plain load have none.
            tx_id = batch.column(TX_ID)[0].as_py() if TX_ID in batch.schema.names else 0
            name = f'{tx_id:019d}-{batch.num_rows:09d}-{uuid.uuid4().hex}'
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            self.shelf.put(_rows(table_name), name, sink.getvalue().to_pybytes())
            reached('shelf.put')
        return batch.num_rows

    # Taking rows back

    def _delete_runs(self, table_name: str, runs: Sequence[IdRun]) -> int:
        rows = 0
        for name in self.shelf.names(_rows(table_name)):
            if _lies_in(name, runs):
                self.shelf.delete(_rows(table_name), name)
                reached('shelf.deleted')
                rows += _count(name)
        return rows

    def _read_state(self, key: str) -> str | None:
        found = self.shelf.get('documents', _file(key))
        return None if found is None else found.decode()

    def _write_state(self, key: str, text: str, expected: str | None) -> bool:
        reached('shelf.before_document')
        return self.shelf.replace(
            'documents', _file(key), text.encode(), None if expected is None else expected.encode()
        )

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when a schema was kept for it."""
        return self.shelf.get('schemas', _file(table_name)) is not None

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count and columns; None when it is not there."""
        if not self.table_exists(table_name):
            return None
        rows = sum(map(_count, self._visible(table_name)))
        columns = [name for name in self._schema(table_name).names if name not in STAMP_COLUMNS]
        return {'table_name': table_name, 'row_count': rows, 'exists': True, 'columns': columns}

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        return self.scan(table_name).schema if self.table_exists(table_name) else None

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The committed rows, in no promised order, the user's columns only."""
        return self.stamped_scan(table_name, [c for c in self._schema(table_name).names if c not in STAMP_COLUMNS])

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        schema = self._schema(table_name)
        wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])

        def batches() -> Iterator[pa.RecordBatch]:
            for name in self._visible(table_name):
                value = self.shelf.get(_rows(table_name), name)
                # A value that went since its name was listed belongs to rows that were taken back meanwhile.
                if value is not None:
                    table = _widened(pa.ipc.open_stream(value).read_all(), schema)
                    for column, (low, high) in (where or {}).items():
                        table = table.filter((pc.field(column) >= low) & (pc.field(column) <= high))
                    yield from table.select(wanted.names).to_batches()

        return pa.RecordBatchReader.from_batches(wanted, batches())

    def count_raw(self, table_name: str) -> int:
        """Every row that lies there, of whatever unit."""
        return sum(map(_count, self.shelf.names(_rows(table_name))))

    def _visible(self, table_name: str) -> list[str]:
        hidden = undo_by_id(self).uncommitted(table_name)
        return [name for name in self.shelf.names(_rows(table_name)) if not _lies_in(name, hidden)]

    def _schema(self, table_name: str) -> pa.Schema:
        found = self.shelf.get('schemas', _file(table_name))
        if found is None:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        return pa.ipc.read_schema(pa.py_buffer(found))


def _rows(table_name: str) -> str:
    return f'rows of {table_name}'


def _file(key: str) -> str:
    """Any text as the name of a file."""
    return 'of-' + quote(key, safe='')


def _count(name: str) -> int:
    return int(name.split('-')[1])


def _lies_in(name: str, runs: Sequence[IdRun]) -> bool:
    tx_id = int(name.partition('-')[0])
    return any(run.first <= tx_id <= run.last for run in runs)


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the columns that the table got later, as nulls."""
    for field in schema:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names)
