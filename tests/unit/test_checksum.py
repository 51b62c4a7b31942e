"""The checksum of rows: what it must not see (order, chunks, offsets, encodings) and what it must (everything else)."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from amp.errors import SchemaError
from amp.loaders.checksum import Checksum, checksum, conform, row_hashes

pytestmark = pytest.mark.unit

ITEM = pa.struct([('a', pa.binary(3)), ('b', pa.list_(pa.int16()))])
INT64 = st.integers(-(2**63), 2**63 - 1)
FIXED = st.binary(min_size=3, max_size=3)
ITEMS = st.fixed_dictionaries(
    {'a': st.none() | FIXED, 'b': st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=3)}
)
COLUMNS = {
    'flag': (pa.bool_(), st.booleans()),
    'small': (pa.int8(), st.integers(-128, 127)),
    'medium': (pa.uint32(), st.integers(0, 2**32 - 1)),
    'signed': (pa.int64(), INT64),
    'unsigned': (pa.uint64(), st.integers(0, 2**64 - 1)),
    'real': (pa.float64(), st.floats(allow_nan=False).filter(lambda x: x != 0)),
    'amount': (pa.decimal128(38, 0), st.integers(-(10**37), 10**37).map(Decimal)),
    'huge': (pa.decimal256(76, 0), st.integers(-(10**70), 10**70).map(Decimal)),
    'time': (pa.timestamp('ns', '+00:00'), INT64),
    'fixed': (pa.binary(3), FIXED),
    'bytes': (pa.binary(), st.binary(max_size=20)),
    'text': (pa.string(), st.text(max_size=10)),
    'large': (pa.large_binary(), st.binary(max_size=9)),
    'list': (pa.list_(pa.uint16()), st.lists(st.none() | st.integers(0, 5), max_size=4)),
    'pair': (pa.list_(pa.int32(), 2), st.lists(st.integers(0, 9), min_size=2, max_size=2)),
    'nested': (pa.list_(ITEM), st.lists(st.none() | ITEMS, max_size=3)),
    'record': (ITEM, ITEMS),
    'map': (pa.map_(pa.string(), pa.int32()), st.lists(st.tuples(st.text(max_size=2), st.integers(0, 3)), max_size=2)),
}
SCHEMA = pa.schema({name: kind for name, (kind, _) in COLUMNS.items()})
SOME = settings(max_examples=40)
ROW = st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()})


def batch_of(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@SOME
@given(st.lists(ROW, max_size=6), st.randoms())
def test_the_order_of_rows_does_not_count(rows, random_):
    shuffled = rows.copy()
    random_.shuffle(shuffled)
    assert checksum(batch_of(rows)) == checksum(batch_of(shuffled))


@SOME
@given(st.lists(ROW, max_size=6), st.lists(st.integers(0, 6), max_size=3))
def test_chunks_and_slices_with_offsets_do_not_count(rows, cuts):
    batch = batch_of(rows)
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    slices = [batch.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    assert checksum(slices) == checksum(batch)
    assert [h for part in slices for h in row_hashes(part)] == list(row_hashes(batch))
    assert sum((checksum(part) for part in slices), Checksum()) == checksum(batch)


@SOME
@given(st.lists(ROW, min_size=1, max_size=4), st.data())
def test_any_one_value_counts(rows, data):
    column = data.draw(st.sampled_from(list(COLUMNS)))
    at = data.draw(st.integers(0, len(rows) - 1))
    other = data.draw(st.none() | COLUMNS[column][1])
    changed = [{**row, column: other} if i == at else row for i, row in enumerate(rows)]
    assume(batch_of(changed) != batch_of(rows))
    assert checksum(batch_of(changed)) != checksum(batch_of(rows))
    assert (row_hashes(batch_of(changed)) != row_hashes(batch_of(rows))).sum() == 1


@SOME
@given(st.lists(ROW, min_size=1, max_size=4), st.data())
def test_a_row_that_is_lost_or_there_twice_counts(rows, data):
    at = data.draw(st.integers(0, len(rows) - 1))
    whole = checksum(batch_of(rows))
    assert checksum(batch_of([*rows, rows[at]])).rows == whole.rows + 1
    assert checksum(batch_of([*rows, rows[at]])).value != whole.value
    assert checksum(batch_of(rows[:at] + rows[at + 1 :])).value != whole.value


@SOME
@given(st.lists(ROW, max_size=4))
def test_equal_values_of_other_arrow_types_agree_once_they_conform(rows):
    batch = batch_of(rows)
    stored = {
        'small': pa.int32(),
        'medium': pa.int64(),
        'unsigned': pa.decimal128(20, 0),
        'huge': pa.decimal256(76, 0),
        'amount': pa.decimal256(76, 0),
        'time': pa.timestamp('ns', 'Etc/UTC'),
        'fixed': pa.binary(),
        'bytes': pa.large_binary(),
        'text': pa.large_string(),
        'large': pa.binary(),
        'list': pa.large_list(pa.int32()),
        'nested': pa.list_(pa.struct([('a', pa.binary()), ('b', pa.large_list(pa.int64()))])),
    }
    columns = [c.cast(stored.get(name, c.type)) for name, c in zip(SCHEMA.names, batch.columns, strict=True)]
    columns = dict(zip(SCHEMA.names, columns, strict=True))
    columns['text'] = columns['text'].cast(pa.string()).dictionary_encode()
    shuffled = sorted(SCHEMA.names)
    other = pa.RecordBatch.from_arrays([columns[name] for name in shuffled], names=shuffled)
    assert checksum(conform(other, SCHEMA)) == checksum(batch)


def test_what_lies_under_a_null_does_not_count():
    values = pa.array([1, 2, 3], pa.int64())
    mask = pa.array([True, False, True]).buffers()[1]
    one = pa.Array.from_buffers(pa.int64(), 3, [mask, values.buffers()[1]])
    two = pa.Array.from_buffers(pa.int64(), 3, [mask, pa.array([1, 99, 3]).buffers()[1]])
    strings = pa.Array.from_buffers(pa.string(), 3, [mask, *pa.array(['a', 'bc', 'd']).buffers()[1:]])
    assert checksum(pa.record_batch([one], ['x'])) == checksum(pa.record_batch([two], ['x']))
    assert checksum(pa.record_batch([strings], ['x'])) == checksum(pa.record_batch([pa.array(['a', None, 'd'])], ['x']))


@pytest.mark.parametrize(
    ('one', 'two'),
    [
        ([b'ab', b'c'], [b'a', b'bc']),
        ([b''], [None]),
        ([b'\0'], [b'']),
        ([b'\0' * 8], [b'\0' * 16]),
        ([b'12345678abcdefgh'], [b'abcdefgh12345678']),
        ([[b'a', b''], [b'c']], [[b'a'], [b'', b'c']]),
        ([[b'']], [[None]]),
        ([[]], [None]),
        ([0], [None]),
        ([[1, 2]], [[2, 1]]),
    ],
)
def test_values_that_are_almost_alike_differ(one, two):
    a, b = pa.array(one), pa.array(two)
    a, b = (a, b.cast(a.type)) if pa.types.is_null(b.type) else (a, b)
    b = b.cast(a.type)
    assert checksum(pa.record_batch([a], ['x'])).value != checksum(pa.record_batch([b], ['x'])).value


def test_a_view_of_a_list_counts_as_the_list():
    values = pa.array([1, 2, 3])
    view = pa.ListViewArray.from_arrays(pa.array([2, 0, 0], pa.int32()), pa.array([1, 3, 0], pa.int32()), values)
    rows = pa.record_batch({'l': view})
    plain = pa.record_batch({'l': pa.array(view.to_pylist(), pa.list_(pa.int64()))})
    assert checksum([rows]) == checksum([plain]) == checksum([conform(rows, plain.schema)])


def test_columns_that_swap_their_values_differ():
    a, b = pa.array([1, 2]), pa.array([3, 4])
    assert checksum(pa.record_batch([a, b], ['a', 'b'])) != checksum(pa.record_batch([b, a], ['a', 'b']))


def test_there_is_one_zero_and_one_nan():
    odd_nan = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.uint64(0x7FF8000000000123).tobytes())])
    assert checksum(pa.record_batch([odd_nan], ['x'])) == checksum(pa.record_batch([pa.array([float('nan')])], ['x']))
    assert checksum(pa.record_batch([pa.array([-0.0])], ['x'])) == checksum(pa.record_batch([pa.array([0.0])], ['x']))


def test_rows_beyond_one_block_of_work_and_long_values():
    numbers = pa.array(range(150_000), pa.int64())
    texts = pa.array([b'x' * (i % 50) for i in range(150_000)])
    table = pa.table({'n': numbers, 't': texts})
    backwards = table.take(pa.array(range(149_999, -1, -1)))
    assert checksum(table) == checksum(backwards) == checksum(table.to_batches(max_chunksize=999))
    assert len(set(row_hashes(table.combine_chunks().to_batches()[0]).tolist())) == 150_000


def test_many_rows_hash_to_as_many_numbers_and_every_bit_moves():
    hashes = row_hashes(pa.record_batch([pa.array(range(100_000))], ['x']))
    assert len(np.unique(hashes)) == 100_000
    bits = np.unpackbits(hashes.view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.01
    random.seed(1)
    for bit in range(64):
        share = ((hashes >> np.uint64(bit)) & np.uint64(1)).mean()
        assert abs(share - 0.5) < 0.02


def test_a_value_that_cannot_be_cast_stays_and_differs():
    schema = pa.schema({'x': pa.uint8()})
    other = conform(pa.record_batch([pa.array([300])], ['x']), schema)
    assert other.schema.field('x').type == pa.int64()
    assert checksum(other) != checksum(pa.record_batch([pa.array([44], pa.uint8())], ['x']))


def test_a_column_that_is_not_there_and_a_type_without_values_are_refused():
    with pytest.raises(SchemaError, match="no column 'y'"):
        conform(pa.record_batch([pa.array([1])], ['x']), pa.schema({'y': pa.int64()}))
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    with pytest.raises(SchemaError, match='cannot be compared'):
        checksum(pa.record_batch([union], ['x']))


def test_nothing_is_nothing():
    assert checksum(batch_of([])) == checksum([]) == Checksum(0, 0)
    assert str(checksum([])) == '0000000000000000/0'
