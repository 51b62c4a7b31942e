"""What a stream is made of: ranges of blocks, the metadata of a batch, a batch with its metadata, a position.

Everything here is an immutable value. Block numbers are inclusive at both ends; hashes are `0x` and 64 lower-case
hex digits on the wire, and any non-empty text when a caller makes a range by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pyarrow as pa

from amp.errors import ProtocolError

__all__ = ['BatchIdentifier', 'BatchMetadata', 'BlockRange', 'ResponseBatch', 'ResumeWatermark']


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks `start` to `end` (inclusive) of one network.

    `hash` is the hash of block `end`, `prev_hash` that of block `start - 1`, `timestamp` (Unix seconds) that of block
    `end`. Raises ValueError when start > end or a number is negative.
    """

    network: str
    start: int
    end: int
    hash: str | None = None
    prev_hash: str | None = None
    timestamp: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.network:
            raise ValueError('a block range needs the name of its network')
        if self.start < 0 or self.end < 0:
            raise ValueError(f'block numbers are not negative: {self.network} {self.start}-{self.end}')
        if self.start > self.end:
            raise ValueError(f'a block range starts at or before its end: {self.network} {self.start}-{self.end}')

    def __str__(self) -> str:
        return f'{self.network} {self.start}-{self.end}'

    def overlaps_with(self, other: BlockRange) -> bool:
        """True when both are of one network and share a block."""
        return self.network == other.network and self.start <= other.end and other.start <= self.end

    def invalidates(self, other: BlockRange) -> bool:
        """True when a reorg of these blocks makes the blocks of `other` doubtful: one network, and a shared block."""
        return self.overlaps_with(other)

    def contains_block(self, number: int) -> bool:
        """True when block `number` lies in the range."""
        return self.start <= number <= self.end

    def merge_with(self, other: BlockRange) -> BlockRange:
        """The range that covers both; its hashes are those of its own ends. Raises ValueError across networks."""
        if self.network != other.network:
            raise ValueError(f'cannot merge ranges of two networks: {self} and {other}')
        first = self if self.start <= other.start else other
        last = self if self.end >= other.end else other
        return BlockRange(self.network, first.start, last.end, last.hash, first.prev_hash, last.timestamp)

    def to_dict(self) -> dict[str, str | int]:
        """The flat form; hashes that are not known are left out."""
        known: dict[str, str | int | None] = {
            'network': self.network,
            'start': self.start,
            'end': self.end,
            'hash': self.hash,
            'prev_hash': self.prev_hash,
        }
        return {key: value for key, value in known.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> BlockRange:
        """From the server's nested form (`numbers: {start, end}`) or the flat one. Raises ProtocolError."""
        numbers = data.get('numbers', data)
        if not isinstance(numbers, Mapping):
            raise ProtocolError(f'`numbers` of a block range is not an object: {_shown(data)}', ranges=data)
        network, start, end = data.get('network'), numbers.get('start'), numbers.get('end')
        if not isinstance(network, str) or not _is_block(start) or not _is_block(end):
            raise ProtocolError(f'a block range without network, start or end: {_shown(data)}', ranges=data)
        for key in ('hash', 'prev_hash'):
            if not isinstance(data.get(key), str | None):
                raise ProtocolError(f'`{key}` of a block range is not a text: {_shown(data)}', ranges=data)
        timestamp = data.get('timestamp')
        if timestamp is not None and not _is_block(timestamp):
            raise ProtocolError(f'`timestamp` of a block range is not a number: {_shown(data)}', ranges=data)
        try:
            return cls(
                network,
                cast('int', start),
                cast('int', end),
                cast('str | None', data.get('hash')),
                cast('str | None', data.get('prev_hash')),
                cast('int | None', timestamp),
            )
        except ValueError as error:
            raise ProtocolError(f'{error}: {_shown(data)}', ranges=data) from error


def _is_block(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + '...'


class _Ranges(tuple[BlockRange, ...]):
    """Ranges as they came; a list of the same is equal to them."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(tuple(other) if isinstance(other, list) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__


@dataclass(frozen=True, slots=True)
class BatchMetadata:
    """What `app_metadata` says of a batch: the ranges of its microbatch, and whether it closes it."""

    ranges: tuple[BlockRange, ...]
    ranges_complete: bool = False

    def __init__(self, ranges: Iterable[BlockRange] = (), ranges_complete: bool = False) -> None:
        object.__setattr__(self, 'ranges', _Ranges(ranges))
        object.__setattr__(self, 'ranges_complete', ranges_complete)

    @classmethod
    def from_flight_data(cls, data: bytes | pa.Buffer | str) -> BatchMetadata:
        """From the bytes of `app_metadata`; unknown keys are ignored. Raises ProtocolError when it does not parse."""
        raw = data if isinstance(data, str | bytes) else data.to_pybytes()
        try:
            parsed = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f'the metadata of a batch is not JSON: {_shown(raw)}', metadata=_shown(raw)) from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get('ranges'), list):
            raise ProtocolError(f'the metadata of a batch has no list of ranges: {_shown(raw)}', metadata=_shown(raw))
        complete = parsed.get('ranges_complete', False)
        if not isinstance(complete, bool):
            raise ProtocolError(f'`ranges_complete` is not a boolean: {_shown(raw)}', metadata=_shown(raw))
        for item in parsed['ranges']:
            if not isinstance(item, dict):
                raise ProtocolError(f'a block range is not an object: {_shown(raw)}', metadata=_shown(raw))
        return cls((BlockRange.from_dict(item) for item in parsed['ranges']), complete)


@dataclass(frozen=True, slots=True)
class ResponseBatch:
    """One message of a stream: a record batch with its metadata, or the news of a reorg (then `data` is None)."""

    data: pa.RecordBatch | None
    metadata: BatchMetadata
    invalidation_ranges: tuple[BlockRange, ...] = _Ranges()

    @classmethod
    def data_batch(cls, data: pa.RecordBatch, metadata: BatchMetadata) -> ResponseBatch:
        """A record batch that belongs to the ranges of `metadata`."""
        return cls(data, metadata)

    @classmethod
    def reorg_batch(cls, invalidation_ranges: Sequence[BlockRange]) -> ResponseBatch:
        """The news that these ranges are no longer on the chain."""
        return cls(None, BatchMetadata(), _Ranges(invalidation_ranges))

    @property
    def is_reorg(self) -> bool:
        """True for the news of a reorg."""
        return bool(self.invalidation_ranges)

    @property
    def num_rows(self) -> int:
        """Rows of the record batch; 0 for the news of a reorg."""
        return self.data.num_rows if self.data is not None else 0


@dataclass(frozen=True, slots=True)
class ResumeWatermark:
    """The position of a stream: the ranges (one a network) of its last committed microbatch.

    `gaps` are holes in what is committed, where they were asked for; the header form does not carry them.
    """

    ranges: tuple[BlockRange, ...] = ()
    gaps: tuple[BlockRange, ...] = ()

    def __init__(self, ranges: Iterable[BlockRange] = (), gaps: Iterable[BlockRange] = ()) -> None:
        object.__setattr__(self, 'ranges', _Ranges(ranges))
        object.__setattr__(self, 'gaps', _Ranges(gaps))

    def __bool__(self) -> bool:
        return bool(self.ranges or self.gaps)

    def to_json(self) -> str:
        """The `amp-resume` header: `{network: {number, hash}}`. Ranges without a hash cannot be resumed from."""
        cursor = {r.network: {'number': r.end, 'hash': r.hash} for r in self.ranges if r.hash is not None}
        return json.dumps(cursor, separators=(',', ':'), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ResumeWatermark:
        """From the header form. Raises ProtocolError."""
        try:
            cursor = json.loads(text)
            return cls(
                BlockRange(network, at['number'], at['number'], at['hash']) for network, at in sorted(cursor.items())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f'not a resume cursor: {_shown(text)}') from error

    def to_dict(self) -> dict[str, dict[str, str | int]]:
        """The header form as a dictionary."""
        return cast('dict[str, dict[str, str | int]]', json.loads(self.to_json()))


@dataclass(frozen=True, slots=True)
class BatchIdentifier:
    """What a person correlates a microbatch by. Never a reason to skip data: a replay has other boundaries."""

    network: str
    start_block: int
    end_block: int
    end_hash: str
    start_parent_hash: str = ''

    @property
    def unique_id(self) -> str:
        """First 16 hex digits of SHA-256 of `network:start:end:end_hash:start_parent_hash`."""
        text = f'{self.network}:{self.start_block}:{self.end_block}:{self.end_hash}:{self.start_parent_hash}'
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def position_key(self) -> tuple[str, int, int]:
        """(network, start, end): where it lies, whatever its hashes."""
        return (self.network, self.start_block, self.end_block)

    @classmethod
    def from_block_range(cls, block_range: BlockRange) -> BatchIdentifier:
        """Raises ValueError when the range has no hash: an id without one would not tell two branches apart."""
        if not block_range.hash:
            raise ValueError(f'a batch id needs the hash of the range: {block_range}')
        r = block_range
        return cls(r.network, r.start, r.end, block_range.hash, r.prev_hash or '')

    def to_block_range(self) -> BlockRange:
        """The range that this identifies."""
        return BlockRange(self.network, self.start_block, self.end_block, self.end_hash, self.start_parent_hash or None)

    def overlaps_or_after(self, block: int) -> bool:
        """True when the batch holds `block` or a later one: what a reorg at `block` invalidates."""
        return self.end_block >= block
