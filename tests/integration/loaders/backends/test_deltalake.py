"""The Delta Lake destination, on a local disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amp.errors import (
    ConfigError,
    DestinationError,
    IntegrityError,
    LoadError,
    ProtocolError,
    SchemaError,
    StaleEpochError,
)
from amp.loaders.deltalog.log import DeltaLog
from amp.loaders.implementations.deltalake_loader import DeltaLakeLoader
from amp.loaders.stamps import TX_ID, stamp
from amp.loaders.unit import Claim, StreamJob
from amp.loaders.verify import verify
from amp.streaming import BatchMetadata, ResponseBatch
from amp.streaming.ledger import Entry, IdRun, StreamKey, StreamState, Undo
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.integration.loaders.test_shared_rows import FolderTests, ListViewTests
from tests.integration.loaders.test_shared_streams import OneTableTests, chain, numbers, stream

pytestmark = [pytest.mark.integration, pytest.mark.deltalake]


class DeltaLakeTestConfig(LoaderTestConfig):
    loader_class = DeltaLakeLoader
    config_fixture_name = 'deltalake_test_config'

    def get_row_count(self, loader, table_name):
        return DeltaTable(loader.place_of(table_name)).count()

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        table = DeltaTable(loader.place_of(table_name)).to_pyarrow_table()
        return (table.sort_by(order_by) if order_by else table).to_pylist()

    def cleanup_table(self, loader, table_name):
        subprocess.run(['rm', '-rf', loader.place_of(table_name)], check=True)

    def get_column_names(self, loader, table_name):
        return DeltaTable(loader.place_of(table_name)).to_pyarrow_dataset().schema.names


class TestDeltaLakeLoader(InterruptTests, BaseLoaderTests):
    config = DeltaLakeTestConfig()


class TestDeltaLakeStreaming(BaseStreamingTests):
    config = DeltaLakeTestConfig()


class TestDeltaLakeTypes(BaseTypeTests):
    config = DeltaLakeTestConfig()


class TestDeltaLakeOneTable(OneTableTests):
    pass


class TestDeltaLakeRows(ListViewTests, FolderTests):
    pass


@pytest.fixture
def db(tmp_path):
    with DeltaLakeLoader({'root': str(tmp_path / 'lake')}) as opened:
        yield opened


def files(db, table='t') -> set[str]:
    return set(db.open_table(table).file_uris())


# Types and plain loads


def test_the_columns_have_the_types_that_hold_them(db):
    table = pa.table(
        {
            'u64': pa.array([2**64 - 1], pa.uint64()),
            'u32': pa.array([2**32 - 1], pa.uint32()),
            'when': pa.array([1_693_000_000_123_456_000]).cast(pa.timestamp('ns', 'UTC')),
            'coded': pa.array([b'\x01' * 20], pa.binary(20)).dictionary_encode(),
            'value': ['9' * 38],
        }
    )
    result = db.load_table(table, 't', column_types={'value': 'decimal'})
    assert result.success, result.error
    assert {f.name: str(f.type) for f in db.get_table_schema('t')} == {
        'u64': 'decimal128(20, 0)',
        'u32': 'int64',
        'when': 'timestamp[us, tz=UTC]',
        'coded': 'binary',
        'value': 'decimal128(38, 0)',
    }
    assert db.scan('t').read_all()['value'].to_pylist() == [Decimal('9' * 38)]


@pytest.mark.parametrize(
    ('column', 'forms'),
    [
        (pa.array([1], pa.int64()).cast(pa.timestamp('ns')), {}),
        (pa.array([str(2**256 - 1)]), {'odd one': 'decimal'}),
    ],
    ids=['nanoseconds', 'uint256'],
)
def test_a_value_that_would_lose_something_is_refused_by_name(db, column, forms):
    assert db.load_table(pa.table({'n': [1]}), 'other').success
    result = db.load_table(pa.table({'odd one': column}), 't', column_types=forms)
    assert not result.success
    assert 'odd one' in result.error
    assert db.scan('t').read_all().num_rows == 0


def test_types_without_a_home_are_refused_before_the_table_is_made(db):
    for odd in (
        pa.array([None], pa.decimal256(60, 4)),
        pa.array([1], pa.time64('us')),
        pa.array([1], pa.duration('s')),
    ):
        result = db.load_table(pa.table({'fine': [1], 'odd one': odd}), 'refused')
        assert 'odd one' in result.error
        assert str(odd.type) in result.error
        assert not db.table_exists('refused')


def test_a_table_of_somebody_else_gets_what_its_columns_can_hold(db, tmp_path):
    made = pa.table({'N': pa.array([1], pa.int32()), 'block': pa.array([1], pa.int64()), 'note': ['theirs']})
    write_deltalake(db.place_of('t'), made)
    fine = pa.table({'n': pa.array([2], pa.int64()), 'block': pa.array([2**63 - 1], pa.uint64())})
    assert db.load_table(fine, 't').success
    too_large = db.load_table(pa.table({'n': pa.array([2**31], pa.int64())}), 't')
    assert "column 'N' has a value" in too_large.error
    not_a_number = db.load_table(pa.table({'n': ['text']}), 't')
    assert "column 'N'" in not_a_number.error
    rows = db.scan('t').read_all().sort_by('N').to_pylist()
    assert rows == [{'N': 1, 'block': 1, 'note': 'theirs'}, {'N': 2, 'block': 2**63 - 1, 'note': None}]


def test_columns_that_differ_only_in_case_are_refused(db):
    result = db.load_table(pa.table([[1], [2]], names=['value', 'VALUE']), 'cases')
    assert 'VALUE' in result.error


def test_overwrite_is_one_commit_of_all_batches(db):
    assert db.load_table(pa.table({'x': list(range(10))}), 't').success
    before = db.open_table('t').version()
    assert db.load_table(pa.table({'x': list(range(100, 130))}), 't', mode='overwrite', batch_size=7).success
    assert db.open_table('t').version() == before + 1
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == list(range(100, 130))


def test_upsert_replaces_by_key_and_the_last_of_equals_counts(db):
    db.load_table(pa.table({'k"ey': [1, 2, 3], 'from': [b'a', b'b', b'c']}), 't')
    new = pa.table({'k"ey': [2, 4, 4], 'from': [b'B', b'd', b'D']})
    before = db.open_table('t').version()
    result = db.load_table(new, 't', mode='upsert', key_columns=['k"ey'])
    assert result.success, result.error
    assert db.open_table('t').version() == before + 1
    rows = db.scan('t').read_all().sort_by('k"ey').to_pydict()
    assert rows == {'k"ey': [1, 2, 3, 4], 'from': [b'a', b'B', b'c', b'D']}


def test_a_key_may_be_in_another_case_than_the_column_of_the_table(db):
    db.load_table(pa.table({'Key': [1, 2], 'v': ['a', 'b']}), 't')
    for new, keys in (({'key': [2], 'v': ['B']}, ['KEY']), ({'Key': [1], 'v': ['A']}, ['key', 'Key'])):
        result = db.load_table(pa.table(new), 't', mode='upsert', key_columns=keys)
        assert result.success, result.error
    assert db.scan('t').read_all().sort_by('Key').to_pydict() == {'Key': [1, 2], 'v': ['A', 'B']}


@pytest.mark.parametrize('kind', [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_a_floating_point_key_is_refused_by_name(db, kind):
    """0.0 and -0.0 are one number and two keys, and a NaN is not equal to itself: rows would be there twice."""
    rows = pa.table({'k': pa.array([0.0, -0.0, float('nan')]).cast(kind), 'v': ['a', 'b', 'c']})
    assert db.load_table(rows, 't').success
    for mode in ('upsert', 'merge'):
        refused = db.load_table(rows, 't', mode=mode, key_columns=['v', 'k'])
        assert not refused.success
        assert "'k' of type" in refused.error
    assert db.scan('t').read_all().num_rows == 3


def test_a_key_that_is_missing_or_null_is_refused_by_name(db):
    db.load_table(pa.table({'k': [1], 'v': ['a']}), 't')
    for rows in (pa.table({'v': ['x']}), pa.table({'k': pa.array([None], pa.int64()), 'v': ['x']})):
        result = db.load_table(rows, 't', mode='merge', key_columns=['k'])
        assert not result.success
        assert "'k'" in result.error
    unknown = db.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='merge', key_columns=['nope'])
    assert 'nope' in unknown.error
    assert db.scan('t').read_all().to_pydict() == {'k': [1], 'v': ['a']}


def test_partitions(tmp_path):
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': 'net work'}) as db:
        assert db.load_table(pa.table({'net work': ['a b', 'c/d%', None], 'x': [1, 2, 3]}), 'plain').success
        assert db.open_table('plain').metadata().partition_columns == ['net work']
        assert sorted(db.scan('plain').read_all()['x'].to_pylist()) == [1, 2, 3]
        without = db.load_table(pa.table({'x': [1]}), 'without')
        assert 'net work' in without.error
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': ['block_num']}) as db:
        stream(db, *chain(0, 3))
        stream(db, ResponseBatch.reorg_batch([eth(10, 29, '0xd')]))
        assert db.open_table('t').metadata().partition_columns == ['block_num']
        assert numbers(db) == [0, 9]


def _shown(values: pa.Array) -> list[str | None]:
    """As text, in which a NaN is as good as another and -0.0 is not 0.0; days and instants as the numbers they are."""
    plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if pa.types.is_temporal(plain.type):
        plain = plain.cast(pa.int32() if pa.types.is_date32(plain.type) else pa.int64())
    return plain.cast(pa.string()).to_pylist()


_EXACT_KEYS = {
    'numbers': pa.array([-(2**63), 2**63 - 1, None]),
    'uint64': pa.array([0, 2**64 - 1, None], pa.uint64()),
    'floats': pa.array([float('nan'), float('inf'), -0.0, 0.0, 0.1, None]),
    'whole decimals': pa.array([Decimal(1 - 10**38), Decimal(10**38 - 1), None], pa.decimal128(38, 0)),
    'switches': pa.array([True, False, None]),
    'text': pa.array(['', 'a/../b', '..', 'ü %=\n\0', 'null', '\\u0041', '%41', ' a ', None]),
    'days': pa.array([-719_162, -1, 0, 5_000_000, None], pa.int32()).cast(pa.date32()),
    'instants': pa.array([-(2**55), -1_000_001, -1, 0, 2**55, None], pa.timestamp('us', 'UTC')),
    'local times': pa.array([-(2**55), -1_000_001, -1, 0, 2**55, None], pa.timestamp('us')),
    'coded': pa.array(['a', 'b', None]).dictionary_encode(),
}


@pytest.mark.parametrize('keys', _EXACT_KEYS.values(), ids=_EXACT_KEYS.keys())
def test_a_partition_key_comes_back_exactly(tmp_path, keys):
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': 'k/ü'}) as db:
        result = db.load_table(pa.table({'x': range(len(keys)), 'k/ü': keys}), 't')
        assert result.success, result.error
        back = db.scan('t').read_all().sort_by('x')['k/ü'].combine_chunks()
    assert _shown(back) == _shown(keys)


def test_a_text_that_stands_for_null_in_the_names_of_partitions_is_refused(tmp_path):
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': 'k'}) as db:
        refused = db.load_table(pa.table({'k': ['a', '__HIVE_DEFAULT_PARTITION__', None], 'v': [1, 2, 3]}), 't')
        assert "column 'k' has the text '__HIVE_DEFAULT_PARTITION__'" in refused.error
        assert db.load_table(pa.table({'v': [1], 'k': [None]}), 't').success
        assert db.scan('t').read_all().num_rows == 1


_INEXACT_KEYS = {
    'bytes': pa.array([b'\x00\x11\xff\xab']),
    'fixed bytes': pa.array([b'\x00\xff'], pa.binary(2)),
    'coded bytes': pa.array([b'a']).dictionary_encode(),
    'decimal': pa.array([Decimal('-0.01')], pa.decimal128(10, 2)),
    'list': pa.array([[1]]),
    'struct': pa.array([{'a': 1}]),
    'map': pa.array([[('a', 1)]], pa.map_(pa.string(), pa.int64())),
}


@pytest.mark.parametrize('keys', _INEXACT_KEYS.values(), ids=_INEXACT_KEYS.keys())
def test_a_partition_key_that_would_not_come_back_is_refused_before_the_first_row(tmp_path, keys):
    rows = pa.table({'block_num': pa.array([1], pa.int64()), 'odd one': keys})
    one = ResponseBatch.data_batch(rows.to_batches()[0], BatchMetadata([eth(0, 9, '0xa')], ranges_complete=True))
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': 'odd one'}) as db:
        refused = db.load_table(rows, 'plain')
        assert "cannot be partitioned by column 'odd one'" in refused.error
        with pytest.raises(SchemaError, match='odd one'):
            stream(db, one)
        assert not db.table_exists('plain')
        assert not db.table_exists('t')
    with DeltaLakeLoader({'root': str(tmp_path)}) as db:
        assert db.load_table(rows, 'plain').success
        stream(db, one)


def test_a_table_of_somebody_else_that_is_partitioned_by_bytes_gets_no_rows(db):
    rows = pa.table({'x': [1], 'k': [b'ab']})
    DeltaTable.create(db.place_of('t'), rows.schema, partition_by=['k'])
    assert "cannot be partitioned by column 'k'" in db.load_table(rows, 't').error
    batch = pa.record_batch({'x': [1], 'k': [b'ab']})
    with pytest.raises(SchemaError, match="column 'k'"):
        stream(db, ResponseBatch.data_batch(batch, BatchMetadata([eth(0, 9, '0xa')], ranges_complete=True)))
    assert db.scan('t').read_all().num_rows == 0


@pytest.mark.parametrize('named', ['d,d', ['d', 'd'], '', 'd,', [''], 5, [5], b'd', {'d': 1}.items()], ids=repr)
def test_partition_columns_that_mean_nothing_are_refused_when_the_loader_is_made(tmp_path, named):
    with pytest.raises(ConfigError, match='partition_by names'):
        DeltaLakeLoader({'root': str(tmp_path), 'partition_by': named})


def test_partition_columns_that_do_not_fit_the_rows_leave_the_name_free(tmp_path):
    rows = pa.table({'d': [1], 'a': [2]})
    for named in (['nope'], ['D'], ['d', 'a']):
        with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': named}) as db:
            assert 'partition' in db.load_table(rows, 't').error
            assert not db.table_exists('t')
    with DeltaLakeLoader({'root': str(tmp_path)}) as db:
        assert db.load_table(rows, 't').success


def test_a_partition_value_that_is_no_name_of_a_folder_is_told(tmp_path):
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': 'k'}) as db:
        refused = db.load_table(pa.table({'k': ['x' * 300], 'v': [1]}), 't')
        assert 'too long' in refused.error
        assert 'partition column' in refused.error
        assert db.load_table(pa.table({'k': ['y'], 'v': [1]}), 't').success
        assert db.scan('t').read_all().to_pydict() == {'k': ['y'], 'v': [1]}


# Streams


def test_undo_and_the_rows_that_replace_it_are_one_commit(db):
    stream(db, *chain(0, 2))
    before = db.open_table('t').version()
    results = stream(db, response(eth(10, 20, '0xc', '0xa0'), 12, 20))
    assert [(r.is_reorg, r.rows_loaded) for r in results] == [(True, 0), (False, 1 + 1)]
    assert results[0].metadata['rows_undone'] == 2
    assert numbers(db) == [0, 9, 12, 20]
    # One for the epoch, one for all the rest.
    assert db.open_table('t').version() == before + 2


def test_an_undo_leaves_files_without_its_rows_alone(db):
    stream(db, *chain(0, 30))
    db.load_table(pa.table({'block_num': pa.array([1000], pa.int64()), 'tx_hash': ['plain']}), 't')
    before = files(db)
    stream(db, ResponseBatch.reorg_batch([eth(270, 299, '0xd')]))
    gone = before - files(db)
    assert len(gone) == 3
    assert files(db) < before, 'nothing was written again'
    assert numbers(db) == [*sorted(n for i in range(27) for n in (i * 10, i * 10 + 9)), 1000]


def test_plain_rows_beside_undone_ones_in_a_file_stay(db):
    stream(db, *chain(0, 2))
    db.open_table('t')
    # As another engine may have left it: one file with rows of a stream and rows of none.
    whole = DeltaTable(db.place_of('t')).to_pyarrow_table()
    plain = pa.table({'block_num': [77], 'tx_hash': ['plain']})
    mixed = pa.concat_tables([whole, plain], promote_options='default')
    write_deltalake(db.place_of('t'), mixed, mode='overwrite')
    stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xd')]))
    assert numbers(db) == [0, 9, 77]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 2), st.data())
def test_undo_of_any_runs_takes_exactly_their_rows(tmp_path_factory, dropped, new_rows, data):
    """Not only a suffix: with two networks in one stream the runs to take back can lie anywhere."""
    with DeltaLakeLoader({'root': str(tmp_path_factory.mktemp('runs'))}) as db:
        key, job = StreamKey('t', 't'), StreamJob(StreamKey('t', 't'))
        state = db.open_stream(key, Claim('one', 'now'))
        other = db.open_stream(StreamKey('t', 'other'), Claim('two', 'now'))
        rows = pa.record_batch({'n': pa.array([0, 0])})
        db.prepare_table(stamp(rows, 1, 'b').schema, 't', create_table=True)
        ids = [state.first_id + i for i in range(len(dropped))]
        together = data.draw(st.booleans(), label='one file')
        for batch in [ids] if together else [[i] for i in ids]:
            unit = db.begin(job, state, batch[0], None)
            for tx in batch:
                unit.write(stamp(rows, tx, 'b'))
            unit.commit(state)
        unit = db.begin(StreamJob(StreamKey('t', 'other')), other, other.first_id, None)
        unit.write(stamp(rows, other.first_id, 'b'))
        unit.commit(other)

        gone = [i for i, drop in zip(ids, dropped, strict=True) if drop]
        kept = [i for i in ids if i not in gone]
        after = StreamState(state.number, state.epoch, tuple(Entry(i, i, (eth(i, i, '0x'),)) for i in kept))
        undo = Undo(after, tuple(IdRun(i, i) for i in gone), (), ()) if gone else None
        first = ids[-1] + 1
        unit = db.begin(job, state, first, undo)
        for i in range(new_rows):
            unit.write(stamp(rows, first + i, 'b'))
        unit.commit(after)

        assert unit.rows_undone == 2 * len(gone)
        wanted = [*kept, *(first + i for i in range(new_rows)), other.first_id]
        assert sorted(db.stamped_scan('t', [TX_ID]).read_all()[TX_ID].to_pylist()) == sorted(wanted * 2)
        assert [info.state.entries for info in db.list_streams()] == [after.entries, ()]


def test_upsert_in_a_stream_is_refused_by_name(db):
    with pytest.raises(ConfigError, match='deltalake cannot upsert in a stream'):
        stream(db, *chain(0, 1), mode='upsert', key_columns=['block_num'])
    assert not db.table_exists('t')


def test_two_tables_in_one_root_know_nothing_of_each_other(db):
    stream(db, *chain(0, 2), table='one')
    stream(db, *chain(0, 3), table='t/wo "ü"')
    stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xd')]), table='one')
    assert numbers(db, 'one') == [0, 9]
    assert len(numbers(db, 't/wo "ü"')) == 6
    assert {info.key.table for info in db.list_streams()} == {'one', 't/wo "ü"'}


def test_one_table_by_its_path_has_one_name(tmp_path):
    path = tmp_path / 'only'
    with DeltaLakeLoader({'table_path': str(path)}) as db:
        stream(db, *chain(0, 2), table='logs')
        assert DeltaTable(path).count() == 4
        with pytest.raises(ConfigError, match="know it as 'logs'"):
            stream(db, *chain(0, 2), table='other')
        assert db.list_streams()[0].key == StreamKey('logs', 'logs')


def test_a_stream_can_begin_in_a_table_that_is_there(db):
    db.load_table(pa.table({'block_num': pa.array([99], pa.int64()), 'tx_hash': ['plain']}), 't')
    stream(db, *chain(0, 2))
    stream(db, ResponseBatch.reorg_batch([eth(0, 19, '0xd')]))
    assert numbers(db) == [99]


def test_until_its_first_rows_a_table_does_not_exist(db):
    db.open_stream(StreamKey('t', 't'), Claim('one', 'then'))
    assert not db.table_exists('t')
    assert db.get_table_info('t') is None
    with pytest.raises(LoadError, match='no rows yet'):
        db.scan('t')
    assert not db.load_table(pa.table({'x': [1]}), 't', create_table=False).success
    assert db.load_table(pa.table({'x': [1]}), 't').success
    assert db.scan('t').read_all().to_pydict() == {'x': [1]}
    assert [info.key.name for info in db.list_streams()] == ['t']


def test_a_table_with_many_columns_still_prunes_by_id(db):
    wide = {f'c{i}': pa.array([i], pa.int64()) for i in range(60)}
    one = pa.record_batch(wide)
    for i in range(3):
        r = eth(i, i, f'0x{i}', f'0x{i - 1}' if i else None)
        stream(db, ResponseBatch.data_batch(one, BatchMetadata([r], ranges_complete=True)))
    actions = pa.table(db.open_table('t').get_add_actions(flatten=True))
    assert actions[f'min.{TX_ID}'].null_count == 0


def test_the_older_writer_loses_at_its_next_commit(db):
    key = StreamKey('t', 't')
    older = db.load_stream_continuous(iter(chain(0, 2)), 't')
    next(older)
    with DeltaLakeLoader({'root': db.config.root}) as newer:
        taken = newer.open_stream(key, Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
    with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 2'):
        next(older)
    assert numbers(db) == [0, 9]
    assert taken.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa0'}}


def test_the_older_writer_loses_though_its_unit_has_begun(db):
    key = StreamKey('t', 't')
    state = db.open_stream(key, Claim('older', 'then'))
    [batch] = [r.data for r in chain(0, 1)]
    db.prepare_table(stamp(batch, 1, 'b').schema, 't', create_table=True)
    unit = db.begin(StreamJob(key), state, state.first_id, None)
    unit.write(stamp(batch, state.first_id, 'b'))
    with DeltaLakeLoader({'root': db.config.root}) as newer:
        newer.open_stream(key, Claim('newer', 'later'))
        # Other commits, and a checkpoint, lie between it and the newest version.
        for _ in range(3):
            stream(newer, *chain(0, 1), stream_name='another', resume=False)
        newer.open_table('t').create_checkpoint()
        stream(newer, *chain(0, 1), stream_name='another', resume=False)
    with pytest.raises(StaleEpochError, match='newer at later'):
        unit.commit(state)
    assert numbers(db) == [0, 9]


def test_a_stream_never_takes_itself_back_from_a_newer_writer(db):
    db.open_stream(StreamKey('t', 't'), Claim('first', 'then'))
    db.open_stream(StreamKey('t', 't'), Claim('second', 'later'))
    with pytest.raises(StaleEpochError, match='second at later'):
        db.open_stream(StreamKey('t', 't'), Claim('first', 'then'), after=1)
    assert db.open_stream(StreamKey('t', 't'), Claim('second', 'again'), after=1).epoch == 3, 'its own lost answer'


def test_many_who_open_streams_at_once_get_epochs_and_numbers_of_their_own(tmp_path):
    barrier = threading.Barrier(6)

    def take(i: int) -> tuple[int, int]:
        with DeltaLakeLoader({'root': str(tmp_path)}) as db:
            barrier.wait(120)
            state = db.open_stream(StreamKey('t', f's{i % 2}'), Claim(f'owner {i}', 'now'))
            return state.number, state.epoch

    with ThreadPoolExecutor(6) as pool:
        taken = sorted(pool.map(take, range(6)))
    assert taken == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


def test_the_protocol_of_the_log_needs_no_loader(tmp_path):
    place, key = str(tmp_path / 't'), StreamKey('t', 't')
    columns = pa.schema([('n', pa.int64()), ('_amp_batch_id', pa.string()), (TX_ID, pa.int64())])
    DeltaTable.create(place, columns)
    ours, theirs = DeltaLog(place), DeltaLog(place)
    state = ours.take(key, Claim('ours', 'now'))

    def rows(tx: int) -> pa.Table:
        return pa.table({'n': [1], '_amp_batch_id': ['b'], TX_ID: pa.array([tx], pa.int64())}, schema=columns)

    commit = ours.begin(key, state)
    after = state.append(state.first_id, [eth(0, 9, '0xa')])
    commit.write_state(after)
    commit.run(
        lambda: write_deltalake(commit.table, rows(state.first_id), mode='append', commit_properties=commit.properties)
    )
    assert [info.state for info in theirs.streams()] == [after]
    late = ours.begin(key, after)
    late.write_state(after)
    theirs.take(key, Claim('theirs', 'later'))
    with pytest.raises(StaleEpochError, match='theirs at later'):
        late.run(lambda: write_deltalake(late.table, rows(1), mode='append', commit_properties=late.properties))
    with pytest.raises(StaleEpochError, match='theirs at later'):
        ours.begin(key, after)
    assert DeltaTable(place).count() == 1


def test_only_the_newest_states_are_kept(db, tmp_path):
    stream(db, *chain(0, 40))
    stream(db, *chain(40, 1))
    kept = list((Path(db.place_of('t')) / '_amp' / 't').iterdir())
    assert len(kept) <= 20
    assert len(numbers(db)) == 82


def test_rows_with_the_position_of_a_commit_that_never_happened_are_nothing(db):
    stream(db, *chain(0, 1))
    [info] = db.list_streams()
    folder = Path(db.place_of('t')) / '_amp' / 't'
    newest = max(folder.iterdir(), key=lambda p: int(p.stem))
    (folder / f'{int(newest.stem) + 5}.json').write_text('{"of": "a commit that was never made"}')
    assert db.list_streams() == [info]
    stream(db, *chain(1, 1))
    assert numbers(db) == [0, 9, 10, 19]


def test_a_stream_can_be_verified_and_a_row_of_another_block_is_found(db):
    def numbered(answer: ResponseBatch) -> ResponseBatch:
        batch = answer.data
        blocks = batch['block_num'].cast(pa.uint64())
        return ResponseBatch.data_batch(batch.set_column(0, '_block_num', blocks), answer.metadata)

    stream(db, *map(numbered, chain(0, 5)))
    [report] = verify(db, 't')
    assert (report.findings, report.rows) == ([], 10)
    DeltaTable(db.place_of('t')).update({'_block_num': '999'}, predicate='_block_num = 20')
    [report] = verify(db, 't')
    assert report.findings


def test_the_example_of_the_page_runs(tmp_path):
    page = Path(__file__).parents[4] / 'docs' / 'destinations' / 'deltalake.md'
    [code] = re.findall(r'```python\n(.*?)```', page.read_text(), flags=re.DOTALL)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '18446744073709551615' in done.stdout


# Files


def test_files_of_the_undo_window_are_never_joined_and_the_others_are(tmp_path):
    config = {
        'root': str(tmp_path),
        'optimize_after_write': True,
        'vacuum_after_write': True,
        'maintenance_commits': 16,
    }
    with DeltaLakeLoader(config) as db:
        stream(db, *chain(0, 200, width=1), retention=20)
        window = 200 - 21
        assert len(files(db)) <= 21 + 16 + 2 * 8, 'what may be undone, what came since, and less than 8 of each size'
        actions = pa.table(db.open_table('t').get_add_actions(flatten=True)).to_pylist()
        assert sum(a['num_records'] for a in actions) == 400
        newest = [a for a in actions if a['max.block_num'] >= window]
        assert all(a['num_records'] == 2 for a in newest)
        assert len(numbers(db)) == 400
        before = files(db)
        stream(db, ResponseBatch.reorg_batch([eth(192, 199, '0xd')]))
        assert len(before - files(db)) == 8
        assert files(db) < before
        assert len(numbers(db)) == 384


def test_joined_files_hold_the_same_rows_and_no_data_changed(db):
    def rows(i: int) -> pa.Table:
        return pa.table(
            {
                'n': pa.array([i, i + 1, None], pa.uint64()),
                'text': [f'ü{i}', None, '"'],
                'when': pa.array([i * 1000, 2_123_456_000, None], pa.int64()).cast(pa.timestamp('ns', 'UTC')),
                'bytes': pa.array([b'\x00' * 20, None, b'x' * 20], pa.binary(20)),
                'list': pa.array([[{'a': i}], [], None], pa.list_(pa.struct([('a', pa.int32())]))),
                'price': pa.array([Decimal('1.5'), None, Decimal('-2.25')], pa.decimal128(10, 2)),
            }
        )

    for i in range(12):
        assert db.load_table(rows(i), 't').success
    more = rows(12).append_column('added', pa.array([1, 2, None], pa.int64()))
    assert db.load_table(more, 't', schema_evolution='evolve').success
    before = db.scan('t').read_all().sort_by([('n', 'ascending'), ('text', 'ascending')])
    assert db.optimize('t') == {'files_removed': 13, 'files_added': 1}
    after = db.scan('t').read_all().sort_by([('n', 'ascending'), ('text', 'ascending')])
    assert after.to_pylist() == before.to_pylist()
    assert db.open_table('t').count() == 39
    log = max((Path(db.place_of('t')) / '_delta_log').glob('*.json')).read_text().splitlines()
    changes = [json.loads(line) for line in log]
    assert {action[kind]['dataChange'] for action in changes for kind in ('add', 'remove') if kind in action} == {False}
    assert db.stamped_scan('t', ['n'], {'n': (12, 13)}).read_all().num_rows == 3
    assert db.optimize('t') == {'files_removed': 0, 'files_added': 0}


def test_partitions_are_joined_apart(tmp_path):
    with DeltaLakeLoader({'root': str(tmp_path), 'partition_by': ['p', 'day']}) as db:
        for i in range(4):
            days = pa.array([1, 2, None], pa.int32()).cast(pa.date32())
            assert db.load_table(pa.table({'p': ['a b', 'c/d%', None], 'day': days, 'x': [i, i, i]}), 't').success
        before = db.scan('t').read_all().sort_by([('p', 'ascending'), ('x', 'ascending')]).to_pylist()
        assert db.optimize('t') == {'files_removed': 12, 'files_added': 3}
        assert db.scan('t').read_all().sort_by([('p', 'ascending'), ('x', 'ascending')]).to_pylist() == before
        assert db.stamped_scan('t', ['x']).read_all().num_rows == 12


def test_joining_files_gives_way_to_whoever_was_first(db, tmp_path):
    from amp.loaders.delta.compact import compact
    from amp.loaders.deltalog.files import Files

    for i in range(4):
        db.load_table(pa.table({'x': [i]}), 't')
    late, place = db.open_table('t'), Files(db.place_of('t'))
    DeltaTable(db.place_of('t')).optimize.compact()
    assert compact(late, place, [], 2) == (0, 0)
    beside = db.open_table('t')
    db.load_table(pa.table({'x': [10]}), 't')
    db.load_table(pa.table({'x': [11]}), 't')
    assert compact(beside, place, [], 2) == (0, 0), 'one file is nothing to join'
    again = db.open_table('t')
    db.load_table(pa.table({'x': [12]}), 't')
    assert compact(again, place, [], 2)[0] == 3, 'an append beside it is stepped over'
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [0, 1, 2, 3, 10, 11, 12]


def test_a_vacuum_deletes_what_no_version_needs_and_never_a_state(db):
    stream(db, *chain(0, 4))
    stream(db, ResponseBatch.reorg_batch([eth(20, 39, '0xd')]))
    folder = Path(db.place_of('t'))
    assert len(list(folder.glob('*.parquet'))) == 4
    assert db.vacuum('t') == []
    with pytest.raises(DestinationError, match='retention'):
        db.vacuum('t', retention_hours=0)
    DeltaTable(folder).alter.set_table_properties({'delta.deletedFileRetentionDuration': 'interval 0 seconds'})
    assert len(db.vacuum('t', dry_run=True)) == 2
    assert len(db.vacuum('t')) == 2
    assert len(list(folder.glob('*.parquet'))) == 2
    stream(db, *[response(eth(20, 29, '0xe', '0xa1'), 25)])
    assert numbers(db) == [0, 9, 10, 19, 25]


# Many at once


def append_many(root: str, worker: int, times: int) -> int:
    with DeltaLakeLoader({'root': root}) as db:
        return sum(db.load_table(pa.table({'x': [worker * 1000 + i]}), 't').rows_loaded for i in range(times))


@pytest.mark.parametrize('kind', ['threads', 'processes'])
def test_concurrent_appends_lose_and_double_nothing(tmp_path, kind):
    workers, times = (16, 3) if kind == 'threads' else (3, 8)
    pool: Any = ThreadPoolExecutor(workers)
    if kind == 'processes':
        pool = ProcessPoolExecutor(workers, mp_context=get_context('spawn'))
    with pool:
        loaded = list(pool.map(append_many, [str(tmp_path)] * workers, range(workers), [times] * workers))
    assert loaded == [times] * workers
    with DeltaLakeLoader({'root': str(tmp_path)}) as db:
        found = sorted(db.scan('t').read_all()['x'].to_pylist())
    assert found == sorted(w * 1000 + i for w in range(workers) for i in range(times))


def test_concurrent_upserts_wait_for_each_other(tmp_path):
    def upsert(worker: int) -> str | None:
        with DeltaLakeLoader({'root': str(tmp_path)}) as own:
            rows = pa.table({'k': [0, worker], 'v': [worker, worker]})
            return own.load_table(rows, 't', mode='upsert', key_columns=['k']).error

    with DeltaLakeLoader({'root': str(tmp_path)}) as db:
        db.load_table(pa.table({'k': [0], 'v': [0]}), 't')
        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(upsert, range(1, 6))) == [None] * 5
        rows = dict(zip(*db.scan('t').read_all().select(['k', 'v']).to_pydict().values(), strict=True))
    assert rows.pop(0) in range(1, 6)
    assert rows == {i: i for i in range(1, 6)}


def test_two_streams_run_at_once_and_undo_beside_each_other(tmp_path):
    barrier = threading.Barrier(2)

    def run(name: str) -> None:
        def step(response: ResponseBatch) -> None:
            # Delta Lake lets no append pass a delete, and these batches come only once: so they are given again.
            for _ in range(20):
                try:
                    stream(db, response, stream_name=name)
                except ProtocolError:
                    continue
                return
            pytest.fail('twenty conflicts, one after the other')

        with DeltaLakeLoader({'root': str(tmp_path)}) as db:
            barrier.wait(120)
            for i in range(6):
                [response] = chain(i, 1, branch=name)
                step(response)
                if i % 2:
                    step(ResponseBatch.reorg_batch([eth(i * 10, i * 10 + 9, '0xd')]))
                    step(response)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, name) for name in ('one', 'two')]:
            done.result(timeout=240)
    with DeltaLakeLoader({'root': str(tmp_path)}) as db:
        assert numbers(db) == sorted(2 * [n for i in range(6) for n in (i * 10, i * 10 + 9)])


# Bad input


def in_child(code: str, *arguments: str) -> str:
    """What a new Python prints; its own process, so that limits and rights are its own."""
    head = 'import os, resource, signal, sys; import pyarrow as pa\n'
    head += 'from amp.loaders.implementations.deltalake_loader import DeltaLakeLoader\n'
    done = subprocess.run(
        [sys.executable, '-c', head + code, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_one_clear_sentence_and_leaves_the_table_as_it_was(db):
    db.load_table(pa.table({'x': pa.array([1], pa.int64())}), 't')
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with DeltaLakeLoader({'root': sys.argv[1]}) as db:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    print(db.load_table(pa.table({'x': pa.array(range(0, 2**40, 2**21), pa.int64())}), 't').error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(db.load_table(pa.table({'x': pa.array([2], pa.int64())}), 't').success)
"""
    full, then = in_child(code, db.config.root).splitlines()
    assert 'is full' in full
    assert then == 'True', 'and the loader goes on when there is space'
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [1, 2]


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    folder = tmp_path / 'closed'
    folder.mkdir()
    # Rights go when everything is imported: the other user may not read the interpreter's own files.
    code = """
os.chdir(sys.argv[1])
db = DeltaLakeLoader({'root': '.'})
print(db.load_table(pa.table({'x': [1]}), 't', create_table=False).error, flush=True)
if os.geteuid() == 0:
    os.setuid(65534)
print(db.load_table(pa.table({'x': [1]}), 't').error, flush=True)
os._exit(0)
"""
    folder.chmod(0o555)
    try:
        told = in_child(code, str(folder)).splitlines()[-1]
    finally:
        folder.chmod(0o755)
    assert 'may not be written' in told
    assert str(folder) in told


