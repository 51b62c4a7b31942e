"""A chain that is made up: the same blocks, transactions and logs for the same seed, on any machine.

Every value of a row comes from the hash of its block and its place in it, so it does not matter in what portions blocks
were mined, and a branch that returns has the same rows. Logs look like ERC-20 transfers.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from amp.devserver import schemas
from amp.devserver.chain import ZERO_HASH, Block, Chain, Segment
from amp.errors import ConfigError

__all__ = ['TRANSFER_TOPIC', 'Simulator', 'build_segment']

TRANSFER_TOPIC = bytes.fromhex('ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef')

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Column = Any  # a pyarrow array; the stubs cannot say of which type

_GENESIS_TIME = 1_700_000_000
_SECONDS_PER_BLOCK = 12
_TOKENS = 16
_ACCOUNTS = 4096
_LOGS_PER_TRANSACTION = 2
_SEGMENT_ROWS = 1 << 17
_CHAIN_ID = 1337


class Simulator:
    """The node of a made-up chain: it mines, it forks, and the store follows it by `sync`.

    `logs_per_block` is a number, or the (lowest, highest) between which each block's number lies. Raises ConfigError
    for others.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        seed: int = 1,
        logs_per_block: int | tuple[int, int] = 10,
        first_block: int = 0,
    ) -> None:
        low, high = (logs_per_block, logs_per_block) if isinstance(logs_per_block, int) else logs_per_block
        if not 0 <= low <= high:
            raise ConfigError(f'logs_per_block is a number from 0 on or a (lowest, highest), not {logs_per_block!r}')
        self._chain = chain
        self._seed = seed
        self._logs_per_block = (low, high)
        self._first_block = first_block
        self._branch = 0
        self._blocks: dict[str, Block] = {}
        self._head: Block | None = None
        self._abandoned: list[Block] = []
        # A fault may fork the chain from a server's thread while a test mines.
        self._one_at_a_time = threading.RLock()

    @property
    def head(self) -> Block | None:
        """The node's latest block. The store may be behind, or on a branch that the node has left."""
        return self._head

    def mine(self, blocks: int) -> None:
        """Add blocks on top of the head, and let the store follow."""
        with self._one_at_a_time:
            self._extend(blocks)
            self.sync()

    def reorg(self, depth: int, extend: int) -> None:
        """Replace the last `depth` blocks and add `extend` more; with 0 the store does not notice until it grows."""
        with self._one_at_a_time:
            fork = self._ancestor(depth)
            if self._head is not None:
                self._abandoned.append(self._head)
            self._head = fork
            self._branch += 1
            self._extend(depth + extend)
            self.sync()

    def switch_back(self, extend: int) -> None:
        """Return to the branch that was left last, and grow it `extend` blocks above the present head."""
        with self._one_at_a_time:
            if not self._abandoned or self._head is None:
                raise ValueError('there is no earlier branch to return to')
            left, height = self._head, self._head.number
            self._head = self._abandoned.pop()
            self._abandoned.append(left)
            self._branch += 1
            self._extend(height + extend - self._head.number)
            self.sync()

    def sync(self) -> None:
        """Bring the store to the node's head, if that is higher than what the store has."""
        head, stored = self._head, self._chain.head
        if head is None or (stored is not None and head.number <= stored.number):
            return
        snapshot = self._chain.snapshot()
        missing: list[Block] = []
        block: Block | None = head
        while block is not None and snapshot.find(block.hash) is None:
            missing.append(block)
            block = self._blocks.get(block.parent_hash)
        missing.reverse()
        size = max(_SEGMENT_ROWS // max(self._logs_per_block[1], 1), 1)
        for at in range(0, len(missing), size):
            self._chain.add(build_segment(missing[at : at + size], self._logs_per_block))
        self._chain.set_head(head.hash)

    def _extend(self, blocks: int) -> None:
        for _ in range(blocks):
            parent = self._head.hash if self._head else ZERO_HASH if self._first_block == 0 else self._made_up_hash()
            number = self._head.number + 1 if self._head else self._first_block
            text = f'{self._seed}:{self._branch}:{number}:{parent}'
            block_hash = '0x' + hashlib.sha256(text.encode()).hexdigest()
            block = Block(number, block_hash, parent, _GENESIS_TIME + _SECONDS_PER_BLOCK * number)
            self._blocks[block_hash] = block
            self._head = block

    def _made_up_hash(self) -> str:
        return '0x' + hashlib.sha256(f'{self._seed}:before {self._first_block}'.encode()).hexdigest()

    def _ancestor(self, depth: int) -> Block | None:
        if depth < 1 or self._head is None or depth > self._head.number - self._first_block + 1:
            raise ValueError(f'a reorg of depth {depth} needs a chain of that many blocks')
        block: Block | None = self._head
        for _ in range(depth):
            block = self._blocks.get(block.parent_hash) if block is not None else None
        return block


def build_segment(blocks: Sequence[Block], logs_per_block: tuple[int, int]) -> Segment:
    """The rows of these blocks in all tables of an `evm-rpc` dataset."""
    hashes = np.frombuffer(b''.join(bytes.fromhex(b.hash[2:]) for b in blocks), dtype=np.uint8).reshape(-1, 32)
    seeds = np.ascontiguousarray(hashes[:, :8]).view('<u8').reshape(-1).astype(np.uint64)
    low, high = logs_per_block
    logs = (low + _mix(seeds + np.uint64(7)) % np.uint64(high - low + 1)).astype(np.int64)
    rows = _Rows(blocks, hashes, seeds, logs)
    return Segment(blocks, {'blocks': rows.blocks(), 'transactions': rows.transactions(), 'logs': rows.logs()})


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64: equal words in, equal words out, and neighbours far apart."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _words(seeds: Words, salt: int) -> Words:
    return _mix(seeds + np.uint64(salt * 0x9E3779B97F4A7C15 % (1 << 64)))


def _bytes(seeds: Words, salt: int, width: int) -> npt.NDArray[np.uint8]:
    """`width` bytes for each seed."""
    count = -(-width // 8)
    words = np.stack([_words(seeds, salt * 64 + i) for i in range(count)], axis=1)
    return np.ascontiguousarray(words.view(np.uint8).reshape(len(seeds), count * 8)[:, :width])


def _fixed(values: npt.NDArray[np.uint8]) -> Column:
    buffer: Any = np.ascontiguousarray(values)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.shape[1]), len(values), [None, pa.py_buffer(buffer)])


