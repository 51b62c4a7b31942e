"""HTTP servers in threads of their own: uvicorn over an application, started and stopped with the local Amp."""

from __future__ import annotations

import hmac
import threading
import time

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from amp.devserver.ports import listen

__all__ = ['HttpServer']

_START_SECONDS = 30
_STOP_SECONDS = 10


_OPEN = {'/health', '/healthz'}


class _WithToken:
    """Turns away requests that do not bring the token; whether the server is alive, and may be asked, everybody is told."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f'Bearer {token}'.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._app
        if scope['type'] == 'http' and scope['path'] not in _OPEN and scope['method'] != 'OPTIONS':
            brought = Headers(scope=scope).get('authorization', '')
            if not hmac.compare_digest(brought.encode(), self._wanted):
                said = {'error_code': 'UNAUTHENTICATED', 'error_message': 'invalid or missing bearer token'}
                answer = JSONResponse(said, 401, {'www-authenticate': 'Bearer'})
        await answer(scope, receive, send)


class HttpServer:
    """Serves an application from the moment that it is made until `close`, to those who bring `token` if there is one.

    Raises ConfigError when the address cannot be had.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, name: str, token: str | None = None) -> None:
        self._socket = listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        self.url = f'http://{host}:{self.port}'
        config = uvicorn.Config(
            app if token is None else _WithToken(app, token),
            log_level='warning',
            access_log=False,
            lifespan='off',
            ws='none',
            timeout_graceful_shutdown=_STOP_SECONDS // 2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name=f'amp-devserver-{name}', daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """Stop listening, and end what is being answered."""
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._socket.close()
