"""Lanes on any `concurrent.futures.Executor`: a process pool, or a cluster's.

A task is a lane and some partitions, as plain values; whoever runs it makes its own client and loader, and answers with
plain values too: an error that only one side can read would be lost on the way. A task that is run twice (its worker was
thought lost) does no harm: opening the lane anew cuts the older run off, and a partition that is there is skipped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amp.backfill.lane import Lane, LaneSpec, PartitionError, tell_committed
from amp.backfill.progress import Progress
from amp.config.label_manager import LabelManager
from amp.errors import AmpError, ConfigError, DestinationError, LoadError, redact
from amp.events import Working, emit
from amp.loaders.types import LoadResult
from amp.streaming.parallel import ParallelConfig, QueryPartition, RangeQueue
from amp.waiting import interruptible

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['Outcome', 'RemoteLanes', 'RemoteTask', 'run_task']

logger = logging.getLogger('amp.backfill')

_PARTITIONS_A_TASK = 4
_MOST_TRIES = 3
_LOOK_UP = 0.2  # seconds between two looks whether to stop
_SILENCE = 60.0  # seconds without an answer after which it is told who is waited for


@dataclass(frozen=True)
class RemoteTask:
    """What one call of `run_task` does. Its repr, which a cluster may log, shows neither token nor password."""

    server: Mapping[str, Any] = field(repr=False)
    loader: str
    config: Mapping[str, Any] = field(repr=False)
    labels: LabelManager = field(repr=False)
    spec: LaneSpec
    lane: int = 0
    partitions: tuple[QueryPartition, ...] = ()
    tries: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result for each of its first partitions, and why the others were not tried.

    `kept_out`: the destination did not let the lane begin, so another lane may do better; `hopeless`: no lane will.
    """

    results: tuple[LoadResult, ...]
    kept_out: str | None = None
    hopeless: str | None = None
    hint: str | None = None


def run_task(task: RemoteTask) -> Outcome:
    """Run in the worker. What went wrong is told in the outcome: a driver's error may be one that only it can read."""
    from amp.client import Client
    from amp.loaders.registry import create_loader

    stack = ExitStack()
    try:
        try:
            client = stack.enter_context(Client(**task.server))
            loader = stack.enter_context(create_loader(task.loader, task.config, task.labels))
        except ConfigError as error:
            return Outcome((), hopeless=_text(error), hint=error.hint)
        except Exception as error:  # noqa: BLE001 - of any class, as drivers have them: it is not let in
            return Outcome((), kept_out=_text(error), hint=getattr(error, 'hint', None))
        return _loaded(client, loader, task)
    finally:
        _leave(stack)


def _loaded(client: Client, loader: DataLoader[Any], task: RemoteTask) -> Outcome:
    results: list[LoadResult] = []
    after = dict(pairwise(task.partitions))
    with closing(Lane(client, loader, task.spec, task.lane)) as lane:
        for partition in task.partitions:
            try:
                results.append(lane.run(partition, partial(after.get, partition)))
            except PartitionError as error:
                if error.hopeless:
                    return Outcome(tuple(results), hopeless=error.message)
                if error.shut_out:
                    return Outcome(tuple(results), kept_out=error.message)
                if error.result is not None:
                    results.append(error.result)
    return Outcome(tuple(results))


def _leave(stack: ExitStack) -> None:
    try:
        stack.close()
    except Exception as error:  # noqa: BLE001 - of any class, as above; what was done is done, and told
        logger.info('the worker could not take its leave: %s', _text(error))


