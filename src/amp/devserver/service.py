"""The Flight service: GetFlightInfo and DoGet as Amp answers them, everything else UNIMPLEMENTED.

The stream switch and the cursor come in the headers of GetFlightInfo and travel to DoGet inside the ticket. A streaming
DoGet says nothing, not even its schema, before its first microbatch, and is silent while no block is new.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.flight as fl

from amp.devserver.ahead import LeftError
from amp.devserver.chain import Scan, Snapshot
from amp.devserver.engine import Engine, Query, TableName
from amp.devserver.faults import EndOfResult, FaultError, Faults, Message
from amp.devserver.microbatch import Cursor, encode_metadata, parse_cursors, range_of
from amp.devserver.sql import Statement, caused_by, invalid_argument, parse_statement
from amp.devserver.streams import Streams, empty_batch, split
from amp.errors import QueryError, SourceError
from amp.flight.protocol import decode_statement_query
from amp.streaming.types import BlockRange

__all__ = ['AmpFlightServer']

_SWITCH = {'true': True, '1': True, 'false': False, '0': False}


@dataclass(frozen=True, slots=True)
class _Ticket:
    sql: str
    stream: bool
    cursors: dict[str, Cursor] | None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Ticket:
        try:
            fields = json.loads(data)
            cursors = fields['cursors']
            known = None if cursors is None else {name: Cursor(**cursor) for name, cursor in cursors.items()}
            return cls(str(fields['sql']), bool(fields['stream']), known)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise invalid_argument(caused_by('ticket decoding error', repr(error))) from error


class _Headers(fl.ServerMiddleware):
    def __init__(self, headers: Mapping[str, list[str]]) -> None:
        super().__init__()
        self._headers = {name.lower(): values for name, values in headers.items()}

    def get(self, name: str) -> str | None:
        values = self._headers.get(name)
        return values[0] if values else None


class _HeadersFactory(fl.ServerMiddlewareFactory):
    """Keeps the headers of each call, and turns away who does not bring the token."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self._token = token

    def start_call(self, info: Any, headers: Any) -> _Headers:
        found = _Headers(headers)
        if self._token is not None:
            brought = found.get('authorization') or ''
            if not hmac.compare_digest(brought.encode(), f'Bearer {self._token}'.encode()):
                raise fl.FlightUnauthenticatedError('invalid or missing bearer token')
        return found


