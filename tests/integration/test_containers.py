"""Where the tests' servers come from: containers where Docker is, else what is named or installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import containers
from tests.support.redis_server import redis_config, start_redis

pytestmark = pytest.mark.integration


class Started:
    """What a started container tells of itself, of a server that runs without one."""

    def __init__(self, config: dict[str, object]) -> None:
        self._config = config

    def get_container_host_ip(self) -> str:
        return str(self._config['host'])

    def get_exposed_port(self, port: int) -> str:
        assert port == 6379
        return str(self._config['port'])


@pytest.mark.parametrize('said', ['false', 'False', '0', 'no'])
def test_who_wants_no_containers_gets_none(monkeypatch, said):
    monkeypatch.setenv('USE_TESTCONTAINERS', said)
    assert not containers.wanted()
    with containers.container('postgresql') as running:
        assert running is None


@pytest.mark.parametrize('answer', [0, 1])
def test_a_docker_that_does_not_answer_is_none(monkeypatch, tmp_path: Path, answer):
    docker = tmp_path / 'docker'
    docker.write_text(f'#!/bin/sh\nexit {answer}\n')
    docker.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert containers._docker_answers() is (answer == 0)


def test_a_container_is_used_once_its_server_answers_and_before_any_other(monkeypatch):
    monkeypatch.setenv('REDIS_HOST', 'nowhere.invalid')
    with start_redis() as real, redis_config(Started(real)) as config:
        assert config == real


@pytest.mark.redis
@pytest.mark.postgresql
@pytest.mark.clickhouse
@pytest.mark.parametrize('system', sorted(containers.IMAGES))
def test_each_system_has_a_container_fixture(request: pytest.FixtureRequest, system):
    running = request.getfixturevalue(f'{system}_container')
    assert (running is not None) <= containers.wanted()
