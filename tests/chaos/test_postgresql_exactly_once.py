"""PostgreSQL may call itself exactly-once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests
from tests.support.tcp_proxy import TcpProxy


class _LosesCommits:
    """A network that loses the answer to a COMMIT."""

    def __init__(self, proxy: TcpProxy, config: dict[str, Any]) -> None:
        self._proxy = proxy
        self._lost = 0
        self.config = {**config, 'host': '127.0.0.1', 'port': proxy.port}

    def lose_replies(self) -> None:
        self._lost = self._proxy.cuts + 1
        self._proxy.lose_reply_to(b'COMMIT')

    def heal(self) -> None:
        assert self._proxy.cuts == self._lost, 'no answer was lost'


@pytest.mark.postgresql
class TestPostgreSQL(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.after',
        'commit.before_state',
        'commit.before',
        'commit.after',
    }

    @pytest.fixture(autouse=True)
    def _server(self, postgresql_test_config):
        self.server = postgresql_test_config

    def make_destination(self, tmp_path):
        # A schema of its own: the streams of other tests are none of ours.
        config = {**self.server, 'schema': f'chaos_{tmp_path.name[-40:]}'.lower()}

        @contextmanager
        def proxy() -> Iterator[_LosesCommits]:
            with TcpProxy(config['host'], config['port']) as network:
                yield _LosesCommits(network, config)

        return Destination('postgresql', config, proxy=proxy)
