"""The Iceberg destination, on a warehouse on disk with its SQLite catalog, and on S3."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, dictionaries, integers, lists
from hypothesis.strategies import data as hypothesis_data
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.expressions import AlwaysTrue

from amp import Client
from amp.devserver import LocalAmp
from amp.errors import ConfigError, DestinationError, ProtocolError, StaleEpochError
from amp.loaders import points
from amp.loaders.implementations.iceberg_loader import IcebergLoader
from amp.loaders.stamps import TX_ID, stamp
from amp.loaders.stream import StreamEngine, StreamSettings
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamJob
from amp.loaders.verify import verify
from amp.streaming import ResponseBatch
from amp.streaming.iterator import END
from amp.streaming.ledger import StreamKey
from amp.streaming.parallel import ParallelConfig
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.integration.loaders.test_shared_rows import FolderTests, ListViewTests
from tests.integration.loaders.test_shared_streams import OneTableTests, numbers, stream
from tests.support.following import SQL, expected, stored, until_head
from tests.support.s3 import s3_options

pytestmark = [pytest.mark.integration, pytest.mark.iceberg]


class IcebergTestConfig(LoaderTestConfig):
    loader_class = IcebergLoader
    config_fixture_name = 'iceberg_test_config'

    def get_row_count(self, loader, table_name):
        return loader.tables.get(table_name).scan().count()

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        return loader.tables.get(table_name).scan(row_filter=where or AlwaysTrue()).to_arrow().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader.tables.drop(table_name)

    def get_column_names(self, loader, table_name):
        return [f.name for f in loader.tables.get(table_name).schema().fields]


class TestIcebergLoader(InterruptTests, BaseLoaderTests):
    config = IcebergTestConfig()


class TestIcebergStreaming(BaseStreamingTests):
    config = IcebergTestConfig()


class TestIcebergTypes(BaseTypeTests):
    config = IcebergTestConfig()


@pytest.fixture
def lake(tmp_path):
    with IcebergLoader({'warehouse': str(tmp_path / 'lake')}) as opened:
        yield opened


def files(lake: IcebergLoader, table: str = 't') -> set[str]:
    """The data files of the current snapshot."""
    return {task.file.file_path for task in lake.tables.get(table).scan().plan_files()}


def rows(lake: IcebergLoader, table: str = 't') -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in lake.scan(table).read_all().to_pylist())


def loaded(lake: IcebergLoader, table: pa.Table, name: str = 't', **options: Any):
    result = lake.load_table(table, name, **options)
    assert result.success, result.error
    return result


ACCESS = pa.list_(pa.struct([('address', pa.binary(20)), ('keys', pa.list_(pa.binary(32)))]))
EVERYTHING = {
    'u64': pa.array([0, 2**64 - 1, None], pa.uint64()),
    'u32': pa.array([0, 2**32 - 1, None], pa.uint32()),
    'u8': pa.array([0, 255, None], pa.uint8()),
    'i64': pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
    'i32': pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
    'flag': pa.array([True, False, None]),
    'address': pa.array([b'\x00' * 20, b'\xff' * 20, None], pa.binary(20)),
    'data': pa.array([b'', b'\x00\n\'"\\', None], pa.binary()),
    'gas': pa.array([Decimal(0), Decimal('9' * 38), None], pa.decimal128(38, 0)),
    'when': pa.array([0, 1_693_000_000_123_456_000, None], pa.int64()).cast(pa.timestamp('ns', 'UTC')),
    'value': pa.array(['', str(2**256 - 1), None]),
    'hashes': pa.array([[], [b'\x01' * 32, None], None], pa.list_(pa.binary(32))),
    'access': pa.array([[], [{'address': b'\x02' * 20, 'keys': None}, None], None], ACCESS),
    'counts': pa.array([[2**64 - 1], [], None], pa.list_(pa.uint64())),
    'pairs': pa.array([[('a', 1)], [], None], pa.map_(pa.string(), pa.int32())),
    'day': pa.array([0, 20_000, None], pa.date32()),
    'time': pa.array([0, 86_399_999_999, None], pa.time64('us')),
    'nothing': pa.nulls(3),
    'short': pa.array(['a', 'b', 'a']).dictionary_encode(),
}


def test_every_amp_type_comes_back_equal(lake):
    table = pa.table(EVERYTHING)
    loaded(lake, table)
    back = lake.scan('t').read_all()
    for name, column in EVERYTHING.items():
        assert back[name].to_pylist() == pa.chunked_array([column]).to_pylist(), name


def test_a_null_list_of_structs_stays_null_for_every_reader(lake):
    """pyiceberg's own append would write an empty list, and its own scan shows one."""
    loaded(lake, pa.table({'access': EVERYTHING['access']}))
    [path] = files(lake)
    assert pq.read_table(path.removeprefix('file://'))['access'].to_pylist()[2] is None
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT access IS NULL FROM '{path}'").fetchall() == [(False,), (False,), (True,)]


@pytest.mark.parametrize(
    ('column', 'says'),
    [
        (pa.array([Decimal(1)], pa.decimal256(76, 0)), 'decimal256'),
        (pa.array([1], pa.duration('s')), 'duration'),
        (pa.array([1], pa.timestamp('us', 'America/New_York')), 'America/New_York'),
        (pa.array([{}], pa.struct([])), 'struct'),
        (pa.array([1], pa.timestamp('ns', 'UTC')), 'microsecond|lose data'),
    ],
    ids=['decimal256', 'duration', 'zone', 'empty struct', 'nanoseconds'],
)
def test_what_iceberg_cannot_hold_is_refused_by_column(lake, column, says):
    result = lake.load_table(pa.table({'fine': [1], 'odd one': column}), 't')
    assert not result.success
    assert 'odd one' in result.error
    assert re.search(says, result.error), result.error
    assert not lake.table_exists('t') or lake.get_table_info('t')['row_count'] == 0


