"""Whether a loader may call itself exactly-once, found out by killing processes that use it.

    destination = Destination('duckdb', {'path': 'chain.db'})
    with Conformance(destination) as kit:
        for scenario in SCENARIOS:
            kit.crash_everywhere(scenario)

Everything raises AssertionError with what is lost, there twice or orphaned. The parent owns the server and its chain; a
child process streams. Whenever no child runs, the rows of the table must be those of exactly the blocks on the branch
that ends in the recorded position; at the end of a scenario, those of the canonical chain.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from amp.devserver import LocalAmp
from amp.errors import ConfigError
from amp.loaders.base import DataLoader
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim
from amp.streaming.ledger import StreamKey
from amp.streaming.types import ResumeWatermark
from amp.testing.child import loader_class
from amp.testing.oracle import Feed, Oracle, difference
from amp.testing.process import Child, Launcher, Order

__all__ = ['CLEAN_ENDS', 'Conformance', 'Destination', 'Proxy', 'Scenario', 'Trial', 'Wire']

CLEAN_ENDS = frozenset({130})
_CAP = 4


class Proxy(Protocol):
    """A network between the loader and its destination that can lose what the destination says."""

    config: Mapping[str, Any]
    """The configuration of a loader that goes through it."""

    def lose_replies(self) -> None:
        """From now on drop what the destination answers, and then the connection."""

    def heal(self) -> None:
        """Let new connections pass again."""


@dataclass(frozen=True)
class Destination:
    """A loader under test: its registered name or `package.module:Class`, and a configuration that works.

    `modules` are imported by the child first. `single_process`: only one process at a time can have it open.
    `proxy` makes a network that loses acknowledgements, for destinations that have one. `count_raw(loader, table)` counts
    the rows that lie in the table, also those that `scan` hides: once a stream has been opened none may be left over.
    """

    loader: str
    config: Mapping[str, Any]
    modules: tuple[str, ...] = ()
    single_process: bool = False
    proxy: Callable[[], AbstractContextManager[Proxy]] | None = None
    count_raw: Callable[[DataLoader[Any], str], int] | None = None

    def make(self) -> DataLoader[Any]:
        """A loader in this process."""
        return loader_class(self.loader)(dict(self.config))

    @property
    def upserts(self) -> bool:
        """True when streams of the loader take UPSERT as it is configured; it says so itself."""
        try:
            self.make().check_mode(LoadMode.UPSERT, ('address',), stream=True)
        except ConfigError:
            return False
        return True


@dataclass(frozen=True)
class Scenario:
    """What happens to a chain while a stream follows it. `play` may be called many times, each with a fresh trial."""

    name: str
    play: Callable[[Trial], None]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass
class Wire:
    """One stream of a trial, and the process that runs it."""

    feed: Feed
    options: Mapping[str, Any]
    child: Child | None = None


class Trial:
    """One destination table, one server, the streams between them, and the crashes that are still to happen.

    `crashes` are points at which a child is to be killed, one after the other, from the first `armed` on.
    """

    def __init__(
        self,
        kit: Conformance,
        amp: LocalAmp,
        table: str,
        feeds: Sequence[Feed],
        options: Mapping[str, Any],
        orders: Iterable[Order] = (),
    ) -> None:
        self.amp = amp
        self.table = table
        self.oracle = Oracle(amp)
        self.wires = [Wire(feed, options) for feed in feeds]
        self.kills: list[str] = []
        self.points: list[str] = []
        self._kit = kit
        self._orders = list(orders)
        self._armed = False

    # What the chain does

    def mine(self, blocks: int) -> None:
        """Add blocks."""
        self.amp.mine(blocks)
        self.oracle.look()

    def reorg(self, depth: int, *, extend: int = 1) -> None:
        """Replace the last `depth` blocks and grow by `extend`."""
        self.amp.reorg(depth, extend=extend)
        self.oracle.look()

    def switch_back(self, *, extend: int = 1) -> None:
        """Return to the branch that was left."""
        self.amp.switch_back(extend=extend)
        self.oracle.look()

    # What the processes do

    def arm(self) -> None:
        """From now on crashes happen: what runs already gets its order."""
        self._armed = True
        for wire in self.wires:
            if wire.child is not None:
                wire.child.give(self._order())

    def follow(self, *wires: Wire) -> None:
        """Let these streams (all, when none is given) reach the head, with as many processes as that takes."""
        for wire in wires or self.wires:
            while not self._reach_head(wire):
                pass

    def start(self, wire: Wire, order: Order | None = None, config: Mapping[str, Any] | None = None) -> Child:
        """A process that runs this stream from now on."""
        wire.child = self._kit.launcher.launch(
            {
                'source': self.amp.url,
                'config': dict(config or self._kit.destination.config),
                'table': self.table,
                'stream': wire.feed.name,
                'sql': wire.feed.sql,
                'options': dict(wire.options),
                'order': dict(self._order() if order is None else order),
            }
        )
        self._kit.children.append(wire.child)
        return wire.child

    def stop(self, wire: Wire | None = None) -> None:
        """End the process of a stream as a person does, and check what it leaves."""
        for each in [wire] if wire is not None else self.wires:
            child = each.child
            if child is None:
                continue
            code = child.interrupt()
            if code not in CLEAN_ENDS and not self._was_killed(child, code):
                raise AssertionError(f'an interrupted process did not end well: {child.told()}')
            self._let_go(each)
        if all(each.child is None for each in self.wires):
            self.check()

    def kill(self, wire: Wire) -> None:
        """End the process of a stream with SIGKILL, wherever it is, and check what it leaves."""
        child = wire.child
        if child is None:
            raise AssertionError('no process runs this stream')
        code = child.kill()
        if code != -signal.SIGKILL:
            raise AssertionError(f'a process ended by itself: {child.told()}')
        self.kills.append('a random moment')
        self._let_go(wire)
        self.check()

    def finish(self) -> None:
        """The end of a scenario: everything is stopped, and the table holds the canonical chain."""
        self.follow()
        self.stop()
        behind = [wire.feed.name for wire in self.wires if not self._at_head(self.position(wire))]
        if behind:
            raise AssertionError(f'the streams {behind} of {self.table} did not stay at the head {self.amp.head}')

    # What must be true

    def check(self) -> dict[str, ResumeWatermark]:
        """Compare the table with what the recorded positions promise; they are returned by stream.

        Only while no process has the destination open. Raises AssertionError.
        """
        with self._kit.destination.make() as loader:
            destination = loader.streaming_destination()
            held = {info.key: info.state.position for info in destination.list_streams()}
            positions = {w.feed: held.get(StreamKey(self.table, w.feed.name), ResumeWatermark()) for w in self.wires}
            self._compare(loader, positions, 'as it was left')
            if not hasattr(loader, 'open_stream'):
                # Undo by id: what a dead process left goes when the stream is opened, and that is part of the promise.
                for wire in self.wires:
                    key = StreamKey(self.table, wire.feed.name)
                    if key in held:
                        positions[wire.feed] = destination.open_stream(key, Claim.now()).position
                self._compare(loader, positions, 'after the stream was opened')
                self._count_raw(loader, positions)
        return {feed.name: position for feed, position in positions.items()}

    def position(self, wire: Wire) -> ResumeWatermark:
        """The recorded position, read from the destination."""
        with self._kit.destination.make() as loader:
            for info in loader.streaming_destination().list_streams():
                if info.key == StreamKey(self.table, wire.feed.name):
                    return info.state.position
        return ResumeWatermark()

    def told(self, wire: Wire) -> ResumeWatermark:
        """The position of which the process of a stream told last."""
        if wire.child is None or wire.child.position is None:
            return ResumeWatermark()
        return ResumeWatermark.from_json(json.dumps(wire.child.position))

    def _compare(self, loader: DataLoader[Any], positions: Mapping[Feed, ResumeWatermark], when: str) -> None:
        expected = self.oracle.expected(positions)
        exists = loader.table_exists(self.table)
        if not exists and not expected.num_rows:
            return
        wrong = difference(loader.scan(self.table).read_all(), expected) if exists else 'the table is not there'
        if wrong is not None:
            at = {feed.name: [str(r) for r in position.ranges] for feed, position in positions.items()}
            raise AssertionError(f'{self.table}, {when}, after kills at {self.kills}, standing at {at}: {wrong}')

    def _count_raw(self, loader: DataLoader[Any], positions: Mapping[Feed, ResumeWatermark]) -> None:
        count = self._kit.destination.count_raw
        if count is None or not loader.table_exists(self.table):
            return
        found, expected = count(loader, self.table), self.oracle.expected(positions).num_rows
        if found != expected:
            raise AssertionError(
                f'{self.table} holds {found} rows, hidden ones included, where {expected} are committed'
            )

    def _reach_head(self, wire: Wire) -> bool:
        child = wire.child
        if child is None:
            if self._at_head(self.check_position(wire)):
                return True
            child = self.start(wire)
        if child.wait(lambda: self._at_head_as_told(child)):
            self.points += child.points
            child.points = []
            return True
        code = child.wait_end()
        if not self._was_killed(child, code):
            raise AssertionError(f'a process ended by itself: {child.told()}')
        self._let_go(wire)
        return False

    def check_position(self, wire: Wire) -> ResumeWatermark:
        """The recorded position of one stream; everything is compared where no other process stands in the way."""
        if any(other.child is not None for other in self.wires):
            return self.position(wire)
        return self.check()[wire.feed.name]

    def _was_killed(self, child: Child, code: int) -> bool:
        point = child.order.get('point')
        if code != -signal.SIGKILL or point is None:
            return False
        self.kills.append(str(point))
        if child.order in self._orders:
            self._orders.remove(child.order)
        return True

    def _let_go(self, wire: Wire) -> None:
        if wire.child is not None:
            self.points += wire.child.points
            wire.child.close()
        wire.child = None

    def _order(self) -> Order:
        return self._orders[0] if self._armed and self._orders else {}

    def _at_head(self, position: ResumeWatermark) -> bool:
        return position.to_dict() == self._head()

    def _at_head_as_told(self, child: Child) -> bool:
        return child.position == self._head()

    def _head(self) -> dict[str, dict[str, int | str]]:
        head = self.amp.head
        return {} if head is None else {self.amp.network: {'number': head[0], 'hash': head[1]}}


class Conformance:
    """The proofs, for one destination. Use it as a context manager: it keeps processes ready."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.launcher = Launcher(destination.loader, destination.modules)
        self.children: list[Child] = []
        self._tables = itertools.count(1)

    def __enter__(self) -> Self:
        self.launcher.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_children()
        self.launcher.__exit__(*exc_info)

    def trial(
        self,
        play: Callable[[Trial], None],
        *,
        feeds: Sequence[Feed] = (Feed('logs'),),
        options: Mapping[str, Any] | None = None,
        orders: Iterable[Order] = (),
        blocks: int = 12,
        logs_per_block: int = 5,
        cap: int = _CAP,
    ) -> Trial:
        """Play with a fresh table and a fresh chain of `blocks` blocks, served `cap` blocks a microbatch."""
        table = f'trial_{next(self._tables)}'
        with LocalAmp.simulate(seed=7, blocks=blocks, logs_per_block=logs_per_block, microbatch_max_blocks=cap) as amp:
            trial = Trial(self, amp, table, feeds, options or {}, orders)
            try:
                play(trial)
            finally:
                self._end_children()
        return trial

    def run(self, scenario: Scenario, orders: Iterable[Order] = ()) -> Trial:
        """Play a scenario once, killing at the points of `orders` one after the other."""
        feeds = (
            (Feed('logs', 0, 0, latest_by='address'),) if scenario.options.get('mode') == 'upsert' else (Feed('logs'),)
        )
        return self.trial(scenario.play, feeds=feeds, options=scenario.options, orders=orders)

    def points_of(self, scenario: Scenario) -> list[str]:
        """The points that a scenario passes after its crashes are armed, in the order in which they are first met."""
        trial = self.run(scenario, [{'trace': True}])
        return list(dict.fromkeys(trial.points))

    def crash_at(self, scenario: Scenario, orders: Sequence[Order]) -> None:
        """Kill at these points, one after the other. Raises AssertionError when one is not reached."""
        trial = self.run(scenario, orders)
        missed = [str(order['point']) for order in orders if order['point'] not in trial.kills]
        if missed:
            raise AssertionError(f'{scenario}: killed at {trial.kills}, but no process came to {missed}')

    def crash_everywhere(self, scenario: Scenario) -> list[str]:
        """Kill at every point that the scenario passes, each kill the beginning of the next run; the points.

        Few processes: one that goes on after a crash is killed at the next point.
        """
        points = self.points_of(scenario)
        left = points
        while left:
            trial = self.run(scenario, [{'point': point, 'nth': 1} for point in left])
            if not trial.kills:
                raise AssertionError(f'{scenario}: no process came to {left} again')
            left = [point for point in left if point not in trial.kills]
        return points

    def crash_one_by_one(self, scenario: Scenario, most: int = 2) -> int:
        """Kill at the first `most` times of every point, each time with a fresh table; the number of kills."""
        trial = self.run(scenario, [{'trace': True}])
        kills = 0
        for point in dict.fromkeys(trial.points):
            for nth in range(1, min(most, trial.points.count(point)) + 1):
                kills += len(self.run(scenario, [{'point': point, 'nth': nth}]).kills)
        return kills

    def through(self, config: Mapping[str, Any]) -> Destination:
        """The destination with another configuration."""
        return replace(self.destination, config=config)

    def _end_children(self) -> None:
        for child in self.children:
            child.close()
        self.children.clear()
