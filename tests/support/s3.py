"""A real S3 protocol for the tests: moto's server on a free port, gone afterwards."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

BUCKET = 'lake'
_LOGGERS = ('werkzeug', 'botocore', 'moto')


class _InTurn:
    """One request after the other: moto looks whether a key is there and then makes it, and two at once both succeed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        length = environ.get('CONTENT_LENGTH')
        if length:
            # Taken in before the turn begins: a client that stalls keeps nobody else waiting.
            environ['wsgi.input'] = io.BytesIO(environ['wsgi.input'].read(int(length)))
        with self._lock:
            return self._app(environ, start_response)


@contextmanager
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3; moto keeps one memory a process, so use a bucket or a root of your own in it."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    app = _InTurn(DomainDispatcherApplication(create_backend_app))
    server = make_server('127.0.0.1', 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, name='moto', daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3_options() -> Iterator[dict[str, str]]:
    """The storage options for a bucket named `lake`."""
    with s3_endpoint() as endpoint:
        urlopen(Request(f'{endpoint}/{BUCKET}', method='PUT'), timeout=30).close()
        yield {
            'AWS_ENDPOINT_URL': endpoint,
            'AWS_ALLOW_HTTP': 'true',
            'AWS_ACCESS_KEY_ID': 'any',
            'AWS_SECRET_ACCESS_KEY': 'the-secret-of-the-bucket',
            'AWS_REGION': 'us-east-1',
        }
