"""The PostgreSQL destination, on a real server."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amp.errors import ConfigError, DestinationError, ProtocolError, StaleEpochError
from amp.loaders import points
from amp.loaders.implementations.postgresql_loader import PostgreSQLConfig, PostgreSQLLoader
from amp.loaders.settings import StreamSettings
from amp.loaders.sql import quote
from amp.loaders.stream import StreamEngine
from amp.loaders.unit import Claim, StreamJob
from amp.streaming import ResponseBatch
from amp.streaming.iterator import END
from amp.streaming.ledger import StreamKey
from amp.streaming.resilience import RetryConfig
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import BaseTypeTests
from tests.integration.loaders.test_interrupts import InterruptTests
from tests.integration.loaders.test_shared_streams import (
    ALL_OF_THREE,
    THREE,
    NewColumnsTests,
    OneTableTests,
    numbers,
    stream,
)
from tests.support.faults import wait_until
from tests.support.ports import free_port
from tests.support.postgres import postgresql_config, start_postgres
from tests.support.small_disk import make_room, small_disk
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.postgresql]


class PostgreSQLTestConfig(LoaderTestConfig):
    loader_class = PostgreSQLLoader
    config_fixture_name = 'postgresql_test_config'

    def get_row_count(self, loader, table_name):
        [(count,)] = loader.run(f'SELECT count(*) FROM {quote(table_name)}')
        return count

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        sql = f'SELECT * FROM {quote(table_name)}'
        sql += f' WHERE {where}' if where else ''
        sql += f' ORDER BY {order_by}' if order_by else ''
        cursor = loader.connection.execute(sql.encode())
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def cleanup_table(self, loader, table_name):
        loader.run(f'DROP TABLE IF EXISTS {quote(table_name)}')

    def get_column_names(self, loader, table_name):
        return list(loader.columns(table_name))


class TestPostgreSQLLoader(InterruptTests, BaseLoaderTests):
    config = PostgreSQLTestConfig()


class TestPostgreSQLStreaming(BaseStreamingTests):
    config = PostgreSQLTestConfig()


class TestPostgreSQLTypes(BaseTypeTests):
    config = PostgreSQLTestConfig()


@pytest.fixture
def own_schema(postgresql_test_config):
    """A configuration whose schema (with a name that must be quoted) is this test's own."""
    mark = uuid.uuid4().hex[:8]
    config = {**postgresql_test_config, 'schema': f'raw "data" 100% $1 {mark}', 'application_name': f'amp test {mark}'}
    yield config
    with PostgreSQLLoader(config) as loader:
        loader.run(f'DROP SCHEMA {quote(config["schema"])} CASCADE')


class TestPostgreSQLOneTable(OneTableTests):
    pass


class TestPostgreSQLNewColumns(NewColumnsTests):
    pass


@pytest.fixture
def db(own_schema):
    with PostgreSQLLoader(own_schema) as opened:
        yield opened


def rows(db: PostgreSQLLoader, table: str) -> list[tuple[Any, ...]]:
    return sorted(db.run(f'SELECT * FROM {db.quoted(table)}'))


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


def follow(loader, responses: list[ResponseBatch], table='t', **settings) -> list[Any]:
    """Run a stream that is tried again, until the last of `responses` is committed."""
    key = StreamKey(table, table)
    chosen = StreamSettings(
        strict=False,
        retry=RetryConfig(max_retries=None, initial_backoff_ms=10, max_backoff_ms=200),
        retry_seconds=120,
        **settings,
    )
    results = []
    for result in StreamEngine(loader, StreamJob(key), Asked(responses).connect, chosen).run():
        results.append(result)
        if result.metadata['position'].get('ethereum', {}).get('number') == responses[-1].metadata.ranges[0].end:
            break
    return results


