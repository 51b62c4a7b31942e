"""The DuckDB destination."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import date
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from amp.errors import ConfigError, DestinationError, IncompleteResultError, ProtocolError, SchemaError, StaleEpochError
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.sql import quote
from amp.loaders.unit import Claim
from amp.streaming import ResponseBatch
from amp.streaming.ledger import StreamKey
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.integration.loaders.test_shared_streams import OneTableTests, numbers, stream

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


class DuckDBTestConfig(LoaderTestConfig):
    loader_class = DuckDBLoader
    config_fixture_name = 'duckdb_test_config'

    def get_row_count(self, loader, table_name):
        [(count,)] = loader.connection.execute(f'SELECT count(*) FROM {quote(table_name)}').fetchall()
        return count

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        sql = f'SELECT * FROM {quote(table_name)}'
        sql += f' WHERE {where}' if where else ''
        sql += f' ORDER BY {order_by}' if order_by else ''
        return loader.connection.sql(sql).to_arrow_table().to_pylist()

    def cleanup_table(self, loader, table_name):
        loader.connection.execute(f'DROP TABLE IF EXISTS {quote(table_name)}')

    def get_column_names(self, loader, table_name):
        return [row[0] for row in loader.connection.execute(f'DESCRIBE {quote(table_name)}').fetchall()]


class TestDuckDBLoader(InterruptTests, BaseLoaderTests):
    config = DuckDBTestConfig()


class TestDuckDBStreaming(BaseStreamingTests):
    config = DuckDBTestConfig()


class TestDuckDBTypes(BaseTypeTests):
    config = DuckDBTestConfig()


class TestDuckDBOneTable(OneTableTests):
    pass


@pytest.fixture
def db(tmp_path):
    with DuckDBLoader({'path': str(tmp_path / 'chain.db')}) as opened:
        yield opened


def rows(db: DuckDBLoader, table: str) -> list[tuple[Any, ...]]:
    return sorted(db.connection.execute(f'SELECT * FROM {quote(table)}').fetchall())


def test_every_amp_type_comes_back_equal(db):
    columns = {
        'u64': pa.array([0, 2**64 - 1, None], pa.uint64()),
        'u32': pa.array([0, 2**32 - 1, None], pa.uint32()),
        'i32': pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
        'flag': pa.array([True, False, None]),
        'address': pa.array([b'\x00' * 20, b'\xff' * 20, None], pa.binary(20)),
        'data': pa.array([b'', b'\x00\n\'"\\', None], pa.binary()),
        'gas': pa.array([Decimal(0), Decimal('9' * 38), None], pa.decimal128(38, 0)),
        'when': pa.array([0, 1_693_000_000_123_456_789, None], pa.int64()).cast(pa.timestamp('ns', 'UTC')),
        'value': pa.array(['', str(2**256 - 1), None]),
        'hashes': pa.array([[], [b'\x01' * 32], None], pa.list_(pa.binary(32))),
        'access': pa.array(
            [[], [{'address': b'\x02' * 20, 'keys': [b'\x03' * 32]}], None],
            pa.list_(pa.struct([('address', pa.binary(20)), ('keys', pa.list_(pa.binary(32)))])),
        ),
    }
    table = pa.table(columns)
    result = db.load_table(table, 'types')
    assert result.success, result.error
    back = db.scan('types').read_all()
    for name in columns:
        assert back[name].cast(table.schema.field(name).type).to_pylist() == table[name].to_pylist(), name


def test_wide_decimals_are_exact_integers(db):
    wide = [Decimal(2**250), Decimal(-(2**250)), Decimal(0), None]
    assert db.load_table(pa.table({'v': pa.array(wide, pa.decimal256(76, 0))}), 'wide').success
    [total] = db.connection.execute('SELECT max(v)::VARCHAR FROM wide').fetchone()
    assert int(total) == 2**250


def test_a_type_without_a_home_is_refused_by_name(db):
    result = db.load_table(pa.table({'fine': [1], 'odd one': pa.array([None], pa.decimal256(60, 4))}), 'refused')
    assert not result.success
    assert 'odd one' in result.error
    assert not db.table_exists('refused')


def test_hostile_names_touch_nothing_else(db):
    db.load_table(pa.table({'x': [1]}), 'innocent')
    for name in ('t"; DROP TABLE innocent; --', "quote's", 'ünï cødé', 'select', 'a.b'):
        table = pa.table({'from': [1], 'to': [2], 'camelCase': [3], 'with "quotes"': [4], 'select': [5]})
        result = db.load_table(table, name)
        assert result.success, result.error
        assert db.scan(name).read_all().to_pydict() == table.to_pydict()
        assert db.get_table_info(name)['row_count'] == 1
    assert rows(db, 'innocent') == [(1,)]


def test_columns_that_differ_only_in_case_are_refused(db):
    result = db.load_table(pa.table([[1], [2]], names=['value', 'VALUE']), 'cases')
    assert not result.success
    assert 'VALUE' in result.error or 'value' in result.error


def test_a_table_load_is_all_or_nothing(db):
    good = pa.record_batch({'x': pa.array([1], pa.int64())})
    assert db.load_batch(good, 't').success

    def batches():
        yield good
        raise ProtocolError('the source broke')

    broken = pa.RecordBatchReader.from_batches(good.schema, batches())
    with pytest.raises(ProtocolError, match='the source broke'):
        db.load_reader(broken, 't', mode='overwrite')
    assert rows(db, 't') == [(1,)]


@pytest.mark.parametrize('mode', ['append', 'upsert'])
def test_an_interrupt_of_a_statement_is_an_interrupt_and_keeps_nothing(db, mode):
    """The driver makes a RuntimeError of it, which nobody takes for a Ctrl-C."""
    options = {'mode': mode, 'key_columns': ['x']} if mode == 'upsert' else {}
    batch = pa.record_batch({'x': pa.array([1], pa.int64())})
    assert db.load_batch(batch, 't', **options).success

    def batches():
        yield batch
        os.kill(os.getpid(), signal.SIGINT)  # the thread that runs this may be the driver's or our own
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # the statement runs until somebody ends it
            yield batch

    with pytest.raises(KeyboardInterrupt):
        db.load_reader(pa.RecordBatchReader.from_batches(batch.schema, batches()), 't', **options)
    assert rows(db, 't') == [(1,)]
    assert db.load_batch(pa.record_batch({'x': pa.array([2], pa.int64())}), 't', **options).success
    assert rows(db, 't') == [(1,), (2,)]


def test_upsert_replaces_by_key_and_the_last_of_equals_counts(db):
    db.load_table(pa.table({'k': [1, 2, 3], 'v': ['a', 'b', 'c']}), 't')
    result = db.load_table(pa.table({'k': [2, 4, 4], 'v': ['B', 'd', 'D']}), 't', mode='upsert', key_columns=['k'])
    assert result.success, result.error
    assert rows(db, 't') == [(1, 'a'), (2, 'B'), (3, 'c'), (4, 'D')]
    with_missing_key = db.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='upsert', key_columns=['nope'])
    assert 'nope' in with_missing_key.error
    without_keys = db.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='upsert')
    assert 'key_columns' in without_keys.error


CHANGED = [
    ('BIGINT', pa.array([1.5])),
    ('BIGINT', pa.array(['007'])),
    ('BIGINT', pa.array([True])),
    ('BIGINT', pa.array([Decimal('1.25')], pa.decimal128(10, 2))),
    ('DOUBLE', pa.array([2**53 + 1])),
    ('DECIMAL(10,1)', pa.array([Decimal('1.25')], pa.decimal128(10, 2))),
    ('FLOAT', pa.array([0.1])),
    ('VARCHAR', pa.array([b'\xab'])),
    ('BLOB', pa.array(['0xab'])),
    ('DATE', pa.array([0], pa.timestamp('us'))),
    ('TIMESTAMP', pa.array([1], pa.timestamp('ns'))),
    ('BOOLEAN', pa.array([2])),
    ('INTEGER[]', pa.array([[1.5]])),
]


@pytest.mark.parametrize(('column', 'values'), CHANGED, ids=[f'{kind}-{values.type}' for kind, values in CHANGED])
@pytest.mark.parametrize('mode', ['append', 'upsert', 'stream'])
def test_a_column_that_would_change_values_refuses_them(db, column, values, mode):
    db.connection.execute(f'CREATE TABLE t (k INTEGER, v {column})')
    batch = pa.record_batch({'k': pa.array([1], pa.int32()), 'v': values})
    if mode == 'stream':
        with pytest.raises(SchemaError, match=r"the column 'v' is .* which does not keep"):
            stream(db, ResponseBatch.data_batch(batch, response(eth(0, 0, '0xa')).metadata))
    else:
        result = db.load_batch(batch, 't', mode=mode, key_columns='k')
        assert "the column 'v' is" in (result.error or 'no error')
    assert rows(db, 't') == []


KEPT = [
    ('HUGEINT', pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    ('INTEGER', pa.array([7]), 7),
    ('DECIMAL(20,3)', pa.array([7]), Decimal('7.000')),
    ('VARCHAR', pa.array([7]), '7'),
    ('VARCHAR', pa.array([True]), 'true'),
    ('JSON', pa.array(['{"a": 1}']), '{"a": 1}'),
    ('DOUBLE', pa.array([1.5], pa.float32()), 1.5),
    ('DATE', pa.array([1], pa.date32()), date(1970, 1, 2)),
]


@pytest.mark.parametrize(('column', 'values', 'kept'), KEPT, ids=[f'{k}-{values.type}' for k, values, _ in KEPT])
def test_a_column_of_ones_own_that_keeps_values_takes_them(db, column, values, kept):
    db.connection.execute(f'CREATE TABLE t (v {column})')
    result = db.load_batch(pa.record_batch({'v': values}), 't', create_table=False)
    assert result.success, result.error
    assert rows(db, 't') == [(kept,)]
    too_wide = db.load_batch(pa.record_batch({'v': pa.array([2**40])}), 't')
    assert (too_wide.error is not None) == (column in {'INTEGER', 'JSON', 'DOUBLE', 'DATE'})
    assert len(rows(db, 't')) == 1 + too_wide.success


def test_one_key_column_may_be_a_text_and_a_mode_that_is_none_is_told(db):
    key = response(eth(0, 0, '0xa'), 7)
    for _ in range(2):
        assert db.load_table(pa.table({'key': [1]}), 't', mode='upsert', key_columns='key').success
        stream(db, key, table='s', mode='upsert', key_columns='block_num', resume=False)
    assert (rows(db, 't'), len(rows(db, 's'))) == ([(1,)], 1)
    with pytest.raises(ConfigError, match='key_columns are names of columns'):
        db.load_table(pa.table({'key': [1]}), 't', mode='upsert', key_columns=[1])
    with pytest.raises(ConfigError, match="there is no mode 'sideways'"):
        stream(db, key, table='s', mode='sideways')


def test_a_reorg_that_shows_in_a_range_is_undone_with_the_rows_that_replace_it(db):
    results = stream(
        db,
        response(eth(0, 9, '0xa'), 1, 9),
        response(eth(10, 19, '0xb', '0xa'), 11, 19),
        response(eth(10, 20, '0xc', '0xa'), 12, 20),
    )
    assert [(r.is_reorg, r.rows_loaded) for r in results] == [(False, 2), (False, 2), (True, 0), (False, 2)]
    assert results[2].metadata['rows_undone'] == 2
    assert numbers(db) == [1, 9, 12, 20]


def test_upsert_in_a_stream_gives_back_what_it_replaced(db):
    def keyed(block_range, key, value):
        batch = pa.record_batch({'k': [key], 'v': [value]})
        return ResponseBatch.data_batch(batch, response(block_range).metadata)

    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    db.load_table(pa.table({'k': [7], 'v': ['plain']}), 't')
    stream(db, keyed(eth(0, 0, '0xa'), 1, 'old'), keyed(eth(1, 1, '0xb', '0xa'), 1, 'new'), **upsert)
    stream(db, keyed(eth(2, 2, '0xc', '0xb'), 7, 'streamed'), **upsert)

    def now():
        return dict(db.connection.execute('SELECT k, v FROM t').fetchall())

    assert now() == {1: 'new', 7: 'streamed'}
    stream(db, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), **upsert)
    assert now() == {1: 'new', 7: 'plain'}
    stream(db, ResponseBatch.reorg_batch([eth(1, 1, '0xd')]), **upsert)
    assert now() == {1: 'old', 7: 'plain'}
    stream(db, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), **upsert)
    assert now() == {7: 'plain'}


def test_rows_without_the_end_of_their_microbatch_are_rolled_back(db):
    with pytest.raises(IncompleteResultError, match='inside a microbatch'):
        stream(db, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11, complete=False))
    assert numbers(db) == [1]


def test_a_consumer_that_stops_leaves_no_unit_open(db):
    responses = [response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11, complete=False)]
    iterator = db.load_stream_continuous(iter(responses), 't')
    assert next(iterator).rows_loaded == 1
    iterator.close()
    assert numbers(db) == [1]
    assert db.load_table(pa.table({'x': [1]}), 'other').success


def test_the_older_writer_loses_at_its_next_commit(db):
    key = StreamKey('t', 't')
    older = db.load_stream_continuous(
        iter([response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11)]), 't'
    )
    next(older)
    taken = db.open_stream(key, Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
    with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 2'):
        next(older)
    assert numbers(db) == [1]
    assert taken.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}


def test_given_batches_that_would_leave_a_hole_are_refused_before_anything_is_undone(db):
    stream(db, response(eth(0, 9, '0xa'), 1, 9), response(eth(10, 19, '0xb', '0xa'), 11, 19))
    with pytest.raises(ProtocolError, match='does not continue'):
        stream(db, response(eth(15, 20, '0xc', '0xd'), 16))
    assert numbers(db) == [1, 9, 11, 19]


def test_a_stream_never_takes_itself_back_from_a_newer_writer(db):
    db.open_stream(StreamKey('t', 't'), Claim('first', 'then'))
    db.open_stream(StreamKey('t', 't'), Claim('second', 'later'))
    with pytest.raises(StaleEpochError, match='second at later'):
        db.open_stream(StreamKey('t', 't'), Claim('first', 'then'), after=1)
    assert db.open_stream(StreamKey('t', 't'), Claim('second', 'again'), after=1).epoch == 3, 'its own lost answer'


def test_a_gap_in_given_batches_with_parent_hashes_is_refused(db):
    with pytest.raises(ProtocolError, match='does not continue'):
        stream(db, response(eth(0, 9, '0xa'), 1), response(eth(20, 29, '0xc', '0xb'), 21))
    assert numbers(db) == [1]


def test_a_file_of_another_process_is_one_clear_sentence(tmp_path):
    path = tmp_path / 'busy.db'
    code = f'import duckdb, sys; c = duckdb.connect({str(path)!r}); print("open", flush=True); sys.stdin.read()'
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'open\n'
        with pytest.raises(DestinationError, match='open in another process'):
            DuckDBLoader({'path': str(path)}).connect()
        other.communicate(b'')


def test_paths_that_cannot_be_opened_say_why(tmp_path):
    with pytest.raises(DestinationError, match='does not exist'):
        DuckDBLoader({'path': str(tmp_path / 'no' / 'such' / 'x.db')}).connect()
    text = tmp_path / 'text.db'
    text.write_text('this is no database, but long enough to be taken for one' * 100)
    with pytest.raises(DestinationError, match=r'text\.db'):
        DuckDBLoader({'path': str(text)}).connect()


def test_configuration_is_checked_by_name():
    with pytest.raises(ConfigError, match="needs the configuration key 'path'"):
        DuckDBLoader({})
    with pytest.raises(ConfigError, match="unknown configuration key 'pth'"):
        DuckDBLoader({'path': 'x', 'pth': 'y'})
    with pytest.raises(ConfigError, match='inside the destination'):
        DuckDBLoader({'path': 'x', 'state': {'storage': 'memory'}})
    assert DuckDBLoader({'url': 'duckdb:///chain.db'}).config.path == 'chain.db'
    assert DuckDBLoader({'url': 'duckdb:////data/chain.db?schema=raw'}).config.schema == 'raw'


def test_other_schemas(tmp_path):
    with DuckDBLoader({'path': str(tmp_path / 'x.db'), 'schema': 'raw data'}) as db:
        assert stream(db, response(eth(0, 9, '0xa'), 1))[0].success
        assert numbers(db) == [1]
        assert duckdb.__version__


def test_a_schema_error_comes_before_the_first_row(db):
    with pytest.raises(SchemaError, match='odd'):
        stream(
            db,
            ResponseBatch.data_batch(
                pa.record_batch({'odd': pa.array([None], pa.decimal256(60, 4))}), response(eth(0, 9, '0xa')).metadata
            ),
        )
    assert not db.table_exists('t')
