"""Streams into several destinations for a long time, over networks that break, on a chain that reorganises.

`AMP_SOAK_SECONDS` says how long (20 by default, for every run of the tests; `make soak` takes half an hour),
`AMP_SOAK_PLACES` into which destinations, `AMP_SOAK_REPORT` where the figures are written as JSON.
"""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from amp.streaming.ledger import StreamKey
from amp.testing.oracle import Feed, Oracle, difference
from tests.soak.report import figures
from tests.support.places import PLACES, Place
from tests.support.tcp_proxy import TcpProxy, schedule

SECONDS = float(os.environ.get('AMP_SOAK_SECONDS', '20'))
NAMES = os.environ.get('AMP_SOAK_PLACES', 'postgresql,redis,clickhouse,deltalake').split(',')
SEED = int(os.environ.get('AMP_SOAK_SEED', '1'))
LONGEST_END = 180.0
# Caches fill at first; after that growth is a leak. In a short run there is nothing but beginnings.
MOST_GROWTH = 16 if SECONDS >= 600 else 96
# What delta-rs keeps of every file of a table, in MB: 200 appends through one handle, without amp, made it grow by 22 MB at
# first and by 7 MB each time after that.
OF_A_DELTA_COMMIT = 7 / 200

pytestmark = [pytest.mark.integration, pytest.mark.timeout(SECONDS + 2 * LONGEST_END + 120)]


class Child:
    """The follower, and what it says."""

    def __init__(self, job: Mapping[str, Any], errors: Path) -> None:
        path = os.pathsep.join(p for p in [str(Path(__file__).parents[2]), *sys.path] if p)
        self._errors = errors
        with errors.open('wb') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'tests.soak.follower', json.dumps(job)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={**os.environ, 'PYTHONPATH': path},
            )  # fmt: skip
        self.samples: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def hear(self, seconds: float) -> None:
        """Take what it says for so long. Raises AssertionError when it has failed or ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                told = self._lines.get(timeout=left)
            except queue.Empty:
                return
            assert told is not None, f'it ended: {self._errors.read_text()[-4000:]}'
            assert not told['failed'], told['failed']
            self.samples.append(told)

    def end(self, meanwhile: Callable[[], object]) -> dict[str, Any]:
        """Let every stream end; what the process holds then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        deadline = time.monotonic() + 120
        while self._process.poll() is None and time.monotonic() < deadline:
            meanwhile()
            time.sleep(0.2)
        assert self._process.poll() == 0, self._errors.read_text()[-4000:]
        self._reader.join(10)
        rest = list(iter(self._lines.get, None))
        assert not rest[-1]['failed'], rest[-1]['failed']
        assert rest[-1]['ended'], 'a stream did not end'
        assert 'Traceback' not in self._errors.read_text(), self._errors.read_text()[-4000:]
        return rest[-1]

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class World:
    """A chain that grows and reorganises, and networks that break, all by one seed."""

    def __init__(self, amp: LocalAmp, networks: Mapping[str, TcpProxy]) -> None:
        self.amp, self.networks = amp, networks
        self.reorgs = 0
        self._left_at: int | None = None
        self._chance = random.Random(SEED)

    def trouble(self, half: int) -> None:
        """From now on networks break."""
        for i, (name, proxy) in enumerate(self.networks.items()):
            sent, received = (3_000, 400_000) if name == 'source' else (150_000, 20_000)
            seed = SEED * 100 + half * 50 + i
            proxy.misbehave(schedule(seed, sent=sent, received=received), stall_seconds=1.5)

    def go_on(self) -> None:
        """What happens within half a second."""
        chance = self._chance
        self.amp.mine(chance.randint(1, 3))
        if chance.random() < 0.06:
            self.amp.reorg(chance.randint(1, 25), extend=chance.randint(1, 3))
            self.reorgs += 1
            self._left_at = head(self.amp)
        elif self._left_at is not None and chance.random() < 0.2:
            # Soon, or the way back would be longer than the history that is kept.
            if head(self.amp) - self._left_at < 30:
                self.amp.switch_back(extend=1)
                self.reorgs += 1
            self._left_at = None
        if chance.random() < 0.05:
            chance.choice(list(self.networks.values())).reset()
        if chance.random() < 0.02:
            proxy = chance.choice(list(self.networks.values()))
            proxy.refuse()
            threading.Timer(chance.uniform(0.1, 2.0), proxy.refuse, [False]).start()

    def calm_down(self) -> None:
        """From now on everything works."""
        for proxy in self.networks.values():
            proxy.misbehave(iter(()))
            proxy.heal()


