"""Which batches of a stream are committed, for loaders whose destination cannot say so itself.

Exactly-once loaders keep their state inside the destination and never read these stores. At-least-once loaders do, and
people who correlate batches. A stream is (table, name); None names the stream like its table. The connection is part
of the signatures and of no key: an alias of a destination finds the same state.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from amp.errors import ConfigError
from amp.streaming.batch_history import MAX_BLOCK, BatchHistory, Item, Key, OrderedMap, Value, walk
from amp.streaming.types import BatchIdentifier, BlockRange, ResumeWatermark

__all__ = [
    'BatchIdentifier',
    'InMemoryStreamStateStore',
    'NullStreamStateStore',
    'OrderedStateStore',
    'ProcessedBatch',
    'StreamStateStore',
    'make_local_store',
]

_T = TypeVar('_T')

_DOCUMENT: Key = (0,)

# Opens the map of one kind under a path of names: (table, stream) or (table, stream, network).
OpenMap = Callable[[tuple[str, ...], str], OrderedMap]


@dataclass(frozen=True, slots=True)
class ProcessedBatch:
    """A committed batch and when it was recorded (UTC)."""

    identifier: BatchIdentifier
    processed_at: datetime


class StreamStateStore(ABC):
    """The memory of streams. Safe to share between threads; every call is one step, done or not done."""

    @abstractmethod
    def is_processed(
        self, connection: str, table: str, batch_ids: Sequence[BatchIdentifier], stream: str | None = None
    ) -> bool:
        """True when all of `batch_ids` (at least one) are committed and not undone. Never a reason to skip data."""

    @abstractmethod
    def mark_processed(
        self, connection: str, table: str, batch_ids: Sequence[BatchIdentifier], stream: str | None = None
    ) -> None:
        """Record batches as committed, all or none. Marking again changes nothing. Raises ValueError on bad ranges."""

    @abstractmethod
    def get_resume_position(
        self,
        connection: str,
        table: str,
        detect_gaps: bool = False,
        stream: str | None = None,
        start_block: int = 0,
    ) -> ResumeWatermark | None:
        """Per network the batch at the newest committed end; None when nothing is committed.

        With `detect_gaps` the batch before the first gap at or after `start_block` (a network whose gap comes before
        its first batch has none), and every gap in `.gaps`. A position always has a hash: where that of an end is
        not known, it is the newest block below whose hash is.
        """

    @abstractmethod
    def invalidate_from_block(
        self, connection: str, table: str, network: str, from_block: int, stream: str | None = None
    ) -> list[BatchIdentifier]:
        """Undo every batch of `network` that ends at `from_block` or later; they are returned by end.

        Coverage that `cleanup_before_block` made final is cut at `from_block`.
        """

    @abstractmethod
    def cleanup_before_block(
        self, connection: str, table: str, network: str, before_block: int, stream: str | None = None
    ) -> None:
        """Forget batches of `network` that end before `before_block` one by one; what they cover stays.

        Resume position and gaps do not change; `is_processed` of a forgotten batch is answered by coverage.
        """

    @abstractmethod
    def load_document(self, key: tuple[str, str]) -> str | None:
        """The one text that is kept for a (table, stream), None when there is none."""

    @abstractmethod
    def replace_document(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        """Keep `text` if what is there is still `expected` (None: nothing), in one step across processes."""

    def close(self) -> None:  # noqa: B027  most stores hold nothing open
        """Let go of what the store holds open."""


class OrderedStateStore(StreamStateStore):
    """A store over ordered maps; a subclass says where these are and what makes a call atomic."""

    @abstractmethod
    def _run(self, action: Callable[[OpenMap], _T], *, write: bool) -> _T:
        """Run `action` alone; with `write` its changes become visible (and durable) together when it returns."""

    def is_processed(
        self,
        connection: str,
        table: str,
        batch_ids: Sequence[BatchIdentifier],
        stream: str | None = None,
    ) -> bool:
        """See StreamStateStore."""

        def check(open_map: OpenMap) -> bool:
            key = _stream_key(table, stream)
            return all(_history(open_map, key, batch.network).contains(batch) for batch in batch_ids)

        return bool(batch_ids) and all(map(_is_range, batch_ids)) and self._run(check, write=False)

    def mark_processed(
        self,
        connection: str,
        table: str,
        batch_ids: Sequence[BatchIdentifier],
        stream: str | None = None,
    ) -> None:
        """See StreamStateStore."""
        for batch in batch_ids:
            if not _is_range(batch):
                raise ValueError(f'not a range of blocks: {batch}')
            _ = batch.unique_id  # raises ValueError for text that is not Unicode, before anything is recorded

        def mark(open_map: OpenMap) -> None:
            key = _stream_key(table, stream)
            histories = {network: _history(open_map, key, network) for network in {b.network for b in batch_ids}}
            networks = open_map(key, 'networks')
            for network in histories:
                networks.put(_name_key(network), (network,))
            now = time.time()
            for batch in batch_ids:
                histories[batch.network].add(batch, now)

        if batch_ids:
            self._run(mark, write=True)

    def get_resume_position(
        self,
        connection: str,
        table: str,
        detect_gaps: bool = False,
        stream: str | None = None,
        start_block: int = 0,
    ) -> ResumeWatermark | None:
        """See StreamStateStore."""
        start_block = _clamped(start_block)

        def read(open_map: OpenMap) -> ResumeWatermark | None:
            ranges: list[BlockRange] = []
            gaps: list[BlockRange] = []
            for history in _histories(open_map, _stream_key(table, stream)):
                found = history.before_first_gap(start_block) if detect_gaps else history.newest()
                ranges.extend([found] if found is not None else [])
                gaps.extend(history.gaps(start_block) if detect_gaps else ())
            return ResumeWatermark(ranges, gaps) if ranges or gaps else None

        return self._run(read, write=False)

    def invalidate_from_block(
        self,
        connection: str,
        table: str,
        network: str,
        from_block: int,
        stream: str | None = None,
    ) -> list[BatchIdentifier]:
        """See StreamStateStore."""

        def undo(open_map: OpenMap) -> list[BatchIdentifier]:
            return _history(open_map, _stream_key(table, stream), network).truncate(_clamped(from_block))

        return self._run(undo, write=True)

    def cleanup_before_block(
        self,
        connection: str,
        table: str,
        network: str,
        before_block: int,
        stream: str | None = None,
    ) -> None:
        """See StreamStateStore."""

        def forget(open_map: OpenMap) -> None:
            _history(open_map, _stream_key(table, stream), network).forget(_clamped(before_block))

        self._run(forget, write=True)

    def processed_batches(self, table: str, stream: str | None = None) -> list[ProcessedBatch]:
        """The batches that are remembered one by one, by network and end."""

        def read(open_map: OpenMap) -> list[ProcessedBatch]:
            return [
                ProcessedBatch(identifier, datetime.fromtimestamp(at, UTC))
                for history in _histories(open_map, _stream_key(table, stream))
                for identifier, at in history.batches()
            ]

        return self._run(read, write=False)

    def load_document(self, key: tuple[str, str]) -> str | None:
        """See StreamStateStore."""
        value = self._run(lambda open_map: open_map(key, 'document').get(_DOCUMENT), write=False)
        return str(value[0]) if value is not None else None

    def replace_document(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        """See StreamStateStore."""

        def replace(open_map: OpenMap) -> bool:
            documents = open_map(key, 'document')
            if documents.get(_DOCUMENT) != (None if expected is None else (expected,)):
                return False
            documents.put(_DOCUMENT, (text,))
            return True

        return self._run(replace, write=True)


class InMemoryStreamStateStore(OrderedStateStore):
    """A store that lives as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._maps: dict[tuple[tuple[str, ...], str], _SortedMap] = {}

    def _run(self, action: Callable[[OpenMap], _T], *, write: bool) -> _T:
        with self._lock:
            return action(self._open)

    def _open(self, path: tuple[str, ...], kind: str) -> OrderedMap:
        found = self._maps.get((path, kind))
        if found is None:
            found = self._maps[path, kind] = _SortedMap()
        return found


