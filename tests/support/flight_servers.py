"""Bare pyarrow Flight servers that speak Amp's wire, or break it in one chosen way.

A server answers SQL texts that it was told of: `server.answers['SELECT 1'] = Answer([part, ...])`. Each part is one
endpoint: batches with their metadata, and what happens before, between and after them.
Run as a program it serves `SELECT rows` (two batches, then silence), prints its port and, once it waits in silence, a
word: a server that can be killed.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.flight as fl

from amp.flight.protocol import decode_statement_query

SCHEMA = pa.schema([pa.field('n', pa.int64()), pa.field('text', pa.string())])


def rows(first: int, count: int, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Rows numbered from `first`."""
    numbers = range(first, first + count)
    return pa.RecordBatch.from_arrays(
        [pa.array(numbers, pa.int64()), pa.array([f'row {n}' for n in numbers], pa.string())], schema=schema
    )


def metadata(start: int = 0, end: int = 9, *, complete: bool = False) -> bytes:
    """The metadata of a batch of `testnet`."""
    numbers = {'start': start, 'end': end}
    parent = '0x' + ('bb' if start else '00') * 32
    ranges = [{'network': 'testnet', 'numbers': numbers, 'hash': '0x' + 'aa' * 32, 'prev_hash': parent}]
    return json.dumps({'ranges': ranges, 'ranges_complete': complete}).encode()


Message = tuple[pa.RecordBatch, bytes | None]
Step = Message | Callable[['FlightServer'], None]


def complete(*batches: pa.RecordBatch) -> list[Step]:
    """A whole result: the batches, and the completion batch."""
    schema = batches[0].schema if batches else SCHEMA
    return [*((batch, metadata()) for batch in batches), (_none(schema), metadata(complete=True))]


def _none(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], column.type) for column in schema], schema=schema)


def silence(server: FlightServer) -> None:
    """Nothing is sent until the server stops."""
    server.silent.set()
    server.stopping.wait()


def failure(error: Exception) -> Callable[[FlightServer], None]:
    """The call ends with this error."""

    def fail(server: FlightServer) -> None:
        raise error

    return fail


@dataclass
class Answer:
    """The parts of a result. `before_schema` happens before anything is sent, `locations` say where the parts are."""

    parts: Sequence[Sequence[Step]]
    schema: pa.Schema = SCHEMA
    before_schema: Callable[[FlightServer], None] | None = None
    on_plan: Callable[[FlightServer], None] | None = None
    locations: Sequence[str] = ()


@dataclass
class Call:
    """A call that the server got, with its headers."""

    method: str
    headers: dict[str, str] = field(default_factory=dict)


class _Headers(fl.ServerMiddlewareFactory):
    def __init__(self, calls: list[Call], takes: Callable[[str], bool]) -> None:
        self._calls = calls
        self._takes = takes

    def start_call(self, info: fl.CallInfo, headers: dict[str, list[str]]) -> None:
        flat = {key: str(values[0]) for key, values in headers.items()}
        self._calls.append(Call(info.method.name, flat))
        if not self._takes(flat.get('authorization', '').removeprefix('Bearer ')):
            raise fl.FlightUnauthenticatedError('the token is not valid')


class FlightServer(fl.FlightServerBase):
    """A server for the length of a test; `calls` are those it got, `silent` is set when it waits in silence.

    `token` is the one that it takes, or says of any whether it is taken.
    """

    def __init__(
        self, *, token: str | Callable[[str], bool] | None = None, tls: tuple[bytes, bytes] | None = None
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[Call] = []
        self.silent = threading.Event()
        self.cancelled = threading.Event()
        self.stopping = threading.Event()
        takes = token if callable(token) else lambda given: token in {None, given}
        super().__init__(
            'grpc+tls://127.0.0.1:0' if tls else 'grpc://127.0.0.1:0',
            middleware={'headers': _Headers(self.calls, takes)},
            tls_certificates=[tls] if tls else None,
        )

    @property
    def url(self) -> str:
        return f'grpc://127.0.0.1:{self.port}'

    def get_flight_info(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.FlightInfo:
        sql = decode_statement_query(descriptor.command)
        answer = self.answers[sql]
        if answer.on_plan is not None:
            answer.on_plan(self)
        endpoints = [
            fl.FlightEndpoint(json.dumps([sql, part]).encode(), list(answer.locations))
            for part in range(len(answer.parts))
        ]
        return fl.FlightInfo(answer.schema, descriptor, endpoints, -1, -1)

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        sql, part = json.loads(ticket.ticket)
        answer = self.answers[sql]
        if answer.before_schema is not None:
            answer.before_schema(self)
        steps = answer.parts[part]
        first = next((step for step in steps if isinstance(step, tuple)), None)
        return fl.GeneratorStream(first[0].schema if first else answer.schema, self._messages(steps, context))

    def _messages(self, steps: Sequence[Step], context: fl.ServerCallContext) -> Iterator[Message]:
        for step in steps:
            if isinstance(step, tuple):
                batch, raw = step
                yield (batch, raw) if raw is not None else batch
            elif step is silence:
                self.silent.set()
                while not self.stopping.wait(0.02):
                    if context.is_cancelled():
                        self.cancelled.set()
                        return
            else:
                step(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.shutdown()
        self.wait()


if __name__ == '__main__':
    server = FlightServer()
    server.answers['SELECT rows'] = Answer([[(rows(0, 5), metadata()), (rows(5, 5), metadata()), silence]])
    server.answers['SELECT silence'] = Answer([complete()], before_schema=silence)
    print(server.port, flush=True)
    server.silent.wait()
    print('silent', flush=True)
    sys.stdin.read()
