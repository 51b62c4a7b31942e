"""DataLoader: what an author writes, what a user calls, and what lies between.

What an author writes is in `hooks.py`. The base connects when needed, checks the mode, makes the table once, clears it
once for OVERWRITE, times the work, and turns a failure into a LoadResult. How rows of a stream become durable is not decided here: see `unit.py` and the engine in `stream.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import pyarrow as pa

from amp.config.urls import config_from_url
from amp.errors import AmpError, ConfigError, LoadError, redact
from amp.events import Committed, emit
from amp.loaders import stamps
from amp.loaders.attempts import Attempts
from amp.loaders.evolution import FREEZE, refuse_unless_evolving
from amp.loaders.hooks import Hooks, TConfig, config_class, rate
from amp.loaders.mistakes import check_class, check_connected, check_required
from amp.loaders.options import LoadOptions, as_mode, check_name
from amp.loaders.readers import Counted, Remembering, as_kind, as_table
from amp.loaders.registry import LoaderRegistry
from amp.loaders.shape import Shape, Step
from amp.loaders.types import LabelConfig, LabelJoinConfig, LoadConfig, LoadMode, LoadResult
from amp.loaders.unit import StreamingDestination
from amp.streaming.machine import batch_id
from amp.streaming.resilience import AdaptiveRateLimiter, CircuitBreaker, ResilienceConfig
from amp.streaming.state import StreamStateStore, make_local_store
from amp.streaming.types import BlockRange, ResponseBatch
from amp.waiting import interruptible

__all__ = ['DataLoader', 'LabelJoinConfig', 'LoadConfig', 'LoadMode', 'LoadResult']

_BATCH_ROWS = 65_536


class DataLoader(Hooks[TConfig]):
    """A destination. `config` is a mapping of the loader's own keys; `resilience` and `state` are the base's.

    Raises ConfigError (a ValueError) for a missing or unknown key, by name.
    """

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        check_class(type(self))
        given = dict(config)
        self.name = loader_name(type(self))
        self.logger = logging.getLogger(f'amp.loaders.{self.name}')
        self.label_manager = label_manager
        self._is_connected = False
        self._in_doubt = False
        self._created_tables: dict[str, set[str]] = {}
        if 'url' in given:
            given = {**config_from_url(str(given.pop('url')), config_class(type(self)), self.URL_PATH_KEY), **given}
        self.attempts = Attempts(
            ResilienceConfig.from_config(given.pop('resilience', None)),
            self.name,
            self.is_transient,
        )
        self._state_config = given.pop('state', None)
        check_required(self, given)
        self.config = self._parse_config(given)
        self.state_store: StreamStateStore = self._make_state_store(self._state_config)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = loader_name(cls)
        if name and not cls.__name__.startswith('_'):
            LoaderRegistry.register(name, cls)

    # What a user calls

    @property
    def rate_limiter(self) -> AdaptiveRateLimiter:
        """The pause before each unit, as the destination's answers have made it."""
        return self.attempts.limiter

    @property
    def circuit_breaker(self) -> CircuitBreaker:
        """Whether anything is tried at all."""
        return self.attempts.breaker

    @property
    def is_connected(self) -> bool:
        """True between `connect` and `disconnect`."""
        return self._is_connected

    def health_check(self) -> bool:
        """True when the destination can be reached. Raises what `connect` raises."""
        self._ensure_connected()
        return self._is_connected

    def close(self) -> None:
        """Disconnect; harmless when not connected."""
        if self._is_connected:
            self.disconnect()

    def __enter__(self) -> Self:
        self._ensure_connected()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def load_batch(self, batch: pa.RecordBatch, table_name: str, **options: Any) -> LoadResult:
        """Load one batch as a unit of its own. A failure is a result with `success=False`.

        Raises ConfigError for what is no RecordBatch.
        """
        started = time.perf_counter()
        batch = as_kind(batch, pa.RecordBatch, 'load_batch')
        chosen = self._options(options)
        try:
            shaped = chosen.shape.batch(batch)
            rows = self.attempts.run(lambda: self._load_one(shaped, table_name, chosen), self._may_repeat)
        except Exception as error:  # noqa: BLE001 - the contract: at this level every failure of a driver is a result
            return self._failure(error, table_name, started)
        metadata = self._get_batch_metadata(shaped, time.perf_counter() - started, **chosen.extra)
        return self._success(rows, shaped.nbytes, started, table_name, metadata)

    def load_table(
        self,
        table: pa.Table | pa.RecordBatch | pa.RecordBatchReader,
        table_name: str,
        mode: LoadMode | str = LoadMode.APPEND,
        batch_size: int = _BATCH_ROWS,
        **options: Any,
    ) -> LoadResult:
        """Load a table as one unit, `batch_size` rows at a time. A failure is a result with `success=False`.

        A reader is loaded as by `load_reader`, in the batches that it gives. Raises ConfigError for what is no table.
        """
        table = as_table(table)
        if isinstance(table, pa.RecordBatchReader):
            return self.load_reader(table, table_name, mode=mode, **options)
        chosen = self._options({**options, 'mode': mode})

        def once() -> tuple[int, Counted]:
            counted = Counted(table.schema)
            return self._load_all(table.to_reader(max_chunksize=batch_size), counted, table_name, chosen), counted

        started = time.perf_counter()
        try:
            rows, counted = self.attempts.run(once, self._may_repeat)
        except Exception as error:  # noqa: BLE001 - the contract, as above
            return self._failure(error, table_name, started)
        return self._loaded(rows, counted, started, table_name, chosen, None if chosen.shape else table)

    def load_reader(self, reader: pa.RecordBatchReader, table_name: str, **options: Any) -> LoadResult:
        """Load all that a reader gives as one unit, in constant memory. A failure is a result, `success=False`.

        A reader cannot be read again, so nothing is retried. An AmpError of the reader itself (the source failed) is
        raised as it is, after the unit was rolled back, and a ConfigError for what is no reader.
        """
        started = time.perf_counter()
        reader = as_kind(reader, pa.RecordBatchReader, 'load_reader')
        chosen = self._options(options)
        counted, source = Counted(reader.schema), Remembering(reader)
        try:
            self.attempts.before()
            rows = self._load_all(source, counted, table_name, chosen)
        except Exception as error:  # the contract, as above
            if source.error is not None:
                raise source.error from error
            self.attempts.failed(error)
            return self._failure(error, table_name, started)
        self.attempts.succeeded()
        return self._loaded(rows, counted, started, table_name, chosen, None)

    def load_stream(self, batches: Iterable[pa.RecordBatch], table_name: str, **options: Any) -> Iterator[LoadResult]:
        """Load batches as they come, each a unit of its own; OVERWRITE clears the table before the first."""
        for batch in batches:
            yield self.load_batch(batch, table_name, **options)
            if 'mode' in options and as_mode(options['mode']) is LoadMode.OVERWRITE:
                options = {**options, 'mode': LoadMode.APPEND}

    def load_stream_continuous(
        self, responses: Iterable[ResponseBatch], table_name: str, connection_name: str | None = None, **options: Any
    ) -> Iterator[LoadResult]:
        """Load a stream of batches with their ranges: one result for each commit and each reorg.

        `connection_name` is for logs: it is never part of what names the stream. Raises AmpError when a unit fails.
        """
        from amp.loaders.given import follow_responses

        del connection_name
        yield from follow_responses(self, responses, table_name, **options)

    # Between them

    def streaming_destination(self) -> StreamingDestination:
        """How this loader makes a stream durable: by its own transactions, by ids, or at least once."""
        if hasattr(self, 'open_stream'):
            return cast('StreamingDestination', self)
        from amp.loaders.by_id import undo_by_id

        return undo_by_id(self)

    @classmethod
    def guarantee_of(cls) -> str:
        """`exactly-once` or `at-least-once`: what a stream into this kind of loader can promise."""
        by_id = cls._delete_runs is not DataLoader._delete_runs and hasattr(cls, '_write_state')
        own = hasattr(cls, 'open_stream') or by_id or cls.streaming_destination is not DataLoader.streaming_destination
        return 'exactly-once' if own else 'at-least-once'

    @property
    def guarantee(self) -> str:
        """What a stream into this loader can promise."""
        return self.guarantee_of()

    def prepare_table(
        self, schema: pa.Schema, table_name: str, create_table: bool, schema_evolution: str = FREEZE
    ) -> None:
        """Make the table once, or check that it is there and has the columns. Raises LoadError or SchemaError."""
        prepared = self._created_tables.get(table_name)
        if prepared is not None and prepared.issuperset(schema.names):
            return
        if create_table:
            self._create_table_from_schema(schema, table_name)
        elif _overrides(self, 'table_exists') and not self.table_exists(table_name):
            raise LoadError(
                f'the table {table_name!r} does not exist',
                hint='leave out create_table=False to make it',
                table=table_name,
            )
        missing = list(self._missing_columns(schema, table_name))
        if missing:
            refuse_unless_evolving(missing, table_name, schema_evolution)
            self._add_columns(missing, table_name)
        self._created_tables[table_name] = set(schema.names)

    def shape(self, column_types: Mapping[str, str] | None = None, label_config: LabelConfig | None = None) -> Shape:
        """What happens to the rows of a load before they come to the loader: labels, then forms."""
        steps: list[Step] = []
        if label_config is not None:
            from amp.loaders.labels import LabelJoin

            steps += LabelJoin.steps(self.label_manager, label_config)
        if column_types:
            from amp.loaders.column_types import ColumnTypes

            steps.append(ColumnTypes(column_types))
        return Shape(steps)

    def check_mode(self, mode: LoadMode, key_columns: Sequence[str], *, stream: bool = False) -> None:
        """Raises ConfigError for a mode that this loader does not have, or not in a stream, or keys that a mode lacks."""
        if mode not in self.SUPPORTED_MODES:
            known = ', '.join(sorted(m.value for m in self.SUPPORTED_MODES))
            raise ConfigError(f'{self.name} has no mode {mode.value}', hint=f'it has: {known}')
        if stream and self.STREAM_MODES is not None and mode not in self.STREAM_MODES:
            raise ConfigError(
                f'{self.name} cannot {mode.value} in a stream: a reorg could not bring back the rows that it replaced',
                hint='stream in append mode, and keep the newest of each key in a view or a plain load',
            )
        if mode in {LoadMode.UPSERT, LoadMode.MERGE} and not key_columns:
            raise ConfigError(f'mode {mode.value} needs key_columns=[...]', hint='they say which row replaces which')

    def _load_one(self, batch: pa.RecordBatch, table_name: str, options: LoadOptions) -> int:
        check_name(table_name)
        self._ensure_connected()
        self.check_mode(options.mode, options.key_columns)
        if options.block_ranges:
            batch = self._add_metadata_columns(batch, options.block_ranges)
        with self._unit(table_name):
            self._prepare(batch.schema, table_name, options)
            return self._checked_count(self._load_batch_impl(batch, table_name, **options.for_author()))

    def _load_all(
        self, batches: pa.RecordBatchReader | Remembering, counted: Counted, table_name: str, options: LoadOptions
    ) -> int:
        check_name(table_name)
        self._ensure_connected()
        self.check_mode(options.mode, options.key_columns)
        schema = options.shape.schema(batches.schema)
        reader = counted.reader(schema, options.shape.batches(batches))
        with self._unit(table_name):
            if options.block_ranges:
                schema = schema.append(pa.field(stamps.BATCH_ID, pa.string()))
                stamped = (self._add_metadata_columns(batch, options.block_ranges) for batch in reader)
                reader = pa.RecordBatchReader.from_batches(schema, stamped)
            self._prepare(schema, table_name, options)
            return self._checked_count(self._load_reader_impl(reader, table_name, **options.for_author()))

    def _prepare(self, schema: pa.Schema, table_name: str, options: LoadOptions) -> None:
        self.prepare_table(schema, table_name, options.create_table, options.schema_evolution)
        if options.mode is LoadMode.OVERWRITE:
            self._clear_table(table_name)

    def _add_metadata_columns(self, batch: pa.RecordBatch, block_ranges: Sequence[BlockRange]) -> pa.RecordBatch:
        return stamps.with_batch_id(batch, batch_id(block_ranges))

    def _ensure_connected(self) -> None:
        if not self._is_connected:
            self.connect()
            check_connected(self)

    def _options(self, options: Mapping[str, Any]) -> LoadOptions:
        return LoadOptions.parse(options, self.name, self.LOAD_OPTIONS, self.shape)

    def _make_state_store(self, config: Any) -> StreamStateStore:
        if self.guarantee != 'exactly-once':
            return make_local_store(config)
        if config:
            raise ConfigError(
                f'{self.name} keeps the state of its streams inside the destination, so a local state store would lie',
                hint='leave out the key `state`',
            )
        from amp.loaders.destination_state import DestinationStateStore

        return DestinationStateStore(self)

    @contextmanager
    def _unit(self, table_name: str) -> Iterator[None]:
        """The transaction of a plain load. When it fails at its very end, nobody knows whether the rows are there."""
        self._in_doubt = False
        try:
            with interruptible(), self._transaction():
                yield
                self._in_doubt = True
        except BaseException:  # Ctrl-C too: a table that was made in it is gone
            self._created_tables.pop(table_name, None)
            raise
        self._in_doubt = False

    def _may_repeat(self) -> bool:
        if self._in_doubt:
            return False
        return self.SUPPORTS_TRANSACTIONS or self.guarantee == 'at-least-once'

    def _loaded(
        self,
        rows: int,
        counted: Counted,
        started: float,
        table_name: str,
        options: LoadOptions,
        table: pa.Table | None,
    ) -> LoadResult:
        duration = time.perf_counter() - started
        about = counted if table is None else table
        metadata = self._get_table_metadata(about, duration, counted.batches, **options.extra)
        return self._success(rows, counted.nbytes, started, table_name, metadata)

    def _success(self, rows: int, nbytes: int, started: float, table_name: str, metadata: dict[str, Any]) -> LoadResult:
        duration = time.perf_counter() - started
        emit(Committed(self.name, table_name, None, rows, nbytes, duration))
        return LoadResult(rows, duration, rate(rows, duration), table_name, self.name, True, metadata=metadata)

    def _failure(self, error: Exception, table_name: str, started: float) -> LoadResult:
        text = redact(str(error) if isinstance(error, AmpError) else f'{type(error).__name__}: {error}')
        # A name with half a surrogate pair is refused, and no log could write it.
        shown = str(table_name).encode(errors='backslashreplace').decode()
        self.logger.error('loading into %s failed: %s', shown, text)
        duration = time.perf_counter() - started
        return LoadResult(0, duration, 0.0, table_name, self.name, False, error=text)


def loader_name(loader_class: type[DataLoader[Any]]) -> str:
    """`ExampleLoader` -> `example`."""
    return loader_class.__name__.lower().removesuffix('loader')


def _overrides(loader: DataLoader[Any], method: str) -> bool:
    return getattr(type(loader), method) is not getattr(DataLoader, method)