class NullStreamStateStore(StreamStateStore):
    """A store that remembers nothing."""

    def is_processed(self, *args: object, **kwargs: object) -> bool:
        """Always False."""
        return False

    def mark_processed(self, *args: object, **kwargs: object) -> None:
        """Nothing."""

    def get_resume_position(self, *args: object, **kwargs: object) -> None:
        """Always None."""

    def invalidate_from_block(self, *args: object, **kwargs: object) -> list[BatchIdentifier]:
        """Always empty."""
        return []

    def cleanup_before_block(self, *args: object, **kwargs: object) -> None:
        """Nothing."""

    def load_document(self, key: tuple[str, str]) -> str | None:
        """Always None."""
        return None

    def replace_document(self, key: tuple[str, str], text: str, expected: str | None) -> bool:
        """Always True: there is nothing that another could have changed."""
        return True


class _SortedMap:
    """An ordered map in memory. Streams append: inserting in the middle of 100,000 keys moves less than a megabyte."""

    __slots__ = ('_keys', '_values')

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._values: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        if key not in self._values:
            if self._keys and key < self._keys[-1]:
                self._keys.insert(bisect_left(self._keys, key), key)
            else:
                self._keys.append(key)
        self._values[key] = value

    def delete(self, key: Key) -> None:
        del self._values[key]
        del self._keys[bisect_left(self._keys, key)]

    def first(self, at: Key) -> Item | None:
        return self._item(bisect_left(self._keys, at))

    def last(self, at: Key) -> Item | None:
        return self._item(bisect_right(self._keys, at) - 1)

    def take(self, low: Key, high: Key) -> list[Item]:
        begin, end = bisect_left(self._keys, low), bisect_left(self._keys, high)
        items = [(key, self._values.pop(key)) for key in self._keys[begin:end]]
        del self._keys[begin:end]
        return items

    def _item(self, index: int) -> Item | None:
        if not 0 <= index < len(self._keys):
            return None
        key = self._keys[index]
        return key, self._values[key]


