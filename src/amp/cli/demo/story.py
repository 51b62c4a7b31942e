"""What happens in the demo, in order: history, live blocks, a reorg, the proof."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from amp.cli.demo.chains import COLUMNS, open_chain
from amp.cli.demo.follower import Follower
from amp.cli.demo.proof import Proof, compare, prepare

if TYPE_CHECKING:
    from amp.cli.demo.chains import DemoChain
    from amp.cli.demo.screen import Screen

__all__ = ['SQL', 'run']

SQL = f'SELECT {", ".join(c if c == n else f"{c} AS {n}" for c, n in COLUMNS.items())} FROM eth_rpc.logs'

REORG_DEPTH = 4
_LIVE_SECONDS = 10.0  # over which the live blocks are spread
_SLOWEST = 0.3  # seconds between two live blocks, at most


def run(screen: Screen, path: Path, blocks: int, *, simulate: bool) -> Proof:
    """The whole demo; the comparison at its end. `blocks` are those mined in total, the replaced ones included."""
    prepare(path)
    with open_chain(screen.say, simulate=simulate) as chain:
        history = blocks // 2
        chain.mine(history)
        screen.say(f'Amp serves it at {chain.server.url}, with {history} blocks of history')
        with Follower(chain.server.url, SQL, path, screen.event) as follower:
            screen.say(f'streaming its transfers into {path}')
            _wait(screen, chain, follower)
            screen.say('caught up; now blocks come live')
            live = blocks - history
            before = max(REORG_DEPTH, live // 2)
            pace = min(_SLOWEST, _LIVE_SECONDS / live)
            _live(screen, chain, follower, before, pace)
            _wait(screen, chain, follower)  # the blocks that will go are committed: their rows must be undone
            screen.say(f'the chain reorganises: the last {REORG_DEPTH} blocks are replaced', style='yellow')
            chain.reorg(REORG_DEPTH)
            _live(screen, chain, follower, max(1, live - before - 1), pace)
            _wait(screen, chain, follower)
        truth = chain.truth()
        proof = compare(path, truth)
        screen.witness = chain.witness
        return proof


def _live(screen: Screen, chain: DemoChain, follower: Follower, blocks: int, pace: float) -> None:
    for _ in range(blocks):
        started = time.monotonic()
        chain.mine(1)
        screen.head = chain.head()[0]
        follower.poll(max(0.01, pace - (time.monotonic() - started)))


def _wait(screen: Screen, chain: DemoChain, follower: Follower) -> None:
    number, block_hash = chain.head()
    screen.head = number
    follower.wait_for(number, block_hash)
