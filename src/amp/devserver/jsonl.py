"""The JSON Lines endpoint: SQL in, one JSON object a row out."""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
from anyio import to_thread
from datafusion import SessionContext
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from amp.devserver.ahead import LeftError
from amp.devserver.chain import Scan
from amp.devserver.engine import Engine, TableName
from amp.devserver.sql import caused_by, invalid_argument, parse_statement
from amp.errors import QueryError, SourceError

__all__ = ['jsonl_app', 'to_json_lines']

_TYPE = 'application/x-ndjson'
_NO_STREAMS = (
    'Streaming queries (SETTINGS stream = true) are not supported on the JSONL endpoint. '
    'Please use the Arrow Flight endpoint instead.'
)
_LOOK_SECONDS = 0.25
_CATALOG = 'PHYSICAL_CATALOG_ERROR'
_STATUS = {'INVALID_ARGUMENT': 400, 'NOT_FOUND': 404}
# By what the text says, the first that fits.
_CODES = {
    'the SQL query is empty': 'INVALID_SQL_STRING',
    'SQL parse error': 'SQL_PARSE_ERROR',
    _NO_STREAMS: 'STREAMING_NOT_SUPPORTED',
    'Failed to resolve table references': 'TABLE_REFERENCE_RESOLUTION',
    'Failed to resolve function references': 'FUNCTION_REFERENCE_RESOLUTION',
    'Dataset not found': _CATALOG,
    'not found in dataset': _CATALOG,
    'error creating physical catalog': _CATALOG,
    'invalid query': 'INVALID_QUERY',
    'query execution error': 'EXECUTION_ERROR',
}
_UNKNOWN = re.compile(r'Dataset not found: .*|Table \S* not found in dataset .*')

# Whoever waits may leave before the thread does.
_in_a_thread = partial(to_thread.run_sync, abandon_on_cancel=True)


def jsonl_app(engine: Engine, explain: Callable[[QueryError], QueryError] | None = None) -> Starlette:
    """The application over an engine's datasets; errors are explained first, if they can be."""

    async def query(request: Request) -> Response:
        sql = await request.body()
        gone = threading.Event()
        running = asyncio.ensure_future(_in_a_thread(_run, engine, sql, gone.is_set))
        try:
            while not (await asyncio.wait({running}, timeout=_LOOK_SECONDS))[0]:
                if await request.is_disconnected():
                    gone.set()
            answer = running.result()
        except QueryError as error:
            return _failed(error, explain)
        except LeftError:
            return Response()
        finally:
            # The server shuts down by ending this very task.
            if not running.done():
                gone.set()
                running.cancel()
        # An error after this breaks the answer off: its status has been sent.
        return StreamingResponse(_lines(answer, gone), media_type=_TYPE)

    async def healthy(_: Request) -> Response:
        return Response()

    return Starlette(
        routes=[Route('/', query, methods=['POST']), Route('/health', healthy)],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=['*'], allow_methods=['*'], allow_headers=['*']),
            Middleware(GZipMiddleware),
        ],
    )


class _Answer:
    """The batches of a result, one after the other, until it is closed; `first` is there already."""

    def __init__(self, first: list[pa.RecordBatch], rest: Generator[pa.RecordBatch]) -> None:
        self._first = first
        self._rest = rest
        self._taking = threading.Lock()

    def take(self) -> pa.RecordBatch | None:
        with self._taking:
            return self._first.pop() if self._first else next(self._rest, None)

    def close(self) -> None:
        with self._taking:
            self._rest.close()


async def _lines(answer: _Answer, gone: threading.Event) -> AsyncIterator[bytes]:
    """The lines of an answer. Whoever stops taking them does not wait for the batch that is computed then."""
    try:
        while (batch := await _in_a_thread(answer.take)) is not None:
            yield await _in_a_thread(to_json_lines, batch)
    finally:
        # A batch that is waited for ends by `gone`; between two batches nobody would ask.
        gone.set()
        threading.Thread(target=answer.close, daemon=True).start()


def _run(engine: Engine, sql: bytes, gone: Callable[[], bool]) -> _Answer:
    """The answer to a query, when its first batch is there. Raises QueryError and LeftError."""
    try:
        text = sql.decode()
    except UnicodeDecodeError as error:
        raise invalid_argument('invalid query: the SQL query is empty or no text') from error
    statement = parse_statement(text)
    if statement.stream:
        raise invalid_argument(_NO_STREAMS)
    query = engine.prepare(statement)
    engine.check_batch(query)
    snapshots = {dataset: engine.datasets[dataset].snapshot() for dataset, _ in query.tables}

    def rows_of(name: TableName) -> Scan:
        return snapshots[name[0]].scan(name[1])

    batches = engine.run(query, rows_of, gone)
    try:
        first = list(islice(batches, 1))
    except SourceError as error:
        if isinstance(error, QueryError):
            raise
        raise QueryError(f'query execution error | Caused by: {error}', code='INTERNAL') from error
    return _Answer(first, batches)


def _failed(error: QueryError, explain: Callable[[QueryError], QueryError] | None) -> JSONResponse:
    text, code = str(error), str(error.context.get('code'))
    default = 'INVALID_PLAN' if code == 'INVALID_ARGUMENT' else 'PLANNING_ERROR'
    named = next((name for part, name in _CODES.items() if part in text), default)
    if explain is not None:
        error = explain(error)
        text, code = str(error), str(error.context.get('code'))
    elif named == _CATALOG and (unknown := _UNKNOWN.search(text)):
        # This endpoint looks tables up before it plans.
        text = caused_by('error creating physical catalog', unknown.group())
    return JSONResponse({'error_code': named, 'error_message': text}, _STATUS.get(code, 500))


def to_json_lines(batch: pa.RecordBatch) -> bytes:
    """Rows as the server writes them: bytes in hex without 0x, nulls left out, times in UTC with a Z."""
    # DataFusion brings arrow-json, the very writer of the server, but writes to files alone.
    with tempfile.TemporaryDirectory(prefix='amp-jsonl-') as folder:
        lines = Path(folder) / 'rows.json'
        SessionContext().from_arrow(pa.Table.from_batches([batch])).write_json(lines)
        return lines.read_bytes()