class At:
    """Do something at a named moment of a commit, the n-th time that it comes."""

    def __init__(self, point: str, act: Callable[[], None], nth: int = 1) -> None:
        self._point, self._act, self._left = point, act, nth

    def __call__(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                self._act()


# Types


def extremes() -> dict[str, pa.Array]:
    binary = [b'', b'\x00\n\'"\\', None]
    wide = Decimal(10) ** 75 - 1
    return {
        'u64': pa.array([0, 2**64 - 1, None], pa.uint64()),
        'u32': pa.array([0, 2**32 - 1, None], pa.uint32()),
        'u16': pa.array([0, 2**16 - 1, None], pa.uint16()),
        'u8': pa.array([0, 2**8 - 1, None], pa.uint8()),
        'i64': pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
        'i32': pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
        'i16': pa.array([-(2**15), 2**15 - 1, None], pa.int16()),
        'i8': pa.array([-(2**7), 2**7 - 1, None], pa.int8()),
        'f64': pa.array([-1.7976931348623157e308, 5e-324, None], pa.float64()),
        'f32': pa.array([-0.5, float('inf'), None], pa.float32()),
        'f16': pa.array([1.5, -2.5, None], pa.float16()),
        'flag': pa.array([True, False, None]),
        'address': pa.array([b'\x00' * 20, b'\xff' * 20, None], pa.binary(20)),
        'data': pa.array(binary, pa.binary()),
        'large data': pa.array(binary, pa.large_binary()),
        'data view': pa.array(binary, pa.binary_view()),
        'text': pa.array(['', 'ünï \\ " \' \n\t\x01 \U0001f600', None]),
        'large text': pa.array(['', 'x' * 100_000, None], pa.large_string()),
        'text view': pa.array(['short', 'long enough to live in another buffer', None], pa.string_view()),
        'coded': pa.array(['a', 'b', None]).dictionary_encode(),
        'gas': pa.array([Decimal(-1), Decimal('9' * 38), None], pa.decimal128(38, 0)),
        'price': pa.array([Decimal('-0.0000000001'), Decimal('9' * 28 + '.' + '9' * 10), None], pa.decimal128(38, 10)),
        'wide': pa.array([-wide, Decimal(2**250), None], pa.decimal256(76, 0)),
        'wide price': pa.array([Decimal('-1E-7'), Decimal('9' * 60 + '.1234567'), None], pa.decimal256(76, 7)),
        'day': pa.array([-719_162, 2_932_896, None], pa.int32()).cast(pa.date32()),
        'ms day': pa.array([0, 86_400_000, None], pa.int64()).cast(pa.date64()),
        'clock': pa.array([0, 86_399_999_999_000, None], pa.int64()).cast(pa.time64('ns')),
        'when ns': pa.array([0, 1_693_000_000_123_456_000, None], pa.int64()).cast(pa.timestamp('ns', 'UTC')),
        'when us': pa.array([-62_135_596_800_000_000, 253_402_300_800_000_000, None], pa.int64()).cast(
            pa.timestamp('us', 'UTC')
        ),
        'naive': pa.array([-1, 1_693_000_000, None], pa.int64()).cast(pa.timestamp('s')),
        'lasts': pa.array([timedelta(0), timedelta(days=3, microseconds=-1), None], pa.duration('us')),
        'hashes': pa.array([[], [b'\x01' * 32, b'\xff' * 32], None], pa.list_(pa.binary(32))),
        'u64s': pa.array([[], [0, 2**64 - 1, None], None], pa.list_(pa.uint64())),
        'texts': pa.array([[''], ['a"b,{}\\', 'NULL', None], None], pa.list_(pa.string())),
        'pair': pa.array([[1, 2], [3, 4], None], pa.list_(pa.int32(), 2)),
        'nothing': pa.nulls(3),
    }


def test_every_type_comes_back_equal(db):
    columns = extremes()
    table = pa.table(columns)
    for part in (table, table.slice(1), table.slice(2)):
        result = db.load_table(part, 'types', mode='overwrite')
        assert result.success, result.error
        back = db.scan('types').read_all()
        for name, column in columns.items():
            assert plainly(back[name]).to_pylist() == plainly(column).to_pylist()[3 - len(part) :], name


def plainly(column: Any) -> Any:
    """A column whose Python values are those that PostgreSQL's types give; microseconds where Python's end too soon."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp('us', kind.tz)).cast(pa.int64())
    if pa.types.is_unsigned_integer(kind) and kind.bit_width == 64:
        return column.cast(pa.decimal128(20, 0))
    if pa.types.is_list(kind) and kind.value_type == pa.uint64():
        return column.cast(pa.list_(pa.decimal128(20, 0)))
    if pa.types.is_time(kind):
        return column.cast(pa.time64('us'))
    return column


def test_columns_have_the_types_of_the_documentation(db):
    wanted = {
        'u64': 'numeric(20,0)',
        'u32': 'bigint',
        'u16': 'integer',
        'u8': 'smallint',
        'i8': 'smallint',
        'f16': 'real',
        'address': 'bytea',
        'gas': 'numeric(38,0)',
        'wide price': 'numeric(76,7)',
        'when ns': 'timestamp with time zone',
        'naive': 'timestamp without time zone',
        'hashes': 'bytea[]',
        'u64s': 'numeric(20,0)[]',
        'pair': 'integer[]',
    }
    assert db.load_table(pa.table(extremes()), 'types').success
    found = db.columns('types')
    assert {name: found[name] for name in wanted} == wanted


def test_nested_columns_are_jsonb(db):
    key = pa.struct([('address', pa.binary(20)), ('keys', pa.list_(pa.binary(32))), ('n', pa.uint64())])
    table = pa.table(
        {
            'list': pa.array(
                [[{'address': b'\x02' * 20, 'keys': [b'\x03' * 32], 'n': 2**64 - 1}, None], [], None], pa.list_(key)
            ),
            'struct': pa.array([{'address': None, 'keys': [], 'n': 0}, None, None], key),
            'map': pa.array([[('a "quoted"\n', 1)], [], None], pa.map_(pa.string(), pa.int32())),
            'lists': pa.array([[[1], [2, 3], None], [], None], pa.list_(pa.list_(pa.int64()))),
        }
    )
    result = db.load_table(table, 'nested')
    assert result.success, result.error
    assert set(db.columns('nested').values()) == {'jsonb'}
    entry = {'address': '0x' + '02' * 20, 'keys': ['0x' + '03' * 32], 'n': 2**64 - 1}
    back = db.scan('nested').read_all()
    assert [json.loads(v) if v else None for v in back['list'].to_pylist()] == [[entry, None], [], None]
    assert json.loads(back['struct'][0].as_py()) == {'address': None, 'keys': [], 'n': 0}
    assert back['struct'].null_count == 2
    assert json.loads(back['map'][0].as_py()) == [{'key': 'a "quoted"\n', 'value': 1}]
    assert json.loads(back['lists'][0].as_py()) == [[1], [2, 3], None]


def test_the_widest_numbers_are_numeric_of_78_digits_where_that_is_wished(db):
    texts = [str(2**256 - 1), str(1 - 2**256), '0', None]
    numbers = [Decimal(2**250), Decimal(1 - 10**76), Decimal(0), None]
    table = pa.table({'value': texts, 'wide': pa.array(numbers, pa.decimal256(76, 0))})
    wishes = {'value': 'decimal', 'wide': 'decimal'}
    for _ in range(2):
        result = db.load_table(table, 't', column_types=wishes)
        assert result.success, result.error
    assert set(db.columns('t').values()) == {'numeric(78,0)'}
    assert db.run(f'SELECT DISTINCT value, wide FROM {db.quoted("t")} ORDER BY value') == [
        (Decimal(1 - 2**256), numbers[1]),
        (Decimal(0), Decimal(0)),
        (Decimal(2**256 - 1), numbers[0]),
        (None, None),
    ]
    assert db.run(f'SELECT max(value) + 1 = 2::numeric ^ 256 FROM {db.quoted("t")}') == [(True,)]
    refused = db.load_table(table.set_column(0, 'value', pa.array(['1' + '0' * 78] * 4)), 't', column_types=wishes)
    assert '22003' in refused.error
    assert 'too large for its column' in refused.error


def test_real_amp_tables_land_exactly(db, amp_test_data):
    if amp_test_data is None:
        table = pa.table(extremes())
        files = {'made': table}
    else:
        files = {str(p): pq.read_table(p) for p in sorted((amp_test_data / 'amp-parquet').glob('*/*.parquet'))}
    for name, table in files.items():
        short = name[-60:]
        result = db.load_table(table, short)
        assert result.success, result.error
        back = db.scan(short).read_all()
        assert back.num_rows == table.num_rows
        for field in table.schema:
            if not (pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)):
                assert plainly(back[field.name]).to_pylist() == plainly(table[field.name]).to_pylist(), field.name


@pytest.mark.parametrize(
    ('column', 'told'),
    [
        (pa.array([1], pa.timestamp('ns', 'UTC')), 'below a microsecond'),
        (pa.array([[1]], pa.list_(pa.timestamp('ns'))), 'below a microsecond'),
        (pa.array(['a\x00b']), 'NUL'),
        (pa.array(['fine', 'a\x00b']).slice(1), 'NUL'),
        (pa.array([['a\x00b']]), 'NUL'),
        (pa.array([[{'x': 'a\x00b'}]]), 'NUL'),
        (pa.array([-(2**62)], pa.int64()).cast(pa.timestamp('us')), '4713 BC'),
        (pa.array([-(2**31)], pa.int32()).cast(pa.date32()), 'date'),
        (pa.array([None], pa.month_day_nano_interval()), 'month_day_nano_interval'),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_column_and_nothing_stays(db, column, told):
    table = pa.table({'fine': pa.array([1], pa.int64()), 'the odd one': column})
    result = db.load_table(table, 'refused')
    assert not result.success
    assert "'the odd one'" in result.error
    assert told in result.error
    assert not db.table_exists('refused')


def test_rows_fit_the_types_that_a_table_already_has_or_are_refused(db):
    table = db.quoted('made')
    db.run(
        f'CREATE TABLE {table} (big numeric(78,0), small bigint, wide double precision, doc jsonb, name varchar(5), n int)'
    )
    good = pa.table(
        {
            'name': ['abc'],
            'doc': ['{"a": [1, 2]}'],
            'big': [str(2**256 - 1)],
            'small': pa.array([7], pa.int32()),
            'wide': pa.array([0.5], pa.float32()),
        }
    )
    result = db.load_table(good, 'made')
    assert result.success, result.error
    assert rows(db, 'made') == [(Decimal(2**256 - 1), 7, 0.5, {'a': [1, 2]}, 'abc', None)]
    refusals = [
        ('small', pa.array([1.5]), 'double'),
        ('small', pa.array([2**63], pa.uint64()), 'small'),
        ('n', pa.array([2**31], pa.int64()), "'n'"),
        ('wide', pa.array([1], pa.int64()), 'wide'),
        ('name', pa.array([b'abc']), 'name'),
        ('big', pa.array(['1.5']), 'big'),
        ('name', pa.array(['longer than five']), '22001'),
        ('doc', pa.array(['{not json']), '22P02'),
        ('more', pa.array([1]), 'lacks: more int64'),
    ]
    for column, values, told in refusals:
        result = db.load_table(pa.table({column: values}), 'made')
        assert not result.success
        assert told in result.error
    assert len(rows(db, 'made')) == 1


# Names, tables, modes


def test_hostile_names_touch_nothing_else(db):
    db.load_table(pa.table({'x': [1]}), 'innocent')
    hostile = ('x"; drop table innocent; --', "quote's", 'ünï cødé', 'select', 'a.b', '100%s', '$1', '{t} {m}')
    for name in hostile:
        table = pa.table(
            {'from': [1], 'to': [2], 'camelCase': [3], 'with "quotes"': [4], 'a b': [5], '100%': [6], '$1': [7]}
        )
        result = db.load_table(table, name)
        assert result.success, result.error
        assert db.scan(name).read_all().to_pydict() == table.to_pydict()
        info = db.get_table_info(name)
        assert info['row_count'] == 1
        assert info['columns'] == table.schema.names
        assert info['size_bytes'] > 0
        stream(db, response(eth(0, 9, '0xa'), 1), table=name + ' streamed')
        stream(db, ResponseBatch.reorg_batch([eth(0, 9, '0xb')]), table=name + ' streamed')
        assert numbers(db, name + ' streamed') == []
    assert rows(db, 'innocent') == [(1,)]
    assert len(db.list_streams()) == len(hostile)
    assert db.get_table_info('no such table') is None


def test_a_name_that_would_be_cut_short_is_refused(db):
    result = db.load_table(pa.table({'x': [1]}), 'x' * 64)
    assert 'longer than 63 bytes' in result.error
    result = db.load_table(pa.table({'ü' * 32: [1]}), 'fine')
    assert 'longer than 63 bytes' in result.error


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
    assert db.load_table(pa.table({'x': pa.array([], pa.int64())}), 't').rows_loaded == 0
    assert db.load_batch(good, 't').success


def test_upsert_replaces_by_key_and_the_last_of_equals_counts(db):
    keys = {'mode': 'upsert', 'key_columns': ['k']}
    db.load_table(pa.table({'k': [1, 2, 3, None], 'v': ['a', 'b', 'c', 'n']}), 't')
    result = db.load_table(pa.table({'k': [2, 4, 4], 'v': ['B', 'd', 'D']}), 't', **keys)
    assert result.success, result.error
    result = db.load_table(pa.table({'v': ['N', 'C'], 'k': pa.array([None, 3], pa.int64())}), 't', **keys)
    assert result.success, result.error
    found = db.run(f'SELECT k, v FROM {db.quoted("t")} ORDER BY k NULLS LAST')
    assert found == [(1, 'a'), (2, 'B'), (3, 'C'), (4, 'D'), (None, 'N')]
    assert 'nope' in db.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='upsert', key_columns=['nope']).error
    assert 'key_columns' in db.load_table(pa.table({'k': [1], 'v': ['x']}), 't', mode='merge').error


def test_a_table_dropped_behind_our_back_is_one_sentence_and_then_made_again(db):
    table = pa.table({'x': [1]})
    assert db.load_table(table, 't').success
    db.run(f'DROP TABLE {db.quoted("t")}')
    assert 'does not exist' in db.load_table(table, 't').error
    assert db.load_table(table, 't').success


def test_an_idle_connection_that_the_server_closed_is_opened_again(db, own_schema):
    table = pa.table({'x': [1]})
    assert db.load_table(table, 't').success
    terminate_all(own_schema)
    assert db.load_table(table, 't').success
    assert len(rows(db, 't')) == 2


# Connecting


@pytest.mark.parametrize(
    ('change', 'told', 'retryable'),
    [
        ({'password': 'wrong-and-secret'}, 'password authentication failed', False),
        ({'database': 'no_such_database'}, 'database "no_such_database" does not exist', False),
        ({'password': None}, 'asks for a password', False),
        ({'sslmode': 'sideways'}, 'sslmode', False),
        ({'host': 'no-such-host.invalid'}, 'no-such-host.invalid', True),
        ({'port': None}, 'cannot be reached', True),
    ],
)
def test_what_keeps_it_from_connecting_is_one_sentence_without_the_password(
    postgresql_test_config, change, told, retryable, monkeypatch
):
    monkeypatch.delenv('PGPASSWORD', raising=False)
    change = {'port': free_port()} if change == {'port': None} else change
    if postgresql_test_config['password'] is None and 'password' in change:
        pytest.skip('this server asks for no password')
    config = {**postgresql_test_config, 'connect_timeout': 5, **change}
    with pytest.raises(DestinationError) as caught:
        PostgreSQLLoader(config).connect()
    text = str(caught.value)
    assert told in text
    assert '\n' not in text
    assert 'wrong-and-secret' not in text
    assert 'server-side-secret' not in text
    assert caught.value.retryable is retryable


def test_variables_name_the_server_that_the_tests_use(monkeypatch):
    with start_postgres() as other:
        variables = {'host': 'HOST', 'port': 'PORT', 'database': 'DB', 'user': 'USER', 'password': 'PASSWORD'}
        for key, variable in variables.items():
            monkeypatch.setenv(f'POSTGRES_{variable}', str(other[key]))
        with postgresql_config() as named, PostgreSQLLoader(named) as loader:
            assert named == other
            assert loader.run('SHOW port') == [(str(other['port']),)]


def test_configuration_is_checked_by_name_and_hides_the_password():
    with pytest.raises(ConfigError, match="needs the configuration key 'host'"):
        PostgreSQLLoader({'database': 'x'})
    with pytest.raises(ConfigError, match="unknown configuration key 'hots'"):
        PostgreSQLLoader({'host': 'h', 'database': 'd', 'hots': 'x'})
    loader = PostgreSQLLoader({'url': 'postgresql://me:hidden@db.example:5433/chain?schema=raw&sslmode=require'})
    assert loader.config == PostgreSQLConfig(
        host='db.example', database='chain', port=5433, user='me', password='hidden', schema='raw', sslmode='require'
    )
    assert 'hidden' not in repr(loader.config)
    assert loader.guarantee == 'exactly-once'


def test_metadata_tell_where_rows_went_and_no_secret(db):
    config = db.config
    wanted = {'host': config.host, 'database': config.database, 'schema': config.schema, 'connection_pool_size': 10}
    for result in (
        db.load_table(pa.table({'x': [1]}), 't'),
        db.load_batch(pa.record_batch({'x': [1]}), 't'),
    ):
        assert {key: result.metadata[key] for key in wanted} == wanted
        assert not {'user', 'password'} & set(result.metadata)


def test_a_missing_privilege_is_one_sentence(own_schema, db):
    user = f'reader_{uuid.uuid4().hex[:8]}'
    db.load_table(pa.table({'x': [1]}), 't')
    db.run(f"CREATE ROLE {user} LOGIN PASSWORD 'reader-secret'")
    try:
        db.run(f'GRANT USAGE ON SCHEMA {quote(own_schema["schema"])} TO {user}')
        with PostgreSQLLoader({**own_schema, 'user': user, 'password': 'reader-secret'}) as reader:
            result = reader.load_table(pa.table({'x': [2]}), 't')
        assert not result.success
        assert 'permission denied' in result.error
        assert '42501' in result.error
    finally:
        db.run(f'DROP OWNED BY {user}')
        db.run(f'DROP ROLE {user}')


def test_no_more_connections_than_allowed(own_schema):
    with PostgreSQLLoader({**own_schema, 'max_connections': 1, 'connect_timeout': 1}) as loader:
        assert loader.load_table(pa.table({'x': [1]}), 't').success
        with pytest.raises(DestinationError, match='all 1 connections') as caught:
            loader.scan('t').read_all()
        assert caught.value.retryable


# Streams


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


def test_a_streamed_table_has_its_index_for_undo_and_a_loaded_one_gets_it(db):
    db.load_table(pa.table({'block_num': pa.array([99], pa.int64()), 'tx_hash': ['plain']}), 'loaded')
    for table in ('t', 'loaded'):
        stream(db, response(eth(0, 9, '0xa'), 1), table=table)
        found = db.run(
            'SELECT indexdef FROM pg_indexes WHERE schemaname = $1 AND tablename = $2', (db.config.schema, table)
        )
        assert ['USING brin (_amp_tx_id)' in definition for (definition,) in found] == [True]
    stream(db, ResponseBatch.reorg_batch([eth(0, 9, '0xb')]), table='loaded')
    assert numbers(db, 'loaded') == [99], 'rows of no stream stay'


def test_what_the_index_for_undo_could_not_learn_during_a_vacuum_it_learns_with_the_next_unit(
    own_schema, db, monkeypatch
):
    monkeypatch.setattr('amp.loaders.implementations.postgresql_loader._SUMMARIZE_ROWS', 40_000)
    stream(db, response(eth(0, 9, '0xa'), 1))
    with psycopg.connect(**dsn(own_schema)) as vacuum:
        vacuum.execute(f'LOCK TABLE {db.quoted("t")} IN SHARE UPDATE EXCLUSIVE MODE')
        stream(db, response(eth(10, 19, '0xb', '0xa'), *range(40_000)))
    stream(db, response(eth(20, 29, '0xc', '0xb'), 21))
    [(pages,)] = db.run(
        "SELECT pg_relation_size(to_regclass($1)) / current_setting('block_size')::int", (db.quoted('t'),)
    )
    assert pages > 2 * 128, 'the index has a summary for every 128 pages'
    index = f'{quote(db.config.schema)}.{quote("t__amp_tx_id_idx")}'
    assert db.run('SELECT brin_summarize_new_values(to_regclass($1))', (index,)) == [(0,)]


def test_upsert_in_a_stream_gives_back_what_it_replaced(db):
    def keyed(block_range, key, value):
        batch = pa.record_batch({'k': [key], 'v': [value]})
        return ResponseBatch.data_batch(batch, response(block_range).metadata)

    upsert = {'mode': 'upsert', 'key_columns': ['k'], 'table': 'a table with a name of more than fifty-one bytes ....'}
    table = upsert['table']
    db.load_table(pa.table({'k': [7], 'v': ['plain']}), table)
    stream(db, keyed(eth(0, 0, '0xa'), 1, 'old'), keyed(eth(1, 1, '0xb', '0xa'), 1, 'new'), **upsert)
    stream(db, keyed(eth(2, 2, '0xc', '0xb'), 7, 'streamed'), **upsert)

    def now():
        return dict(db.run(f'SELECT k, v FROM {db.quoted(table)}'))

    assert now() == {1: 'new', 7: 'streamed'}
    stream(db, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), **upsert)
    assert now() == {1: 'new', 7: 'plain'}
    stream(db, ResponseBatch.reorg_batch([eth(1, 1, '0xd')]), **upsert)
    assert now() == {1: 'old', 7: 'plain'}
    stream(db, ResponseBatch.reorg_batch([eth(0, 0, '0xd')]), **upsert)
    assert now() == {7: 'plain'}
    stream(db, keyed(eth(0, 0, '0xa'), 1, 'old'), **upsert)
    indexes = db.run(
        'SELECT count(*) FROM pg_indexes WHERE schemaname = $1 AND tablename = $2', (db.config.schema, table)
    )
    assert indexes == [(2,)], 'one for undo, one for the keys'


def test_nothing_of_an_open_unit_is_seen_and_nothing_stays_of_one_rolled_back(db, own_schema):
    responses = [response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11, complete=False)]
    seen = []

    def given():
        yield responses[0]
        yield responses[1]
        seen.append(numbers(db))
        raise ProtocolError('the source broke')

    with pytest.raises(ProtocolError):
        list(db.load_stream_continuous(given(), 't'))
    assert seen == [[1]]
    assert numbers(db) == [1]
    assert wait_for_no_backend_but_idle(own_schema) == []


def test_two_loaders_on_one_stream_the_newer_wins_and_the_older_is_told_who(own_schema, db):
    older = db.load_stream_continuous(iter(THREE), 't')
    next(older)
    with PostgreSQLLoader(own_schema) as other:
        taken = other.open_stream(StreamKey('t', 't'), Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
        assert taken.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}
        with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 2'):
            next(older)
        assert numbers(other) == [1, 9]


def test_an_older_writer_inside_a_unit_holds_nobody_up_and_does_not_come_back(own_schema, db):
    stream(db, THREE[0], THREE[1])
    # The older one has undone a microbatch (it holds those rows) and is in the middle of writing.
    unfinished = response(eth(10, 30, '0xx', '0xa'), 12, complete=False)
    at_work, go_on = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    class Paused(Asked):
        def get(self, timeout=None):
            got = super().get(timeout)
            if got is END:
                at_work.set()
                go_on.wait(120)
                return response(eth(10, 30, '0xx', '0xa'), 13)
            return got

    def run_older():
        settings = StreamSettings(
            strict=False,
            retry=RetryConfig(max_retries=None, initial_backoff_ms=10, max_backoff_ms=100),
            retry_seconds=120,
        )
        job = StreamJob(StreamKey('t', 't'))
        with PostgreSQLLoader(own_schema) as loader:
            try:
                for _ in StreamEngine(loader, job, Paused([unfinished]).connect, settings).run():
                    pass
            except BaseException as error:
                failures.append(error)

    thread = threading.Thread(target=run_older)
    thread.start()
    try:
        assert at_work.wait(60)
        stream(db, response(eth(10, 19, '0xy', '0xa'), 15))
        assert numbers(db) == [1, 9, 15]
    finally:
        go_on.set()
        thread.join(120)
    assert [type(f) for f in failures] == [StaleEpochError]
    assert numbers(db) == [1, 9, 15]


def test_two_new_streams_at_once_get_numbers_of_their_own(own_schema):
    names = [f's{i}' for i in range(8)]
    barrier = threading.Barrier(len(names))
    states, failures = {}, []

    def take(name):
        try:
            with PostgreSQLLoader(own_schema) as loader:
                barrier.wait(120)
                loader.prepare_table(THREE[0].data.schema, 't', create_table=True)
                states[name] = loader.open_stream(StreamKey('t', name), Claim.now())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=take, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert sorted(state.number for state in states.values()) == list(range(1, 9))


def test_a_commit_that_another_transaction_holds_up_is_waited_for_and_then_transient(own_schema, db):
    stream(db, THREE[0])
    with PostgreSQLLoader({**own_schema, 'lock_timeout': 1}) as waiting, psycopg.connect(**dsn(own_schema)) as holder:
        holder.execute(f'UPDATE {db.quoted("_amp_streams")} SET owner = owner')
        with pytest.raises(DestinationError, match='55P03') as caught:
            waiting.open_stream(StreamKey('t', 't'), Claim.now())
        assert caught.value.retryable
        holder.rollback()
        assert waiting.open_stream(StreamKey('t', 't'), Claim.now()).epoch == 2


# Broken connections


def dsn(config) -> dict[str, Any]:
    return {
        'host': config['host'],
        'port': config['port'],
        'dbname': config['database'],
        'user': config['user'],
        'password': config['password'],
    }


def terminate_all(config, units_only: bool = False) -> None:
    """Kill the sessions of loaders; of those only that write when asked."""
    with psycopg.connect(**dsn(config), autocommit=True) as killer:
        only = "AND state <> 'idle'" if units_only else ''
        killed = killer.execute(
            f'SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = %s {only}',
            (config['application_name'],),
        ).fetchone()
        assert killed[0] > 0


def wait_for_no_backend_but_idle(config) -> list[Any]:
    """Sessions of loaders that are still in a transaction after half a minute."""
    with psycopg.connect(**dsn(config), autocommit=True) as watcher:
        for _ in range(600):
            busy = watcher.execute(
                "SELECT state, query FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'",
                (config['application_name'],),
            ).fetchall()
            if not busy:
                return []
            watcher.execute('SELECT pg_sleep(0.05)')
        return busy


@pytest.mark.parametrize('point', ['unit.begun', 'unit.after_data', 'commit.before_state', 'commit.before'])
@pytest.mark.parametrize('units_only', [True, False])
def test_a_session_killed_in_a_unit_is_tried_again_and_the_rows_are_there_once(
    own_schema, db, monkeypatch, point, units_only
):
    monkeypatch.setattr(points, 'hook', At(point, lambda: terminate_all(own_schema, units_only), nth=2))
    results = follow(db, THREE)
    assert [r.rows_loaded for r in results] == [2, 2, 2]
    assert numbers(db) == ALL_OF_THREE


def test_a_killed_session_without_a_second_try_fails_and_leaves_nothing(own_schema, db, monkeypatch):
    monkeypatch.setattr(points, 'hook', At('unit.after_data', lambda: terminate_all(own_schema, True)))
    with pytest.raises(DestinationError) as caught:
        list(
            StreamEngine(
                db, StreamJob(StreamKey('t', 't')), Asked(THREE).connect, StreamSettings(retry_seconds=0, strict=False)
            ).run()
        )
    assert caught.value.retryable
    monkeypatch.setattr(points, 'hook', None)
    assert numbers(db) == []
    follow(db, THREE)
    assert numbers(db) == ALL_OF_THREE


# Other transactions, and a full disk


def failure_of(loader, responses: list[ResponseBatch]) -> DestinationError:
    """How a stream that is not tried again ends."""
    settings = StreamSettings(retry_seconds=0, strict=False)
    with pytest.raises(DestinationError) as caught:
        list(StreamEngine(loader, StreamJob(StreamKey('t', 't')), Asked(responses).connect, settings).run())
    assert '\n' not in str(caught.value)
    assert str(loader.config.password) not in f'{caught.value!r} {caught.value} {caught.value.context}'
    return caught.value


class Rival:
    """Another session that holds the stream's row, and then wants the table that the unit writes: a deadlock."""

    def __init__(self, config: dict[str, Any], db: PostgreSQLLoader) -> None:
        # The loader's session is the one that finds out, and is ended.
        self._session = psycopg.connect(**dsn(config), options='-c deadlock_timeout=60s')
        self._watcher = psycopg.connect(**dsn(config), autocommit=True)
        self._streams, self._table = db.quoted('_amp_streams'), db.quoted('t')
        self._thread = threading.Thread(target=self._take)

    def _take(self) -> None:
        self._session.execute(f'LOCK TABLE {self._table} IN ACCESS EXCLUSIVE MODE')
        self._session.rollback()

    def __call__(self) -> None:
        self._session.execute(f'UPDATE {self._streams} SET owner = owner')
        self._thread.start()
        waiting = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        for _ in range(600):
            if self._watcher.execute(waiting, (self._session.info.backend_pid,)).fetchone() == (True,):
                return
            self._watcher.execute('SELECT pg_sleep(0.05)')
        raise AssertionError('the other session does not wait')

    def end(self) -> None:
        self._thread.join(120)
        self._session.close()
        self._watcher.close()


@pytest.mark.parametrize('is_retried', [False, True])
def test_a_deadlock_is_tried_again(own_schema, db, monkeypatch, is_retried):
    stream(db, THREE[0])
    rival = Rival(own_schema, db)
    monkeypatch.setattr(points, 'hook', At('commit.before_state', rival))
    if not is_retried:
        failed = failure_of(db, THREE)
        assert failed.retryable
        assert failed.context['sqlstate'] == '40P01'
        assert numbers(db) == [1, 9]
    follow(db, THREE)
    rival.end()
    assert numbers(db) == ALL_OF_THREE


@pytest.mark.parametrize('is_retried', [False, True])
def test_a_serialization_failure_is_tried_again(own_schema, db, monkeypatch, is_retried):
    """Where an administrator has made transactions stricter than PostgreSQL's own default."""
    role = f'strict_{uuid.uuid4().hex[:8]}'
    db.run(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'strict-secret'")
    db.run(f"ALTER ROLE {role} SET default_transaction_isolation TO 'serializable'")
    stream(db, THREE[0])

    def change_the_row() -> None:
        with psycopg.connect(**dsn(own_schema), autocommit=True) as other:
            other.execute(f'UPDATE {db.quoted("_amp_streams")} SET owner = owner')

    try:
        with PostgreSQLLoader({**own_schema, 'user': role, 'password': 'strict-secret'}) as strict:
            monkeypatch.setattr(points, 'hook', At('commit.before_state', change_the_row))
            if not is_retried:
                failed = failure_of(strict, THREE)
                assert failed.retryable
                assert failed.context['sqlstate'] == '40001'
                assert numbers(db) == [1, 9]
            follow(strict, THREE)
        assert numbers(db) == ALL_OF_THREE
    finally:
        db.run(f'DROP OWNED BY {role}')
        db.run(f'DROP ROLE {role}')


def test_a_full_disk_is_permanent_until_there_is_room(db):
    if 'POSTGRES_HOST' in os.environ:
        pytest.skip('the disk of that server is not here')
    space = f'small_{uuid.uuid4().hex[:8]}'
    big = response(eth(10, 39, '0xd', '0xa'), *range(100_000))
    folder = Path(tempfile.mkdtemp(prefix='amp-small-disk-'))
    with small_disk(folder, 4):
        folder.chmod(0o755)
        (folder / 'data').mkdir()
        shutil.chown(folder / 'data', Path(db.run('SHOW data_directory')[0][0]).owner())
        db.run(f"CREATE TABLESPACE {space} LOCATION '{folder / 'data'}'")
        try:
            stream(db, THREE[0])
            db.run(f'ALTER TABLE {db.quoted("t")} SET TABLESPACE {space}')
            failed = failure_of(db, [THREE[0], big])
            assert not failed.retryable
            assert failed.context['sqlstate'] == '53100'
            assert 'the disk of the server is full' in str(failed)
            assert '53100' in db.load_table(pa.table({'block_num': range(100_000)}), 't').error
            assert numbers(db) == [1, 9]
            make_room(folder, 64)
            follow(db, [THREE[0], big])
            assert len(numbers(db)) == 100_002
        finally:
            db.run(f'DROP TABLE {db.quoted("t")}')
            db.run(f'DROP TABLESPACE {space}')
    folder.rmdir()


@pytest.fixture
def proxied(own_schema):
    host, port = own_schema['host'], own_schema['port']
    with TcpProxy(f'{host}/.s.PGSQL.{port}' if host.startswith('/') else host, port) as proxy:
        config = {**own_schema, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}
        with PostgreSQLLoader(config) as loader:
            yield loader, proxy


@pytest.mark.parametrize('nth', [1, 2, 3])
def test_a_commit_whose_answer_is_lost_is_read_back_and_not_repeated(proxied, db, monkeypatch, nth):
    loader, proxy = proxied
    monkeypatch.setattr(points, 'hook', At('commit.before', lambda: proxy.lose_reply_to(b'COMMIT'), nth=nth))
    results = follow(loader, THREE)
    assert proxy.cuts == 1
    assert [r.rows_loaded for r in results] == [2, 2, 2], 'the commit is reported, though its answer never came'
    assert numbers(db) == ALL_OF_THREE


def test_a_reorg_whose_answer_is_lost_is_undone_once(proxied, db, monkeypatch):
    loader, proxy = proxied
    follow(loader, THREE)
    monkeypatch.setattr(points, 'hook', At('commit.before', lambda: proxy.lose_reply_to(b'COMMIT')))
    follow(loader, [response(eth(20, 39, '0xd', '0xb'), 22, 33)])
    assert proxy.cuts == 1
    assert numbers(db) == [1, 9, 11, 19, 22, 33]


@pytest.mark.parametrize('sent', [1, 300, 1_000, 5_000, 100_000])
def test_a_connection_cut_anywhere_in_a_unit_is_tried_again(proxied, db, monkeypatch, sent):
    loader, proxy = proxied
    big = response(eth(30, 39, '0xd', '0xc'), *([35] * 30_000))
    monkeypatch.setattr(points, 'hook', At('unit.begin', lambda: proxy.cut_after(sent), nth=2))
    follow(loader, [*THREE, big])
    assert proxy.cuts == 1
    assert numbers(db) == [*ALL_OF_THREE, *([35] * 30_000)]


def test_a_server_that_is_away_for_a_while_is_waited_for(proxied, db, monkeypatch):
    loader, proxy = proxied

    def come_back_when_missed():
        wait_until(lambda: proxy.done['refused'] > 1)
        proxy.refuse(False)

    back = threading.Thread(target=come_back_when_missed)

    def go_away():
        proxy.refuse()
        proxy.cut()
        back.start()

    monkeypatch.setattr(points, 'hook', At('unit.after_data', go_away, nth=2))
    follow(loader, THREE)
    back.join()
    assert numbers(db) == ALL_OF_THREE
