"""The ClickHouse destination: the real engine, over HTTP through the real client, and inside this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from amp.errors import ConfigError, DestinationError
from amp.loaders import points
from amp.loaders.clickhouse import unit as clickhouse_unit
from amp.loaders.clickhouse.session import ClickHouseConfig, Session, literal, quote
from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader
from amp.loaders.settings import StreamSettings
from amp.loaders.stamps import TX_ID, stamp, stamped_schema
from amp.loaders.stream import StreamEngine
from amp.loaders.unit import Claim, StreamJob
from amp.loaders.verify import verify
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch
from amp.streaming.iterator import END
from amp.streaming.ledger import StreamKey
from amp.streaming.resilience import RetryConfig
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.integration.loaders.test_shared_streams import ALL_OF_THREE, THREE, NewColumnsTests, numbers, stream
from tests.support.chdb_http import FrontProcess, chdb_front
from tests.support.clickhouse import clickhouse_config
from tests.support.ports import free_port
from tests.support.small_disk import make_room, small_disk
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.clickhouse]


class ServerConfig(LoaderTestConfig):
    loader_class = ClickHouseLoader
    config_fixture_name = 'clickhouse_test_config'

    def get_row_count(self, loader, table_name):
        [[count]] = loader.session.run(f'SELECT count() FROM {loader.tables.quoted(table_name)}')
        return count

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        sql = f'SELECT * FROM {loader.tables.quoted(table_name)}'
        sql += f' WHERE {where}' if where else ''
        sql += f' ORDER BY {order_by}' if order_by else ''
        names = self.get_column_names(loader, table_name)
        return [dict(zip(names, row, strict=True)) for row in loader.session.run(sql)]

    def cleanup_table(self, loader, table_name):
        loader.session.do(f'DROP VIEW IF EXISTS {loader.tables.quoted(table_name + "_committed")}')
        loader.session.do(f'DROP TABLE IF EXISTS {loader.tables.quoted(table_name)}')

    def get_column_names(self, loader, table_name):
        return list(loader.tables.get(table_name).columns)


class FolderConfig(ServerConfig):
    config_fixture_name = 'clickhouse_folder'


class TestServerLoader(InterruptTests, BaseLoaderTests):
    config = ServerConfig()


class TestServerStreaming(BaseStreamingTests):
    config = ServerConfig()


class TestServerTypes(BaseTypeTests):
    config = ServerConfig()


class TestFolderLoader(BaseLoaderTests):
    config = FolderConfig()


class TestFolderStreaming(BaseStreamingTests):
    config = FolderConfig()


@pytest.fixture
def own_database(clickhouse_test_config):
    """A configuration whose database (with a name that must be quoted) is this test's own."""
    config = {**clickhouse_test_config, 'database': f'raw `data` "{uuid.uuid4().hex[:8]}"'}
    with ClickHouseLoader(clickhouse_test_config) as loader:
        loader.session.do(f'CREATE DATABASE {quote(config["database"])}')
    yield config
    with ClickHouseLoader(clickhouse_test_config) as loader:
        loader.session.do(f'DROP DATABASE {quote(config["database"])} SYNC')


class TestServerNewColumns(NewColumnsTests):
    pass


@pytest.fixture
def db(own_database):
    with ClickHouseLoader(own_database) as opened:
        yield opened


def raw_numbers(loader, table='t') -> list[int]:
    return sorted(n for (n,) in loader.session.run(f'SELECT block_num FROM {loader.tables.quoted(table)}'))


def seen_in_view(loader, table='t') -> list[int]:
    return sorted(
        n for (n,) in loader.session.run(f'SELECT block_num FROM {loader.tables.quoted(table)[:-1]}_committed`')
    )


def tables_of(loader) -> list[str]:
    return sorted(
        name
        for (name,) in loader.session.run(
            f'SELECT name FROM system.tables WHERE database = {literal(loader.config.database)}'
        )
    )


# Nothing that was there once is taken for a repeat


def test_the_engine_drops_a_token_that_comes_again_after_a_delete(db):
    """The trap itself: this is why data never carries a token."""
    table = db.tables.quoted('trap')
    db.session.do(
        f'CREATE TABLE {table} (x Int64) ENGINE = MergeTree ORDER BY x SETTINGS non_replicated_deduplication_window = 100'
    )
    rows = pa.table({'x': pa.array([1], pa.int64())})
    for delete in ('DELETE FROM {} WHERE x = 1', 'ALTER TABLE {} DELETE WHERE x = 1'):
        db.session.insert(table, rows, token=delete)
        assert db.session.run(f'SELECT x FROM {table}') == [[1]]
        db.session.do(delete.format(table))
        db.session.insert(table, rows, token=delete)
        assert db.session.run(f'SELECT x FROM {table}') == [], 'the second insert was dropped without a word'


