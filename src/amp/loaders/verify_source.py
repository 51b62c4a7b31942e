"""The rows of a stream against the server's, block range by block range.

Both sides are reduced to a count and an order-free checksum for each stretch of blocks. The destination is read once,
the server by batch queries over the same blocks. Stretches that differ are looked at again, block by block, until the
rows themselves can be counted: missing, not the server's, or there more often than at the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from amp.errors import ConfigError, VerifyError
from amp.loaders.checksum import Words, conform, row_hashes
from amp.loaders.findings import Finding
from amp.loaders.shape import Shape
from amp.loaders.stamps import STAMP_COLUMNS, TX_ID
from amp.loaders.status import as_table, server_coverage
from amp.loaders.unit import StreamInfo
from amp.loaders.verify_rows import BLOCK_COLUMNS, as_numbers
from amp.streaming.types import BlockRange, ResponseBatch

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader
    from amp.loaders.labels import LabelJoin

__all__ = ['Comparison', 'block_column_of', 'clipped', 'comparable']

_STRETCHES = 65_536  # into which a span of blocks is divided
_WINDOW = 100_000  # blocks of one query
_MOST_RUNS = 16  # that are looked at more closely
_MOST_ROWS = 4_000_000  # whose hashes are held on one side
_PATIENCE = 10.0  # seconds, for the first range of a stream


@dataclass(frozen=True)
class _Digest:
    """Counts and checksums for stretches of `width` blocks from `first` on."""

    first: int
    width: int
    counts: npt.NDArray[np.int64]
    sums: Words

    @classmethod
    def over(cls, ranges: Sequence[BlockRange]) -> _Digest:
        width = _width(ranges)
        stretches = -(-(ranges[-1].end - ranges[0].start + 1) // width)
        return cls(ranges[0].start, width, np.zeros(stretches, np.int64), np.zeros(stretches, np.uint64))

    def add(self, blocks: npt.NDArray[np.int64], hashes: Words) -> None:
        """Rows, by their blocks and hashes. Neighbours of one stretch are added up first: rows come nearly sorted."""
        if not len(blocks):
            return
        stretch = (blocks - self.first) // self.width
        starts = np.r_[0, np.flatnonzero(np.diff(stretch)) + 1]
        np.add.at(self.sums, stretch[starts], np.add.reduceat(hashes, starts))
        np.add.at(self.counts, stretch[starts], np.diff(np.r_[starts, len(stretch)]))

    def differences(self, other: _Digest) -> list[tuple[int, int]]:
        """The blocks, as runs, of the stretches that differ."""
        off = np.flatnonzero((self.counts != other.counts) | (self.sums != other.sums))
        if not len(off):
            return []
        breaks = np.flatnonzero(np.diff(off) > 1)
        firsts, lasts = off[np.r_[0, breaks + 1]], off[np.r_[breaks, len(off) - 1]]
        return [
            (self.first + a * self.width, self.first + (b + 1) * self.width - 1)
            for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)
        ]


class Comparison:
    """One stream of a loader, beside the query that fed it. Raises SourceError when the server is asked in vain."""

    def __init__(
        self,
        loader: DataLoader[Any],
        info: StreamInfo,
        client: Client,
        query: str,
        block_column: str | None,
        join: LabelJoin | None = None,
    ) -> None:
        """`join` gives the server's rows the labels that the stream's have."""
        self._loader = loader
        self._info = info
        self._client = client
        self._table = as_table(query)
        schema = client.sql(f'SELECT * FROM {self._table}').schema()
        self.block_column = block_column_of(schema.names, block_column)
        self.notes: list[str] = []
        self._shape = Shape([] if join is None else [join])
        self._schema, self._missing = self._shared_columns(self._shape.schema(schema))

    def differences(self, ranges: Sequence[BlockRange]) -> list[Finding]:
        """What is off in `ranges` (of one network, disjoint, sorted)."""
        if self._missing:
            return [
                Finding('column', f'the column {name!r} of the query is not in the table') for name in self._missing
            ]
        findings: list[Finding] = []
        for first, last in _few(self._differing(ranges) if ranges else []):
            parts = _between(ranges, first, last)
            closer = _few(self._differing(parts)) if _width(ranges) > 1 else [(first, last)]
            found = [self._counted(_between(parts, low, high)) for low, high in closer]
            findings.extend(f for f in found if f is not None)
        return findings

    def _differing(self, ranges: Sequence[BlockRange]) -> list[tuple[int, int]]:
        here, there = _Digest.over(ranges), _Digest.over(ranges)
        for blocks, hashes in self._here(ranges):
            here.add(blocks, hashes)
        for blocks, hashes in self._there(ranges):
            there.add(blocks, hashes)
        return here.differences(there)

    def _counted(self, ranges: Sequence[BlockRange]) -> Finding | None:
        """How many rows of a few blocks are missing, strange or there too often; None when none is."""
        here, all_here = _collected(self._here(ranges))
        there, all_there = _collected(self._there(ranges))
        if all_here and all_there:
            values, places = np.unique(np.concatenate([here, there]), return_inverse=True)
            ours = np.bincount(places[: len(here)], minlength=len(values))
            theirs = np.bincount(places[len(here) :], minlength=len(values))
            counts = {
                'missing': int(np.maximum(theirs - ours, 0).sum()),
                'extra': int(ours[theirs == 0].sum()),
                'twice': int(np.maximum(ours - theirs, 0)[theirs > 0].sum()),
            }
            if not any(counts.values()):
                return None
            words = {'missing': 'missing', 'extra': 'not of the server', 'twice': 'there too often'}
            text = ', '.join(f'{_rows(counts[kind])} {told}' for kind, told in words.items() if counts[kind])
        else:
            counts = {'here': len(here), 'there': len(there)}
            text = f'{len(here):,} rows or more here and {len(there):,} at the server, not the same'
        where = BlockRange(ranges[0].network, ranges[0].start, ranges[-1].end)
        blocks = f'block {where.start}' if where.start == where.end else f'blocks {where.start}-{where.end}'
        return Finding('rows', f'{where.network} {blocks}: {text}', (where,), counts=counts)

    def _here(self, ranges: Sequence[BlockRange]) -> Iterator[tuple[npt.NDArray[np.int64], Words]]:
        interval = self._info.state.interval
        where = {TX_ID: (interval.first, interval.last), self.block_column: (ranges[0].start, ranges[-1].end)}
        columns = list(dict.fromkeys([self.block_column, *self._schema.names]))
        starts, ends = np.array([r.start for r in ranges]), np.array([r.end for r in ranges])
        for blocks, hashes in self._hashed(self._loader.stamped_scan(self._info.key.table, columns, where)):
            # What lies between the ranges is not what is compared here.
            inside = blocks <= ends[np.searchsorted(starts, blocks, side='right') - 1]
            yield blocks[inside], hashes[inside]

    def _there(self, ranges: Sequence[BlockRange]) -> Iterator[tuple[npt.NDArray[np.int64], Words]]:
        column = '"' + self.block_column.replace('"', '""') + '"'
        for r in ranges:
            for start in range(r.start, r.end + 1, _WINDOW):
                end = min(start + _WINDOW - 1, r.end)
                asked = self._client.sql(f'SELECT * FROM {self._table} WHERE {column} BETWEEN {start} AND {end}')
                with closing(asked.stream()) as batches:  # type: ignore[type-var]  # a generator, said to be an iterator
                    yield from self._hashed(self._shape.batches(batches))

    def _hashed(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[npt.NDArray[np.int64], Words]]:
        for batch in batches:
            if batch.num_rows:
                numbers: Any = as_numbers(batch.column(self.block_column), self.block_column)
                yield numbers.to_numpy(zero_copy_only=False), row_hashes(conform(batch, self._schema))

    def _shared_columns(self, schema: pa.Schema) -> tuple[pa.Schema, list[str]]:
        """The columns to compare, in the server's types, and those that the table has not."""
        stored = self._loader.stamped_scan(self._info.key.table).schema
        missing = [name for name in schema.names if name not in stored.names]
        more = [name for name in stored.names if name not in schema.names and name not in STAMP_COLUMNS]
        as_text = [
            field.name
            for field in schema
            if field.name in stored.names and pa.types.is_nested(field.type) and _is_text(stored.field(field.name).type)
        ]
        if more:
            self.notes.append(f'columns that are not of the query were not compared: {", ".join(more)}')
        if as_text:
            self.notes.append(
                f'nested columns that the destination keeps as text were not compared: {", ".join(as_text)}'
            )
        return pa.schema([field for field in schema if field.name not in {*missing, *as_text}]), missing