def test_wide_numbers_and_nanoseconds_land_in_a_form_that_the_user_names(lake):
    table = pa.table(
        {
            'wide': pa.array([Decimal(2**250)], pa.decimal256(76, 0)),
            'when': pa.array([1_001], pa.timestamp('ns', 'UTC')),
        }
    )
    loaded(lake, table, column_types={'wide': 'text', 'when': 'split'})
    [row] = lake.scan('t').read_all().to_pylist()
    assert row['wide'] == str(2**250)
    assert (row['when'].microsecond, row['when_ns']) == (1, 1)


def test_the_real_tables_of_amp_come_back_equal(lake, amp_test_data):
    found = sorted(amp_test_data.rglob('*.parquet')) if amp_test_data is not None else []
    for number, path in enumerate(found):
        table = pq.read_table(path).slice(0, 2_000)
        wide = {f.name: 'text' for f in table.schema if pa.types.is_decimal256(f.type)}
        loaded(lake, table, f'real_{number}', column_types=wide)
        back = lake.scan(f'real_{number}').read_all()
        assert back.num_rows == table.num_rows
        for name in set(table.column_names) - set(wide):
            assert back[name].to_pylist() == table[name].to_pylist(), (path.name, name)


def test_hostile_names_touch_nothing_else(lake, tmp_path):
    loaded(lake, pa.table({'x': [1]}), 'innocent')
    for name in (
        't"; DROP TABLE innocent; --',
        "quote's",
        'ünï cødé',
        'select',
        'a.b',
        '../../outside',
        '%2e%2e',
        'a#b?c',
    ):
        table = pa.table({'from': [1], 'camelCase': [3], 'with "quotes"': [4], 'x.y': [5], 'ünï': [6]})
        loaded(lake, table, name)
        assert lake.scan(name).read_all().to_pydict() == table.to_pydict()
        assert lake.get_table_info(name)['row_count'] == 1
        assert [r.rows_loaded for r in stream(lake, response(eth(0, 9, '0xa'), 1), table=f'{name} streamed')] == [1]
    assert rows(lake, 'innocent') == [(1,)]
    assert {path.name for path in tmp_path.iterdir()} == {'lake'}


def test_columns_come_by_evolution_or_are_refused(lake):
    loaded(lake, pa.table({'a': [1]}))
    wider = pa.table({'a': [2], 'b': ['x'], 'c': pa.array([7], pa.uint64())})
    refused = lake.load_table(wider, 't')
    assert 'lacks: b string, c uint64' in refused.error
    loaded(lake, wider, schema_evolution='evolve')
    loaded(lake, pa.table({'c': pa.array([8], pa.uint64())}))
    found = lake.scan('t').read_all().to_pylist()
    assert sorted(found, key=str) == [
        {'a': 1, 'b': None, 'c': None},
        {'a': 2, 'b': 'x', 'c': Decimal(7)},
        {'a': None, 'b': None, 'c': Decimal(8)},
    ]
    clash = lake.load_table(pa.table({'a': ['text']}), 't')
    assert "column 'a'" in clash.error


@pytest.mark.parametrize(
    ('spec', 'told'),
    [
        (5, 'list of partitions'),
        ('day(ts), s', 'list of partitions'),
        ({'column': 's'}, 'list of partitions'),
        ([5], 'names a column'),
        ([''], 'names a column'),
        (['day()'], 'names a column'),
        (['bucket[0](s)'], 'no transform'),
        (['bucket[4294967296](s)'], 'no transform'),
        (['bucket(s)'], 'no transform'),
        (['truncate[-1](s)'], 'no transform'),
        (['truncate[x](s)'], 'no transform'),
        (['bucket[4]x(s)'], 'no transform'),
        (['foo(s)'], 'no transform'),
        ([{'column': 's', 'transform': 4}], 'no transform'),
        (['s', 's'], "'s' twice"),
        (['s', 'bucket[2](s)'], "'s' twice"),
        (['bucket[4](s)', 'truncate[2](s)'], "'s' twice"),
    ],
    ids=repr,
)
def test_a_partition_spec_that_means_nothing_is_refused_when_the_loader_is_made(tmp_path, spec, told):
    with pytest.raises(ConfigError, match=told) as refused:
        IcebergLoader({'warehouse': str(tmp_path), 'partition_spec': spec})
    assert refused.value.hint


@pytest.mark.parametrize('spec', ['day(s)', 'truncate[3](fixed)', 'l', 'S'])
def test_a_transform_that_does_not_fit_its_column_makes_no_table(tmp_path, spec):
    rows = pa.table({'s': ['a'], 'fixed': pa.array([b'abcd'], pa.binary(4)), 'l': [[1]]})
    with IcebergLoader({'warehouse': str(tmp_path), 'partition_spec': [spec]}) as lake:
        assert 'partition_spec' in lake.load_table(rows, 't').error
        assert not lake.table_exists('t')


_NO_BYTES = {
    'column': pa.array([b'', None], pa.binary(0)),
    'list': pa.array([[b'', None], None], pa.list_(pa.binary(0))),
    'struct': pa.array([{'a': b''}, None], pa.struct([('a', pa.binary(0))])),
}


@pytest.mark.parametrize('column', _NO_BYTES.values(), ids=_NO_BYTES.keys())
def test_bytes_of_no_length_land_exactly(lake, column):
    result = lake.load_table(pa.table({'i': [0, 1], 'b': column}), 't')
    assert result.success, result.error
    assert lake.scan('t').read_all().sort_by('i')['b'].to_pylist() == column.to_pylist()


