"""The small parts around a stream: the columns that its rows carry, and the names of its lanes."""

from __future__ import annotations

import pyarrow as pa
import pytest

from amp.loaders.stamps import BATCH_ID, STAMP_COLUMNS, TX_ID, stamp, stamped_schema, with_batch_id, without_stamps
from amp.streaming.parallel import lane_name, stream_of_lane

pytestmark = pytest.mark.unit

ROWS = pa.record_batch({'block_num': pa.array([1, 2, 3], pa.uint64()), 'data': pa.array([b'a', None, b''])})


@pytest.mark.parametrize('rows', [ROWS, ROWS.slice(1, 1), ROWS.slice(0, 0)], ids=['rows', 'slice', 'none'])
def test_every_row_carries_the_id_of_its_batch_and_of_its_unit(rows):
    stamped = stamp(rows, 2**62 + 1, '0123456789abcdef')
    assert stamped.schema == stamped_schema(rows.schema)
    assert stamped.schema.names == ['block_num', 'data', BATCH_ID, TX_ID]
    assert stamped.schema.field(TX_ID).type == pa.int64()
    assert stamped.column(TX_ID).to_pylist() == [2**62 + 1] * rows.num_rows
    assert stamped.column(BATCH_ID).to_pylist() == ['0123456789abcdef'] * rows.num_rows
    assert without_stamps(stamped) == rows


def test_a_row_that_was_streamed_before_is_stamped_anew():
    again = stamp(stamp(ROWS, 1, 'old'), 2, 'new')
    assert again.schema.names.count(TX_ID) == again.schema.names.count(BATCH_ID) == 1
    assert set(again.column(TX_ID).to_pylist()) == {2}
    assert set(again.column(BATCH_ID).to_pylist()) == {'new'}


def test_a_schema_has_each_column_once():
    once = stamped_schema(ROWS.schema)
    assert stamped_schema(once) == once
    half = ROWS.schema.append(pa.field(BATCH_ID, pa.string()))
    assert stamped_schema(half).names == ['block_num', 'data', *STAMP_COLUMNS]


def test_a_load_that_is_no_stream_carries_the_batch_alone():
    assert with_batch_id(ROWS, 'id').schema.names == ['block_num', 'data', BATCH_ID]
    assert without_stamps(with_batch_id(ROWS, 'id')) == ROWS
    assert without_stamps(ROWS) is ROWS


def test_lanes_are_known_by_their_names():
    assert stream_of_lane(lane_name('logs', 12)) == 'logs'
    assert stream_of_lane('logs') is None
    assert stream_of_lane('logs~lane-x') is None
