"""Where a raw dataset's blocks come from: a node, files, or a simulator. Each gives a chain, and what drives it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amp.devserver import schemas
from amp.devserver.chain import Chain
from amp.devserver.node import EvmNode
from amp.devserver.parquet import load_dataset
from amp.devserver.rpc import EvmFollower, chain_id_of, network_of
from amp.devserver.simulator import Simulator
from amp.devserver.store import ParquetStore
from amp.errors import ConfigError, ConnectError, SourceError

__all__ = ['RpcOptions', 'Source', 'node_source', 'parquet_source', 'simulated_source']


@dataclass(frozen=True, slots=True)
class RpcOptions:
    """How a node is read. `store` is the folder of its settled blocks; None keeps all in memory.

    `finality` is how many blocks below the head are final; None asks the node. `timeout` is in seconds, and so is
    `poll_seconds`, the time between two looks at the head.
    """

    start_block: int = 0
    poll_seconds: float = 0.25
    store: Path | None = None
    workers: int = 4
    segment_blocks: int = 500
    calls_per_second: float | None = None
    finality: int | None = None
    timeout: float = 30


@dataclass(eq=False)
class Source:
    """A raw dataset: its chain, and the simulator or the follower of a node that extends it, if one does."""

    chain: Chain
    simulator: Simulator | None = None
    follower: EvmFollower | None = None
    node: EvmNode | None = None
    store: ParquetStore | None = None
    start_block: int = 0
    started: bool = False
    _running: bool = False

    def start(self) -> None:
        """Follow the node, when there is one."""
        self.started = True
        if self.follower is not None and not self._running:
            self._running = True
            self.follower.start()

    def stop(self) -> None:
        """Stop following."""
        if self.follower is not None and self._running:
            self._running = False
            self.follower.stop()

    def close(self) -> None:
        """Stop, and give the store back."""
        self.stop()
        if self.store is not None:
            self.store.close()


def simulated_source(
    network: str, *, seed: int = 1, blocks: int = 0, logs_per_block: int | tuple[int, int] = 10, first_block: int = 0
) -> Source:
    """A made-up chain of `blocks` blocks; the same seed gives the same rows."""
    chain = Chain(network, schemas.EVM_RPC)
    simulator = Simulator(chain, seed=seed, logs_per_block=logs_per_block, first_block=first_block)
    simulator.mine(blocks)
    return Source(chain, simulator=simulator, start_block=first_block)


def parquet_source(folder: Path, network: str | None = None) -> Source:
    """One dataset of raw tables in files. Raises ConfigError and SourceError."""
    return Source(load_dataset(folder, network))


def node_source(url: str, network: str | None = None, options: RpcOptions | None = None) -> Source:
    """The blocks of an EVM node.

    Raises ConnectError when it does not answer and nothing is stored that could be served meanwhile, ConfigError when the
    store is of another chain.
    """
    how = options or RpcOptions()
    node = EvmNode(url, timeout=how.timeout, calls_per_second=how.calls_per_second)
    chain_id: int | None = None
    unanswered: ConnectError | None = None
    if how.store is not None or network is None:
        try:
            chain_id = chain_id_of(node)
        except ConnectError as error:
            if how.store is None:
                raise
            unanswered = error
    if how.store is None:
        chain = Chain(network or network_of(chain_id or 0), schemas.EVM_RPC)
        follower = _follower(chain, node, None, how)
        return Source(chain, follower=follower, node=node, start_block=how.start_block)
    name = network or (network_of(chain_id) if chain_id is not None else None)
    identity = {'network': name, 'chain_id': chain_id, 'start_block': how.start_block}
    store = ParquetStore(how.store, schemas.EVM_RPC, identity)
    try:
        if unanswered is not None and (store.identity['network'] is None or store.empty):
            raise unanswered
        chain = Chain(store.identity['network'], schemas.EVM_RPC)
        follower = _follower(chain, node, store, how)
        if unanswered is None:
            _greet(follower)
    except BaseException:  # whatever it is, the folder is not kept locked
        store.close()
        raise
    return Source(chain, follower=follower, node=node, store=store, start_block=how.start_block)


def _follower(chain: Chain, node: EvmNode, store: ParquetStore | None, how: RpcOptions) -> EvmFollower:
    return EvmFollower(
        chain,
        node,
        start_block=how.start_block,
        poll_seconds=how.poll_seconds,
        store=store,
        workers=how.workers,
        segment_blocks=how.segment_blocks,
        finality=how.finality,
    )


def _greet(follower: EvmFollower) -> None:
    """A wrong store is said at once; a node that is busy just now is the follower's business."""
    try:
        follower.greet()
    except ConnectError:
        return
    except SourceError as error:
        raise ConfigError(error.message, hint=error.hint) from error