@pytest.mark.parametrize('kind', [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_a_floating_point_key_is_refused_by_name(lake, kind):
    """0.0 and -0.0 are one number and two keys, and a NaN is not equal to itself: rows would be there twice."""
    rows = pa.table({'k': pa.array([0.0, -0.0, float('nan')]).cast(kind), 'v': ['a', 'b', 'c']})
    assert lake.load_table(rows, 't').success
    for mode in ('upsert', 'merge'):
        refused = lake.load_table(rows, 't', mode=mode, key_columns=['v', 'k'])
        assert not refused.success
        assert "'k' of type" in refused.error
    assert lake.scan('t').read_all().num_rows == 3


@pytest.mark.parametrize('kind', [pa.date32(), pa.timestamp('us', 'UTC')], ids=str)
def test_a_partition_of_a_day_far_away_is_refused_by_name(tmp_path, kind):
    def days(*given: int) -> pa.Array:
        return pa.array(given, pa.int32()).cast(pa.date32()).cast(kind)

    with IcebergLoader({'warehouse': str(tmp_path), 'partition_spec': ['when']}) as lake:
        kept = days(-719_162, -1, 0, 2_932_896)
        loaded(lake, pa.table({'when': kept, 'x': range(4)}))
        for far in (2_932_897, -719_163):
            refused = lake.load_table(pa.table({'when': days(0, far), 'x': [8, 9]}), 't')
            assert 'outside the years 1 to 9999' in refused.error
            assert 'when' in refused.error
        assert lake.scan('t').read_all().sort_by('x')['when'].combine_chunks().equals(kept)


def test_partitions_by_transform_are_one_commit(tmp_path):
    spec = ['day(when)', {'column': 'address', 'transform': 'bucket[4]'}]
    config = {
        'warehouse': str(tmp_path / 'lake'),
        'partition_spec': spec,
        'default_table_properties': {'owner': 'tests'},
    }
    count = 1_000
    table = pa.table(
        {
            'when': pa.array([i * 3_600 * 10**6 for i in range(count)], pa.timestamp('us', 'UTC')),
            'address': pa.array([bytes([i % 7]) * 20 for i in range(count)], pa.binary(20)),
            'n': range(count),
        }
    )
    with IcebergLoader(config) as lake:
        loaded(lake, table, batch_size=100)
        found = lake.tables.get('t')
        assert len(found.metadata.snapshots) == 1
        assert found.properties['owner'] == 'tests'
        partitions = [task.file.partition for task in found.scan().plan_files()]
        assert len(partitions) == len(set(map(str, partitions))), 'one file a partition, however many batches'
        assert sorted(lake.scan('t').read_all()['n'].to_pylist()) == list(range(count))
        in_first_day = found.scan(row_filter="when < '1970-01-02T00:00:00+00:00'")
        assert len(list(in_first_day.plan_files())) <= 4
        assert in_first_day.count() == 24
        with pytest.raises(ConfigError, match='names the column'):
            stream(lake, response(eth(0, 9, '0xa'), 1, 2), table='other columns')


def test_a_table_load_is_all_or_nothing(lake):
    good = pa.record_batch({'x': pa.array([1], pa.int64())})
    assert lake.load_batch(good, 't').success
    before = set((Path(lake.config.warehouse)).rglob('*.parquet'))

    def batches():
        yield good
        raise ProtocolError('the source broke')

    broken = pa.RecordBatchReader.from_batches(good.schema, batches())
    with pytest.raises(ProtocolError, match='the source broke'):
        lake.load_reader(broken, 't', mode='overwrite')
    assert rows(lake) == [(1,)]
    assert set((Path(lake.config.warehouse)).rglob('*.parquet')) == before


def test_upsert_replaces_by_key_and_the_last_of_equals_counts(lake):
    loaded(lake, pa.table({'k': [1, 2, 3], 'v': ['a', 'b', 'c']}))
    loaded(lake, pa.table({'k': [101, 102], 'v': ['x', 'y']}))
    far = {path for path in files(lake) if path not in files_with(lake, 'k', 1, 3)}
    loaded(lake, pa.table({'k': [2, 4, 4], 'v': ['B', 'd', 'D']}), mode='upsert', key_columns=['k'])
    assert rows(lake) == [(1, 'a'), (2, 'B'), (3, 'c'), (4, 'D'), (101, 'x'), (102, 'y')]
    assert far <= files(lake), 'a file without a replaced row is left alone'
    missing = lake.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='upsert', key_columns=['nope'])
    assert 'nope' in missing.error
    null = lake.load_table(pa.table({'k': [1, None], 'v': ['x', 'y']}), 't', mode='upsert', key_columns=['k'])
    assert "'k' is null in 1 rows" in null.error
    assert 'key_columns' in lake.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='upsert').error
    assert len(rows(lake)) == 6


def files_with(lake, column: str, low: int, high: int) -> set[str]:
    scan = lake.tables.get('t').scan(row_filter=f'{column} >= {low} and {column} <= {high}')
    return {task.file.file_path for task in scan.plan_files()}


