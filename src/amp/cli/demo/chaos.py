"""The demo with everything going wrong: kills, cuts and reorgs for a while, then the proof.

The loader is a process of its own and is killed with -9; the chain, its server and the mischief are in this one. What
happens is drawn from one seed; at which instruction it hits the loader is up to the machine, so two runs of a seed
differ in that.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from amp.cli.demo.chains import simulated_truth
from amp.cli.demo.follower import Follower
from amp.cli.demo.proof import Proof, compare, prepare
from amp.cli.demo.story import SQL
from amp.client import Client
from amp.devserver.local import LocalAmp
from amp.loaders.status import open_destination
from amp.loaders.verify import verify

if TYPE_CHECKING:
    from amp.cli.demo.chaos_screen import ChaosScreen
    from amp.devserver.faults import Fault, Faults
    from amp.loaders.findings import Report

__all__ = ['Toll', 'Verdict', 'run']

_HISTORY = 120  # blocks that are there when it begins
_MICROBATCH = 12  # blocks at most, so that most reorgs reach over several
_DEEPEST = 60  # blocks; well inside the 128 that a stream can undo
_PATIENCE = 5.0  # seconds that mischief waits for its moment before it is given up
_TICK = 0.03


@dataclass
class Toll:
    """What was done to the loader so far. `reorgs` are those of the chain; a dead loader sees several as one."""

    kills: int = 0
    cuts: int = 0
    reorgs: int = 0
    deepest: int = 0


@dataclass(frozen=True)
class Verdict:
    """What came of it: the file against the chain, and what `amp verify --source` finds."""

    toll: Toll
    seconds: int
    proof: Proof
    reports: tuple[Report, ...]

    @property
    def holds(self) -> bool:
        """True when nothing is lost, twice or orphaned, and every block was verified against the server."""
        found = [finding for report in self.reports for finding in report.findings]
        return self.proof.holds and not found and self.blocks == self.verified_blocks > 0

    @property
    def blocks(self) -> int:
        """Blocks whose rows the file records as its own."""
        return sum(r.end - r.start + 1 for report in self.reports for r in report.history)

    @property
    def verified_blocks(self) -> int:
        """Those of them that were held against the server."""
        return sum(r.end - r.start + 1 for report in self.reports for r in report.compared)


def run(screen: ChaosScreen, path: Path, seconds: int, seed: int) -> Verdict:
    """The whole of it. Raises AmpError when the loader ends by itself, or cannot catch up once it is left in peace."""
    prepare(path)
    toll = screen.toll
    chain = _Chain(seed, toll)
    with chain.server as server, Follower(server.url, SQL, path, screen.event) as follower:
        screen.say(f'seed {seed}: a simulated chain of {_HISTORY} blocks, and a loader that streams it into {path}')
        screen.say(f'now {seconds} s of kills, cuts and reorgs', style='yellow')
        storm = _Storm(screen, chain, follower, random.Random(seed))  # noqa: S311 - mischief, not a secret
        storm.rage(seconds)
        screen.say('peace: the loader catches up', style='green')
        storm.end()
        follower.wait_for(*chain.head())
        follower.stop()
        proof = compare(path, simulated_truth(server))
        with Client(server.url) as client, open_destination(f'duckdb:///{quote(str(path))}') as loader:
            reports = verify(loader, source=client)
    return Verdict(toll, seconds, proof, tuple(reports))


class _Chain:
    """A simulated chain that forks, between microbatches and inside them, and never deeper than `_DEEPEST`."""

    def __init__(self, seed: int, toll: Toll) -> None:
        self.server = LocalAmp.simulate(
            seed=seed,
            blocks=_HISTORY,
            network='simnet',
            logs_per_block=(10, 40),
            microbatch_max_blocks=_MICROBATCH,
        )
        self._toll = toll
        self._fork: int | None = None  # where the branch that was left last begins
        self._one_at_a_time = threading.Lock()  # a fork inside a microbatch comes from a thread of the server

    def head(self) -> tuple[int, str]:
        """Number and hash of the latest block."""
        head = self.server.head
        if head is None:
            raise AssertionError('there is history from the start')
        return head

    def mine(self, blocks: int) -> None:
        """Add blocks."""
        with self._one_at_a_time:
            self.server.mine(blocks)

    def reorg(self, depth: int, extend: int) -> None:
        """Replace the last `depth` blocks; with `extend` 0 nobody sees it before the next block."""
        with self._one_at_a_time:
            self._fork = self.head()[0] - depth
            self.server.reorg(depth, extend)
            self._count(depth)

    def switch_back(self) -> None:
        """Return to the branch that was left last, unless that is too long ago."""
        with self._one_at_a_time:
            if self._fork is not None and (depth := self.head()[0] - self._fork) <= _DEEPEST:
                self.server.switch_back()
                self._count(depth)

    def _count(self, depth: int) -> None:
        self._toll.reorgs += 1
        self._toll.deepest = max(self._toll.deepest, depth)


class _Storm:
    """Draws one piece of mischief after another. Only this thread kills and starts the loader."""

    def __init__(self, screen: ChaosScreen, chain: _Chain, follower: Follower, chance: random.Random) -> None:
        self._screen = screen
        self._toll = screen.toll
        self._chain = chain
        self._follower = follower
        self._chance = chance
        self._faults: Faults = chain.server.faults
        self._armed: list[Fault] = []

    def rage(self, seconds: float) -> None:
        """Mischief for so long, from the first commit on, and until there was a kill and a reorg on the slowest machine."""
        mischief: list[tuple[Callable[[], None], int]] = [
            (self._cut, 8),
            (self._end_early, 5),
            (self._restart_server, 1),
            (self._reorg_inside, 8),
            (self._kill_sometime, 2),
            (self._kill_inside, 3),
            (self._kill_after_commit, 3),
        ]
        kinds, weights = zip(*mischief, strict=True)
        self._until_commit()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or not (self._toll.kills and self._toll.reorgs):
            self._weather()
            self._move_chain()
            self._chance.choices(kinds, weights)[0]()

    def end(self) -> None:
        """No more of it: what is armed is disarmed, and the chain shows the branch that it is on."""
        self._faults.clear()
        self._settle()
        self._chain.mine(1)
        self._screen.head = self._chain.head()[0]

    # What the server and the chain do beside

    def _weather(self) -> None:
        self._faults.clear()
        self._settle()
        self._faults.split(self._chance.choice([None, 60, 9]))
        self._faults.keep_alives(self._often(0.5))
        if self._often(0.3):
            self._faults.repeat_microbatch()
        if self._often(0.3):
            self._faults.ignore_cursor()

    def _move_chain(self) -> None:
        if self._often(0.4):
            self._chain.reorg(self._depth(), self._chance.choice([0, 1, 1, 5]))
        if self._often(0.15):
            self._chain.switch_back()
        if self._often(0.2):
            self._chain.server.forget_orphans()
        self._chain.mine(self._chance.choice([1, 2, 3, 20, 60]))

    def _depth(self) -> int:
        return self._chance.randint(1, self._chance.choice([3, 15, _DEEPEST]))

    def _often(self, share: float) -> bool:
        return self._chance.random() < share

    # Mischief

    def _cut(self) -> None:
        self._wait_for(self._faults.cut(after_batches=self._chance.randint(0, 6)), cut=True)

    def _end_early(self) -> None:
        self._wait_for(self._faults.end_early(after_batches=self._chance.randint(0, 6)), cut=True)

    def _restart_server(self) -> None:
        self._chain.server.stop()
        self._toll.cuts += 1
        self._live(self._chance.uniform(0, 0.5))
        self._chain.server.start()
        self._until_commit()

    def _reorg_inside(self) -> None:
        depth = self._depth()
        fork = self._faults.call(lambda: self._chain.reorg(depth, 1), after_batches=self._chance.randint(0, 6))
        self._wait_for(fork)

    def _kill_sometime(self) -> None:
        self._live(self._chance.uniform(0, 1))
        self._kill()

    def _kill_inside(self) -> None:
        stalled = self._faults.stall(after_batches=self._chance.randint(0, 6))
        self._wait_for(stalled)
        time.sleep(self._chance.uniform(0, 0.02))
        self._kill()

    def _kill_after_commit(self) -> None:
        self._until_commit()
        time.sleep(self._chance.uniform(0, 0.04))
        self._kill()

    def _kill(self) -> None:
        """Kill the loader, let the chain go on without it, and start it again; at times kill it while it starts."""
        down, starting = self._chance.uniform(0, 0.4), self._chance.uniform(0, 1)
        while True:
            self._follower.kill()
            self._toll.kills += 1
            self._screen.killed()
            # A loader that never had an answer takes a cut for a wrong address, and says so: only later ones are met.
            self._faults.clear()
            self._settle()
            if self._often(0.4):
                self._move_chain()
            if self._often(0.3):
                self._faults.ignore_cursor()
            time.sleep(down)
            self._follower.start()
            if not self._often(0.2):
                break
            self._live(starting)
        self._until_commit()

    # Waiting, while blocks come

    def _live(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._tick()

    def _until_commit(self) -> None:
        commits, deadline = self._screen.commits, time.monotonic() + _PATIENCE
        while self._screen.commits == commits and time.monotonic() < deadline:
            self._tick()

    def _wait_for(self, fault: Fault, *, cut: bool = False) -> None:
        if cut:
            self._armed.append(fault)
        deadline = time.monotonic() + _PATIENCE
        while not fault.fired and time.monotonic() < deadline:
            self._tick()

    def _tick(self) -> None:
        self._chain.mine(1)
        self._screen.head = self._chain.head()[0]
        self._follower.poll(_TICK)

    def _settle(self) -> None:
        """Count the cuts that happened."""
        self._toll.cuts += sum(fault.fired for fault in self._armed)
        self._armed.clear()
