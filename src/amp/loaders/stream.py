"""The engine: it drives a loader through a stream and knows neither the wire nor any destination.

Batches come from a `Source`, the machine says what they mean, a `Unit` makes them durable. Results are handed out only
after the commit they speak of. When something fails the unit in hand is rolled back; then the source is asked again
from the committed position, or the stream is opened anew, which reads the truth back from the destination.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from amp.errors import (
    AmpError,
    ConfigError,
    DestinationError,
    IncompleteResultError,
    LoadError,
    SourceError,
    StaleEpochError,
    redact,
)
from amp.events import Retrying, emit
from amp.loaders.evolution import evolution
from amp.loaders.label_record import with_earlier
from amp.loaders.lanes import base_for
from amp.loaders.options import check_name
from amp.loaders.points import reached
from amp.loaders.settings import FOR_EVER, Source, StreamSettings
from amp.loaders.stamps import stamp, stamped_schema
from amp.loaders.stream_results import InHand, StreamResults
from amp.loaders.types import LoadMode, LoadResult
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.iterator import END, End
from amp.streaming.ledger import IdRun, StreamKey, StreamState, Undo
from amp.streaming.machine import Abandon, Completed, Flush, Idle, Reconnect, Rewind, Rows, StreamMachine
from amp.streaming.resilience import ErrorClassifier, ExponentialBackoff
from amp.streaming.types import BlockRange, ResponseBatch, ResumeWatermark
from amp.waiting import interruptible

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader

__all__ = ['StreamEngine']

logger = logging.getLogger('amp.stream')
T = TypeVar('T')

_LOOK_UP = 0.2  # seconds between two looks whether to stop


class StreamEngine:
    """Runs one stream into one loader. `connect(position)` opens the source; None position is the beginning."""

    def __init__(
        self,
        loader: DataLoader[Any],
        job: StreamJob,
        connect: Callable[[ResumeWatermark | None], Source],
        settings: StreamSettings,
        query: str | None = None,
    ) -> None:
        for name in job.key:
            check_name(name)
        self._loader = loader
        self._destination = loader.streaming_destination()
        self._job = job
        self._connect = connect
        self._settings = settings
        evolution(settings.schema_evolution)
        self._attempts = loader.attempts
        self._shape = loader.shape(settings.column_types, settings.label_config)
        self._claim = Claim.now(query)
        self._results = StreamResults(loader.name, loader.guarantee, job.key)
        # Until the destination has said where the stream stands.
        self._machine = StreamMachine(StreamState(1, 0))
        self._fresh = False
        self._whole_table = False
        self._base: BlockRange | None = None
        self._must_retake = False
        self._first_undo: Undo | None = None
        self._hand: InHand | None = None
        self._doubt: tuple[InHand, tuple[BlockRange, ...], StreamState] | None = None
        self._ranges: list[BlockRange] = []
        self._dirty_since = 0.0
        self._epoch: int | None = None
        self._prepared = False
        self._labels: str | None = None
        self._answered = False
        self._commits = 0

    def run(self) -> Iterator[LoadResult]:
        """Results for ever, or until the source ends for good. Raises AmpError when a unit fails for good."""
        self._start()
        backoff = ExponentialBackoff(self._settings.retry or self._attempts.config.retry or FOR_EVER)
        last_progress = time.monotonic()
        while not self._stopped:
            commits = self._commits
            try:
                if self._must_retake:
                    self._retake()
                    yield from self._settle_doubt()
                source = self._connect(self._cursor())
                if (yield from self._follow(source)):
                    return
                failure: AmpError | None = None
            except (SourceError, DestinationError) as error:
                if not error.retryable or isinstance(error, StaleEpochError) or not self._answered:
                    raise
                failure = error
            if self._commits != commits:
                backoff.reset()
                last_progress = time.monotonic()
            self._give_up(failure, last_progress)
            if isinstance(failure, DestinationError):
                self._must_retake = True
                self._attempts.failed(failure)
            if failure is not None or self._commits == commits:
                self._pause(backoff, failure)

    def _cursor(self) -> ResumeWatermark | None:
        if self._machine.start is None:
            return self._machine.committed.position or None
        network, number = self._machine.start
        # With a hash that no block has, the server begins at the number itself and names its parent.
        return ResumeWatermark([BlockRange(network, number, number, '0x' + secrets.token_hex(32))])

    def _pause(self, backoff: ExponentialBackoff, failure: AmpError | None) -> None:
        pause = backoff.next_delay()
        if pause is None:
            if failure is not None:
                raise failure
            # A server that ends its streams without news is asked again, slowly, for ever.
            pause = backoff.config.max_backoff_ms / 1000
        logger.info('waiting %.1f s before asking again: %s', pause, failure or 'nothing new')
        if failure is not None:
            kind = ErrorClassifier.classify(failure).value
            emit(Retrying(self._job.key.name, kind, backoff.attempt, pause, failure))
        if self._settings.stop is None:
            time.sleep(pause)
        else:
            with interruptible():
                self._settings.stop.wait(pause)

    # One connection

    def _follow(self, source: Source) -> Generator[LoadResult, None, bool]:
        """Commit what one connection gives. True: there is nothing after it."""
        self._machine.connected()
        try:
            while True:
                response = self._receive(source)
                if self._stopped:
                    return True
                self._answered = True
                if response is END:
                    yield from self._at_end(source)
                    return not source.repeatable
                if response is None:
                    yield from self._commit()
                elif (yield from self._take(response, source)) or self._machine.epoch_is_spent:
                    return False
        finally:
            # Also when the consumer of this iterator stops, or a signal comes: the unit in hand is never left open.
            self._roll_back()
            self._must_retake |= self._machine.epoch_is_spent
            source.close()

    def _take(self, response: ResponseBatch, source: Source) -> Generator[LoadResult, None, bool]:
        """Do what the machine says of one batch. True: connect again."""
        self._prepare(response)
        while True:
            step = (
                self._machine.reorg(response.invalidation_ranges)
                if response.is_reorg
                else self._machine.receive(response.metadata, response.num_rows)
            )
            match step:
                case Rows() | Completed():
                    if response.data is not None and response.data.num_rows:
                        self._write(response.data, step.tx_id, step.batch_id)
                    if isinstance(step, Completed):
                        yield from self._completed(step, source)
                    return False
                case Rewind(undo, reconnect):
                    self._begin(undo)
                    if reconnect or response.is_reorg:
                        yield from self._commit()
                        return reconnect
                case Flush():
                    yield from self._commit()
                case Abandon():
                    self._roll_back()
                    if self._must_retake:
                        return True
                case Reconnect(reason):
                    logger.warning('asking again from the position: %s', reason)
                    return True
                case Idle():
                    return False

    def _completed(self, step: Completed, source: Source) -> Iterator[LoadResult]:
        if not self._ranges:
            self._dirty_since = time.monotonic()
        self._ranges.extend(step.ranges)
        if self._is_due(source.backlog):
            yield from self._commit()

    def _is_due(self, backlog: bool) -> bool:
        waited = time.monotonic() - self._dirty_since
        hand = self._hand
        if hand is None or (hand.rows == 0 and hand.undo is None):
            return waited >= self._settings.position_seconds and (
                not backlog or waited >= self._settings.commit_seconds
            )
        settings = self._settings
        full = hand.rows >= settings.commit_rows or hand.bytes >= settings.commit_bytes
        return not backlog or full or waited >= settings.commit_seconds

    def _receive(self, source: Source) -> ResponseBatch | Literal[End.END] | None:
        """The next batch; None when it is time to commit. Looks up now and then when the stream may be told to stop."""
        if self._settings.stop is None:
            return source.get(self._patience())
        while True:
            patience = self._patience()
            response = source.get(_LOOK_UP if patience is None else min(patience, _LOOK_UP))
            if response is not None or self._stopped or (patience is not None and patience <= _LOOK_UP):
                return response

    @property
    def _stopped(self) -> bool:
        return self._settings.stop is not None and self._settings.stop.is_set()

    def _patience(self) -> float | None:
        """How long to wait for a batch: for ever, unless a position waits to be committed."""
        if not (self._machine.is_dirty and self._machine.at_boundary):
            return None
        return max(0.05, self._settings.position_seconds - (time.monotonic() - self._dirty_since))

    def _at_end(self, source: Source) -> Iterator[LoadResult]:
        if self._machine.at_boundary:
            if self._machine.is_dirty:
                yield from self._commit()
        elif not source.repeatable:
            unfinished = IncompleteResultError(
                'the batches ended inside a microbatch; its rows were rolled back',
                hint='close it with a batch whose metadata says ranges_complete=True',
                position=self._machine.committed.position.to_dict(),
            )
            unfinished.retryable = False
            raise unfinished

    # One unit

    def _begin(self, undo: Undo | None = None) -> InHand:
        if undo is None:
            undo, self._first_undo = self._first_undo, None
        reached('unit.begin')
        self._attempts.before()
        unit = self._guarded(
            lambda: self._destination.begin(self._job, self._machine.committed, self._machine.unit_id(), undo)
        )
        self._hand = InHand(unit, time.perf_counter(), undo)
        reached('unit.begun')
        return self._hand

    def _write(self, received: pa.RecordBatch, tx_id: int, batch_id: str) -> None:
        batch = self._guarded(lambda: self._shape.batch(received))
        self._labels = with_earlier(self._shape.labels(received.schema), self._labels)
        if not batch.num_rows:
            return
        hand = self._hand or self._begin()
        reached('unit.before_data')
        rows = 0
        step = min(self._attempts.batch_size.rows, batch.num_rows)
        for at in range(0, batch.num_rows, step):
            part = stamp(batch.slice(at, step), tx_id, batch_id)
            rows += self._guarded(partial(hand.unit.write, part))
        reached('unit.after_data')
        if rows < batch.num_rows:
            raise LoadError(
                f'{self._loader.name} took {rows} of {batch.num_rows} rows of a batch; the unit was rolled back',
                result=self._results.of_failure('short write', self._machine.committed),
                table=self._job.key.table,
            )
        hand.rows += rows
        hand.bytes += batch.nbytes

    def _commit(self) -> Iterator[LoadResult]:
        hand = self._hand or self._begin()
        state = self._machine.pending = self._labelled(self._machine.pending)
        ranges = tuple(self._ranges)
        self._doubt = (hand, ranges, state)
        reached('unit.before_commit')
        self._guarded(lambda: hand.unit.commit(state))
        reached('unit.committed')
        self._machine.committed_unit()
        yield from self._committed(hand, ranges)

    def _labelled(self, state: StreamState) -> StreamState:
        before = self._machine.committed
        if not self._prepared:
            return state
        labels = with_earlier(self._labels, before.labels) if before.has_history else self._labels
        if labels != before.labels and before.has_history:
            logger.warning('stream %s: the rows before were joined with other labels', self._job.key.name)
        return state if labels == state.labels else replace(state, labels=labels)

    def _committed(self, hand: InHand, ranges: tuple[BlockRange, ...]) -> Iterator[LoadResult]:
        self._ranges, self._hand, self._doubt = [], None, None
        self._attempts.succeeded()
        self._commits += 1
        self._fresh = False
        yield from self._results.of_unit(hand, ranges, self._machine.committed)

    def _settle_doubt(self) -> Iterator[LoadResult]:
        """After a commit whose answer was lost, the destination itself has said whether it happened."""
        doubt, self._doubt = self._doubt, None
        if doubt is None:
            return
        hand, ranges, state = doubt
        found = self._machine.committed
        if (found.entries, found.segments) == (state.entries, state.segments):
            yield from self._committed(hand, ranges)

    def _roll_back(self) -> None:
        hand, self._hand = self._hand, None
        self._ranges = []
        self._machine.rolled_back()
        if hand is not None:
            # Where undo is by id, the position was rewound durably before the rows went: only the destination knows.
            self._must_retake |= hand.undo is not None
            hand.unit.rollback()

    def _guarded(self, act: Callable[[], T]) -> T:
        """What a driver raises, as a LoadError; what it says of itself decides whether trying again may help."""
        try:
            with interruptible():
                return act()
        except AmpError:
            raise
        except Exception as error:  # drivers have their own kinds; each becomes a LoadError with its cause
            text = redact(f'{type(error).__name__}: {error}')
            failed = LoadError(
                f'loading into {self._job.key.table!r} failed: {text}',
                result=self._results.of_failure(text, self._machine.committed),
                table=self._job.key.table,
                loader=self._loader.name,
            )
            failed.retryable = self._loader.is_transient(error) or ErrorClassifier.is_transient(error)
            raise failed from error

    # The stream as a whole

    def _start(self) -> None:
        self._loader.check_mode(self._job.mode, self._job.key_columns, stream=True)
        self._loader._ensure_connected()
        known = {info.key: info for info in self._destination.list_streams()}
        self._refuse_conflicts(known)
        mine = known.get(self._job.key)
        has_history = mine is not None and bool(mine.state.entries or mine.state.segments)
        self._base = self._settings.base
        if mine is None or not mine.state.position:
            self._base = base_for(self._destination, list(known.values()), self._job.key, self._claim) or self._base
        self._whole_table = self._job.mode is LoadMode.OVERWRITE
        self._fresh = self._whole_table if not has_history else not self._settings.resume
        if self._whole_table:
            self._job = replace(self._job, mode=LoadMode.APPEND)
        self._retake()

    def _refuse_conflicts(self, known: Mapping[StreamKey, StreamInfo]) -> None:
        key = self._job.key
        if self._job.mode is LoadMode.OVERWRITE:
            others = [k.name for k in known if k.table == key.table and k != key]
            if others:
                raise ConfigError(
                    f'the table {key.table!r} is fed by another stream ({others[0]!r}), so overwriting it is refused',
                    hint='stream into a table of its own',
                )
        mine = known.get(key)
        stored = mine.claim.fingerprint if mine is not None else None
        given = self._claim.fingerprint
        if None in {stored, given} or stored == given or not self._settings.resume:
            return
        if not self._settings.accept_changed_query:
            raise ConfigError(
                f'the stream {key.name!r} of {key.table!r} was begun with another query',
                hint='give it another name, or say accept_changed_query=True to go on with the new query from here',
            )

    def _retake(self) -> None:
        """Open the stream anew: a new epoch, and the truth of what is committed."""
        self._loader._ensure_connected()
        # Once it is ours, it is ours to lose: whoever took it meanwhile keeps it.
        state = self._guarded(lambda: self._destination.open_stream(self._job.key, self._claim, self._epoch))
        self._epoch = state.epoch
        reached('stream.opened')
        self._must_retake = False
        if self._fresh:
            # The first unit takes back all that this stream ever wrote, and the stream begins again.
            empty = StreamState(state.number, state.epoch)
            before = IdRun(state.interval.first, state.first_id - 1)
            self._first_undo = Undo(empty, (before,), state.entries, (), is_reorg=False, whole_table=self._whole_table)
            state = empty
        self._machine = StreamMachine(
            state, retention=self._settings.retention, strict=self._settings.strict, base=self._base
        )
        logger.info('stream %s epoch %d from %s', self._job.key.name, state.epoch, state.position.to_json())

    def _prepare(self, response: ResponseBatch) -> None:
        if self._prepared or response.data is None:
            return
        schema = stamped_schema(self._shape.schema(response.data.schema))
        self._labels = self._shape.labels(response.data.schema)
        settings = self._settings
        self._guarded(
            lambda: self._loader.prepare_table(
                schema, self._job.key.table, settings.create_table, settings.schema_evolution
            )
        )
        self._prepared = True

    def _give_up(self, failure: AmpError | None, last_progress: float) -> None:
        limit = self._settings.retry_seconds
        if failure is not None and limit is not None and time.monotonic() - last_progress >= limit:
            raise failure
