"""The Parquet destination: the loader and the columnar store on one root."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import amp
from amp.errors import ConfigError, IntegrityError, LoadError, SchemaError, StaleEpochError
from amp.loaders.implementations.parquet_loader import ParquetConfig, ParquetLoader
from amp.loaders.stamps import TX_ID, stamp
from amp.loaders.unit import Claim, StreamJob
from amp.loaders.verify import verify
from amp.streaming import BatchMetadata, ResponseBatch
from amp.streaming.ledger import Entry, IdRun, StreamKey, StreamState, Undo
from amplify_db_utils import DuckDBParquetConfig, DuckDBParquetStore
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.integration.loaders.test_shared_rows import FolderTests
from tests.integration.loaders.test_shared_streams import OneTableTests, chain, numbers, stream

pytestmark = [pytest.mark.integration, pytest.mark.parquet]


class ParquetTestConfig(LoaderTestConfig):
    loader_class = ParquetLoader
    config_fixture_name = 'parquet_test_config'

    def get_row_count(self, loader, table_name):
        with open_store(loader.config.root) as store:
            return store.count(table_name)

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        with open_store(loader.config.root) as store:
            table = store.bulk_read(table_name)
        return (table.sort_by(order_by) if order_by else table).to_pylist()

    def cleanup_table(self, loader, table_name):
        subprocess.run(['rm', '-rf', loader.place_of(table_name)], check=True)

    def get_column_names(self, loader, table_name):
        with open_store(loader.config.root) as store:
            return store.get_schema(table_name).names


class TestParquetLoader(InterruptTests, BaseLoaderTests):
    config = ParquetTestConfig()


class TestParquetStreaming(BaseStreamingTests):
    config = ParquetTestConfig()


class TestParquetTypes(BaseTypeTests):
    config = ParquetTestConfig()


class TestParquetOneTable(OneTableTests):
    pass


class TestParquetFolders(FolderTests):
    pass


@pytest.fixture
def db(tmp_path):
    with ParquetLoader({'root': str(tmp_path / 'store')}) as opened:
        yield opened


def open_store(root: Any) -> DuckDBParquetStore:
    return DuckDBParquetStore(DuckDBParquetConfig(root=root))


def paths(db, table='t') -> set[str]:
    return set(db.store.log(table).snapshot().files['path'].to_pylist())


# The loader and the store


def test_the_store_reads_what_was_streamed_and_knows_it_by_its_registry(db):
    stream(db, *chain(0, 2))
    with open_store(db.config.root) as store:
        assert store.tables() == ['t']
        assert sorted(row['block_num'] for row in store.read('t', {'block_num': {'gte': 9}})) == [9, 10, 19]
        schema, keys = store.registered()['t']
        assert (schema.names, keys) == (['block_num', 'tx_hash', '_amp_batch_id', TX_ID], [])
    stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xd')]))
    with open_store(db.config.root) as store:
        assert store.count('t') == 2


def test_appends_of_the_store_and_streams_live_in_one_table(db):
    class Row(BaseModel):
        block_num: int
        tx_hash: str | None

    with open_store(db.config.root) as store:
        store.create_table('t', Row)
        store.write('t', [{'block_num': 1000, 'tx_hash': 'of the store'}])
        stream(db, *chain(0, 2))
        store.write('t', [{'block_num': 1001, 'tx_hash': 'beside the stream'}])
        stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xd')]))
        assert sorted(row['block_num'] for row in store.read('t')) == [0, 9, 1000, 1001]
        assert db.store.get_schema('t').names == ['block_num', 'tx_hash', '_amp_batch_id', TX_ID]
        assert store.registered()['t'][0].names == db.store.get_schema('t').names
        required = response(eth(10, 19, '0xb', '0xa0'), 12).data.set_column(0, 'block_num', pa.nulls(1, pa.int64()))
        with pytest.raises(amp.AmpError, match='block_num'):
            stream(db, ResponseBatch.data_batch(required, BatchMetadata([eth(10, 19, '0xb', '0xa0')], True)))
        assert store.count('t') == 4


def test_an_undo_of_rows_that_the_store_has_joined_with_others_takes_only_them(db):
    stream(db, *chain(0, 4))
    db.load_table(pa.table({'block_num': pa.array([77], pa.int64()), 'tx_hash': ['plain']}), 't')
    assert db.optimize('t') == 5
    assert len(paths(db)) == 1
    [result] = stream(db, ResponseBatch.reorg_batch([eth(20, 39, '0xd')]))
    assert result.metadata['rows_undone'] == 4
    assert numbers(db) == [0, 9, 10, 19, 77]


def test_a_compaction_between_the_plan_of_an_undo_and_its_commit(db):
    stream(db, *chain(0, 4))
    key = StreamKey('t', 't')
    state = db.open_stream(key, Claim('one', 'now'))
    dropped = state.entries[2:]
    after = StreamState(state.number, state.epoch, state.entries[:2], origins=state.origins)
    undo = Undo(after, tuple(IdRun(e.first_id, e.last_id) for e in dropped), dropped, ())
    unit = db.begin(StreamJob(key), state, state.first_id, undo)
    with open_store(db.config.root) as store:
        assert store.compact('t') == 4
    unit.commit(after)
    assert numbers(db) == [0, 9, 10, 19]


def test_a_store_of_an_older_form_takes_a_stream(db):
    root = Path(db.config.root)
    with open_store(root) as store:
        store.create_table('t', pa.schema([('block_num', pa.int64()), ('tx_hash', pa.string())]))
        store.write('t', [{'block_num': 5, 'tx_hash': 'old'}])
    subprocess.run(['rm', '-rf', str(root / 't' / '_delta_log')], check=True)
    assert db.table_exists('t')
    assert not (root / 't' / '_delta_log').exists(), 'looking writes nothing'
    stream(db, *chain(0, 1))
    assert numbers(db) == [0, 5, 9]


def test_parquet_that_no_table_knows_is_not_taken_for_nothing(db):
    folder = Path(db.config.root) / 't'
    folder.mkdir(parents=True)
    pq.write_table(pa.table({'x': [1]}), folder / 'a.parquet')
    with pytest.raises(amp.AmpError, match='no table knows'):
        stream(db, *chain(0, 1))


# Types and plain loads


def test_types_are_kept_as_they_were(db):
    table = pa.table(
        {
            'u64': pa.array([2**64 - 1], pa.uint64()),
            'when': pa.array([1_693_000_000_123_456_789]).cast(pa.timestamp('ns', 'UTC')),
            'hash': pa.array([b'\x01' * 20], pa.binary(20)),
            'wide': pa.array([Decimal(2**250)], pa.decimal256(76, 0)),
            'span': pa.array([7], pa.duration('ns')),
            'value': [str(2**251)],
        }
    )
    result = db.load_table(table, 't', column_types={'value': 'decimal'})
    assert result.success, result.error
    found = db.scan('t').read_all()
    assert found.drop_columns('value').equals(table.drop_columns('value'))
    assert found['value'].to_pylist() == [Decimal(2**251)]
    # The log's own types are narrower: what they are is in the table of types.
    columns = DeltaTable(db.place_of('t')).schema().to_arrow()
    assert [str(pa.field(field).type) for field in columns] == [
        'decimal128(20, 0)',
        'int64',
        'binary',
        'string',
        'int64',
        'string',
    ]


def test_a_value_that_a_table_of_somebody_else_cannot_hold_is_refused(db):
    with open_store(db.config.root) as store:
        store.create_table('t', pa.schema([('N', pa.int32()), ('note', pa.string())]))
    assert db.load_table(pa.table({'n': pa.array([2], pa.int64())}), 't').success
    too_large = db.load_table(pa.table({'n': pa.array([2**31], pa.int64())}), 't')
    assert "'N'" in too_large.error
    no_number = db.load_table(pa.table({'n': ['text']}), 't')
    assert "'N'" in no_number.error
    assert db.scan('t').read_all().to_pydict() == {'N': [2], 'note': [None]}


def test_columns_that_differ_only_in_case_are_refused(db):
    assert 'VALUE' in db.load_table(pa.table([[1], [2]], names=['value', 'VALUE']), 'cases').error


def test_overwrite_is_one_commit_of_all_batches(db):
    assert db.load_table(pa.table({'x': list(range(10))}), 't').success
    before = db.get_table_info('t')['version']
    assert db.load_table(pa.table({'x': list(range(100, 130))}), 't', mode='overwrite', batch_size=7).success
    assert db.get_table_info('t')['version'] == before + 1
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == list(range(100, 130))


def test_upsert_is_refused_by_name(db):
    with pytest.raises(ConfigError, match='parquet has no mode upsert'):
        stream(db, *chain(0, 1), mode='upsert', key_columns=['block_num'])
    result = db.load_table(pa.table({'x': [1]}), 't', mode='upsert', key_columns=['x'])
    assert 'parquet has no mode upsert' in result.error


def test_partitions(tmp_path):
    with ParquetLoader({'root': str(tmp_path), 'partition_by': 'net work'}) as db:
        rows = pa.table({'net work': ['a b', 'c/d%', None, ''], 'x': [1, 2, 3, 4]})
        assert db.load_table(rows, 'plain').success
        assert db.scan('plain').read_all().sort_by('x').equals(rows)
        assert {path.rpartition('/')[0] for path in paths(db, 'plain')} >= {'net%20work=a%20b', 'net%20work=c%2Fd%25'}
        assert 'net work' in db.load_table(pa.table({'x': [1]}), 'without').error
    with ParquetLoader({'root': str(tmp_path), 'partition_by': ['block_num']}) as db:
        stream(db, *chain(0, 3))
        stream(db, ResponseBatch.reorg_batch([eth(10, 29, '0xd')]))
        assert db.store.distinct_values('t', ['block_num']) == [{'block_num': 0}, {'block_num': 9}]
        assert numbers(db) == [0, 9]


def test_bytes_as_a_partition_key_are_refused_and_the_name_stays_free(tmp_path):
    rows = pa.record_batch({'block_num': pa.array([1], pa.int64()), 'address': pa.array([b'\0\xff'], pa.binary(2))})
    one = ResponseBatch.data_batch(rows, BatchMetadata([eth(0, 9, '0xa')], ranges_complete=True))
    with ParquetLoader({'root': str(tmp_path), 'partition_by': 'address'}) as db:
        with pytest.raises(SchemaError, match=r"'address' of type .* cannot be a partition key"):
            stream(db, one)
        assert not db.table_exists('t')
        assert 'cannot be a partition key' in db.load_table(pa.table(rows), 'plain').error
    with ParquetLoader({'root': str(tmp_path)}) as db:
        stream(db, one)
        assert db.scan('t').read_all().to_pydict() == {'block_num': [1], 'address': [b'\0\xff']}


@pytest.mark.parametrize('kind', [pa.date32(), pa.timestamp('us'), pa.timestamp('us', 'UTC')], ids=str)
def test_a_partition_of_a_day_that_the_log_cannot_read_again_is_refused(tmp_path, kind):
    def days(*given: int) -> pa.Array:
        return pa.array(given, pa.int32()).cast(pa.date32()).cast(kind)

    with ParquetLoader({'root': str(tmp_path), 'partition_by': 'day'}) as db:
        kept = days(-4_371_587, -719_162, -1, 0, 2_932_896)
        assert db.load_table(pa.table({'day': kept, 'x': range(5)}), 't').success
        for far in (2_932_897, -4_371_588):
            refused = db.load_table(pa.table({'day': days(0, far), 'x': [8, 9]}), 't')
            assert "'day' has a day outside the years" in refused.error
        rows = db.scan('t').read_all().sort_by('x')
        assert rows['x'].to_pylist() == [0, 1, 2, 3, 4]
        assert rows['day'].combine_chunks().equals(kept)


def test_many_small_batches_become_few_files(db):
    assert db.load_table(pa.table({'x': list(range(5000))}), 't', batch_size=10).success
    assert len(paths(db)) == 1
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == list(range(5000))


def test_a_url_spells_the_configuration():
    assert ParquetLoader({'url': 'parquet:///a/folder?partition_by=x,y'}).config == ParquetConfig(
        'a/folder', ('x', 'y')
    )
    far = ParquetLoader(
        {'url': 'parquet+s3://b/p?s3_endpoint=h:9&s3_use_ssl=false', 's3_access_key': 'k', 's3_secret_key': 's'}
    )
    assert far.config == ParquetConfig(
        's3://b/p', s3_endpoint='h:9', s3_use_ssl=False, s3_access_key='k', s3_secret_key='s'
    )
    assert "'s'" not in repr(far.config)
    for wrong in (
        {},
        {'root': 'x', 'no_such_key': 1},
        {'root': 'x', 's3_access_key': 'k'},
        {'root': 'x', 'threads': 0},
    ):
        with pytest.raises(ConfigError):
            ParquetLoader(wrong)
    with pytest.raises(ConfigError, match='three slashes'):
        ParquetLoader({'url': 'parquet://folder'})


@pytest.mark.parametrize('name', ['a%20b', "it's [x] {y}*", 'plus+ünï'])
def test_any_folder_will_do(tmp_path, name):
    with ParquetLoader({'root': str(tmp_path / name)}) as db:
        stream(db, *chain(0, 2))
        stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xd')]))
    with ParquetLoader({'root': str(tmp_path / name)}) as db:
        assert numbers(db) == [0, 9]
        assert [info.key.table for info in db.list_streams()] == ['t']
    assert (tmp_path / name / 't' / '_amp' / 't').is_dir()


# Streams


def test_undo_and_the_rows_that_replace_it_are_one_commit(db):
    stream(db, *chain(0, 2))
    before = db.get_table_info('t')['version']
    results = stream(db, response(eth(10, 20, '0xc', '0xa0'), 12, 20))
    assert [(r.is_reorg, r.rows_loaded) for r in results] == [(True, 0), (False, 2)]
    assert results[0].metadata['rows_undone'] == 2
    assert numbers(db) == [0, 9, 12, 20]
    assert db.get_table_info('t')['version'] == before + 2, 'one for the epoch, one for all the rest'


def test_an_undo_drops_files_and_writes_none_again(db):
    stream(db, *chain(0, 30))
    db.load_table(pa.table({'block_num': pa.array([1000], pa.int64()), 'tx_hash': ['plain']}), 't')
    before = paths(db)
    stream(db, ResponseBatch.reorg_batch([eth(270, 299, '0xd')]))
    assert len(before - paths(db)) == 3
    assert paths(db) < before
    assert numbers(db) == [*sorted(n for i in range(27) for n in (i * 10, i * 10 + 9)), 1000]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 2), st.booleans(), st.booleans())
def test_undo_of_any_runs_takes_exactly_their_rows(tmp_path_factory, dropped, new_rows, together, joined):
    """Not only a suffix: with two networks in one stream the runs to take back can lie anywhere."""
    with ParquetLoader({'root': str(tmp_path_factory.mktemp('runs'))}) as db:
        key, job = StreamKey('t', 't'), StreamJob(StreamKey('t', 't'))
        state = db.open_stream(key, Claim('one', 'now'))
        other = db.open_stream(StreamKey('t', 'other'), Claim('two', 'now'))
        rows = pa.record_batch({'n': pa.array([0, 0])})
        db.prepare_table(stamp(rows, 1, 'b').schema, 't', create_table=True)
        ids = [state.first_id + i for i in range(len(dropped))]
        for batch in [ids] if together else [[i] for i in ids]:
            unit = db.begin(job, state, batch[0], None)
            for tx in batch:
                unit.write(stamp(rows, tx, 'b'))
            unit.commit(state)
        unit = db.begin(StreamJob(StreamKey('t', 'other')), other, other.first_id, None)
        unit.write(stamp(rows, other.first_id, 'b'))
        unit.commit(other)
        if joined:
            db.optimize('t')

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


def test_the_files_of_a_long_stream_stay_few(tmp_path):
    with ParquetLoader({'root': str(tmp_path), 'optimize_after_write': True, 'maintenance_commits': 16}) as db:
        stream(db, *chain(0, 100, width=1))
        assert len(paths(db)) <= 16 + 1
        [result] = stream(db, ResponseBatch.reorg_batch([eth(50, 99, '0xd')]))
        assert result.metadata['rows_undone'] == 100
        assert numbers(db) == sorted([*range(50), *range(50)])


def test_rows_put_under_the_columns_of_amp_alone_stay(db):
    db.open_stream(StreamKey('t', 't'), Claim('one', 'then'))
    db.store.write('t', [{'_amp_batch_id': 'of somebody'}])
    assert db.load_table(pa.table({'x': [1]}), 't').success
    assert sorted(db.scan('t').read_all()['x'].to_pylist(), key=str) == [1, None]


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
    one = pa.record_batch({f'c{i}': pa.array([i], pa.int64()) for i in range(80)})
    for i in range(3):
        r = eth(i, i, f'0x{i}', f'0x{i - 1}' if i else None)
        stream(db, ResponseBatch.data_batch(one, BatchMetadata([r], ranges_complete=True)))
    low = db.store.log('t').snapshot().files['min'].combine_chunks().field(TX_ID)
    assert low.null_count == 0
    assert db.scan('t').read_all().column_names == [f'c{i}' for i in range(80)]


def test_the_older_writer_loses_though_its_unit_has_begun(db):
    key = StreamKey('t', 't')
    state = db.open_stream(key, Claim('older', 'then'))
    [batch] = [r.data for r in chain(0, 1)]
    db.prepare_table(stamp(batch, 1, 'b').schema, 't', create_table=True)
    unit = db.begin(StreamJob(key), state, state.first_id, None)
    unit.write(stamp(batch, state.first_id, 'b'))
    with ParquetLoader({'root': db.config.root}) as newer:
        newer.open_stream(key, Claim('newer', 'later'))
        # Other commits, and a checkpoint, lie between it and the newest version.
        for _ in range(3):
            stream(newer, *chain(0, 1), stream_name='another', resume=False)
        DeltaTable(newer.place_of('t')).create_checkpoint()
        stream(newer, *chain(0, 1), stream_name='another', resume=False)
    with pytest.raises(StaleEpochError, match='newer at later'):
        unit.commit(state)
    assert numbers(db) == [0, 9]


def test_many_who_open_streams_at_once_get_epochs_and_numbers_of_their_own(tmp_path):
    barrier = threading.Barrier(4)

    def take(i: int) -> tuple[int, int]:
        with ParquetLoader({'root': str(tmp_path)}) as db:
            barrier.wait(120)
            state = db.open_stream(StreamKey('t', f's{i % 2}'), Claim(f'owner {i}', 'now'))
            return state.number, state.epoch

    with ThreadPoolExecutor(4) as pool:
        taken = sorted(pool.map(take, range(4)))
    assert taken == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_streams_the_store_and_compactions_at_once(tmp_path):
    root, over = str(tmp_path), threading.Event()
    with open_store(root) as store:
        store.create_table('t', pa.schema([('block_num', pa.int64()), ('tx_hash', pa.string())]))

    def run(name: str) -> None:
        with ParquetLoader({'root': root}) as db:
            for i in range(5):
                [answer] = chain(i, 1, branch=name)
                stream(db, answer, stream_name=name)
                stream(db, ResponseBatch.reorg_batch([eth(i * 10, i * 10 + 9, '0xd')]), stream_name=name)
                stream(db, answer, stream_name=name)

    def join() -> None:
        with open_store(root) as store:
            while not over.is_set():
                store.compact('t')

    def append() -> None:
        with open_store(root) as store:
            for i in range(5):
                store.write('t', [{'block_num': 1000 + i, 'tx_hash': 'of the store'}])

    with ThreadPoolExecutor(4) as pool:
        joining = pool.submit(join)
        try:
            for done in [pool.submit(run, 'one'), pool.submit(run, 'two'), pool.submit(append)]:
                done.result(timeout=240)
        finally:
            over.set()
        joining.result(timeout=120)
    with ParquetLoader({'root': root}) as db:
        streamed = 2 * [n for i in range(5) for n in (i * 10, i * 10 + 9)]
        assert numbers(db) == sorted([*streamed, *range(1000, 1005)])


def test_a_stream_can_be_verified_and_a_row_that_is_gone_is_found(db):
    def numbered(answer: ResponseBatch) -> ResponseBatch:
        blocks = answer.data['block_num'].cast(pa.uint64())
        return ResponseBatch.data_batch(answer.data.set_column(0, '_block_num', blocks), answer.metadata)

    stream(db, *map(numbered, chain(0, 5)))
    [report] = verify(db, 't')
    assert (report.findings, report.rows) == ([], 10)
    DeltaTable(db.place_of('t')).update({'_block_num': '999'}, predicate='_block_num = 20')
    [report] = verify(db, 't')
    assert report.findings


def test_a_failed_unit_leaves_no_file(db):
    key = StreamKey('t', 't')
    state = db.open_stream(key, Claim('one', 'now'))
    [batch] = [r.data for r in chain(0, 1)]
    db.prepare_table(stamp(batch, 1, 'b').schema, 't', create_table=True)
    unit = db.begin(StreamJob(key), state, state.first_id, None)
    unit.write(stamp(batch, state.first_id, 'b'))
    unit.rollback()
    assert list(Path(db.place_of('t')).glob('*.parquet')) == []


# Bad input


def test_a_damaged_file_is_an_error_and_not_fewer_rows(db):
    stream(db, *chain(0, 3))
    [newest] = [p for p in paths(db) if min(ids_of(db, p)) == max(min(ids_of(db, q)) for q in paths(db))]
    file = Path(db.place_of('t')) / newest
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(amp.AmpError, match='damaged'):
        db.scan('t').read_all()
    with pytest.raises(amp.AmpError, match='damaged'):
        stream(db, ResponseBatch.reorg_batch([eth(20, 29, '0xd')]))


def ids_of(db, path: str) -> list[int]:
    return pq.read_table(Path(db.place_of('t')) / path)[TX_ID].to_pylist()


def test_a_state_that_is_gone_or_broken_is_an_error_and_no_new_beginning(db):
    stream(db, *chain(0, 1))
    folder = Path(db.place_of('t')) / '_amp' / 't'
    newest = max(folder.iterdir(), key=lambda p: int(p.stem))
    text = newest.read_text()
    newest.write_text(text[:50])
    with pytest.raises(IntegrityError, match='does not parse'):
        stream(db, *chain(1, 1))
    newest.write_text(text)
    assert db.vacuum('t', 0) == []
    assert json.loads(newest.read_text())['stream'] == 't'
    stream(db, *chain(1, 1))
    assert numbers(db) == [0, 9, 10, 19]


def test_a_full_disk_is_one_clear_sentence_and_leaves_the_table_as_it_was(db):
    db.load_table(pa.table({'x': pa.array([1], pa.int64())}), 't')
    code = """
import resource, signal, sys; import pyarrow as pa
from amp.loaders.implementations.parquet_loader import ParquetLoader
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with ParquetLoader({'root': sys.argv[1]}) as db:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    print(db.load_table(pa.table({'x': pa.array(range(0, 2**40, 2**21), pa.int64())}), 't').error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(db.load_table(pa.table({'x': pa.array([2], pa.int64())}), 't').success)
"""
    done = subprocess.run(
        [sys.executable, '-c', code, db.config.root], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    full, then = done.stdout.splitlines()
    assert 'is full' in full
    assert then == 'True', 'and the loader goes on when there is space'
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [1, 2]
    assert len(list(Path(db.place_of('t')).glob('*.parquet'))) == 2


def test_a_name_that_is_none_is_refused(db):
    for name in ('', 'x' * 500):
        result = db.load_table(pa.table({'x': [1]}), name)
        assert not result.success
        assert 'name' in result.error


def test_the_example_of_the_page_runs(tmp_path):
    page = Path(__file__).parents[4] / 'docs' / 'destinations' / 'parquet.md'
    [code] = re.findall(r'```python\n(.*?)```', page.read_text(), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '18446744073709551615' in done.stdout
