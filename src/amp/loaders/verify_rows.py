"""The rows of a table against the recorded history of the streams that feed it.

The rows are read once, and only their stamps and block numbers; they are summed up per microbatch by Arrow, so what is
held in memory and looked at afterwards is one line for each microbatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from amp.errors import ConfigError
from amp.loaders.findings import Finding, shown
from amp.loaders.stamps import BATCH_ID, TX_ID
from amp.streaming.ledger import IdRun, StreamState, merge_ranges
from amp.streaming.machine import batch_id
from amp.streaming.types import BlockRange

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader

__all__ = ['BLOCK_COLUMNS', 'RowSummary', 'as_numbers', 'check_rows', 'summarise']

BLOCK_COLUMNS = ('_block_num', 'block_num', 'block_number')

pc: Any = pyarrow.compute  # the stubs know arrays of one type at a time

_Numbers = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]

_MOST_LINES = 200_000
_BLOCK = '_amp_block'
_SUMS = [('rows', 'sum'), ('low', 'min'), ('high', 'max'), ('unknown', 'sum')]


@dataclass(frozen=True)
class RowSummary:
    """One line for each microbatch that rows name: ids, number of rows, lowest and highest block (-1: none known).

    `unstamped` counts the rows without an id: those of loads that were no stream.
    """

    tx: _Numbers
    batch: npt.NDArray[np.object_]
    rows: _Numbers
    low: _Numbers
    high: _Numbers
    unknown: _Numbers
    unstamped: int = 0

    def where(self, chosen: _Flags) -> RowSummary:
        """The lines that are chosen."""
        return RowSummary(
            self.tx[chosen],
            self.batch[chosen],
            self.rows[chosen],
            self.low[chosen],
            self.high[chosen],
            self.unknown[chosen],
        )

    def within(self, interval: IdRun) -> RowSummary:
        """The lines of one stream."""
        return self.where((self.tx >= interval.first) & (self.tx <= interval.last))

    @property
    def total(self) -> int:
        """The number of rows."""
        return int(self.rows.sum())

    def runs(self) -> tuple[IdRun, ...]:
        """The ids, as few runs."""
        ids = np.unique(self.tx)
        if not len(ids):
            return ()
        breaks = np.flatnonzero(np.diff(ids) > 1)
        firsts, lasts = ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]]
        return tuple(IdRun(a, b) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True))

    def blocks(self) -> str:
        """` of blocks 3-7`, or nothing where they are not known."""
        known = self.low >= 0
        if not known.any():
            return ''
        return f' of blocks {int(self.low[known].min())}-{int(self.high[known].max())}'


def summarise(loader: DataLoader[Any], table: str, block_column: str | None) -> RowSummary:
    """Read the stamps of every row. Raises LoadError when the loader cannot show them, ConfigError for a block column
    without numbers.
    """
    wanted = [TX_ID, BATCH_ID] + ([block_column] if block_column is not None else [])
    lines: list[pa.Table] = []
    held = 0
    for batch in loader.stamped_scan(table, wanted):
        if batch.num_rows:
            lines.append(_lines_of(batch, block_column))
            held += lines[-1].num_rows
        if held > _MOST_LINES:
            lines = [_merged(lines)]
            # What does not shrink any further is not merged again with every batch.
            held = 0
    return _as_summary(_merged(lines)) if lines else _nothing()


def as_numbers(column: Any, name: str) -> pa.Int64Array:
    """A column of block numbers as int64, whatever the destination keeps them as. Raises ConfigError."""
    try:
        numbers: pa.Int64Array = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f'the column {name!r} ({column.type}) has no block numbers', hint='name another: --block-column'
        ) from error
    return numbers


def _lines_of(batch: pa.RecordBatch, block_column: str | None) -> pa.Table:
    tx = batch.column(TX_ID).cast(pa.int64())
    if block_column is None:
        blocks: Any = pa.nulls(batch.num_rows, pa.int64())
    else:
        blocks = as_numbers(batch.column(block_column), block_column)
    rows = pa.table({TX_ID: tx, BATCH_ID: batch.column(BATCH_ID).cast(pa.string()), _BLOCK: blocks})
    grouped: Any = rows.group_by([TX_ID, BATCH_ID])
    nulls = pc.CountOptions(mode='only_null')
    sums: pa.Table = grouped.aggregate([([], 'count_all'), (_BLOCK, 'min'), (_BLOCK, 'max'), (_BLOCK, 'count', nulls)])
    names = [TX_ID, BATCH_ID, 'rows', 'low', 'high', 'unknown']
    picked = [TX_ID, BATCH_ID, 'count_all', f'{_BLOCK}_min', f'{_BLOCK}_max', f'{_BLOCK}_count']
    return sums.select(picked).rename_columns(names)


def _merged(lines: Sequence[pa.Table]) -> pa.Table:
    grouped: Any = pa.concat_tables(lines).group_by([TX_ID, BATCH_ID])
    merged: pa.Table = grouped.aggregate(_SUMS).select([TX_ID, BATCH_ID, *(f'{name}_{how}' for name, how in _SUMS)])
    return merged.rename_columns([TX_ID, BATCH_ID, *(name for name, _ in _SUMS)])


def _as_summary(lines: pa.Table) -> RowSummary:
    stamped: Any = lines.filter(pc.is_valid(lines[TX_ID]))
    unstamped = lines.filter(pc.is_null(lines[TX_ID]))
    columns = {name: stamped[name].combine_chunks() for name in lines.column_names}
    numbers = {name: columns[name].fill_null(-1).to_numpy(zero_copy_only=False) for name in (TX_ID, 'low', 'high')}
    counts = {name: columns[name].to_numpy(zero_copy_only=False) for name in ('rows', 'unknown')}
    return RowSummary(
        numbers[TX_ID],
        columns[BATCH_ID].to_numpy(zero_copy_only=False),
        counts['rows'],
        numbers['low'],
        numbers['high'],
        counts['unknown'],
        int(unstamped['rows'].to_numpy().sum()),
    )


def _nothing() -> RowSummary:
    none = np.zeros(0, np.int64)
    return RowSummary(none, none.astype(np.object_), none, none, none, none)


def check_rows(state: StreamState, rows: RowSummary) -> Iterator[Finding]:
    """The rows of one stream against its state: orphans, blocks that are not recorded, foreign batch ids."""
    entry, named = _entries_of(state, rows)
    final = rows.tx < state.window_first_id()
    orphan = ~named & (~final if state.segments else np.ones_like(named))
    if orphan.any():
        found = rows.where(orphan)
        yield Finding(
            'orphans',
            f'{found.total:,} rows{found.blocks()} are orphans: no recorded unit has their ids {shown(found.runs())}',
            runs=found.runs(),
            counts={'rows': found.total},
        )
    yield from _outside(state, rows, entry, named, final & ~named & ~orphan)
    yield from _foreign_batches(state, rows, entry, named)


def _entries_of(state: StreamState, rows: RowSummary) -> tuple[_Numbers, _Flags]:
    """For each line the entry that may name it, and whether it does."""
    if not state.entries:
        return np.zeros(len(rows.tx), np.int64), np.zeros(len(rows.tx), np.bool_)
    firsts = np.array([e.first_id for e in state.entries])
    lasts = np.array([e.last_id for e in state.entries])
    entry = np.clip(np.searchsorted(firsts, rows.tx, side='right') - 1, 0, None)
    return entry, (rows.tx >= firsts[entry]) & (rows.tx <= lasts[entry])


def _outside(state: StreamState, rows: RowSummary, entry: _Numbers, named: _Flags, final: _Flags) -> Iterator[Finding]:
    """Rows whose blocks are not those of their entry or, below the undo window, of the final history."""
    has_blocks = rows.low >= 0
    outside = final & has_blocks & ~_covered(state.segments, rows.low, rows.high)
    if state.entries:
        lows = np.array([min(r.start for r in e.ranges) for e in state.entries])
        highs = np.array([max(r.end for r in e.ranges) for e in state.entries])
        outside |= named & has_blocks & ((rows.low < lows[entry]) | (rows.high > highs[entry]))
    if has_blocks.any():
        outside |= rows.unknown > 0
    if outside.any():
        found = rows.where(outside)
        yield Finding(
            'outside',
            f'among {found.total:,} rows{found.blocks()} with ids {shown(found.runs())} are some whose block is not in '
            'the recorded history of their ids',
            runs=found.runs(),
            counts={'rows': found.total},
        )


def _covered(ranges: Sequence[BlockRange], low: _Numbers, high: _Numbers) -> _Flags:
    """Which of the spans low..high lie in one of the ranges, whatever the network."""
    merged = merge_ranges([BlockRange('any', r.start, r.end) for r in ranges])
    if not merged:
        return np.zeros(len(low), np.bool_)
    starts, ends = np.array([r.start for r in merged]), np.array([r.end for r in merged])
    place = np.clip(np.searchsorted(starts, low, side='right') - 1, 0, None)
    return np.asarray((low >= starts[place]) & (high <= ends[place]))


def _foreign_batches(state: StreamState, rows: RowSummary, entry: _Numbers, named: _Flags) -> Iterator[Finding]:
    """Rows whose batch id is not that of their microbatch: known of every entry that is not a pair of several."""
    ids, counts = np.unique(rows.tx, return_counts=True)
    wrong = np.isin(rows.tx, ids[counts > 1])
    if state.entries:
        single = np.array([e.first_id == e.last_id for e in state.entries])[entry] & named
        expected = np.array([batch_id(e.ranges) for e in state.entries], np.object_)[entry]
        wrong = np.where(single, rows.batch != expected, wrong)
    if wrong.any():
        found = rows.where(wrong)
        ranges = _ranges_of(state, entry[wrong & named])
        yield Finding(
            'batch',
            f'{found.total:,} rows{found.blocks()} with ids {shown(found.runs())} carry a batch id that is not that '
            'of their microbatch',
            ranges,
            found.runs(),
            {'rows': found.total},
        )


def _ranges_of(state: StreamState, entries: _Numbers) -> tuple[BlockRange, ...]:
    return tuple(r for index in np.unique(entries).tolist() for r in state.entries[index].ranges)
