"""The Arrow schemas of Amp's raw EVM tables, as its files and its wire have them.

Every table starts with `_block_num`. Timestamps are nanoseconds in the zone `+00:00`; hashes are 32 bytes, addresses 20;
amounts that fit are decimal128(38, 0), the others decimal text.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

__all__ = ['BLOCKS', 'CALLS', 'EVM_RPC', 'FIREHOSE', 'FIREHOSE_TRANSACTIONS', 'LOGS', 'TIMESTAMP', 'TRANSACTIONS']

TIMESTAMP = pa.timestamp('ns', '+00:00')

_HASH = pa.binary(32)
_ADDRESS = pa.binary(20)
_AMOUNT = pa.decimal128(38, 0)


def _required(name: str, type_: pa.DataType) -> pa.Field[Any]:
    return pa.field(name, type_, nullable=False)


def _list_of(type_: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field('item', type_, nullable=False))


_ACCESS = pa.struct([_required('address', _ADDRESS), _required('storage_keys', _list_of(_HASH))])
_AUTHORIZATION = pa.struct(
    [
        _required('chain_id', pa.uint64()),
        _required('address', _ADDRESS),
        _required('nonce', pa.uint64()),
        _required('y_parity', pa.bool_()),
        _required('r', _HASH),
        _required('s', _HASH),
    ]
)

BLOCKS = pa.schema(
    [
        _required('_block_num', pa.uint64()),
        _required('block_num', pa.uint64()),
        _required('timestamp', TIMESTAMP),
        _required('hash', _HASH),
        _required('parent_hash', _HASH),
        _required('ommers_hash', _HASH),
        _required('miner', _ADDRESS),
        _required('state_root', _HASH),
        _required('transactions_root', _HASH),
        _required('receipt_root', _HASH),
        _required('logs_bloom', pa.binary()),
        _required('difficulty', _AMOUNT),
        pa.field('total_difficulty', _AMOUNT),
        _required('gas_limit', pa.uint64()),
        _required('gas_used', pa.uint64()),
        _required('extra_data', pa.binary()),
        _required('mix_hash', _HASH),
        _required('nonce', pa.uint64()),
        pa.field('base_fee_per_gas', _AMOUNT),
        pa.field('withdrawals_root', _HASH),
        pa.field('blob_gas_used', pa.uint64()),
        pa.field('excess_blob_gas', pa.uint64()),
        pa.field('parent_beacon_root', _HASH),
        pa.field('requests_hash', _HASH),
    ]
)

LOGS = pa.schema(
    [
        _required('_block_num', pa.uint64()),
        _required('block_hash', _HASH),
        _required('block_num', pa.uint64()),
        _required('timestamp', TIMESTAMP),
        _required('tx_hash', _HASH),
        _required('tx_index', pa.uint32()),
        _required('log_index', pa.uint32()),
        _required('address', _ADDRESS),
        pa.field('topic0', _HASH),
        pa.field('topic1', _HASH),
        pa.field('topic2', _HASH),
        pa.field('topic3', _HASH),
        _required('data', pa.binary()),
    ]
)

TRANSACTIONS = pa.schema(
    [
        _required('_block_num', pa.uint64()),
        _required('block_hash', _HASH),
        _required('block_num', pa.uint64()),
        _required('timestamp', TIMESTAMP),
        _required('tx_index', pa.uint32()),
        _required('tx_hash', _HASH),
        pa.field('to', _ADDRESS),
        _required('nonce', pa.uint64()),
        pa.field('gas_price', _AMOUNT),
        _required('gas_limit', pa.uint64()),
        _required('value', pa.string()),
        _required('input', pa.binary()),
        _required('r', _HASH),
        _required('s', _HASH),
        _required('v_parity', pa.bool_()),
        pa.field('chain_id', pa.uint64()),
        _required('gas_used', pa.uint64()),
        _required('type', pa.int32()),
        pa.field('max_fee_per_gas', _AMOUNT),
        pa.field('max_priority_fee_per_gas', _AMOUNT),
        pa.field('max_fee_per_blob_gas', _AMOUNT),
        _required('from', _ADDRESS),
        _required('status', pa.bool_()),
        pa.field('state_root', _HASH),
        pa.field('access_list', _list_of(_ACCESS)),
        pa.field('blob_versioned_hashes', _list_of(_HASH)),
        pa.field('authorization_list', _list_of(_AUTHORIZATION)),
    ]
)

FIREHOSE_TRANSACTIONS = pa.schema(
    [
        _required('_block_num', pa.uint64()),
        _required('block_hash', _HASH),
        _required('block_num', pa.uint64()),
        _required('timestamp', TIMESTAMP),
        _required('tx_index', pa.uint32()),
        _required('tx_hash', _HASH),
        pa.field('to', _ADDRESS),
        _required('nonce', pa.uint64()),
        pa.field('gas_price', _AMOUNT),
        _required('gas_limit', pa.uint64()),
        pa.field('value', pa.string()),
        _required('input', pa.binary()),
        _required('v', pa.binary()),
        _required('r', pa.binary()),
        _required('s', pa.binary()),
        _required('gas_used', pa.uint64()),
        _required('type', pa.int32()),
        pa.field('max_fee_per_gas', _AMOUNT),
        pa.field('max_priority_fee_per_gas', _AMOUNT),
        _required('from', _ADDRESS),
        _required('status', pa.int32()),
        _required('return_data', pa.binary()),
        _required('public_key', pa.binary()),
        _required('begin_ordinal', pa.uint64()),
        _required('end_ordinal', pa.uint64()),
    ]
)

CALLS = pa.schema(
    [
        _required('_block_num', pa.uint64()),
        _required('block_hash', _HASH),
        _required('block_num', pa.uint64()),
        _required('timestamp', TIMESTAMP),
        _required('tx_index', pa.uint32()),
        _required('tx_hash', _HASH),
        _required('index', pa.uint32()),
        _required('parent_index', pa.uint32()),
        _required('depth', pa.uint32()),
        _required('call_type', pa.int32()),
        _required('caller', _ADDRESS),
        _required('address', _ADDRESS),
        pa.field('value', _AMOUNT),
        _required('gas_limit', pa.uint64()),
        _required('gas_consumed', pa.uint64()),
        _required('return_data', pa.binary()),
        _required('input', pa.binary()),
        _required('selfdestruct', pa.bool_()),
        _required('executed_code', pa.bool_()),
        _required('begin_ordinal', pa.uint64()),
        _required('end_ordinal', pa.uint64()),
    ]
)

EVM_RPC = {'blocks': BLOCKS, 'transactions': TRANSACTIONS, 'logs': LOGS}
FIREHOSE = {'blocks': BLOCKS, 'transactions': FIREHOSE_TRANSACTIONS, 'logs': LOGS, 'calls': CALLS}
