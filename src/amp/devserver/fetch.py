"""Blocks of an EVM node as segments: asked for in batches, checked to be what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amp.devserver.chain import Segment
from amp.devserver.node import EvmNode, NodeError, TooMuchError
from amp.devserver.rows import segment_of

__all__ = ['BlockFetcher', 'MovedError']

_BLOCKS_PER_REQUEST = 50
_UNKNOWN_METHOD = -32601


class MovedError(Exception):
    """The node's answers do not fit together: its chain changed between them, and asking again will do.

    If it will not, the text says what was wrong.
    """


class BlockFetcher:
    """Fetches blocks with their transactions, receipts and logs; safe to share between threads.

    `going_on` is asked between requests, and may raise.
    """

    def __init__(self, node: EvmNode, going_on: Callable[[], None] = lambda: None) -> None:
        self._node = node
        self._going_on = going_on
        self._most = _BLOCKS_PER_REQUEST
        self._of_blocks = True

    def by_number(self, numbers: range) -> Segment:
        """The blocks of these numbers. Raises SourceError, and MovedError when they are not one branch."""
        whole: Segment | None = None
        while numbers:
            self._going_on()
            asked = numbers[: self._most]
            try:
                raw = self._node.batch([('eth_getBlockByNumber', (hex(number), True)) for number in asked])
                part = self._segment(raw, [str(number) for number in asked])
            except TooMuchError:
                if len(asked) == 1:
                    raise
                self._most = max(len(asked) // 2, 1)
                continue
            try:
                whole = part if whole is None else whole.merged_with(part)
            except ValueError as error:
                raise MovedError(str(error)) from error
            numbers = numbers[len(asked) :]
        assert whole is not None, 'no block was asked for'  # noqa: S101
        return whole

    def by_hash(self, block_hash: str) -> Segment:
        """One block, on whatever branch it is. Raises SourceError, and MovedError when the node has lost it."""
        return self._segment([self._node.call('eth_getBlockByHash', block_hash, True)], [block_hash])

    def _segment(self, raw: Sequence[Any], names: Sequence[str]) -> Segment:
        for name, block in zip(names, raw, strict=True):
            if block is None:
                raise MovedError(f'the node {self._node.shown} answers null for block {name}')
        try:
            for name, block in zip(names, raw, strict=True):
                if name not in {str(int(block['number'], 16)), block['hash']}:
                    raise MovedError(f'the node {self._node.shown} answers block {name} with {block["number"]}')
            return segment_of(raw, self._receipts(raw))
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            text = f'the node {self._node.shown} describes blocks {names[0]}-{names[-1]} in a way that is not known'
            raise NodeError(f'{text}: {error!r}') from error
        except ValueError as error:
            raise MovedError(str(error)) from error

    def _receipts(self, blocks: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The receipts of each block, checked to be of that very block."""
        full = [block for block in blocks if block['transactions']]
        by_hash = {}
        for block, receipts in zip(full, self._answers(full), strict=True):
            if receipts is None or any(receipt is None for receipt in receipts):
                text = f'the node {self._node.shown} answers null for receipts of block {int(block["number"], 16)}'
                raise MovedError(text)
            if len(receipts) != len(block['transactions']) or any(r['blockHash'] != block['hash'] for r in receipts):
                raise MovedError(f'the receipts are not those of block {int(block["number"], 16)} {block["hash"]}')
            by_hash[block['hash']] = receipts
        return [by_hash.get(block['hash'], []) for block in blocks]

    def _answers(self, blocks: Sequence[dict[str, Any]]) -> list[Any]:
        if self._of_blocks:
            try:
                return self._node.batch([('eth_getBlockReceipts', (block['number'],)) for block in blocks])
            except TooMuchError:
                raise
            except NodeError as error:
                self._of_blocks = error.context.get('code') != _UNKNOWN_METHOD
        answers = []
        for block in blocks:
            hashes = [transaction['hash'] for transaction in block['transactions']]
            parts = [hashes[at : at + self._most] for at in range(0, len(hashes), self._most)]
            answers.append(
                [r for part in parts for r in self._node.batch([('eth_getTransactionReceipt', (h,)) for h in part])]
            )
        return answers