def make_local_store(config: object, *, connection_name: str | None = None) -> StreamStateStore:
    """The store that a loader's key `state` asks for: None (in memory), a store, or a mapping.

    Keys: `enabled` (False: remember nothing), `storage` ('memory', 'lmdb', 'null'), and for lmdb `connection_name`
    (`connection_name` of this call when left out) and `data_dir`. Raises ConfigError naming what it does not know.
    """
    if config is None:
        return InMemoryStreamStateStore()
    if isinstance(config, StreamStateStore):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(f'`state` is a mapping or a state store, not {type(config).__name__}')
    options = dict(config)
    enabled, storage = options.pop('enabled', True), options.pop('storage', 'memory')
    if not isinstance(enabled, bool):
        raise ConfigError(f'`state.enabled` is true or false, not {enabled!r}')
    if storage not in ('memory', 'lmdb', 'null'):
        raise ConfigError(f'unknown `state.storage`: {storage!r}', hint="one of 'memory', 'lmdb', 'null'")
    allowed = {'connection_name', 'data_dir'} if storage == 'lmdb' else set()
    unknown = sorted(str(key) for key in options.keys() - allowed)
    if unknown:
        raise ConfigError(
            f'unknown keys in `state` with storage {storage!r}: {", ".join(unknown)}',
            hint="`enabled`, `storage`; with storage 'lmdb' also `connection_name`, `data_dir`",
        )
    if not enabled or storage == 'null':
        return NullStreamStateStore()
    return InMemoryStreamStateStore() if storage == 'memory' else _lmdb_store(options, connection_name)


def _lmdb_store(options: dict[str, object], connection_name: str | None) -> StreamStateStore:
    options.setdefault('connection_name', connection_name)
    options.setdefault('data_dir', '.amp_state')
    name, data_dir = options['connection_name'], options['data_dir']
    if not isinstance(name, str):
        raise ConfigError(
            'lmdb state needs `connection_name`, the name that tells this destination from others',
            hint="state={'storage': 'lmdb', 'connection_name': ...}",
        )
    if not isinstance(data_dir, str | os.PathLike):
        raise ConfigError(f'`state.data_dir` is a folder, not {data_dir!r}')
    from amp.streaming.lmdb_state import LMDBStreamStateStore

    return LMDBStreamStateStore(name, data_dir)


def _stream_key(table: str, stream: str | None) -> tuple[str, str]:
    return table, table if stream is None else stream


def _name_key(name: str) -> Key:
    return struct.unpack('>4Q', hashlib.sha256(name.encode(errors='surrogatepass')).digest())


def _history(open_map: OpenMap, key: tuple[str, str], network: str) -> BatchHistory:
    return BatchHistory(network, lambda kind: open_map((*key, network), kind))


def _histories(open_map: OpenMap, key: tuple[str, str]) -> Iterator[BatchHistory]:
    """Those of every network that was ever marked, by name."""
    names = sorted(str(value[0]) for _, value in walk(open_map(key, 'networks'), (0,)))
    return (_history(open_map, key, name) for name in names)


def _is_range(batch: BatchIdentifier) -> bool:
    return bool(batch.network) and 0 <= batch.start_block <= batch.end_block < MAX_BLOCK


def _clamped(block: int) -> int:
    return min(max(block, 0), MAX_BLOCK)
