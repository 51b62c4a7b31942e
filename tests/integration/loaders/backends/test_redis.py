"""The Redis destination."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from amp.errors import ConfigError, DestinationError, LoadError, ProtocolError, StaleEpochError
from amp.loaders.implementations.redis_loader import RedisLoader
from amp.loaders.redis import connect as redis_connect
from amp.loaders.redis import unit as redis_unit
from amp.loaders.stamps import TX_ID
from amp.loaders.stream import StreamEngine, StreamSettings
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamJob
from amp.streaming import ResponseBatch
from amp.streaming.iterator import END
from amp.streaming.ledger import StreamKey
from tests.integration.loaders.conftest import KeyValueTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.support.faults import wait_until
from tests.support.redis_server import behind_tls, start_cluster, start_redis
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.redis]


class RedisTestConfig(KeyValueTestConfig):
    loader_class = RedisLoader
    config_fixture_name = 'redis_test_config'


class TestRedisLoader(InterruptTests, BaseLoaderTests):
    config = RedisTestConfig()


class TestRedisStreaming(BaseStreamingTests):
    config = RedisTestConfig()


class TestRedisTypes(BaseTypeTests):
    config = RedisTestConfig()


def _structure(name: str) -> type:
    """Every structure passes what every loader passes."""

    class Config(RedisTestConfig):
        config_fixture_name = 'structure_config'

    class Fixture:
        @pytest.fixture
        def structure_config(self, redis_test_config):
            return {**redis_test_config, 'data_structure': name}

    Fixture.config = Config()
    return Fixture


class TestStringLoader(_structure('string'), BaseLoaderTests):
    pass


class TestStringStreaming(_structure('string'), BaseStreamingTests):
    pass


class TestStringTypes(_structure('string'), BaseTypeTests):
    pass


class TestStreamLoader(_structure('stream'), BaseLoaderTests):
    pass


class TestStreamStreaming(_structure('stream'), BaseStreamingTests):
    pass


class TestSetLoader(_structure('set'), BaseLoaderTests):
    pass


class TestSetStreaming(_structure('set'), BaseStreamingTests):
    pass


class TestSortedSetLoader(_structure('sorted_set'), BaseLoaderTests):
    pass


class TestSortedSetStreaming(_structure('sorted_set'), BaseStreamingTests):
    pass


class TestListLoader(_structure('list'), BaseLoaderTests):
    pass


class TestListStreaming(_structure('list'), BaseStreamingTests):
    pass


STRUCTURES = ['hash', 'string', 'stream', 'set', 'sorted_set', 'list']


@pytest.fixture
def open_loader(redis_test_config, request):
    """Loaders of the test's own tables, which go afterwards."""
    opened = []

    def make(**config: Any) -> RedisLoader:
        loader = RedisLoader({**redis_test_config, **config})
        loader.connect()
        opened.append(loader)
        return loader

    yield make
    for loader in opened:
        loader.close()


@pytest.fixture
def t():
    return f't{uuid.uuid4().hex[:10]}'


def rows(loader: RedisLoader, table: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in loader.scan(table).read_all().to_pylist())


def load(loader: RedisLoader, table: str, columns: dict[str, Any], **options: Any) -> None:
    result = loader.load_table(pa.table(columns), table, **options)
    assert result.success, result.error


def refused(loader: RedisLoader, table: str, columns: dict[str, Any], **options: Any) -> str:
    result = loader.load_table(pa.table(columns), table, **options)
    assert not result.success
    return result.error or ''


def stream(loader, table, *responses, **options):
    return list(loader.load_stream_continuous(responses, table, **options))


def keyed(block_range, key, value):
    batch = pa.record_batch({'k': [key], 'v': [value]})
    return ResponseBatch.data_batch(batch, response(block_range).metadata)


class _AllHere:
    """Batches of which the next is always here already, so that one unit takes them all."""

    backlog = True
    repeatable = False

    def __init__(self, responses):
        self._responses = iter(responses)

    def get(self, timeout=None):
        return next(self._responses, END)

    def close(self):
        """Nothing to stop."""


def stream_as_one_unit(loader, table, *responses, mode, key_columns):
    source = _AllHere(responses)
    job = StreamJob(StreamKey(table, table), LoadMode(mode), tuple(key_columns))
    [result] = StreamEngine(loader, job, lambda _: source, StreamSettings(strict=False)).run()
    return result


# What lies in Redis


def test_a_hash_has_a_field_for_each_value_that_is_there(open_loader, t):
    db = open_loader(key_pattern='{table}:{hash}')
    key = bytes(range(32))
    columns = {'hash': pa.array([key], pa.binary(32)), 'big': pa.array([2**64 - 1], pa.uint64()), 'gone': pa.nulls(1)}
    load(db, t, {**columns, 'flag': [True], 'text': ['ü\0']})
    found = db.client.hgetall(t.encode() + b':' + key)
    assert found.pop(TX_ID.encode())
    assert found == {b'hash': key, b'big': b'18446744073709551615', b'flag': b'true', b'text': 'ü\0'.encode()}
    assert db.read(t, key) == {'hash': key, 'big': 2**64 - 1, 'gone': None, 'flag': True, 'text': 'ü\0'}
    assert db.read(t, t.encode() + b':' + key)['big'] == 2**64 - 1
    assert db.read(t, bytes(32)) is None


def test_a_key_column_is_short_for_a_pattern(open_loader, t):
    db = open_loader(key_column='hash')
    load(db, t, {'hash': ['0xa', '0xb'], 'v': [1, 2]})
    assert {key.decode() for key in db.client.scan_iter(f'{t}:*')} == {f'{t}:0xa', f'{t}:0xb'}
    with pytest.raises(ConfigError, match='two ways to say one thing'):
        open_loader(key_column='hash', key_pattern='{table}:{hash}')


