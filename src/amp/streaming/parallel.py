"""How history is split: the words of a parallel load. What runs them is in `amp.backfill`.

Ends are exclusive here (`max_block`, `end_block`), unlike those of a BlockRange.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amp.errors import ConfigError
from amp.streaming.resilience import BackPressureConfig, RetryConfig
from amp.streaming.types import BlockRange

if TYPE_CHECKING:
    from amp.backfill.executor import ParallelStreamExecutor

__all__ = [
    'BlockRangePartitionStrategy',
    'ParallelConfig',
    'ParallelStreamExecutor',
    'QueryPartition',
    'RangeQueue',
    'lane_name',
    'missing',
    'stream_of_lane',
]

_LANE = '~lane-'


@dataclass(frozen=True)
class ParallelConfig:
    """How to load a range of blocks with several workers.

    `table_name`: the table whose blocks are meant. `min_block` to `max_block` (exclusive; None: to the present, and then
    follow). `partition_size` in blocks (None: found while it runs). `block_column` must be among the query's columns.
    `stop_on_error`: the first partition that fails for good ends the load; else the others go on. `reorg_buffer`: how
    many blocks below the head the backfill ends and the stream begins. `executor`: where partitions run (None: threads
    of this process); it may be a process pool or a cluster's. Raises ConfigError (a ValueError).
    """

    num_workers: int
    table_name: str
    min_block: int = 0
    max_block: int | None = None
    partition_size: int | None = None
    block_column: str = 'block_num'
    stop_on_error: bool = False
    reorg_buffer: int = 200
    retry_config: RetryConfig | None = None
    back_pressure_config: BackPressureConfig | None = None
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f'num_workers must be >= 1, not {self.num_workers}')
        if not self.table_name:
            raise ConfigError('table_name is required', hint='the table whose blocks are to be split')
        if self.min_block < 0:
            raise ConfigError(f'min_block must be >= 0, not {self.min_block}')
        if self.max_block is not None and self.min_block >= self.max_block:
            raise ConfigError(f'min_block ({self.min_block}) must be < max_block ({self.max_block})')
        if self.partition_size is not None and self.partition_size < 1:
            raise ConfigError(f'partition_size must be >= 1, not {self.partition_size}')
        if self.reorg_buffer < 0:
            raise ConfigError(f'reorg_buffer must be >= 0, not {self.reorg_buffer}')


@dataclass(frozen=True)
class QueryPartition:
    """Blocks from `start_block` up to, not including, `end_block`."""

    partition_id: int
    start_block: int
    end_block: int
    block_column: str = 'block_num'

    @property
    def metadata(self) -> dict[str, Any]:
        """Plain values, for logs and results."""
        return {
            'partition_id': self.partition_id,
            'start_block': self.start_block,
            'end_block': self.end_block,
            'block_column': self.block_column,
            'partition_size': self.end_block - self.start_block,
        }


class BlockRangePartitionStrategy:
    """Splits a range of blocks, and a query by it."""

    def __init__(self, table_name: str, block_column: str = 'block_num') -> None:
        self.table_name = table_name
        self.block_column = block_column

    def create_partitions(self, config: ParallelConfig) -> list[QueryPartition]:
        """Partitions of `partition_size` blocks; without it, one for each worker. Raises ConfigError without an end."""
        if config.max_block is None:
            raise ConfigError('partitions need an end: max_block is None', hint='the executor finds the head itself')
        span = config.max_block - config.min_block
        size = config.partition_size or -(-span // config.num_workers)
        starts = range(config.min_block, config.max_block, size)
        return [
            QueryPartition(i, start, min(start + size, config.max_block), self.block_column)
            for i, start in enumerate(starts)
        ]

    def wrap_query_with_partition(self, query: str, partition: QueryPartition) -> str:
        """`query`, of the partition's blocks only. Raises ConfigError for a query that cannot be split."""
        from amp.backfill.split import Splittable

        return Splittable(query, partition.block_column).of(partition.start_block, partition.end_block)


class RangeQueue:
    """Ranges still to do, handed out in pieces from the lowest block up; the pieces grow or shrink by what they took.

    `size` fixes them. Otherwise they aim at `seconds` each and at most `rows`.
    """

    def __init__(
        self,
        ranges: Sequence[BlockRange],
        size: int | None = None,
        first: int = 1_000,
        seconds: float = 5.0,
        rows: int = 1_000_000,
    ) -> None:
        self._left = [(r.start, r.end + 1) for r in sorted(ranges, key=lambda r: r.start)][::-1]
        self._fixed = size
        self._size = size or first
        self._seconds, self._rows = seconds, rows
        self._given = 0

    @property
    def blocks_left(self) -> int:
        """Blocks that were not handed out yet."""
        return sum(end - start for start, end in self._left)

    def take(self, block_column: str = 'block_num') -> QueryPartition | None:
        """The next piece; None when there is none."""
        if not self._left:
            return None
        start, end = self._left.pop()
        stop = min(start + self._size, end)
        if stop < end:
            self._left.append((stop, end))
        self._given += 1
        return QueryPartition(self._given - 1, start, stop, block_column)

    def observe(self, blocks: int, rows: int, seconds: float) -> None:
        """What a piece took."""
        if self._fixed is not None or blocks < 1:
            return
        factor = min(self._seconds / max(seconds, 1e-3), self._rows / max(rows, 1))
        wanted = blocks * factor
        self._size = max(1, int(min(max(wanted, self._size / 2), self._size * 2)))


def missing(done: Sequence[BlockRange], start: int, end: int, network: str) -> tuple[BlockRange, ...]:
    """What `done` (disjoint, sorted) leaves of the blocks `start` to `end`, inclusive."""
    gaps: list[BlockRange] = []
    at = start
    for r in done:
        if r.network != network or r.end < at:
            continue
        if r.start > end:
            break
        if r.start > at:
            gaps.append(BlockRange(network, at, r.start - 1))
        at = r.end + 1
    if at <= end:
        gaps.append(BlockRange(network, at, end))
    return tuple(gaps)


def lane_name(stream: str, number: int) -> str:
    """The name of a worker's own stream beside `stream`: it has its own ids, its own epoch and its own history."""
    return f'{stream}{_LANE}{number}'


def stream_of_lane(name: str) -> str | None:
    """The stream that a lane works for; None for a stream that is no lane."""
    stream, mark, number = name.rpartition(_LANE)
    return stream if mark and number.isdigit() else None


# Not for type checkers: to them a name that is not there would be one of type Any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # The words are pure; what runs them drives loaders, which this room does not know.
        if name == 'ParallelStreamExecutor':
            from amp.backfill.executor import ParallelStreamExecutor

            return ParallelStreamExecutor
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
