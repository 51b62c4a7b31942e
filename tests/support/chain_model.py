"""A model of the world around the streaming core: a chain with branches, a server that follows it, a destination.

They are models, in memory and deterministic in their seed, and faithful to the rules that matter: the server resumes as
the protocol's table says, never speaks of a reorg, and notices a branch only when it is higher; the destination commits
undo, rows and state together and keeps nothing else. `MiniEngine` drives a StreamMachine between them as the real
engine does, and can crash at every point at which a process can die. After each commit `Harness` checks that the
destination holds exactly the rows of one branch up to the recorded position.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from amp.errors import ReorgTooDeepError
from amp.streaming.ledger import IdRun, StreamState, Undo, stream_interval
from amp.streaming.machine import Abandon, Completed, Flush, Idle, Reconnect, Rewind, Rows, StreamMachine
from amp.streaming.reorg import ZERO_HASH
from amp.streaming.types import BatchMetadata, BlockRange

HASH = re.compile(r'0x[0-9a-f]{64}')

Row = tuple[str, int]  # the hash of its block, its number in the block


def hash_of(*parts: object) -> str:
    """A hash of the wire's form, the same for the same parts."""
    return '0x' + hashlib.sha256('/'.join(map(str, parts)).encode()).hexdigest()


@dataclass(frozen=True)
class Block:
    number: int
    hash: str
    parent: str
    rows: int

    def all_rows(self) -> list[Row]:
        return [(self.hash, i) for i in range(self.rows)]


class Chain:
    """A node's view: every block there ever was, and the tip that it holds for canonical."""

    def __init__(self, network: str, seed: int, first: int = 0) -> None:
        self.network = network
        self.first = first
        self.blocks: dict[str, Block] = {}
        self.tip: Block
        self._random = random.Random(f'{network}/{seed}')
        self._root = ZERO_HASH if first == 0 else hash_of(network, 'before', first)
        self._made = 0
        self._add(first, self._root)

    def mine(self, count: int) -> None:
        for _ in range(count):
            self._add(self.tip.number + 1, self.tip.hash)

    def fork(self, depth: int, count: int) -> None:
        """Replace the last `depth` blocks by `count` (>= 1) new ones; the first block can be replaced too."""
        depth = min(depth, self.tip.number - self.first + 1)
        parent = self.tip
        for _ in range(depth):
            if parent.number == self.first:
                self._add(self.first, self._root)
                self.mine(count - 1)
                return
            parent = self.blocks[parent.parent]
        self.tip = parent
        self.mine(count)

    def flip(self, choice: int, count: int) -> None:
        """Back to the tip of some branch that there once was, and on from it."""
        parents = {b.parent for b in self.blocks.values()}
        leaves = [b for b in self.blocks.values() if b.hash not in parents]
        self.tip = leaves[choice % len(leaves)]
        self.mine(count)

    def branch(self, end_hash: str) -> list[Block]:
        """The blocks from the first one up to this hash."""
        found = []
        at: str | None = end_hash
        while at in self.blocks:
            found.append(self.blocks[at])
            at = found[-1].parent
        return found[::-1]

    def _add(self, number: int, parent: str) -> None:
        self._made += 1
        block = Block(
            number, hash_of(self.network, number, parent, self._made), parent, self._random.choice([0, 1, 1, 3])
        )
        self.blocks[block.hash] = block
        self.tip = block


@dataclass(frozen=True)
class Message:
    metadata: BatchMetadata
    rows: tuple[Row, ...] = ()


