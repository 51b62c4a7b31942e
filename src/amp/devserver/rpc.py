"""Blocks of an EVM node: a follower that keeps a chain at the node's head, through reorgs and outages.

Final blocks are fetched in parallel and, where there is a store, kept in Parquet files: a follower that starts again
goes on where the files end. Near the head, like Amp, it only looks at a branch once that is higher than what is stored,
and then follows parent hashes back to a block that it knows.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from amp.devserver.chain import Block, Chain, Segment
from amp.devserver.fetch import BlockFetcher, MovedError
from amp.devserver.node import EvmNode, NodeError
from amp.devserver.segments import StoredSegment
from amp.devserver.store import ParquetStore
from amp.errors import ConfigError, SourceError

__all__ = ['EvmFollower', 'chain_id_of', 'network_of']

_log = logging.getLogger(__name__)

T = TypeVar('T')

_BLOCKS_PER_STEP = 50
_LONGEST_PAUSE = 5.0
_TRIES = 4
_RETRY_SECONDS = 0.05
_NETWORKS = {1: 'mainnet', 10: 'optimism', 100: 'gnosis', 137: 'matic', 8453: 'base', 42161: 'arbitrum-one'}
_ANVIL = 31337
_FINALITY = 64


class _StoppedError(Exception):
    """The follower is to stop."""


def network_of(chain_id: int) -> str:
    """The usual name of the network of that chain id."""
    return 'anvil' if chain_id == _ANVIL else _NETWORKS.get(chain_id, f'chain-{chain_id}')


class EvmFollower:
    """Keeps `chain` at the head of `node`, in a thread between `start` and `stop`.

    Final are the blocks up to the node's `finalized` one or, with `finality`, those so many blocks below the head. They
    are fetched by `workers` threads in runs of `segment_blocks`, and put into `store`. `error` is what kept the last
    attempt from succeeding, or None.
    """

    def __init__(
        self,
        chain: Chain,
        node: EvmNode,
        *,
        start_block: int = 0,
        poll_seconds: float = 0.25,
        store: ParquetStore | None = None,
        workers: int = 4,
        segment_blocks: int = 500,
        finality: int | None = None,
    ) -> None:
        self._chain = chain
        self._node = node
        self._start_block = start_block
        self._poll_seconds = poll_seconds
        self._store = store
        self._workers = workers
        self._segment_blocks = segment_blocks
        self._finality = finality
        self._fetcher = BlockFetcher(node, self._go_on)
        self._stopping = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None
        self._greeted = False
        self._chain_id: int | None = store.identity.get('chain_id') if store is not None else None
        self._settled = self._final = start_block - 1
        self.error: SourceError | None = None
        self._take_runs()

    def start(self) -> None:
        """Follow in the background; an outage is logged and waited out."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._follow, name='amp-devserver-follower', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stopping.set()
        self._node.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        # Contracts may still be called.
        self._node.reopen()

    def sync(self) -> None:
        """Bring the chain to the node's head now. Raises SourceError when the node does not let us."""
        with self._one_at_a_time:
            try:
                self.greet()
                while self._patiently(self._step):
                    pass
                self._patiently(self._settle)
                while self._store is not None and self._store.join(self._chain.network, self._settled, self._go_on):
                    pass
            except _StoppedError:
                return
            except SourceError as error:
                self._greeted = False
                if not self._stopping.is_set():
                    self.error = error
                raise
            self.error = None

    def greet(self) -> None:
        """Make sure, once a connection, that the node has the chain that is stored.

        Raises SourceError: ConnectError when the node does not answer.
        """
        if self._greeted:
            return
        said = chain_id_of(self._node)
        if self._chain_id is not None and said != self._chain_id:
            raise SourceError(
                f'the node {self._node.shown} is on chain id {said}, and what is stored is of {self._chain_id}',
                hint='give the URL of a node of that chain, or another store',
            )
        block = self._chain.snapshot().canonical(self._settled)
        if self._store is not None and block is not None:
            self._same_chain(block)
        self._chain_id = said
        self._greeted = True

    def _same_chain(self, stored: Block) -> None:
        said = self._header(hex(stored.number))
        if said is not None and said.get('hash') != stored.hash:
            raise SourceError(
                f'the node {self._node.shown} has another block {stored.number} than the store: '
                f'{said.get("hash")}, not {stored.hash}',
                hint='is it another chain of the same id, as a restarted anvil is? Then choose another store',
            )

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise _StoppedError

    def _follow(self) -> None:
        pause = self._poll_seconds
        while not self._stopping.is_set():
            try:
                self.sync()
                pause = self._poll_seconds
            except SourceError as error:
                if not self._stopping.is_set():
                    _log.warning('%s; trying again in %.1f s', error, pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            self._stopping.wait(pause)

    def _step(self) -> bool:
        """Store some blocks; False when there are none. Raises MovedError when the node's chain changes meanwhile."""
        tip = _number(self._node, 'eth_blockNumber')
        head = self._chain.head
        first = head.number + 1 if head is not None else self._start_block
        self._final = self._final_below(tip)
        if tip < first:
            return False
        if self._final - first >= _BLOCKS_PER_STEP and (head is None or self._is_canonical(head)):
            self._settle(whole=False)
            self._backfill(first, self._final)
        else:
            self._join(self._fetcher.by_number(range(first, min(tip, first + _BLOCKS_PER_STEP - 1) + 1)))
        return True

    def _final_below(self, tip: int) -> int:
        if self._finality is not None:
            return tip - self._finality
        try:
            block = self._header('finalized')
        except NodeError as error:
            # A node that does not know the word refuses it.
            if 'method' not in error.context:
                raise
            block = None
        if block is None:
            return tip - _FINALITY
        return min(_integer(self._node, block.get('number'), 'eth_getBlockByNumber(finalized)'), tip)

    def _header(self, number: str) -> dict[str, Any] | None:
        """What the node says of a block, without its transactions."""
        said = self._node.call('eth_getBlockByNumber', number, False)
        if said is not None and not isinstance(said, dict):
            raise NodeError(f'the node {self._node.shown} answers eth_getBlockByNumber({number}) with {said!r}')
        return said

    def _is_canonical(self, block: Block) -> bool:
        said = self._header(hex(block.number))
        return said is not None and said.get('hash') == block.hash

    def _backfill(self, first: int, last: int) -> None:
        """Fetch final blocks in parallel and take them in order."""
        ahead: deque[Future[Segment | StoredSegment]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix='amp-devserver-backfill') as pool:
            try:
                for part in self._parts(first, last):
                    ahead.append(pool.submit(self._load, part))
                    if len(ahead) >= 2 * self._workers:
                        self._take(ahead.popleft().result())
                while ahead:
                    self._take(ahead.popleft().result())
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _parts(self, first: int, last: int) -> Iterator[range]:
        """Runs that are stored already as they are, and what lies between them in runs of the usual length."""
        while first <= last:
            end = min(first + self._segment_blocks - 1, last)
            if self._store is not None:
                run = self._store.run_from(first)
                end = run.last if run is not None else self._store.gap_after(first, end)
            yield range(first, end + 1)
            first = end + 1

    def _load(self, numbers: range) -> Segment | StoredSegment:
        run = self._store.run_from(numbers[0]) if self._store is not None else None
        if run is not None:
            return run
        segment = self._patiently(lambda: self._fetcher.by_number(numbers))
        short = len(numbers) < self._segment_blocks
        if self._store is None or (short and self._store.run_from(numbers[-1] + 1) is None):
            return segment
        return self._store.put(self._chain.network, segment)

    def _take(self, segment: Segment | StoredSegment) -> None:
        if isinstance(segment, Segment):
            self._join(segment)
            return
        try:
            self._chain.settle(segment)
        except ValueError as error:
            raise MovedError(str(error)) from error
        if segment.first == self._settled + 1:
            self._settled = segment.last

    def _join(self, segment: Segment) -> None:
        """Put the segment on top of the chain, or of the branch that it is of."""
        older = self._ancestors(segment.blocks[0])
        try:
            for branch in older:
                self._chain.add(branch)
            self._chain.extend(segment)
        except ValueError as error:
            raise MovedError(str(error)) from error

    def _ancestors(self, block: Block) -> list[Segment]:
        """The blocks between `block` and the first ancestor that is stored, oldest first."""
        view = self._chain.snapshot()
        segments: list[Segment] = []
        while view.first is not None and block.number > self._start_block and view.find(block.parent_hash) is None:
            if self._store is not None and block.number <= self._settled + 1:
                raise SourceError(
                    f'the node {self._node.shown} has replaced block {block.number - 1}, which was final',
                    hint='was it reset? Then choose another store',
                )
            segments.append(self._fetcher.by_hash(block.parent_hash))
            block = segments[-1].blocks[0]
        return segments[::-1]

    def _settle(self, *, whole: bool = True) -> None:
        """Put final blocks into the store, as `whole` runs or to the last."""
        view = self._chain.snapshot()
        while self._store is not None and view.last is not None:
            first = self._settled + 1
            last = min(self._settled + self._segment_blocks, self._final, view.last)
            if last < first or (whole and last < self._settled + self._segment_blocks):
                return
            self._take(self._store.put(self._chain.network, self._canonical(first, last)))

    def _canonical(self, first: int, last: int) -> Segment:
        view = self._chain.snapshot()
        blocks = [block for n in range(first, last + 1) if (block := view.canonical(n)) is not None]
        rows = {
            name: pa.Table.from_batches(view.rows(name, first, last), schema=schema).combine_chunks().to_batches()
            for name, schema in self._chain.schemas.items()
        }
        empty = {name: pa.RecordBatch.from_pylist([], schema=schema) for name, schema in self._chain.schemas.items()}
        return Segment(blocks, {name: found[0] if found else empty[name] for name, found in rows.items()})

    def _take_runs(self) -> None:
        """Serve what is stored, up to the first gap."""
        while self._store is not None and (run := self._store.run_from(self._settled + 1)) is not None:
            try:
                self._chain.settle(run)
            except ValueError as error:
                raise ConfigError(f'the files of {self._store.folder} do not fit together: {error}') from error
            self._settled = run.last

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """What the attempt gives, once the node's answers fit together."""
        reason = ''
        for number in range(_TRIES):
            self._go_on()
            try:
                return attempt()
            except MovedError as moved:
                reason = str(moved)
            self._stopping.wait(_RETRY_SECONDS * 4**number)
        raise SourceError(reason, hint='has the node pruned it? Then a later start_block, or an archive node')


def chain_id_of(node: EvmNode) -> int:
    """The chain id that the node says. Raises SourceError: ConnectError when it does not answer."""
    return _number(node, 'eth_chainId')


def _number(node: EvmNode, method: str) -> int:
    return _integer(node, node.call(method), method)


def _integer(node: EvmNode, said: Any, asked: str) -> int:
    """A quantity as JSON-RPC writes it. Raises NodeError."""
    try:
        return int(said, 16)
    except (TypeError, ValueError) as error:
        raise NodeError(f'the node {node.shown} answers {asked} with {said!r}') from error