def test_rows_come_back_when_the_chain_returns_to_a_branch_it_left(db):
    """A, then B, then the very rows of A again, into a table that drops repeated blocks."""
    made = response(eth(0, 9, '0xa'), 1, 9)
    db.prepare_table(stamped_schema(made.data.schema), 't', create_table=True)
    db.session.do(f'ALTER TABLE {db.tables.quoted("t")} MODIFY SETTING non_replicated_deduplication_window = 100')
    first, second = eth(10, 19, '0xb', '0xa'), eth(10, 19, '0xB', '0xa')
    for branch in (first, second, first, second, first):
        stream(db, made, response(branch, 11, 19), settings=StreamSettings(strict=False))
        assert numbers(db) == seen_in_view(db) == raw_numbers(db) == [1, 9, 11, 19]


def test_equal_batches_in_one_microbatch_are_all_there(db, monkeypatch):
    monkeypatch.setattr(clickhouse_unit, '_BLOCK_BYTES', 1)
    made = response(eth(0, 9, '0xa'), 1, complete=False)
    db.prepare_table(stamped_schema(made.data.schema), 't', create_table=True)
    db.session.do(f'ALTER TABLE {db.tables.quoted("t")} MODIFY SETTING non_replicated_deduplication_window = 100')
    stream(db, made, made, made, response(eth(0, 9, '0xa'), 1))
    assert numbers(db) == [1, 1, 1, 1]


# Documents


