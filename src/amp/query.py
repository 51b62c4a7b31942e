"""A question in SQL, and the ways to take its answer: as a table, as batches, into a destination."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa

from amp.errors import ConfigError, MissingExtraError
from amp.streaming.iterator import DEFAULT_MAX_BYTES, StreamingResultIterator
from amp.streaming.types import BatchMetadata, ResponseBatch, ResumeWatermark

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    from amp.client import Client
    from amp.flight.transport import FlightResult
    from amp.loaders.types import LabelConfig, LoadMode, LoadResult
    from amp.streaming.parallel import ParallelConfig

__all__ = ['Query']

# May match a text or a comment too: that only forces what a batch query is anyway.
_ASKS_FOR_STREAM = re.compile(r'\bsettings\b.*\bstream\b', re.IGNORECASE | re.DOTALL)


class Query:
    """SQL that is sent when its answer is asked for, and sent again each time. Made by `Client.sql`.

    All ways to read raise SourceError (ConnectError, AuthError, QueryError, IncompleteResultError) and ProtocolError.
    A Query is an Arrow stream of its own (`__arrow_c_stream__`): DuckDB, Polars and pyarrow read it in constant memory.
    """

    def __init__(self, client: Client, sql: str) -> None:
        if not sql.strip():
            raise ConfigError('the query is empty', hint="for example client.sql('SELECT 1')")
        self.sql = sql
        self._client = client
        self._batch_rows: int | None = None

    def __repr__(self) -> str:
        text = ' '.join(self.sql.split())
        return f'Query({text if len(text) <= 100 else text[:97] + "..."!r})'

    def schema(self) -> pa.Schema:
        """The columns of the answer, from the server's plan: nothing is run."""
        return self._client.transport.schema(self.sql)

    def to_arrow(self) -> pa.Table:
        """The whole answer in memory."""
        from amp.flight.worker import Worker

        result = self._open_bounded()

        def read() -> pa.Table:
            batches = [batch for batch, _ in result if batch.num_rows]
            return pa.Table.from_batches(batches, result.schema)

        reading = Worker(read)
        try:
            return reading.wait()
        except BaseException:  # Ctrl-C too: it ends the call, whose thread would read on
            result.cancel()
            reading.join(1.0)
            raise

    def to_pandas(self, **options: Any) -> pd.DataFrame:
        """The whole answer as a pandas DataFrame; options as for `pyarrow.Table.to_pandas`. Raises MissingExtraError."""
        if importlib.util.find_spec('pandas') is None:
            raise MissingExtraError('pandas', 'pandas')
        return self.to_arrow().to_pandas(**options)

    def stream(self) -> Iterator[pa.RecordBatch]:
        """The batches that have rows, as they come, in constant memory. The query is sent with the first `next`.

        Ends with the answer; for SQL with `SETTINGS stream = true` it follows the chain and never ends.
        """
        with closing(self.responses(streaming=None)) as responses:
            yield from _with_rows(responses)

    def to_reader(self) -> pa.RecordBatchReader:
        """The answer as a reader, in constant memory. Waits for the first batch, which brings the columns."""
        return self._start_reader()[0]

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The Arrow PyCapsule interface: a new run of the query."""
        reader: Any = self.to_reader()
        return reader.__arrow_c_stream__(requested_schema)

    def responses(
        self,
        resume: ResumeWatermark | None = None,
        streaming: bool | None = True,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> StreamingResultIterator:
        """Every batch with its metadata, zero-row ones too, read ahead by a thread. Close it when you stop early.

        `streaming=True` follows the chain from `resume` on, False asks for what there is now, None leaves it to the SQL.
        """
        result = self._client.transport.open(self.sql, streaming=streaming, resume=resume)
        return self._iterate(result, max_bytes)

    @overload
    def load(
        self,
        connection: str,
        destination: str,
        *,
        config: Mapping[str, Any] | None = ...,
        mode: LoadMode | str = ...,
        label_config: LabelConfig | None = ...,
        stream: Literal[False] = ...,
        resume: bool = ...,
        parallel_config: ParallelConfig | None = ...,
        create_table: bool = ...,
        batch_size: int | None = ...,
        **options: Any,
    ) -> LoadResult: ...

    @overload
    def load(
        self,
        connection: str,
        destination: str,
        *,
        config: Mapping[str, Any] | None = ...,
        mode: LoadMode | str = ...,
        label_config: LabelConfig | None = ...,
        stream: Literal[True],
        resume: bool = ...,
        parallel_config: ParallelConfig | None = ...,
        create_table: bool = ...,
        batch_size: int | None = ...,
        **options: Any,
    ) -> Generator[LoadResult, None, None]: ...

    @overload
    def load(
        self,
        connection: str,
        destination: str,
        *,
        config: Mapping[str, Any] | None = ...,
        mode: LoadMode | str = ...,
        label_config: LabelConfig | None = ...,
        stream: bool,
        resume: bool = ...,
        parallel_config: ParallelConfig | None = ...,
        create_table: bool = ...,
        batch_size: int | None = ...,
        **options: Any,
    ) -> LoadResult | Generator[LoadResult, None, None]: ...

    def load(
        self,
        connection: str,
        destination: str,
        *,
        config: Mapping[str, Any] | None = None,
        mode: LoadMode | str = 'append',
        label_config: LabelConfig | None = None,
        stream: bool = False,
        resume: bool = True,
        parallel_config: ParallelConfig | None = None,
        create_table: bool = True,
        batch_size: int | None = None,
        **options: Any,
    ) -> LoadResult | Generator[LoadResult, None, None]:
        """Land the answer in the table `destination` of `connection`: a URL, or a name given to the client.

        Without `stream` it runs to the end in constant memory and returns one LoadResult; a failure is a LoadError that
        carries it. With `stream` it is an iterator of LoadResult, one for each commit and each reorg, for ever, that
        goes on from the position in the destination unless `resume` is False. `config` adds to what the connection
        says, `parallel_config` loads history with several workers first, `batch_size` bounds the rows of a batch, `options` are those of the loader and of the stream. Raises
        ConfigError for a connection, loader or option that is not known.
        """
        from amp.loaders.session import load_query, stream_query

        query = self._in_batches_of(batch_size)
        if label_config is not None:
            options['label_config'] = label_config
        options |= {'mode': mode, 'create_table': create_table}
        if parallel_config is not None:
            return self._load_in_parallel(connection, destination, parallel_config, stream, config=config, **options)
        loader = self._client.make_loader(connection, config)
        if stream:
            return stream_query(loader, query, destination, resume=resume, **options)
        reader, responses = query._start_reader()
        with closing(responses):
            return load_query(loader, reader, destination, **options)

    def _load_in_parallel(
        self, connection: str, destination: str, parallel: ParallelConfig, stream: bool, **options: Any
    ) -> LoadResult | Generator[LoadResult, None, None]:
        from amp.backfill.executor import ParallelStreamExecutor, load_in_parallel

        if not stream:
            return load_in_parallel(self._client, self.sql, connection, destination, parallel, **options)
        runner = ParallelStreamExecutor(
            self._client, parallel, query=self.sql, connection=connection, destination=destination
        )
        return runner.load_with_resume_optimization(**options)

    def _in_batches_of(self, rows: int | None) -> Query:
        if rows is None:
            return self
        if rows < 1:
            raise ConfigError(f'batch_size is a positive number of rows: {rows}')
        query = Query(self._client, self.sql)
        query._batch_rows = rows
        return query

    def _start_reader(self) -> tuple[pa.RecordBatchReader, StreamingResultIterator]:
        """A reader, and what it reads from; that is closed with the reader, wherever it was left."""
        result = self._open_bounded()
        responses = self._iterate(result)
        try:
            first = next(responses, None)
            batches = _closing(first, responses)
            next(batches)
            return pa.RecordBatchReader.from_batches(result.schema, batches), responses
        except BaseException:  # Ctrl-C too: the call is open, and nobody would close it
            responses.close()
            raise

    def _open_bounded(self) -> FlightResult:
        """A result that ends. SQL that asks for a stream is told not to: nobody can collect one."""
        streaming = False if _ASKS_FOR_STREAM.search(self.sql) else None
        return self._client.transport.open(self.sql, streaming=streaming)

    def _iterate(self, result: FlightResult, max_bytes: int = DEFAULT_MAX_BYTES) -> StreamingResultIterator:
        responses: Iterator[ResponseBatch] = (
            ResponseBatch(batch, metadata or _NO_METADATA) for batch, metadata in result
        )
        if self._batch_rows is not None:
            responses = _in_slices(responses, self._batch_rows)
        return StreamingResultIterator(responses, max_bytes=max_bytes, cancel=result.cancel)


_NO_METADATA = BatchMetadata()


def _with_rows(responses: Iterator[ResponseBatch]) -> Iterator[pa.RecordBatch]:
    for response in responses:
        if response.data is not None and response.data.num_rows:
            yield response.data


def _closing(first: ResponseBatch | None, responses: StreamingResultIterator) -> Iterator[Any]:
    """The batches with rows, after one None: a generator that was never begun would not close anything."""
    with closing(responses):
        yield None
        if first is not None:
            yield from _with_rows(iter([first]))
        yield from _with_rows(responses)


def _in_slices(responses: Iterator[ResponseBatch], rows: int) -> Iterator[ResponseBatch]:
    """Batches of at most `rows` rows; only the last slice of a batch may close its microbatch."""
    for response in responses:
        batch = response.data
        if batch is None or batch.num_rows <= rows:
            yield response
            continue
        open_metadata = BatchMetadata(response.metadata.ranges)
        for start in range(0, batch.num_rows, rows):
            last = start + rows >= batch.num_rows
            yield ResponseBatch(batch.slice(start, rows), response.metadata if last else open_metadata)
