"""Which rows a destination must hold: those of exactly the blocks on the branch that ends in its position.

The oracle looks at the local Amp after everything that happens to the chain, and so knows every branch, also the ones
that the server has forgotten. Rows are compared as multisets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from amp.devserver import LocalAmp
from amp.streaming.types import ResumeWatermark

__all__ = ['COLUMNS', 'Feed', 'Oracle', 'difference']

COLUMNS = ('_block_num', 'block_hash', 'log_index', 'tx_hash', 'address', 'topic2', 'data')
"""The columns of the query; the hash of the block tells of which branch a row is."""

_SIGN = 'count'


@dataclass(frozen=True)
class Feed:
    """One stream of logs into a table: its name, the log indexes it takes, and the key when it upserts.

    With `latest_by` the query gives one row a block, and the newest of a key stays.
    """

    name: str
    first: int = 0
    last: int = 1_000_000
    latest_by: str | None = None

    @property
    def sql(self) -> str:
        """The query."""
        where = f'log_index BETWEEN {self.first} AND {self.last}'
        return f'SELECT {", ".join(COLUMNS)} FROM eth_rpc.logs WHERE {where}'

    def select(self, rows: pa.Table) -> pa.Table:
        """The rows of the query, given those of a branch."""
        index = pc.field('log_index')
        rows = rows.filter((index >= self.first) & (index <= self.last))
        if self.latest_by is None:
            return rows
        newest = rows.group_by(self.latest_by).aggregate([('_block_num', 'max')])
        newest = newest.rename_columns([self.latest_by, '_block_num'])
        return rows.join(newest, [self.latest_by, '_block_num'], join_type='inner').select(COLUMNS)


class Oracle:
    """Every block that the server ever showed, with its rows. Call `look` after each change of the chain."""

    def __init__(self, amp: LocalAmp) -> None:
        self._amp = amp
        self._parents: dict[bytes, bytes] = {}
        self._rows: list[pa.Table] = []
        self.look()

    def look(self) -> None:
        """Remember the canonical chain as it is now."""
        blocks = self._amp.canonical('blocks')
        pairs: Any = zip(blocks['hash'].to_pylist(), blocks['parent_hash'].to_pylist(), strict=True)
        new = {block: parent for block, parent in pairs if block not in self._parents}
        self._parents |= new
        rows = self._amp.canonical('logs').select(COLUMNS)
        wanted = pc.field('block_hash').isin(pa.array(list(new), pa.binary(32)))
        self._rows.append(_plain(rows.filter(wanted)))

    def expected(self, feeds: Mapping[Feed, ResumeWatermark]) -> pa.Table:
        """The rows of a table that these streams have filled up to these positions. Raises AssertionError."""
        seen = pa.concat_tables(self._rows)
        parts = [seen.slice(0, 0)]
        for feed, position in feeds.items():
            if position:
                branch = self._branch(position)
                parts.append(feed.select(seen.filter(pc.field('block_hash').isin(branch))))
        return pa.concat_tables(parts)

    def _branch(self, position: ResumeWatermark) -> pa.Array[pa.BinaryScalar]:
        (end,) = position.ranges
        at = bytes.fromhex((end.hash or '').removeprefix('0x'))
        if at not in self._parents:
            raise AssertionError(f'the recorded position {end} with hash {end.hash} is no block of any branch')
        branch = []
        while at in self._parents:
            branch.append(at)
            at = self._parents[at]
        return pa.array(branch, pa.binary())


def difference(found: pa.Table, expected: pa.Table) -> str | None:
    """What is lost, there twice or orphaned in `found`; None when both are the same multiset of rows."""
    found = _plain(found.select(COLUMNS)).cast(expected.schema)
    both = pa.concat_tables([_signed(found, 1), _signed(expected, -1)])
    counted = both.group_by(list(COLUMNS)).aggregate([(_SIGN, 'sum')])
    wrong = counted.filter(pc.field('count_sum') != 0)
    if not wrong.num_rows:
        return None
    lost = wrong.filter(pc.field('count_sum') < 0)
    more = wrong.filter(pc.field('count_sum') > 0)
    known = pc.is_in(more['block_hash'], value_set=expected['block_hash'].combine_chunks())
    twice, orphaned = more.filter(known), more.filter(pc.invert(known))
    told = [
        f'{rows.num_rows} rows {what} in blocks {_blocks(rows)}'
        for what, rows in (('lost', lost), ('too many', twice), ('of blocks that are not on the branch', orphaned))
        if rows.num_rows
    ]
    return f'{found.num_rows} rows found, {expected.num_rows} expected: ' + '; '.join(told)


def _plain(rows: pa.Table) -> pa.Table:
    """With bytes of a fixed width as bytes of any: destinations do not keep the width."""
    schema = pa.schema(
        [pa.field(f.name, pa.binary() if pa.types.is_fixed_size_binary(f.type) else f.type) for f in rows.schema]
    )
    return rows.cast(schema)


def _signed(rows: pa.Table, sign: int) -> pa.Table:
    return rows.append_column(_SIGN, pa.repeat(pa.scalar(sign, pa.int64()), rows.num_rows))


def _blocks(rows: pa.Table) -> str:
    found: Any = rows['_block_num'].to_pylist()
    numbers = sorted(set(found))
    return ', '.join(map(str, numbers[:12])) + (', ...' if len(numbers) > 12 else '')