def _binary(values: npt.NDArray[np.uint8]) -> Column:
    return _fixed(values).cast(pa.binary())


def _amount(values: Words, null: Mask | None = None) -> Column:
    return pa.array(values, mask=null).cast(pa.decimal128(38, 0))


class _Rows:
    """Columns of the three tables for a run of blocks."""

    def __init__(
        self, blocks: Sequence[Block], hashes: npt.NDArray[np.uint8], seeds: Words, logs: npt.NDArray[np.int64]
    ) -> None:
        self._block_hashes = hashes
        self._parents = np.frombuffer(
            b''.join(bytes.fromhex(b.parent_hash[2:]) for b in blocks), dtype=np.uint8
        ).reshape(-1, 32)
        self._numbers = np.array([b.number for b in blocks], dtype=np.uint64)
        self._times = np.array([(b.timestamp or 0) * 1_000_000_000 for b in blocks], dtype=np.int64)
        self._seeds = seeds
        self._logs = logs
        self._transactions = -(-logs // _LOGS_PER_TRANSACTION)

    def blocks(self) -> pa.RecordBatch:
        seeds, count = self._seeds, len(self._seeds)
        number = pa.array(self._numbers)
        columns: dict[str, Column] = {
            '_block_num': number,
            'block_num': number,
            'timestamp': pa.array(self._times, schemas.TIMESTAMP),
            'hash': _fixed(self._block_hashes),
            'parent_hash': _fixed(self._parents),
            'ommers_hash': _fixed(_bytes(seeds, 1, 32)),
            'miner': _fixed(_bytes(seeds, 2, 20)),
            'state_root': _fixed(_bytes(seeds, 3, 32)),
            'transactions_root': _fixed(_bytes(seeds, 4, 32)),
            'receipt_root': _fixed(_bytes(seeds, 5, 32)),
            'logs_bloom': _binary(_bytes(seeds, 6, 256)),
            'difficulty': _amount(np.zeros(count, dtype=np.uint64)),
            'gas_limit': pa.array(np.full(count, 30_000_000, dtype=np.uint64)),
            'gas_used': pa.array(_words(seeds, 8) % np.uint64(30_000_000)),
            'extra_data': _binary(_bytes(seeds, 9, 12)),
            'mix_hash': _fixed(_bytes(seeds, 10, 32)),
            'nonce': pa.array(np.zeros(count, dtype=np.uint64)),
            'base_fee_per_gas': _amount(_words(seeds, 11) % np.uint64(100_000_000_000)),
            'withdrawals_root': _fixed(_bytes(seeds, 12, 32)),
        }
        return _batch(schemas.BLOCKS, columns, count)

    def _of_blocks(self, each: npt.NDArray[np.int64]) -> tuple[dict[str, Column], Words, npt.NDArray[np.int64]]:
        """What every row says of its block, the block's seed, and the row's index within the block."""
        at = np.repeat(np.arange(len(each)), each)
        index = np.arange(len(at)) - np.repeat(np.cumsum(each) - each, each)
        number = pa.array(self._numbers[at])
        columns: dict[str, Column] = {
            '_block_num': number,
            'block_hash': _fixed(self._block_hashes[at]),
            'block_num': number,
            'timestamp': pa.array(self._times[at], schemas.TIMESTAMP),
        }
        return columns, self._seeds[at], index

    def transactions(self) -> pa.RecordBatch:
        columns, block_seeds, index = self._of_blocks(self._transactions)
        seeds = _transaction_seeds(block_seeds, index)
        count = len(seeds)
        tip = _words(seeds, 25) % np.uint64(3_000_000_000)
        price = tip + _words(block_seeds, 11) % np.uint64(100_000_000_000)
        legacy, listed = index % 4 == 1, index % 4 == 3
        plain = ~(legacy | listed)
        columns |= {
            'tx_index': pa.array(index.astype(np.uint32)),
            'tx_hash': _fixed(_bytes(seeds, 20, 32)),
            'to': _fixed(_tokens(seeds)),
            'nonce': pa.array(_words(seeds, 21) % np.uint64(1 << 20)),
            'gas_price': _amount(price, null=plain),
            'gas_limit': pa.array(np.full(count, 90_000, dtype=np.uint64)),
            'value': pa.array(_words(seeds, 22)).cast(pa.string()),
            'input': _binary(_bytes(seeds, 23, 68)),
            'r': _fixed(_bytes(seeds, 26, 32)),
            's': _fixed(_bytes(seeds, 27, 32)),
            'v_parity': pa.array(_words(seeds, 28) % np.uint64(2) == 1),
            'chain_id': pa.array(np.full(count, _CHAIN_ID, dtype=np.uint64)),
            'gas_used': pa.array(np.uint64(40_000) + _words(seeds, 29) % np.uint64(20_000)),
            'type': pa.array(np.where(legacy, 0, np.where(listed, 1, 2)).astype(np.int32)),
            'max_fee_per_gas': _amount(np.where(plain, price * np.uint64(2), price)),
            'max_priority_fee_per_gas': _amount(tip, null=~plain),
            'from': _fixed(_accounts(seeds, 24)),
            'status': pa.array(np.ones(count, dtype=bool)),
            'access_list': _access_lists(seeds, listed, legacy),
        }
        return _batch(schemas.TRANSACTIONS, columns, count)

    def logs(self) -> pa.RecordBatch:
        columns, block_seeds, index = self._of_blocks(self._logs)
        transaction = index // _LOGS_PER_TRANSACTION
        transactions = _transaction_seeds(block_seeds, transaction)
        seeds = _words(block_seeds + index.astype(np.uint64), 30)
        count = len(seeds)
        value = np.zeros((count, 32), dtype=np.uint8)
        value[:, 20:] = _bytes(seeds, 33, 12)
        columns |= {
            'tx_hash': _fixed(_bytes(transactions, 20, 32)),
            'tx_index': pa.array(transaction.astype(np.uint32)),
            'log_index': pa.array(index.astype(np.uint32)),
            'address': _fixed(_tokens(transactions)),
            'topic0': _fixed(np.broadcast_to(np.frombuffer(TRANSFER_TOPIC, dtype=np.uint8), (count, 32))),
            'topic1': _fixed(_padded(_accounts(seeds, 31))),
            'topic2': _fixed(_padded(_accounts(seeds, 32))),
            'data': _binary(value),
        }
        return _batch(schemas.LOGS, columns, count)


def _transaction_seeds(block_seeds: Words, index: npt.NDArray[np.int64]) -> Words:
    return _words(block_seeds + index.astype(np.uint64), 19)


def _tokens(seeds: Words) -> npt.NDArray[np.uint8]:
    return _bytes(_words(seeds, 40) % np.uint64(_TOKENS), 41, 20)


def _accounts(seeds: Words, salt: int) -> npt.NDArray[np.uint8]:
    return _bytes(_words(seeds, salt) % np.uint64(_ACCOUNTS), 42, 20)


def _padded(addresses: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    words = np.zeros((len(addresses), 32), dtype=np.uint8)
    words[:, 12:] = addresses
    return words


def _access_lists(seeds: Words, listed: Mask, null: Mask) -> Column:
    """One entry with two keys where `listed`, null where `null`, empty elsewhere."""
    type_ = schemas.TRANSACTIONS.field('access_list').type
    entry = type_.value_type
    some = seeds[listed]
    keys = _fixed(np.concatenate([_bytes(some, 43, 32), _bytes(some, 44, 32)], axis=1).reshape(-1, 32))
    of_keys: Column = pa.array(np.arange(len(some) + 1, dtype=np.int32) * 2)
    storage_keys = pa.ListArray.from_arrays(of_keys, keys, type=entry.field('storage_keys').type)
    entries = pa.StructArray.from_arrays([_fixed(_tokens(some)), storage_keys], fields=list(entry))
    offsets: Column = pa.array(np.concatenate([[0], np.cumsum(listed)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, entries, type=type_, mask=pa.array(null))


def _batch(schema: pa.Schema, columns: dict[str, Column], count: int) -> pa.RecordBatch:
    """The columns in the schema's order; those that are not given are null."""
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
