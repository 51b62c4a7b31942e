"""The LMDB destination."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp.errors import ConfigError, DestinationError, LoadError, ProtocolError, StaleEpochError
from amp.loaders.implementations.lmdb_loader import LMDBLoader
from amp.loaders.lmdb import unit as lmdb_unit
from amp.loaders.row_bytes import RowBytes, Slices
from amp.loaders.row_msgpack import RowMsgpack
from amp.loaders.stamps import TX_ID
from amp.loaders.unit import Claim
from amp.streaming import ResponseBatch
from amp.streaming.ledger import StreamKey
from amp.streaming.lmdb_state import LMDBStreamStateStore
from tests.integration.loaders.conftest import KeyValueTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests

pytestmark = [pytest.mark.integration, pytest.mark.lmdb]


class LMDBTestConfig(KeyValueTestConfig):
    loader_class = LMDBLoader
    config_fixture_name = 'lmdb_test_config'


class TestLMDBLoader(InterruptTests, BaseLoaderTests):
    config = LMDBTestConfig()


class TestLMDBStreaming(BaseStreamingTests):
    config = LMDBTestConfig()


class TestLMDBTypes(BaseTypeTests):
    config = LMDBTestConfig()


class _Rows:
    """The same with every row found by a key of its own."""

    serialization = 'arrow'

    @pytest.fixture
    def lmdb_test_config(self, tmp_path):
        return {'db_path': str(tmp_path / 'db'), 'layout': 'rows', 'serialization': self.serialization, 'sync': False}


class _Msgpack(_Rows):
    serialization = 'msgpack'


class TestLMDBRows(_Rows, BaseLoaderTests):
    config = LMDBTestConfig()


class TestLMDBRowsStreaming(_Rows, BaseStreamingTests):
    config = LMDBTestConfig()


class TestLMDBRowsTypes(_Rows, BaseTypeTests):
    config = LMDBTestConfig()


class TestLMDBMsgpack(_Msgpack, BaseLoaderTests):
    config = LMDBTestConfig()


class TestLMDBMsgpackStreaming(_Msgpack, BaseStreamingTests):
    config = LMDBTestConfig()


class TestLMDBMsgpackTypes(_Msgpack, BaseTypeTests):
    config = LMDBTestConfig()


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / 'db')


def opened(folder: str, **config: Any) -> LMDBLoader:
    return LMDBLoader({'db_path': folder, 'sync': False, **config})


def rows(loader: LMDBLoader, table: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in loader.scan(table).read_all().to_pylist())


def load(loader: LMDBLoader, table: str, columns: dict[str, Any], **options: Any) -> None:
    result = loader.load_table(pa.table(columns), table, **options)
    assert result.success, result.error


def refused(loader: LMDBLoader, table: str, columns: dict[str, Any], **options: Any) -> str:
    result = loader.load_table(pa.table(columns), table, **options)
    assert not result.success
    return result.error or ''


def stream(loader, *responses, table='t', **options):
    return list(loader.load_stream_continuous(responses, table, **options))


def keyed(block_range, key, value):
    batch = pa.record_batch({'k': [key], 'v': [value]})
    return ResponseBatch.data_batch(batch, response(block_range).metadata)


# Keys


def test_rows_are_read_by_their_key_as_bytes_text_or_number(folder):
    hashes = [bytes([i]) * 32 for i in range(3)]
    with opened(folder, key_column='hash') as db:
        load(db, 'blocks', {'hash': pa.array(hashes, pa.binary(32)), 'number': [7, 8, None]})
        assert db.read('blocks', hashes[1]) == {'hash': hashes[1], 'number': 8}
        assert db.read('blocks', hashes[2]) == {'hash': hashes[2], 'number': None}
        assert db.read('blocks', b'nobody' + bytes(26)) is None
        with pytest.raises(ConfigError, match='not a key of hash'):
            db.read('blocks', b'too short')
        # What another LMDB reader finds: the bytes themselves are the key.
        with db.environment.begin(db=db.environment.open_db(b'rows//blocks')) as txn:
            assert [key for key, _ in txn.cursor()] == hashes
    with opened(folder, key_column='number') as db:
        load(db, 'numbers', {'number': pa.array([5, 2**64 - 1], pa.uint64()), 'v': ['a', 'b']})
        assert db.read('numbers', 2**64 - 1) == {'number': 2**64 - 1, 'v': 'b'}


def test_a_pattern_joins_columns_and_never_makes_one_key_of_two_rows(folder):
    with opened(folder, key_pattern='{table}/{a}:{b}') as db:
        load(db, 't', {'a': ['x:y', 'x', 'x%3Ay'], 'b': ['z', 'y:z', 'z'], 'n': [1, 2, 3]})
        assert [db.read('t', key)['n'] for key in (('x:y', 'z'), ('x', 'y:z'), {'a': 'x%3Ay', 'b': 'z'})] == [1, 2, 3]
        assert db.read('t', 't/x:y%3Az')['n'] == 2
        with pytest.raises(ConfigError, match='made of a, b'):
            db.read('t', 5)


@pytest.mark.parametrize('layout', ['rows', 'batches'])
def test_rows_without_a_key_are_named_by_what_wrote_them(folder, layout):
    same = {'x': [1, 1, 1]}
    with opened(folder, layout=layout) as db:
        load(db, 't', same)
        load(db, 't', same, batch_size=2)
        assert len(rows(db, 't')) == 6, 'equal rows stay apart'
        assert db.read('t', '2:2') == {'x': 1}
        assert db.read('t', '2:3') is None
        assert db.read('t', 'x') is None
        stream(db, response(eth(0, 9, '0xa'), 1, 9), table='s')
        tx_id = db.stamped_scan('s').read_all()[TX_ID][0].as_py()
        assert db.read('s', f'{tx_id}:1')['block_num'] == 9


def test_duplicate_keys_are_refused_by_append_and_replaced_by_upsert(folder):
    with opened(folder, key_column='k') as db:
        load(db, 't', {'k': ['a', 'b'], 'v': [1, 2]})
        error = refused(db, 't', {'k': ['c', 'b'], 'v': [3, 4]})
        assert "1 rows have a key (k) that is already in the table 't', for example b'b'" in error
        assert 'upsert' in error
        error = refused(db, 't', {'k': ['d', 'd'], 'v': [3, 4]})
        assert 'another row of the same load' in error
        assert "b'd'" in error
        assert rows(db, 't') == [('a', 1), ('b', 2)], 'nothing of a refused load stays'
        load(db, 't', {'k': ['b', 'c', 'c'], 'v': [5, 6, 7]}, mode='upsert', key_columns=['k'])
        assert rows(db, 't') == [('a', 1), ('b', 5), ('c', 7)]


def test_a_table_keeps_its_key(folder):
    with opened(folder) as db:
        load(db, 'keyed', {'k': [1], 'v': [1]}, mode='upsert', key_columns=['k'])
        load(db, 'keyed', {'k': [2], 'v': [2]})
        assert 'already in the table' in refused(db, 'keyed', {'k': [2], 'v': [2]})
        assert 'found by k' in refused(db, 'keyed', {'k': [3], 'v': [3]}, mode='upsert', key_columns=['v'])
        load(db, 'whole', {'k': [1], 'v': [1]})
        assert 'whole batches' in refused(db, 'whole', {'k': [1], 'v': [1]}, mode='upsert', key_columns=['k'])
        # Overwriting begins anew, also with another key.
        load(db, 'whole', {'k': [1], 'v': [1]}, mode='overwrite')
    with opened(folder, key_column='v') as db:
        assert 'found by k, not by v' in refused(db, 'keyed', {'k': [4], 'v': [4]})
        load(db, 'keyed', {'k': [4], 'v': [4]}, mode='overwrite')
        assert db.read('keyed', 4) == {'k': 4, 'v': 4}


@pytest.mark.parametrize(
    ('keys', 'told'),
    [
        (pa.array(['a', None]), 'null in 1 of 2 rows, first in row 1'),
        (pa.array(['a', '']), 'is empty'),
        (pa.array(['a', 'b' * 600]), 'has 600 bytes'),
        (pa.array([[1], [2]]), 'cannot be a key'),
    ],
)
def test_rows_that_have_no_usable_key_are_refused(folder, keys, told):
    with opened(folder, key_column='k') as db:
        assert told in refused(db, 't', {'k': keys, 'v': [1, 2]})
        assert not db.table_exists('t')
        assert "'k' is not in the rows" in refused(db, 't', {'v': [1, 2]})
        load(db, 't', {'k': ['fine'], 'v': [1]})


# Tables


def test_overwriting_and_dropping_touch_their_own_table_only(folder):
    with opened(folder) as db:
        for name in ('t', 't2', 'rows//t', 't/t'):
            load(db, name, {'x': [name]})
        load(db, 't', {'x': ['new']}, mode='overwrite')
        assert [rows(db, name) for name in ('t', 't2', 'rows//t', 't/t')] == [
            [('new',)],
            [('t2',)],
            [('rows//t',)],
            [('t/t',)],
        ]
        db.drop_table('t')
        assert not db.table_exists('t')
        assert rows(db, 't2') == [('t2',)]
        load(db, 't', {'y': [1]})
        assert rows(db, 't') == [(1,)]


def test_namespaces_do_not_see_each_other(folder):
    with opened(folder, database_name='one') as one, opened(folder, database_name='two') as two:
        load(one, 't', {'x': [1]})
        assert not two.table_exists('t')
        stream(two, response(eth(0, 9, '0xa'), 1))
        assert one.list_streams() == []
        assert rows(one, 't') == [(1,)]


def test_names_that_lmdb_cannot_hold_are_refused(folder):
    with opened(folder) as db:
        for name in ('', 'a\0b', 'x' * 401):
            assert 'not a name for a table' in refused(db, name, {'x': [1]})


def test_a_column_of_another_type_is_refused_and_a_wider_value_kept(folder):
    for name, layout in (('r', 'rows'), ('b', 'batches')):
        with opened(folder, layout=layout) as db:
            load(db, name, {'x': pa.array([1], pa.int32())})
            assert 'int32 in the table and string' in refused(db, name, {'x': ['1']})
            assert 'does not fit int32' in refused(db, name, {'x': pa.array([2**40], pa.int64())})
            load(db, name, {'x': pa.array([2**30], pa.int64())})
            assert rows(db, name) == [(1,), (2**30,)]


def test_a_scan_sees_one_moment(folder):
    with opened(folder, layout='rows') as db:
        load(db, 't', {'x': list(range(40_000))})
        reader = db.scan('t')
        first = reader.read_next_batch()
        load(db, 't', {'x': [-1]}, mode='overwrite')
        rest = reader.read_all()
        assert first.num_rows + rest.num_rows == 40_000
        assert rows(db, 't') == [(-1,)]


# The environment


def test_loaders_of_one_folder_share_its_environment(folder):
    with opened(folder) as one, opened(folder + '/../db', sync=True) as two:
        load(one, 't', {'x': [1]})
        load(two, 't', {'x': [2]})
        assert rows(one, 't') == [(1,), (2,)]
        assert one.environment is two.environment
        assert one.environment.flags()['sync'] is not False, 'the careful one decides'
    with opened(folder) as again:
        assert rows(again, 't') == [(1,), (2,)]


def test_the_map_grows_by_itself_and_the_unit_is_written_again(folder):
    texts = [f'{i:05}' * 20 for i in range(50_000)]
    with opened(folder, map_size=1 << 20, key_column='x') as db:
        load(db, 'plain', {'x': texts})
        batch = pa.record_batch({'x': texts})
        stream(db, ResponseBatch.data_batch(batch, response(eth(0, 9, '0xa')).metadata), table='streamed')
        assert db.get_table_info('plain')['row_count'] == db.get_table_info('streamed')['row_count'] == 50_000
        assert db.environment.info()['map_size'] > 5 << 20


def test_a_map_that_is_full_in_the_middle_grows(folder):
    with opened(folder, map_size=1 << 20) as db:
        store = db.store
        [rows_database] = store.environment.make_databases(b'x')
        calls = []

        def fill(txn):
            calls.append(txn)
            for i in range(4000):
                txn.put(b'%d' % i, b'v' * 1000, db=rows_database)

        store.environment.write(fill)
        assert len(calls) > 1
        with store.environment.read() as txn:
            assert txn.stat(rows_database)['entries'] == 4000


def run_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, check=False)


_GROW = """
import sys, pyarrow as pa
from amp.loaders.implementations.lmdb_loader import LMDBLoader
with LMDBLoader({'db_path': sys.argv[1], 'sync': False}) as db:
    result = db.load_table(pa.table({'x': ['x' * 1000] * 20_000}), sys.argv[2])
    assert result.success, result.error
