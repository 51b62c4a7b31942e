"""One worker of a backfill: a stream of its own at the destination, whose units are partitions in any order.

A lane has its own number, epoch and interval of ids, so lanes commit beside each other and beside a live stream, and
none ever touches another's rows. A partition is one batch query and one commit; it counts only when the server's tables
reach over it and the result came to its end. When the outcome of a commit is unknown the lane is opened anew, which
waits for the commit or cuts it off, and then says whether the partition is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from amp.backfill.split import Splittable
from amp.errors import (
    AmpError,
    DestinationError,
    IncompleteResultError,
    LoadError,
    SourceError,
    StaleEpochError,
    redact,
)
from amp.events import Committed, Retrying, emit
from amp.loaders.label_record import with_earlier
from amp.loaders.points import reached
from amp.loaders.settings import StreamSettings
from amp.loaders.stamps import stamp, stamped_schema
from amp.loaders.types import LoadResult
from amp.loaders.unit import Claim, StreamJob, Unit
from amp.streaming.iterator import END, StreamingResultIterator
from amp.streaming.ledger import MAX_COUNTER, StreamKey, StreamState, transaction_id
from amp.streaming.machine import batch_id
from amp.streaming.parallel import QueryPartition, lane_name, missing
from amp.streaming.resilience import ErrorClassifier, ExponentialBackoff, RetryConfig
from amp.streaming.types import BlockRange

if TYPE_CHECKING:
    import pyarrow as pa

    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['Lane', 'LaneSpec', 'Opening', 'PartitionError', 'Stopped', 'tell_committed']

logger = logging.getLogger('amp.backfill')

RETRY = RetryConfig(max_retries=5, initial_backoff_ms=200, max_backoff_ms=10_000)
_LOOK_UP = 0.2  # seconds between two looks whether to stop


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The lane was told to stop: the unit in hand is rolled back, and whoever told it knows."""


class PartitionError(LoadError):
    """A partition that failed for good. `in_doubt`: only the same lane can say whether its rows are there.

    `shut_out`: the destination has never let this lane begin a unit, so others may do better; `hopeless`: nor will it
    ever, and it is not the server's fault, so no other partition will fare better.
    """

    def __init__(
        self,
        message: str,
        *,
        partition: QueryPartition,
        in_doubt: bool,
        shut_out: bool = False,
        hopeless: bool = False,
        **context: Any,
    ) -> None:
        super().__init__(message, **context)
        self.partition = partition
        self.in_doubt = in_doubt
        self.shut_out = shut_out
        self.hopeless = hopeless


@dataclass(frozen=True)
class LaneSpec:
    """What all lanes of a backfill do; plain values, so that it can travel to another process."""

    query: str
    table: str
    stream: str
    network: str
    block_column: str
    reorg_buffer: int = 200
    retry: RetryConfig = RETRY
    settings: StreamSettings = field(default_factory=StreamSettings)
    options: Mapping[str, Any] = field(default_factory=dict)


