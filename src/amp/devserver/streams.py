"""A streaming query from its first range to the end of the server: which blocks come next, and what they add."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.flight as fl

from amp.devserver.chain import Chain, Snapshot
from amp.devserver.engine import Engine, Query, Streamable
from amp.devserver.faults import EndOfResult, Faults, Message
from amp.devserver.keep_alive import with_keep_alives
from amp.devserver.microbatch import Cursor, Together, earliest_block, encode_metadata, next_range
from amp.devserver.sql import caused_by, internal
from amp.errors import SourceError
from amp.streaming.types import BlockRange

__all__ = ['Streams', 'empty_batch', 'split']

KEEP_ALIVE_SECONDS = 30.0

_TARGET_BYTES = 2 * 1024 * 1024
_POLL_SECONDS = 0.05


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A batch without rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)


def split(batches: Iterator[pa.RecordBatch], rows: int | None) -> Iterator[pa.RecordBatch]:
    """Slices of about 2 MiB, or of at most so many rows."""
    for batch in batches:
        parts = -(-batch.nbytes // _TARGET_BYTES)
        size = rows or max(batch.num_rows // max(parts, 1), 1)
        for at in range(0, batch.num_rows, size):
            yield batch.slice(at, size)


@dataclass(frozen=True)
class _Step:
    """The datasets at one moment, and the range of blocks that comes next."""

    snapshots: dict[str, Snapshot]
    range: BlockRange


class Streams:
    """Runs streams over an engine's datasets. `open` counts those whose clients are still there."""

    def __init__(
        self,
        engine: Engine,
        faults: Faults,
        stopping: threading.Event,
        max_blocks: int,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self._engine = engine
        self._faults = faults
        self._stopping = stopping
        self._max_blocks = max_blocks
        self._keep_alive_seconds = max(keep_alive_seconds, KEEP_ALIVE_SECONDS)
        self._lock = threading.Lock()
        self.open = 0

    def messages(self, query: Query, cursors: dict[str, Cursor] | None, gone: Callable[[], bool]) -> Iterator[Message]:
        """The stream of a query, when its first microbatch is due; waits until then.

        Raises QueryError when it cannot be a stream, and EndOfResult when the client is gone.
        """
        stream = self._engine.check_incremental(query)
        chains = {dataset: self._engine.datasets[dataset] for dataset, _ in query.tables}
        networks = sorted({chain.network for chain in chains.values()})
        if len(networks) > 1:
            text = f'multiple networks in dependency tree: {networks[0]} and {networks[1]}'
            raise internal(caused_by('failed to determine streaming start block', text))
        if earliest_block(chain.snapshot() for chain in chains.values()) is None:
            return iter([Message(empty_batch(query.schema), encode_metadata((), complete=True), complete=True)])
        cursor = self._cursor(networks[0], cursors)
        first = self._next(chains, networks[0], cursor, gone)
        return self._messages(stream, chains, first, gone)

    def _cursor(self, network: str, cursors: dict[str, Cursor] | None) -> Cursor | None:
        if cursors is None or self._faults.takes_cursor_away():
            return None
        if network not in cursors:
            text = f"expected cursor for network '{network}', but cursor only contains networks: "
            listed = f'[{", ".join(sorted(cursors))}]'
            raise internal(caused_by('streaming query execution error', 'failed to convert cursor', f'{text}{listed}'))
        return cursors[network]

    def _next(self, chains: dict[str, Chain], network: str, cursor: Cursor | None, gone: Callable[[], bool]) -> _Step:
        """The next range, as soon as there is one. Raises EndOfResult when client or server is gone."""
        while True:
            snapshots = {dataset: chain.snapshot() for dataset, chain in chains.items()}
            found = next_range(network, _as_one(snapshots), cursor, self._max_blocks)
            if found is not None:
                return _Step(snapshots, found)
            while not _wait(chains, snapshots):
                if gone():
                    if self._stopping.is_set():
                        raise fl.FlightUnavailableError('the server is shutting down')
                    raise EndOfResult

    def _messages(
        self, stream: Streamable, chains: dict[str, Chain], step: _Step, gone: Callable[[], bool]
    ) -> Iterator[Message]:
        self._count(+1)
        try:
            while True:
                yield from self._faults.apply(self._microbatch(stream, step, gone), gone)
                cursor = Cursor(step.range.end, step.range.hash or '')
                step = self._next(chains, step.range.network, cursor, gone)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.open += change

    def _microbatch(self, stream: Streamable, step: _Step, gone: Callable[[], bool]) -> Iterator[Message]:
        blocks = (step.range.start, step.range.end)
        empty = empty_batch(stream.query.schema)
        metadata = encode_metadata([step.range], complete=False)
        every = self._faults.keep_alive_seconds or self._keep_alive_seconds
        batches = self._engine.run_blocks(stream, step.snapshots, *blocks)
        try:
            for batch in with_keep_alives(split(batches, self._faults.split_rows), every, lambda: empty, gone):
                yield Message(batch, metadata, blocks=blocks)
        except SourceError as error:
            wrapped = 'streaming query execution error'
            # A QueryError has what DataFusion said; other errors are of files that cannot be read.
            raise internal(caused_by(wrapped, wrapped, str(error.context.get('cause', error)))) from error
        yield Message(empty, encode_metadata([step.range], complete=True), complete=True, blocks=blocks)


def _as_one(snapshots: dict[str, Snapshot]) -> Snapshot | Together:
    views = list(snapshots.values())
    return views[0] if len(views) == 1 else Together(views)


def _wait(chains: dict[str, Chain], snapshots: dict[str, Snapshot]) -> bool:
    """Wait a little for any of the chains to change."""
    share = _POLL_SECONDS / len(chains)
    return any(chain.wait(snapshots[dataset].version, share) for dataset, chain in chains.items())