"""


def test_a_map_that_another_process_let_grow_is_taken_as_it_is(folder):
    with opened(folder, map_size=1 << 20) as db:
        load(db, 't', {'x': ['a']})
        assert run_child(_GROW, folder, 'other').returncode == 0
        assert db.get_table_info('other')['row_count'] == 20_000
        load(db, 't', {'x': ['b']})
        assert rows(db, 't') == [('a',), ('b',)]


def test_threads_and_processes_append_at_once_and_lose_nothing(folder):
    batches = 8

    def append(number: int) -> None:
        with opened(folder) as db:
            for i in range(batches):
                load(db, 't', {'x': [number * 1000 + i * 10 + n for n in range(10)]})

    code = """
import sys, pyarrow as pa
from amp.loaders.implementations.lmdb_loader import LMDBLoader
with LMDBLoader({'db_path': sys.argv[1], 'sync': False}) as db:
    for i in range(8):
        result = db.load_table(pa.table({'x': [int(sys.argv[2]) * 1000 + i * 10 + n for n in range(10)]}), 't')
        assert result.success, result.error
"""
    children = [subprocess.Popen([sys.executable, '-c', code, folder, str(n)]) for n in (10, 11)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    assert [child.wait(240) for child in children] == [0, 0]
    with opened(folder) as db:
        wanted = [n * 1000 + i for n in (*range(4), 10, 11) for i in range(batches * 10)]
        assert [x for (x,) in rows(db, 't')] == sorted(wanted)


def test_threads_share_one_loader(folder):
    with opened(folder, key_column='x') as db:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: load(db, 't', {'x': list(range(n * 100, n * 100 + 100))}, batch_size=30), range(8)))
        assert [x for (x,) in rows(db, 't')] == list(range(800))


def test_a_disk_that_fills_up_keeps_nothing_of_the_unit(folder):
    code = """
