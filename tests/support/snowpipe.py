"""A small stand-in for Snowpipe Streaming: the endpoints of the channel protocol over HTTP, rows into a Snowflake schema.

It is no Snowpipe and proves nothing about one. It keeps the rules that a client must heed: a channel has one current
continuation token, opening it again invalidates the token before, rows are committed some time after they were taken,
also when their client is gone by then, and the channel tells the last token that is committed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from amp.loaders.implementations.snowflake_loader import SnowflakeLoader
from amp.loaders.snowflake.types import VARIANT, cast_of
from amp.loaders.sql import quote

_CHANNEL = re.compile(r'/v2/streaming/(?:data/)?databases/[^/]+/schemas/[^/]+/pipes/([^/:]+)/channels/([^/]+)(/rows)?')
_STATUS = re.compile(r'/v2/streaming/databases/[^/]+/schemas/[^/]+/pipes/([^/:]+):bulk-channel-status')


@dataclass
class _Channel:
    table: str
    name: str
    opened: int = 0
    count: int = 0
    committed: str | None = None
    errors: int = 0
    last_error: str | None = None
    waiting: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def continuation(self) -> str:
        return f'{self.opened}_{self.count}'

    def status(self) -> dict[str, Any]:
        return {
            'channel_name': self.name,
            'channel_status_code': 'SUCCESS',
            'last_committed_offset_token': self.committed,
            'rows_errors': self.errors,
            'last_error_message': self.last_error,
        }


class Snowpipe:
    """The server. `url` is where it listens; `answer_with` makes the next appends fail with these HTTP codes."""

    def __init__(self, loader: SnowflakeLoader) -> None:
        self._loader = loader
        self._lock = threading.Condition()
        self._channels: dict[tuple[str, str], _Channel] = {}
        self._stopping = False
        self.answer_with: list[int] = []
        self.appended: list[tuple[str, str]] = []
        snowpipe = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(b'')

            def do_PUT(self) -> None:
                self._answer(self._body())

            do_POST = do_PUT

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get('Content-Length') or 0))

            def _answer(self, body: bytes) -> None:
                code, answer = snowpipe.handle(self.command, self.path, body, self.headers.get('Authorization', ''))
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._threads = [
            threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05}),
            threading.Thread(target=self._commit_for_ever),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    def handle(self, method: str, target: str, body: bytes, authorization: str) -> tuple[int, Any]:
        parts = urlsplit(target)
        if parts.path == '/v2/streaming/hostname':
            return 200, {'hostname': self.url}
        if parts.path == '/oauth/token':
            return 200, {'token': 'scoped'}
        if authorization != 'Bearer scoped':
            return 401, {'message': 'no scoped token'}
        with self._lock:
            if (asked := _STATUS.fullmatch(parts.path)) is not None:
                return 200, {
                    'channel_statuses': self._statuses(
                        unquote(asked[1]).removesuffix('-STREAMING'), json.loads(body)['channel_names']
                    )
                }
            found = _CHANNEL.fullmatch(parts.path)
            if found is None:
                return 404, {'message': parts.path}
            key = (unquote(found[1]).removesuffix('-STREAMING'), unquote(found[2]))
            if method == 'PUT':
                channel = self._channels.setdefault(key, _Channel(*key))
                channel.opened += 1
                return 200, {'next_continuation_token': channel.continuation, 'channel_status': channel.status()}
            return self._append(self._channels[key], parse_qs(parts.query), body)

    def _append(self, channel: _Channel, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if query['continuationToken'] != [channel.continuation]:
            return 400, {'code': 'STALE_CONTINUATION_TOKEN_SEQUENCER', 'message': 'another client has the channel'}
        if self.answer_with:
            return self.answer_with.pop(0), {'message': 'as the test wants it'}
        [token] = query['offsetToken']
        channel.count += 1
        channel.waiting.append((token, body))
        self.appended.append((channel.name, token))
        self._lock.notify_all()
        return 200, {'next_continuation_token': channel.continuation}

    def _statuses(self, table: str, names: list[str]) -> dict[str, Any]:
        return {name: self._channels[table, name].status() for name in names if (table, name) in self._channels}

    def _commit_for_ever(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._stopping or any(c.waiting for c in self._channels.values()))
                if self._stopping:
                    return
                channel = next(c for c in self._channels.values() if c.waiting)
                token, body = channel.waiting[0]
            error = self._insert(channel.table, body)
            with self._lock:
                channel.waiting.pop(0)
                channel.committed = token
                channel.errors += error is not None
                channel.last_error = error or channel.last_error

    def _insert(self, table: str, body: bytes) -> str | None:
        try:
            lines = [json.loads(line) for line in body.split(b'\n') if line]
            types = self._loader.columns(table)
            names = sorted({name for line in lines for name in line})
            nested = {name for name in names if types[name] == VARIANT}
            selected = ', '.join(cast_of(types[name], f'f.value[{i}]::VARCHAR') for i, name in enumerate(names))
            # Null in JSON would be a value to a VARIANT: who means NULL leaves the name out.
            rows = json.dumps(
                [[json.dumps(line[n]) if n in nested and n in line else line.get(n) for n in names] for line in lines]
            )
            listed = ', '.join(map(quote, names))
            self._loader.own.run(
                f'INSERT INTO {quote(table)} ({listed}) SELECT {selected} FROM TABLE(FLATTEN(INPUT => PARSE_JSON(?))) f',
                [rows],
            )
        except Exception as error:
            return f'{type(error).__name__}: {error}'
        return None


@contextmanager
def snowpipe(config: dict[str, Any]) -> Iterator[Snowpipe]:
    """A stand-in that puts rows into the schema of `config`."""
    with SnowflakeLoader(config) as loader:
        server = Snowpipe(loader)
        try:
            yield server
        finally:
            server.stop()