def test_of_writers_at_the_same_time_one_wins_each_version(own_database):
    writers, rounds = 6, 8
    failures: list[BaseException] = []

    def count_up() -> None:
        try:
            with ClickHouseLoader(own_database) as loader:
                for _ in range(rounds):
                    while True:
                        text = loader._read_state('counter')
                        if loader._write_state('counter', str(int(text or 0) + 1), text):
                            break
        except BaseException as error:
            failures.append(error)

    with ClickHouseLoader(own_database) as loader:
        loader._write_state('other', 'x', None)
        threads = [threading.Thread(target=count_up) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert loader._read_state('counter') == str(writers * rounds)


def test_a_version_whose_server_died_between_token_and_row_is_passed_over(db):
    assert db._write_state('k', 'one', None)
    documents = db.tables.quoted('_amp_documents')
    # A writer's token is there, its row is not.
    db._documents._insert('k', 2, 'dead', '', 'never')
    db.session.do(f"DELETE FROM {documents} WHERE writer = 'dead'")
    assert db._write_state('k', 'two', 'one')
    assert db._read_state('k') == 'two'
    assert db.session.run(f'SELECT max(version) FROM {documents}') == [[3]]


def test_a_document_is_replaced_only_where_it_is_what_was_expected(own_database):
    with ClickHouseLoader(own_database) as one, ClickHouseLoader(own_database) as other:
        assert one._read_state('k') is None
        assert not one._write_state('k', 'x', 'something')
        assert one._write_state('k', 'it\'s \\ "1"\n', None)
        assert other._read_state('k') == 'it\'s \\ "1"\n'
        assert other._write_state('k', '2', 'it\'s \\ "1"\n')
        assert not one._write_state('k', '3', 'it\'s \\ "1"\n'), 'what it remembers is old'
        assert one._read_state('k') == '2'
        one.session.do(f'OPTIMIZE TABLE {one.tables.quoted("_amp_documents")} FINAL')
        assert one._write_state('k', '3', '2')


# Rows that do not count


def test_rows_of_a_unit_that_is_not_finished_do_not_show(own_database, monkeypatch):
    looked: list[tuple[list[int], list[int], list[int]]] = []

    def look(point: str) -> None:
        if point == 'insert.after':
            with ClickHouseLoader(own_database) as other:
                looked.append((numbers(other), seen_in_view(other), raw_numbers(other)))

    with ClickHouseLoader(own_database) as db:
        stream(db, THREE[0])
        monkeypatch.setattr(points, 'hook', look)
        stream(db, *THREE[1:])
        monkeypatch.setattr(points, 'hook', None)
        assert looked == [([1, 9], [1, 9], [1, 9, 11, 19]), ([1, 9, 11, 19], [1, 9, 11, 19], ALL_OF_THREE)]
        assert numbers(db) == seen_in_view(db) == raw_numbers(db) == ALL_OF_THREE
        assert db.get_table_info('t')['row_count'] == 6


def test_rows_that_an_older_writer_adds_after_the_take_over_never_show_and_go(db):
    key = StreamKey('t', 't')
    stream(db, THREE[0])
    streams = db.streaming_destination()
    older = streams.open_stream(key, Claim('older', 'then'))
    stream(db, THREE[0], THREE[1])
    rows = stamp(THREE[2].data, older.first_id + 5, 'late')
    inserter = db.inserter('t')
    inserter.add(rows)
    inserter.flush()
    assert numbers(db) == seen_in_view(db) == [1, 9, 11, 19]
    assert raw_numbers(db) == ALL_OF_THREE
    stream(db, *THREE)
    assert numbers(db) == raw_numbers(db) == ALL_OF_THREE


def test_a_take_over_ends_what_an_older_writer_is_still_inserting(own_database):
    key = StreamKey('t', 't')
    with ClickHouseLoader(own_database) as db, ClickHouseLoader(own_database) as late:
        stream(db, THREE[0])
        older = db.streaming_destination().open_stream(key, Claim('older', 'then'))
        ended: list[DestinationError] = []

        def insert_slowly() -> None:
            try:
                late.session.do(
                    f'INSERT INTO {late.tables.quoted("t")} (block_num, _amp_tx_id) '
                    f'SELECT sleepEachRow(0.2), {older.first_id} FROM numbers(3000) '
                    f"SETTINGS max_block_size = 1, log_comment = '{late._scope} {older.first_id} {older.first_id}'"
                )
            except DestinationError as error:
                ended.append(error)

        thread = threading.Thread(target=insert_slowly)
        thread.start()
        running = f"SELECT 1 FROM system.processes WHERE startsWith(Settings['log_comment'], '{late._scope} ')"
        wait_until(lambda: db.session.run(running))
        db.streaming_destination().open_stream(key, Claim('newer', 'now'))
        assert not db.session.run(running)
        thread.join(120)
        assert [error.context['code'] for error in ended] == [394]
        assert raw_numbers(db) == numbers(db) == [1, 9]


def test_a_view_is_made_again_with_new_columns_and_a_table_of_its_name_is_left_alone(db):
    db.session.do(f'CREATE TABLE {db.tables.quoted("mine_committed")} (x Int64) ENGINE = Memory')
    stream(db, THREE[0], table='mine')
    assert db.session.run(f'SELECT count() FROM {db.tables.quoted("mine_committed")}') == [[0]]
    stream(db, THREE[0])
    wider = THREE[1].data.append_column('added', pa.array(['x', 'y']))
    stream(db, ResponseBatch.data_batch(wider, THREE[1].metadata), schema_evolution='evolve')
    view = db.tables.quoted('t_committed')
    assert db.session.run(f'SELECT added FROM {view} ORDER BY block_num') == [[None], [None], ['x'], ['y']]


def test_two_streams_in_one_table_and_a_stream_into_a_table_that_was_there(db):
    assert db.load_table(pa.table({'block_num': pa.array([500], pa.int64()), 'tx_hash': ['plain']}), 't').success
    stream(db, *THREE, stream_name='one')
    base = BlockRange('base', 0, 9, '0xz')
    stream(db, response(base, 100), stream_name='two')
    [undone] = stream(db, ResponseBatch.reorg_batch([eth(10, 40, '0xd')]), stream_name='one')
    assert undone.metadata['rows_undone'] == 4
    assert numbers(db) == seen_in_view(db) == [1, 9, 100, 500]
    back = db.stamped_scan('t', ['block_num', TX_ID], {'block_num': (9, 500)}).read_all().sort_by('block_num')
    assert back['block_num'].to_pylist() == [9, 100, 500]
    assert [n is None for n in back[TX_ID].to_pylist()] == [False, False, True]


# Plain loads


class Broken(Exception):
    pass


def breaking(batches: int) -> pa.RecordBatchReader:
    batch = pa.record_batch({'x': pa.array(range(1000), pa.int64())})

    def rows():
        for _ in range(batches):
            yield batch
        raise Broken

    return pa.RecordBatchReader.from_batches(batch.schema, rows())


@pytest.mark.parametrize('mode', ['append', 'overwrite'])
def test_a_plain_load_that_fails_leaves_the_table_as_it_was(db, monkeypatch, mode):
    monkeypatch.setattr(clickhouse_unit, '_BLOCK_ROWS', 2000)
    assert db.load_table(pa.table({'x': pa.array([7], pa.int64())}), 't').success
    assert not db.load_reader(breaking(9), 't', mode=mode).success
    assert db.session.run(f'SELECT x FROM {db.tables.quoted("t")}') == [[7]]
    assert tables_of(db) == ['t']
    table = pa.table({'x': pa.array(range(9000), pa.int64())})
    result = db.load_table(table, 't', mode=mode, batch_size=1000)
    assert result.success, result.error
    assert db.get_table_info('t')['row_count'] == (9001 if mode == 'append' else 9000)
    assert tables_of(db) == ['t']


def test_overwriting_with_nothing_leaves_nothing(db):
    table = pa.table({'x': pa.array([7], pa.int64())})
    for rows in (table, table.slice(1)):
        assert db.load_table(rows, 't', mode='overwrite').success
        assert db.scan('t').read_all().num_rows == rows.num_rows


def test_a_table_with_partitions_and_one_of_another_engine(db):
    for name, engine in (
        ('parts', 'MergeTree PARTITION BY x % 3 ORDER BY x'),
        ('mem', 'Memory'),
        ('rep', 'ReplacingMergeTree ORDER BY x'),
    ):
        db.session.do(f"CREATE TABLE {db.tables.quoted(name)} (x Int64, y String DEFAULT 'd') ENGINE = {engine}")
        table = pa.table({'x': pa.array(range(10), pa.int64())})
        for _ in range(2):
            assert db.load_table(table, name, mode='overwrite').success
        assert db.get_table_info(name)['row_count'] == 10
        assert set(db.scan(name).read_all()['y'].to_pylist()) == {'d'}


# By key


def test_the_newest_row_of_a_key_is_the_one_that_shows(db):
    def load(*rows: tuple[str | None, int], **options: Any):
        keys, values = zip(*rows, strict=True)
        table = pa.table({'k': pa.array(keys, pa.string()), 'v': pa.array(values, pa.int64())})
        return db.load_table(table, 't', **{'mode': 'upsert', 'key_columns': ['k'], **options})

    assert load(('a', 1), ('b', 2), (None, 3), ('a', 4)).success
    result = load(('b', 5), (None, 6), ('c', 7), batch_size=1)
    assert result.success, result.error
    rows = sorted(db.session.run(f'SELECT v, k FROM {db.tables.quoted("t")}'))
    assert rows == [[4, 'a'], [5, 'b'], [6, None], [7, 'c']], 'rows that were replaced for good are gone'
    assert sorted(db.scan('t').read_all()['v'].to_pylist()) == [4, 5, 6, 7]
    assert db.get_table_info('t') | {'size_bytes': 0} == {
        'table_name': 't', 'row_count': 4, 'exists': True, 'columns': ['k', 'v'], 'size_bytes': 0
    }  # fmt: skip
    for options, told in (
        ({'mode': 'append', 'key_columns': []}, 'replace each other by k'),
        ({'key_columns': ['v']}, 'not by v'),
    ):
        refused = load(('z', 9), **options)
        assert not refused.success
        assert told in refused.error
    assert db.load_table(pa.table({'k': ['a']}), 'filled').success
    refused = db.load_table(pa.table({'k': ['a']}), 'filled', mode='upsert', key_columns=['k'])
    assert 'filled without a key' in refused.error


def test_what_an_upsert_of_a_stream_replaced_shows_again_when_it_is_undone(db):
    def rows(block_range: BlockRange, *pairs: tuple[str, int]) -> ResponseBatch:
        keys, values = zip(*pairs, strict=True)
        batch = pa.record_batch({'k': pa.array(keys), 'block_num': pa.array(values, pa.int64())})
        return ResponseBatch.data_batch(batch, BatchMetadata([block_range], ranges_complete=True))

    def shown(query: str) -> list[list[Any]]:
        return sorted(db.session.run(f'SELECT k, block_num FROM {query}'))

    options = {'mode': 'upsert', 'key_columns': ('k',)}
    first = rows(eth(0, 9, '0xa'), ('a', 1), ('b', 2), ('a', 3))
    second = rows(eth(10, 19, '0xb', '0xa'), ('a', 11), ('c', 12))
    stream(db, first, second, **options)
    assert shown(db.tables.quoted('t_committed')) == [['a', 11], ['b', 2], ['c', 12]]
    stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xz')]), **options)
    assert shown(db.tables.quoted('t_committed')) == [['a', 3], ['b', 2]]
    assert sorted(db.scan('t').read_all()['block_num'].to_pylist()) == [2, 3]
    table, state = db.tables.get('t'), db.streaming_destination().list_streams()[0].state
    db.clean(table, state.interval)
    assert shown(db.tables.quoted('t')) == [['a', 3], ['b', 2]]


# Columns


def test_columns_and_order_are_those_of_the_documentation(db):
    schema = pa.schema(
        [
            pa.field('block_num', pa.uint64(), nullable=False),
            pa.field('timestamp', pa.timestamp('ns', 'UTC'), nullable=False),
            pa.field('address', pa.binary(20), nullable=False),
            pa.field('topic3', pa.binary(32)),
            pa.field('data', pa.binary(), nullable=False),
            pa.field('value', pa.string(), metadata={b'amp:as': b'decimal'}),
            pa.field('hashes', pa.list_(pa.field('item', pa.binary(32), nullable=False)), nullable=False),
            pa.field('gas', pa.decimal128(38, 0)),
            pa.field('list', pa.list_(pa.int64())),
        ]
    )
    db.prepare_table(stamped_schema(schema), 't', create_table=True)
    found = {name: column.kind for name, column in db.tables.get('t').columns.items()}
    assert found == {
        'block_num': 'UInt64',
        'timestamp': "DateTime64(9, 'UTC')",
        'address': 'FixedString(20)',
        'topic3': 'Nullable(FixedString(32))',
        'data': 'String',
        'value': 'Nullable(UInt256)',
        'hashes': 'Array(FixedString(32))',
        'gas': 'Nullable(Decimal(38, 0))',
        'list': 'Nullable(String)',
        '_amp_batch_id': 'String',
        '_amp_tx_id': 'Int64',
    }
    where = f"database = {literal(db.config.database)} AND name = 't'"
    assert db.session.run(f'SELECT engine, sorting_key FROM system.tables WHERE {where}') == [
        ['MergeTree', 'block_num']
    ]
    assert db.get_table_schema('t').field('hashes').type == pa.list_(pa.binary(32))


def test_arrays_and_wide_numbers_come_back_equal(db):
    big = [0, 2**256 - 1, 10**77]
    item = pa.field('item', pa.binary(), nullable=True)
    schema = pa.schema([pa.field('data', pa.list_(item), nullable=False), pa.field('value', pa.string())])
    table = pa.table({'data': [[b'\xff', None], [], [b'']], 'value': [str(n) for n in big]}, schema=schema)
    result = db.load_table(table, 't', column_types={'value': 'decimal'})
    assert result.success, result.error
    back = db.scan('t').read_all()
    assert back['data'].to_pylist() == table['data'].to_pylist()
    assert back['value'].to_pylist() == table['value'].to_pylist()
    assert db.session.run(f'SELECT sum(value > 5) FROM {db.tables.quoted("t")}') == [[2]]
    refused = db.load_table(table.set_column(1, 'value', pa.array(['-1', '1', '2'])), 't')
    assert "'value'" in refused.error


def test_wide_decimals_stay_decimals_and_go_into_the_widest_number_that_a_table_has(db):
    wide = pa.array([Decimal(10**76 - 1), Decimal(0), None], pa.decimal256(76, 0))
    table = pa.table({'wide': wide})
    result = db.load_table(table, 't', column_types={'wide': 'decimal'})
    assert result.success, result.error
    assert db.tables.get('t').columns['wide'].kind == 'Nullable(Decimal(76, 0))'
    assert db.scan('t').read_all().to_pydict() == table.to_pydict()
    db.session.do(f'CREATE TABLE {db.tables.quoted("made")} (wide Nullable(UInt256)) ENGINE = Memory')
    result = db.load_table(table, 'made')
    assert result.success, result.error
    assert db.session.run(f'SELECT toString(wide) FROM {db.tables.quoted("made")}') == [
        [str(10**76 - 1)],
        ['0'],
        [None],
    ]
    refused = db.load_table(pa.table({'wide': pa.array([Decimal(-1)], wide.type)}), 'made')
    assert "'wide'" in refused.error


def test_rows_fit_the_types_that_a_table_already_has_or_are_refused(db):
    db.session.do(
        f'CREATE TABLE {db.tables.quoted("made")} (small Int32, wide Nullable(Float64), name LowCardinality(String), '
        "fixed FixedString(4), big UInt256, price Decimal(10, 2), day Date, state Enum('on' = 1), at DateTime64(3)) "
        'ENGINE = MergeTree ORDER BY tuple()'
    )
    good = pa.table(
        {
            'small': pa.array([7], pa.int64()),
            'wide': pa.array([0.5], pa.float32()),
            'name': ['abc'],
            'fixed': pa.array([b'abcd']),
            'big': [str(2**256 - 1)],
            'price': pa.array([5], pa.int64()),
            'at': pa.array([1_000_000], pa.timestamp('us')),
        }
    )
    result = db.load_table(good, 'made')
    assert result.success, result.error
    [row] = db.scan('made').read_all().to_pylist()
    assert (row['small'], row['wide'], row['name'], row['fixed'], row['big']) == (
        7,
        0.5,
        'abc',
        b'abcd',
        str(2**256 - 1),
    )
    assert (row['price'], row['state'], row['day']) == (5, 'on', '1970-01-01')
    refusals = [
        ('small', pa.array([2**31], pa.int64())),
        ('small', pa.array([1.0])),
        ('small', pa.array([None], pa.int32())),
        ('name', pa.array([b'\xff'])),
        ('fixed', pa.array([b'abc'])),
        ('big', pa.array(['1.5'])),
        ('price', pa.array([10**9], pa.int64())),
        ('state', pa.array(['on'])),
        ('at', pa.array([1], pa.timestamp('ns'))),
    ]
    for column, values in refusals:
        result = db.load_table(pa.table({column: values}), 'made')
        assert not result.success, (column, values)
        assert repr(column) in result.error
    assert db.get_table_info('made')['row_count'] == 1


def test_columns_with_names_that_look_quoted(db):
    names = ['`x`', '"y"', 'x', 'y', '{z:Int64}', 'a.b', "it's", 'back\\slash', '%s']
    table = pa.table({name: pa.array([i], pa.int64()) for i, name in enumerate(names)})
    for _ in range(2):
        result = db.load_table(table, 'odd `table`')
        assert result.success, result.error
    assert db.scan('odd `table`').read_all().to_pylist() == table.to_pylist() * 2


def test_hostile_names_of_streams_touch_nothing_else(db):
    assert db.load_table(pa.table({'x': [1]}), 'innocent').success
    for name in ('x`; drop table innocent', "quote's back\\slash", '"; drop table innocent; --', '{t:Int64} 100%s ü.b'):
        stream(db, THREE[0], THREE[1], table=name)
        stream(db, ResponseBatch.reorg_batch([eth(10, 19, '0xz')]), table=name)
        assert numbers(db, name) == [1, 9]
        view = quote(db.config.database, f'{name}_committed')
        assert db.session.run(f'SELECT count() FROM {view}') == [[2]]
        info = db.get_table_info(name)
        assert (info['table_name'], info['row_count'], info['exists']) == (name, 2, True)
        assert info['columns'] == [*THREE[0].data.schema.names, '_amp_batch_id', '_amp_tx_id']
        assert info['size_bytes'] > 0
    assert db.session.run(f'SELECT x FROM {db.tables.quoted("innocent")}') == [[1]]
    assert db.get_table_info('no such table') is None


# What goes wrong


def test_a_wrong_password_is_permanent_and_never_told(clickhouse_test_config):
    with pytest.raises(DestinationError, match='check username and password') as raised:
        ClickHouseLoader({**clickhouse_test_config, 'password': 'not-the-secret-one'}).connect()
    assert raised.value.context['code'] in {192, 193, 194, 516}
    assert not raised.value.retryable
    assert 'not-the-secret' not in f'{raised.value} {raised.value.context}'
    assert 'not-the-secret' not in repr(ClickHouseConfig(host='h', password='not-the-secret-one'))


def test_a_server_that_is_down_a_database_and_a_table_that_are_not_there(clickhouse_test_config, db):
    with pytest.raises(DestinationError, match=r'127\.0\.0\.1:\d+ cannot be reached') as raised:
        ClickHouseLoader({**clickhouse_test_config, 'host': '127.0.0.1', 'port': free_port()}).connect()
    assert raised.value.retryable
    with pytest.raises(DestinationError, match='CREATE DATABASE') as raised:
        ClickHouseLoader({**clickhouse_test_config, 'database': 'no_such_database'}).connect()
    assert (raised.value.context['code'], raised.value.retryable) == (81, False)
    with pytest.raises(DestinationError) as raised:
        db.session.run('SELECT 1 FROM no_such_table')
    assert (raised.value.context['code'], raised.value.retryable) == (60, False)
    with pytest.raises(DestinationError, match="'nowhere' does not exist"):
        db.scan('nowhere')


def test_something_else_that_speaks_http_is_told_apart():
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(('127.0.0.1', 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(DestinationError, match='did not answer as ClickHouse does') as raised:
            ClickHouseLoader({'host': '127.0.0.1', 'port': server.server_port}).connect()
        server.shutdown()
        thread.join()
    assert not raised.value.retryable


def test_a_server_that_is_not_there_is_one_sentence_and_no_traceback(caplog):
    with pytest.raises(DestinationError, match='cannot be reached') as raised:
        ClickHouseLoader({'host': '127.0.0.1', 'port': free_port()}).connect()
    assert raised.value.retryable
    assert [record.name for record in caplog.records if record.exc_info] == []


def test_codes_decide_what_is_tried_again(db):
    # Of the server's own making: a query that takes too long, one that is refused, a value that does not fit.
    for sql, code, retryable in (
        ('SELECT sleep(2) SETTINGS max_execution_time = 1', 159, True),
        ('SELECT number FROM numbers(1000000000) ORDER BY number % 7 SETTINGS max_memory_usage = 1000000', 241, True),
        ("SELECT toInt32('x')", 6, False),
        ('SELEC', 62, False),
    ):
        with pytest.raises(DestinationError) as raised:
            db.session.run(sql)
        assert (raised.value.context['code'], raised.value.retryable) == (code, retryable), raised.value


def test_what_a_user_may_not_do_is_one_sentence_and_permanent(db, own_database):
    if 'CLICKHOUSE_HOST' not in os.environ:
        with pytest.raises(DestinationError, match='the user lacks a privilege') as raised:
            db.session.do("CREATE USER somebody IDENTIFIED BY 'a-secret-of-theirs'")
        assert (raised.value.context['code'], raised.value.retryable) == (497, False)
    assert db.load_table(pa.table({'x': [1]}), 't').success
    with ClickHouseLoader(own_database) as reader:
        reader.session._client.set_client_setting('readonly', '2')
        for name in ('t', 'a_new_one'):
            result = reader.load_table(pa.table({'x': [2]}), name)
            assert not result.success
            assert '[164]' in result.error
            assert 'the user may only read' in result.error
            assert own_database['password'] not in result.error
        with pytest.raises(DestinationError) as raised:
            stream(reader, THREE[0], table='s')
        assert (raised.value.context['code'], raised.value.retryable) == (164, False)
    assert tables_of(db) == ['t']
    assert db.get_table_info('t')['row_count'] == 1


def test_a_full_disk_is_permanent_until_there_is_room(tmp_path):
    big = response(eth(10, 39, '0xd', '0xa'), *range(600_000))
    with small_disk(tmp_path / 'disk', 12) as disk:
        front = FrontProcess(str(disk / 'data'))
        try:
            with ClickHouseLoader(front.config) as loader:
                stream(loader, THREE[0])
                settings = StreamSettings(retry_seconds=0, strict=False)
                job = StreamJob(StreamKey('t', 't'))
                with pytest.raises(DestinationError) as raised:
                    list(StreamEngine(loader, job, Asked([THREE[0], big]).connect, settings).run())
                assert (raised.value.context['code'], raised.value.retryable) == (243, False), raised.value
                assert 'the disk of the server is full' in str(raised.value)
                assert numbers(loader) == [1, 9]
                make_room(disk, 256)
                follow(loader, [THREE[0], big])
                assert loader.get_table_info('t')['row_count'] == 600_002
        finally:
            front.kill()


def follow(loader, responses: list[ResponseBatch], **settings) -> list[Any]:
    """Run a stream that is tried again, until the last of `responses` is committed."""
    retry = RetryConfig(max_retries=None, initial_backoff_ms=10, max_backoff_ms=200)
    chosen = StreamSettings(strict=False, retry=retry, retry_seconds=200, **settings)
    results = []
    for result in StreamEngine(loader, StreamJob(StreamKey('t', 't')), Asked(responses).connect, chosen).run():
        results.append(result)
        if result.metadata['position'].get('ethereum', {}).get('number') == responses[-1].metadata.ranges[0].end:
            break
    return results


class Asked:
    """A source that can be asked again from a position, as a server can."""

    backlog = False
    repeatable = True

    def __init__(self, responses: list[ResponseBatch]) -> None:
        self._responses = responses
        self._left = iter(responses)

    def connect(self, position) -> Asked:
        reached = position.ranges[0].end if position else -1
        self._left = iter([r for r in self._responses if r.metadata.ranges[0].end > reached])
        return self

    def get(self, timeout=None):
        return next(self._left, END)

    def close(self) -> None:
        pass


class At:
    """Do something at a named moment of a commit, the n-th time that it comes."""

    def __init__(self, point: str, act: Callable[[], Any], nth: int = 1) -> None:
        self._point, self._act, self._left = point, act, nth

    def __call__(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                self._act()


@pytest.mark.parametrize('sent', [200, 700, 1500])
def test_a_connection_that_breaks_in_the_middle_of_an_insert(own_database, monkeypatch, sent):
    with TcpProxy(own_database['host'], own_database['port']) as proxy:
        config = {**own_database, 'host': '127.0.0.1', 'port': proxy.port}
        with ClickHouseLoader(config) as loader:
            monkeypatch.setattr(points, 'hook', At('insert.before', lambda: proxy.cut_after(sent), 2))
            results = follow(loader, THREE)
            assert proxy.cuts == 1
            assert sum(r.rows_loaded for r in results) == 6
            assert numbers(loader) == raw_numbers(loader) == ALL_OF_THREE


@pytest.mark.parametrize('after', [40, 70, 90])
def test_an_answer_that_ends_within_its_headers_is_not_taken_for_an_empty_one(own_database, after):
    """The client reads headers up to their end or that of the connection, and has no body then."""
    with TcpProxy(own_database['host'], own_database['port']) as proxy:
        config = ClickHouseConfig(**{**own_database, 'host': '127.0.0.1', 'port': proxy.port})
        with closing(Session(config)) as session:
            proxy.arm('cut', 'received', after)
            with pytest.raises(DestinationError, match='broke') as raised:
                session.run('SELECT 1')
            assert raised.value.retryable
            assert session.run("SELECT 1, 'x'") == [[1, 'x']]


def test_a_session_is_not_made_without_the_settings_of_the_server(own_database):
    """What the driver does not know of it does not send: inserts of one token would be there twice."""
    told = []
    with TcpProxy(own_database['host'], own_database['port']) as proxy:
        config = ClickHouseConfig(**{**own_database, 'host': '127.0.0.1', 'port': proxy.port})
        for after in range(150, 450, 20):
            proxy.arm('cut', 'received', after)
            try:
                with closing(Session(config)) as session:
                    assert session._keep_first
            except DestinationError as error:
                told.append((error.message, error.retryable))
            proxy.heal()
    assert any('broke off' in message for message, _ in told), told
    assert all(is_retryable for _, is_retryable in told), told


@pytest.mark.parametrize('point', ['insert.before', 'insert.after', 'document.inserted'])
def test_a_server_that_is_killed_and_comes_back(tmp_path, monkeypatch, point):
    front = FrontProcess(str(tmp_path / 'data'))

    def kill_and_start() -> None:
        front.kill()
        front.start()

    try:
        with ClickHouseLoader({**front.config, 'durable': False}) as loader:
            monkeypatch.setattr(points, 'hook', At(point, kill_and_start, 2 if point != 'document.inserted' else 6))
            results = follow(loader, THREE)
            monkeypatch.setattr(points, 'hook', None)
            assert sum(r.rows_loaded for r in results) == 6
            assert numbers(loader) == raw_numbers(loader) == ALL_OF_THREE
    finally:
        front.kill()


def test_a_plain_load_into_a_server_that_is_gone_fails_with_one_sentence(tmp_path):
    front = FrontProcess(str(tmp_path / 'data'))
    with ClickHouseLoader(front.config) as loader:
        assert loader.load_table(pa.table({'x': [1]}), 't').success
        front.kill()
        result = loader.load_table(pa.table({'x': [2]}), 't')
    assert not result.success
    assert 'is gone: the connection broke' in result.error


def test_one_folder_at_a_time_in_a_process_and_one_process_at_a_time_in_a_folder(clickhouse_folder, tmp_path):
    with ClickHouseLoader(clickhouse_folder) as one, ClickHouseLoader(clickhouse_folder) as other:
        assert one.load_table(pa.table({'x': [1]}), 'shared', mode='overwrite').success
        assert other.scan('shared').read_all().num_rows == 1, 'loaders of one folder share the engine'
        with pytest.raises(DestinationError, match='one folder at a time'):
            ClickHouseLoader({'interface': 'chdb', 'path': str(tmp_path)}).connect()
        code = (
            'from amp.loaders.implementations.clickhouse_loader import ClickHouseLoader as L\n'
            f'L({clickhouse_folder!r}).connect()'
        )
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
        ended = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, env=environment, check=False
        )
        assert 'another process has it open' in ended.stderr
    config = {**clickhouse_folder, 'database': 'of its own'}
    with ClickHouseLoader(config) as loader:
        assert loader.load_table(pa.table({'x': [1]}), 't', mode='overwrite').success
        assert loader.get_table_info('t')['row_count'] == 1


def test_variables_name_the_server_that_the_tests_use(tmp_path, monkeypatch):
    with chdb_front(str(tmp_path / 'data'), user='somebody', password='and-a-secret') as other:
        variables = {'host': 'HOST', 'port': 'PORT', 'username': 'USER', 'password': 'PASSWORD'}
        for key, variable in variables.items():
            monkeypatch.setenv(f'CLICKHOUSE_{variable}', str(other[key]))
        monkeypatch.setenv('CLICKHOUSE_DB', 'system')
        with clickhouse_config(tmp_path / 'unused') as named, ClickHouseLoader(named) as loader:
            assert named == {**other, 'database': 'system'}
            assert loader.table_exists('numbers')
        assert not (tmp_path / 'unused').exists()


def test_configuration_is_checked_by_name_and_urls_are_read():
    for config, told in (
        ({}, "key 'host'"),
        ({'interface': 'chdb'}, "key 'path'"),
        ({'host': 'h', 'prot': 1}, "'prot'"),
        ({'host': 'h', 'interface': 'native'}, "'native'"),
    ):
        with pytest.raises(ConfigError, match=told):
            ClickHouseLoader(config)
    served = ClickHouseLoader({'url': 'clickhouse://me:p%40ss@db.example:9123/chain?secure=true'}).config
    assert served == ClickHouseConfig('db.example', 9123, 'chain', 'me', 'p@ss', secure=True)
    assert ClickHouseLoader({'url': 'clickhouse://db.example?secure=true'}).config.port == 8443
    assert ClickHouseLoader({'url': 'clickhouse://db.example'}).config.port == 8123
    folder = ClickHouseLoader({'url': 'clickhouse+chdb:///chain?database=raw'}).config
    assert (folder.interface, folder.path, folder.database) == ('chdb', 'chain', 'raw')
    assert ClickHouseLoader({'url': 'clickhouse+chdb:////data/chain'}).config.path == '/data/chain'
    assert ClickHouseLoader({'host': 'h'}).guarantee == 'exactly-once'


def test_over_tls_with_an_authority_of_ones_own(tmp_path):
    certificate, key = str(tmp_path / 'certificate.pem'), str(tmp_path / 'key.pem')
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost',
         '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    front = FrontProcess(str(tmp_path / 'data'), tls=(certificate, key))
    try:
        with ClickHouseLoader({**front.config, 'secure': True, 'ca_cert': certificate}) as loader:
            assert loader.load_table(pa.table({'x': [1]}), 't').success
            assert loader.scan('t').read_all().num_rows == 1
        with pytest.raises(DestinationError, match='cannot be reached'):
            ClickHouseLoader({**front.config, 'secure': True}).connect()
        with pytest.raises(DestinationError):
            ClickHouseLoader(front.config).connect()
    finally:
        front.kill()


def test_a_stream_can_be_verified_and_what_was_tampered_with_is_found(db):
    stream(db, *THREE)
    [report] = verify(db)
    assert report.ok, report
    db.session.do(f'DELETE FROM {db.tables.quoted("t")} WHERE block_num = 11')
    db.session.do(
        f'INSERT INTO {db.tables.quoted("t")} (block_num, _amp_tx_id) SELECT 500, max(_amp_tx_id) FROM {db.tables.quoted("t")}'
    )
    [report] = verify(db)
    assert not report.ok


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[4] / 'docs' / 'destinations' / 'clickhouse.md').read_text()
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
    exec(compile(example, 'clickhouse.md', 'exec'), {})
    assert 'block_num' in capsys.readouterr().out


def wait_until(holds: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, 'it did not happen in time'
        time.sleep(0.02)
