"""A state store on the local disk that survives kill -9 and is shared by processes: LMDB.

Every call is one transaction. The map grows by itself. LMDB forbids opening one environment twice in a process, so
stores on one folder share it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote

from amp.errors import DestinationError, IntegrityError, MissingExtraError
from amp.streaming.batch_history import Item, Key, Value
from amp.streaming.state import OpenMap, OrderedStateStore

__all__ = ['LMDBStreamStateStore']

_T = TypeVar('_T')

_FORMAT_KEY, _FORMAT = b'format', b'1'
_FIRST_MAP_BYTES = 1 << 20
_LONGEST_NAME = 120


class LMDBStreamStateStore(OrderedStateStore):
    """State in the folder `data_dir/<connection_name>`: one folder a destination, whatever name a call gives it.

    Without `sync` a commit survives the death of the process, not that of the machine. A context manager; closing
    twice is closing once. Raises DestinationError when the disk is read-only or full, MissingExtraError without lmdb.
    """

    def __init__(
        self, connection_name: str, data_dir: str | os.PathLike[str] = '.amp_state', sync: bool = True
    ) -> None:
        self.path = Path(data_dir) / _folder(connection_name)
        self._environment: _Environment | None = _Environment.shared(self.path, sync=sync)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; the last store on it closes the environment."""
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.release()

    def _run(self, action: Callable[[OpenMap], _T], *, write: bool) -> _T:
        if self._environment is None:
            raise DestinationError(f'the state store {self.path} is closed')
        return self._environment.run(action, write=write)


class _Environment:
    """One open LMDB environment, shared by the stores of this process. Calls run one after another."""

    _opened: ClassVar[dict[tuple[int, Path], _Environment]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, key: tuple[int, Path], *, sync: bool) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise MissingExtraError('lmdb', 'lmdb') from error
        self._lmdb: Any = lmdb
        self._key = key
        self._lock = threading.Lock()
        self._sync = sync
        self._users = 0
        self._env = self._open()
        self._check_format()

    @classmethod
    def shared(cls, path: Path, *, sync: bool) -> _Environment:
        """The environment of a folder, opened when it is not; `release` gives it back."""
        # A forked child must not use its parent's environment, hence the process in the key.
        key = (os.getpid(), Path(os.path.realpath(path)))
        with cls._opening:
            environment = cls._opened.get(key)
            if environment is None:
                environment = cls._opened[key] = cls(key, sync=sync)
            elif sync:
                environment._make_durable()
            environment._users += 1
            return environment

    def release(self) -> None:
        """One store less; the last one closes."""
        with self._opening, self._lock:
            self._users -= 1
            if self._users == 0 and self._key[0] == os.getpid():
                del self._opened[self._key]
                self._env.close()

    def run(self, action: Callable[[OpenMap], _T], *, write: bool) -> _T:
        """Run `action` in one transaction, again with a larger map when it does not fit."""
        with self._lock, self._explained('written' if write else 'read'):
            while True:
                try:
                    with self._env.begin(write=write) as txn, txn.cursor() as cursor:
                        return action(lambda path, kind: _LMDBMap(txn, cursor, _prefix(path, kind)))
                except self._lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()['map_size'])
                except self._lmdb.MapResizedError:
                    self._env.set_mapsize(0)  # another process let it grow: take its size

    def _open(self) -> Any:
        path = self._key[1]
        with self._explained('opened'):
            path.mkdir(parents=True, exist_ok=True)
            return self._lmdb.open(str(path), map_size=_FIRST_MAP_BYTES, sync=self._sync, metasync=self._sync)

    def _make_durable(self) -> None:
        """Of two stores on one folder the careful one decides."""
        with self._lock:
            if not self._sync:
                self._sync = True
                self._env.close()
                self._env = self._open()

    def _check_format(self) -> None:
        with self._explained('opened'):
            with self._env.begin() as txn:
                found = txn.get(_FORMAT_KEY)
            if found is None:
                with self._env.begin(write=True) as txn:
                    txn.put(_FORMAT_KEY, _FORMAT)
        if found not in {None, _FORMAT}:
            self._env.close()
            raise IntegrityError(
                f'the state store {self._key[1]} has format {found!r}, which this amp does not know',
                hint='a newer amp wrote it: upgrade this one',
            )

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn what LMDB and the file system say into one sentence."""
        try:
            yield
        except (self._lmdb.Error, OSError) as error:
            raise DestinationError(
                f'the state store {self._key[1]} cannot be {verb}: {error}', hint=_hint(error, self._lmdb)
            ) from error


class _LMDBMap:
    """One of many ordered maps in the environment: the keys under a prefix, big-endian so that bytes sort as numbers."""

    __slots__ = ('_cursor', '_prefix', '_txn')

    def __init__(self, txn: Any, cursor: Any, prefix: bytes) -> None:
        self._txn, self._cursor, self._prefix = txn, cursor, prefix

    def get(self, key: Key) -> Value | None:
        value = self._txn.get(self._stored(key))
        return None if value is None else tuple(json.loads(value))

    def put(self, key: Key, value: Value) -> None:
        self._txn.put(self._stored(key), json.dumps(value, separators=(',', ':')).encode())

    def delete(self, key: Key) -> None:
        self._txn.delete(self._stored(key))

    def first(self, at: Key) -> Item | None:
        return self._item() if self._cursor.set_range(self._stored(at)) else None

    def last(self, at: Key) -> Item | None:
        stored = self._stored(at)
        if self._cursor.set_range(stored):
            found = self._cursor.key() == stored or self._cursor.prev()
        else:
            found = self._cursor.last()
        return self._item() if found else None

    def take(self, low: Key, high: Key) -> list[Item]:
        items: list[Item] = []
        found = self._cursor.set_range(self._stored(low))
        while found and (item := self._item()) is not None and item[0] < high:
            items.append(item)
            found = self._cursor.delete() and bool(self._cursor.key())
        return items

    def _stored(self, key: Key) -> bytes:
        return self._prefix + struct.pack(f'>{len(key)}Q', *key)

    def _item(self) -> Item | None:
        """What the cursor stands on; None when that is not of this map."""
        stored, value = self._cursor.item()
        if not stored.startswith(self._prefix):
            return None
        numbers = stored[len(self._prefix) :]
        return struct.unpack(f'>{len(numbers) // 8}Q', numbers), tuple(json.loads(value))


@lru_cache(maxsize=1024)
def _prefix(path: tuple[str, ...], kind: str) -> bytes:
    """Names of any length and characters as the first bytes of a key; a NUL keeps kinds apart."""
    return hashlib.sha256(json.dumps(path).encode()).digest() + kind.encode() + b'\0'


def _folder(connection_name: str) -> str:
    """A file name for any name: readable where it can be, never a way out of the folder."""
    quoted = quote(connection_name, safe='', errors='surrogatepass').replace('.', '%2E')
    if 0 < len(quoted) <= _LONGEST_NAME:
        return quoted
    return '%' + hashlib.sha256(connection_name.encode(errors='surrogatepass')).hexdigest()


def _hint(error: Exception, lmdb: Any) -> str:
    """What to do about an error of LMDB; it says the error of the system in words only."""
    said = str(error)
    # A disk that fills up in the middle of a write is an I/O error to LMDB.
    if isinstance(error, lmdb.DiskError) or any(
        os.strerror(number) in said for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
    ):
        return 'the disk is full or failing: make room; nothing of this call was recorded'
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)):
        return 'what lies there is not a state store: choose another `data_dir`, or restore it'
    return 'choose a `data_dir` that this user may write to'
