"""Redis may call itself exactly-once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from amp.testing.conformance import Destination, Trial
from amp.testing.suite import ExactlyOnceTests
from tests.support.redis_server import start_redis
from tests.support.tcp_proxy import TcpProxy


class _LosesCommits:
    """A network that loses the answer to an EXEC."""

    def __init__(self, proxy: TcpProxy, config: dict[str, Any]) -> None:
        self._proxy = proxy
        self._lost = 0
        self.config = {**config, 'host': '127.0.0.1', 'port': proxy.port}

    def lose_replies(self) -> None:
        self._lost = self._proxy.cuts + 1
        self._proxy.lose_reply_to(b'EXEC')

    def heal(self) -> None:
        assert self._proxy.cuts == self._lost, 'no answer was lost'


class _OnRedis(ExactlyOnceTests):
    """On a server of its own: it is slow when others fill it."""

    structure = 'hash'
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.after',
        'commit.before_state',
        'commit.before',
        'commit.after',
    }

    @pytest.fixture(autouse=True)
    def _server(self):
        with start_redis() as config:
            self.server = config
            yield

    def make_destination(self, tmp_path):
        config = {**self.server, 'data_structure': self.structure}

        @contextmanager
        def proxy() -> Iterator[_LosesCommits]:
            with TcpProxy(config['host'], config['port']) as network:
                yield _LosesCommits(network, config)

        return Destination('redis', config, proxy=proxy)


@pytest.mark.redis
class TestRedisHash(_OnRedis):
    @pytest.mark.parametrize('point', ['intent.written', 'bulk.sent'])
    def test_a_crash_within_a_large_unit(self, kit, point):
        def play(trial: Trial) -> None:
            trial.arm()
            trial.finish()

        trial = kit.trial(play, orders=[{'point': point, 'nth': 1}], blocks=50, logs_per_block=2000, cap=1000)
        assert trial.kills == [point]


@pytest.mark.redis
@pytest.mark.slow
class TestRedisString(_OnRedis):
    structure = 'string'


@pytest.mark.redis
@pytest.mark.slow
class TestRedisStream(_OnRedis):
    structure = 'stream'


@pytest.mark.redis
@pytest.mark.slow
class TestRedisList(_OnRedis):
    structure = 'list'


@pytest.mark.redis
@pytest.mark.slow
class TestRedisSet(_OnRedis):
    structure = 'set'


@pytest.mark.redis
@pytest.mark.slow
class TestRedisSortedSet(_OnRedis):
    structure = 'sorted_set'
