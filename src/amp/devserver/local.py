"""LocalAmp: a server, its chain, and the handles by which tests, the CLI and the demo drive them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

import pyarrow as pa

from amp.devserver import schemas
from amp.devserver.chain import Block, Chain
from amp.devserver.engine import Engine
from amp.devserver.faults import Faults
from amp.devserver.friendly import friendly as explain
from amp.devserver.node import EvmNode
from amp.devserver.parquet import load_directory
from amp.devserver.rpc import EvmFollower, network_of
from amp.devserver.service import AmpFlightServer
from amp.devserver.simulator import Simulator
from amp.errors import ConfigError, QueryError, SourceError

__all__ = ['LocalAmp']


class LocalAmp:
    """A local Amp over simulated, stored or real blocks. Make one with `simulate`, `from_parquet` or `from_rpc`.

    It listens on the loopback interface unless told otherwise, and is a development server: a bearer token is asked for
    only when `token` is given, so that clients can be tested. Its errors are Amp's, unless `friendly` asks for better ones.
    As a context manager it starts and stops itself.
    """

    def __init__(
        self,
        chains: dict[str, Chain],
        *,
        simulator: Simulator | None = None,
        follower: EvmFollower | None = None,
        microbatch_max_blocks: int = 1000,
        host: str = '127.0.0.1',
        port: int = 0,
        token: str | None = None,
        friendly: bool = False,
        nodes: dict[str, EvmNode] | None = None,
    ) -> None:
        self.faults = Faults()
        self._chains = chains
        self._simulator = simulator
        self._follower = follower
        self._max_blocks = microbatch_max_blocks
        self._host = host
        self._port = port
        self._token = token
        self._friendly = friendly
        self._nodes = nodes or {}
        self._server: AmpFlightServer | None = None

    @classmethod
    def simulate(
        cls,
        *,
        seed: int = 1,
        blocks: int = 0,
        network: str = 'simnet',
        dataset: str = 'eth_rpc',
        logs_per_block: int | tuple[int, int] = 10,
        first_block: int = 0,
        microbatch_max_blocks: int = 1000,
        host: str = '127.0.0.1',
        port: int = 0,
        token: str | None = None,
        friendly: bool = False,
    ) -> LocalAmp:
        """A made-up chain of `blocks` blocks; the same seed gives the same rows."""
        chain = Chain(network, schemas.EVM_RPC)
        simulator = Simulator(chain, seed=seed, logs_per_block=logs_per_block, first_block=first_block)
        simulator.mine(blocks)
        return cls(
            {dataset: chain},
            simulator=simulator,
            microbatch_max_blocks=microbatch_max_blocks,
            host=host,
            port=port,
            token=token,
            friendly=friendly,
        )

    @classmethod
    def from_parquet(
        cls,
        directory: str | Path,
        *,
        network: str | None = None,
        microbatch_max_blocks: int = 1000,
        host: str = '127.0.0.1',
        port: int = 0,
        token: str | None = None,
        friendly: bool = False,
    ) -> LocalAmp:
        """The datasets of a directory of raw tables: `<directory>/<dataset>/<table>.parquet`. Raises ConfigError."""
        chains = load_directory(Path(directory), network=network)
        return cls(
            chains, microbatch_max_blocks=microbatch_max_blocks, host=host, port=port, token=token, friendly=friendly
        )

    @classmethod
    def from_rpc(
        cls,
        url: str,
        *,
        network: str | None = None,
        dataset: str = 'eth_rpc',
        start_block: int = 0,
        poll_seconds: float = 0.25,
        microbatch_max_blocks: int = 1000,
        host: str = '127.0.0.1',
        port: int = 0,
        token: str | None = None,
        friendly: bool = False,
    ) -> LocalAmp:
        """The blocks of an EVM node, followed from `start_block` for as long as the server runs.

        Without `network` the node is asked for its chain id, and ConnectError is raised when it does not answer. A node
        that falls silent later is waited for; `source_error` then says why.
        """
        node = EvmNode(url)
        chain = Chain(network or network_of(node), schemas.EVM_RPC)
        follower = EvmFollower(chain, node, start_block=start_block, poll_seconds=poll_seconds)
        return cls(
            {dataset: chain},
            follower=follower,
            nodes={dataset: node},
            microbatch_max_blocks=microbatch_max_blocks,
            host=host,
            port=port,
            token=token,
            friendly=friendly,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen. A port of 0 becomes a free one, which a later start takes again."""
        if self._server is None:
            self._server = AmpFlightServer(
                f'grpc://{self._host}:{self._port}',
                Engine(self._chains, self._nodes),
                self.faults,
                microbatch_max_blocks=self._max_blocks,
                token=self._token,
                explain=self._explained if self._friendly else None,
            )
            self._port = self._server.port
            if self._follower is not None:
                self._follower.start()
        return self

    def stop(self) -> None:
        """End open streams and stop listening; the chain is kept, and `start` serves it again."""
        if self._server is not None:
            if self._follower is not None:
                self._follower.stop()
            self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        """`grpc://host:port`. Raises RuntimeError before the first start."""
        if not self._port:
            raise RuntimeError('the local Amp has no port before it is started')
        return f'grpc://{self._host}:{self._port}'

    @property
    def network(self) -> str:
        """The network of the (first) dataset."""
        return self._chain().network

    @property
    def datasets(self) -> dict[str, tuple[str, ...]]:
        """The tables of each dataset."""
        return {name: tuple(chain.schemas) for name, chain in self._chains.items()}

    @property
    def head(self) -> tuple[int, str] | None:
        """Number and hash of the latest block that queries see; None before the first."""
        block = self._chain().head
        return (block.number, block.hash) if block is not None else None

    def block_hash(self, number: int) -> str:
        """The hash of a canonical block. Raises KeyError when there is none of that number."""
        return self._block(number).hash

    def canonical(self, table: str) -> pa.Table:
        """All canonical rows of `table` (or `dataset.table`) now: what a complete load must hold."""
        dataset, _, name = table.rpartition('.')
        chain = self._chain(dataset or None)
        view = chain.snapshot()
        rows = view.rows(name, view.first, view.last) if view.first is not None and view.last is not None else []
        return pa.Table.from_batches(rows, schema=chain.schemas[name])

    def mine(self, blocks: int = 1) -> None:
        """Add blocks; queries see them on return."""
        self._node().mine(blocks)

    def reorg(self, depth: int, extend: int = 1) -> None:
        """Replace the last `depth` blocks and grow by `extend`; with 0 nothing is seen before the chain is higher."""
        self._node().reorg(depth, extend)

    def switch_back(self, extend: int = 1) -> None:
        """Return to the branch that was left last, grown `extend` blocks above the present head."""
        self._node().switch_back(extend)

    def sync(self) -> None:
        """Fetch what the node has now; queries see it on return. Raises SourceError when the node does not answer."""
        if self._follower is not None:
            self._follower.sync()

    def wait_for_block(self, number: int, *, timeout: float = 30) -> None:
        """Wait until queries see this block. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        chain = self._chain()
        while True:
            view = chain.snapshot()
            if view.last is not None and view.last >= number:
                return
            if not chain.wait(view.version, max(deadline - time.monotonic(), 0)):
                raise TimeoutError(f'block {number} has not come within {timeout} s; the latest is {view.last}')

    @property
    def open_streams(self) -> int:
        """Streams that are being served now."""
        return self._server.open_streams if self._server is not None else 0

    @property
    def source_error(self) -> SourceError | None:
        """Why the last attempt to read the node failed; None when it did not."""
        return self._follower.error if self._follower is not None else None

    def forget_orphans(self) -> None:
        """Drop the blocks that are not canonical: a cursor that names one is then unknown to the server."""
        for chain in self._chains.values():
            chain.forget_orphans()

    def _explained(self, error: QueryError) -> QueryError:
        return explain(error, self.datasets)

    def _node(self) -> Simulator:
        if self._simulator is None:
            raise ConfigError('only a simulated chain can be mined by hand', hint='use LocalAmp.simulate()')
        return self._simulator

    def _chain(self, dataset: str | None = None) -> Chain:
        if dataset is None:
            return next(iter(self._chains.values()))
        return self._chains[dataset]

    def _block(self, number: int) -> Block:
        block = self._chain().snapshot().canonical(number)
        if block is None:
            raise KeyError(f'there is no block {number}')
        return block
