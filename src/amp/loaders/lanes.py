"""A stream and the lanes of its backfill: one history, kept in several places.

Each lane is a stream of its own at the destination. What is asked of a stream (its history, its gaps, where it may
begin) is asked of all of them together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from amp.errors import ConfigError
from amp.loaders.destination_state import gaps_in
from amp.loaders.unit import Claim, StreamInfo, StreamingDestination, StreamJob
from amp.streaming.ledger import StreamKey, merge_ranges
from amp.streaming.parallel import stream_of_lane
from amp.streaming.types import BlockRange

__all__ = ['base_for', 'family', 'gaps_of', 'history_of', 'leader']

logger = logging.getLogger('amp.stream')


def family(infos: Sequence[StreamInfo], key: StreamKey) -> list[StreamInfo]:
    """The stream called `key` (itself first, where it has begun) and its lanes."""
    found = [info for info in infos if info.key.table == key.table and key.name in _names(info)]
    return sorted(found, key=lambda info: (info.key != key, info.state.number))


def leader(info: StreamInfo) -> StreamKey:
    """The stream that `info` belongs to."""
    return StreamKey(info.key.table, stream_of_lane(info.key.name) or info.key.name)


def _names(info: StreamInfo) -> set[str | None]:
    return {info.key.name, stream_of_lane(info.key.name)}


def history_of(infos: Sequence[StreamInfo]) -> tuple[BlockRange, ...]:
    """The blocks that a family holds, as disjoint ranges."""
    return merge_ranges([r for info in infos for r in info.state.history()])


def gaps_of(infos: Sequence[StreamInfo]) -> tuple[BlockRange, ...]:
    """Every hole in the history of a family, from the first block that it ever took."""
    history = history_of(infos)
    gaps: list[BlockRange] = []
    for network in sorted({r.network for r in history}):
        own = [r for r in history if r.network == network]
        first = min(info.state.origins.get(network, own[0].start) for info in infos)
        gaps.extend(gaps_in(own, first))
    return tuple(gaps)


def base_for(
    destination: StreamingDestination, infos: Sequence[StreamInfo], key: StreamKey, claim: Claim
) -> BlockRange | None:
    """What a stream that has not begun stands on: the blocks of its lanes; None when it has none.

    What lanes loaded so near the head that it may have changed since is taken back first, and the stream brings it.
    Raises ConfigError when the lanes have left a hole below.
    """
    lanes = [info for info in infos if info.key.table == key.table and stream_of_lane(info.key.name) == key.name]
    settled = [_settled(destination, info, claim) if info.state.unsettled() else info for info in lanes]
    history = history_of(settled)
    if not history:
        return None
    if len(history) > 1:
        gaps = ', '.join(str(gap) for gap in gaps_of(settled)[:4])
        raise ConfigError(
            f'a backfill of {key.table!r} is not finished: {gaps} is missing, and a stream would begin over the hole',
            hint='finish it first: amp backfill loads only what is missing',
        )
    return history[0]


def _settled(destination: StreamingDestination, info: StreamInfo, claim: Claim) -> StreamInfo:
    state = destination.open_stream(info.key, claim)
    undo = state.settle()
    if undo is not None:
        logger.info(
            '%s: %d units near the head are taken back, the stream brings them', info.key.name, len(undo.dropped)
        )
        unit = destination.begin(StreamJob(info.key), state, state.first_id, undo)
        try:
            unit.commit(undo.state)
        except BaseException:  # Ctrl-C too: no unit is left open
            unit.rollback()
            raise
        state = undo.state
    return replace(info, state=state)
