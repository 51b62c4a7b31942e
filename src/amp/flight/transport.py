"""The calls to pyarrow.flight: GetFlightInfo, DoGet on every endpoint, and how they are ended.

Two facts of pyarrow shape this module. A `timeout` bounds a whole call, so it serves GetFlightInfo only: a stream may
be silent for hours, and gRPC's keepalive pings tell a silent server from a dead one. And `do_get` returns with the
first message, which on a silent stream is far away, and cannot be cancelled before: see `worker`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from amp.auth.tokens import FixedToken, Token
from amp.errors import AuthError, ConfigError, ConnectError, IncompleteResultError, ProtocolError, SourceError
from amp.flight.failures import FLIGHT_ERRORS, from_flight
from amp.flight.protocol import (
    SCHEMES,
    Endpoint,
    Headers,
    authorization_headers,
    encode_statement_query,
    parse_endpoint,
    query_headers,
)
from amp.flight.worker import Abandoned, Worker
from amp.streaming.types import BatchMetadata, ResumeWatermark

__all__ = ['FlightResult', 'FlightTransport']

T = TypeVar('T')

CONNECT_TIMEOUT = 30.0
KEEPALIVE = 60.0
# Enough for 80 MB/s at a round trip of 50 ms.
_READ_AHEAD = 4 * 1024**2
_PING_TIMEOUT = 20.0
_REUSE_CONNECTION = 'arrow-flight-reuse-connection:'

# gRPC's own log lines (a failed handshake, retried in the background) would stand beside our sentence on stderr.
os.environ.setdefault('GRPC_VERBOSITY', 'NONE')


class FlightTransport:
    """The way to one Amp server; connects with the first query, and serves several threads.

    `connect_timeout` (seconds) bounds the plan of a query, `keepalive` (seconds) is the pause between two pings on a
    silent connection to another host; None turns them off. `token` is asked for with every call. Raises ConfigError for
    a URL or token that cannot be meant.
    """

    def __init__(
        self,
        url: str,
        token: str | Token | None = None,
        *,
        connect_timeout: float | None = CONNECT_TIMEOUT,
        keepalive: float | None = KEEPALIVE,
        tls_root_certs: str | bytes | None = None,
    ) -> None:
        self.endpoint = parse_endpoint(url)
        self.connect_timeout = connect_timeout
        if token is None or isinstance(token, str):
            authorization_headers(token)
            token = FixedToken(token)
        self._token = token
        self._keepalive = keepalive
        self._tls_root_certs = tls_root_certs.decode() if isinstance(tls_root_certs, bytes) else tls_root_certs
        self._lock = threading.Lock()
        self._clients: dict[Endpoint, fl.FlightClient] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f'FlightTransport({str(self.endpoint)!r})'

    def open(self, sql: str, *, streaming: bool | None = None, resume: ResumeWatermark | None = None) -> FlightResult:
        """The result of `sql`, not asked for yet. `streaming=None` leaves it to the SQL; `resume` is sent as cursor.

        Raises ProtocolError for a position that cannot be resumed from.
        """
        return FlightResult(self, sql, query_headers(streaming=streaming, resume=resume), streaming)

    def schema(self, sql: str) -> pa.Schema:
        """The columns of the result, from the plan alone. Raises SourceError."""
        return Worker(lambda: self.flight_info(sql, query_headers())).wait().schema

    def flight_info(self, sql: str, headers: Headers) -> fl.FlightInfo:
        """The plan of `sql`. Blocks at most `connect_timeout` seconds. Raises SourceError."""
        descriptor = fl.FlightDescriptor.for_command(encode_statement_query(sql))

        def ask(authorization: Headers) -> fl.FlightInfo:
            options = _options([*authorization, *headers], self.connect_timeout)
            return self.client(self.endpoint).get_flight_info(descriptor, options)

        return self._authorized(ask, self.endpoint, sql)[0]

    def do_get(self, endpoint: Endpoint, ticket: fl.Ticket, sql: str) -> tuple[fl.FlightStreamReader, str | None]:
        """A reader of one part, and the token it was opened with. Blocks until the first message. Raises SourceError."""
        client = self.client(endpoint)
        return self._authorized(lambda headers: client.do_get(ticket, _options(headers)), endpoint, sql)

    @property
    def has_token(self) -> bool:
        """True when calls carry a token. Raises as the token's source does."""
        return self._token.current() is not None

    def renew(self, error: SourceError | ProtocolError, sent: str | None) -> bool:
        """True when the server refused the token that was sent, and there is another one now."""
        refused = error.context.get('code') == 'UNAUTHENTICATED'
        return refused and sent is not None and self._token.renew(sent)

    def _authorized(self, call: Callable[[Headers], T], endpoint: Endpoint, sql: str) -> tuple[T, str | None]:
        """A call with the token of now, which is returned too; once more when it was refused and could be renewed."""
        is_second = False
        while True:
            sent = self._token.current()
            try:
                return call(authorization_headers(sent)), sent
            except FLIGHT_ERRORS as error:
                failed = from_flight(error, endpoint, sql)
                if is_second or not self.renew(failed, sent):
                    raise failed from error
            is_second = True

    def client(self, endpoint: Endpoint) -> fl.FlightClient:
        """The one client for this server. Raises ConfigError after `close`."""
        with self._lock:
            if self._closed:
                raise ConfigError(f'the client of {self.endpoint} is closed', hint='make a new one')
            if endpoint not in self._clients:
                self._clients[endpoint] = fl.FlightClient(
                    endpoint.location,
                    tls_root_certs=self._tls_root_certs,
                    generic_options=self._channel_options(endpoint),
                )
            return self._clients[endpoint]

    def _channel_options(self, endpoint: Endpoint) -> list[tuple[str, int | str]]:
        options: list[tuple[str, int | str]] = [
            ('grpc.max_receive_message_length', -1),
            # Left alone, gRPC widens what it reads ahead without a bound that memory would notice.
            ('grpc.http2.bdp_probe', 0),
            ('grpc.http2.lookahead_bytes', _READ_AHEAD),
        ]
        # On loopback the kernel itself reports a server that died, and gRPC servers count pings as abuse.
        if self._keepalive is not None and not endpoint.is_loopback:
            timeout = int(min(self._keepalive, _PING_TIMEOUT) * 1000)
            options += [
                ('grpc.keepalive_time_ms', int(self._keepalive * 1000)),
                ('grpc.keepalive_timeout_ms', timeout),
                # The one that gRPC goes by; it would be a minute.
                ('grpc.http2.ping_timeout_ms', timeout),
                ('grpc.http2.max_pings_without_data', 0),
            ]
        return options

    def close(self) -> None:
        """Closes the connections. Results that are still being read should be cancelled first."""
        with self._lock:
            self._closed = True
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class FlightResult:
    """The record batches of one query with their metadata, from all endpoints in their order.

    An iterator for one thread; `cancel` may come from any. The query is sent with the first `next` or `schema`.
    Raises SourceError, IncompleteResultError when an endpoint ends without its completion batch, and ProtocolError for
    metadata that does not parse.
    """

    def __init__(self, transport: FlightTransport, sql: str, headers: Headers, streaming: bool | None) -> None:
        self.query = sql
        self._transport = transport
        self._headers = headers
        self._streaming = streaming
        self._lock = threading.Lock()
        self._worker: Worker[Any] | None = None
        self._reader: fl.FlightStreamReader | None = None
        self._cancelled = False
        self._sent: str | None = None
        self._schema: pa.Schema | None = None
        self._messages = self._read_all()
        self._peeked: list[tuple[pa.RecordBatch, BatchMetadata | None]] = []

    @property
    def schema(self) -> pa.Schema:
        """The columns, as the server sends them with the first message; waits for it where it has not come."""
        if self._schema is None:
            self._peeked.extend(message for message in [next(self._messages, None)] if message is not None)
        if self._schema is None:
            raise self._cancelled_error()
        return self._schema

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[pa.RecordBatch, BatchMetadata | None]:
        return self._peeked.pop() if self._peeked else next(self._messages)

    def cancel(self) -> None:
        """Ends the query, from any thread, at once: the thread that reads gets a SourceError."""
        with self._lock:
            self._cancelled = True
            worker, reader = self._worker, self._reader
        if worker is not None:
            worker.abandon()
        if reader is not None:
            reader.cancel()

    def _cancelled_error(self) -> SourceError:
        return SourceError('the query was cancelled', endpoint=str(self._transport.endpoint), query=self.query)

    def _read_all(self) -> Iterator[tuple[pa.RecordBatch, BatchMetadata | None]]:
        info = self._blocking(lambda: self._transport.flight_info(self.query, self._headers))
        if self._streaming and len(info.endpoints) > 1:
            raise ProtocolError(
                f'a stream in {len(info.endpoints)} parts has no order', query=self.query, rule='one endpoint a stream'
            )
        if not info.endpoints:
            raise self._incomplete('the server gave no endpoint to read the result from')
        for part in info.endpoints:
            reader, endpoint = self._connect(part)
            try:
                self._check_schema(reader.schema)
                yield from self._read(reader, endpoint)
            finally:
                with self._lock:
                    self._reader = None
                reader.cancel()

    def _check_schema(self, schema: pa.Schema) -> None:
        if self._schema is None:
            self._schema = schema
        elif not schema.equals(self._schema):
            raise ProtocolError('the parts of a result have different columns', query=self.query)

    def _connect(self, part: fl.FlightEndpoint) -> tuple[fl.FlightStreamReader, Endpoint]:
        """A reader at the first location that can be reached."""
        locations = self._locations(part)
        for endpoint in locations[:-1]:
            try:
                return self._do_get(endpoint, part.ticket), endpoint
            except ConnectError:
                continue
        return self._do_get(locations[-1], part.ticket), locations[-1]

    def _locations(self, part: fl.FlightEndpoint) -> list[Endpoint]:
        own = self._transport.endpoint
        uris = [location.uri.decode() for location in part.locations]
        if not uris:
            return [own]
        found = []
        for uri in uris:
            if uri.startswith(_REUSE_CONNECTION):
                found.append(own)
            elif uri.partition('://')[0] in SCHEMES:
                found.append(parse_endpoint(uri))
        if not found:
            raise SourceError(f'the server sends parts of the result from where amp cannot read: {", ".join(uris)}')
        if own.tls and not all(endpoint.tls for endpoint in found) and self._transport.has_token:
            raise AuthError('the server points to a place without TLS: the token is not sent there', query=self.query)
        return found

    def _do_get(self, endpoint: Endpoint, ticket: fl.Ticket) -> fl.FlightStreamReader:
        opened = self._blocking(lambda: self._transport.do_get(endpoint, ticket, self.query), discard=_cancel)
        reader, self._sent = opened
        with self._lock:
            self._reader = reader
            cancelled = self._cancelled
        if cancelled:
            reader.cancel()
            raise self._cancelled_error()
        return reader

    def _blocking(self, call: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        with self._lock:
            if self._cancelled:
                raise self._cancelled_error()
            worker = Worker(call, discard=discard)
            self._worker = worker
        try:
            return worker.wait()
        except Abandoned:
            raise self._cancelled_error() from None
        finally:
            with self._lock:
                self._worker = None

    def _read(
        self, reader: fl.FlightStreamReader, endpoint: Endpoint
    ) -> Iterator[tuple[pa.RecordBatch, BatchMetadata | None]]:
        metadata: BatchMetadata | None = None
        raw: pa.Buffer | None = None
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                break
            except FLIGHT_ERRORS as error:
                if self._cancelled:
                    raise self._cancelled_error() from error
                failed = from_flight(error, endpoint, self.query)
                # The token of a long stream ran out under way: with another one it goes on from its position.
                if isinstance(failed, AuthError) and raw is not None:
                    failed.retryable = self._transport.renew(failed, self._sent)
                raise failed from error
            # All batches of a microbatch carry the same bytes: parsed once.
            if chunk.app_metadata is None or raw is None or not raw.equals(chunk.app_metadata):
                raw = chunk.app_metadata
                metadata = self._parsed(raw)
            batch = chunk.data if chunk.data is not None else _empty(reader.schema)
            yield batch, metadata
        if metadata is None or not metadata.ranges_complete:
            raise self._incomplete('the result ended without its completion batch: what arrived is not all there is')

    def _parsed(self, raw: pa.Buffer | None) -> BatchMetadata | None:
        if raw is not None and raw.size:
            return BatchMetadata.from_flight_data(raw)
        if self._streaming:
            raise ProtocolError('a batch of the stream has no metadata', query=self.query)
        return None

    def _incomplete(self, message: str) -> IncompleteResultError:
        return IncompleteResultError(
            message, hint='run the query again', endpoint=str(self._transport.endpoint), query=self.query
        )


def _options(headers: Headers, timeout: float | None = None) -> fl.FlightCallOptions:
    raw: Any = [(name.encode(), value.encode()) for name, value in headers]
    return fl.FlightCallOptions(timeout=timeout, headers=raw)


def _cancel(opened: tuple[fl.FlightStreamReader, str | None]) -> None:
    opened[0].cancel()


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
