"""HTTP servers in threads of their own: uvicorn over an application, started and stopped with the local Amp."""

from __future__ import annotations

import threading
import time

import uvicorn
from starlette.applications import Starlette

from amp.devserver.ports import listen

__all__ = ['HttpServer']

_START_SECONDS = 30
_STOP_SECONDS = 10


class HttpServer:
    """Serves an application from the moment that it is made until `close`.

    Raises ConfigError when the address cannot be had.
    """

    def __init__(self, app: Starlette, host: str, port: int, name: str) -> None:
        self._socket = listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        self.url = f'http://{host}:{self.port}'
        config = uvicorn.Config(
            app,
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
