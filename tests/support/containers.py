"""Servers in containers, where Docker is: one a system and session, thrown away afterwards."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from amp.errors import AmpError
from amp.loaders.registry import create_loader

logger = logging.getLogger(__name__)
_LONGEST_START = 120


class Image(NamedTuple):
    """What a system's container is made of, and the keys of a loader's configuration besides host and port."""

    name: str
    port: int
    environment: Mapping[str, str]
    config: Mapping[str, str]


IMAGES = {
    'postgresql': Image(
        'postgres:17-alpine',
        5432,
        {'POSTGRES_PASSWORD': 'amp', 'POSTGRES_DB': 'amp_test'},
        {'database': 'amp_test', 'user': 'postgres', 'password': 'amp'},
    ),
    'redis': Image('redis:8-alpine', 6379, {}, {}),
    'clickhouse': Image(
        'clickhouse/clickhouse-server:25.8-alpine',
        8123,
        {'CLICKHOUSE_USER': 'amp', 'CLICKHOUSE_PASSWORD': 'amp', 'CLICKHOUSE_DB': 'amp_test'},
        {'database': 'amp_test', 'username': 'amp', 'password': 'amp'},
    ),
}


def wanted() -> bool:
    """Whether servers come from containers: testcontainers is installed, Docker answers, USE_TESTCONTAINERS is not false."""
    if os.environ.get('USE_TESTCONTAINERS', 'true').strip().lower() in {'false', 'no', 'off', '0'}:
        return False
    return find_spec('testcontainers') is not None and _docker_answers()


def _docker_answers() -> bool:
    if shutil.which('docker') is None:
        return False
    try:
        return subprocess.run(['docker', 'info'], capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def container(system: str) -> Iterator[Any | None]:
    """A started `DockerContainer`; None where servers come from elsewhere, or the image cannot be had."""
    if not wanted():
        yield None
        return
    from docker.errors import DockerException
    from testcontainers.core.container import DockerContainer

    image = IMAGES[system]
    try:
        made = DockerContainer(image.name, env=dict(image.environment), ports=[image.port])
        made.start()
    except DockerException as error:
        logger.warning('%s does not start, so a server from elsewhere is used: %s', image.name, error)
        yield None
        return
    try:
        yield made
    finally:
        made.stop()


def config_of(system: str, running: Any) -> dict[str, Any]:
    """A loader's configuration for a container, once the server in it answers."""
    image = IMAGES[system]
    host, port = running.get_container_host_ip(), int(running.get_exposed_port(image.port))
    config = {'host': host, 'port': port, **image.config}
    deadline = time.monotonic() + _LONGEST_START
    while True:
        try:
            with create_loader(system, config):
                return config
        except AmpError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