def test_a_string_is_one_json_value_a_row(open_loader, t):
    db = open_loader(data_structure='string', key_pattern='{table}:{a}:{b}')
    batch = pa.record_batch({'a': ['x:y'], 'b': [1], 'data': pa.array([b'\x01'], pa.binary()), 'gone': pa.nulls(1)})
    stream(db, t, ResponseBatch.data_batch(batch, response(eth(0, 0, '0xa')).metadata))
    told = json.loads(db.client.get(f'{t}:x%3Ay:1'))
    assert {'a', 'b', 'data', 'gone', '_amp_batch_id', TX_ID} == set(told)
    assert (told['data'], told['gone'], len(told['_amp_batch_id'])) == ('0x01', None, 16)
    assert db.read(t, ('x:y', 1)) == {'a': 'x:y', 'b': 1, 'data': b'\x01', 'gone': None}


def test_collections_hold_a_table_under_one_key(open_loader, t):
    columns = {'block_num': [7, 5, 7], 'v': ['a', 'b', 'a']}
    for structure, read in {
        'list': lambda c, key: c.lrange(key, 0, -1),
        'set': lambda c, key: list(c.smembers(key)),
        'sorted_set': lambda c, key: c.zrange(key, 0, -1),
    }.items():
        db = open_loader(data_structure=structure)
        load(db, t + structure, columns)
        found = [json.loads(member) for member in read(db.client, t + structure)]
        assert sorted((row['block_num'], row['v']) for row in found) == [(5, 'b'), (7, 'a'), (7, 'a')], structure
        assert rows(db, t + structure) == [(5, 'b'), (7, 'a'), (7, 'a')]
    assert db.get_table_info(t + 'list')['row_count'] == 3
    db = open_loader(data_structure='sorted_set', score_column='v')
    assert "score column 'v' must hold numbers" in refused(db, t, columns)
    db = open_loader(data_structure='stream', key_pattern='{table}:events')
    load(db, t, columns)
    assert [fields[b'v'] for _, fields in db.client.xrange(f'{t}:events')] == [b'a', b'b', b'a']
    with pytest.raises(ConfigError, match='have no keys'):
        db.read(t, '1:0')
    assert 'names a column' in refused(open_loader(data_structure='list', key_pattern='{v}'), t + 'x', columns)


def test_rows_without_a_key_are_named_by_what_wrote_them(open_loader, t):
    db = open_loader()
    load(db, t, {'id': [1, 1]})
    load(db, t, {'id': [1, 1]})
    assert rows(db, t) == [(1,)] * 4, 'equal rows stay apart'
    stream(db, t + 's', response(eth(0, 9, '0xa'), 1, 9))
    tx_id = db.stamped_scan(t + 's').read_all()[TX_ID][0].as_py()
    assert db.read(t + 's', f'{tx_id}:1')['block_num'] == 9
    assert db.client.hget(f'{t}s:{tx_id}:1', 'block_num') == b'9'


@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_keys_of_counted_rows_are_not_kept_but_made_again(open_loader, t, structure):
    counted = open_loader(data_structure=structure, pipeline_size=2)
    named = open_loader(data_structure=structure, key_pattern='{table}:{block_num}:{id}')
    for db, kept in ((counted, 0), (named, 1)):
        name = f'{t}{kept}'
        stream(db, name, response(eth(0, 2, '0xa'), 0, 1, 2), response(eth(3, 3, '0xb', '0xa'), 3))
        assert bool([*db.client.scan_iter(f'_amp:keys:{name}:*')]) == bool(kept)
        stream(db, name, response(eth(3, 3, '0xB', '0xa'), 33))
        assert [row[0] for row in rows(db, name)] == [0, 1, 2, 33]
        assert len([*db.client.scan_iter(f'{name}:*')]) == 4, 'the row that was undone is gone'
        db.drop_table(name)
        assert [*db.client.scan_iter(f'{name}*')] == []


@pytest.mark.parametrize('structure', STRUCTURES)
def test_overwriting_touches_its_own_keys_only(open_loader, t, structure):
    db = open_loader(data_structure=structure)
    others = (f'{t}:x', f'{t}x', f'{t}:')
    for name in (t, *others):
        load(db, name, {'v': [name]})
    db.client.set(f'{t}:mine', 'somebody else')
    load(db, t, {'v': ['new']}, mode='overwrite')
    load(db, t, {'v': ['newer']}, mode='overwrite')
    assert rows(db, t) == [('newer',)]
    assert [rows(db, name) for name in others] == [[(name,)] for name in others]
    assert db.client.get(f'{t}:mine') == b'somebody else'
    db.drop_table(t)
    assert not db.table_exists(t)
    left = [*db.client.scan_iter(f'_amp:*:{t}'), *db.client.scan_iter(f'_amp:*:{t}:*')]
    assert left == []


def test_ttl_is_given_to_every_row(open_loader, t):
    for structure, key in (('hash', '{t}:1'), ('string', '{t}:1'), ('list', '{t}')):
        pattern = {} if structure == 'list' else {'key_pattern': '{table}:{k}'}
        db = open_loader(data_structure=structure, ttl=1000, **pattern)
        name = t + structure
        load(db, name, {'k': [1]})
        assert 0 < db.client.ttl(key.format(t=name)) <= 1000
        db.client.delete(key.format(t=name))
        assert rows(db, name) == []
        assert db.get_table_info(name)['row_count'] == 0


