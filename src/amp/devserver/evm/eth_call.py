"""`"<dataset>".eth_call(from, to, input, block)`: calls of contracts at the node that the dataset comes from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from amp.devserver.evm.functions import BY_TYPES, FunctionError, Implementation, Types
from amp.devserver.evm.words import Column
from amp.errors import SourceError

__all__ = ['Node', 'build_eth_call']

_ATTEMPTS = 3
_AT_ONCE = 8
# The codes by which nodes say that the call itself failed; others may be the node's own trouble.
_REVERTED = {3, -32000}
_ADDRESS = pa.binary(20)
_TAGS = {'latest', 'pending', 'earliest', 'safe', 'finalized'}


class Node(Protocol):
    """What answers JSON-RPC. Its errors are SourceErrors, with the context `code`, `reason` and `data` where told."""

    def call(self, method: str, *params: object) -> object:
        """The result of a call."""


@dataclass(frozen=True, slots=True)
class _Answer:
    data: bytes | None
    message: str | None


def build_eth_call(node: Node, types: Types) -> Implementation:
    """The function for arguments of these types. Raises FunctionError for others than the server takes."""
    if len(types) != 4:
        raise FunctionError(f'eth_call: expected 4 arguments, but got {len(types)}')
    sender, to, data, block = types
    if sender != _ADDRESS and not pa.types.is_null(sender):
        raise FunctionError("'from' address is not a valid address")
    if to != _ADDRESS:
        raise FunctionError("'to' address is not a valid address")
    if not pa.types.is_binary(data) and not pa.types.is_null(data):
        raise FunctionError('input data is not a valid data')
    if not pa.types.is_string(block) and not pa.types.is_integer(block):
        raise FunctionError(
            f"'block' is not a valid block number or tag: {'Null' if pa.types.is_null(block) else block}"
        )

    def run(*columns: Column) -> Column:
        return _call_each(node, *columns)

    return Implementation(tuple(types), pa.field('result', BY_TYPES['eth_call']), run, 'volatile')


def _call_each(node: Node, sender: Column, to: Column, data: Column, block: Column) -> Column:
    """One request for each distinct call; contracts are asked the same thing in row after row."""
    if to.null_count:
        raise FunctionError('to address is NULL')
    if block.null_count:
        raise FunctionError('block is NULL')
    columns = [sender.cast(_ADDRESS), to, data.cast(pa.binary()), block.cast(pa.string())]
    rows = pa.table(columns, names=['from', 'to', 'data', 'block'])
    order = pa.array(range(len(to)), pa.int64())
    distinct = rows.append_column('row', order).group_by(['from', 'to', 'data', 'block'], use_threads=False)
    groups = distinct.aggregate([('row', 'list')])
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # One Python object a request: the network is what this takes its time for.
        calls = groups.select(['from', 'to', 'data', 'block']).to_pylist()
        answers = list(pool.map(lambda call: _ask(node, **call), [_renamed(call) for call in calls]))
    lists: Column = groups['row_list'].combine_chunks()
    parents: Column = pc.list_parent_indices(lists)
    places = parents.take(pc.sort_indices(lists.flatten()))
    found = pa.StructArray.from_arrays(
        [pa.array([a.data for a in answers], pa.binary()), pa.array([a.message for a in answers], pa.string())],
        names=['data', 'message'],
    )
    return found.take(places)


def _renamed(call: dict[str, object]) -> dict[str, object]:
    return {('sender' if name == 'from' else name): value for name, value in call.items()}


def _ask(node: Node, sender: bytes | None, to: bytes, data: bytes | None, block: str) -> _Answer:
    request = {'to': f'0x{to.hex()}'}
    if sender is not None:
        request['from'] = f'0x{sender.hex()}'
    if data is not None:
        request['input'] = f'0x{data.hex()}'
    place = _block(block)
    for _ in range(_ATTEMPTS):
        try:
            return _Answer(_bytes(node.call('eth_call', request, place)), None)
        except SourceError as error:
            if error.context.get('code') in _REVERTED:
                return _Answer(_bytes(error.context.get('data')), str(error.context.get('reason') or error.message))
    return _Answer(None, 'unexpected rpc error')


def _block(text: str) -> str:
    if text in _TAGS:
        return text
    try:
        number = int(text, 16 if text.startswith('0x') else 10)
    except ValueError:
        raise FunctionError('block is not a valid integer, "0x" prefixed hex integer, or tag') from None
    if number < 0:
        raise FunctionError(f'block number cannot be negative: {number}')
    return hex(number)


def _bytes(text: object) -> bytes | None:
    try:
        return bytes.fromhex(text.removeprefix('0x')) if isinstance(text, str) else None
    except ValueError:
        return None