class Opening:
    """What the lanes of one process begin with one after the other: taking their numbers, and making the table."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.table_is_made = False


class Lane:
    """A lane at work. Those that may begin at the same moment share `opening`; `stop` ends it from any thread.

    Close it: the answer to a query that it sent ahead may be under way.
    """

    def __init__(
        self,
        client: Client,
        loader: DataLoader[Any],
        spec: LaneSpec,
        number: int,
        opening: Opening | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.number = number
        self._client = client
        self._loader = loader
        self._spec = spec
        self._opening = opening or Opening()
        self._stop = stop or threading.Event()
        self.key = StreamKey(spec.table, lane_name(spec.stream, number))
        self._job = StreamJob(self.key, options=dict(spec.options))
        self._shape = loader.shape(spec.settings.column_types, spec.settings.label_config)
        self._split = Splittable(spec.query, spec.block_column)
        self._claim = Claim.now(spec.query)
        self._destination = loader.streaming_destination()
        self._state: StreamState | None = None
        # True until the destination has said what became of the last unit: the state that is known may lack it.
        self._in_doubt = True
        self._counter = 0
        self._final_end = -1
        self._prepared = False
        self._labels: str | None = None
        self._has_begun = False
        self._asked: tuple[QueryPartition, StreamingResultIterator] | None = None

    def close(self) -> None:
        """Drop what was asked for and not taken."""
        if self._asked is not None:
            _, responses = self._asked
            self._asked = None
            responses.close()

    def open(self) -> StreamState:
        """Take the lane: a new epoch, the truth of what it has done."""
        self._loader._ensure_connected()
        after = self._state.epoch if self._state is not None else None
        with self._opening.lock:
            self._state = self._destination.open_stream(self.key, self._claim, after)
        self._in_doubt = False
        self._counter = 0
        return self._state

    def run(self, partition: QueryPartition, ahead: Callable[[], QueryPartition | None] = lambda: None) -> LoadResult:
        """Land a partition, unless it is there. Raises PartitionError when it failed for good, Stopped.

        `ahead` is called when all rows have come: the query of the partition that it gives is sent while they are
        written and committed, so that its answer is under way when it is its turn.
        """
        backoff = ExponentialBackoff(self._spec.retry)
        while True:
            try:
                if self._state is None:
                    self._ask(partition)
                if self._in_doubt or self._counter > MAX_COUNTER:
                    self.open()
                if self._is_done(partition):
                    return self._result(partition, 0, 0.0, skipped=True)
                return self._load(partition, ahead)
            except Stopped:
                raise
            except Exception as error:
                # Of any class: every driver has its own, and `_may_help` knows which of them pass. None is dropped.
                self._in_doubt |= not isinstance(error, SourceError)
                delay = backoff.next_delay() if self._may_help(error) else None
                if delay is None:
                    raise self._failed(partition, error) from error
                logger.info('%s: trying blocks %s again in %.1f s: %s', self.key.name, _shown(partition), delay, error)
                emit(Retrying(self.key.name, ErrorClassifier.classify(error).value, backoff.attempt, delay, error))
                if self._stop.wait(delay):
                    raise Stopped from error

    def _may_help(self, error: Exception) -> bool:
        if isinstance(error, StaleEpochError):
            return False
        if isinstance(error, AmpError):
            return error.retryable
        return self._loader.is_transient(error) or ErrorClassifier.is_transient(error)

    def _is_done(self, partition: QueryPartition) -> bool:
        state = self._opened
        return not missing(state.history(), partition.start_block, partition.end_block - 1, self._spec.network)

    @property
    def _opened(self) -> StreamState:
        if self._state is None:
            raise AssertionError('a lane is open here')
        return self._state

    def _ask(self, partition: QueryPartition) -> StreamingResultIterator:
        """The answer for a partition, on its way; the one that was asked for before, when it is that."""
        if self._asked is not None and self._asked[0] == partition:
            return self._asked[1]
        self.close()
        sql = self._split.of(partition.start_block, partition.end_block)
        responses = self._client.sql(sql).responses(streaming=False)
        responses.start()
        self._asked = partition, responses
        return responses

    def _pause(self) -> None:
        """As long as the destination asked for, unless it is to stop. Raises CircuitOpenError."""
        attempts = self._loader.attempts
        attempts.breaker.before()
        milliseconds = attempts.limiter.get_current_delay() if attempts.limiter.config.enabled else 0
        if self._stop.wait(milliseconds / 1000):
            raise Stopped

    def _answers(self, responses: StreamingResultIterator) -> Iterator[Any]:
        """What comes; looks up now and then whether to stop, for a server may be silent as long as it likes."""
        while (response := responses.get(_LOOK_UP)) is not END:
            if self._stop.is_set():
                raise Stopped
            if response is not None:
                yield response

    def _looking_ahead(
        self, asked: StreamingResultIterator, responses: Iterator[Any], ahead: Callable[[], QueryPartition | None]
    ) -> Iterator[Any]:
        """The same, and the next partition asked for as soon as all of this one has come: one answer at a time."""
        for response in responses:
            if asked.has_come and self._asked is None and (following := ahead()) is not None:
                self._ask(following)
            yield response

    def _load(self, partition: QueryPartition, ahead: Callable[[], QueryPartition | None]) -> LoadResult:
        started = time.perf_counter()
        done = BlockRange(self._spec.network, partition.start_block, partition.end_block - 1)
        tx_id = transaction_id(self._opened.number, self._opened.epoch, self._counter)
        self._pause()
        asked, self._asked = self._ask(partition), None
        with closing(asked):
            responses = self._answers(asked)
            first = next(responses)
            self.prepare(first.data.schema)
            # An id is never used twice, also when its unit fails.
            self._counter += 1
            unit = self._destination.begin(self._job, self._opened, tx_id, None)
            self._has_begun = True
            try:
                all_of_them = self._looking_ahead(asked, chain([first], responses), ahead)
                rows, nbytes = self._write(unit, all_of_them, tx_id, done)
                state = self._labelled(self._opened.fill(tx_id, done, final=done.end <= self._final_end))
                reached('lane.before_commit')
                unit.commit(state)
                reached('lane.committed')
            except BaseException:
                # A signal too: no unit is left open, whatever ends it.
                unit.rollback()
                raise
        self._state = state
        self._loader.attempts.succeeded()
        seconds = time.perf_counter() - started
        return self._result(partition, rows, seconds, nbytes=nbytes)

    def _write(self, unit: Unit, responses: Iterator[Any], tx_id: int, done: BlockRange) -> tuple[int, int]:
        rows = nbytes = 0
        for response in responses:
            if response.metadata.ranges_complete:
                head = _head(response.metadata.ranges, done)
                self._final_end = head - self._spec.reorg_buffer
            batch = self._shape.batch(response.data)
            self._labels = with_earlier(self._shape.labels(response.data.schema), self._labels)
            if not batch.num_rows:
                continue
            taken = unit.write(stamp(batch, tx_id, batch_id([done])))
            if taken < batch.num_rows:
                raise DestinationError(f'{self._loader.name} took {taken} of {batch.num_rows} rows of a batch')
            rows += taken
            nbytes += batch.nbytes
        return rows, nbytes

    def _labelled(self, state: StreamState) -> StreamState:
        before = self._opened
        labels = with_earlier(self._labels, before.labels) if before.has_history else self._labels
        return replace(state, labels=labels)

    def prepare(self, schema: pa.Schema) -> None:
        """Make the table for rows of these columns, unless it is there. Raises SchemaError when it has others."""
        if not self._prepared:
            settings = self._spec.settings
            stamped = stamped_schema(self._shape.schema(schema))
            what = stamped, self.key.table, settings.create_table, settings.schema_evolution
            with self._opening.lock:
                is_first = not self._opening.table_is_made
                if is_first:
                    self._loader.prepare_table(*what)
                    self._opening.table_is_made = True
            if not is_first:
                # They only look, so they need not wait for each other.
                self._loader.prepare_table(*what)
            self._labels = self._shape.labels(schema)
            self._prepared = True

    def _failed(self, partition: QueryPartition, error: Exception) -> PartitionError:
        text = redact(str(error) if isinstance(error, AmpError) else f'{type(error).__name__}: {error}')
        self._loader.attempts.failed(error)
        not_let_in = not self._has_begun and not isinstance(error, SourceError)
        may_help = self._may_help(error)
        return PartitionError(
            f'blocks {_shown(partition)} of {self.key.table!r} were not loaded: {text}',
            partition=partition,
            in_doubt=self._in_doubt,
            shut_out=not_let_in and may_help,
            hopeless=not_let_in and not may_help,
            result=self._result(partition, 0, 0.0, error=text),
            table=self.key.table,
        )

    def _result(
        self,
        partition: QueryPartition,
        rows: int,
        seconds: float,
        *,
        nbytes: int = 0,
        skipped: bool = False,
        error: str | None = None,
    ) -> LoadResult:
        metadata = {
            'operation': 'load_partition',
            **partition.metadata,
            'lane': self.number,
            'stream': self._spec.stream,
            'blocks': partition.end_block - partition.start_block,
            'bytes': nbytes,
            'skipped': skipped,
            'guarantee': self._loader.guarantee,
        }
        rate = rows / seconds if seconds > 0 else 0.0
        return LoadResult(
            rows, seconds, rate, self.key.table, self._loader.name, error is None, error=error, metadata=metadata
        )


def tell_committed(result: LoadResult) -> None:
    """The event of a partition that is durable; by whoever keeps the lanes, for a lane may be where nobody listens."""
    said, rows, seconds = result.metadata, result.rows_loaded, result.duration
    if result.success and not said['skipped']:
        where = result.loader_type, result.table_name, said['stream']
        emit(Committed(*where, rows, said['bytes'], seconds, said['blocks']))


def _head(ranges: tuple[BlockRange, ...], done: BlockRange) -> int:
    """The newest block that the result knew. It must have all blocks of a partition, or missing ones would count."""
    covered = next((r for r in ranges if r.network == done.network), None)
    if covered is None or covered.start > done.start or covered.end < done.end:
        has = 'nothing' if covered is None else f'blocks {covered.start} to {covered.end}'
        raise IncompleteResultError(
            f'the server has {has} of {done.network}, not all of {done.start} to {done.end}',
            hint='a shorter range, or later',
        )
    return covered.end


def _shown(partition: QueryPartition) -> str:
    return f'{partition.start_block} to {partition.end_block - 1}'