def block_column_of(names: Sequence[str], given: str | None) -> str:
    """The column that holds the number of a row's block. Raises ConfigError when there is none."""
    found = [given] if given is not None else [name for name in BLOCK_COLUMNS if name in names]
    if not found:
        raise ConfigError(
            f'the query has none of the columns {", ".join(BLOCK_COLUMNS)}, so its rows cannot be found by block',
            hint='name the column that holds the block number: --block-column',
        )
    if found[0] not in names:
        raise ConfigError(f'there is no column {found[0]!r}', hint=f'columns: {", ".join(names)}')
    return found[0]


def comparable(client: Client, query: str, info: StreamInfo) -> tuple[tuple[BlockRange, ...], list[str]]:
    """The history that the server can be held against now, and what had to be left out of it.

    Blocks that the server has replaced since the last commit are no fault of the destination: they are left out. Raises
    SourceError, and VerifyError for a stream over several networks.
    """
    history = info.state.history()
    if len(info.state.networks) > 1:
        raise VerifyError(
            f'the stream {info.key.name!r} follows several networks, and its rows do not say of which they are',
            hint='verify it without --source',
        )
    [position] = info.state.position.ranges
    coverage = next((r for r in server_coverage(client, query) if r.network == position.network), None)
    if coverage is None:
        return (), [f'the server has no blocks of {position.network}, so nothing was compared']
    end, reason = _last_common(client, query, info, position, coverage)
    notes = [] if reason is None else [f'blocks {end + 1}-{position.end} were not compared: {reason}']
    if coverage.start > history[0].start:
        notes.append(f'the server begins at block {coverage.start}: what is below was not compared')
    if end < max(coverage.start, history[0].start):
        return (), notes
    return tuple(_between(history, coverage.start, end)), notes


