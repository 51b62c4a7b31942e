"""The chain of the demo: a real EVM (anvil) with an ERC-20 when there is one, else the simulator; one face for both."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyarrow as pa

from amp.cli.local import import_devserver
from amp.devserver.anvil import Anvil, find_anvil, install_anvil
from amp.devserver.local import LocalAmp
from amp.errors import ConfigError, ConnectError

__all__ = ['COLUMNS', 'DemoChain', 'open_chain', 'simulated_truth']

Tell = Callable[[str], None]

TRANSFERS_PER_BLOCK = 25
# What the demo loads, and the name that each column gets.
COLUMNS = {
    'block_num': 'block_num',
    'timestamp': 'timestamp',
    'block_hash': 'block_hash',
    'tx_hash': 'tx_hash',
    'log_index': 'log_index',
    'address': 'token',
    'topic1': 'sender',
    'topic2': 'recipient',
    'data': 'amount',
}
_TRANSFER = '0xa9059cbb'
_GAS = hex(100_000)


class DemoChain(Protocol):
    """A chain that can be mined and reorganised, and the local Amp that serves it."""

    server: LocalAmp
    witness: str

    def mine(self, blocks: int) -> None:
        """Add blocks with transfers in them."""

    def reorg(self, depth: int) -> None:
        """Replace the last `depth` blocks, and go on by one."""

    def head(self) -> tuple[int, str]:
        """Number and hash of the latest block."""

    def truth(self) -> pa.Table:
        """Every log of the canonical chain, from the chain itself; without `timestamp`, which logs of a node lack."""


@contextlib.contextmanager
def open_chain(tell: Tell, *, simulate: bool) -> Iterator[DemoChain]:
    """The chain, served. Says through `tell` which one it is, and why when it is not the real one."""
    import_devserver()
    with contextlib.ExitStack() as stack:
        chain: DemoChain | None = None
        if not simulate:
            chain = _real(stack, tell)
        if chain is None:
            chain = _Simulated(tell)
        stack.enter_context(chain.server)
        yield chain


def _real(stack: contextlib.ExitStack, tell: Tell) -> DemoChain | None:
    try:
        if find_anvil() is None:
            tell('fetching anvil and an ERC-20 contract through npm; this happens once')
        anvil = stack.enter_context(Anvil(install_anvil()))
        return _Real(anvil, tell)
    except (ConfigError, ConnectError, OSError) as error:
        reason = error.message if isinstance(error, (ConfigError, ConnectError)) else str(error)
        tell(f'no real EVM here ({" ".join(reason.split())[:160]}): the simulator takes its place')
        return None


class _Real:
    witness = 'eth_getLogs of the node'

    def __init__(self, anvil: Anvil, tell: Tell) -> None:
        self._anvil = anvil
        self._chance = random.Random(1)  # noqa: S311 - amounts of a demo
        tell(f'anvil, a real EVM, runs at {anvil.url}')
        self._token = anvil.deploy_erc20('Demo', 'DEMO')
        tell(f'an ERC-20 is deployed at {self._token}')
        self.server = LocalAmp.from_rpc(anvil.url, network='anvil', poll_seconds=0.05)

    def mine(self, blocks: int) -> None:
        for _ in range(blocks):
            owner, *others = self._anvil.accounts
            transfers = [
                {
                    'from': owner,
                    'to': self._token,
                    'gas': _GAS,
                    'data': f'{_TRANSFER}{others[i % len(others)][2:]:0>64}{self._chance.randrange(10**18):064x}',
                }
                for i in range(TRANSFERS_PER_BLOCK)
            ]
            self._anvil.node.batch([('eth_sendTransaction', [transfer]) for transfer in transfers])
            self._anvil.mine()

    def reorg(self, depth: int) -> None:
        self._anvil.reorg(depth)
        self.mine(1)

    def head(self) -> tuple[int, str]:
        block = self._anvil.call('eth_getBlockByNumber', 'latest', False)
        return int(block['number'], 16), str(block['hash'])

    def truth(self) -> pa.Table:
        logs = self._anvil.call('eth_getLogs', {'fromBlock': '0x0', 'toBlock': 'latest'})
        return pa.table(
            {
                'block_num': pa.array([int(log['blockNumber'], 16) for log in logs], pa.uint64()),
                'block_hash': _bytes(log['blockHash'] for log in logs),
                'tx_hash': _bytes(log['transactionHash'] for log in logs),
                'log_index': pa.array([int(log['logIndex'], 16) for log in logs], pa.uint32()),
                'token': _bytes(log['address'] for log in logs),
                'sender': _bytes(_topic(log, 1) for log in logs),
                'recipient': _bytes(_topic(log, 2) for log in logs),
                'amount': _bytes(log['data'] for log in logs),
            }
        )


class _Simulated:
    witness = "the simulator's own table"

    def __init__(self, tell: Tell) -> None:
        self.server = LocalAmp.simulate(seed=1, network='simnet', logs_per_block=(10, 40))
        tell('a simulated chain is ready')

    def mine(self, blocks: int) -> None:
        self.server.mine(blocks)

    def reorg(self, depth: int) -> None:
        self.server.reorg(depth, extend=1)

    def head(self) -> tuple[int, str]:
        head = self.server.head
        if head is None:
            raise ConfigError('the chain of the demo has no block')
        return head

    def truth(self) -> pa.Table:
        return simulated_truth(self.server)


def simulated_truth(server: LocalAmp) -> pa.Table:
    """Every log of the canonical chain of a simulator, as `DemoChain.truth` gives it."""
    names = {column: name for column, name in COLUMNS.items() if column != 'timestamp'}
    return server.canonical('logs').select(list(names)).rename_columns(list(names.values()))


def _bytes(texts: Iterator[str | None]) -> pa.Array[Any]:
    return pa.array([None if text is None else bytes.fromhex(text[2:]) for text in texts], pa.binary())


def _topic(log: dict[str, Any], index: int) -> str | None:
    topics = log['topics']
    return topics[index] if index < len(topics) else None
