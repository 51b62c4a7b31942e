"""What a backfill has to do: what the server covers, less what the destination has already."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from amp.errors import ConfigError, SourceError
from amp.loaders.lanes import family, history_of
from amp.loaders.status import server_coverage
from amp.loaders.unit import Claim, StreamInfo
from amp.streaming.ledger import StreamKey
from amp.streaming.parallel import ParallelConfig, missing
from amp.streaming.resilience import patiently
from amp.streaming.types import BlockRange

if TYPE_CHECKING:
    from amp.backfill.lane import LaneSpec
    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['Plan', 'make_plan', 'newest_block']


@dataclass(frozen=True)
class Plan:
    """Inclusive ranges still to do; `done` blocks are there. `base`: what the stream that follows stands on when no
    lane holds anything before it.
    """

    network: str
    start: int
    end: int
    ranges: tuple[BlockRange, ...]
    done: int
    base: BlockRange | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def blocks(self) -> int:
        """Blocks still to do."""
        return sum(r.end - r.start + 1 for r in self.ranges)

    def log(self, logger: logging.Logger) -> None:
        """What resume skips, adjusts and fills."""
        logger.info(
            'blocks %s to %s of %s: %s are there, %s to load in %d ranges',
            f'{self.start:,}', f'{self.end:,}', self.network, f'{self.done:,}', f'{self.blocks:,}', len(self.ranges),
        )  # fmt: skip
        for note in self.notes:
            logger.info('%s', note)


def make_plan(
    client: Client, loader: DataLoader[Any], spec: LaneSpec, config: ParallelConfig, detect_gaps: bool = True
) -> Plan:
    """Ask server and destination; touches nothing. Raises ConfigError and SourceError."""
    from amp.backfill.split import Splittable

    splits = Splittable(spec.query, config.block_column)
    follow = config.max_block is None
    if follow and splits.joins:
        raise ConfigError(
            'a query with a join cannot be handed over to a stream: its rows meet rows of later blocks',
            hint='give max_block to load a closed range, or stream it without workers',
        )
    covered = patiently(lambda: _coverage(client, spec.query), spec.retry)
    loader._ensure_connected()
    mine = family(loader.streaming_destination().list_streams(), StreamKey(spec.table, spec.stream))
    _refuse_other_query(mine, spec)
    live = next((i for i in mine if i.key.name == spec.stream and i.state.position), None)
    notes = []
    start = max(config.min_block, covered.start)
    if start > config.min_block:
        notes.append(f'the server begins at block {covered.start:,}, so does the load')
    end = _end(config, covered, live, notes)
    history = history_of(mine)
    ranges = missing(history, start, end, covered.network)
    if not detect_gaps and history:
        newest = max(r.end for r in history)
        ranges = tuple(r for r in ranges if r.start > newest)
        notes.append(f'gaps are not looked for: only what is above block {newest:,}')
    done = max(end - start + 1, 0) - sum(r.end - r.start + 1 for r in ranges)
    # With nothing to load before it, the stream begins at the first block that was asked for.
    nothing_below = follow and live is None and end < start and start > covered.start
    base = BlockRange(covered.network, start - 1, start - 1) if nothing_below else None
    return Plan(covered.network, start, end, ranges, done, base, tuple(notes))


def newest_block(client: Client, query: str) -> int:
    """The last block that the server has for a query. Raises SourceError when it has none."""
    return _coverage(client, query).end


def _coverage(client: Client, query: str) -> BlockRange:
    covered = server_coverage(client, query)
    if not covered:
        raise SourceError('the server has no blocks for this query yet', hint='try again when it has synced some')
    if len(covered) > 1:
        networks = ', '.join(r.network for r in covered)
        raise ConfigError(f'the query spans several networks ({networks})', hint='load one network at a time')
    return covered[0]


def _end(config: ParallelConfig, covered: BlockRange, live: StreamInfo | None, notes: list[str]) -> int:
    """The last block of the backfill."""
    if config.max_block is not None:
        end = config.max_block - 1
        if end > covered.end:
            raise SourceError(
                f'the server has blocks up to {covered.end:,}, not up to {end:,}',
                hint=f'max_block={covered.end + 1}, or None to go on with the chain',
            )
        return end
    if live is not None:
        first = min(r.start for r in live.state.history()) if live.state.history() else live.state.base[0].end + 1
        notes.append(f'the stream goes on from block {first:,}; only what is missing below is loaded')
        return first - 1
    return covered.end - config.reorg_buffer


def _refuse_other_query(mine: Sequence[StreamInfo], spec: LaneSpec) -> None:
    own = Claim('', '', spec.query).fingerprint
    for info in mine:
        if info.claim.fingerprint not in {None, own} and not spec.settings.accept_changed_query:
            raise ConfigError(
                f'the stream {info.key.name!r} of {spec.table!r} was begun with another query',
                hint='give it another name, or say accept_changed_query=True',
            )
