"""A real S3 protocol for the tests: moto's server on a free port, gone afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

from moto.server import ThreadedMotoServer

BUCKET = 'lake'
_LOGGERS = ('werkzeug', 'botocore', 'moto')


@contextmanager
def s3_options() -> Iterator[dict[str, str]]:
    """The storage options for a bucket named `lake`; moto keeps one memory a process, so use a root of your own in it."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f'http://{host}:{port}'
        urlopen(Request(f'{endpoint}/{BUCKET}', method='PUT'), timeout=30).close()
        yield {
            'AWS_ENDPOINT_URL': endpoint,
            'AWS_ALLOW_HTTP': 'true',
            'AWS_ACCESS_KEY_ID': 'any',
            'AWS_SECRET_ACCESS_KEY': 'the-secret-of-the-bucket',
            'AWS_REGION': 'us-east-1',
        }
    finally:
        server.stop()