def test_a_table_that_was_replaced_meanwhile_loses_no_column_silently(db):
    assert db.load_table(pa.table({'x': [1], 'y': [2]}), 't').success
    write_deltalake(db.place_of('t'), pa.table({'x': [3]}), mode='overwrite', schema_mode='overwrite')
    result = db.load_table(pa.table({'x': [4], 'y': [5]}), 't')
    assert "no column 'y' any more" in result.error
    again = db.load_table(pa.table({'x': [4], 'y': [5]}), 't', schema_evolution='evolve')
    assert again.success, again.error
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [3, 4]


def test_a_damaged_log_is_never_built_over(db):
    db.load_table(pa.table({'x': [1]}), 't')
    db.load_table(pa.table({'x': [2]}), 't')
    log = Path(db.place_of('t')) / '_delta_log'
    first, second, third = sorted(log.glob('*.json'))
    whole = third.read_text()
    third.write_text(whole[: len(whole) // 2])
    half = DeltaLakeLoader({'root': db.config.root}).load_table(pa.table({'x': [3]}), 't')
    assert not half.success
    assert str(log.parent) in half.error
    third.write_text(whole)
    kept = first.read_text()
    first.unlink()
    second.rename(log / 'aside')
    gone = DeltaLakeLoader({'root': db.config.root}).load_table(pa.table({'x': [3]}), 't')
    assert not gone.success
    assert str(log.parent) in gone.error
    (log / 'aside').rename(second)
    first.write_text(kept)
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [1, 2]


def test_a_state_that_is_gone_or_broken_is_an_error_and_no_new_beginning(db):
    stream(db, *chain(0, 1))
    folder = Path(db.place_of('t')) / '_amp' / 't'
    newest = max(folder.iterdir(), key=lambda p: int(p.stem))
    text = newest.read_text()
    newest.write_text(text[:50])
    with pytest.raises(IntegrityError, match='does not parse'):
        stream(db, *chain(1, 1))
    newest.unlink()
    with pytest.raises(IntegrityError, match='is gone'):
        stream(db, *chain(1, 1))
    newest.write_text(text)
    stream(db, *chain(1, 1))
    assert numbers(db) == [0, 9, 10, 19]


def test_a_table_that_forgets_its_transactions_takes_no_stream(db):
    db.load_table(pa.table({'x': [1]}), 't')
    properties = {'delta.setTransactionRetentionDuration': 'interval 1 days'}
    db.open_table('t').alter.set_table_properties(properties)
    with pytest.raises(DestinationError, match='forgets'):
        db.open_stream(StreamKey('t', 't'), Claim('one', 'now'))


def test_a_forked_child_is_told_to_be_spawned(db):
    db.load_table(pa.table({'x': [1]}), 't')
    code = """
db = DeltaLakeLoader({'root': sys.argv[1]})
print(db.load_table(pa.table({'x': [2]}), 't').success, flush=True)
child = os.fork()
if not child:
    print(db.load_table(pa.table({'x': [3]}), 't').error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    parent, child = in_child(code, db.config.root).splitlines()
    assert parent == 'True'
    assert "get_context('spawn')" in child
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [1, 2]


def test_a_source_that_breaks_leaves_nothing(db):
    good = pa.record_batch({'x': pa.array([1], pa.int64())})
    assert db.load_batch(good, 't').success

    def batches():
        yield good
        raise SchemaError('the source broke')

    broken = pa.RecordBatchReader.from_batches(good.schema, batches())
    with pytest.raises(SchemaError, match='the source broke'):
        db.load_reader(broken, 't', mode='overwrite')
    assert db.scan('t').read_all().to_pydict() == {'x': [1]}


def test_configuration_is_checked_by_name(tmp_path):
    with pytest.raises(ConfigError, match='root or table_path'):
        DeltaLakeLoader({})
    with pytest.raises(ConfigError, match='root or table_path'):
        DeltaLakeLoader({'root': 'a', 'table_path': 'b'})
    with pytest.raises(ConfigError, match="unknown configuration key 'rot'"):
        DeltaLakeLoader({'rot': 'x'})
    with pytest.raises(ConfigError, match='has a %'):
        DeltaLakeLoader({'root': str(tmp_path / 'a%20b')})
    with pytest.raises(ConfigError, match='inside the destination'):
        DeltaLakeLoader({'root': 'x', 'state': {'storage': 'memory'}})
    secret = DeltaLakeLoader({'root': 'x', 'storage_options': {'AWS_SECRET_ACCESS_KEY': 'hush'}})
    assert 'hush' not in repr(secret.config)
    with DeltaLakeLoader({'root': str(tmp_path)}) as db:
        for name in ('', 'n' * 300, 'with\x00nul'):
            assert db.load_table(pa.table({'x': [1]}), name).error


def test_urls():
    assert DeltaLakeLoader({'url': 'deltalake:///lake'}).config.root == 'lake'
    absolute = DeltaLakeLoader({'url': 'deltalake:////data/lake?optimize_after_write=true&partition_by=a,b'}).config
    assert (absolute.root, absolute.optimize_after_write, absolute.partition_by) == ('/data/lake', True, ('a', 'b'))
    assert DeltaLakeLoader({'url': 'deltalake:///?table_path=x/y'}).config.table_path == 'x/y'
    remote = DeltaLakeLoader({'url': 'deltalake+s3://bucket/some/prefix?AWS_REGION=eu-west-1&vacuum_after_write=1'})
    assert remote.config.root == 's3://bucket/some/prefix'
    assert remote.config.storage_options == {'AWS_REGION': 'eu-west-1'}
    assert remote.config.vacuum_after_write
    assert DeltaLakeLoader({'root': 'file:///data/a%20b'}).place_of('t') == '/data/a b/t'
    with pytest.raises(ConfigError, match='names a host'):
        DeltaLakeLoader({'url': 'deltalake://lake'})
    with pytest.raises(ConfigError, match="unknown configuration key 'nope'"):
        DeltaLakeLoader({'url': 'deltalake:///lake?nope=1'})


def test_given_batches_tell_why_they_cannot_go_on(db, tmp_path):
    """A conflict takes the stream back to its position; batches that come once cannot follow from there."""
    stream(db, response(eth(0, 9, '0xa'), 0, 9))

    def batches():
        yield response(eth(10, 19, '0xb', '0xa'), 10, complete=False)
        with DeltaLakeLoader({'root': str(tmp_path / 'lake')}) as other:
            rows = pa.table({'block_num': pa.array([1], pa.int64()), 'tx_hash': ['theirs']})
            assert other.load_table(rows, 't', mode='overwrite').success
        yield response(eth(10, 19, '0xb', '0xa'), 19)

    with pytest.raises(ProtocolError, match='do not continue the stream') as told:
        list(db.load_stream_continuous(batches(), 't'))
    assert 'other writers changed the Delta table' in str(told.value)
    assert isinstance(told.value.__cause__, DestinationError)