@contextmanager
def world(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[World, dict[str, Place]]]:
    with ExitStack() as stack:
        amp = stack.enter_context(
            LocalAmp.simulate(seed=SEED, blocks=30, logs_per_block=(10, 60), microbatch_max_blocks=10)
        )
        amp.faults.split(200)
        host, _, port = amp.url.removeprefix('grpc://').partition(':')
        source = stack.enter_context(TcpProxy(host, int(port), listen='127.0.0.2'))
        places = {name: stack.enter_context(PLACES[name](request.getfixturevalue, folder)) for name in NAMES}
        made = World(amp, {'source': source, **{name: place.proxy for name, place in places.items()}})
        yield made, places
        made.calm_down()


def test_streams_stay_exact_and_leave_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with world(request, tmp_path) as (around, places):
        amp, source = around.amp, around.networks['source']
        feeds = {name: Feed(name) for name in places}
        streams = [
            {
                'name': name, 'loader': place.loader, 'config': dict(place.through), 'table': place.table,
                'sql': feeds[name].sql, 'options': {'commit_seconds': 1.0},
            }
            for name, place in places.items()
        ]  # fmt: skip
        job = {'source': f'grpc://{source.host}:{source.port}', 'keepalive': 2.0, 'streams': streams}
        child = Child(job, tmp_path / 'errors')
        try:
            calms = []
            for half in range(2):
                around.trouble(half)
                started = time.monotonic()
                while time.monotonic() - started < SECONDS / 2:
                    around.go_on()
                    child.hear(0.5)
                around.calm_down()
                until_all_at_head(amp, child, places)
                calms.append(calm_moment(child))
            calm = child.samples[-1]
            report = figures(
                child.samples, {n: dict(p.done) for n, p in around.networks.items()}, around.reorgs, head(amp)
            )
            report['calm in the middle and at the end'] = calms
            # A call that waits for the next block, and that nobody waits for any more, ends with that block.
            last = child.end(amp.mine)
        finally:
            child.kill()
        write(report)
        oracle = Oracle(amp)
        for name, place in places.items():
            is_exact(oracle, place, feeds[name])
        left = {name: proxy.connections for name, proxy in around.networks.items()}
        assert not any(left.values()), f'connections are left: {left}'
        assert amp.open_streams == 0, 'streams are left at the server'
    middle, end = calms
    # What waits for a destination that is behind is bounded, and no leak: so calm is compared with calm.
    most = MOST_GROWTH + OF_A_DELTA_COMMIT * (end['delta commits'] - middle['delta commits'])
    assert end['rss'] - middle['rss'] <= most * 1024**2, report
    assert calm['arrow'] <= len(places) * 1024**2, 'rows are held though every one of them is committed'
    if SECONDS >= 600:
        assert end['blocks'] <= 1.03 * middle['blocks'], f'Python objects become more: {middle}, {end}'
    assert not [name for name in last['python_threads'] if name.startswith('amp')], last
    # One stream more or less may be between two connections.
    early = child.samples[min(5, len(child.samples) - 1)]
    assert calm['fds'] <= early['fds'] + 12 * len(places), (early, calm)
    assert calm['threads'] <= early['threads'] + 12 * len(places), (early, calm)


def until_all_at_head(amp: LocalAmp, child: Child, places: Mapping[str, Place]) -> None:
    found = amp.head
    assert found is not None
    wanted = {amp.network: {'number': found[0], 'hash': found[1]}}
    deadline = time.monotonic() + LONGEST_END
    while True:
        child.hear(1.0)
        at = child.samples[-1]['positions'] if child.samples else {}
        if all(at.get(name) == wanted for name in places):
            return
        assert time.monotonic() < deadline, f'the head is {wanted}, the streams are at {at}'


def calm_moment(child: Child) -> dict[str, int]:
    """The least that is held within some seconds in which nothing happens."""
    before = len(child.samples)
    child.hear(5.0)
    quiet = child.samples[before - 1 :]
    least = {key: min(sample[key] for sample in quiet) for key in ('rss', 'blocks', 'arrow')}
    commits = quiet[-1]['streams'].get('deltalake', {}).get('commits', 0)
    return {**least, 'delta commits': commits}


def is_exact(oracle: Oracle, place: Place, feed: Feed) -> None:
    """The rows of exactly the canonical chain."""
    with create_loader(place.loader, dict(place.direct)) as loader:
        infos = loader.streaming_destination().list_streams()
        [position] = [i.state.position for i in infos if i.key == StreamKey(place.table, feed.name)]
        wrong = difference(loader.scan(place.table).read_all(), oracle.expected({feed: position}))
    assert wrong is None, f'{feed.name}: {wrong}'


def head(amp: LocalAmp) -> int:
    return amp.head[0] if amp.head is not None else 0


def write(report: Mapping[str, Any]) -> None:
    print(json.dumps(report, indent=1))
    path = os.environ.get('AMP_SOAK_REPORT')
    if path:
        Path(path).write_text(json.dumps(report, indent=1))