import resource, signal, sys, pyarrow as pa
from amp.loaders.implementations.lmdb_loader import LMDBLoader
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with LMDBLoader({'db_path': sys.argv[1], 'sync': False}) as db:
    assert db.load_table(pa.table({'x': ['first']}), 't').success
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    result = db.load_table(pa.table({'x': [str(i) * 50 for i in range(100_000)]}), 't')
    assert not result.success
    print(result.error)
    assert db.scan('t').read_all().to_pydict() == {'x': ['first']}
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    result = db.load_table(pa.table({'x': ['second']}), 't')
    assert result.success, result.error
"""
    child = run_child(code, folder)
    assert child.returncode == 0, child.stderr
    assert 'the disk is full' in child.stdout
    with opened(folder) as db:
        assert rows(db, 't') == [('first',), ('second',)]


def test_places_that_cannot_be_opened_say_why(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', Path('/proc/self/amp')):
        with pytest.raises(DestinationError, match=r'cannot be opened: .*db_path'):
            opened(str(path)).connect()
    (tmp_path / 'noise').mkdir()
    (tmp_path / 'noise' / 'data.mdb').write_bytes(b'this is no database' * 1000)
    with pytest.raises(DestinationError, match='not an LMDB environment'):
        opened(str(tmp_path / 'noise')).connect()
    with LMDBStreamStateStore('c', tmp_path), pytest.raises(DestinationError, match=r'opened|something else'):
        opened(str(tmp_path / 'c')).connect()
    with pytest.raises(DestinationError, match='belongs to something else'):
        opened(str(tmp_path / 'c')).connect()


def test_configuration_is_checked_by_name():
    with pytest.raises(ConfigError, match="needs the configuration key 'db_path'"):
        LMDBLoader({})
    for key, value in (('serialization', 'pickle'), ('layout', 'columns')):
        with pytest.raises(ConfigError, match=value):
            LMDBLoader({'db_path': 'x', key: value})
    for size in ('1GB', -1, 0, True, 1 << 70):
        with pytest.raises(ConfigError, match=f'map_size={size!r} is not a whole number'):
            LMDBLoader({'db_path': 'x', 'map_size': size})
    with pytest.raises(ConfigError, match='leave one out'):
        LMDBLoader({'db_path': 'x', 'key_column': 'a', 'key_pattern': '{a}'})
    with pytest.raises(ConfigError, match='whole batches'):
        LMDBLoader({'db_path': 'x', 'layout': 'batches', 'key_column': 'a'})
    config = LMDBLoader({'url': 'lmdb:////data/chain?map_size=1000&sync=false&key_column=hash'}).config
    assert (config.db_path, config.map_size, config.sync, config.key_column) == ('/data/chain', 1000, False, 'hash')
    assert LMDBLoader({'url': 'lmdb:///chain'}).config.db_path == 'chain'


# Streams


@pytest.mark.parametrize('serialization', ['arrow', 'msgpack'])
def test_upsert_in_a_stream_gives_back_what_it_replaced(folder, serialization):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    with opened(folder, key_column='k', serialization=serialization) as db:
        load(db, 't', {'k': [7], 'v': ['plain']})
        stream(db, keyed(eth(0, 0, '0xa'), 1, 'old'), keyed(eth(1, 1, '0xb', '0xa'), 1, 'new'), **upsert)
        stream(db, keyed(eth(2, 2, '0xc', '0xb'), 7, 'streamed'), **upsert)
        assert rows(db, 't') == [(1, 'new'), (7, 'streamed')]
        stream(db, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), **upsert)
        assert rows(db, 't') == [(1, 'new'), (7, 'plain')]
        stream(db, ResponseBatch.reorg_batch([eth(1, 1, '0xd')]), **upsert)
        assert rows(db, 't') == [(1, 'old'), (7, 'plain')]
        stream(db, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), **upsert)
        assert rows(db, 't') == [(7, 'plain')]


def test_a_row_that_two_streams_replaced_comes_back_through_both(folder):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    with opened(folder, key_column='k') as db:
        load(db, 't', {'k': [1], 'v': ['plain']})
        stream(db, keyed(eth(0, 0, '0xa'), 1, 'one'), stream_name='one', **upsert)
        stream(db, keyed(eth(0, 0, '0xb'), 1, 'two'), stream_name='two', **upsert)
        stream(db, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), stream_name='one', **upsert)
        assert rows(db, 't') == [(1, 'two')], 'what is newer stays'
        stream(db, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), stream_name='two', **upsert)
        assert rows(db, 't') == [(1, 'plain')], 'and remembers what was there before both'


def test_a_stream_takes_its_rows_back_from_between_those_of_another(folder):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    with opened(folder, key_column='k') as db:
        stream(db, keyed(eth(1, 1, '0x1'), 7, 'one-1'), stream_name='one', **upsert)
        stream(db, keyed(eth(1, 1, '0x1'), 7, 'two-1'), stream_name='two', **upsert)
        stream(db, keyed(eth(2, 2, '0x2', '0x1'), 7, 'one-2'), stream_name='one', **upsert)
        stream(db, keyed(eth(2, 2, '0x2', '0x1'), 7, 'two-2'), stream_name='two', **upsert)
        stream(db, ResponseBatch.reorg_batch([eth(1, 2, '0xd')]), stream_name='one', **upsert)
        assert rows(db, 't') == [(7, 'two-2')]
        stream(db, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), stream_name='two', **upsert)
        assert rows(db, 't') == [(7, 'two-1')]
        stream(db, ResponseBatch.reorg_batch([eth(1, 1, '0xd')]), stream_name='two', **upsert)
        assert (rows(db, 't'), db.read('t', 7)) == ([], None)


def test_duplicate_keys_in_an_appending_stream_stop_it(folder):
    with opened(folder, key_column='k') as db:
        with pytest.raises(LoadError, match='already in the table'):
            stream(db, keyed(eth(0, 0, '0xa'), 1, 'a'), keyed(eth(1, 1, '0xb', '0xa'), 1, 'b'))
        assert rows(db, 't') == [(1, 'a')]
        assert db.list_streams()[0].state.position.to_dict() == {'ethereum': {'number': 0, 'hash': '0xa'}}


def test_what_can_no_longer_be_undone_is_forgotten(folder):
    upsert = {'mode': 'upsert', 'key_columns': ['k'], 'retention': 10}
    hashes = [f'0x{i}' for i in range(101)]
    units = [keyed(eth(i * 5, i * 5 + 4, hashes[i + 1], hashes[i]), i % 3, str(i)) for i in range(40)]
    with opened(folder, key_column='k') as db:
        stream(db, *units, **upsert)
        databases = db.store.make_databases('t')
        with db.store.environment.read() as txn:
            assert txn.stat(databases.keys)['entries'] < 8
            assert txn.stat(databases.before)['entries'] < 8


@pytest.mark.parametrize('layout', ['rows', 'batches'])
def test_a_unit_larger_than_memory_is_hidden_until_it_is_whole(folder, layout):
    texts = ['x' * 1000] * 9000
    block_range = eth(0, 9, '0xa')

    def feed():
        for i in range(6):
            batch = pa.record_batch({'x': texts, 'n': range(i * 9000, i * 9000 + 9000)})
            metadata = response(block_range, complete=i == 5).metadata
            yield ResponseBatch.data_batch(batch, metadata)
            if i == 5:
                return
            with opened(folder) as other:
                assert other.get_table_info('t')['row_count'] == 0
                assert other.scan('t').read_all().num_rows == 0
                assert other.read('t', f'{(1 << 51) + (1 << 27)}:0') is None

    with opened(folder, layout=layout) as db:
        [result] = db.load_stream_continuous(feed(), 't')
        assert result.rows_loaded == 54_000
        assert sorted(db.scan('t').read_all()['n'].to_pylist()) == list(range(54_000))
        stream(db, ResponseBatch.reorg_batch([eth(0, 9, '0xb')]))
        assert db.get_table_info('t')['row_count'] == 0


@pytest.mark.parametrize('layout', ['rows', 'batches'])
def test_a_large_load_that_dies_leaves_nothing(folder, layout):
    code = """