class Server:
    """Follows a chain. `cap` is the most blocks of a microbatch; boundaries below it are chosen at random."""

    def __init__(self, chain: Chain, seed: int, cap: int = 8) -> None:
        self.chain = chain
        self.cap = cap
        self.ignore_next_header = False
        self.generation = 0
        self._random = random.Random(seed)
        self.canonical: list[Block] = chain.branch(chain.tip.hash)
        self.known = {b.hash for b in self.canonical}

    @property
    def tip(self) -> Block:
        return self.canonical[-1]

    def sync(self) -> None:
        """Look at the node: another branch is noticed only when it is higher."""
        if self.chain.tip.number > self.tip.number:
            self.canonical = self.chain.branch(self.chain.tip.hash)
            self.known |= {b.hash for b in self.canonical}

    def forget_orphans(self) -> None:
        self.known = {b.hash for b in self.canonical}

    def become_another(self, behind: int) -> None:
        """Another instance answers from now on: it never saw the orphans and may be behind. Connections are cut."""
        blocks = self.chain.branch(self.chain.tip.hash)
        self.canonical = blocks[: max(1, len(blocks) - behind)]
        self.forget_orphans()
        self.generation += 1

    def is_canonical(self, block_hash: str) -> bool:
        block = self.chain.blocks.get(block_hash)
        return block is not None and self.at(block.number) == block

    def at(self, number: int) -> Block | None:
        index = number - self.chain.first
        return self.canonical[index] if 0 <= index < len(self.canonical) else None

    def connect(self, header: str | None) -> Connection:
        if self.ignore_next_header:
            self.ignore_next_header = False
            header = None
        return Connection(self, read_cursor(header, self.chain.network))

    def next_range(self, cursor: tuple[int, str] | None) -> tuple[int, int] | None:
        """The blocks of the next microbatch; None is silence. This is the resume table of the protocol."""
        start = self._start(cursor)
        if start > self.tip.number:
            return None
        return start, min(self.tip.number, start + self._random.randint(1, self.cap) - 1)

    def _start(self, cursor: tuple[int, str] | None) -> int:
        if cursor is None:
            return self.chain.first
        number, at = cursor
        if self.is_canonical(at):
            return number + 1
        if at not in self.known:
            return number
        lowest = number
        while at in self.known and not self.is_canonical(at):
            lowest = self.chain.blocks[at].number
            at = self.chain.blocks[at].parent
        return lowest


def read_cursor(header: str | None, network: str) -> tuple[int, str] | None:
    """What the server makes of `amp-resume`; RuntimeError for a map that lacks its network."""
    try:
        cursor = {name: (at['number'], at['hash']) for name, at in json.loads(header or '').items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not all(isinstance(n, int) and isinstance(h, str) and HASH.fullmatch(h) for n, h in cursor.values()):
        return None
    if network not in cursor:
        names = ', '.join(sorted(cursor))
        raise RuntimeError(f"expected cursor for network '{network}', but cursor only contains networks: [{names}]")
    return cursor[network]


class Connection:
    """One streaming answer: messages, and None where the server is silent."""

    def __init__(self, server: Server, cursor: tuple[int, str] | None) -> None:
        self._server = server
        self._cursor = cursor
        self._generation = server.generation
        self._queue: deque[Message] = deque()

    @property
    def is_cut(self) -> bool:
        return self._generation != self._server.generation

    def get(self) -> Message | None:
        if not self._queue:
            span = self._server.next_range(self._cursor)
            if span is None:
                return None
            self._queue.extend(self._microbatch(*span))
        return self._queue.popleft()

    def _microbatch(self, start: int, end: int) -> Iterator[Message]:
        blocks = [b for n in range(start, end + 1) if (b := self._server.at(n)) is not None]
        span = BlockRange(self._server.chain.network, start, end, blocks[-1].hash, blocks[0].parent)
        self._cursor = (end, blocks[-1].hash)
        rows = [row for block in blocks for row in block.all_rows()]
        chance = self._server._random
        while rows or chance.random() < 0.3:
            count = chance.randint(0, len(rows))  # 0 is a keep-alive
            yield Message(BatchMetadata([span]), tuple(rows[:count]))
            rows = rows[count:]
        yield Message(BatchMetadata([span], ranges_complete=True))


class Crash(Exception):
    """The process died here."""


@dataclass
class Destination:
    """One table that several streams feed; what is in here survives a crash."""

    rows: dict[int, list[Row]] = field(default_factory=dict)
    states: dict[int, str | None] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)

    def open_stream(self, number: int) -> StreamState:
        self.epochs[number] = self.epochs.get(number, 0) + 1
        return StreamState.from_json(number, self.epochs[number], self.states.get(number))

    def read(self, number: int) -> StreamState:
        return StreamState.from_json(number, self.epochs[number], self.states.get(number))

    def commit(self, number: int, undo: Undo | None, rows: dict[int, list[Row]], state: StreamState) -> None:
        assert self.epochs[number] == state.epoch
        interval = stream_interval(number)
        for run in undo.runs if undo else ():
            assert interval.first <= run.first <= run.last <= interval.last
            for tx_id in [i for i in self.rows if run.first <= i <= run.last]:
                del self.rows[tx_id]
        for tx_id, new in rows.items():
            assert tx_id not in self.rows, 'an id was used twice'
            self.rows[tx_id] = list(new)
        self.states[number] = state.to_json()

    def of_stream(self, number: int) -> dict[int, list[Row]]:
        interval: IdRun = stream_interval(number)
        return {i: rows for i, rows in self.rows.items() if interval.first <= i <= interval.last}


