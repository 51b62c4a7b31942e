"""Drives the lanes of a backfill, and hands over to the stream.

plan      what the server covers, less what the destination has: the ranges still to do, lowest first
lanes     take partitions from one queue, each a unit of its own, on threads, processes or a cluster
hand over when all below it is there, the stream begins at the very next block, and must be given exactly that
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from amp.backfill.lane import RETRY, Lane, LaneSpec, PartitionError
from amp.backfill.plan import Plan, make_plan, newest_block
from amp.backfill.progress import Progress
from amp.backfill.remote import RemoteTask, run_remotely
from amp.errors import AmpError, ConfigError, DestinationError, LoadError
from amp.events import Working, emit
from amp.loaders.options import as_mode
from amp.loaders.session import stream_query
from amp.loaders.settings import StreamSettings
from amp.loaders.types import LoadMode, LoadResult
from amp.streaming.parallel import ParallelConfig, QueryPartition, RangeQueue
from amp.streaming.resilience import ResilienceConfig

if TYPE_CHECKING:
    from amp.client import Client

__all__ = ['ParallelStreamExecutor', 'load_in_parallel']

logger = logging.getLogger('amp.backfill')

_MOST_LANES_A_PARTITION = 3
_SETTINGS = ('create_table', 'schema_evolution', 'column_types', 'label_config')


@dataclass
class _Failed:
    """A partition that a lane gave up, and how many lanes have tried it."""

    partition: QueryPartition
    tries: int
    lane: int | None


class ParallelStreamExecutor:
    """Loads a range of blocks with several workers, and then follows the chain when `config.max_block` is None.

    `query` defaults to all of `config.table_name`, `destination` to its name. Iterate to make it go: one LoadResult for
    each partition (`success=False` for one that failed for good), then one for each commit of the stream. Closing the
    iterator stops the workers, each at the end of the unit in hand or by rolling it back.
    """

    def __init__(
        self,
        client: Client,
        config: ParallelConfig,
        *,
        query: str | None = None,
        connection: str | None = None,
        destination: str | None = None,
    ) -> None:
        self.client = client
        self.config = config
        self._query = query
        self._connection = connection
        self._destination = destination
        self.progress = Progress()

    def load_with_resume_optimization(
        self,
        config: ParallelConfig | None = None,
        *,
        query: str | None = None,
        connection: str | None = None,
        destination: str | None = None,
        detect_gaps: bool = True,
        **options: Any,
    ) -> Generator[LoadResult, None, None]:
        """Load what is missing, gaps first. `detect_gaps=False` loads only what is above the newest loaded block.

        Raises ConfigError for a query that cannot be split or a destination that is not named, SourceError,
        DestinationError, and LoadError at the end when partitions failed and a stream was to follow.
        """
        chosen = config or self.config
        connection = connection or self._connection
        if connection is None:
            raise ConfigError('no destination is named', hint='give connection=, a URL or a configured name')
        sql = query or self._query or f'SELECT * FROM {chosen.table_name}'
        table = destination or self._destination or chosen.table_name.rpartition('.')[2]
        return self._run(chosen, sql, connection, table, detect_gaps, options)

    def execute_parallel_stream(
        self, user_query: str, destination: str, connection_name: str, load_config: Mapping[str, Any] | None = None
    ) -> Generator[LoadResult, None, None]:
        """The same by its older name; `load_config` are options of a load."""
        return self.load_with_resume_optimization(
            query=user_query, connection=connection_name, destination=destination, **dict(load_config or {})
        )

    def _run(
        self, config: ParallelConfig, sql: str, connection: str, table: str, detect_gaps: bool, options: dict[str, Any]
    ) -> Generator[LoadResult, None, None]:
        given = dict(options)
        stream = str(given.pop('name', None) or table)
        loader_config = given.pop('config', None)
        mode = as_mode(given.pop('mode', LoadMode.APPEND))
        if mode is not LoadMode.APPEND:
            raise ConfigError(f'a parallel load cannot {mode.value}: its units come in any order', hint="mode='append'")
        settings = replace(
            given.pop('settings', None) or StreamSettings(), **{k: given.pop(k) for k in _SETTINGS if k in given}
        )
        spec = LaneSpec(
            sql,
            table,
            stream,
            network='',
            block_column=config.block_column,
            reorg_buffer=config.reorg_buffer,
            retry=config.retry_config or RETRY,
            settings=settings,
            options=given,
        )
        work = _Work(self.client, connection, loader_config, config, spec, self.progress)
        follow = config.max_block is None
        with work.loader() as loader:
            loader._options(given)
            plan = make_plan(self.client, loader, spec, config, detect_gaps)
        work.spec = replace(spec, network=plan.network)
        plan.log(logger)
        self.progress.planned(plan.network, plan.start, plan.end, plan.ranges)
        failed = []
        for result in work.run(plan):
            if not result.success:
                failed.append(result)
            yield result
            if failed and config.stop_on_error:
                raise _gave_up(failed)
            if settings.stop is not None and settings.stop.is_set():
                return
        if not follow:
            return
        if failed:
            raise _gave_up(failed)
        yield from self._follow(work, plan, settings)

    def _follow(self, work: _Work, plan: Plan, settings: StreamSettings) -> Iterator[LoadResult]:
        spec = work.spec
        yield from stream_query(
            work.loader(),
            self.client.sql(spec.query),
            spec.table,
            name=spec.stream,
            settings=replace(settings, base=plan.base),
            **dict(spec.options),
        )


def load_in_parallel(
    client: Client, sql: str, connection: str, table: str, parallel: ParallelConfig, **options: Any
) -> LoadResult:
    """A closed range (without `max_block`, up to the present) as one result. Raises LoadError when a part failed."""
    if parallel.max_block is None:
        parallel = replace(parallel, max_block=newest_block(client, sql) + 1)
    runner = ParallelStreamExecutor(client, parallel, query=sql, connection=connection, destination=table)
    started = time.perf_counter()
    results = list(runner.load_with_resume_optimization(**options))
    failed = [result for result in results if not result.success]
    if failed:
        raise _gave_up(failed)
    seconds = time.perf_counter() - started
    rows = sum(result.rows_loaded for result in results)
    loader, _ = client.connection_settings(connection)
    metadata = {
        'operation': 'load_parallel',
        'partitions': len(results),
        'blocks': sum(result.metadata['blocks'] for result in results),
        'total_rows': rows,
    }
    return LoadResult(rows, seconds, rows / seconds if seconds else 0.0, table, loader, True, metadata=metadata)


def _gave_up(failed: list[LoadResult]) -> LoadError:
    ranges = ', '.join(f'{r.metadata["start_block"]} to {r.metadata["end_block"] - 1}' for r in failed[:8])
    more = f' and {len(failed) - 8} more' if len(failed) > 8 else ''
    return LoadError(
        f'{len(failed)} partitions were not loaded (blocks {ranges}{more}): {failed[0].error}',
        result=failed[0],
        hint='run the same again: it loads only what is missing',
    )


class _Work:
    """The lanes at work: one queue of partitions in, one queue of results out."""

    def __init__(
        self,
        client: Client,
        connection: str,
        loader_config: Mapping[str, Any] | None,
        config: ParallelConfig,
        spec: LaneSpec,
        progress: Progress,
    ) -> None:
        self.spec = spec
        self._progress = progress
        self._client = client
        self._connection = connection
        self._loader_config = loader_config
        self._config = config
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._at_work = set(range(config.num_workers))

    def loader(self) -> Any:
        """A loader of its own for each lane: a connection is never shared between threads."""
        return self._client.make_loader(self._connection, self._overrides)

    @property
    def _overrides(self) -> dict[str, Any]:
        overrides = dict(self._loader_config or {})
        if self._config.back_pressure_config is not None:
            _, connection = self._client.connection_settings(self._connection, overrides)
            own = ResilienceConfig.from_config(connection.get('resilience'))
            overrides['resilience'] = replace(own, back_pressure=self._config.back_pressure_config)
        return overrides

    def run(self, plan: Plan) -> Iterator[LoadResult]:
        """Results as they come; ends when nothing is left."""
        if not plan.ranges:
            return
        todo = RangeQueue(plan.ranges, self._config.partition_size)
        if self._config.executor is not None:
            connection = self._client.connection_settings(self._connection, self._overrides)
            # An event does not travel; whoever closes the iterator stops the tasks.
            spec = replace(self.spec, settings=replace(self.spec.settings, stop=None))
            task = RemoteTask(self._client.settings(), *connection, self._client.label_manager, spec)
            yield from run_remotely(self._config.executor, task, self._config, todo, self._progress)
            return
        results: queue.SimpleQueue[LoadResult | BaseException | None] = queue.SimpleQueue()
        failed: list[_Failed] = []
        threads = [
            threading.Thread(target=self._lane, args=(n, todo, failed, results), name=f'amp-lane-{n}', daemon=True)
            for n in range(self._config.num_workers)
        ]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                result = results.get()
                if result is None:
                    running -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    yield result
            for left in failed:
                yield _last_word(left)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _lane(
        self,
        number: int,
        todo: RangeQueue,
        failed: list[_Failed],
        results: queue.SimpleQueue[LoadResult | BaseException | None],
    ) -> None:
        try:
            self._work(number, todo, failed, results)
        except PartitionError as error:
            results.put(error)
        except DestinationError as error:
            # It has nothing in hand: what happens to a partition is told as its own error.
            if not self._may_leave(number, error):
                results.put(error)
        except BaseException as error:  # noqa: BLE001 - told to the consumer, in whose thread it is raised
            results.put(error)
        finally:
            with self._lock:
                self._at_work.discard(number)
            results.put(None)

    def _work(
        self,
        number: int,
        todo: RangeQueue,
        failed: list[_Failed],
        results: queue.SimpleQueue[LoadResult | BaseException | None],
    ) -> None:
        with self.loader() as loader:
            lane = Lane(self._client, loader, self.spec, number, self._opening)
            while not self._stop.is_set() and (task := self._take(todo, failed, number)) is not None:
                self._progress.began(task.partition)
                try:
                    with self._in_hand(number, task.partition):
                        result = lane.run(task.partition)
                except PartitionError as error:
                    if error.hopeless:
                        raise
                    logger.info('%s', error)
                    if error.shut_out and self._may_leave(
                        number, error, partial(failed.append, replace(task, lane=None))
                    ):
                        self._progress.ended(task.partition, loaded=False, for_good=False)
                        return
                    self._give_back(failed, task, error, number, results)
                    continue
                self._progress.ended(task.partition, loaded=True)
                with self._lock:
                    todo.observe(result.metadata['blocks'], result.rows_loaded, result.duration)
                results.put(result)

    @contextmanager
    def _in_hand(self, number: int, partition: QueryPartition) -> Iterator[None]:
        spec = self.spec
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

    def _take(self, todo: RangeQueue, failed: list[_Failed], lane: int) -> _Failed | None:
        with self._lock:
            for task in failed:
                if task.tries < _MOST_LANES_A_PARTITION and task.lane in {None, lane}:
                    failed.remove(task)
                    return task
            partition = todo.take(self.spec.block_column)
            if partition is None:
                self._at_work.discard(lane)
        return None if partition is None else _Failed(partition, 0, None)

    def _give_back(
        self,
        failed: list[_Failed],
        task: _Failed,
        error: PartitionError,
        lane: int,
        results: queue.SimpleQueue[LoadResult | BaseException | None],
    ) -> None:
        """Another lane may try it; when only this one can know whether it is there, this one alone."""
        tries = task.tries + 1
        for_good = tries >= _MOST_LANES_A_PARTITION or self._config.stop_on_error
        self._progress.ended(task.partition, loaded=False, for_good=for_good)
        if for_good:
            if error.result is not None:
                results.put(error.result)
            return
        with self._lock:
            failed.append(_Failed(task.partition, tries, lane if error.in_doubt else None))


def _last_word(left: _Failed) -> LoadResult:
    metadata = {'operation': 'load_partition', **left.partition.metadata}
    return LoadResult(0, 0.0, 0.0, '', '', False, error='no worker was left to try it again', metadata=metadata)