def test_upsert_by_several_keys_of_any_kind(lake):
    def table(value):
        return pa.table(
            {
                'hash': pa.array([bytes([n % 5]) * 32 for n in range(50)], pa.binary(32)),
                'gas': pa.array([n // 5 for n in range(50)], pa.uint64()),
                'v': [value] * 50,
            }
        )

    for value in ('old', 'new'):
        loaded(lake, table(value), mode='upsert', key_columns=['hash', 'gas'])
    assert lake.scan('t').read_all()['v'].to_pylist() == ['new'] * 50


def test_upsert_of_many_rows_takes_seconds_not_minutes(lake):
    count = 200_000
    keys = pa.array(range(count), pa.int64())
    loaded(lake, pa.table({'k': keys, 'v': pa.nulls(count, pa.int32())}))
    result = loaded(
        lake, pa.table({'k': keys, 'v': pa.repeat(pa.scalar(1, pa.int32()), count)}), mode='upsert', key_columns=['k']
    )
    assert result.duration < 20
    back = lake.scan('t').read_all()
    assert (back.num_rows, back['v'].null_count) == (count, 0)


def keyed(block_range, **columns):
    return ResponseBatch.data_batch(pa.record_batch(columns), response(block_range).metadata)


def test_upsert_in_a_stream_gives_back_what_it_replaced(lake):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    loaded(lake, pa.table({'k': [7], 'v': ['plain']}))
    stream(lake, keyed(eth(0, 0, '0xa'), k=[1], v=['old']), keyed(eth(1, 1, '0xb', '0xa'), k=[1], v=['new']), **upsert)
    stream(lake, keyed(eth(2, 2, '0xc', '0xb'), k=[7], v=['streamed']), **upsert)

    def now():
        return dict(rows(lake))

    assert now() == {1: 'new', 7: 'streamed'}
    for block, left in ((2, {1: 'new', 7: 'plain'}), (1, {1: 'old', 7: 'plain'}), (0, {7: 'plain'})):
        stream(lake, ResponseBatch.reorg_batch([eth(block, 2, '0xd')]), **upsert)
        assert now() == left


def test_rows_that_were_replaced_within_one_unit_come_back_too(lake):
    """Two microbatches in one commit: the row of the first is never in the table, until the second is undone."""
    upsert = {'mode': 'upsert', 'key_columns': ['k'], 'retention': 100}
    backlog = [keyed(eth(n, n, f'0x{n}', f'0x{n - 1}'), k=[1, 10 + n], v=[n, n]) for n in range(1, 5)]
    source = iter(backlog)
    engine = StreamEngine(
        lake,
        StreamJob(StreamKey('t', 't'), LoadMode.UPSERT, ('k',)),
        lambda _: Backlog(source),
        StreamSettings(strict=False),
    )
    assert [r.rows_loaded for r in engine.run()] == [8], 'one unit'
    assert rows(lake) == [(1, 4), (11, 1), (12, 2), (13, 3), (14, 4)]
    stream(lake, ResponseBatch.reorg_batch([eth(3, 4, '0xd')]), **upsert)
    assert rows(lake) == [(1, 2), (11, 1), (12, 2)]


class Backlog:
    """Batches of which the next is always here already."""

    backlog = True
    repeatable = False

    def __init__(self, responses):
        self._responses = responses

    def get(self, timeout=None):
        return next(self._responses, END)

    def close(self):
        pass


def test_each_commit_of_a_stream_is_one_snapshot(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1, 9), response(eth(10, 19, '0xb', '0xa'), 11, 19))
    before = len(lake.tables.get('t').metadata.snapshots)
    results = stream(lake, response(eth(10, 20, '0xc', '0xa'), 12, 20))
    assert [(r.is_reorg, r.rows_loaded) for r in results] == [(True, 0), (False, 1 + 1)]
    assert results[0].metadata['rows_undone'] == 2
    assert numbers(lake) == [1, 9, 12, 20]
    assert len(lake.tables.get('t').metadata.snapshots) == before + 2, 'an epoch, and undo with rows'


def test_undo_rewrites_only_files_that_hold_undone_rows(lake):
    loaded(lake, pa.table({'block_num': range(1_000, 1_500), 'tx_hash': ['plain'] * 500}))
    chain = [response(eth(n, n, f'0x{n}', f'0x{n - 1}'), n, n) for n in range(1, 41)]
    stream(lake, *chain)
    before = files(lake)
    [result] = stream(lake, ResponseBatch.reorg_batch([eth(33, 40, '0xd')]))
    assert result.metadata['rows_undone'] == 16
    after = files(lake)
    assert after < before, 'files go whole: nothing is written anew'
    assert len(before - after) == 8
    # A unit of several microbatches is one file: taking back some of them rewrites that file alone.
    source = iter([response(eth(n, n, f'0x{n}', f'0x{n - 1}'), n) for n in range(33, 41)])
    job = StreamJob(StreamKey('t', 't'))
    list(StreamEngine(lake, job, lambda _: Backlog(source), StreamSettings(strict=False)).run())
    before = files(lake)
    stream(lake, ResponseBatch.reorg_batch([eth(37, 40, '0xe')]))
    assert len(before - files(lake)) == 1
    assert len(files(lake) - before) == 1
    assert numbers(lake)[-504:-500] == [33, 34, 35, 36]


def test_streams_are_listed_table_by_table_in_the_order_of_their_numbers(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1), stream_name='one')
    stream(lake, response(eth(0, 9, '0xb'), 2), stream_name='two')
    stream(lake, response(eth(0, 9, '0xa'), 5), table='elsewhere')
    assert [(info.key.table, info.key.name) for info in lake.list_streams()] == [
        ('elsewhere', 'elsewhere'),
        ('t', 'one'),
        ('t', 'two'),
    ]


class TestIcebergOneTable(OneTableTests):
    @pytest.fixture
    def db(self, lake):
        return lake


class TestIcebergRows(ListViewTests, FolderTests):
    @pytest.fixture
    def db(self, lake):
        return lake


def test_rows_show_with_their_stamps_and_by_range(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1, 9), response(eth(10, 19, '0xb', '0xa'), 11, 19))
    found = lake.stamped_scan('t', ['block_num', TX_ID], {'block_num': (9, 11)}).read_all()
    assert found.column_names == ['block_num', TX_ID]
    assert sorted(found['block_num'].to_pylist()) == [9, 11]
    loaded(lake, pa.table({'n': pa.array([1, 2**63 + 5], pa.uint64())}), 'wide')
    assert lake.stamped_scan('wide', ['n'], {'n': (0, 9)}).read_all()['n'].to_pylist() == [Decimal(1)]


