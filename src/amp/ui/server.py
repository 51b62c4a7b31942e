"""The page over HTTP: loopback, a token, nothing to write to.

Whoever has the link has the token in it; it becomes a cookie that scripts cannot read and other sites are not sent. A
request under another host name than this machine's is refused, so that no other page's script gets in by its DNS.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from amp.errors import ConfigError
from amp.ui.watcher import Watcher

__all__ = ['listen', 'make_app']

_COOKIE = 'amp_ui'
_STATIC = Path(str(files('amp.ui') / 'static'))
_HEADERS = {
    'Content-Security-Policy': "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}
_REFUSED = 'This page needs the link that `amp ui` printed: the token in it is missing or wrong.\n'


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError for an address that is not this machine's own, or taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f'{host!r} is no address: {error.strerror}', hint='--host 127.0.0.1') from error
    if not ip_address(str(found[4][0])).is_loopback:
        raise ConfigError(
            f'{host!r} can be reached from other machines, and this page is for this one only',
            hint='leave --host out; from elsewhere: ssh -L 8642:127.0.0.1:8642 HOST',
        )
    sock = socket.socket(found[0], socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(found[4])
        sock.listen()
    except OSError as error:
        sock.close()
        raise ConfigError(
            f'port {port} cannot be had: {error.strerror}', hint='choose another --port (0 takes a free one)'
        ) from error
    return sock


def make_app(watcher: Watcher, token: str) -> Starlette:
    """The page, what it asks for, and the library that draws its charts."""

    async def page(request: Request) -> Response:
        if 'token' in request.query_params:
            answer = RedirectResponse('/', status_code=303)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite='strict')
            return answer
        return FileResponse(_STATIC / 'index.html')

    async def state(_: Request) -> Response:
        return JSONResponse(watcher.snapshot())

    async def plotly(_: Request) -> Response:
        return FileResponse(_plotly(), headers={'Cache-Control': 'private, max-age=86400'})

    routes = [Route('/', page), Route('/api/state', state), Route('/plotly.js', plotly)]
    app = Starlette(routes=routes)
    app.mount('/static', StaticFiles(directory=_STATIC))

    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.query_params.get('token') or request.cookies.get(_COOKIE) or ''
        answer: Response
        if hmac.compare_digest(given.encode(), token.encode()):
            answer = await call_next(request)
        else:
            answer = PlainTextResponse(_REFUSED, status_code=403)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=['127.0.0.1', 'localhost', '[::1]'])
    return app


def _plotly() -> Path:
    return Path(str(files('plotly') / 'package_data' / 'plotly.min.js'))
