"""Ports for servers that tests start."""

from __future__ import annotations

import itertools
import os
import secrets
import socket

# Below those that Linux gives away by itself, so that nobody gets one by chance between its choice and its use, nor
# where a test wants nobody to listen. Each worker of a run of tests has its own.
_FIRST, _EACH, _WORKERS = 20_000, 1_500, 8
_places = itertools.count(secrets.randbelow(_EACH))


def free_port() -> int:
    """A TCP port of this machine that was free a moment ago, another one each time."""
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')) % _WORKERS
    for place in itertools.islice(_places, _EACH):
        port = _FIRST + worker * _EACH + place % _EACH
        with socket.socket() as probe:
            # A server may listen on what an earlier one has just left; two may not listen on one.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port
    raise RuntimeError('there is no free port for a server')
