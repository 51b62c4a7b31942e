"""Parquet files on their way into a stage: written while rows arrive, uploaded while the next one is written.

A thread writes, some others upload; what waits between them is bounded, so memory and disk are too.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amp.loaders.feed import Feed

__all__ = ['ParquetFiles', 'put_statement']

# Snowflake reads Parquet by row groups; so many rows or bytes of Arrow make one.
_ROW_GROUP_ROWS = 250_000
_ROW_GROUP_BYTES = 64 * 1024**2


class ParquetFiles:
    """Files of about `file_bytes`, each handed to `upload` when it is complete, at most `uploads` at a time.

    `upload(path)` runs in a thread of its own and owns nothing: the file is deleted here afterwards.
    """

    def __init__(self, schema: pa.Schema, upload: Callable[[Path], None], *, file_bytes: int, uploads: int = 2) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix='amp-snowflake-'))
        self._schema = schema
        self._upload = upload
        self._file_bytes = file_bytes
        self._slots = threading.BoundedSemaphore(uploads)
        self._uploaders = ThreadPoolExecutor(uploads, thread_name_prefix='amp-upload')
        self._uploading: list[Future[None]] = []
        self._rows = 0
        self.files = 0
        self.bytes = 0
        self._feed = Feed(schema, self._write)

    def push(self, batch: pa.RecordBatch) -> None:
        """Take rows; waits while the writer is behind. Raises what writing or uploading raised."""
        self._rows += batch.num_rows
        self._feed.push(batch)

    def finish(self) -> int:
        """Write and upload what is left; the number of rows in all files. Raises what went wrong on the way."""
        rows = self._feed.finish()
        for uploading in self._uploading:
            uploading.result()
        self._clean()
        return rows

    def discard(self) -> None:
        """Stop, and delete what is here; what is in the stage already is the caller's."""
        self._feed.cancel()
        self._clean()

    def _clean(self) -> None:
        self._uploaders.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, reader: pa.RecordBatchReader) -> int:
        rows = 0
        group: list[pa.RecordBatch] = []
        writer: _OpenFile | None = None
        for batch in reader:
            group.append(batch)
            rows += batch.num_rows
            if sum(b.num_rows for b in group) < _ROW_GROUP_ROWS and sum(b.nbytes for b in group) < _ROW_GROUP_BYTES:
                continue
            writer = writer or self._open()
            writer.write(group)
            group = []
            if writer.size >= self._file_bytes:
                self._hand_over(writer)
                writer = None
        if group:
            writer = writer or self._open()
            writer.write(group)
        if writer is not None:
            self._hand_over(writer)
        return rows

    def _open(self) -> _OpenFile:
        self._raise_failed()
        self.files += 1
        return _OpenFile(self._folder / f'part-{self.files:05d}.parquet', self._schema)

    def _hand_over(self, file: _OpenFile) -> None:
        self.bytes += file.close()
        self._slots.acquire()
        self._uploading.append(self._uploaders.submit(self._carry, file.path))

    def _carry(self, path: Path) -> None:
        try:
            self._upload(path)
            path.unlink()
        finally:
            self._slots.release()

    def _raise_failed(self) -> None:
        for uploading in self._uploading:
            if uploading.done():
                uploading.result()


class _OpenFile:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._sink: Any = pa.OSFile(str(path), 'wb')
        self._writer = pq.ParquetWriter(self._sink, schema, compression='zstd')

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return int(self._sink.tell())

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """One row group."""
        table = pa.Table.from_batches(list(batches))
        self._writer.write_table(table, row_group_size=table.num_rows)

    def close(self) -> int:
        """Complete the file; its size."""
        self._writer.close()
        size = int(self._sink.tell())
        self._sink.close()
        return size


def put_statement(path: Path, stage: str, folder: str) -> str:
    """SQL that uploads a file into `folder` of a stage, as it is."""
    name = str(path).replace('\\', '\\\\').replace("'", "\\'")
    return (
        f"PUT 'file://{name}' @{stage}/{folder} "
        'PARALLEL = 4 SOURCE_COMPRESSION = NONE AUTO_COMPRESS = FALSE OVERWRITE = TRUE'
    )
