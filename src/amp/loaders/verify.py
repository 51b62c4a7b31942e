"""Proof after the fact: is what a destination holds what its streams say that it holds, and what the server has?

Three questions, each with its own answer: is the recorded history whole (`check_state`), do the rows fit it
(`verify_rows`), and are they the server's rows (`verify_source`)? Nothing is changed, and nothing is taken over: a
stream may run on meanwhile, and what it does in between is not held against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from amp.errors import ConfigError, VerifyError
from amp.loaders.findings import Finding, Report, shown
from amp.loaders.lanes import family, gaps_of, leader
from amp.loaders.stamps import STAMP_COLUMNS
from amp.loaders.unit import StreamInfo
from amp.loaders.verify_rows import BLOCK_COLUMNS, RowSummary, check_rows, summarise
from amp.streaming.ledger import MAX_COUNTER, Entry, IdRun, StreamKey, StreamState, transaction_id
from amp.streaming.parallel import stream_of_lane
from amp.streaming.types import BlockRange

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['check_state', 'verify', 'verify_table']

_MOST_LOOKS = 3  # at rows that differ, while stream and chain move on


def verify(loader: DataLoader[Any], table: str | None = None, **options: Any) -> list[Report]:
    """Verify one table of a connected loader, or every table that a stream feeds. Options as for `verify_table`."""
    infos = loader.streaming_destination().list_streams()
    tables = [table] if table is not None else list(dict.fromkeys(info.key.table for info in infos))
    return [report for each in tables for report in verify_table(loader, each, **options)]


def verify_table(
    loader: DataLoader[Any],
    table: str,
    *,
    name: str | None = None,
    source: Client | None = None,
    query: str | None = None,
    block_column: str | None = None,
) -> list[Report]:
    """One report for each stream that feeds `table`, or for the one called `name`.

    With `source` the rows are compared with the answer to `query` (default: the one stored with the stream).
    `block_column` holds the block number of a row (default: `_block_num`, `block_num` or `block_number`). Raises
    ConfigError for a stream, query or column that is not there, SourceError, DestinationError, and IntegrityError for a
    state that does not parse.
    """
    infos = _streams_of(loader, table)
    chosen = [info for info in infos if name is None or info.key.name == name]
    if not chosen:
        known = ', '.join(info.key.name for info in infos)
        what = f'no stream {name!r} of' if name is not None and infos else 'no stream into'
        raise ConfigError(f'there is {what} {table!r}', hint=f'streams: {known}' if known else 'see amp status')
    reports = {info.key: Report(info.key, info.state.history()) for info in chosen}
    for info in chosen:
        members = family(infos, leader(info))
        reports[info.key].findings.extend(check_state(info, members if info is members[0] else ()))
    if not loader.table_exists(table):
        for info in chosen:
            if info.state.networks:
                reports[info.key].findings.append(
                    Finding('table', f'the table {table!r} is gone', info.state.history())
                )
        return list(reports.values())
    _hold_rows_against(loader, table, infos, reports, block_column)
    if source is not None:
        for info in chosen:
            _compare(loader, info, reports[info.key], source, query, block_column)
    return list(reports.values())


def _streams_of(loader: DataLoader[Any], table: str) -> list[StreamInfo]:
    return [info for info in loader.streaming_destination().list_streams() if info.key.table == table]


# The state itself


def check_state(info: StreamInfo, members: Sequence[StreamInfo] | None = None) -> Iterator[Finding]:
    """Gaps (of all `members` of a stream together, where a backfill's lanes hold part of it), overlaps, hashes that do not link, ids that do not rise or are of no epoch that was ever taken."""
    state = info.state
    for gap in gaps_of([info] if members is None else members):
        yield Finding('gap', f'nothing is recorded of {gap}', (gap,))
    for network in state.networks:
        segments = [s for s in state.segments if s.network == network]
        # The newest unit of a lane is history and entry at once.
        entries = state.unsettled() if stream_of_lane(info.key.name) else state.entries
        yield from _check_chain(segments, [r for entry in entries if (r := entry.range_of(network)) is not None])
    yield from _check_ids(state)


def _check_chain(segments: Sequence[BlockRange], ranges: Sequence[BlockRange]) -> Iterator[Finding]:
    """Each range must begin after the one before, and name its hash when it begins right after it."""
    row = [*sorted(segments, key=lambda r: r.start), *ranges]
    for before, after in pairwise(row):
        if after.start <= before.end:
            yield Finding('overlap', f'{before} and {after} are both recorded, and share blocks', (before, after))
        elif after.start == before.end + 1 and _breaks(before.hash, after.prev_hash):
            yield Finding(
                'chain',
                f'{after} does not follow {before}: its parent is {after.prev_hash}, not {before.hash}',
                (before, after),
            )


def _breaks(end_hash: str | None, parent_hash: str | None) -> bool:
    return end_hash is not None and parent_hash is not None and end_hash != parent_hash


def _check_ids(state: StreamState) -> Iterator[Finding]:
    interval = IdRun(state.interval.first, transaction_id(state.number, state.epoch, MAX_COUNTER))
    previous: Entry | None = None
    for entry in state.entries:
        own = IdRun(entry.first_id, entry.last_id)
        if not interval.first <= entry.first_id <= entry.last_id <= interval.last:
            yield Finding('ids', f'the ids {shown([own])} were never given out', entry.ranges, (own,))
        if previous is not None and entry.first_id <= previous.last_id:
            yield Finding('ids', f'the ids {shown([own])} do not come after {previous.last_id}', entry.ranges, (own,))
        previous = entry


# Its rows


def _hold_rows_against(
    loader: DataLoader[Any],
    table: str,
    infos: Sequence[StreamInfo],
    reports: dict[StreamKey, Report],
    block_column: str | None,
) -> None:
    column = _block_column(loader, table, block_column)
    rows = summarise(loader, table, column)
    after = _streams_of(loader, table)
    found = _findings(infos, after, rows)
    if any(found.values()):
        # A unit that came and was taken back while the rows were read leaves no trace in the state. Its ids never return.
        again = summarise(loader, table, column)
        found = _findings(infos, after, rows.where(np.isin(rows.tx, again.tx)))
    for info in infos:
        report = reports.get(info.key)
        if report is None:
            continue
        report.rows = rows.within(info.state.interval).total
        report.findings.extend(found[info.key])
        if column is None:
            report.notes.append('no column with block numbers: rows were held against the history by their ids alone')
        if rows.unstamped:
            report.notes.append(f'{rows.unstamped:,} rows of loads that were no stream are in the table')


def _findings(
    infos: Sequence[StreamInfo], after: Sequence[StreamInfo], rows: RowSummary
) -> dict[StreamKey, list[Finding]]:
    """What is wrong with the rows of each stream, and with those of none; the streams before the rows were read, and after."""
    states = {info.key: info.state for info in after}
    found = {}
    for info in infos:
        own = rows.within(info.state.interval)
        found[info.key] = list(check_rows(info.state, _settled(own, info.state, states.get(info.key))))
    strange = rows
    for info in (*infos, *after):
        interval = info.state.interval
        strange = strange.where((strange.tx < interval.first) | (strange.tx > interval.last))
    if strange.total:
        for findings in found.values():
            findings.append(
                Finding(
                    'orphans',
                    f'{strange.total:,} rows{strange.blocks()} are of no stream that is known: {shown(strange.runs())}',
                    runs=strange.runs(),
                    counts={'rows': strange.total},
                )
            )
    return found


def _settled(rows: RowSummary, before: StreamState, after: StreamState | None) -> RowSummary:
    """Without what a stream wrote or took back while the rows were read."""
    if after == before:
        return rows
    if after is None:
        return rows.where(np.zeros(len(rows.tx), np.bool_))
    last = max((entry.last_id for entry in before.entries), default=before.first_id - 1)
    return rows.where(rows.tx <= last)


def _block_column(loader: DataLoader[Any], table: str, given: str | None) -> str | None:
    names = loader.stamped_scan(table).schema.names
    absent = [column for column in STAMP_COLUMNS if column not in names]
    if absent:
        raise VerifyError(f'the table {table!r} has no column {absent[0]!r}, which every row of a stream carries')
    if given is not None and given not in names:
        raise ConfigError(f'the table {table!r} has no column {given!r}', hint=f'columns: {", ".join(names)}')
    return given or next((column for column in BLOCK_COLUMNS if column in names), None)


# The server's rows


def _compare(
    loader: DataLoader[Any],
    info: StreamInfo,
    report: Report,
    source: Client,
    query: str | None,
    block_column: str | None,
) -> None:
    from amp.loaders.label_record import join_again
    from amp.loaders.verify_source import Comparison, clipped, comparable

    text = query or info.claim.query
    if text is None:
        raise ConfigError(
            f'no query is stored with the stream {info.key.name!r} of {info.key.table!r}', hint='give it: --query SQL'
        )
    if not info.state.networks:
        report.notes.append('nothing is committed yet, so nothing was compared')
        return
    ranges, notes = comparable(source, text, info)
    join, problem = join_again(info.state.labels, source.label_manager)
    if problem is not None:
        report.notes.append(problem)
        return
    comparison = Comparison(loader, info, source, text, block_column, join)
    found = comparison.differences(ranges)
    for _ in range(_MOST_LOOKS):
        now = next((i for i in _streams_of(loader, info.key.table) if i.key == info.key), info)
        still, now_left_out = comparable(source, text, now) if found else (ranges, notes)
        if not found or (now.state == info.state and still == ranges):
            break
        # Stream or chain moved while the rows were read: what differs is looked at again, as far as both still have it.
        info, notes, ranges = now, now_left_out, still
        found = comparison.differences([part for f in found for r in f.ranges for part in clipped(still, r)])
    report.compared = ranges
    report.findings.extend(found)
    report.notes.extend([*notes, *comparison.notes])