def test_rows_that_have_expired_are_not_looked_for(open_loader, t):
    db, plain = open_loader(ttl=1000), open_loader()
    load(db, t, {'k': range(10)})
    assert plain.get_table_info(t)['row_count'] == 10
    stream(db, t + 's', response(eth(0, 0, '0xa'), 0), response(eth(1, 1, '0xb', '0xa'), 1))
    for name in (t, t + 's'):
        # What the server does when their time has come.
        db.client.delete(*db.client.scan_iter(f'{name}:*'), *db.client.scan_iter(f'_amp:keys:{name}:*'))
    assert [loader.get_table_info(t)['row_count'] for loader in (db, plain)] == [0, 0]
    before = db.client.info('commandstats').get('cmdstat_hmget', {}).get('calls', 0)
    assert rows(db, t) == rows(plain, t) == []
    assert db.client.info('commandstats').get('cmdstat_hmget', {}).get('calls', 0) == before
    [result] = stream(db, t + 's', ResponseBatch.reorg_batch([eth(1, 1, '0xd')]))
    assert result.metadata['rows_undone'] == 0


def test_json_without_its_module_is_refused_by_name(redis_test_config):
    with pytest.raises(DestinationError, match='needs the JSON module'):
        RedisLoader({**redis_test_config, 'data_structure': 'json'}).connect()


# Keys


@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_duplicate_keys_are_refused_by_append_and_replaced_by_upsert(open_loader, t, structure):
    db = open_loader(data_structure=structure, key_pattern='{table}:{k}')
    load(db, t, {'k': ['a', 'b'], 'v': [1, 2], 'w': ['x', 'x']})
    error = refused(db, t, {'k': ['c', 'b'], 'v': [3, 4]})
    assert f"1 rows of '{t}' have a key (k) that is already there, for example b'{t}:b'" in error
    error = refused(db, t, {'k': ['d', 'd'], 'v': [3, 4]})
    assert 'of another row of the same load' in error
    assert rows(db, t) == [('a', 1, 'x'), ('b', 2, 'x')], 'nothing of a refused load stays'
    load(db, t, {'k': ['b', 'c', 'c'], 'v': [5, 6, 7]}, mode='upsert', key_columns=['k'], batch_size=2)
    assert db.read(t, 'b') == {'k': 'b', 'v': 5, 'w': None}, 'a row is replaced as a whole'
    assert db.read(t, 'c')['v'] == 7
    assert db.get_table_info(t)['row_count'] == 3
    assert 'found by k' in refused(db, t, {'k': ['z'], 'v': [1]}, mode='upsert', key_columns=['v'])


@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_keys_of_rows_that_go_in_the_same_unit_are_free(open_loader, t, structure):
    db = open_loader(data_structure=structure, key_pattern='{table}:{k}')
    for value in ('a', 'b'):
        load(db, t, {'k': [1, 2], 'v': [value, value]}, mode='overwrite')
        assert rows(db, t) == [(1, value), (2, value)]
    # A transaction that the other fork has too has the same key there.
    name = f'{t}-stream'
    stream(db, name, keyed(eth(0, 0, '0xa'), 1, 'a'), keyed(eth(1, 1, '0xb', '0xa'), 2, 'b'))
    results = stream(db, name, keyed(eth(1, 1, '0xB', '0xa'), 2, 'c'))
    assert [r.is_reorg for r in results] == [True, False]
    assert rows(db, name) == [(1, 'a'), (2, 'c')]
    with pytest.raises(LoadError, match='already there'):
        stream(db, name, keyed(eth(1, 1, '0xBB', '0xa'), 1, 'of block 0'))
    assert rows(db, name) == [(1, 'a'), (2, 'c')]
    stream(db, name, keyed(eth(0, 0, '0xa'), 2, 'anew'), mode='overwrite', resume=False)
    assert rows(db, name) == [(2, 'anew')]


@pytest.mark.parametrize(('keys', 'told'), [(['a', None], 'null in 1 of 2 rows'), ([[1], [2]], 'cannot be a key')])
def test_rows_that_have_no_usable_key_are_refused(open_loader, t, keys, told):
    db = open_loader(key_pattern='{table}:{k}')
    assert told in refused(db, t, {'k': keys, 'v': [1, 2]})
    assert not db.table_exists(t)
    assert "'k' is not in the rows" in refused(db, t, {'v': [1, 2]})
    load(db, t, {'k': ['fine'], 'v': [1]})


def test_a_key_of_another_table_is_not_replaced(open_loader, t):
    db = open_loader(key_pattern='{table}:{k}')
    load(db, f'{t}:x', {'k': [1], 'v': ['theirs']})
    assert 'that is already there' in refused(db, t, {'k': ['x:1'], 'v': ['ours']})
    assert 'belongs to another table' in refused(db, t, {'k': ['x:1'], 'v': ['ours']}, mode='upsert', key_columns=['k'])
    assert db.read(f'{t}:x', 1)['v'] == 'theirs'


def test_modes_and_structures_that_do_not_fit_are_refused(open_loader, t):
    db = open_loader(data_structure='list')
    assert 'cannot replace' in refused(db, t, {'k': [1]}, mode='upsert', key_columns=['k'])
    load(db, t, {'k': [1]})
    other = open_loader(data_structure='hash')
    assert 'kept as list, not as hash' in refused(other, t, {'k': [1]})


# Streams


