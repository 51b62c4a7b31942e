"""A small HTTP front for the engine of ClickHouse (chdb): the real client talks to the real engine in another process.

    python tests/support/chdb_http.py PORT PATH [USER PASSWORD [CERTIFICATE KEY]]

The engine, its SQL, formats, settings and error codes are ClickHouse's own. The HTTP around it is ours: it proves what
our client sends, not how a server's own HTTP behaves at its limits. Logins are checked here, as the engine has none; the
answer to a wrong one is worded as the server words it. When stdin ends, so does the process.
"""

from __future__ import annotations

import os
import queue
import re
import ssl
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

_REPOSITORY = Path(__file__).resolve().parents[2]
# Parameters of the protocol; every other one is a setting of the query.
_PROTOCOL = {
    'query', 'database', 'default_format', 'compress', 'decompress', 'session_id', 'session_timeout', 'session_check',
    'query_id', 'wait_end_of_query', 'client_protocol_version', 'enable_http_compression', 'user', 'password', 'role',
    'send_progress_in_http_headers', 'http_headers_progress_interval_ms', 'buffer_size', 'quota_key',
    'cancel_http_readonly_queries_on_client_close',
}  # fmt: skip
_INSERT = re.compile(rb'^\s*(INSERT\s+INTO\s+.*?)\s+FORMAT\s+(\w+)\s*$', re.IGNORECASE | re.DOTALL)
_FORMAT = re.compile(r'\bFORMAT\s+(\w+)\s*;?\s*$', re.IGNORECASE)
_CODE = re.compile(r'Code: (\d+)')
_NOT_FOUND = {60, 81, 16, 47}


class Engine:
    """Handles to one engine; a request has one for itself."""

    def __init__(self, path: str) -> None:
        import chdb

        self._connect = lambda: chdb.connect(path)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._kept = chdb.connect(path)

    @contextmanager
    def handle(self) -> Iterator[Any]:
        try:
            handle = self._idle.get_nowait()
        except queue.Empty:
            handle = self._connect()
        yield handle
        # Reached only when the request succeeded: a failed one may leave settings behind.
        self._idle.put(handle)

    def run(self, sql: bytes, settings: dict[str, str], database: str | None, fmt: str) -> bytes:
        changed = ', '.join(f'{name} = {_quoted(value)}' for name, value in settings.items())
        with self.handle() as handle:
            if database:
                handle.query('USE `' + database.replace('\\', '\\\\').replace('`', '\\`') + '`')
            if changed:
                handle.query(f'SET {changed}')
            answer: bytes = handle.query(sql, fmt).bytes() or b''
            for name in settings:
                handle.query(f'SET {name} = DEFAULT')
        return answer


class Front(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    # Small answers would otherwise wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1
    engine: ClassVar[Engine]
    login: ClassVar[tuple[str, str] | None] = None

    def do_GET(self) -> None:
        if urlsplit(self.path).path == '/ping':
            self._answer(200, b'Ok.\n')
        else:
            self._query(b'')

    def do_POST(self) -> None:
        if self.headers.get('Transfer-Encoding', '').lower() == 'chunked':
            body = b''.join(iter(self._chunk, b''))
        else:
            length = int(self.headers.get('Content-Length', 0))
            body = self.rfile.read(length)
            if len(body) < length:
                # As with a server: half of an insert is none.
                self.close_connection = True
                return
        self._query(body)

    def _query(self, body: bytes) -> None:
        params = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if not self._may_enter():
            told = (
                f'Code: 516. DB::Exception: {self._user()}: Authentication failed: password is incorrect, or there is '
            )
            self._answer(403, (told + 'no user with such name. (AUTHENTICATION_FAILED)').encode(), code=516)
            return
        settings = {name: value for name, value in params.items() if name not in _PROTOCOL}
        sql = params.get('query', '').encode()
        try:
            if insert := _INSERT.match(sql):
                answer = self._insert(insert, body, settings, params.get('database'))
                self._answer(200, answer)
            else:
                sql = b'\n'.join(part for part in (sql, body) if part)
                wanted = _FORMAT.search(sql.decode())
                fmt = wanted[1] if wanted else 'TabSeparated'
                answer = self.engine.run(sql, settings, params.get('database'), fmt)
                self._answer(200, answer, fmt=fmt)
        except RuntimeError as error:
            text = str(error)
            text = text[max(text.find('Code: '), 0) :]
            found = _CODE.search(text)
            code = int(found[1]) if found else 1002
            self._answer(404 if code in _NOT_FOUND else 500, text.encode(), code=code)

    def _insert(self, insert: re.Match[bytes], body: bytes, settings: dict[str, str], database: str | None) -> bytes:
        with tempfile.NamedTemporaryFile(suffix='.rows') as file:
            file.write(body)
            file.flush()
            clause = ''
            if settings:
                clause = ' SETTINGS ' + ', '.join(f'{name} = {_quoted(value)}' for name, value in settings.items())
            sql = insert[1] + f' FROM INFILE {_quoted(file.name)}{clause} FORMAT '.encode() + insert[2]
            return self.engine.run(sql, {}, database, 'TabSeparated')

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b';')[0] or b'0', 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _given(self) -> tuple[str, str]:
        header = self.headers.get('Authorization', '')
        if not header.startswith('Basic '):
            return 'default', ''
        user, _, password = b64decode(header.removeprefix('Basic ')).decode().partition(':')
        return user, password

    def _user(self) -> str:
        return self._given()[0]

    def _may_enter(self) -> bool:
        return self.login is None or self._given() == self.login

    def _answer(self, status: int, body: bytes, *, fmt: str | None = None, code: int | None = None) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('X-ClickHouse-Timezone', 'UTC')
        if fmt is not None:
            self.send_header('X-ClickHouse-Format', fmt)
        if code is not None:
            self.send_header('X-ClickHouse-Exception-Code', str(code))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _quoted(text: str) -> str:
    return "'" + text.replace('\\', '\\\\').replace("'", "\\'") + "'"


@contextmanager
def chdb_front(path: str, *, user: str = 'default', password: str = '') -> Iterator[dict[str, Any]]:
    """The configuration of a loader for a front in a new process; the process ends with the context."""
    front = FrontProcess(path, user=user, password=password)
    try:
        yield front.config
    finally:
        front.kill()


class FrontProcess:
    """A front in a process of its own, to be killed and started again on the same folder and port."""

    def __init__(self, path: str, *, user: str = 'default', password: str = '', tls: tuple[str, ...] = ()) -> None:
        from tests.support.ports import free_port

        self._arguments = [path, user, password, *tls]
        self._port = free_port()
        self.start()

    @property
    def config(self) -> dict[str, Any]:
        return {'host': '127.0.0.1', 'port': self._port, 'username': self._arguments[1], 'password': self._arguments[2]}

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), str(self._port), *self._arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_REPOSITORY)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('the front of the engine did not start')
        self._port = int(line)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def main(port: int, path: str, user: str = 'default', password: str = '', *tls: str) -> None:
    Front.engine = Engine(path)
    if (user, password) != ('default', ''):
        Front.login = (user, password)
    server = _Server(('127.0.0.1', port), Front)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == '__main__':
    main(int(sys.argv[1]), *sys.argv[2:])
