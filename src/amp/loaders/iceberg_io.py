"""Files of a warehouse on a local disk that are on the disk when they are closed.

The catalog's database waits for the disk, pyiceberg does not wait for its files: after a power cut the catalog could
name a file that was never written. pyiceberg makes this class by its name, in the property `py-io-impl`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

from pyiceberg.io import OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO

__all__ = ['SyncedFileIO']


class SyncedFileIO(PyArrowFileIO):
    """pyiceberg's files by Arrow; those on a local disk are synced when they are closed."""

    def new_output(self, location: str) -> PyArrowFile:
        """A file to be written."""
        scheme, _, path = self.parse_location(location, self.properties)
        plain = super().new_output(location)
        if scheme != 'file':
            return plain
        return _SyncedOutput(location, path, plain._filesystem, plain._buffer_size)


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
        if os.name == 'posix':
            folder = os.open(Path(cast('str', self.name)).parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