@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_upsert_in_a_stream_gives_back_what_it_replaced(open_loader, t, structure):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    db = open_loader(data_structure=structure, key_pattern='{table}:{k}')
    load(db, t, {'k': [7], 'v': ['plain']})
    stream(db, t, keyed(eth(0, 0, '0xa'), 1, 'old'), keyed(eth(1, 1, '0xb', '0xa'), 1, 'new'), **upsert)
    stream(db, t, keyed(eth(2, 2, '0xc', '0xb'), 7, 'streamed'), **upsert)
    assert rows(db, t) == [(1, 'new'), (7, 'streamed')]
    stream(db, t, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), **upsert)
    assert rows(db, t) == [(1, 'new'), (7, 'plain')]
    stream(db, t, ResponseBatch.reorg_batch([eth(1, 1, '0xd')]), **upsert)
    assert rows(db, t) == [(1, 'old'), (7, 'plain')]
    stream(db, t, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), **upsert)
    assert rows(db, t) == [(7, 'plain')]
    assert list(db.client.scan_iter(f'_amp:before:{t}:*')) == []


def test_a_row_that_two_streams_replaced_comes_back_through_both(open_loader, t):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    db = open_loader(key_pattern='{table}:{k}')
    load(db, t, {'k': [1], 'v': ['plain']})
    stream(db, t, keyed(eth(0, 0, '0xa'), 1, 'one'), stream_name='one', **upsert)
    stream(db, t, keyed(eth(0, 0, '0xb'), 1, 'two'), stream_name='two', **upsert)
    stream(db, t, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), stream_name='one', **upsert)
    assert rows(db, t) == [(1, 'two')], 'what is newer stays'
    stream(db, t, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), stream_name='two', **upsert)
    assert rows(db, t) == [(1, 'plain')], 'and remembers what was there before both'


@pytest.mark.parametrize('structure', ['hash', 'string'])
@pytest.mark.parametrize('together', [False, True])
def test_a_row_that_several_units_replaced_comes_back_from_before_them_all(open_loader, t, structure, together):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    db = open_loader(data_structure=structure)
    hashes = ['0x0', '0x1', '0x2', '0x3']
    units = [keyed(eth(i, i, hashes[i], hashes[i - 1]), 7, f'of {i}') for i in (1, 2, 3)]
    (stream_as_one_unit if together else stream)(db, t, *units, **upsert)
    [result] = stream(db, t, ResponseBatch.reorg_batch([eth(2, 3, '0xd')]), **upsert)
    assert result.metadata['rows_undone'] == 1
    assert rows(db, t) == [(7, 'of 1')]
    assert db.read(t, 7) == {'k': 7, 'v': 'of 1'}
    assert db.get_table_info(t)['row_count'] == 1
    assert list(db.client.scan_iter(f'_amp:before:{t}:*')) == []
    load(db, t, {'k': [7], 'v': ['plain']}, **upsert)
    assert rows(db, t) == [(7, 'plain')]


def test_a_stream_takes_its_rows_back_from_between_those_of_another(open_loader, t):
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    db = open_loader()
    stream(db, t, keyed(eth(1, 1, '0x1'), 7, 'one-1'), stream_name='one', **upsert)
    stream(db, t, keyed(eth(1, 1, '0x1'), 7, 'two-1'), stream_name='two', **upsert)
    stream(db, t, keyed(eth(2, 2, '0x2', '0x1'), 7, 'one-2'), stream_name='one', **upsert)
    stream(db, t, keyed(eth(2, 2, '0x2', '0x1'), 7, 'two-2'), stream_name='two', **upsert)
    stream(db, t, ResponseBatch.reorg_batch([eth(1, 2, '0xd')]), stream_name='one', **upsert)
    assert rows(db, t) == [(7, 'two-2')]
    stream(db, t, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), stream_name='two', **upsert)
    assert rows(db, t) == [(7, 'two-1')]
    stream(db, t, ResponseBatch.reorg_batch([eth(1, 1, '0xd')]), stream_name='two', **upsert)
    assert (rows(db, t), db.read(t, 7)) == ([], None)
    assert list(db.client.scan_iter(f'_amp:before:{t}:*')) == []
    load(db, t, {'k': [7], 'v': ['plain']}, **upsert)


@pytest.mark.parametrize('structure', STRUCTURES)
def test_two_streams_in_one_table_undo_only_their_own(open_loader, t, structure):
    db = open_loader(data_structure=structure)
    stream(db, t, response(eth(0, 9, '0xa'), 1, 1), stream_name='one')
    stream(db, t, response(eth(0, 9, '0xb'), 2), stream_name='two')
    stream(db, t, response(eth(10, 19, '0xe', '0xa'), 3), stream_name='one')
    stream(db, t, ResponseBatch.reorg_batch([eth(0, 9, '0xc')]), stream_name='one')
    assert [row[0] for row in rows(db, t)] == [2]


def test_what_can_no_longer_be_undone_is_forgotten(open_loader, t):
    hashes = [f'0x{i}' for i in range(101)]
    upsert = {'mode': 'upsert', 'key_columns': ['k'], 'retention': 10}
    units = [keyed(eth(i * 5, i * 5 + 4, hashes[i + 1], hashes[i]), i % 3, str(i)) for i in range(30)]
    db = open_loader(key_pattern='{table}:{k}')
    stream(db, t, *units, **upsert)
    assert len(list(db.client.scan_iter(f'_amp:before:{t}:*'))) < 6
    assert rows(db, t) == [(0, '27'), (1, '28'), (2, '29')]
    db = open_loader(data_structure='list')
    stream(db, t + 'l', *units, retention=10)
    assert len(list(db.client.scan_iter(f'_amp:keys:{t}l:*'))) < 6
    assert db.get_table_info(t + 'l')['row_count'] == 30


