"""Batches written to a file or a pipe, one at a time: JSON, JSON lines, CSV, Parquet, Arrow.

A writer is made with the schema, takes batches, and is closed once. Memory stays that of a few batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Protocol, cast

import pyarrow as pa

from amp.cli.kinds import Format
from amp.cli.text import Text, csv_header, csv_lines, joined, json_lines

if TYPE_CHECKING:
    from io import IOBase

__all__ = ['Writer', 'open_writer']

_ROW_GROUP = 131_072  # rows: what Parquet readers like, and a few tens of MB at most


class Writer(Protocol):
    """Takes the batches of one result, in order."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Write the rows of `batch`."""

    def close(self) -> None:
        """Write what closes the format; the sink itself stays open."""


def open_writer(form: Format, sink: IO[bytes], schema: pa.Schema, *, seekable: bool) -> Writer:
    """A writer of `form` (not `table`) into `sink`. `seekable` says that an Arrow file is wanted, not a stream."""
    if form is Format.arrow:
        return _Arrow(sink, schema, seekable=seekable)
    makers: Mapping[Format, Callable[[IO[bytes], pa.Schema], Writer]] = {
        Format.json: _Json,
        Format.jsonl: _JsonLines,
        Format.csv: _Csv,
        Format.parquet: _Parquet,
    }
    return makers[form](sink, schema)


def _put_lines(sink: IO[bytes], lines: Text, end: str) -> None:
    """Write the texts, each followed by `end`: joined by Arrow, then written as one buffer."""
    ended = joined(lines, end)
    if len(ended):
        sink.write(memoryview(ended.buffers()[2]))


class _JsonLines:
    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        self._sink = sink

    def write(self, batch: pa.RecordBatch) -> None:
        _put_lines(self._sink, json_lines(batch), '\n')

    def close(self) -> None:
        pass


class _Json:
    """One array; an object a line inside it."""

    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        self._sink = sink
        self._started = False

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        if self._started:
            self._sink.write(b',\n')
        else:
            self._sink.write(b'[\n')
            self._started = True
        _put_lines(self._sink, json_lines(batch.slice(0, batch.num_rows - 1)), ',\n')
        _put_lines(self._sink, json_lines(batch.slice(batch.num_rows - 1)), '')

    def close(self) -> None:
        self._sink.write(b'\n]\n' if self._started else b'[]\n')


class _Csv:
    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        self._sink = sink
        sink.write(csv_header(schema.names).encode() + b'\n')

    def write(self, batch: pa.RecordBatch) -> None:
        _put_lines(self._sink, csv_lines(batch), '\n')

    def close(self) -> None:
        pass


class _Parquet:
    """Zstandard, row groups of 131,072 rows."""

    def __init__(self, sink: IO[bytes], schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._schema = schema
        self._writer = pq.ParquetWriter(_arrow_sink(sink), schema, compression='zstd')
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema), row_group_size=_ROW_GROUP)
        self._waiting, self._rows = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


class _Arrow:
    """The IPC file format in a file, the IPC stream format in a pipe."""

    def __init__(self, sink: IO[bytes], schema: pa.Schema, *, seekable: bool) -> None:
        out = _arrow_sink(sink)
        self._writer = pa.ipc.new_file(out, schema) if seekable else pa.ipc.new_stream(out, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


def _arrow_sink(sink: IO[bytes]) -> pa.NativeFile:
    return pa.PythonFile(cast('IOBase', _Counting(sink)), mode='w')


class _Counting:
    """A sink that knows its position: a pipe does not, and Arrow's writers ask for it."""

    closed = False

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._position = 0

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self.flush()

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
