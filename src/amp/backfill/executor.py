"""Drives the lanes of a backfill, and hands over to the stream.

plan      what the server covers, less what the destination has: the ranges still to do, lowest first
lanes     take partitions from one queue, each a unit of its own, on threads, processes or a cluster
hand over when all below it is there, the stream begins at the very next block, and must be given exactly that
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amp.backfill.lane import RETRY, Lane, LaneSpec
from amp.backfill.plan import Plan, make_plan, newest_block
from amp.backfill.progress import Progress
from amp.backfill.remote import RemoteLanes, RemoteTask
from amp.backfill.threads import ThreadLanes
from amp.errors import ConfigError, LoadError
from amp.loaders.options import as_mode
from amp.loaders.session import stream_query
from amp.loaders.settings import StreamSettings
from amp.loaders.types import LoadConfig, LoadMode, LoadResult
from amp.streaming.parallel import ParallelConfig, RangeQueue

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['ParallelStreamExecutor', 'load_in_parallel']

logger = logging.getLogger('amp.backfill')

_SETTINGS = ('create_table', 'schema_evolution', 'column_types', 'label_config')


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
        self,
        user_query: str,
        destination: str,
        connection_name: str,
        load_config: Mapping[str, Any] | LoadConfig | None = None,
    ) -> Generator[LoadResult, None, None]:
        """The same by its older name; `load_config` are options of a load. Units have the size of their partition."""
        options = load_config.keywords() if isinstance(load_config, LoadConfig) else dict(load_config or {})
        options.pop('batch_size', None)
        return self.load_with_resume_optimization(
            query=user_query, connection=connection_name, destination=destination, **options
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
        if not follow or (settings.stop is not None and settings.stop.is_set()):
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
    """Where the loaders of the lanes come from, and where the lanes run."""

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
        self._config = config
        self._overrides = self._with_back_pressure(dict(loader_config or {}))

    def _with_back_pressure(self, overrides: dict[str, Any]) -> dict[str, Any]:
        back_pressure = self._config.back_pressure_config
        if back_pressure is None:
            return overrides
        # The loader itself says what its connection has: a mapping, a preset, or a preset in the URL.
        own = self._client.make_loader(self._connection, overrides).attempts.config
        return {**overrides, 'resilience': replace(own, back_pressure=back_pressure)}

    def loader(self) -> DataLoader[Any]:
        """A loader of its own for each lane: a connection is never shared between threads."""
        return self._client.make_loader(self._connection, self._overrides)

    def run(self, plan: Plan) -> Iterator[LoadResult]:
        """Results as they come; ends when nothing is left, or when it is to stop."""
        if not plan.ranges:
            return iter(())
        todo = RangeQueue(plan.ranges, self._config.partition_size)
        executor = self._config.executor
        if executor is None:
            return ThreadLanes(self._client, self.loader, self.spec, self._config, todo, self._progress).run()
        self._make_ready(plan)
        loader = self._client.connection_settings(self._connection, self._overrides)
        # An event does not travel: the tasks that are out end by themselves.
        spec = replace(self.spec, settings=replace(self.spec.settings, stop=None))
        task = RemoteTask(self._client.settings(), *loader, self._client.label_manager, spec)
        return RemoteLanes(executor, task, self._config, todo, self._progress, self.spec.settings.stop).run()

    def _make_ready(self, plan: Plan) -> None:
        """Make the table, and the lanes that are new, one after the other: not every destination keeps two workers who
        do so at the same moment apart. Workers of this process have a lock for that.
        """
        with self.loader() as loader:
            known = {info.key for info in loader.streaming_destination().list_streams()}
            for number in range(self._config.num_workers):
                lane = Lane(self._client, loader, self.spec, number)
                if lane.key not in known:
                    lane.open()
                if not number:
                    lane.prepare(plan.schema)
