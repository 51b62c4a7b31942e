"""Lanes on any `concurrent.futures.Executor`: a process pool, or a cluster's.

A task is a lane and some partitions, as plain values; whoever runs it makes its own client and loader. A task that is
run twice (its worker was thought lost) does no harm: opening the lane anew cuts the older run off, and a partition that
is there is skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

from amp.backfill.lane import Lane, LaneSpec, PartitionError
from amp.backfill.progress import Progress
from amp.config.label_manager import LabelManager
from amp.errors import AmpError, redact
from amp.loaders.types import LoadResult
from amp.streaming.parallel import ParallelConfig, QueryPartition, RangeQueue

__all__ = ['RemoteTask', 'run_remotely', 'run_task']

logger = logging.getLogger('amp.backfill')

_PARTITIONS_A_TASK = 4
_MOST_TRIES = 3


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


def run_task(task: RemoteTask) -> list[LoadResult]:
    """Run in the worker: one result for each partition; a failed one is a result too."""
    from amp.client import Client
    from amp.loaders.registry import create_loader

    results = []
    with Client(**task.server) as client, create_loader(task.loader, task.config, task.labels) as loader:
        lane = Lane(client, loader, task.spec, task.lane)
        for partition in task.partitions:
            try:
                results.append(lane.run(partition))
            except PartitionError as error:
                if error.result is None:
                    raise
                results.append(error.result)
    return results


def run_remotely(
    executor: Executor, blank: RemoteTask, config: ParallelConfig, todo: RangeQueue, progress: Progress
) -> Iterator[LoadResult]:
    """Keep `num_workers` tasks like `blank` going until nothing is left. A lane never has two tasks at a time."""
    running: dict[Future[list[LoadResult]], RemoteTask] = {}
    free = list(range(config.num_workers))
    again: list[RemoteTask] = []
    try:
        while True:
            while free or again:
                task = again.pop() if again else _next(todo, config, replace(blank, lane=free[-1]))
                if task is None:
                    break
                if task.lane in free:
                    free.remove(task.lane)
                progress.began(*task.partitions)
                running[_submitted(executor, task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                results, repeat = _outcome(future, task)
                _note(progress, task, results, repeat)
                for result in results:
                    todo.observe(result.metadata.get('blocks', 0), result.rows_loaded, result.duration)
                    yield result
                if repeat is not None:
                    again.append(repeat)
                else:
                    free.append(task.lane)
    finally:
        for future in running:
            future.cancel()


def _submitted(executor: Executor, task: RemoteTask) -> Future[list[LoadResult]]:
    try:
        return executor.submit(run_task, task)
    except BrokenExecutor as error:
        # A process pool never recovers from a process that died. What was asked of it afterwards fails like what it ran.
        refused: Future[list[LoadResult]] = Future()
        refused.set_exception(error)
        return refused


def _note(progress: Progress, task: RemoteTask, results: list[LoadResult], repeat: RemoteTask | None) -> None:
    loaded = {result.metadata['start_block'] for result in results if result.success}
    for partition in task.partitions:
        for_good = repeat is None or partition not in repeat.partitions
        progress.ended(partition, loaded=partition.start_block in loaded, for_good=for_good)


def _next(todo: RangeQueue, config: ParallelConfig, empty: RemoteTask) -> RemoteTask | None:
    taken = [p for _ in range(_PARTITIONS_A_TASK) if (p := todo.take(config.block_column)) is not None]
    return replace(empty, partitions=tuple(taken)) if taken else None


def _outcome(future: Future[list[LoadResult]], task: RemoteTask) -> tuple[list[LoadResult], RemoteTask | None]:
    """What a task brought, and the task again, on the same lane, when its worker was lost or partitions failed."""
    try:
        results = future.result()
    except Exception as error:  # noqa: BLE001 - each executor has its own kinds for a lost worker; the lane knows what was done
        text = redact(str(error) if isinstance(error, AmpError) else f'{type(error).__name__}: {error}')
        if task.tries + 1 < _MOST_TRIES:
            logger.warning('lane %d lost its worker, its partitions are tried again: %s', task.lane, text)
            return [], replace(task, tries=task.tries + 1)
        return [_lost(task, partition, text) for partition in task.partitions], None
    failed = tuple(p for p, result in zip(task.partitions, results, strict=True) if not result.success)
    if failed and task.tries + 1 < _MOST_TRIES:
        return [r for r in results if r.success], replace(task, partitions=failed, tries=task.tries + 1)
    return results, None


def _lost(task: RemoteTask, partition: QueryPartition, text: str) -> LoadResult:
    metadata = {'operation': 'load_partition', **partition.metadata, 'lane': task.lane}
    return LoadResult(0, 0.0, 0.0, task.spec.table, task.loader, False, error=text, metadata=metadata)