class MiniEngine:
    """One stream from a server into a destination; `after_commit` is called when something is durable."""

    def __init__(
        self, number: int, server: Server, destination: Destination, retention: int, seed: int, group: float = 0.5
    ) -> None:
        self.number = number
        self.server = server
        self.destination = destination
        self.retention = retention
        self.after_commit: Callable[[], None] = lambda: None
        self.crash_in: int | None = None
        self.reconnects = 0
        self.undos: list[Undo] = []
        self.used_ids: set[int] = set()
        self._group = group
        self._random = random.Random(seed)
        self.open()

    def open(self) -> None:
        """A process starts: a new epoch, and nothing but what is committed."""
        self.machine = StreamMachine(self.destination.open_stream(self.number), retention=self.retention)
        self._highest = -1
        self.connect()

    def connect(self) -> None:
        self._undo: Undo | None = None
        self._rows: dict[int, list[Row]] = {}
        self.machine.connected()
        position = self.machine.committed.position
        self._connection = self.server.connect(position.to_json() if position else None)
        self._at: int | None = None

    def run(self, most: int = 10**9) -> bool:
        """Take up to `most` messages; True when the server fell silent. Raises Crash, ReorgTooDeepError."""
        bound = self.reconnects + len(self.machine.committed.entries) + 12
        for _ in range(most):
            if self._connection.is_cut:
                self.connect()
            message = self._connection.get()
            if message is None:
                if self.machine.is_dirty:
                    self._commit()
                return True
            self._take(message)
            assert self.reconnects <= bound, 'it asks again and again'
        return False

    def _take(self, message: Message) -> None:
        for _ in range(5):
            self._point()
            match self.machine.receive(message.metadata, len(message.rows)):
                case Rows(tx_id):
                    self._write(tx_id, message.rows)
                    return
                case Completed(tx_id):
                    self._write(tx_id, message.rows)
                    if self._random.random() < self._group:
                        self._commit()
                    return
                case Flush():
                    assert self.machine.is_dirty
                    self._commit()
                case Abandon():
                    self._undo, self._rows = None, {}
                case Rewind(undo, reconnect):
                    assert self._undo is None
                    assert not self._rows
                    self._undo = undo
                    if reconnect:
                        self._commit()
                        self._again()
                        return
                case Reconnect():
                    self._again()
                    return
                case Idle():
                    return
        raise AssertionError('it goes in circles over one batch')

    def _again(self) -> None:
        self.reconnects += 1
        self.connect()

    def _write(self, tx_id: int, rows: tuple[Row, ...]) -> None:
        if tx_id != self._at:
            assert tx_id not in self.used_ids, 'an id was used twice'
            assert tx_id > self._highest
            self.used_ids.add(tx_id)
            self._at = self._highest = tx_id
        assert stream_interval(self.number).first <= tx_id <= stream_interval(self.number).last
        self._rows.setdefault(tx_id, []).extend(rows)
        self._point()

    def _commit(self) -> None:
        assert self.machine.at_boundary
        self._point()
        self.destination.commit(self.number, self._undo, self._rows, self.machine.pending)
        if self._undo is not None:
            self.undos.append(self._undo)
        self._undo, self._rows = None, {}
        self.after_commit()
        self._point()
        self.machine.committed_unit()

    def _point(self) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                raise Crash