import os, signal, sys, pyarrow as pa
from amp.loaders import points
from amp.loaders.implementations.lmdb_loader import LMDBLoader
def die(point):
    if point == 'chunk.committed':
        os.kill(os.getpid(), signal.SIGKILL)
points.hook = die
with LMDBLoader({'db_path': sys.argv[1], 'sync': False, 'layout': sys.argv[2]}) as db:
    db.load_table(pa.table({'x': ['x' * 1000] * 90_000}), 't', batch_size=5000)
"""
    assert run_child(code, folder, layout).returncode == -signal.SIGKILL
    with opened(folder, layout=layout) as db:
        assert rows(db, 't') == []
        databases = db.store.make_databases('t')
        with db.store.environment.read() as txn:
            assert [txn.stat(database)['entries'] for database in databases] == [0, 0, 0], 'swept by the next to come'
        load(db, 't', {'x': ['alive']})
        assert rows(db, 't') == [('alive',)]


@pytest.mark.parametrize('what', ['overwrite', 'drop', 'drop and make anew'])
@pytest.mark.parametrize('layout', ['rows', 'batches'])
def test_a_large_unit_never_lands_in_a_table_that_was_cleared_meanwhile(folder, layout, what, monkeypatch):
    monkeypatch.setattr(lmdb_unit, '_IN_MEMORY', 20_000)
    with opened(folder, layout=layout) as db, opened(folder, layout=layout) as other:
        stream(db, response(eth(0, 9, '0xa'), 1))

        def feed():
            for i in range(6):
                if i == 4:
                    if what == 'overwrite':
                        load(other, 't', {'block_num': [700]}, mode='overwrite')
                    else:
                        other.drop_table('t')
                    if what == 'drop and make anew':
                        load(other, 't', {'block_num': [700]})
                batch = pa.record_batch({'block_num': range(i * 3000, i * 3000 + 3000)})
                yield ResponseBatch.data_batch(batch, response(eth(10, 19, '0xb', '0xa'), complete=i == 5).metadata)

        with pytest.raises(DestinationError, match='was overwritten or dropped while a large unit'):
            list(db.load_stream_continuous(feed(), 't', retry_seconds=0))
        [info] = db.list_streams()
        assert info.state.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}
        assert db.table_exists('t') == (what != 'drop')
        if what == 'drop':
            load(other, 't', {'block_num': [700]})
        assert other.scan('t').read_all()['block_num'].to_pylist() == [700]
        assert other.get_table_info('t')['row_count'] == 1


@pytest.mark.parametrize('layout', ['rows', 'batches'])
def test_a_large_first_load_that_fails_leaves_no_table(folder, layout, monkeypatch):
    monkeypatch.setattr(lmdb_unit, '_IN_MEMORY', 20_000)
    monkeypatch.setattr(lmdb_unit, '_BY_KEY_IN_MEMORY', 20_000)
    good = pa.record_batch({'x': ['x' * 100] * 300})

    def batches():
        yield from [good] * 4
        raise ProtocolError('the source broke')

    with opened(folder, layout=layout) as db:
        with pytest.raises(ProtocolError, match='the source broke'):
            db.load_reader(pa.RecordBatchReader.from_batches(good.schema, batches()), 't')
        assert not db.table_exists('t')
        load(db, 't', {'other': [1]})


def test_a_large_load_that_fails_takes_its_rows_away(folder):
    good = pa.record_batch({'x': ['x' * 1000] * 9000})

    def batches():
        for _ in range(9):
            yield good
        raise ProtocolError('the source broke')

    with opened(folder, layout='rows') as db:
        load(db, 't', {'x': ['kept']})
        with pytest.raises(ProtocolError, match='the source broke'):
            db.load_reader(pa.RecordBatchReader.from_batches(good.schema, batches()), 't')
        assert rows(db, 't') == [('kept',)]
        assert db.get_table_info('t')['row_count'] == 1


def test_a_large_overwrite_or_upsert_is_one_transaction(folder):
    many = {'k': list(range(60_000)), 'x': ['x' * 500] * 60_000}
    with opened(folder, key_column='k') as db:
        load(db, 't', {'k': [1, 99_999], 'x': ['old', 'old']})
        load(db, 't', many, mode='upsert', key_columns=['k'], batch_size=7000)
        assert db.get_table_info('t')['row_count'] == 60_001
        load(db, 't', many, mode='overwrite', batch_size=7000)
        assert db.get_table_info('t')['row_count'] == 60_000


def test_the_older_writer_loses_at_its_next_commit(folder):
    with opened(folder) as db:
        units = [response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11)]
        older = db.load_stream_continuous(iter(units), 't')
        next(older)
        db.open_stream(StreamKey('t', 't'), Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
        with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 2'):
            next(older)
        assert [row[0] for row in rows(db, 't')] == [1]


def test_two_streams_in_one_table_undo_only_their_own(folder):
    with opened(folder) as db:
        stream(db, response(eth(0, 9, '0xa'), 1), stream_name='one')
        stream(db, response(eth(0, 9, '0xb'), 2), stream_name='two')
        stream(db, ResponseBatch.reorg_batch([eth(0, 9, '0xc')]), stream_name='one')
        assert [row[0] for row in rows(db, 't')] == [2]


# Bytes


_KINDS = {
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.binary(20): st.binary(min_size=20, max_size=20),
    pa.decimal128(38, 0): st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
    pa.decimal256(76, 0): st.integers(-(10**75), 10**75).map(Decimal),
    pa.timestamp('ns', 'UTC'): st.integers(-(2**62), 2**62),
    pa.date32(): st.integers(-10_000, 10_000),
}


@st.composite
def batches(draw):
    kinds = draw(st.lists(st.sampled_from(list(_KINDS)), max_size=12))
    count = draw(st.integers(0, 8))
    columns = [
        pa.array(draw(st.lists(st.none() | _KINDS[kind], min_size=count, max_size=count)), kind)
        if not pa.types.is_temporal(kind)
        else pa.array(
            draw(st.lists(st.none() | _KINDS[kind], min_size=count, max_size=count)),
            pa.int32() if kind.bit_width == 32 else pa.int64(),
        ).view(kind)
        for kind in kinds
    ]
    names = [f'c{i}' for i in range(len(kinds))]
    if not columns:
        columns, names = [pa.nulls(count)], ['c0']
    return pa.RecordBatch.from_arrays(columns, names=names)


@pytest.mark.parametrize('codec', [RowBytes, RowMsgpack])
@given(batch=batches(), at=st.integers(0, 4), known=st.integers(0, 12), tx_id=st.integers(0, 2**62))
@settings(max_examples=150)
def test_rows_come_back_from_their_bytes(codec, batch, at, known, tx_id):
    """Slices too, and rows that were written when the table had fewer columns, among those with all of them."""
    part = batch.slice(at)
    older = part.select(part.schema.names[:known])
    encoded = pa.chunked_array(
        [codec(older.schema).encode(older, 1), codec(part.schema).encode(part, tx_id)], pa.binary()
    ).combine_chunks()
    ends = np.frombuffer(encoded.buffers()[1], np.int32, len(encoded) + 1).astype(np.int64)
    data = encoded.buffers()[2] or pa.py_buffer(b'')
    found, ids = codec(batch.schema).decode(Slices(data, ends[:-1], ends[1:]))
    found.validate(full=True)
    missing = [pa.nulls(part.num_rows, field.type) for field in list(batch.schema)[known:]]
    widened = pa.RecordBatch.from_arrays([*older.columns, *missing], schema=batch.schema)
    assert found.to_pylist() == [*widened.to_pylist(), *part.to_pylist()]
    assert ids.tolist() == [1] * part.num_rows + [tx_id] * part.num_rows


def test_another_language_reads_msgpack_rows(folder):
    columns = {'k': [1], 'text': ['ü'], 'data': pa.array([b'\x00'], pa.binary(1)), 'gone': pa.nulls(1, pa.int64())}
    with opened(folder, key_column='k', serialization='msgpack') as db:
        load(db, 't', {**columns, 'big': pa.array([Decimal(2**200)], pa.decimal256(76, 0))})
        with db.environment.begin(db=db.environment.open_db(b'rows//t')) as txn:
            found = msgpack.unpackb(txn.get(b'1'))
    assert found == {'_amp_tx_id': 1, 'k': 1, 'text': 'ü', 'data': b'\x00', 'gone': None, 'big': str(2**200)}


def test_the_example_of_its_page_runs(tmp_path):
    page = (Path(__file__).parents[4] / 'docs' / 'destinations' / 'lmdb.md').read_text()
    [code] = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'number': 2" in done.stdout