class AmpFlightServer(fl.FlightServerBase):
    """Serves an engine's datasets. `close` ends the open streams and then the server.

    A microbatch that takes longer than `keep_alive_seconds`, 30 at least, is kept alive by batches without rows.
    """

    def __init__(
        self,
        location: str,
        engine: Engine,
        faults: Faults,
        *,
        microbatch_max_blocks: int = 1000,
        keep_alive_seconds: float = 30,
        token: str | None = None,
        explain: Callable[[QueryError], QueryError] | None = None,
    ) -> None:
        self._engine = engine
        self._explain = explain
        self._faults = faults
        self._stopping = threading.Event()
        self._streams = Streams(engine, faults, self._stopping, microbatch_max_blocks, keep_alive_seconds)
        super().__init__(location, middleware={'headers': _HeadersFactory(token)})

    @property
    def open_streams(self) -> int:
        """Streams whose clients are still there."""
        return self._streams.open

    def close(self, timeout: float = 10) -> None:
        """End open streams with UNAVAILABLE and stop listening; waits at most `timeout` seconds for the calls."""
        self._stopping.set()
        # A client that neither reads nor leaves would hold `shutdown` for ever.
        closer = threading.Thread(target=self.shutdown, name='amp-devserver-close', daemon=True)
        closer.start()
        closer.join(timeout)

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        """The schema of the statement, and a ticket that carries it."""
        with _statuses(self._explain):
            self._faults.check_call('get_flight_info')
            if descriptor.descriptor_type != fl.DescriptorType.CMD:
                kind = 'Path' if descriptor.descriptor_type == fl.DescriptorType.PATH else 'Unknown'
                raise invalid_argument(f'unsupported flight descriptor type: {kind}')
            statement = parse_statement(_command(descriptor.command))
            query = self._engine.prepare(statement)
            headers: _Headers = context.get_middleware('headers')
            switch = _SWITCH.get((headers.get('amp-stream') or '').lower(), statement.stream)
            ticket = _Ticket(statement.text, switch, parse_cursors(headers.get('amp-resume')))
            return fl.FlightInfo(query.schema, descriptor, [fl.FlightEndpoint(ticket.encode(), [])], -1, -1)

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Run the statement of the ticket."""
        with _statuses(self._explain):
            self._faults.check_call('do_get')
            asked = _Ticket.decode(ticket.ticket)
            query = self._engine.prepare(Statement(asked.sql))
            gone: Callable[[], bool] = lambda: self._stopping.is_set() or context.is_cancelled()  # noqa: E731
            if not asked.stream:
                self._engine.check_batch(query)
                return fl.GeneratorStream(
                    query.schema, self._guarded(self._faults.apply(self._batch_result(query, gone), gone))
                )
            return fl.GeneratorStream(query.schema, self._guarded(self._streams.messages(query, asked.cursors, gone)))

    def list_flights(self, context: Any, criteria: Any) -> NoReturn:
        """UNIMPLEMENTED."""
        raise NotImplementedError('list_flights')

    def get_schema(self, context: Any, descriptor: Any) -> NoReturn:
        """UNIMPLEMENTED."""
        raise NotImplementedError('get_schema')

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> NoReturn:
        """UNIMPLEMENTED."""
        raise NotImplementedError('do_put')

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> NoReturn:
        """UNIMPLEMENTED."""
        raise NotImplementedError('do_exchange')

    def list_actions(self, context: Any) -> NoReturn:
        """UNIMPLEMENTED."""
        raise NotImplementedError('list_actions')

    def do_action(self, context: Any, action: Any) -> NoReturn:
        """UNIMPLEMENTED."""
        raise NotImplementedError('do_action')

    def _batch_result(self, query: Query, gone: Callable[[], bool]) -> Iterator[Message]:
        snapshots = {dataset: self._engine.datasets[dataset].snapshot() for dataset, _ in query.tables}
        ranges = self._common_ranges(snapshots)
        blocks = (ranges[0].start, ranges[0].end) if ranges else None

        def rows_of(name: TableName) -> Scan:
            return snapshots[name[0]].scan(name[1])

        metadata = encode_metadata(ranges, complete=False)
        sent = False
        for batch in split(self._engine.run(query, rows_of, gone), self._faults.split_rows):
            sent = True
            yield Message(batch, metadata, blocks=blocks)
        empty = empty_batch(query.schema)
        if not sent:
            yield Message(empty, metadata, blocks=blocks)
        yield Message(empty, encode_metadata(ranges, complete=True), complete=True, blocks=blocks)

    def _common_ranges(self, snapshots: Mapping[str, Snapshot]) -> list[BlockRange]:
        """What all tables of a network cover, by network; nothing when a table has no block yet."""
        by_network: dict[str, list[tuple[int, int, Snapshot]]] = {}
        for dataset, view in snapshots.items():
            if view.first is None or view.last is None:
                return []
            by_network.setdefault(self._engine.datasets[dataset].network, []).append((view.first, view.last, view))
        ranges = []
        for network, covered in sorted(by_network.items()):
            start, end = max(first for first, _, _ in covered), min(last for _, last, _ in covered)
            if start > end:
                return []
            ranges.append(range_of(network, covered[0][2], start, end))
        return ranges

    def _guarded(self, messages: Iterator[Message]) -> Iterator[Any]:
        with _statuses(self._explain):
            try:
                for message in messages:
                    yield message.batch, message.metadata
            except EndOfResult:
                return
            except LeftError:
                if self._stopping.is_set():
                    raise fl.FlightUnavailableError('the server is shutting down') from None


def _command(data: bytes) -> str:
    try:
        return decode_statement_query(data)
    except ValueError as error:
        text = str(error)
        known = text.startswith('unsupported flight descriptor command')
        raise invalid_argument(text if known else f'ProtocolBuffers decoding error: {text}') from error


class _statuses:  # noqa: N801
    """Turns our errors into those that pyarrow sends as the gRPC code that is meant, explained first if they can be."""

    def __init__(self, explain: Callable[[QueryError], QueryError] | None) -> None:
        self._explain = explain

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, QueryError):
            error = self._explain(error) if self._explain is not None else error
            raise _status(str(error.context['code']), str(error)) from None
        if isinstance(error, SourceError):
            # The rows could not be read.
            raise fl.FlightInternalError(f'query execution error | Caused by: {error}') from error
        if isinstance(error, FaultError):
            raise _status(error.code, str(error)) from None
        if isinstance(error, EndOfResult):
            raise fl.FlightCancelledError('the client is gone') from error


class _NotFoundError(KeyError):
    def __str__(self) -> str:
        # A KeyError's own text is the repr of its key.
        return str(self.args[0])


def _status(code: str, text: str) -> Exception:
    kinds: dict[str, type[Exception]] = {
        'CANCELLED': fl.FlightCancelledError,
        'DEADLINE_EXCEEDED': fl.FlightTimedOutError,
        'INTERNAL': fl.FlightInternalError,
        'INVALID_ARGUMENT': pa.ArrowInvalid,
        'NOT_FOUND': _NotFoundError,
        'PERMISSION_DENIED': fl.FlightUnauthorizedError,
        'UNAUTHENTICATED': fl.FlightUnauthenticatedError,
        'UNAVAILABLE': fl.FlightUnavailableError,
        'UNIMPLEMENTED': NotImplementedError,
    }
    return kinds.get(code, fl.FlightInternalError)(text)
