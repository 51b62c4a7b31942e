"""Columns at the edges of their types: all that Amp sends, and what a query can make of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa

ACCESS = pa.list_(pa.struct([('address', pa.binary(20)), ('storage_keys', pa.list_(pa.binary(32)))]))


def amp_columns() -> dict[str, pa.Array[Any]]:
    """Three rows of every type that Amp's own tables have; the last is null everywhere."""
    return {
        'uint64': pa.array([0, 2**64 - 1, None], pa.uint64()),
        'uint32': pa.array([0, 2**32 - 1, None], pa.uint32()),
        'int32': pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
        'flag': pa.array([True, False, None]),
        'address': pa.array([b'\x00' * 20, b'\xff' * 20, None], pa.binary(20)),
        'hash': pa.array([b'\x01' * 32, bytes(range(32)), None], pa.binary(32)),
        'data': pa.array([b'', b'\x00\n\'"\\,;\xff', None], pa.binary()),
        'gas': pa.array([Decimal(0), Decimal('9' * 38), None], pa.decimal128(38, 0)),
        'timestamp': pa.array([0, 1_693_000_000_123_456_000, None], pa.int64()).cast(pa.timestamp('ns', 'UTC')),
        'value': pa.array(['', str(2**256 - 1), None]),
        'text': pa.array(['ünï \\ " \' \n\t | , \U0001f600', 'NULL', None]),
        'access_list': pa.array(
            [[], [{'address': b'\x02' * 20, 'storage_keys': [b'\x03' * 32, b'\x04' * 32]}], None], ACCESS
        ),
        'blob_hashes': pa.array([[], [b'\x05' * 32], None], pa.list_(pa.binary(32))),
    }


def other_columns() -> dict[str, pa.Array[Any]]:
    """Three rows of types that a query can make; a destination lands each, or refuses it by name."""
    wide = Decimal(10) ** 75 - 1
    return {
        'uint16': pa.array([0, 2**16 - 1, None], pa.uint16()),
        'uint8': pa.array([0, 255, None], pa.uint8()),
        'int64': pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
        'int16': pa.array([-(2**15), 2**15 - 1, None], pa.int16()),
        'int8': pa.array([-128, 127, None], pa.int8()),
        'float64': pa.array([-1.7976931348623157e308, 5e-324, None]),
        'float32': pa.array([-0.5, 3.25, None], pa.float32()),
        'float16': pa.array([1.5, -2.5, None], pa.float16()),
        'large text': pa.array(['', 'x' * 70_000, None], pa.large_string()),
        'large data': pa.array([b'', b'\x00' * 70_000, None], pa.large_binary()),
        'text view': pa.array(['short', 'long enough to live in another buffer', None], pa.string_view()),
        'coded text': pa.array(['a', 'b', None]).dictionary_encode(),
        'coded address': pa.array([b'\x01' * 20, b'\x02' * 20, None], pa.binary(20)).dictionary_encode(),
        'price': pa.array([Decimal('-0.0000000001'), Decimal('9' * 28 + '.' + '9' * 10), None], pa.decimal128(38, 10)),
        'decimal256': pa.array([-wide, Decimal(2**250), None], pa.decimal256(76, 0)),
        'wide price': pa.array([Decimal('-1E-7'), Decimal('9' * 60 + '.1234567'), None], pa.decimal256(76, 7)),
        'date32': pa.array([0, 19_000, None], pa.int32()).cast(pa.date32()),
        'date64': pa.array([0, 86_400_000, None], pa.int64()).cast(pa.date64()),
        'time ns': pa.array([0, 86_399_123_456_789, None], pa.int64()).cast(pa.time64('ns')),
        'time us': pa.array([0, 86_399_999_999, None], pa.int64()).cast(pa.time64('us')),
        'naive ns': pa.array([1, 1_693_000_000_123_456_789, None], pa.int64()).cast(pa.timestamp('ns')),
        'zoned ns': pa.array([1, 1_693_000_000_123_456_789, None], pa.int64()).cast(pa.timestamp('ns', 'UTC')),
        'naive us': pa.array([0, 1_693_000_000_123_456, None], pa.int64()).cast(pa.timestamp('us')),
        'other zone': pa.array([0, 1_693_000_000_123_456, None], pa.int64()).cast(pa.timestamp('us', 'Asia/Tokyo')),
        'duration us': pa.array([0, 86_400_000_001, None], pa.duration('us')),
        'duration ns': pa.array([0, 86_400_000_000_001, None], pa.duration('ns')),
        'uint64s': pa.array([[], [0, 2**64 - 1, None], None], pa.list_(pa.uint64())),
        'decimal256s': pa.array([[], [Decimal(2**250)], None], pa.list_(pa.decimal256(76, 0))),
        'lists': pa.array([[[1], []], [None, [2]], None], pa.list_(pa.list_(pa.int32()))),
        'struct': pa.array(
            [{'a': 2**64 - 1, 'b': ''}, {'a': None, 'b': None}, None], pa.struct({'a': pa.uint64(), 'b': pa.string()})
        ),
        'map': pa.array([[], [('k', 1)], None], pa.map_(pa.string(), pa.int32())),
        'nothing': pa.nulls(3),
        'nul text': pa.array(['a\x00b', '', None]),
    }
