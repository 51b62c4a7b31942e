"""One open LMDB environment: shared by the loaders of a process, growing by itself, its errors in sentences.

LMDB forbids opening one folder twice in a process, allows one writer at a time, and may not be given another size while
a transaction of this process is open. So there is one environment a folder; writers wait for each other, and growing
waits until the scans of this process have ended.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lmdb

from amp.errors import DestinationError, IntegrityError
from amp.waiting import interruptible

__all__ = ['Environment']

T = TypeVar('T')

_FIRST_MAP_BYTES = 1 << 30
_MOST_TABLES = 1024
_HEADROOM = 64 << 20
_WAIT_FOR_SCANS = 30.0
_CATALOG = b'_amp'
_FORMAT_KEY, _FORMAT = b'format', b'1'


class Environment:
    """Transactions on one folder. `catalog` is the database in which tables and streams are listed."""

    _opened: ClassVar[dict[tuple[int, Path], Environment]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, key: tuple[int, Path], map_size: int | None, *, sync: bool) -> None:
        self._key = key
        self._sync = sync
        self._users = 0
        self._map_size = map_size or _FIRST_MAP_BYTES
        self._writing = threading.RLock()
        self._changed = threading.Condition()
        self._readers = 0
        self._databases: dict[bytes, Any] = {}
        self._open()

    @classmethod
    def shared(cls, path: str | os.PathLike[str], map_size: int | None = None, *, sync: bool = True) -> Environment:
        """The environment of a folder, opened when it is not; `release` gives it back. Raises DestinationError."""
        # A forked child must not use its parent's environment, hence the process in the key.
        key = (os.getpid(), Path(os.path.realpath(path)))
        with cls._opening:
            environment: Environment | None = cls._opened.get(key)
            if environment is None:
                environment = Environment(key, map_size, sync=sync)
                cls._opened[key] = environment
            elif sync and not environment._sync:
                environment._make_durable()
            environment._users += 1
        return environment

    @property
    def path(self) -> Path:
        """The folder."""
        return self._key[1]

    @property
    def raw(self) -> lmdb.Environment:
        """LMDB's own object."""
        raw: lmdb.Environment = self._env
        return raw

    @property
    def longest_key(self) -> int:
        """How many bytes a key may have."""
        return int(self._env.max_key_size())

    def release(self) -> None:
        """One loader less; the last one closes."""
        with self._opening:
            self._users -= 1
            if self._users == 0 and self._key[0] == os.getpid():
                del self._opened[self._key]
                self._env.close()

    def write(self, action: Callable[[Any], T], incoming: int = 0) -> T:
        """Run `action(txn)` and commit; again with a larger map when it does not fit, so it must be repeatable.

        `incoming` is about how many bytes it will write. Raises DestinationError, and whatever `action` raises.
        """
        with self._writing, self._explained('written'):
            self._make_room(incoming)
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        return action(txn)
                except lmdb.MapFullError:
                    self._grow(2 * self._size())
                except lmdb.MapResizedError:
                    self._grow(0)  # another process let it grow: take its size
                except lmdb.PanicError:
                    # A failed write of the first pages: this handle is of no more use, the file is as it was.
                    self._reopen()
                    raise

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A transaction that sees one moment, for as long as it is open. Values are valid until it ends."""
        with self._explained('read'):
            with self._changed:
                self._readers += 1
            try:
                with self._begin_reading() as txn:
                    yield txn
            finally:
                with self._changed:
                    self._readers -= 1
                    self._changed.notify_all()

    def database(self, name: bytes) -> Any | None:
        """A named database that is there; None when it is not."""
        if name not in self._databases:
            with self._writing, self._explained('read'):
                try:
                    self._databases[name] = self._env.open_db(name, create=False)
                except lmdb.NotFoundError:
                    return None
        return self._databases[name]

    def make_databases(self, *names: bytes) -> list[Any]:
        """Named databases, made when they are not there. A commit of its own, before any that uses them."""
        if any(name not in self._databases for name in names):

            def make(txn: Any) -> dict[bytes, Any]:
                return {name: self._env.open_db(name, txn=txn) for name in names}

            found = self.write(make)
            self._databases |= found
        return [self._databases[name] for name in names]

    @property
    def catalog(self) -> Any:
        """The database of tables and streams."""
        return self._databases[_CATALOG]

    # Size

    def _size(self) -> int:
        return int(self._env.info()['map_size'])

    def _make_room(self, incoming: int) -> None:
        """Grow beforehand: running into the end of the map costs all that was written of a transaction."""
        used = (self._env.info()['last_pgno'] + 1) * self._env.stat()['psize']
        wanted = used + 2 * incoming + min(_HEADROOM, self._size() // 4)
        if incoming and wanted > self._size():
            self._grow(max(wanted, 2 * self._size()))

    def _grow(self, size: int) -> None:
        with interruptible(), self._changed:
            if not self._changed.wait_for(lambda: self._readers == 0, _WAIT_FOR_SCANS):
                raise DestinationError(
                    f'the LMDB map {self.path} must grow, but a scan of this process is still open',
                    hint='finish or drop the reader, or begin with a larger map_size',
                )
            free = shutil.disk_usage(self.path).free
            if size and free < (1 << 20):
                raise DestinationError(f'the disk of {self.path} is full', hint='nothing of the last unit was kept')
            try:
                self._env.set_mapsize(size)
            except lmdb.Error:
                self._reopen()
                raise

    # Opening

    def _begin_reading(self) -> Any:
        try:
            return self._env.begin(buffers=True)
        except lmdb.MapResizedError:
            with self._writing, self._changed:
                self._readers -= 1
                try:
                    self._grow(0)
                finally:
                    self._readers += 1
            return self._env.begin(buffers=True)

    def _open(self) -> None:
        with self._explained('opened'):
            self.path.mkdir(parents=True, exist_ok=True)
            self._env: Any = lmdb.open(
                str(self.path),
                map_size=self._map_size,
                max_dbs=_MOST_TABLES,
                sync=self._sync,
                metasync=self._sync,
                max_spare_txns=0,
            )
            self._env.reader_check()
        try:
            self._databases.clear()
            self._check_format()
        except BaseException:  # whatever it is, the file is not kept open
            self._env.close()
            raise

    def _reopen(self) -> None:
        self._map_size = max(self._map_size, self._size())
        self._env.close()
        self._open()

    def _make_durable(self) -> None:
        """Of two loaders on one folder the careful one decides."""
        with interruptible(), self._writing, self._changed:
            self._changed.wait_for(lambda: self._readers == 0, _WAIT_FOR_SCANS)
            self._sync = True
            self._reopen()

    def _check_format(self) -> None:
        with self._explained('opened'), self._env.begin() as txn:
            names = [bytes(name) for name, _ in txn.cursor()]
        if names and _CATALOG not in names:
            raise DestinationError(
                f'the LMDB environment {self.path} belongs to something else',
                hint='choose a db_path of its own for the tables',
            )
        if _CATALOG not in names:
            self.write(self._begin_catalog)
        catalog = self.database(_CATALOG)
        with self._explained('opened'), self._env.begin() as txn:
            found = txn.get(_FORMAT_KEY, db=catalog)
        if found != _FORMAT:
            raise IntegrityError(
                f'the LMDB environment {self.path} has format {found!r}, which this amp does not know',
                hint='a newer amp wrote it: upgrade this one',
            )

    def _begin_catalog(self, txn: Any) -> None:
        txn.put(_FORMAT_KEY, _FORMAT, db=self._env.open_db(_CATALOG, txn=txn))

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn what LMDB and the file system say into one sentence."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise DestinationError(
                f'the LMDB environment {self.path} cannot be {verb}: {error}', hint=_hint(error), path=str(self.path)
            ) from error


def _hint(error: Exception) -> str:
    """What to do about an error of LMDB; it says the error of the system in words only."""
    said = str(error)
    # A disk that fills up in the middle of a write is an I/O error to LMDB.
    if isinstance(error, lmdb.DiskError) or any(
        os.strerror(number) in said for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
    ):
        return 'the disk is full or failing: make room; nothing of the last unit was kept'
    if isinstance(error, lmdb.DbsFullError):
        return f'an environment holds some {_MOST_TABLES // 3} tables: use another db_path'
    if isinstance(error, lmdb.ReadersFullError):
        return 'too many readers at once: close some'
    if isinstance(error, lmdb.MemoryError) or os.strerror(errno.ENOMEM) in said:
        return 'the map does not fit in the address space that this process may use: raise its limit (ulimit -v)'
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)):
        return 'what lies there is not an LMDB environment: choose another db_path, or restore it'
    return 'choose a db_path that this user may write to'
