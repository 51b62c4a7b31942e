"""Ports to listen on: one that another process has is said so, before a server shares it in silence."""

from __future__ import annotations

import os
import socket

from amp.errors import ConfigError

__all__ = ['check_free', 'listen']


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; a port of 0 becomes a free one. Raises ConfigError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f'cannot listen on {host}: {error.strerror or error}') from error
    try:
        # Elsewhere the option would let two servers share a port.
        if os.name == 'posix':
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        raise ConfigError(
            f'cannot listen on {host}:{port}: {error.strerror or error}',
            hint='stop what listens there, or choose another port; 0 takes a free one',
        ) from error
    return bound


def check_free(host: str, port: int) -> None:
    """Raises ConfigError when another process listens on the port. gRPC itself would share it with that process."""
    listen(host, port).close()
