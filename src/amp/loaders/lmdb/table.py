"""The rows of one LMDB table, inside a transaction: written, taken back, read.

rows     in the layout `rows`: a row's key -> its bytes (`row_bytes.py`, `row_msgpack.py`)
in the layout `batches`: id, first row, rows, columns -> an Arrow IPC record batch without its schema
keys     id, first row -> the keys of the rows that came with it: what an undo follows
before   id, row's key -> the bytes of the row that the row with that id replaced
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute

from amp.errors import LoadError, SchemaError
from amp.loaders.lmdb.catalog import TableRecord
from amp.loaders.row_bytes import RowBytes, Slices
from amp.loaders.row_keys import Numbering
from amp.loaders.row_msgpack import RowMsgpack
from amp.loaders.stamps import BATCH_ID, TX_ID
from amp.streaming.ledger import IdRun

__all__ = ['Databases', 'DuplicateKeysError', 'Table', 'covers', 'kept_schema']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = Any
"""An Arrow array. Its stubs know arrays of one type only."""

_BATCH = struct.Struct('>QIIH')
_PIECE = struct.Struct('>QI')
_ID = struct.Struct('>Q')
_TEXT_HEAD = 21  # a map's head, the name `_amp_tx_id`, and the tag of its value
_PACKED: Any = pa.run_end_encoded(pa.int32(), pa.string())
_ROWS_AT_ONCE = 16_384
_LARGEST_RECORD = 64 << 20


class Databases(NamedTuple):
    """The three databases of a table."""

    rows: Any
    keys: Any
    before: Any


class DuplicateKeysError(LoadError):
    """A row whose key is there already, in a load that only appends."""


def kept_schema(record: TableRecord) -> pa.Schema:
    """The columns that a row holds: the id is kept beside them."""
    at = record.schema.get_field_index(TX_ID)
    return record.schema if at < 0 else record.schema.remove(at)


def covers(runs: Sequence[IdRun], tx_id: int) -> bool:
    """True when an id lies in one of the runs."""
    return any(run.first <= tx_id <= run.last for run in runs)


class Table:
    """One table in one transaction. `record.layout` is known, except for an empty table."""

    def __init__(self, txn: Any, databases: Databases, name: str, record: TableRecord, longest_key: int = 511) -> None:
        self._txn, self._databases, self._name, self._record = txn, databases, name, record
        # A key has to fit behind an id, too.
        self._longest_key = longest_key - _ID.size
        self._schema = kept_schema(record)
        text = record.serialization == 'msgpack'
        self._codec: RowBytes | RowMsgpack = RowMsgpack(self._schema) if text else RowBytes(self._schema)
        self._head = struct.Struct(f'>{_TEXT_HEAD}xq') if text else struct.Struct('<q')

    # Writing

    def append(self, batch: pa.RecordBatch, numbering: Numbering, *, indexed: bool) -> None:
        """Rows of the kept schema. Raises DuplicateKeysError; then the transaction must be aborted."""
        if self._record.layout == 'batches':
            self._put_batch(batch, numbering)
            return
        keys, rows = self._encoded(batch, numbering)
        with self._txn.cursor(self._databases.rows) as cursor:
            consumed, added = cursor.putmulti(zip(_pieces(keys), _pieces(rows), strict=True), overwrite=False)
        if added < consumed:
            raise self._duplicate(keys, numbering.tx_id, consumed - added)
        if indexed:
            self._index(keys, numbering)

    def replace(self, batch: pa.RecordBatch, numbering: Numbering, *, reversible: bool) -> None:
        """Rows in the place of those with the same keys; of several with one key the last counts."""
        batch = batch.take(self._last_of_equals(batch, numbering))
        keys, rows = self._encoded(batch, numbering)
        if reversible:
            self._keep_before(keys, numbering.tx_id)
            self._index(keys, numbering)
        with self._txn.cursor(self._databases.rows) as cursor:
            cursor.putmulti(zip(_pieces(keys), _pieces(rows), strict=True), overwrite=True)

    def clear(self) -> int:
        """Take every row away; how many there were."""
        rows = self.count()
        for database in self._databases:
            self._txn.drop(database, delete=False)
        return rows

    def _put_batch(self, batch: pa.RecordBatch, numbering: Numbering) -> None:
        pieces = max(1, -(-batch.nbytes // _LARGEST_RECORD))
        step = max(1, -(-batch.num_rows // pieces))
        for at in range(0, batch.num_rows, step):
            piece = _packed(batch.slice(at, step))
            key = _BATCH.pack(numbering.tx_id, numbering.first_row + at, piece.num_rows, piece.num_columns)
            self._txn.put(key, memoryview(piece.serialize()), db=self._databases.rows)

    def _encoded(self, batch: pa.RecordBatch, numbering: Numbering) -> tuple[Column, Column]:
        """Keys and rows, in the order of the keys: neighbours go to the same pages."""
        keys, rows = self._keys(batch, numbering), self._codec.encode(batch, numbering.tx_id)
        if self._spec.is_numbered:
            return keys, rows
        order = pc.sort_indices(keys)
        return keys.take(order), rows.take(order)

    @property
    def _spec(self) -> Any:
        return self._record.key

    def _keys(self, batch: pa.RecordBatch, numbering: Numbering) -> Column:
        keys: Column = self._spec.encode(batch, numbering)
        sizes = pc.min_max(pc.binary_length(keys))
        longest, shortest = sizes['max'].as_py() or 1, sizes['min'].as_py()
        if shortest == 0 or longest > self._longest_key:
            told = 'is empty' if shortest == 0 else f'has {longest} bytes'
            raise SchemaError(
                f'a key ({", ".join(self._spec.columns)}) {told}; LMDB takes 1 to {self._longest_key} bytes',
                hint='choose a shorter key: a hash of the value, or another column',
                table=self._name,
            )
        return keys

    def _last_of_equals(self, batch: pa.RecordBatch, numbering: Numbering) -> Column:
        codes = self._keys(batch, numbering).dictionary_encode().indices.to_numpy()
        last = np.zeros(codes.max(initial=-1) + 1, np.int64)
        last[codes] = np.arange(len(codes))
        return pa.array(np.sort(last))

    def _index(self, keys: Column, numbering: Numbering) -> None:
        ends = np.cumsum(pc.binary_length(keys).to_numpy(), dtype='<u4')
        offsets = np.frombuffer(keys.buffers()[1], np.int32)[keys.offset :]
        data = keys.buffers()[2].slice(int(offsets[0]), int(offsets[len(keys)] - offsets[0])).to_pybytes()
        stored = len(keys).to_bytes(4, 'little') + ends.tobytes() + data
        self._txn.put(_PIECE.pack(numbering.tx_id, numbering.first_row), stored, db=self._databases.keys)

    def _keep_before(self, keys: Column, tx_id: int) -> None:
        with self._txn.cursor(self._databases.rows) as cursor:
            found = cursor.getmulti(_pieces(keys))
        prefix = _ID.pack(tx_id)
        for key, row in found:
            if self._id_of(row) != tx_id:
                self._txn.put(prefix + bytes(key), bytes(row), db=self._databases.before)

    def _duplicate(self, keys: Column, tx_id: int, count: int) -> DuplicateKeysError:
        counted = pc.value_counts(keys)
        twice = counted.field('values').filter(pc.greater(counted.field('counts'), 1))
        with self._txn.cursor(self._databases.rows) as cursor:
            found = cursor.getmulti(_pieces(keys))
        older = next((bytes(key) for key, row in found if self._id_of(row) != tx_id), None)
        example = older if older is not None or not len(twice) else twice[0].as_py()
        where = (
            'already in the table' if older is not None or not len(twice) else 'of another row of the same load into'
        )
        told = f', for example {example!r}' if example is not None else ''
        return DuplicateKeysError(
            f'{count} rows have a key ({", ".join(self._spec.columns)}) that is {where} {self._name!r}{told}',
            hint="nothing of the unit was kept; mode='upsert' replaces rows by key",
            table=self._name,
        )

    # Taking back

    def undo(self, runs: Sequence[IdRun]) -> int:
        """Take the rows with these ids away, and bring back what they replaced; how many there were."""
        if self._record.layout == 'batches':
            return sum(self._delete_batches(run) for run in runs)
        touched = [key for run in runs for key in self._indexed(run)]
        with self._txn.cursor(self._databases.rows) as cursor:
            found = {bytes(key): bytes(row) for key, row in cursor.getmulti(touched)}
        rows = sum(self._take_back(key, found[key], runs) for key in dict.fromkeys(touched) if key in found)
        for run in runs:
            self._delete_range(self._databases.keys, run)
            self._delete_range(self._databases.before, run)
        return rows

    def settle(self, run: IdRun) -> None:
        """Forget how to undo these ids: they are final."""
        self._delete_range(self._databases.keys, run)
        self._delete_range(self._databases.before, run)

    def _take_back(self, key: bytes, row: bytes, runs: Sequence[IdRun]) -> int:
        """Take the versions with these ids out of the history of a key; 1 when it had one.

        A version that somebody else has replaced meanwhile is taken out of their memory of it.
        """
        history: list[bytes] = []
        version: bytes | None = row
        while version is not None:
            history.append(version)
            version = self._before(version, key)
        kept = [version for version in history if not covers(runs, self._id_of(version))]
        if len(kept) == len(history):
            return 0
        place = (key, self._databases.rows)
        for version in kept:
            self._txn.put(place[0], version, db=place[1])
            place = (self._newer_key(version, key), self._databases.before)
        if not kept or kept[-1] is not history[-1]:
            self._txn.delete(place[0], db=place[1])
        return 1

    def _before(self, row: bytes, key: bytes) -> bytes | None:
        stored = self._txn.get(self._newer_key(row, key), db=self._databases.before)
        return None if stored is None else bytes(stored)

    def _newer_key(self, row: bytes, key: bytes) -> bytes:
        return _ID.pack(self._id_of(row)) + key

    def _indexed(self, run: IdRun) -> list[bytes]:
        keys: list[bytes] = []
        for _, stored in self._range(self._databases.keys, run):
            count = int.from_bytes(stored[:4], 'little')
            ends = np.frombuffer(stored, '<u4', count, 4)
            data = bytes(stored[4 + 4 * count :])
            starts = np.concatenate([np.zeros(1, '<u4'), ends[:-1]]) if count else ends
            keys += map(data.__getitem__, map(slice, starts.tolist(), ends.tolist()))
        return keys

    def _delete_batches(self, run: IdRun) -> int:
        rows = 0
        with self._txn.cursor(self._databases.rows) as cursor:
            found = cursor.set_range(_ID.pack(run.first))
            while found and (key := bytes(cursor.key())) < _ID.pack(run.last + 1):
                rows += _BATCH.unpack(key)[2]
                found = cursor.delete() and bool(cursor.key())
        return rows

    def _delete_range(self, database: Any, run: IdRun) -> None:
        if run.first > run.last:
            return
        with self._txn.cursor(database) as cursor:
            found = cursor.set_range(_ID.pack(run.first))
            while found and bytes(cursor.key()) < _ID.pack(run.last + 1):
                found = cursor.delete() and bool(cursor.key())

    def _range(self, database: Any, run: IdRun) -> Iterator[tuple[bytes, Any]]:
        with self._txn.cursor(database) as cursor:
            found = cursor.set_range(_ID.pack(run.first))
            while found and (key := bytes(cursor.key())) < _ID.pack(run.last + 1):
                yield key, cursor.value()
                found = cursor.next()

    def _id_of(self, row: Any) -> int:
        tx_id: int = self._head.unpack_from(row)[0]
        return tx_id

    # Reading

    def count(self, hidden: Sequence[IdRun] = ()) -> int:
        """The number of rows, without the hidden ones."""
        if self._record.layout == 'batches':
            keys = (_BATCH.unpack(key) for key in self._batch_keys())
            return sum(rows for tx_id, _, rows, _ in keys if not covers(hidden, tx_id))
        total = int(self._txn.stat(self._databases.rows)['entries'])
        return total - sum(len(self._indexed(run)) for run in hidden)

    def scan(self, hidden: Sequence[IdRun] = ()) -> Iterator[tuple[pa.RecordBatch, Column]]:
        """Batches of the kept schema, with the ids of their rows."""
        if self._record.layout == 'batches':
            yield from self._scan_batches(hidden)
        elif self._record.layout is not None:
            yield from self._scan_rows(hidden)

    def get(self, key: bytes, hidden: Sequence[IdRun] = ()) -> tuple[pa.RecordBatch, int] | None:
        """The row with a key, as a batch of one row, and its id; None when it is not there."""
        if self._record.layout == 'batches':
            return self._find_numbered(key, hidden)
        stored = self._txn.get(key, db=self._databases.rows) if self._record.layout and key else None
        if stored is None or covers(hidden, self._id_of(stored)):
            return None
        data = bytes(stored)
        batch, ids = self._codec.decode(Slices(pa.py_buffer(data), np.array([0]), np.array([len(data)])))
        return batch, int(ids[0])

    def _batch_keys(self) -> Iterator[bytes]:
        with self._txn.cursor(self._databases.rows) as cursor:
            yield from map(bytes, cursor.iternext(keys=True, values=False))

    def _scan_batches(self, hidden: Sequence[IdRun]) -> Iterator[tuple[pa.RecordBatch, Column]]:
        with self._txn.cursor(self._databases.rows) as cursor:
            for key, stored in cursor.iternext():
                tx_id, _, rows, columns = _BATCH.unpack(key)
                if not covers(hidden, tx_id):
                    yield self._read_batch(bytes(stored), columns), pa.repeat(pa.scalar(tx_id, pa.int64()), rows)

    def _scan_rows(self, hidden: Sequence[IdRun]) -> Iterator[tuple[pa.RecordBatch, Column]]:
        with self._txn.cursor(self._databases.rows) as cursor:
            every = cursor.iternext(keys=False, values=True)
            while stored := list(islice(every, _ROWS_AT_ONCE)):
                ends = np.cumsum(np.fromiter(map(len, stored), np.int64, len(stored)))
                starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
                batch, ids = self._codec.decode(Slices(pa.py_buffer(b''.join(stored)), starts, ends))
                if hidden:
                    shown = ~np.logical_or.reduce([(ids >= run.first) & (ids <= run.last) for run in hidden])
                    batch, ids = batch.filter(pa.array(shown)), ids[shown]
                yield batch, pa.array(ids.astype(np.int64))

    def _find_numbered(self, key: bytes, hidden: Sequence[IdRun]) -> tuple[pa.RecordBatch, int] | None:
        """`<transaction id>:<row number>` in the batch that holds it."""
        try:
            tx_id, row = map(int, key.split(b':'))
            at = _PIECE.pack(tx_id, row + 1)
        except (ValueError, struct.error):
            return None
        with self._txn.cursor(self._databases.rows) as cursor:
            found = cursor.prev() if cursor.set_range(at) else cursor.last()
            if not found:
                return None
            own_id, first, rows, columns = _BATCH.unpack(cursor.key())
            if own_id != tx_id or not first <= row < first + rows or covers(hidden, tx_id):
                return None
            return self._read_batch(bytes(cursor.value()), columns).slice(row - first, 1), tx_id

    def _read_batch(self, stored: bytes, columns: int) -> pa.RecordBatch:
        own = pa.schema([_packed_field(self._schema.field(i)) for i in range(columns)])
        batch = _unpacked(pa.ipc.read_record_batch(pa.py_buffer(stored), own))
        missing = [pa.nulls(batch.num_rows, self._schema.field(i).type) for i in range(columns, len(self._schema))]
        return pa.RecordBatch.from_arrays([*batch.columns, *missing], schema=self._schema)


def _pieces(column: Column) -> Column:
    """The values of a column as bytes, made in one go."""
    return column.to_numpy(zero_copy_only=False)


def _packed_field(field: pa.Field[Any]) -> pa.Field[Any]:
    return field.with_type(_PACKED) if field.name == BATCH_ID else field


def _packed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With the id of the microbatch, which is the same in every row, as one value and a length."""
    at = batch.schema.get_field_index(BATCH_ID)
    if at < 0:
        return batch
    return batch.set_column(at, _packed_field(batch.schema.field(at)), pc.run_end_encode(batch.column(at)))


def _unpacked(batch: pa.RecordBatch) -> pa.RecordBatch:
    at = batch.schema.get_field_index(BATCH_ID)
    if at < 0:
        return batch
    return batch.set_column(at, pa.field(BATCH_ID, pa.string()), pc.run_end_decode(batch.column(at)))
