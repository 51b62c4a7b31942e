"""From what an EVM node says of blocks to the rows of Amp's `evm-rpc` tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from amp.devserver import schemas
from amp.devserver.chain import Block, Segment

__all__ = ['segment_of']

Json = dict[str, Any]

_FIRST_V_WITH_CHAIN_ID = 35


def segment_of(blocks: Sequence[Json], receipts: Sequence[Sequence[Json]]) -> Segment:
    """Blocks (with their transactions in full) and their receipts. Raises ValueError when they are not one branch."""
    for block, of_block in zip(blocks, receipts, strict=True):
        hashes = [t['hash'] for t in block['transactions']]
        if hashes != [r['transactionHash'] for r in of_block]:
            raise ValueError(f'the receipts of block {block["hash"]} are not those of its transactions')
    tables = {
        'blocks': _batch(schemas.BLOCKS, _BLOCK, [(b, b, {}) for b in blocks]),
        'transactions': _batch(
            schemas.TRANSACTIONS,
            _TRANSACTION,
            [
                (b, t, r)
                for b, rs in zip(blocks, receipts, strict=True)
                for t, r in zip(b['transactions'], rs, strict=True)
            ],
        ),
        'logs': _batch(
            schemas.LOGS,
            _LOG,
            [(b, log, r) for b, rs in zip(blocks, receipts, strict=True) for r in rs for log in r['logs']],
        ),
    }
    places = [Block(_int(b['number']), b['hash'], b['parentHash'], _int(b['timestamp'])) for b in blocks]
    return Segment(places, tables)


Row = tuple[Json, Json, Json]
"""A block, the item itself, and the receipt of its transaction."""

Column = Callable[[Row], object]


def _batch(schema: pa.Schema, columns: dict[str, Column], rows: Sequence[Row]) -> pa.RecordBatch:
    arrays: list[Any] = [
        pa.array([columns[field.name](row) for row in rows], field.type)
        if field.name in columns
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _int(value: str) -> int:
    return int(value, 16)


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value[2:])


def _optional(read: Callable[[str], object], value: str | None) -> object:
    return None if value is None else read(value)


def _decimal(value: str) -> Decimal:
    return Decimal(_int(value))


def _word(value: str | None) -> bytes:
    """A 32-byte word from hex digits that may have lost their leading zeros."""
    return int(value or '0x0', 16).to_bytes(32, 'big')


def _item(key: str, read: Callable[[str], object]) -> Column:
    return lambda row: read(row[1][key])


def _maybe(key: str, read: Callable[[str], object]) -> Column:
    return lambda row: _optional(read, row[1].get(key))


def _timestamp(row: Row) -> int:
    return _int(row[0]['timestamp']) * 1_000_000_000


def _type(row: Row) -> int:
    return _int(row[1].get('type', '0x0'))


def _gas_price(row: Row) -> object:
    """The price of a transaction that names one; later types name the most they would pay."""
    return _optional(_decimal, row[1].get('gasPrice')) if _type(row) in {0, 1} else None


def _max_fee(row: Row) -> object:
    return _optional(_decimal, row[1].get('maxFeePerGas') or row[1].get('gasPrice'))


def _v_parity(row: Row) -> bool:
    transaction = row[1]
    if transaction.get('yParity') is not None:
        return _int(transaction['yParity']) == 1
    v = _int(transaction.get('v', '0x0'))
    return (v - _FIRST_V_WITH_CHAIN_ID) % 2 == 1 if v >= _FIRST_V_WITH_CHAIN_ID else v in {1, 28}


def _chain_id(row: Row) -> object:
    """Named by the transaction; old ones that are not bound to a chain have none."""
    return _optional(_int, row[1].get('chainId'))


def _access_list(row: Row) -> object:
    listed = row[1].get('accessList')
    if listed is None or _type(row) == 0:
        return None
    return [{'address': _bytes(a['address']), 'storage_keys': [_word(k) for k in a['storageKeys']]} for a in listed]


def _blob_hashes(row: Row) -> object:
    hashes = row[1].get('blobVersionedHashes')
    return None if hashes is None else [_bytes(h) for h in hashes]


def _authorizations(row: Row) -> object:
    listed = row[1].get('authorizationList')
    if listed is None:
        return None
    return [
        {
            'chain_id': _int(a['chainId']),
            'address': _bytes(a['address']),
            'nonce': _int(a['nonce']),
            'y_parity': _int(a['yParity']) == 1,
            'r': _word(a['r']),
            's': _word(a['s']),
        }
        for a in listed
    ]


def _topic(index: int) -> Column:
    return lambda row: _bytes(row[1]['topics'][index]) if len(row[1]['topics']) > index else None


def _number(row: Row) -> int:
    return _int(row[0]['number'])


def _block_hash(row: Row) -> bytes:
    return _bytes(row[0]['hash'])


_BLOCK: dict[str, Column] = {
    '_block_num': _number,
    'block_num': _number,
    'timestamp': _timestamp,
    'hash': _block_hash,
    'parent_hash': _item('parentHash', _bytes),
    'ommers_hash': _item('sha3Uncles', _bytes),
    'miner': _item('miner', _bytes),
    'state_root': _item('stateRoot', _bytes),
    'transactions_root': _item('transactionsRoot', _bytes),
    'receipt_root': _item('receiptsRoot', _bytes),
    'logs_bloom': _item('logsBloom', _bytes),
    'difficulty': lambda row: _decimal(row[1].get('difficulty') or '0x0'),
    'total_difficulty': _maybe('totalDifficulty', _decimal),
    'gas_limit': _item('gasLimit', _int),
    'gas_used': _item('gasUsed', _int),
    'extra_data': _item('extraData', _bytes),
    'mix_hash': lambda row: _word(row[1].get('mixHash')),
    'nonce': lambda row: _int(row[1].get('nonce') or '0x0'),
    'base_fee_per_gas': _maybe('baseFeePerGas', _decimal),
    'withdrawals_root': _maybe('withdrawalsRoot', _bytes),
    'blob_gas_used': _maybe('blobGasUsed', _int),
    'excess_blob_gas': _maybe('excessBlobGas', _int),
    'parent_beacon_root': _maybe('parentBeaconBlockRoot', _bytes),
    'requests_hash': _maybe('requestsHash', _bytes),
}

_OF_BLOCK: dict[str, Column] = {
    '_block_num': _number,
    'block_hash': _block_hash,
    'block_num': _number,
    'timestamp': _timestamp,
}

_TRANSACTION: dict[str, Column] = _OF_BLOCK | {
    'tx_index': _item('transactionIndex', _int),
    'tx_hash': _item('hash', _bytes),
    'to': _maybe('to', _bytes),
    'nonce': _item('nonce', _int),
    'gas_price': _gas_price,
    'gas_limit': _item('gas', _int),
    'value': lambda row: str(_int(row[1]['value'])),
    'input': _item('input', _bytes),
    'r': lambda row: _word(row[1].get('r')),
    's': lambda row: _word(row[1].get('s')),
    'v_parity': _v_parity,
    'chain_id': _chain_id,
    'gas_used': lambda row: _int(row[2]['gasUsed']),
    'type': _type,
    'max_fee_per_gas': _max_fee,
    'max_priority_fee_per_gas': _maybe('maxPriorityFeePerGas', _decimal),
    'max_fee_per_blob_gas': _maybe('maxFeePerBlobGas', _decimal),
    'from': _item('from', _bytes),
    'status': lambda row: _int(row[2].get('status') or '0x1') == 1,
    'state_root': lambda row: _optional(_bytes, row[2].get('root')),
    'access_list': _access_list,
    'blob_versioned_hashes': _blob_hashes,
    'authorization_list': _authorizations,
}

_LOG: dict[str, Column] = _OF_BLOCK | {
    'tx_hash': _item('transactionHash', _bytes),
    'tx_index': _item('transactionIndex', _int),
    'log_index': _item('logIndex', _int),
    'address': _item('address', _bytes),
    'topic0': _topic(0),
    'topic1': _topic(1),
    'topic2': _topic(2),
    'topic3': _topic(3),
    'data': _item('data', _bytes),
}
