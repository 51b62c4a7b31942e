"""A stream between a local Amp and a destination with broken networks between them, and the oracle's verdict on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from amp import events
from amp.client import Client
from amp.devserver import LocalAmp
from amp.loaders import points
from amp.loaders.registry import create_loader
from amp.loaders.types import LoadResult
from amp.streaming.ledger import StreamKey
from amp.streaming.resilience import RetryConfig
from amp.streaming.types import ResumeWatermark
from amp.testing.oracle import Feed, Oracle, difference
from tests.support.following import position

__all__ = ['QUICK', 'At', 'Run']

QUICK = RetryConfig(max_retries=None, initial_backoff_ms=10, max_backoff_ms=200)
LONGEST = 90.0


class At:
    """Do something at a named moment of a unit, the n-th time that this thread or another comes to it."""

    def __init__(self, point: str, act: Callable[[], Any], nth: int = 1) -> None:
        self._point, self._act, self._left = point, act, nth
        self.happened = False

    def __call__(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                self.happened = True
                self._act()


@dataclass
class Run:
    """One stream of logs into one table, whose rows are checked by a loader that takes no broken way.

    `through` is the configuration of the stream, `direct` that of the check.
    """

    amp: LocalAmp
    loader: str
    through: Mapping[str, Any]
    direct: Mapping[str, Any] | None = None
    table: str = 'logs'
    source: str | None = None
    keepalive: float = 60.0
    options: Mapping[str, Any] = field(default_factory=dict)
    feed: Feed = field(default_factory=lambda: Feed('logs'))
    oracle: Oracle = field(init=False)
    results: list[LoadResult] = field(default_factory=list)
    retries: list[events.Retrying] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.oracle = Oracle(self.amp)

    def mine(self, blocks: int) -> None:
        self.amp.mine(blocks)
        self.oracle.look()

    def reorg(self, depth: int) -> None:
        self.amp.reorg(depth)
        self.oracle.look()

    def follow(self, *steps: Callable[[], object], seconds: float = LONGEST) -> list[LoadResult]:
        """One stream to the head, and after each of `steps` to the head again; what it reported. Raises AssertionError."""
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        unlisten = events.listen(self._hear)
        before = len(self.results)
        timer.start()
        try:
            with Client(self.source or self.amp.url, keepalive=self.keepalive) as client:
                client.configure_connection('there', self.loader, self.through)
                options = {'retry': QUICK, 'stop': stop, 'name': self.feed.name, **self.options}
                with closing(client.sql(self.feed.sql).load('there', self.table, stream=True, **options)) as stream:
                    self._to_head(stream)
                    for step in steps:
                        step()
                        self._to_head(stream)
        finally:
            timer.cancel()
            unlisten()
        return self.results[before:]

    def check(self) -> None:
        """The table holds the canonical rows up to the head, each once, and the reports add up to them."""
        with create_loader(self.loader, dict(self.direct or self.through)) as loader:
            [found] = [
                info.state.position
                for info in loader.streaming_destination().list_streams()
                if info.key == StreamKey(self.table, self.feed.name)
            ]
            rows = loader.scan(self.table).read_all()
            in_one_transaction = hasattr(loader, 'open_stream')
        head = self.amp.head
        assert head is not None
        assert found.to_dict() == {self.amp.network: {'number': head[0], 'hash': head[1]}}
        expected = self.oracle.expected({self.feed: ResumeWatermark.from_json(found.to_json())})
        wrong = difference(rows, expected)
        assert wrong is None, wrong
        loaded = sum(r.rows_loaded for r in self.results)
        undone = [r.metadata.get('rows_undone') for r in self.results if r.is_reorg]
        # Undone by id, rows are taken back before the unit that says so: a report of it may be lost, the rows are not.
        if None not in undone and (in_one_transaction or not self.retries):
            assert loaded - sum(undone) == rows.num_rows, f'{loaded} reported, {undone} undone, {self.retries}'

    def _to_head(self, stream: Any) -> None:
        for result in stream:
            self.results.append(result)
            if position(result).get(self.amp.network) == self.amp.head:
                return
        at = position(self.results[-1]) if self.results else {}
        told = [str(retry.error) for retry in self.retries[-3:]]
        raise AssertionError(f'the stream did not come to {self.amp.head} in time; it is at {at}; retries: {told}')

    def _hear(self, event: object) -> None:
        if isinstance(event, events.Retrying):
            self.retries.append(event)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that happens elsewhere. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen in time'
        time.sleep(0.01)


def hook(monkeypatch: Any, at: At | None) -> None:
    """Act at a moment of the units of this process."""
    monkeypatch.setattr(points, 'hook', at)