@pytest.mark.parametrize('structure', STRUCTURES)
def test_a_large_unit_is_hidden_until_it_is_whole(open_loader, t, structure, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    db, other = open_loader(data_structure=structure), open_loader(data_structure=structure)

    def feed():
        for i in range(6):
            batch = pa.record_batch({'x': ['x' * 100] * 100, 'n': range(i * 100, i * 100 + 100)})
            yield ResponseBatch.data_batch(batch, response(eth(0, 9, '0xa'), complete=i == 5).metadata)
            if i < 5:
                assert other.scan(t).read_all().num_rows == 0

    [result] = db.load_stream_continuous(feed(), t)
    assert result.rows_loaded == 600
    assert sorted(db.scan(t).read_all()['n'].to_pylist()) == list(range(600))
    assert db.get_table_info(t)['row_count'] == 600
    stream(db, t, ResponseBatch.reorg_batch([eth(0, 9, '0xb')]))
    assert db.get_table_info(t)['row_count'] == 0


@pytest.mark.parametrize('structure', STRUCTURES)
def test_a_large_load_that_fails_takes_its_rows_away(open_loader, t, structure, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    db = open_loader(data_structure=structure)
    load(db, t, {'x': ['kept'], 'n': [-1]})
    good = pa.record_batch({'x': ['x' * 100] * 300, 'n': range(300)})

    def batches():
        for _ in range(4):
            yield good
        raise ProtocolError('the source broke')

    with pytest.raises(ProtocolError, match='the source broke'):
        db.load_reader(pa.RecordBatchReader.from_batches(good.schema, batches()), t)
    assert rows(db, t) == [('kept', -1)]
    assert db.get_table_info(t)['row_count'] == 1
    load(db, t, {'x': ['x' * 100] * 900, 'n': list(range(900))}, batch_size=250)
    assert db.get_table_info(t)['row_count'] == 901


def test_duplicates_among_many_rows_are_found(open_loader, t, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    for structure in ('hash', 'string'):
        db, name = open_loader(data_structure=structure, key_pattern='{table}:{n}'), t + structure
        load(db, name, {'x': ['mine'], 'n': [777]})
        many = {'x': ['x' * 100] * 900, 'n': list(range(900))}
        assert 'that is already there' in refused(db, name, many, batch_size=250)
        assert rows(db, name) == [('mine', 777)]


def die_in_a_large_load(config: dict[str, Any], table: str, *, dropped: bool = False) -> None:
    """A process that is killed when its rows were sent and not committed; the table is dropped before that, if so."""
    code = """
import json, os, signal, sys, pyarrow as pa
from amp.loaders import points
from amp.loaders.redis import unit as redis_unit
from amp.loaders.implementations.redis_loader import RedisLoader
config, table, dropped = json.loads(sys.argv[1])
redis_unit._SMALL = 20_000
def die(point):
    if point == 'bulk.sent':
        if dropped:
            with RedisLoader(config) as other:
                other.drop_table(table)
        os.kill(os.getpid(), signal.SIGKILL)
points.hook = die
with RedisLoader(config) as db:
    db.load_table(pa.table({'x': ['x' * 100] * 900}), table, batch_size=250)
"""
    done = subprocess.run([sys.executable, '-c', code, json.dumps([config, table, dropped])], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_large_load_that_dies_is_swept_by_the_next(open_loader, redis_test_config, t):
    die_in_a_large_load(redis_test_config, t)
    db = open_loader()
    assert rows(db, t) == []
    load(db, t, {'x': ['alive']})
    assert rows(db, t) == [('alive',)]
    assert len(list(db.client.scan_iter(f'{t}:*'))) == 1


@pytest.mark.parametrize('what', ['overwrite', 'drop', 'drop and make anew'])
@pytest.mark.parametrize('structure', ['hash', 'string', 'list', 'stream'])
def test_a_large_unit_never_lands_in_a_table_that_was_cleared_meanwhile(open_loader, t, structure, what, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    db, other = open_loader(data_structure=structure), open_loader(data_structure=structure)
    stream(db, t, response(eth(0, 9, '0xa'), 1))

    def feed():
        for i in range(6):
            if i == 4:
                if what == 'overwrite':
                    load(other, t, {'block_num': [700]}, mode='overwrite')
                else:
                    other.drop_table(t)
                if what == 'drop and make anew':
                    load(other, t, {'block_num': [700]})
            batch = pa.record_batch({'block_num': range(i * 300, i * 300 + 300)})
            yield ResponseBatch.data_batch(batch, response(eth(10, 19, '0xb', '0xa'), complete=i == 5).metadata)

    with pytest.raises((LoadError, DestinationError), match=r'was overwritten or dropped while|does not exist'):
        list(db.load_stream_continuous(feed(), t, retry_seconds=0))
    [position] = [info.state.position.to_dict() for info in db.list_streams() if info.key.table == t]
    assert position == {'ethereum': {'number': 9, 'hash': '0xa'}}
    assert db.table_exists(t) == (what != 'drop')
    if what == 'drop':
        load(other, t, {'block_num': [700]})
    assert other.scan(t).read_all()['block_num'].to_pylist() == [700]
    assert other.get_table_info(t)['row_count'] == 1
    other.drop_table(t)
    assert [*db.client.scan_iter(f'{t}*')] == [], 'no row of it is left behind'


@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_nothing_of_a_hidden_row_shines_through_what_overwrites_it(open_loader, t, structure, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    db, other = [open_loader(data_structure=structure, key_pattern='{table}:{k}') for _ in range(2)]
    load(db, t, {'k': [-1], 'v': ['first']})

    def feed():
        for i in range(6):
            if i == 4:
                load(other, t, {'k': [5, 6], 'v': pa.nulls(2, pa.string())}, mode='overwrite')
            batch = pa.record_batch({'k': range(i * 300, i * 300 + 300), 'v': ['hidden' * 10] * 300})
            yield ResponseBatch.data_batch(batch, response(eth(0, 9, '0xa'), complete=i == 5).metadata)

    with pytest.raises(DestinationError, match='was overwritten or dropped while'):
        list(db.load_stream_continuous(feed(), t, retry_seconds=0))
    assert rows(other, t) == [(5, None), (6, None)]
    assert len([*db.client.scan_iter(f'{t}:*')]) == 2


def test_a_large_load_that_died_in_a_dropped_table_is_swept_by_what_it_left(open_loader, redis_test_config, t):
    die_in_a_large_load(redis_test_config, t, dropped=True)
    db = open_loader(key_pattern='{table}:{x}')
    load(db, t, {'x': ['alive']})
    assert rows(db, t) == [('alive',)]
    assert [*db.client.scan_iter(f'{t}:*')] == [f'{t}:alive'.encode()]


def test_an_older_writer_in_the_middle_of_a_large_unit_is_cut_off(open_loader, t, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    db, winner = open_loader(), open_loader()

    def feed():
        for i in range(6):
            batch = pa.record_batch({'x': ['x' * 100] * 300, 'n': range(i * 300, i * 300 + 300)})
            if i == 4:
                winner.open_stream(StreamKey(t, t), Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
            yield ResponseBatch.data_batch(batch, response(eth(0, 9, '0xa'), complete=i == 5).metadata)

    with pytest.raises((StaleEpochError, DestinationError)):
        list(db.load_stream_continuous(feed(), t, retry_seconds=0))
    assert list(winner.client.scan_iter(f'{t}:*')) == [], 'no row of it arrived after the sweep'


def test_the_older_writer_loses_at_its_next_commit(open_loader, t):
    db = open_loader()
    units = [response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11)]
    older = db.load_stream_continuous(iter(units), t)
    next(older)
    db.open_stream(StreamKey(t, t), Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
    with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 2'):
        next(older)
    assert [row[0] for row in rows(db, t)] == [1]


# Keys of somebody else


@pytest.mark.parametrize('structure', ['stream', 'set', 'sorted_set', 'list'])
def test_a_collection_whose_key_is_somebody_elses_moves_no_position(open_loader, t, structure):
    db = open_loader(data_structure=structure)
    for foreign in (lambda: db.client.set(t, 'mine'), lambda: db.client.rpush(t, 'mine')):
        foreign()
        kind = db.client.type(t)
        with pytest.raises(LoadError, match='hold something that is not of this table'):
            stream(db, t, response(eth(0, 9, '0xa'), 1))
        [info] = [info for info in db.list_streams() if info.key.table == t]
        assert not info.state.position
        assert 'not of this table' in refused(db, t, {'block_num': [1]})
        db.drop_table(t)
        assert db.client.type(t) == kind, 'it is still there'
        db.client.delete(t)
    stream(db, t, response(eth(0, 9, '0xa'), 1))
    db.client.set(t, 'mine')
    with pytest.raises(LoadError, match='not of this table'):
        stream(db, t, response(eth(10, 19, '0xb', '0xa'), 11))
    with pytest.raises(LoadError, match='not of this table'):
        stream(db, t, ResponseBatch.reorg_batch([eth(0, 9, '0xd')]))
    db.drop_table(t)
    assert db.client.get(t) == b'mine'


@pytest.mark.parametrize('small', [20_000, 1 << 24])
@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_a_key_of_somebody_else_in_the_way_of_counted_rows_stays_as_it_is(
    open_loader, t, structure, small, monkeypatch
):
    monkeypatch.setattr(redis_unit, '_SMALL', small)
    db = open_loader(data_structure=structure)
    load(db, t, {'x': ['first']})
    many = {'x': ['x' * 100] * 900}
    for write in (lambda key: db.client.set(key, 'mine'), lambda key: db.client.hset(key, mapping={'x': 'mine'})):
        key = f'{t}:{int(db.client.get("_amp:loads")) + 1}:700'
        write(key)
        kept = db.client.dump(key)
        error = refused(db, t, many, batch_size=250)
        assert f"hold something that is not of this table, for example b'{key}'" in error
        assert db.client.dump(key) == kept
        assert rows(db, t) == [('first',)]
        assert len([*db.client.scan_iter(f'{t}:*')]) == 2
        db.client.delete(key)


@pytest.mark.parametrize('small', [20_000, 1 << 24])
@pytest.mark.parametrize('structure', ['hash', 'string'])
def test_a_key_of_somebody_else_in_the_way_of_named_rows_stays_as_it_is(open_loader, t, structure, small, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', small)
    db = open_loader(data_structure=structure, key_pattern='{table}:{k}')
    load(db, t, {'k': [1000], 'x': ['first']})
    many = {'k': range(900), 'x': ['x' * 100] * 900}
    for write in (lambda key: db.client.set(key, 'mine'), lambda key: db.client.hset(key, mapping={'x': 'mine'})):
        write(f'{t}:700')
        kept = db.client.dump(f'{t}:700')
        for options in ({}, {'mode': 'upsert', 'key_columns': ['k']}):
            assert refused(db, t, many, batch_size=250, **options)
            assert db.client.dump(f'{t}:700') == kept
            assert rows(db, t) == [(1000, 'first')]
            assert len([*db.client.scan_iter(f'{t}:*')]) == 2, 'nothing of the refused load is left'
        db.client.delete(f'{t}:700')


# Many at once


@pytest.mark.parametrize('structure', ['hash', 'stream'])
def test_threads_and_processes_append_at_once_and_lose_nothing(open_loader, redis_test_config, t, structure):
    config = {**redis_test_config, 'data_structure': structure}
    code = """
import json, sys, pyarrow as pa
from amp.loaders.implementations.redis_loader import RedisLoader
with RedisLoader(json.loads(sys.argv[1])) as db:
    for i in range(5):
        result = db.load_table(pa.table({'x': [int(sys.argv[3]) * 1000 + i * 10 + n for n in range(10)]}), sys.argv[2])
        assert result.success, result.error
"""
    children = [subprocess.Popen([sys.executable, '-c', code, json.dumps(config), t, str(n)]) for n in (10, 11)]
    shared = open_loader(data_structure=structure)

    def append(number: int) -> None:
        for i in range(5):
            load(shared, t, {'x': [number * 1000 + i * 10 + n for n in range(10)]}, batch_size=4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    assert [child.wait(240) for child in children] == [0, 0]
    assert [x for (x,) in rows(shared, t)] == sorted(n * 1000 + i for n in (*range(4), 10, 11) for i in range(50))


def test_threads_with_the_same_keys_let_one_of_them_win(open_loader, t):
    db = open_loader(key_pattern='{table}:{k}')
    columns = pa.table({'k': list(range(50))})
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: db.load_table(columns, t).success, range(4)))
    assert sorted(results) == [False, False, False, True]
    assert db.get_table_info(t)['row_count'] == 50


# Servers that do not do as they should


def test_a_server_that_is_out_of_memory_keeps_nothing_of_the_unit(monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 1 << 20)
    many = {'x': [str(i) * 100 for i in range(40_000)]}
    with start_redis('--maxmemory', '8mb', '--maxmemory-policy', 'noeviction') as config:
        for structure in ('hash', 'list', 'string'):
            with RedisLoader({**config, 'data_structure': structure}) as db:
                load(db, structure, {'x': ['first']})
                assert 'out of memory' in refused(db, structure, many, batch_size=2000)
                assert rows(db, structure) == [('first',)]
                load(db, structure, {'x': ['second']})
                assert len(rows(db, structure)) == 2


def test_a_server_that_wants_a_password_says_so_without_telling_it():
    with start_redis('--requirepass', 'server-side-secret') as config:
        for password in (None, 'wrong-and-secret'):
            with pytest.raises(DestinationError, match='does not let this user in') as caught:
                RedisLoader({**config, 'password': password}).connect()
            assert 'secret' not in str(caught.value)
        loader = RedisLoader({**config, 'password': 'server-side-secret'})
        assert 'secret' not in repr(loader.config)
        with loader:
            load(loader, 't', {'x': [1]})


def test_a_replica_is_refused_and_may_become_the_primary():
    with start_redis() as primary, start_redis('--replicaof', '127.0.0.1', str(primary['port'])) as config:
        with RedisLoader(config) as db:
            wait_until(lambda: db.client.info('replication')['master_link_status'] == 'up')
            assert 'is a replica' in refused(db, 't', {'x': [1]})
            db.client.replicaof('NO', 'ONE')
            load(db, 't', {'x': [1]})


def test_a_server_that_cannot_save_takes_no_rows(tmp_path):
    folder = tmp_path / 'redis'
    folder.mkdir()
    with start_redis('--save', '3600 1', folder=folder) as config, RedisLoader(config) as db:
        load(db, 't', {'x': [1]})
        shutil.rmtree(folder)
        db.client.bgsave()
        wait_until(lambda: db.client.info('persistence')['rdb_last_bgsave_status'] == 'err')
        assert 'cannot save' in refused(db, 't', {'x': [2]})
        assert rows(db, 't') == [(1,)]
        db.client.config_set('stop-writes-on-bgsave-error', 'no')
        load(db, 't', {'x': [3]})
        assert rows(db, 't') == [(1,), (3,)]


@pytest.mark.parametrize('small', [20_000, 1 << 24])
def test_a_server_that_goes_away_within_a_unit_leaves_nothing_half_done(redis_test_config, t, monkeypatch, small):
    monkeypatch.setattr(redis_unit, '_SMALL', small)
    host, port = redis_test_config['host'], redis_test_config['port']
    with (
        TcpProxy(host, port) as proxy,
        RedisLoader({**redis_test_config, 'host': '127.0.0.1', 'port': proxy.port}) as db,
    ):
        load(db, t, {'x': ['first']})
        proxy.cut_after(150_000)
        result = db.load_table(pa.table({'x': ['x' * 100] * 3000}), t, batch_size=500)
        if not result.success:
            assert 'connection to Redis' in result.error
            assert rows(db, t) == [('first',)]
        batch = pa.record_batch({'x': ['x' * 100] * 3000})
        before = len(rows(db, t))
        proxy.cut_after(150_000)
        unit = ResponseBatch.data_batch(batch, response(eth(0, 9, '0xa')).metadata)
        try:
            stream(db, t, unit, retry_seconds=0)
        except (DestinationError, ProtocolError):
            assert len(rows(db, t)) == before
        assert proxy.cuts
        positions = [info.state.position for info in db.list_streams() if info.key.table == t]
        assert len(rows(db, t)) == before + (3000 if positions and positions[0] else 0)


def test_a_server_that_is_not_there_is_one_sentence():
    with pytest.raises(DestinationError, match=r'connection to Redis at 127\.0\.0\.1:1 failed'):
        RedisLoader({'host': '127.0.0.1', 'port': 1}).connect()


def test_a_cluster_keeps_a_table_on_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    with start_cluster(tmp_path) as ports:
        url = f'redis+cluster://127.0.0.1:{ports[0]}'
        with RedisLoader({'url': url, 'key_pattern': '{table}:{k}'}) as db:
            tables = ['lo{g}s', 'blocks', 'receipts', 'logs']
            shards = {db.client.get_node_from_key(f'{{{table}}}x').port for table in tables[1:]}
            assert shards == set(ports), 'the tables of this test lie on all of them'
            for name in tables:
                load(db, name, {'k': [1, 2], 'v': ['a', 'b']})
                load(db, name, {'k': [2], 'v': ['c']}, mode='upsert', key_columns=['k'])
                assert rows(db, name) == [(1, 'a'), (2, 'c')]
                assert db.read(name, 2) == {'k': 2, 'v': 'c'}
                load(db, name, {'k': range(1000), 'v': ['large'] * 1000}, mode='overwrite', batch_size=100)
                assert db.get_table_info(name)['row_count'] == 1000
                stream(db, f'{name}!', keyed(eth(0, 0, '0xa'), 1, 'x'), keyed(eth(1, 1, '0xb', '0xa'), 2, 'y'))
                stream(db, f'{name}!', ResponseBatch.reorg_batch([eth(1, 1, '0xd')]))
                assert rows(db, f'{name}!') == [(1, 'x')]
            assert sorted(info.key.table for info in db.list_streams()) == sorted(f'{name}!' for name in tables)
            assert db.client.exists('{blocks}blocks:1')


def test_tls_is_checked_and_carries_units_of_every_size(redis_test_config, t, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    with behind_tls(redis_test_config, tmp_path) as (port, certificate):
        secure = {
            'url': f'rediss://127.0.0.1:{port}?tls_ca={certificate}',
            'password': redis_test_config.get('password'),
        }
        with RedisLoader(secure) as db:
            load(db, t, {'x': ['small']})
            load(db, t, {'x': [str(i) * 50 for i in range(4000)]}, batch_size=500)
            assert db.get_table_info(t)['row_count'] == 4001
            db.drop_table(t)
            stream(db, t, response(eth(0, 9, '0xa'), *range(3)), response(eth(10, 19, '0xb', '0xa'), *range(4)))
            stream(db, t, ResponseBatch.reorg_batch([eth(10, 19, '0xd')]))
            assert db.get_table_info(t)['row_count'] == 3
            db.drop_table(t)
        for url in (f'rediss://127.0.0.1:{port}', f'rediss://localhost:{port}?tls_ca={certificate}'):
            with pytest.raises(DestinationError, match='shows no certificate that is trusted here') as caught:
                RedisLoader({'url': url}).connect()
            assert not caught.value.retryable


def test_tls_with_a_port_that_does_not_speak_it_is_told_soon(redis_test_config, monkeypatch):
    monkeypatch.setattr(redis_connect, '_CONNECT_SECONDS', 0.5)
    with pytest.raises(DestinationError, match=r'does not speak TLS.*is it a plain port'):
        RedisLoader({**redis_test_config, 'tls': True}).connect()


@pytest.mark.parametrize('structure', STRUCTURES)
def test_a_large_first_load_that_fails_leaves_no_table(open_loader, t, structure, monkeypatch):
    monkeypatch.setattr(redis_unit, '_SMALL', 20_000)
    db = open_loader(data_structure=structure)
    good = pa.record_batch({'x': ['x' * 100] * 300})

    def batches():
        yield from [good] * 4
        raise ProtocolError('the source broke')

    with pytest.raises(ProtocolError, match='the source broke'):
        db.load_reader(pa.RecordBatchReader.from_batches(good.schema, batches()), t)
    assert not db.table_exists(t)
    assert [*db.client.scan_iter(f'{t}*'), *db.client.scan_iter(f'_amp:*:{t}*')] == []


def test_configuration_is_checked_by_name():
    with pytest.raises(ConfigError, match="needs the configuration key 'host'"):
        RedisLoader({})
    assert RedisLoader({'host': 'x', 'port': '7000'}).config.port == 7000
    wrong = {'data_structure': ['tree'], 'ttl': [0, True, 1.5], 'pipeline_size': ['many'], 'port': ['abc', 70_000]}
    for key, value in [(key, value) for key, values in {**wrong, 'db': [-1, 'a']}.items() for value in values]:
        with pytest.raises(ConfigError, match=f'{key}={value!r} is not'):
            RedisLoader({'host': 'x', key: value})
    config = RedisLoader({'url': 'rediss://me:p%40ss@h:1/2?data_structure=list&ttl=5&tls_ca=ca.pem'}).config
    assert (config.host, config.port, config.db, config.username, config.password) == ('h', 1, 2, 'me', 'p@ss')
    assert (config.tls, config.data_structure, config.ttl, config.tls_ca, config.cluster) == (
        True,
        'list',
        5,
        'ca.pem',
        False,
    )
    for url in ('redis://h/x', 'redis://h:x', 'redis+sentinel://h'):
        with pytest.raises(ConfigError):
            RedisLoader({'url': url})


def test_the_example_of_its_page_runs(redis_test_config, tmp_path):
    page = (Path(__file__).parents[4] / 'docs' / 'destinations' / 'redis.md').read_text()
    [code] = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
    code = code.replace("{'host': 'localhost', 'port': 6379, ", f'{{**{redis_test_config!r}, ')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'number': 2" in done.stdout
