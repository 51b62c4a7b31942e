"""Which blocks a stream gets next, and how a range is written on the wire. Pure functions.

The rules are the server's: a range starts after the cursor when the cursor's block is canonical, at the fork when it is
an orphan that is still stored, and at the cursor's own number when the hash is unknown; it never holds more than a
given number of blocks, and nothing follows until the chain is high enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from amp.devserver.chain import Block
from amp.streaming.types import BlockRange

__all__ = [
    'ChainView',
    'Cursor',
    'Together',
    'earliest_block',
    'encode_metadata',
    'next_range',
    'parse_cursors',
    'range_of',
    'start_after',
]

_HASH = re.compile(r'(0x)?[0-9a-fA-F]{64}')
_U64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last block that a client has: number and hash."""

    number: int
    hash: str


class ChainView(Protocol):
    """What the rules need to see of a chain."""

    @property
    def first(self) -> int | None:
        """Number of the earliest block; None when nothing is synced."""

    @property
    def last(self) -> int | None:
        """Number of the latest block; None when nothing is synced."""

    def canonical(self, number: int) -> Block | None:
        """The canonical block of that number."""

    def find(self, block_hash: str) -> Block | None:
        """The block of that hash on any branch that is still stored."""


class Together:
    """Several datasets of one network as one chain: what all of them have, as far as they have the same blocks.

    Hashes are those of the first one. Raises ValueError for none.
    """

    def __init__(self, views: Sequence[ChainView]) -> None:
        if not views:
            raise ValueError('no dataset')
        self._views = views

    @property
    def first(self) -> int | None:
        """The earliest block of any; the others have no row there."""
        return min((view.first for view in self._views if view.first is not None), default=None)

    @property
    def last(self) -> int | None:
        """The latest block that all of them have; None while one of them has none."""
        ends = [view.last for view in self._views]
        last = min((end for end in ends if end is not None), default=None)
        if None in ends or last is None or self.first is None:
            return None
        while last >= self.first and not self._agree(last):
            last -= 1
        return last if last >= self.first else None

    def _agree(self, number: int) -> bool:
        blocks = {view.canonical(number) for view in self._views} - {None}
        return len(blocks) < 2

    def canonical(self, number: int) -> Block | None:
        """The block of that number, of the first dataset that has one."""
        found = (view.canonical(number) for view in self._views)
        return next((block for block in found if block is not None), None)

    def find(self, block_hash: str) -> Block | None:
        """The block of that hash on any branch that one of them has stored."""
        found = (view.find(block_hash) for view in self._views)
        return next((block for block in found if block is not None), None)


def earliest_block(views: Iterable[ChainView]) -> int | None:
    """Where a stream over these datasets begins; None when it ends at once.

    A dataset without blocks counts as less than any number when it comes after one that has some, and as nothing when it
    comes before: the server does so, and then ends or waits.
    """
    earliest: int | None = None
    for view in views:
        earliest = view.first if earliest is None or view.first is None else min(earliest, view.first)
    return earliest


def parse_cursors(header: str | None) -> dict[str, Cursor] | None:
    """The cursors of an `amp-resume` header by network; None when there is none or when it does not parse."""
    try:
        parsed = json.loads(header or '')
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    cursors: dict[str, Cursor] = {}
    for network, at in parsed.items():
        cursor = _parse_cursor(at)
        if cursor is None or not network:
            return None
        cursors[network] = cursor
    return cursors


def _parse_cursor(at: object) -> Cursor | None:
    if not isinstance(at, Mapping):
        return None
    number, block_hash = at.get('number'), at.get('hash')
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < _U64:
        return None
    if not isinstance(block_hash, str) or not _HASH.fullmatch(block_hash):
        return None
    return Cursor(number, '0x' + block_hash.removeprefix('0x').lower())


def start_after(chain: ChainView, cursor: Cursor | None) -> int | None:
    """The first block of the next range, whether or not the chain has it already; None when nothing is synced."""
    if chain.first is None:
        return None
    if cursor is None:
        return chain.first
    block = chain.find(cursor.hash)
    if block is None:
        # Nothing to walk back from: the server starts at the number itself, and only the client can notice more.
        parent = _parent_of_first(chain)
        start = cursor.number + 1 if cursor.hash == parent else cursor.number
        return max(start, chain.first)
    start = block.number + 1
    while block is not None and block.number < start and chain.canonical(block.number) != block:
        start = block.number
        block = chain.find(block.parent_hash)
    return max(start, chain.first)


def _parent_of_first(chain: ChainView) -> str | None:
    first = chain.canonical(chain.first) if chain.first is not None else None
    return first.parent_hash if first is not None else None


def next_range(network: str, chain: ChainView, cursor: Cursor | None, max_blocks: int) -> BlockRange | None:
    """The next range of a stream, at most `max_blocks` long; None while there is nothing new."""
    start = start_after(chain, cursor)
    if start is None or chain.last is None or start > chain.last:
        return None
    return range_of(network, chain, start, min(chain.last, start + max_blocks - 1))


def range_of(network: str, chain: ChainView, start: int, end: int) -> BlockRange:
    """Canonical blocks `start` to `end` with their hashes. Raises ValueError when the chain does not have them."""
    first, last = chain.canonical(start), chain.canonical(end)
    if first is None or last is None:
        raise ValueError(f'blocks {start}-{end} are not on the chain')
    return BlockRange(network, start, end, last.hash, first.parent_hash, last.timestamp)


def encode_metadata(ranges: Iterable[BlockRange], *, complete: bool) -> bytes:
    """The `app_metadata` of a batch."""
    return json.dumps(
        {'ranges': [_wire(r) for r in ranges], 'ranges_complete': complete}, separators=(',', ':')
    ).encode()


def _wire(r: BlockRange) -> dict[str, object]:
    wire: dict[str, object] = {
        'numbers': {'start': r.start, 'end': r.end},
        'network': r.network,
        'hash': r.hash,
        'prev_hash': r.prev_hash,
    }
    if r.timestamp is not None:
        wire['timestamp'] = r.timestamp
    return wire