# Writers that meet


def open_unit(lake, first_block: int, name: str = 't', *blocks: int):
    """A unit with rows that is not committed yet, and the state that its commit would leave."""
    key = StreamKey('t', name)
    state = lake.open_stream(key, Claim.now())
    tx_id = state.first_id
    unit = lake.begin(StreamJob(key), state, tx_id, None)
    unit.write(stamp(response(eth(first_block, first_block + 9, '0xf'), *blocks).data, tx_id, 'b'))
    return unit, state.append(tx_id, [eth(first_block, first_block + 9, '0xf')])


def test_a_writer_that_slept_through_a_takeover_commits_nothing(lake):
    """The trap: pyiceberg would by itself commit the stale transaction again, on top of the winner's."""
    stream(lake, response(eth(0, 9, '0xa'), 1))
    unit, state = open_unit(lake, 10, 't', 11)
    # Somebody has even turned the retries of the table on again.
    with lake.tables.get('t').transaction() as transaction:
        transaction.set_properties({'commit.retry.num-retries': '4'})
    with IcebergLoader({'warehouse': lake.config.warehouse}) as winner:
        winner.open_stream(StreamKey('t', 't'), Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
        with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 3, this one had 2'):
            unit.commit(state)
    unit.rollback()
    assert numbers(lake) == [1]


def test_a_conflict_with_another_stream_commits_the_same_data_files_again(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1), stream_name='one')
    stream(lake, response(eth(0, 9, '0xb'), 2), stream_name='two')
    unit, state = open_unit(lake, 10, 'one', 11)
    written = {file.file_path for file in unit._unit.finish()}
    assert written
    stream(lake, response(eth(10, 19, '0xc', '0xb'), 12), stream_name='two')
    with IcebergLoader({'warehouse': lake.config.warehouse}) as other:
        hit = []

        def commit_meanwhile(point):
            if point == 'commit.before' and not hit:
                hit.append(point)
                points.hook = None
                loaded(other, pa.table({'block_num': pa.array([99], pa.int64()), 'tx_hash': ['x']}))

        points.hook = commit_meanwhile
        try:
            unit.commit(state)
        finally:
            points.hook = None
    assert hit
    assert numbers(lake) == [1, 2, 11, 12, 99]
    assert written <= files(lake)
    assert len(list(Path(lake.config.warehouse).rglob('data/*.parquet'))) == len(files(lake)), (
        'nothing was written twice'
    )


class LosesReplies(SqlCatalog):
    """A catalog that commits and then loses its answer, as a REST server behind a bad network does."""

    lose = 0

    def commit_table(self, table, requirements, updates):
        answer = super().commit_table(table, requirements, updates)
        if LosesReplies.lose:
            LosesReplies.lose -= 1
            raise CommitStateUnknownException('gateway timeout')
        return answer


def test_a_lost_reply_is_looked_up_and_never_guessed(tmp_path):
    impl = f'{__name__}.LosesReplies'
    config = {
        'warehouse': str(tmp_path),
        'catalog_config': {'py-catalog-impl': impl, 'uri': f'sqlite:///{tmp_path}/catalog.db'},
    }
    with IcebergLoader(config) as lake:
        stream(lake, response(eth(0, 9, '0xa'), 1))
        unit, state = open_unit(lake, 10, 't', 11)
        LosesReplies.lose = 1
        unit.commit(state)
        assert numbers(lake) == [1, 11]
        LosesReplies.lose = 1
        loaded(lake, pa.table({'block_num': pa.array([99], pa.int64()), 'tx_hash': ['x']}))
        assert numbers(lake) == [1, 11, 99]


def test_a_stream_never_takes_itself_back_from_a_newer_writer(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1))
    key = StreamKey('t', 't')
    mine = lake.open_stream(key, Claim('first', 'then'))
    lake.open_stream(key, Claim('second', 'later'))
    with pytest.raises(StaleEpochError, match='second at later'):
        lake.open_stream(key, Claim('first', 'then'), after=mine.epoch)
    assert lake.open_stream(key, Claim('second', 'again'), after=mine.epoch).epoch == mine.epoch + 2


def test_of_two_that_open_before_the_table_is_there_one_has_the_stream(lake):
    with IcebergLoader({'warehouse': lake.config.warehouse}) as other:
        assert other.open_stream(StreamKey('t', 't'), Claim('early', 'then')).epoch == 1
        stream(lake, response(eth(0, 9, '0xa'), 1))
        with pytest.raises(StaleEpochError):
            other.prepare_table(response(eth(0, 9, '0xa')).data.schema, 't', True)
        assert other.open_stream(StreamKey('t', 'two'), Claim.now()).number == 2
    assert numbers(lake) == [1]


