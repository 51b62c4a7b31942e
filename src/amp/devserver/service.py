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

from amp.devserver.chain import Chain, Scan, Snapshot
from amp.devserver.engine import Engine, Query, TableName
from amp.devserver.faults import EndOfResult, FaultError, Faults, Message
from amp.devserver.microbatch import Cursor, encode_metadata, next_range, parse_cursors, range_of
from amp.devserver.sql import Statement, caused_by, internal, invalid_argument, parse_statement
from amp.errors import QueryError, SourceError
from amp.flight.protocol import decode_statement_query
from amp.streaming.types import BlockRange

__all__ = ['AmpFlightServer']

_TARGET_BYTES = 2 * 1024 * 1024
_POLL_SECONDS = 0.05
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

    `open_streams` counts the streams whose clients are still there.
    """

    def __init__(
        self,
        location: str,
        engine: Engine,
        faults: Faults,
        *,
        microbatch_max_blocks: int = 1000,
        token: str | None = None,
        explain: Callable[[QueryError], QueryError] | None = None,
    ) -> None:
        self._engine = engine
        self._explain = explain
        self._faults = faults
        self._max_blocks = microbatch_max_blocks
        self._stopping = threading.Event()
        self._open_lock = threading.Lock()
        self.open_streams = 0
        super().__init__(location, middleware={'headers': _HeadersFactory(token)})

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
                    query.schema, self._guarded(self._faults.apply(self._batch_result(query), gone))
                )
            self._engine.check_incremental(query)
            chain = self._chain_of(query)
            if chain is None or chain.head is None:
                nothing = Message(_empty(query.schema), encode_metadata((), complete=True), complete=True)
                return fl.GeneratorStream(query.schema, self._guarded(iter([nothing])))
            cursor = self._cursor(chain, asked.cursors)
            first = self._wait(chain, cursor, gone)
            return fl.GeneratorStream(query.schema, self._guarded(self._stream_result(query, chain, first, gone)))

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

    def _batch_result(self, query: Query) -> Iterator[Message]:
        snapshots = {dataset: self._engine.datasets[dataset].snapshot() for dataset, _ in query.tables}
        ranges = self._common_ranges(snapshots)
        blocks = (ranges[0].start, ranges[0].end) if ranges else None

        def rows_of(name: TableName) -> Scan:
            return snapshots[name[0]].scan(name[1])

        metadata = encode_metadata(ranges, complete=False)
        sent = False
        for batch in self._split(self._engine.run(query, rows_of)):
            sent = True
            yield Message(batch, metadata, blocks=blocks)
        empty = _empty(query.schema)
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

    def _chain_of(self, query: Query) -> Chain | None:
        """The one chain that a streaming query follows; None when it reads no table."""
        chains = {dataset: self._engine.datasets[dataset] for dataset, _ in query.tables}
        networks = sorted({chain.network for chain in chains.values()})
        if len(networks) > 1:
            text = f'multiple networks in dependency tree: {networks[0]} and {networks[1]}'
            raise internal(caused_by('failed to determine streaming start block', text))
        if len(chains) > 1:
            names = ' and '.join(sorted(chains))
            raise internal(
                caused_by('streaming query execution error', f'the local Amp streams one dataset, not {names}')
            )
        return next(iter(chains.values()), None)

    def _cursor(self, chain: Chain, cursors: dict[str, Cursor] | None) -> Cursor | None:
        if cursors is None or self._faults.takes_cursor_away():
            return None
        if chain.network not in cursors:
            text = f"expected cursor for network '{chain.network}', but cursor only contains networks: "
            raise internal(
                caused_by(
                    'streaming query execution error',
                    'failed to convert cursor',
                    f'{text}[{", ".join(sorted(cursors))}]',
                )
            )
        return cursors[chain.network]

    def _wait(self, chain: Chain, cursor: Cursor | None, gone: Callable[[], bool]) -> tuple[Snapshot, BlockRange]:
        """The next range, as soon as there is one. Raises EndOfResult when client or server is gone."""
        while True:
            view = chain.snapshot()
            found = next_range(chain.network, view, cursor, self._max_blocks)
            if found is not None:
                return view, found
            while not chain.wait(view.version, _POLL_SECONDS):
                if gone():
                    if self._stopping.is_set():
                        raise fl.FlightUnavailableError('the server is shutting down')
                    raise EndOfResult

    def _stream_result(
        self, query: Query, chain: Chain, first: tuple[Snapshot, BlockRange], gone: Callable[[], bool]
    ) -> Iterator[Message]:
        view, block_range = first
        self._count(+1)
        try:
            while True:
                yield from self._faults.apply(self._microbatch(query, view, block_range), gone)
                cursor = Cursor(block_range.end, block_range.hash or '')
                view, block_range = self._wait(chain, cursor, gone)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._open_lock:
            self.open_streams += change

    def _microbatch(self, query: Query, view: Snapshot, block_range: BlockRange) -> Iterator[Message]:
        blocks = (block_range.start, block_range.end)
        metadata = encode_metadata([block_range], complete=False)
        try:
            for batch in self._split(self._in_block_order(query, view, block_range)):
                yield Message(batch, metadata, blocks=blocks)
        except QueryError as error:
            wrapped = 'streaming query execution error'
            raise internal(caused_by(wrapped, wrapped, str(error.context['cause']))) from error
        yield Message(_empty(query.schema), encode_metadata([block_range], complete=True), complete=True, blocks=blocks)

    def _in_block_order(self, query: Query, view: Snapshot, block_range: BlockRange) -> Iterator[pa.RecordBatch]:
        def rows_between(first: int, last: int) -> Iterator[pa.RecordBatch]:
            sort = not query.ordered and '_block_num' in query.schema.names
            return self._engine.run(query, lambda name: view.rows(name[1], first, last), sort=sort)

        if query.ordered or '_block_num' in query.schema.names:
            yield from rows_between(block_range.start, block_range.end)
            return
        # The branches of a UNION come in any order and the result does not say of which block a row is.
        for number in range(block_range.start, block_range.end + 1):
            if any(view.rows(table, number, number) for _, table in query.tables):
                yield from rows_between(number, number)

    def _guarded(self, messages: Iterator[Message]) -> Iterator[Any]:
        with _statuses(self._explain):
            try:
                for message in messages:
                    yield message.batch, message.metadata
            except EndOfResult:
                return

    def _split(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Slices of about 2 MiB, or of as many rows as the faults say."""
        for batch in batches:
            parts = -(-batch.nbytes // _TARGET_BYTES)
            rows = self._faults.split_rows or max(batch.num_rows // max(parts, 1), 1)
            for at in range(0, batch.num_rows, rows):
                yield batch.slice(at, rows)


def _command(data: bytes) -> str:
    try:
        return decode_statement_query(data)
    except ValueError as error:
        text = str(error)
        known = text.startswith('unsupported flight descriptor command')
        raise invalid_argument(text if known else f'ProtocolBuffers decoding error: {text}') from error


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)


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