class RemoteLanes:
    """The lanes of one backfill, `num_workers` tasks like `blank` at a time. A lane never has two.

    `stop`: set it from any thread, and nothing more is given out; closing `run` does the same. Tasks that are out
    then end by themselves, after the partitions that they were given at most.
    """

    def __init__(
        self,
        executor: Executor,
        blank: RemoteTask,
        config: ParallelConfig,
        todo: RangeQueue,
        progress: Progress,
        stop: threading.Event | None = None,
    ) -> None:
        self._executor = executor
        self._blank = blank
        self._config = config
        self._todo = todo
        self._progress = progress
        self._stop = stop or threading.Event()
        self._running: dict[Future[Outcome], RemoteTask] = {}
        self._free = list(range(config.num_workers))
        self._again: list[RemoteTask] = []
        self._left: list[QueryPartition] = []

    def run(self) -> Iterator[LoadResult]:
        """Results as they come, until nothing is left. Raises LoadError for what no lane can do, DestinationError when
        the last lane is not let in.
        """
        try:
            while not self._stop.is_set():
                self._give_out()
                if not self._running:
                    return
                for future in self._answered():
                    yield from self._taken(future, self._running.pop(future))
        finally:
            for future, task in self._running.items():
                future.cancel()
                self._tell(task, None)

    def _give_out(self) -> None:
        while self._again or self._free:
            task = self._again.pop() if self._again else self._next(self._free[-1])
            if task is None:
                return
            if task.lane in self._free:
                self._free.remove(task.lane)
            self._progress.began(*task.partitions)
            self._tell(task, task.partitions)
            self._running[self._submitted(task)] = task

    def _next(self, lane: int) -> RemoteTask | None:
        """Neighbours, so that what a worker has in hand is one range."""
        taken: list[QueryPartition] = []
        while len(taken) < _PARTITIONS_A_TASK:
            piece = self._left.pop(0) if self._left else self._todo.take(self._config.block_column)
            if piece is None:
                break
            if taken and taken[-1].end_block != piece.start_block:
                self._left.insert(0, piece)
                break
            taken.append(piece)
        return replace(self._blank, lane=lane, partitions=tuple(taken)) if taken else None

    def _submitted(self, task: RemoteTask) -> Future[Outcome]:
        try:
            return self._executor.submit(run_task, task)
        except BrokenExecutor as error:
            # A process pool never recovers from a process that died. What is asked of it then fails like what it ran.
            refused: Future[Outcome] = Future()
            refused.set_exception(error)
            return refused

    def _answered(self) -> set[Future[Outcome]]:
        """Those that are through; none when it is to stop. An executor may wait for its workers as long as it likes."""
        waits = _Patience(len(self._running))
        while not self._stop.is_set():
            with interruptible():
                done = wait(self._running, timeout=_LOOK_UP, return_when=FIRST_COMPLETED).done
            if done:
                return done
            waits.look()
        return set()

    def _taken(self, future: Future[Outcome], task: RemoteTask) -> Iterator[LoadResult]:
        self._tell(task, None)
        outcome, lost = _outcome(future)
        if outcome.hopeless is not None:
            self._end(task, outcome, ())
            raise LoadError(outcome.hopeless, hint=outcome.hint, table=task.spec.table)
        failed = [p for p, r in zip(task.partitions, outcome.results, strict=False) if not r.success]
        again = (*failed, *task.partitions[len(outcome.results) :])
        if outcome.kept_out is not None and self._may_leave(task, outcome):
            yield from self._end(task, outcome, again)
            self._left[:0] = again
            return
        if again and task.tries + 1 < _MOST_TRIES and not (failed and self._config.stop_on_error):
            yield from self._end(task, outcome, again)
            self._again.append(replace(task, partitions=again, tries=task.tries + 1))
            return
        final = self._end(task, outcome, (), lost)
        if outcome.kept_out is not None and not self._others:
            raise DestinationError(outcome.kept_out, hint=outcome.hint, table=task.spec.table)
        yield from final
        if outcome.kept_out is None:
            self._free.append(task.lane)

    @property
    def _others(self) -> int:
        return len(self._free) + len(self._running) + len(self._again)

    def _may_leave(self, task: RemoteTask, outcome: Outcome) -> bool:
        """True for a lane that the destination does not let in, while there are others: they do its part.

        Not when an earlier run of the task was lost: only this lane can know what that has done.
        """
        if task.tries or not self._others:
            return False
        workers = self._config.num_workers
        logger.warning('worker %d of %d ends, %d go on: %s', task.lane + 1, workers, self._others, outcome.kept_out)
        return True

    def _end(
        self, task: RemoteTask, outcome: Outcome, again: tuple[QueryPartition, ...], lost: str | None = None
    ) -> list[LoadResult]:
        """The results that are final, noted; partitions in `again` are tried once more."""
        results = list(outcome.results)
        results += [_unknown(task, p, lost or outcome.kept_out or '') for p in task.partitions[len(results) :]]
        final = []
        for partition, result in zip(task.partitions, results, strict=True):
            self._progress.ended(partition, loaded=result.success, for_good=partition not in again)
            if partition in again:
                continue
            final.append(result)
            self._todo.observe(result.metadata.get('blocks', 0), result.rows_loaded, result.duration)
            if result.success:
                tell_committed(result)
        return final

    def _tell(self, task: RemoteTask, partitions: tuple[QueryPartition, ...] | None) -> None:
        """Workers elsewhere are heard by nobody here: what they have in hand is told by who gave it to them."""
        spec = task.spec
        first = partitions[0].start_block if partitions else None
        last = partitions[-1].end_block - 1 if partitions else None
        emit(Working(spec.table, spec.stream, spec.network, task.lane, first, last))


class _Patience:
    """Says now and then that nothing has come: a cluster without workers keeps its tasks, and looks like one at work."""

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self._since = self._told = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        if now - self._told >= _SILENCE:
            self._told = now
            logger.warning('%d tasks are out and none has ended for %.0f s', self._tasks, now - self._since)


def _outcome(future: Future[Outcome]) -> tuple[Outcome, str | None]:
    """What a task brought; nothing, and why, when its worker was lost."""
    try:
        return future.result(), None
    except Exception as error:  # noqa: BLE001 - each executor has its own kinds for a lost worker; the lane knows what was done
        text = _text(error)
        logger.warning('a task lost its worker: %s', text)
        return Outcome(()), text


def _text(error: Exception) -> str:
    return redact(error.message if isinstance(error, AmpError) else f'{type(error).__name__}: {error}')


def _unknown(task: RemoteTask, partition: QueryPartition, text: str) -> LoadResult:
    metadata = {'operation': 'load_partition', **partition.metadata, 'lane': task.lane}
    return LoadResult(0, 0.0, 0.0, task.spec.table, task.loader, False, error=text, metadata=metadata)
