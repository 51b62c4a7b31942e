"""Lanes on threads of this process: one queue of partitions in, one queue of results out."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from amp.backfill.lane import Lane, LaneSpec, Opening, PartitionError, Stopped, tell_committed
from amp.backfill.progress import Progress
from amp.errors import AmpError, DestinationError
from amp.events import Working, emit
from amp.loaders.types import LoadResult
from amp.streaming.parallel import ParallelConfig, QueryPartition, RangeQueue

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['ThreadLanes']

logger = logging.getLogger('amp.backfill')

_MOST_LANES_A_PARTITION = 3
_LOOK_UP = 0.2  # seconds between two looks whether to stop

_Results: TypeAlias = 'queue.SimpleQueue[LoadResult | BaseException | None]'


@dataclass
class _Task:
    """A partition, how many lanes have given it up, and the only lane that may try it (None: any)."""

    partition: QueryPartition
    tries: int = 0
    lane: int | None = None


class ThreadLanes:
    """The lanes of one backfill. Each makes its own loader with `make_loader`, so that none shares a connection."""

    def __init__(
        self,
        client: Client,
        make_loader: Callable[[], DataLoader[Any]],
        spec: LaneSpec,
        config: ParallelConfig,
        todo: RangeQueue,
        progress: Progress,
    ) -> None:
        self._client = client
        self._make_loader = make_loader
        self._spec = spec
        self._config = config
        self._todo = todo
        self._progress = progress
        self._failed: list[_Task] = []
        self._results: _Results = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._opening = Opening()
        self._at_work = set(range(config.num_workers))

    def run(self) -> Iterator[LoadResult]:
        """Results as they come. Closing it stops the lanes, each of which rolls back what it has in hand."""
        threads = [
            threading.Thread(target=self._lane, args=(n,), name=f'amp-lane-{n}', daemon=True)
            for n in range(self._config.num_workers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collected(len(threads))
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _collected(self, running: int) -> Iterator[LoadResult]:
        told = self._spec.settings.stop
        while running:
            try:
                result = self._results.get(timeout=None if told is None else _LOOK_UP)
            except queue.Empty:
                result = None
            else:
                running -= result is None
            if told is not None and told.is_set():
                return
            if isinstance(result, BaseException):
                raise result
            if result is not None:
                yield result
        for left in self._failed:
            yield _last_word(left)

    def _lane(self, number: int) -> None:
        try:
            self._work(number)
        except Stopped:
            pass
        except PartitionError as error:
            self._results.put(error)
        except DestinationError as error:
            # It has nothing in hand: what happens to a partition is told as its own error.
            if not self._may_leave(number, error):
                self._results.put(error)
        except BaseException as error:  # noqa: BLE001 - told to the consumer, in whose thread it is raised
            self._results.put(error)
        finally:
            with self._lock:
                self._at_work.discard(number)
            self._results.put(None)

    def _work(self, number: int) -> None:
        ahead: list[_Task] = []

        def look_ahead() -> QueryPartition | None:
            if not ahead:
                ahead.extend(self._fresh())
            return ahead[0].partition if ahead else None

        with (
            self._make_loader() as loader,
            closing(Lane(self._client, loader, self._spec, number, self._opening, self._stop)) as lane,
        ):
            while not self._stop.is_set():
                task = ahead.pop() if ahead else self._take(number)
                if task is None or not self._did(lane, task, look_ahead):
                    return

    def _did(self, lane: Lane, task: _Task, look_ahead: Callable[[], QueryPartition | None]) -> bool:
        """False for a lane that leaves."""
        self._progress.began(task.partition)
        try:
            with self._in_hand(lane.number, task.partition):
                result = lane.run(task.partition, look_ahead)
        except PartitionError as error:
            if error.hopeless:
                raise
            logger.info('%s', error)
            hand_over = partial(self._failed.append, replace(task, lane=None))
            if error.shut_out and self._may_leave(lane.number, error, hand_over):
                self._progress.ended(task.partition, loaded=False, for_good=False)
                return False
            self._give_back(task, error, lane.number)
            return True
        tell_committed(result)
        self._progress.ended(task.partition, loaded=True)
        with self._lock:
            self._todo.observe(result.metadata['blocks'], result.rows_loaded, result.duration)
        self._results.put(result)
        return True

    @contextmanager
    def _in_hand(self, number: int, partition: QueryPartition) -> Iterator[None]:
        spec = self._spec
        emit(Working(spec.table, spec.stream, spec.network, number, partition.start_block, partition.end_block - 1))
        try:
            yield
        finally:
            emit(Working(spec.table, spec.stream, spec.network, number, None, None))

    def _may_leave(self, number: int, error: AmpError, hand_over: Callable[[], object] = lambda: None) -> bool:
        """True for a worker that the destination does not let in, while there are others: they do its part."""
        with self._lock:
            if self._at_work <= {number}:
                return False
            self._at_work.discard(number)
            hand_over()
            left = len(self._at_work)
        logger.warning('worker %d of %d ends, %d go on: %s', number + 1, self._config.num_workers, left, error)
        return True

    def _fresh(self) -> list[_Task]:
        """The next partition that nobody has tried; none while some wait for another try."""
        with self._lock:
            partition = None if self._failed else self._todo.take(self._spec.block_column)
        return [] if partition is None else [_Task(partition)]

    def _take(self, lane: int) -> _Task | None:
        with self._lock:
            for task in self._failed:
                if task.tries < _MOST_LANES_A_PARTITION and task.lane in {None, lane}:
                    self._failed.remove(task)
                    return task
            partition = self._todo.take(self._spec.block_column)
            if partition is None:
                self._at_work.discard(lane)
        return None if partition is None else _Task(partition)

    def _give_back(self, task: _Task, error: PartitionError, lane: int) -> None:
        """Another lane may try it; when only this one can know whether it is there, this one alone."""
        tries = task.tries + 1
        for_good = tries >= _MOST_LANES_A_PARTITION or self._config.stop_on_error
        self._progress.ended(task.partition, loaded=False, for_good=for_good)
        if for_good:
            if error.result is not None:
                self._results.put(error.result)
            return
        with self._lock:
            self._failed.append(_Task(task.partition, tries, lane if error.in_doubt else None))


def _last_word(left: _Task) -> LoadResult:
    metadata = {'operation': 'load_partition', **left.partition.metadata}
    return LoadResult(0, 0.0, 0.0, '', '', False, error='no worker was left to try it again', metadata=metadata)
