"""Files of a warehouse on a local disk that are on the disk when they are closed.

The catalog's database waits for the disk, pyiceberg does not wait for its files: after a power cut the catalog could
name a file that was never written. pyiceberg makes this class by its name, in the property `py-io-impl`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

from pyiceberg.io import FileIO, OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO

__all__ = ['SyncedFileIO', 'sync']


class SyncedFileIO(PyArrowFileIO):
    """pyiceberg's files by Arrow; those on a local disk are synced when they are closed."""

    def new_output(self, location: str) -> PyArrowFile:
        """A file to be written."""
        scheme, _, path = self.parse_location(location, self.properties)
        plain = super().new_output(location)
        if scheme != 'file' or path.endswith('.parquet'):
            # Arrow writes Parquet without the interpreter; whoever has written it calls `sync`.
            return plain
        return _SyncedOutput(location, path, plain._filesystem, plain._buffer_size)

    def sync(self, location: str) -> None:
        """Wait until a file that was closed is on the disk; on an object store it is."""
        scheme, _, path = self.parse_location(location, self.properties)
        if scheme == 'file':
            _sync(path)
            _sync_folder(path)


class _SyncedOutput(PyArrowFile):
    def create(self, overwrite: bool = False) -> OutputStream:
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        return cast('OutputStream', _SyncedFile(self._path, 'wb' if overwrite else 'xb'))


class _SyncedFile(io.FileIO):
    """A file that writes all that it is given, and that is on the disk, with its name, when it is closed."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast('B')
        size = len(left)
        while left:
            # One call may take a part only, and nobody above would write the rest.
            left = left[super().write(left) :]
        return size

    def close(self) -> None:
        if self.closed:
            return
        try:
            os.fsync(self.fileno())
        finally:
            super().close()
        _sync_folder(cast('str', self.name))


def _sync_folder(path: str) -> None:
    """The name of a file is on the disk when its folder is."""
    if os.name == 'posix':
        _sync(str(Path(path).parent))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == 'posix' else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(file_io: FileIO, location: str) -> None:
    """Wait for a Parquet file that was closed, where files are synced."""
    if isinstance(file_io, SyncedFileIO):
        file_io.sync(location)
