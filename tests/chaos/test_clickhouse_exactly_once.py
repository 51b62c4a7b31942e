"""ClickHouse may call itself exactly-once: over HTTP, and with the engine inside the process that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from amp.loaders.clickhouse.session import quote
from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader
from amp.testing.conformance import Conformance, Destination, Scenario
from amp.testing.suite import ExactlyOnceTests
from tests.chaos.matrix import one_scenario, slow
from tests.support.tcp_proxy import TcpProxy

POINTS = ExactlyOnceTests.needed_points | {
    'intent.written',
    'undo.after',
    'insert.before',
    'insert.after',
    'document.before',
    'document.inserted',
    'commit.before',
    'commit.after',
}


class _LosesCommits:
    """A network that loses the answer to the document that says done."""

    def __init__(self, proxy: TcpProxy, config: dict[str, Any]) -> None:
        self._proxy = proxy
        self._lost = 0
        self.config = {**config, 'host': '127.0.0.1', 'port': proxy.port, 'compress': False}

    def lose_replies(self) -> None:
        self._lost = self._proxy.cuts + 1
        self._proxy.lose_reply_to(b'"intent":null')

    def heal(self) -> None:
        assert self._proxy.cuts == self._lost, 'no answer was lost'


def _count_raw(loader: Any, name: str) -> int:
    table = loader.tables.get(name)
    hidden = loader._hidden(table)
    [[rows, unfinished]] = loader.session.run(f'SELECT count(), countIf({hidden or "false"}) FROM {table.quoted}')
    if table.keys is None:
        return int(rows)
    # Rows that newer ones have replaced stay for as long as those may be taken back.
    return int(unfinished) + loader.get_table_info(name)['row_count']


@pytest.mark.clickhouse
class TestClickHouse(ExactlyOnceTests):
    needed_points = POINTS

    test_a_few_crashes = slow(ExactlyOnceTests.test_a_few_crashes)

    @pytest.fixture(autouse=True)
    def _database(self, clickhouse_test_config, tmp_path):
        # One of its own: the streams of other tests are none of ours.
        database = f'chaos_{tmp_path.name[-40:]}'.lower()
        # The disk need not be waited for: processes die here, not the machine.
        self.config = {**clickhouse_test_config, 'database': database, 'durable': False}
        for statement in ('DROP DATABASE IF EXISTS {} SYNC', 'CREATE DATABASE {}', None, 'DROP DATABASE {} SYNC'):
            if statement is None:
                yield
                continue
            with ClickHouseLoader(clickhouse_test_config) as loader:
                loader.session.do(statement.format(quote(database)))

    @one_scenario
    def test_a_crash_at_every_point(self, kit: Conformance, scenario: Scenario):
        super().test_a_crash_at_every_point(kit, scenario)

    def make_destination(self, tmp_path):
        config = self.config

        @contextmanager
        def proxy() -> Iterator[_LosesCommits]:
            with TcpProxy(config['host'], config['port']) as network:
                yield _LosesCommits(network, config)

        return Destination('clickhouse', config, proxy=proxy, count_raw=_count_raw)


@pytest.mark.clickhouse
@pytest.mark.slow
class TestEmbeddedClickHouse(ExactlyOnceTests):
    """The engine dies with the process."""

    needed_points = POINTS

    def make_destination(self, tmp_path):
        config = {'interface': 'chdb', 'path': str(tmp_path / 'data')}
        return Destination('clickhouse', config, single_process=True, count_raw=_count_raw)
