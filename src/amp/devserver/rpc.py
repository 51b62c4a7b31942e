"""Blocks of an EVM node: a follower that keeps a chain at the node's head, through reorgs and outages.

Like Amp it only looks at a branch once that is higher than what is stored, and then follows parent hashes back to a
block that it knows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from amp.devserver.chain import Block, Chain, Segment
from amp.devserver.node import EvmNode, NodeError
from amp.devserver.rows import segment_of
from amp.errors import SourceError

__all__ = ['EvmFollower', 'network_of']

_log = logging.getLogger(__name__)

_BLOCKS_PER_REQUEST = 50
_LONGEST_PAUSE = 5.0
_NETWORKS = {1: 'mainnet', 10: 'optimism', 100: 'gnosis', 137: 'matic', 8453: 'base', 42161: 'arbitrum-one'}
_ANVIL = 31337


class _MovedError(Exception):
    """The node's chain changed between two requests; asking again will do."""


def network_of(node: EvmNode) -> str:
    """The usual name of the node's network. Raises ConnectError when it does not answer."""
    number = int(node.call('eth_chainId'), 16)
    return 'anvil' if number == _ANVIL else _NETWORKS.get(number, f'chain-{number}')


class EvmFollower:
    """Keeps `chain` at the head of `node`, in a thread between `start` and `stop`.

    `error` is what kept the last attempt from succeeding, or None.
    """

    def __init__(self, chain: Chain, node: EvmNode, *, start_block: int = 0, poll_seconds: float = 0.25) -> None:
        self._chain = chain
        self._node = node
        self._start_block = start_block
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None
        self.error: SourceError | None = None

    def start(self) -> None:
        """Follow in the background; an outage is logged and waited out."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._follow, name='amp-devserver-follower', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def sync(self) -> None:
        """Bring the chain to the node's head now. Raises SourceError when the node does not let us."""
        with self._one_at_a_time:
            try:
                while not self._stopping.is_set() and self._step():
                    pass
            except SourceError as error:
                self.error = error
                raise
            self.error = None

    def _follow(self) -> None:
        pause = self._poll_seconds
        while not self._stopping.is_set():
            try:
                self.sync()
                pause = self._poll_seconds
            except SourceError as error:
                _log.warning('%s; trying again in %.1f s', error, pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            self._stopping.wait(pause)

    def _step(self) -> bool:
        """Store some blocks; False when there are none."""
        stored = self._chain.head
        tip = int(self._node.call('eth_blockNumber'), 16)
        first = stored.number + 1 if stored is not None else self._start_block
        if tip < first:
            return False
        try:
            segment = self._fetch(range(first, min(tip, first + _BLOCKS_PER_REQUEST - 1) + 1))
            older = self._ancestors(segment.blocks[0])
        except _MovedError:
            return True
        for branch in older:
            self._chain.add(branch)
        self._chain.extend(segment)
        return True

    def _ancestors(self, block: Block) -> list[Segment]:
        """The blocks between `block` and the first ancestor that is stored, oldest first."""
        view = self._chain.snapshot()
        segments: list[Segment] = []
        while view.first is not None and block.number > self._start_block and view.find(block.parent_hash) is None:
            raw = self._node.call('eth_getBlockByHash', block.parent_hash, True)
            segment = self._segment([raw])
            segments.append(segment)
            block = segment.blocks[0]
        return segments[::-1]

    def _fetch(self, numbers: range) -> Segment:
        return self._segment(self._node.batch([('eth_getBlockByNumber', (hex(n), True)) for n in numbers]))

    def _segment(self, raw: Sequence[dict[str, Any] | None]) -> Segment:
        found = [block for block in raw if block is not None]
        if len(found) != len(raw):
            raise _MovedError
        receipts = self._receipts(found)
        try:
            return segment_of(found, receipts)
        except ValueError as error:
            raise _MovedError from error

    def _receipts(self, blocks: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The receipts of each block, checked to be of that very block."""
        full = [block for block in blocks if block['transactions']]
        try:
            answers = self._node.batch([('eth_getBlockReceipts', (block['number'],)) for block in full])
        except NodeError:
            answers = [
                self._node.batch([('eth_getTransactionReceipt', (t['hash'],)) for t in block['transactions']])
                for block in full
            ]
        by_hash = {}
        for block, receipts in zip(full, answers, strict=True):
            complete = receipts is not None and len(receipts) == len(block['transactions'])
            if not complete or any(r is None or r['blockHash'] != block['hash'] for r in receipts):
                raise _MovedError
            by_hash[block['hash']] = receipts
        return [by_hash.get(block['hash'], []) for block in blocks]
