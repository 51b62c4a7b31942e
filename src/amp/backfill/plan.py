"""What a backfill has to do: what the server covers, less what the destination has already."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from amp.backfill.split import BLOCK_NUMBER, Splittable, with_block_number
from amp.errors import ConfigError, QueryError, SourceError
from amp.loaders.lanes import family, history_of
from amp.loaders.status import as_table
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

logger = logging.getLogger('amp.backfill')

_LOOKED_AT = 1_000


@dataclass(frozen=True)
class Plan:
    """Inclusive ranges still to do; `done` blocks are there. `schema`: the columns of the rows. `base`: what the stream
    that follows stands on when no lane holds anything before it.
    """

    network: str
    schema: pa.Schema
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
    splits = Splittable(spec.query, config.block_column)
    follow = config.max_block is None
    if follow and splits.joins:
        raise ConfigError(
            'a query with a join cannot be handed over to a stream: its rows meet rows of later blocks',
            hint='give max_block to load a closed range, or stream it without workers',
        )
    covered, columns = patiently(lambda: _coverage(client, spec.query), spec.retry)
    _refuse_other_type(columns, config.block_column)
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
    if ranges:
        patiently(lambda: _refuse_other_column(client, spec.query, columns, config.block_column, covered), spec.retry)
    done = max(end - start + 1, 0) - sum(r.end - r.start + 1 for r in ranges)
    # With nothing to load before it, the stream begins at the first block that was asked for.
    nothing_below = follow and live is None and end < start and start > covered.start
    base = BlockRange(covered.network, start - 1, start - 1) if nothing_below else None
    return Plan(covered.network, columns, start, end, ranges, done, base, tuple(notes))


def newest_block(client: Client, query: str) -> int:
    """The last block that the server has for a query. Raises SourceError when it has none."""
    return _coverage(client, query)[0].end


def _coverage(client: Client, query: str) -> tuple[BlockRange, pa.Schema]:
    """The blocks that the server's tables have, and the columns of the query."""
    ranges: tuple[BlockRange, ...] = ()
    schema = pa.schema([])
    with closing(client.sql(f'SELECT * FROM {as_table(query)} LIMIT 0').responses(streaming=False)) as responses:
        for response in responses:
            ranges = response.metadata.ranges
            schema = schema if response.data is None else response.data.schema
    if not ranges:
        raise SourceError('the server has no blocks for this query yet', hint='try again when it has synced some')
    if len(ranges) > 1:
        networks = ', '.join(r.network for r in ranges)
        raise ConfigError(f'the query spans several networks ({networks})', hint='load one network at a time')
    return ranges[0], schema


def _refuse_other_type(columns: pa.Schema, block_column: str) -> None:
    if block_column not in columns.names:
        raise ConfigError(
            f'the query does not select {block_column!r}, the column by which it would be split',
            hint=f'its columns: {", ".join(columns.names)}; name the one that holds the block with block_column',
        )
    kind = columns.field(block_column).type
    if not pa.types.is_integer(kind):
        raise ConfigError(
            f'{block_column!r} is no block number: it is {kind}', hint='name the column that is one with block_column'
        )


def _refuse_other_column(
    client: Client, query: str, columns: pa.Schema, block_column: str, covered: BlockRange
) -> None:
    """Hold the column against Amp's own block number in the newest blocks, where the query lets both be seen.

    Split by any other number, each part would have rows of all blocks, and nothing would show it.
    """
    table = as_table(query) if BLOCK_NUMBER in columns.names else with_block_number(query)
    if block_column == BLOCK_NUMBER or table is None:
        return
    name = '"' + block_column.replace('"', '""') + '"'
    newest = f'{BLOCK_NUMBER} >= {max(covered.end - _LOOKED_AT, 0)}'
    sql = f'SELECT {name} FROM {table} WHERE {newest} AND {name} <> {BLOCK_NUMBER} LIMIT 1'
    try:
        different = client.sql(sql).to_arrow().num_rows
    except QueryError as error:
        logger.debug('%r could not be held against the number of the block: %s', block_column, error)
        return
    if different:
        raise ConfigError(
            f'{block_column!r} is no block number: it differs from {BLOCK_NUMBER}',
            hint='block_column must hold the number of the block that a row is of',
        )


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
