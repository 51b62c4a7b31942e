"""What two consecutive ranges say about the chain: forward, repeat, reorg, or a broken promise.

The server never says "reorg": it shows in a range that starts at or before the end of the previous one with another
parent hash. The rules are those of the reference client, in its order: the ranges by themselves, the networks, then
each network against its previous range. A broken rule is a ProtocolError whose context carries `rule` and `ranges`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from amp.errors import ProtocolError
from amp.streaming.types import BlockRange, ResponseBatch, ResumeWatermark

__all__ = ['ZERO_HASH', 'ReorgAwareStream', 'check_ranges', 'detect_reorg']

ZERO_HASH = '0x' + '0' * 64


def check_ranges(ranges: Sequence[BlockRange]) -> None:
    """The rules that ranges keep by themselves: one a network, a parent hash except at genesis. Raises ProtocolError."""
    for r in ranges:
        has_parent = r.prev_hash is not None and r.prev_hash != ZERO_HASH
        if r.start == 0 and has_parent:
            raise _broken('InvalidPrevHash', f'the range {r} starts at genesis and names a parent {r.prev_hash}', [r])
        if r.start > 0 and not has_parent:
            raise _broken('MissingPrevHash', f'the range {r} does not name the hash of block {r.start - 1}', [r])
        if not r.hash:
            raise _broken('MissingHash', f'the range {r} does not name the hash of its last block', [r])
    names = [r.network for r in ranges]
    if len(set(names)) != len(names):
        raise _broken('DuplicateNetwork', f'two ranges of one network in a batch: {_listed(ranges)}', ranges)


def detect_reorg(previous: Sequence[BlockRange], incoming: Sequence[BlockRange]) -> tuple[BlockRange, ...]:
    """The ranges that `incoming` invalidates; empty when it continues or repeats `previous` (empty: nothing known).

    An invalidation reaches from the start of the incoming range to the later of the two ends.
    Raises ProtocolError with rule NetworkCountChanged, UnexpectedNetwork, HashMismatchOnConsecutiveBlocks, Gap or
    InvalidReorg.
    """
    if not previous:
        return ()
    before = {r.network: r for r in previous}
    if len(incoming) != len(before):
        raise _broken(
            'NetworkCountChanged', f'the stream had {len(before)} networks and now has {len(incoming)}', incoming
        )
    for r in incoming:
        if r.network not in before:
            raise _broken('UnexpectedNetwork', f'a range of {r.network}, which this stream did not have', [r])
    found = (_against(before[r.network], r) for r in incoming)
    return tuple(r for r in found if r is not None)


def _against(prev: BlockRange, inc: BlockRange) -> BlockRange | None:
    if inc == prev:
        return None
    linked = inc.prev_hash == prev.hash
    if inc.start == prev.end + 1:
        if linked:
            return None
        raise _broken(
            'HashMismatchOnConsecutiveBlocks',
            f'{inc} follows {prev} but its parent is {inc.prev_hash}, not {prev.hash}',
            [prev, inc],
        )
    if inc.start > prev.end + 1:
        raise _broken('Gap', f'blocks {prev.end + 1}-{inc.start - 1} are missing between {prev} and {inc}', [prev, inc])
    if linked:
        raise _broken('InvalidReorg', f'{inc} goes back behind {prev} but names its end as its parent', [prev, inc])
    return BlockRange(inc.network, inc.start, max(inc.end, prev.end), inc.hash, inc.prev_hash)


def _broken(rule: str, message: str, ranges: Sequence[BlockRange]) -> ProtocolError:
    return ProtocolError(
        message,
        hint=f'the server broke the rule {rule}; nothing of this range was kept',
        rule=rule,
        ranges=tuple(ranges),
    )


def _listed(ranges: Sequence[BlockRange]) -> str:
    return ', '.join(map(str, ranges))


class ReorgAwareStream:
    """Batches with the news of reorgs put before the batch that shows one.

    `responses` are batches as they come off the wire; `resume_watermark` is the position they were resumed from, so
    that a reorg across the reconnect is seen too. No batch is ever held back or dropped. It is an iterator of its own.
    Raises ProtocolError.
    """

    def __init__(self, responses: Iterable[ResponseBatch], resume_watermark: ResumeWatermark | None = None) -> None:
        self._responses = iter(responses)
        self._previous: tuple[BlockRange, ...] = ()
        self._resumed = {r.network: r for r in resume_watermark.ranges} if resume_watermark else {}
        self._told = self._tell()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ResponseBatch:
        return next(self._told)

    def _tell(self) -> Iterator[ResponseBatch]:
        for response in self._responses:
            ranges = response.metadata.ranges
            if ranges:
                check_ranges(ranges)
                invalidated = detect_reorg(self._before(ranges), ranges)
                self._previous = ranges
                if invalidated:
                    yield ResponseBatch.reorg_batch(invalidated)
            yield response

    def _before(self, incoming: Sequence[BlockRange]) -> tuple[BlockRange, ...]:
        if self._previous or not self._resumed:
            return self._previous
        known = tuple(self._resumed[r.network] for r in incoming if r.network in self._resumed)
        return known if len(known) == len(incoming) else ()
