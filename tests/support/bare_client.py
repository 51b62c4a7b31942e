"""The least that speaks to an Amp server: pyarrow's Flight client and nothing of ours but the command's bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.flight as fl

from amp.flight.protocol import encode_statement_query

CURSOR_HEADER = 'amp-resume'
CALL_SECONDS = 60


@dataclass(frozen=True)
class Received:
    batch: pa.RecordBatch
    metadata: dict

    @property
    def rows(self) -> int:
        return self.batch.num_rows

    @property
    def complete(self) -> bool:
        return self.metadata['ranges_complete']

    @property
    def range(self) -> dict:
        (only,) = self.metadata['ranges']
        return only

    @property
    def span(self) -> tuple[int, int]:
        numbers = self.range['numbers']
        return numbers['start'], numbers['end']


class Stream:
    """An open result, read chunk by chunk; leaving the `with` gives it up."""

    def __init__(self, reader: fl.FlightStreamReader) -> None:
        self._reader = reader
        self.schema = reader.schema

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.cancel()

    def __iter__(self):
        while True:
            try:
                chunk = self._reader.read_chunk()
            except StopIteration:
                return
            yield Received(chunk.data, json.loads(chunk.app_metadata.to_pybytes()))

    def raw_chunk(self):
        return self._reader.read_chunk()

    def microbatch(self) -> list[Received]:
        """The next batches up to and with a completion batch."""
        found = []
        for received in self:
            found.append(received)
            if received.complete:
                return found
        raise AssertionError(f'the stream ended inside a microbatch, after {len(found)} batches')


class BareClient:
    def __init__(self, url: str, token: str | None = None) -> None:
        self.flight = fl.connect(url)
        self._token = token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flight.close()

    def _options(self, headers: dict[str, str]) -> fl.FlightCallOptions:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        if self._token:
            pairs.append((b'authorization', f'Bearer {self._token}'.encode()))
        return fl.FlightCallOptions(headers=pairs, timeout=CALL_SECONDS)

    def info(self, sql: str, **headers: str) -> fl.FlightInfo:
        descriptor = fl.FlightDescriptor.for_command(encode_statement_query(sql))
        return self.flight.get_flight_info(descriptor, self._options(_header_names(headers)))

    def open(self, sql: str, **headers: str) -> Stream:
        (endpoint,) = self.info(sql, **headers).endpoints
        return Stream(self.flight.do_get(endpoint.ticket, self._options({})))

    def stream(self, sql: str, cursor: dict | str | None = None) -> Stream:
        headers = {'amp_stream': 'true'}
        if cursor is not None:
            headers['amp_resume'] = cursor if isinstance(cursor, str) else json.dumps(cursor)
        return self.open(sql, **headers)

    def query(self, sql: str) -> pa.Table:
        with self.open(sql) as stream:
            received = list(stream)
            assert [r.complete for r in received] == [False] * (len(received) - 1) + [True]
            return pa.Table.from_batches([r.batch for r in received], schema=stream.schema)


def _header_names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace('_', '-'): value for name, value in headers.items()}
