"""A service that gives out tokens, on a real socket: as strict as Amp's, and as unkind as a test wants it.

A refresh token is good for one renewal. Who sends one twice loses the session, as with any service that rotates them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

__all__ = ['USER', 'TokenServer']

USER = 'c' + 'm' * 24


class TokenServer:
    """`valid` are the access tokens that a server may accept; `calls` the paths that were asked for.

    `answer` (status, headers, body) is given instead, whatever is asked; `pending` polls find nobody who confirmed.
    """

    def __init__(self) -> None:
        self.valid: set[str] = set()
        self.calls: list[str] = []
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.pending = 0
        self.user = USER
        self.expires_in: Any = 3_600
        self.rotates = True
        self._refresh = ''
        self._challenge = ''
        self._count = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        self._server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}'

    def issue(self) -> dict[str, Any]:
        """A new session, as the file of a login has it; the ones before are over."""
        with self._lock:
            access, self._refresh = self._new(), f'refresh-{self._count}'
        return {'accessToken': access, 'refreshToken': self._refresh, 'userId': USER, 'accounts': [USER]}

    def _new(self) -> str:
        self._count += 1
        self.valid = {f'access-{self._count}'}
        return f'access-{self._count}'

    def _respond(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(path)
        with self._lock:
            self.calls.append(parts.path)
            if self.answer is not None:
                return self.answer
            if (method, parts.path) == ('POST', '/api/v1/auth/refresh'):
                return self._renew(headers.get('authorization', ''), json.loads(body))
            if (method, parts.path) == ('POST', '/api/v1/device/authorize'):
                return self._authorize(json.loads(body))
            if (method, parts.path) == ('GET', '/api/v1/device/token'):
                return self._confirm(parse_qs(parts.query))
        return 404, {}, b'{}'

    def _renew(self, bearer: str, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if not bearer.startswith('Bearer access-') or asked != {'refresh_token': self._refresh, 'user_id': USER}:
            self.valid, self._refresh = set(), 'nothing is good any more'
            return 401, {}, b'{"error_description": "access-1 refresh-1"}'
        token = self._new()
        if self.rotates:
            self._refresh = f'refresh-{self._count}'
        found = {
            'token': token,
            'refresh_token': self._refresh if self.rotates else None,
            'session_update_action': 'set',
            'expires_in': self.expires_in,
            'user': {'id': self.user, 'accounts': [USER, '0xabc']},
        }
        return 200, {}, json.dumps(found).encode()

    def _authorize(self, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        assert asked['code_challenge_method'] == 'S256'
        self._challenge = asked['code_challenge']
        found = {
            'device_code': 'device',
            'user_code': 'ABCD-EFGH',
            'verification_uri': f'{self.url}/activate',
            'expires_in': 30,
            'interval': 0.01,
        }
        return 200, {}, json.dumps(found).encode()

    def _confirm(self, asked: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        [verifier] = asked['code_verifier']
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b'=').decode()
        if len(verifier) != 43 or digest != self._challenge or asked['device_code'] != ['device']:
            return 400, {}, b'{"error": "expired_token"}'
        if self.pending:
            self.pending -= 1
            return 400, {}, b'{"error": "authorization_pending"}'
        access, self._refresh = self._new(), f'refresh-{self._count}'
        found = {
            'access_token': access,
            'refresh_token': self._refresh,
            'user_id': USER,
            'user_accounts': [USER],
            'expires_in': self.expires_in,
        }
        return 200, {}, json.dumps(found).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get('content-length') or 0))
                status, headers, answer = outer._respond(self.command, self.path, self.headers, body)
                self.send_response(status)
                for name, value in {'content-length': str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = _any

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