def _last_common(
    client: Client, query: str, info: StreamInfo, position: BlockRange, head: BlockRange
) -> tuple[int, str | None]:
    """The last block that both have, as far as can be told, and why it is not the position."""
    if position.hash is None:
        end = min(position.end, head.end)
        return end, 'the server does not have them' if end < position.end else None
    if (head.end, head.hash) == (position.end, position.hash):
        return position.end, None
    final = max((s.end for s in info.state.segments), default=-1)
    with closing(client.sql(query).responses(resume=info.state.position, streaming=True)) as responses:
        response = responses.get(_PATIENCE)
    ranges = response.metadata.ranges if isinstance(response, ResponseBatch) else ()
    if not ranges:
        return min(
            final, head.end
        ), f'the server is at block {head.end} and says nothing of what comes after the position'
    first = ranges[0]
    if first.start > position.end and first.prev_hash == position.hash:
        return position.end, None
    fork = first.start if first.start <= position.end else final + 1
    return max(fork - 1, final), 'the chain has changed there since the last commit'


def clipped(ranges: Iterable[BlockRange], to: BlockRange) -> list[BlockRange]:
    """The parts of ranges that lie in another one. Their ends are other blocks now, so they have no hashes."""
    kept = [r for r in ranges if r.overlaps_with(to)]
    return [BlockRange(r.network, max(r.start, to.start), min(r.end, to.end)) for r in kept]


def _between(ranges: Sequence[BlockRange], first: int, last: int) -> list[BlockRange]:
    return clipped(ranges, BlockRange(ranges[0].network, first, last))


def _width(ranges: Sequence[BlockRange]) -> int:
    return -(-(ranges[-1].end - ranges[0].start + 1) // _STRETCHES)


def _few(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most so many runs: the last of many stands for all that come after it."""
    return runs if len(runs) <= _MOST_RUNS else [*runs[: _MOST_RUNS - 1], (runs[_MOST_RUNS - 1][0], runs[-1][1])]


def _collected(parts: Iterable[tuple[npt.NDArray[np.int64], Words]]) -> tuple[Words, bool]:
    """All hashes; False when they are too many to hold."""
    found, held = [np.zeros(0, np.uint64)], 0
    for _, hashes in parts:
        held += len(hashes)
        if held > _MOST_ROWS:
            return np.concatenate(found), False
        found.append(hashes)
    return np.concatenate(found), True


def _rows(count: int) -> str:
    return f'{count:,} row{"s" * (count != 1)}'


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