APPENDS = """
import sys, pyarrow as pa
from amp.loaders.implementations.iceberg_loader import IcebergLoader

def append_rows(warehouse, first, loads):
    with IcebergLoader({'warehouse': warehouse}) as lake:
        for n in range(first, first + loads):
            result = lake.load_table(pa.table({'n': [n]}), 't')
            assert result.success, result.error

if __name__ == '__main__':
    append_rows(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def test_threads_and_processes_lose_and_double_nothing(lake):
    warehouse, loads = lake.config.warehouse, 4
    loaded(lake, pa.table({'n': [0]}))
    here: dict[str, Any] = {'__name__': 'appends'}
    exec(APPENDS, here)
    threads = [threading.Thread(target=here['append_rows'], args=(warehouse, 100 * n, loads)) for n in (1, 2)]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    processes = [
        subprocess.Popen([sys.executable, '-c', APPENDS, warehouse, str(100 * n), str(loads)], env=environment)
        for n in (3, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(240) for process in processes] == [0, 0]
    assert [n for (n,) in rows(lake)] == [0, *(100 * n + i for n in (1, 2, 3, 4) for i in range(loads))]


# Looking after tables


def test_compaction_bounds_the_number_of_files_and_leaves_the_undo_window_alone(tmp_path):
    config = {'warehouse': str(tmp_path), 'compact_every': 8, 'expire_every': 0}
    with IcebergLoader(config) as lake:
        chain = [response(eth(n, n, f'0x{n}', f'0x{n - 1}'), n) for n in range(1, 81)]
        list(lake.load_stream_continuous(chain, 't', retention=10))
        count = len(files(lake))
        assert count <= 10 + 8 * 2 + 7, 'window, two size classes, and what came since the last time'
        assert numbers(lake) == list(range(1, 81))
        in_window = [task.file for task in lake.tables.get('t').scan(row_filter='block_num >= 71').plan_files()]
        assert len([file for file in in_window if file.record_count == 1]) >= 10
        [result] = lake.load_stream_continuous([ResponseBatch.reorg_batch([eth(72, 80, '0xd')])], 't', retention=10)
        assert result.is_reorg
        assert numbers(lake) == list(range(1, 72))
        loads = [lake.load_table(pa.table({'block_num': [500 + n], 'tx_hash': ['p']}), 't') for n in range(9)]
        assert all(load.success for load in loads)
        assert lake.compact('t') >= 9
        assert lake.compact('t') == 0, 'once is enough'
        assert numbers(lake) == [*range(1, 72), *range(500, 509)]


def test_expired_snapshots_take_their_files_with_them(tmp_path):
    config = {'warehouse': str(tmp_path), 'expire_every': 5, 'keep_snapshots': 3, 'keep_minutes': 0}
    with IcebergLoader(config) as lake:
        chain = [response(eth(n, n, f'0x{n}', f'0x{n - 1}'), n) for n in range(1, 31)]
        list(lake.load_stream_continuous(chain, 't'))
        list(lake.load_stream_continuous([ResponseBatch.reorg_batch([eth(21, 30, '0xd')])], 't'))
        assert lake.get_table_info('t')['snapshots'] < 12
        assert lake.expire_snapshots('t', keep=1, minutes=0) > 0
        assert lake.get_table_info('t')['snapshots'] == 1
        assert numbers(lake) == list(range(1, 21))
        assert len(list(tmp_path.rglob('*.parquet'))) == len(files(lake)) == 20
        assert len(list(tmp_path.rglob('snap-*.avro'))) == 1
        assert len(list(tmp_path.rglob('*.metadata.json'))) <= 21


def test_what_killed_writers_left_is_removed(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1))
    unit, _ = open_unit(lake, 10, 't', 11)
    unit._unit.finish()
    orphans = {str(path) for path in Path(lake.config.warehouse).rglob('data/*.parquet')} - {
        path.removeprefix('file://') for path in files(lake)
    }
    assert len(orphans) == 1
    assert lake.remove_orphans('t') == 0, 'not yet: it may belong to a unit that is open'
    assert lake.remove_orphans('t', older_than_hours=-1) == 1
    assert not Path(orphans.pop()).exists()
    assert numbers(lake) == [1]


# What is wrong is said


def test_a_locked_catalog_is_one_clear_sentence_and_may_be_tried_again(tmp_path):
    config = {'warehouse': str(tmp_path), 'catalog_config': {'lock_seconds': '0.2'}}
    with IcebergLoader(config) as lake:
        loaded(lake, pa.table({'n': [1]}))
        unit_error = None
        with closing(sqlite3.connect(tmp_path / 'catalog.db', isolation_level=None)) as other:
            other.execute('BEGIN EXCLUSIVE')
            result = lake.load_table(pa.table({'n': [2]}), 't')
            try:
                lake.open_stream(StreamKey('t', 't'), Claim.now())
            except DestinationError as error:
                unit_error = error
            other.execute('ROLLBACK')
        assert 'is locked by another process' in result.error
        assert unit_error is not None
        assert unit_error.retryable
        loaded(lake, pa.table({'n': [3]}))
        assert rows(lake) == [(1,), (3,)]


def test_a_catalog_that_is_none_says_so(tmp_path):
    (tmp_path / 'catalog.db').write_text('this is no database, but long enough to be taken for one' * 100)
    with pytest.raises(DestinationError, match='not a SQLite database'):
        IcebergLoader({'warehouse': str(tmp_path)}).connect()
    (tmp_path / 'file').write_text('')
    with pytest.raises(DestinationError, match='file'):
        IcebergLoader({'warehouse': str(tmp_path / 'file' / 'below')}).connect()
    with pytest.raises(DestinationError, match='/proc'):
        IcebergLoader({'warehouse': '/proc/lake'}).connect()


def test_damaged_and_missing_metadata_say_so_and_leave_other_tables_alone(lake):
    for name in ('damaged', 'gone', 'fine'):
        stream(lake, response(eth(0, 9, '0xa'), 1), table=name)
    damaged, gone = (
        Path(lake.tables.get(name).metadata_location.removeprefix('file://')) for name in ('damaged', 'gone')
    )
    damaged.write_text('{"format-version": 2, "location"')
    gone.unlink()
    with pytest.raises(DestinationError, match='does not parse'):
        lake.scan('damaged')
    with pytest.raises(DestinationError, match='names a file that is gone'):
        lake.scan('gone')
    assert [info.key.table for info in lake.list_streams()] == ['fine']
    stream(lake, response(eth(10, 19, '0xb', '0xa'), 11), table='fine')
    assert numbers(lake, 'fine') == [1, 11]


def test_a_full_disk_keeps_nothing_of_the_unit(lake):
    """A limit on the size of files is what a process can set for itself; the system call fails the same way."""
    loaded(lake, pa.table({'n': [b'x']}))
    code = (
        'import os, resource, sys, pyarrow as pa\n'
        'from amp.loaders.implementations.iceberg_loader import IcebergLoader\n'
        'with IcebergLoader({"warehouse": sys.argv[1]}) as lake:\n'
        '    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n'
        '    rows = pa.table({"n": [os.urandom(1000) for _ in range(1000)]})\n'
        '    result = lake.load_table(rows, "t")\n'
        '    print(result.success, result.error)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, '-c', code, lake.config.warehouse],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.startswith('False '), done.stderr
    assert 'full' in done.stdout
    assert lake.get_table_info('t')['row_count'] == 1
    assert len(list(Path(lake.config.warehouse).rglob('*.parquet'))) == 1


def test_configuration_and_urls_are_checked_by_name(tmp_path):
    with pytest.raises(ConfigError, match="'warehouse' or 'catalog_config'"):
        IcebergLoader({})
    with pytest.raises(ConfigError, match="unknown configuration key 'wharehouse'"):
        IcebergLoader({'warehouse': 'x', 'wharehouse': 'y'})
    with pytest.raises(ConfigError, match='inside the destination'):
        IcebergLoader({'warehouse': 'x', 'state': {'storage': 'memory'}})
    assert IcebergLoader({'url': 'iceberg:///lake'}).config.warehouse == 'lake'
    at = IcebergLoader({'url': 'iceberg:////data/lake?namespace=raw&compact_every=0&sync=true'}).config
    assert (at.warehouse, at.namespace, at.compact_every, at.sync) == ('/data/lake', 'raw', 0, True)
    rest = IcebergLoader({'url': 'iceberg+https://catalog.example/api?warehouse=prod&token=t0p'}).config.catalog_config
    assert rest == {'type': 'rest', 'uri': 'https://catalog.example/api', 'warehouse': 'prod', 'token': 't0p'}
    sql = IcebergLoader({'url': f'iceberg+sqlite:///{tmp_path}/c.db?warehouse={tmp_path}/files'})
    assert sql.config.catalog_config['uri'] == f'sqlite:///{tmp_path}/c.db'
    with sql:
        loaded(sql, pa.table({'n': [1]}))
        assert sql.tables.get('t').location().startswith(f'{tmp_path}/files')
    with pytest.raises(ConfigError, match='three slashes'):
        IcebergLoader({'url': 'iceberg://lake'})
    with pytest.raises(ConfigError, match='bucket alone'):
        IcebergLoader({'url': 'iceberg+s3://bucket/lake'})
    with pytest.raises(ConfigError, match='needs a warehouse'):
        IcebergLoader({'catalog_config': {'type': 'sql'}}).connect()
    with pytest.raises(ConfigError, match='column and a transform'):
        IcebergLoader({'warehouse': 'x', 'partition_spec': [{'columns': 'x'}]})
    refused = IcebergLoader({'warehouse': str(tmp_path / 'p'), 'partition_spec': ['nope']})
    with refused:
        assert 'nope' in refused.load_table(pa.table({'n': [1]}), 't').error


def test_a_password_in_a_catalogs_address_is_never_shown(caplog):
    loader = IcebergLoader({'url': 'iceberg+postgresql://me:s3cret@127.0.0.1:1/db?warehouse=/tmp/none'})
    with pytest.raises(DestinationError) as caught:
        loader.connect()
    assert 's3cret' not in str(caught.value) + caplog.text


@pytest.fixture(scope='module')
def bucket():
    with s3_options() as options:
        yield options['AWS_ENDPOINT_URL']


def test_a_bucket(bucket, tmp_path):
    config = {
        'catalog_config': {
            'type': 'sql',
            'uri': f'sqlite:///{tmp_path}/catalog.db',
            'warehouse': 's3://lake/warehouse',
            's3.endpoint': bucket,
            's3.access-key-id': 'test',
            's3.secret-access-key': 'test',
            's3.region': 'us-east-1',
        },
        'compact_every': 4,
        'expire_every': 6,
        'keep_minutes': 0,
        'keep_snapshots': 2,
    }
    with IcebergLoader(config) as lake:
        loaded(lake, pa.table(EVERYTHING), 'types')
        assert lake.scan('types').read_all()['access'].to_pylist() == EVERYTHING['access'].to_pylist()
        chain = [response(eth(n, n, f'0x{n}', f'0x{n - 1}'), n) for n in range(1, 21)]
        list(lake.load_stream_continuous(chain, 't', retention=4))
        list(lake.load_stream_continuous([ResponseBatch.reorg_batch([eth(19, 20, '0xd')])], 't', retention=4))
        assert numbers(lake) == list(range(1, 19))
        assert all(path.startswith('s3://lake/warehouse/') for path in files(lake))
        assert len(files(lake)) < 18
        assert lake.remove_orphans('t', older_than_hours=-1) >= 0
        assert numbers(lake) == list(range(1, 19))


def test_files_of_a_commit_that_was_cut_off_stay_because_it_may_have_happened(tmp_path):
    impl = f'{__name__}.LosesReplies'
    config = {
        'warehouse': str(tmp_path),
        'catalog_config': {'py-catalog-impl': impl, 'uri': f'sqlite:///{tmp_path}/catalog.db', 'lock_seconds': '1'},
    }
    with IcebergLoader(config) as lake:
        stream(lake, response(eth(0, 9, '0xa'), 1))
        unit, state = open_unit(lake, 10, 't', 11)

        def interrupt(point):
            if point == 'commit.after':
                raise KeyboardInterrupt

        points.hook = interrupt
        try:
            with pytest.raises(KeyboardInterrupt):
                unit.commit(state)
        finally:
            points.hook = None
        unit.rollback()
        assert numbers(lake) == [1, 11]


def test_the_examples_of_the_page_run(tmp_path):
    page = (Path(__file__).parents[4] / 'docs' / 'destinations' / 'iceberg.md').read_text()
    examples = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
    assert examples
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    for code in examples:
        done = subprocess.run(
            [sys.executable, '-c', code], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert 'row_count' in done.stdout


def test_history_in_parallel_then_the_stream_and_the_proof(tmp_path):
    """Three lanes race to make the table; then the stream follows, through a reorg, and verify finds nothing."""
    destination = f'iceberg:///{tmp_path}/lake'
    with LocalAmp.simulate(seed=5, blocks=300, logs_per_block=(0, 4), microbatch_max_blocks=50) as amp:
        lanes = ParallelConfig(3, 'eth_rpc.logs', max_block=120, partition_size=30)
        with Client(amp.url) as client:
            assert client.sql(SQL).load(destination, 'logs', parallel_config=lanes).success
        until_head(amp, destination)
        amp.reorg(6, extend=2)
        until_head(amp, destination)
        with IcebergLoader({'url': destination}) as lake:
            assert [f for report in verify(lake, source=Client(amp.url)) for f in report.findings] == []
            assert {info.key.name for info in lake.list_streams()} >= {'logs'}
            lake.compact('logs')
        back = [(int(number), *rest) for number, *rest in stored(destination)]
        assert back == [(int(number), *rest) for number, *rest in expected(amp)]


@settings(max_examples=12, derandomize=True)
@given(data=hypothesis_data())
def test_upserts_and_reorgs_come_to_what_a_dictionary_says(tmp_path_factory, data):
    """Any chain of units, each of any microbatches, and any reorgs between them."""
    folder = tmp_path_factory.mktemp('model')
    history: list[dict[int, int]] = []
    with IcebergLoader({'warehouse': str(folder), 'compact_every': 3}) as lake:
        for step in range(data.draw(integers(2, 4))):
            if history and data.draw(booleans()):
                depth = data.draw(integers(1, min(3, len(history))))
                del history[-depth:]
                stream(lake, ResponseBatch.reorg_batch([eth(len(history), 99, '0xd')]), **UPSERT)
            else:
                units = data.draw(
                    lists(dictionaries(integers(0, 4), integers(0, 99), min_size=1), min_size=1, max_size=3)
                )
                responses = []
                for rows_of in units:
                    number = len(history)
                    keys, values = list(rows_of), list(rows_of.values())
                    responses.append(keyed(eth(number, number, f'0x{step}{number}'), k=keys, v=values))
                    history.append(rows_of)
                job = StreamJob(StreamKey('t', 't'), LoadMode.UPSERT, ('k',))
                source = iter(responses)
                list(StreamEngine(lake, job, lambda _, s=source: Backlog(s), StreamSettings(strict=False)).run())
            model: dict[int, int] = {}
            for unit in history:
                model.update(unit)
            if lake.table_exists('t'):
                assert rows(lake) == sorted(model.items())
            else:
                assert model == {}


UPSERT = {'mode': 'upsert', 'key_columns': ['k']}


def test_files_that_others_wrote_are_read_replaced_and_left_in_place(lake, tmp_path):
    stream(lake, response(eth(0, 9, '0xa'), 1, 9))
    table = lake.tables.get('t')
    table.append(pa.table({'block_num': pa.array([500], pa.int64()), 'tx_hash': ['pyiceberg']}))
    foreign = tmp_path / 'lake' / 'foreign.parquet'
    pq.write_table(pa.table({'block_num': pa.array([600], pa.int64()), 'tx_hash': ['no field ids']}), foreign)
    lake.tables.get('t').add_files([f'file://{foreign}'])
    assert numbers(lake) == [1, 9, 500, 600]
    loaded(
        lake,
        pa.table({'block_num': pa.array([500, 9], pa.int64()), 'tx_hash': ['new', 'new']}),
        mode='upsert',
        key_columns=['block_num'],
    )
    assert str(foreign) in {path.removeprefix('file://') for path in files(lake)}
    stream(lake, response(eth(10, 19, '0xb', '0xa'), 11), ResponseBatch.reorg_batch([eth(10, 19, '0xc')]))
    assert [(n, text) for n, text in rows(lake) if n in {500, 600, 9}] == [
        (9, 'new'),
        (500, 'new'),
        (600, 'no field ids'),
    ]
    assert len(numbers(lake)) == 4


def test_files_are_on_the_disk_before_the_catalog_names_them_where_that_is_wished(lake):
    stream(lake, response(eth(0, 9, '0xa'), 1))
    assert type(lake.tables.get('t').io).__name__ == 'PyArrowFileIO'
    with IcebergLoader({'warehouse': lake.config.warehouse, 'sync': True}) as careful:
        assert type(careful.tables.get('t').io).__name__ == 'SyncedFileIO'
        stream(careful, response(eth(10, 19, '0xb', '0xa'), 11))
    assert numbers(lake) == [1, 11]


def test_a_lost_metadata_file_is_one_step_back_for_rows_and_position_together(lake):
    """What the page says of a power cut without sync: the catalog is pointed at the file before, and streams go on."""
    stream(lake, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11))
    older = lake.tables.get('t').metadata_location
    stream(lake, response(eth(20, 29, '0xc', '0xb'), 21))
    Path(lake.tables.get('t').metadata_location.removeprefix('file://')).unlink()
    with pytest.raises(DestinationError, match='names a file that is gone'):
        lake.scan('t')
    lake.tables.drop('t')
    lake.tables.catalog.register_table((*lake.tables.namespace, 't'), older)
    assert numbers(lake) == [1, 11]
    stream(lake, response(eth(20, 29, '0xd', '0xb'), 22))
    assert numbers(lake) == [1, 11, 22]