class Harness:
    """Streams with their own chains and servers into one destination, checked after every commit."""

    def __init__(self, seed: int, *, networks: tuple[str, ...] = ('mainnet',), first: int = 0, retention: int = 128,
                 cap: int = 8, group: float = 0.5) -> None:  # fmt: skip
        self.destination = Destination()
        self.engines: list[MiniEngine] = []
        self.final: dict[int, list[Row]] = {}
        self.highest = [-1] * len(networks)
        self.too_deep = [False] * len(networks)
        for i, network in enumerate(networks):
            server = Server(Chain(network, seed, first), seed + i, cap)
            engine = MiniEngine(i + 1, server, self.destination, retention, seed + i, group)
            engine.after_commit = self.check
            self.engines.append(engine)

    def run(self, index: int = 0, most: int = 10**9) -> bool:
        """Let a stream run, restarting it when it crashes; True when the server is silent (or the end is reached)."""
        engine = self.engines[index]
        if self.too_deep[index]:
            return True
        try:
            return engine.run(most)
        except Crash:
            engine.open()
            return False
        except ReorgTooDeepError:
            self.too_deep[index] = True
            self._check_that_it_is_too_deep(index)
            return True

    def settle(self, index: int = 0) -> None:
        """Let the chain grow past everything, run until silence, and compare with the canonical chain."""
        engine, server = self.engines[index], self.engines[index].server
        server.chain.mine(
            max(1, self.highest[index] + 2 - server.chain.tip.number, server.tip.number + 1 - server.chain.tip.number)
        )
        server.sync()
        while not self.run(index):
            pass
        self.check()
        if self.too_deep[index]:
            return
        rows = Counter(row for rows in self.destination.of_stream(engine.number).values() for row in rows)
        assert rows == Counter(row for block in server.canonical for row in block.all_rows())
        position = engine.machine.committed.position.ranges[0]
        assert (position.end, position.hash) == (server.tip.number, server.tip.hash)

    def check(self) -> None:
        """The promise: each stream's rows are exactly those of one branch up to its position."""
        for index, engine in enumerate(self.engines):
            self._check_stream(index, engine, self.destination.read(engine.number))
        for tx_id, rows in self.final.items():
            assert self.destination.rows.get(tx_id, []) == rows, 'final history changed'

    def _check_stream(self, index: int, engine: MiniEngine, state: StreamState) -> None:
        held = self.destination.of_stream(engine.number)
        chain = engine.server.chain
        branch: list[Block] = []
        if state.position:
            (position,) = state.position.ranges
            branch = chain.branch(position.hash or '')
            assert branch[-1].number == position.end
            assert state.history() == (
                BlockRange(chain.network, chain.first, position.end, position.hash, branch[0].parent),
            )
            self.highest[index] = max(self.highest[index], position.end)
        expected = Counter(row for block in branch for row in block.all_rows())
        assert Counter(row for rows in held.values() for row in rows) == expected
        covered = 0
        for entry in state.entries:
            for tx_id, rows in held.items():
                if entry.first_id <= tx_id <= entry.last_id:
                    covered += len(rows)
                    assert all(entry.ranges[0].contains_block(chain.blocks[h].number) for h, _ in rows)
        final = {i: rows for i, rows in held.items() if not state.entries or i < state.window_first_id()}
        assert covered + sum(map(len, final.values())) == expected.total()
        if state.entries or state.segments:
            last_final = max((s.end for s in state.segments), default=-1)
            assert all(chain.blocks[h].number <= last_final for rows in final.values() for h, _ in rows)
        self.final.update({i: list(rows) for i, rows in final.items()})

    def _check_that_it_is_too_deep(self, index: int) -> None:
        engine = self.engines[index]
        state = self.destination.read(engine.number)
        assert state.segments, 'nothing was final'
        end = state.segments[-1].hash or ''
        assert not engine.server.is_canonical(end), 'the final history is still on the chain'
        fork = next(b.number for b in engine.server.chain.branch(end) if not engine.server.is_canonical(b.hash))
        assert self.highest[index] - fork > engine.retention, 'it gave up inside the undo window'
