"""The committed batches of one network of one stream: what they cover, where the holes are, what an undo leaves.

Five ordered maps, the same in memory and on disk:

    batches   (end, start, id) -> end hash, parent hash, time      every batch, by its end
    known     (end)            -> start, end hash, parent hash     blocks whose hash is known: the ends of batches
    covered   (start)          -> end                              disjoint intervals, neighbours merged
    pieces    (start)          -> end, owner                       covered blocks with their owner ...
    owned     (owner, start)   ->                                  ... and where the pieces of an owner are

The owner of a block is the lowest end among the batches that hold it. An undo from block F removes every batch that
ends at F or later, so a block stays covered exactly when its owner is below F: batches that stay are never looked at.
Covered blocks without an owner are final: their batches were forgotten, their coverage was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias, cast

from amp.streaming.types import BatchIdentifier, BlockRange

__all__ = ['MAX_BLOCK', 'BatchHistory', 'Item', 'Key', 'OrderedMap', 'Value', 'walk']

Key: TypeAlias = tuple[int, ...]
Value: TypeAlias = tuple[int | float | str, ...]
Item: TypeAlias = tuple[Key, Value]

MAX_BLOCK = (1 << 63) - 1
_BEGIN: Key = (0,)
_END: Key = (MAX_BLOCK + 1,)


class OrderedMap(Protocol):
    """Keys are tuples of unsigned 64-bit numbers, in the order of tuples; values are short tuples."""

    def get(self, key: Key) -> Value | None:
        """The value of `key`."""

    def put(self, key: Key, value: Value) -> None:
        """Set the value of `key`."""

    def delete(self, key: Key) -> None:
        """Remove `key`, which is there."""

    def first(self, at: Key) -> Item | None:
        """The item with the smallest key that is `at` or above."""

    def last(self, at: Key) -> Item | None:
        """The item with the largest key that is `at` or below."""

    def take(self, low: Key, high: Key) -> list[Item]:
        """Remove the items with `low <= key < high` and return them in order."""


def walk(items: OrderedMap, at: Key) -> Iterator[Item]:
    """The items from `at` on. The map may change behind the item in hand."""
    item = items.first(at)
    while item is not None:
        yield item
        item = items.first((*item[0], 0))


class BatchHistory:
    """The history of one network. Takes O(log n + answer); a batch that overlaps others also what it overlaps."""

    def __init__(self, network: str, open_map: Callable[[str], OrderedMap]) -> None:
        self._network = network
        self._batches = open_map('batches')
        self._known = open_map('known')
        self._covered = open_map('covered')
        self._pieces = open_map('pieces')
        self._owned = open_map('owned')

    def add(self, batch: BatchIdentifier, time: float) -> None:
        """Record a batch, committed at `time` (Unix seconds). Again is once; the latest word on a hash counts."""
        start, end = batch.start_block, batch.end_block
        if batch.end_hash:
            self._known.put((end,), (start, batch.end_hash, batch.start_parent_hash))
        key = _batch_key(batch)
        if self._batches.get(key) is not None:
            return
        self._batches.put(key, (batch.end_hash, batch.start_parent_hash, time))
        self._take_over(start, end)
        for hole_start, hole_end in self._holes(start, end):
            self._own(hole_start, hole_end, end)
        self._cover(start, end)

    def contains(self, batch: BatchIdentifier) -> bool:
        """True for a batch that was added and not undone; one that was forgotten is answered by final coverage."""
        if self._batches.get(_batch_key(batch)) is not None:
            return True
        known = self._known.get((batch.end_block,))
        if known is not None and known[1] != batch.end_hash:
            return False
        return self._is_final(batch.start_block, batch.end_block)

    def batches(self) -> Iterator[tuple[BatchIdentifier, float]]:
        """Every batch that is remembered one by one, with its time, by end."""
        for item in walk(self._batches, _BEGIN):
            yield self._identifier(item), cast('float', item[1][2])

    def newest(self) -> BlockRange | None:
        """The batch that ends at the newest block whose hash is known."""
        return self._range(self._known.last(_END))

    def before_first_gap(self, start_block: int) -> BlockRange | None:
        """The batch to resume from when everything from `start_block` on must follow; None: from `start_block`."""
        interval = next(self._intervals(max(start_block - 1, 0)), None)
        if interval is None or interval[0] > start_block:
            return None
        found = self._range(self._known.last((interval[1],)))
        return found if found is not None and found.end >= start_block - 1 else None

    def gaps(self, start_block: int) -> Iterator[BlockRange]:
        """The holes from `start_block` up to the newest covered block."""
        expected = start_block
        for start, end in self._intervals(start_block):
            if start > expected:
                yield BlockRange(self._network, expected, start - 1)
            expected = end + 1

    def truncate(self, from_block: int) -> list[BatchIdentifier]:
        """Undo every batch that ends at `from_block` or later; final coverage is cut there. By end."""
        gone = self._batches.take((from_block,), _END)
        self._known.take((from_block,), _END)
        self._covered.take((from_block,), _END)
        last = self._covered.last((from_block,))
        if last is not None and _int(last[1][0]) >= from_block:
            self._covered.put(last[0], (from_block - 1,))
        self._pieces.take((from_block,), _END)
        for (_, start), _ in self._owned.take((from_block,), _END):
            if start < from_block:
                piece = self._pieces.get((start,))
                self._pieces.delete((start,))
                self._uncover(start, min(_int(cast('Value', piece)[0]), from_block - 1))
        return [self._identifier(item) for item in gone]

    def forget(self, before_block: int) -> None:
        """Make batches that end before `before_block` final: their coverage stays, and the hash of its end."""
        gone = self._batches.take(_BEGIN, (before_block,))
        owned = self._owned.take(_BEGIN, (before_block,))
        if owned:
            first = min(start for (_, start), _ in owned)
            for key, value in self._pieces.take((first,), (before_block,)):
                if _int(value[1]) >= before_block:
                    self._pieces.put(key, value)
        # A known end stops being one when the block after it became final too.
        touched = [end for (end, *_), _ in gone] + [start - 1 for (_, start), _ in owned if start]
        if touched:
            for key, value in reversed(self._known.take((min(touched),), (max(touched) + 1,))):
                if not self._is_final(key[0] + 1, key[0] + 1) or self._is_newest_of_interval(key[0]):
                    self._known.put(key, value)

    def _is_final(self, start: int, end: int) -> bool:
        interval = self._covered.last((start,))
        if interval is None or _int(interval[1][0]) < end:
            return False
        return next(self._pieces_in(start, end), None) is None

    def _is_newest_of_interval(self, block: int) -> bool:
        interval, later = self._covered.last((block,)), self._known.first((block + 1,))
        return interval is None or later is None or later[0][0] > _int(interval[1][0])

    def _intervals(self, from_block: int) -> Iterator[tuple[int, int]]:
        """Covered intervals that end at `from_block` or later."""
        yield from _spans(self._covered, from_block)

    def _holes(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        position = start
        for interval_start, interval_end in self._intervals(start):
            if interval_start > end:
                break
            if interval_start > position:
                yield position, interval_start - 1
            position = interval_end + 1
        if position <= end:
            yield position, end

    def _cover(self, start: int, end: int) -> None:
        below = self._covered.last((start,))
        if below is not None and _int(below[1][0]) >= start - 1:
            start, end = below[0][0], max(end, _int(below[1][0]))
        absorbed = self._covered.take((start + 1,), (end + 2,))
        if absorbed:
            end = max(end, _int(absorbed[-1][1][0]))
        self._covered.put((start,), (end,))

    def _uncover(self, start: int, end: int) -> None:
        key, value = cast('Item', self._covered.last((start,)))
        if key[0] < start:
            self._covered.put(key, (start - 1,))
        else:
            self._covered.delete(key)
        if end < _int(value[0]):
            self._covered.put((end + 1,), value)

    def _pieces_in(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for piece_start, piece_end in _spans(self._pieces, start):
            if piece_start > end:
                return
            yield piece_start, piece_end

    def _own(self, start: int, end: int, owner: int) -> None:
        self._pieces.put((start,), (end, owner))
        self._owned.put((owner, start), ())

    def _take_over(self, start: int, end: int) -> None:
        """Make `end` the owner of the blocks from `start` on whose owner is a later one."""
        latest = self._owned.last(_END)
        if latest is None or latest[0][0] <= end:
            return
        for piece_start, piece_end in list(self._pieces_in(start, end)):
            owner = _int(cast('Value', self._pieces.get((piece_start,)))[1])
            if owner <= end:
                continue
            self._owned.delete((owner, piece_start))
            self._pieces.delete((piece_start,))
            if piece_start < start:
                self._own(piece_start, start - 1, owner)
            self._own(max(piece_start, start), min(piece_end, end), end)
            if piece_end > end:
                self._own(end + 1, piece_end, owner)

    def _identifier(self, item: Item) -> BatchIdentifier:
        (end, start, _), (end_hash, parent_hash, _) = item
        return BatchIdentifier(self._network, start, end, str(end_hash), str(parent_hash))

    def _range(self, known: Item | None) -> BlockRange | None:
        if known is None:
            return None
        (end,), (start, end_hash, parent_hash) = known
        return BlockRange(self._network, _int(start), end, str(end_hash), str(parent_hash) or None)


def _spans(items: OrderedMap, from_block: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of a map from start to end, for those that end at `from_block` or later."""
    below = items.last((from_block,))
    if below is not None and below[0][0] < from_block <= _int(below[1][0]):
        yield below[0][0], _int(below[1][0])
    for (start, *_), value in walk(items, (from_block,)):
        yield start, _int(value[0])


def _batch_key(batch: BatchIdentifier) -> Key:
    return (batch.end_block, batch.start_block, int(batch.unique_id, 16))


def _int(value: float | str) -> int:
    return cast('int', value)
