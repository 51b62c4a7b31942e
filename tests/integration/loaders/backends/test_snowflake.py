"""The Snowflake destination, against an account or against fakesnow (see tests/support/snowflake.py)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from snowflake.connector.errors import DatabaseError, OperationalError, ProgrammingError

from amp.errors import AmpError, ConfigError, DestinationError, LoadError, ProtocolError, SchemaError, StaleEpochError
from amp.loaders import points
from amp.loaders.implementations.snowflake_loader import SnowflakeLoader, SnowflakeStreamStateStore
from amp.loaders.snowflake import connect as snowflake_connect
from amp.loaders.snowflake.connect import is_transient
from amp.loaders.snowflake.state import TABLE
from amp.loaders.snowflake.types import name_out, quoted
from amp.loaders.snowflake.unit import MARK, MARKED_AT
from amp.loaders.stream import StreamEngine, StreamSettings
from amp.loaders.unit import Claim, StreamJob
from amp.streaming import ResponseBatch
from amp.streaming.iterator import END
from amp.streaming.ledger import StreamKey, StreamState
from amp.streaming.types import BatchIdentifier
from tests.integration.loaders.conftest import LoaderTestConfig
from tests.integration.loaders.test_base_loader import BaseLoaderTests
from tests.integration.loaders.test_base_streaming import BaseStreamingTests, eth, response
from tests.integration.loaders.test_base_types import ROW, BaseTypeTests, values
from tests.support.ports import free_port
from tests.support.snowflake import is_real, snowflake_config
from tests.support.snowpipe import snowpipe
from tests.support.type_extremes import other_columns

pytestmark = [pytest.mark.integration, pytest.mark.snowflake]


class SnowflakeTestConfig(LoaderTestConfig):
    loader_class = SnowflakeLoader
    config_fixture_name = 'snowflake_test_config'

    def get_row_count(self, loader, table_name):
        [(count,)] = loader.own.run(f'SELECT COUNT(*) FROM {quoted(table_name)}')
        return count

    def query_rows(self, loader, table_name, where=None, order_by=None) -> list[dict[str, Any]]:
        sql = f'SELECT * FROM {quoted(table_name)}'
        sql += f' WHERE {where}' if where else ''
        sql += f' ORDER BY {order_by}' if order_by else ''
        names = [name_out(name) for name in loader.columns(table_name)]
        return [dict(zip(names, row, strict=True)) for row in loader.own.run(sql)]

    def cleanup_table(self, loader, table_name):
        loader.own.run(f'DROP VIEW IF EXISTS {quoted(f"{table_name}_current")}')
        loader.own.run(f'DROP TABLE IF EXISTS {quoted(table_name)}')

    def get_column_names(self, loader, table_name):
        return [name_out(name) for name in loader.columns(table_name)]


@pytest.fixture(scope='session')
def snowflake_insert_config(snowflake_test_config):
    return {**snowflake_test_config, 'loading_method': 'insert'}


@pytest.fixture(scope='session')
def snowflake_pandas_config(snowflake_test_config):
    return {**snowflake_test_config, 'loading_method': 'pandas'}


@pytest.fixture(scope='session')
def snowflake_channel_config(snowflake_test_config):
    if is_real():
        yield {**snowflake_test_config, 'loading_method': 'snowpipe_streaming'}
        return
    with snowpipe(snowflake_test_config) as server:
        channel = {'loading_method': 'snowpipe_streaming', 'streaming_url': server.url, 'token': 'a-token'}
        yield {**snowflake_test_config, **channel, 'authenticator': 'snowflake'}


class InsertTestConfig(SnowflakeTestConfig):
    config_fixture_name = 'snowflake_insert_config'


class PandasTestConfig(SnowflakeTestConfig):
    config_fixture_name = 'snowflake_pandas_config'


class ChannelTestConfig(SnowflakeTestConfig):
    config_fixture_name = 'snowflake_channel_config'


class TestSnowflakeLoader(BaseLoaderTests):
    config = SnowflakeTestConfig()


class TestSnowflakeInsertLoader(BaseLoaderTests):
    config = InsertTestConfig()


class TestSnowflakePandasLoader(BaseLoaderTests):
    config = PandasTestConfig()


class TestSnowflakeChannelLoader(BaseLoaderTests):
    config = ChannelTestConfig()


class TestSnowflakeStreaming(BaseStreamingTests):
    config = SnowflakeTestConfig()


class TestSnowflakeInsertStreaming(BaseStreamingTests):
    config = InsertTestConfig()


class TestSnowflakePandasStreaming(BaseStreamingTests):
    config = PandasTestConfig()


class TestSnowflakeChannelStreaming(BaseStreamingTests):
    config = ChannelTestConfig()


# The stand-in keeps microseconds; what is handed over is checked in tests/unit/test_snowflake_types.py.
_BELOW_MICROSECONDS = set() if is_real() else {'time ns', 'naive ns', 'zoned ns'}


class TestSnowflakeTypes(BaseTypeTests):
    config = SnowflakeTestConfig()

    @pytest.mark.parametrize('name', [name for name in other_columns() if name not in _BELOW_MICROSECONDS])
    def test_another_type_lands_exactly_or_is_refused_by_name(self, db, test_table_name, cleanup_tables, name):
        super().test_another_type_lands_exactly_or_is_refused_by_name(db, test_table_name, cleanup_tables, name)


@pytest.fixture
def config(snowflake_test_config, tmp_path):
    """A schema of its own; an account has one that was made beforehand."""
    if is_real():
        return dict(snowflake_test_config)
    return {**snowflake_test_config, 'schema': f'OWN_{uuid.uuid4().hex[:12]}'.upper()}


@pytest.fixture
def db(config, table):
    with SnowflakeLoader(config) as loader:
        yield loader
        for name in (f'{table}_current',):
            loader.own.run(f'DROP VIEW IF EXISTS {quoted(name)}')
        for name in (table, f'_amp_before_{table}'):
            loader.own.run(f'DROP TABLE IF EXISTS {quoted(name)}')
        if loader.columns(TABLE):
            loader.own.run(f'DELETE FROM {TABLE} WHERE table_name = ?', (table,))


METHODS = ('stage', 'insert', 'pandas', 'snowpipe_streaming')
CHANNEL_KEYS = ('streaming_url', 'token', 'authenticator')


@pytest.fixture
def channel_of_own(config):
    """What a configuration needs for Snowpipe Streaming into the schema of the test."""
    if is_real():
        yield {key: config.get(key) for key in CHANNEL_KEYS}
        return
    with snowpipe(config) as server:
        yield {'streaming_url': server.url, 'token': 'a-token', 'authenticator': 'snowflake'}


@pytest.fixture
def table():
    return f't_{uuid.uuid4().hex[:12]}'


def stream(loader, table, *responses, **options):
    return list(loader.load_stream_continuous(responses, table, **options))


TWO = [response(eth(0, 9, '0xa'), 1, 9), response(eth(10, 19, '0xb', '0xa'), 11, 19)]


def blocks(loader, table) -> list[int]:
    return sorted(loader.scan(table).read_all()['block_num'].to_pylist())


class Recorded:
    """The driver's connection and cursors; every statement is noted before it goes on its way."""

    def __init__(self, connection: Any, notes: list[str]) -> None:
        self._connection = connection
        self._notes = notes
        self.before: Callable[[str], None] = lambda sql: None
        self.after: Callable[[str], None] = lambda sql: None

    def cursor(self) -> Any:
        cursor = self._connection.cursor()
        execute = cursor.execute

        def noted(sql: str, *args: Any, **kwargs: Any) -> Any:
            self._notes.append(sql)
            self.before(sql)
            result = execute(sql, *args, **kwargs)
            self.after(sql)
            return result

        cursor.execute = noted
        return cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture
def recorded(monkeypatch):
    """Statements of sessions that are opened from now on, by session; `pool` are those of units and uploads."""
    notes: dict[str, list[str]] = {'own': [], 'pool': []}
    connections: list[Recorded] = []
    dial = snowflake_connect.dial

    def recording(config, *, autocommit):
        made = Recorded(dial(config, autocommit=autocommit), notes['own' if autocommit else 'pool'])
        connections.append(made)
        return made

    monkeypatch.setattr(snowflake_connect, 'dial', recording)
    return notes, connections


def kinds(statements: list[str]) -> list[str]:
    return [' '.join(sql.split()[:2]).upper() for sql in statements]


@pytest.mark.parametrize('method', ['stage', 'insert', 'pandas'])
def test_the_statements_of_a_unit_come_in_the_one_order_that_is_atomic(config, table, recorded, method):
    notes, _ = recorded
    with SnowflakeLoader({**config, 'loading_method': method, 'pool_size': 1}) as db:
        stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11, 12))
        notes['own'].clear()
        notes['pool'].clear()
        # It replaces the second range: the undo and the new rows are one unit.
        results = stream(db, table, response(eth(10, 20, '0xc', '0xa'), 12, 20))
        assert [r.is_reorg for r in results] == [True, False]
        assert blocks(db, table) == [1, 12, 20]
        db._clear_table(table)
    assert all(sql.split()[0] in {'DESCRIBE', 'MERGE', 'SELECT', 'SHOW', 'REMOVE', 'DELETE'} for sql in notes['own'])
    taken, unit = split_at_second_begin(notes['pool'])
    assert kinds(taken) == ['BEGIN', 'UPDATE AMP_STREAM_STATE', 'SELECT NUMBER,', 'COMMIT', *STAGING[method]]
    last = [] if method == 'stage' else ['DROP TABLE']
    rows = 'COPY INTO' if method == 'stage' else 'INSERT INTO'
    inside = ['BEGIN NAME', 'SELECT CURRENT_TRANSACTION()', 'DELETE FROM', rows, 'UPDATE AMP_STREAM_STATE', 'COMMIT']
    assert kinds(unit)[: len(inside) + len(last)] == [*inside, *last]
    assert not any(sql.split()[0] in {'CREATE', 'ALTER', 'DROP', 'PUT', 'TRUNCATE'} for sql in unit[: len(inside)])
    assert 'epoch = ?' in unit[4]
    assert 'CURRENT_TRANSACTION()) = ?' in unit[4]


STAGING = {
    'stage': ['PUT'],
    'insert': ['CREATE TEMPORARY', 'INSERT INTO', 'COMMIT'],
    # Its PUT is no statement to the driver's cursor.
    'pandas': ['CREATE TEMPORARY', 'CREATE TEMP', 'COPY INTO', 'COMMIT'],
}


def split_at_second_begin(statements: list[str]) -> tuple[list[str], list[str]]:
    at = next(i for i, sql in enumerate(statements) if sql.startswith('BEGIN NAME'))
    taken = [sql if not sql.startswith('PUT') else 'PUT' for sql in statements[:at]]
    return taken, statements[at:]


def test_files_are_named_by_transaction_ids_and_none_is_left(db, table, recorded):
    notes, _ = recorded
    db.disconnect()
    db.connect()
    stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11))
    [first, second] = [re.search(r'@AMP_STAGE/(\S+)', sql)[1] for sql in notes['pool'] if sql.startswith('PUT')]
    [info] = db.list_streams()
    assert first != second
    for folder in (first, second):
        number, tx_id = re.fullmatch(r'(\d+)/(\d+)-\w+', folder).groups()
        assert int(number) == info.state.number
        assert int(tx_id) in range(info.state.first_id, info.state.first_id + 4)
    assert db.own.run('LIST @AMP_STAGE') == []


def test_rows_that_get_lost_on_the_way_are_no_commit(db, table, recorded):
    _, connections = recorded
    stream(db, table, response(eth(0, 9, '0xa'), 1))
    db.disconnect()
    db.connect()

    def rob(sql: str) -> None:
        if sql.startswith('BEGIN NAME'):
            db.own.run('REMOVE @AMP_STAGE/')

    results = db.load_stream_continuous([response(eth(10, 19, '0xb', '0xa'), 11)], table)
    db.sessions.give(db.sessions.take())
    connections[-1].before = rob
    with pytest.raises(AmpError, match=r'another number of rows|do not continue'):
        list(results)
    assert blocks(db, table) == [1]
    assert db.list_streams()[0].state.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}


@pytest.mark.parametrize('at', ['DELETE FROM', 'COPY INTO', 'UPDATE amp_stream_state SET document', 'COMMIT'])
def test_a_transaction_that_is_ended_from_outside_leaves_nothing(config, table, recorded, at):
    """Also when what comes after it would otherwise be taken for a transaction of its own."""
    _, connections = recorded
    with SnowflakeLoader({**config, 'pool_size': 1}) as db:
        stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11))
        ended: list[int] = []

        def end(sql: str) -> None:
            named = [t['id'] for t in db.own.named('SHOW TRANSACTIONS') if str(t['name']).lower().startswith('amp_')]
            if sql.startswith(at) and named and not ended:
                ended.extend(named)
                db.own.run(f'SELECT SYSTEM$ABORT_TRANSACTION({named[0]})')

        connections[-1].before = end
        # A COMMIT of nothing is answered like any other: then it is the next unit that notices.
        given = [response(eth(10, 20, '0xc', '0xa'), 12), response(eth(21, 29, '0xd', '0xc'), 21)]
        with pytest.raises(AmpError, match=r'ended by somebody else|do not continue'):
            list(db.load_stream_continuous(given, table))
        assert ended
        assert blocks(db, table) == [1, 11]
        [info] = db.list_streams()
        assert info.state.position.to_dict() == {'ethereum': {'number': 19, 'hash': '0xb'}}


def test_the_older_writer_loses_and_leaves_nothing_behind(db, table):
    older = db.load_stream_continuous(
        iter([response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11)]), table
    )
    next(older)
    taken = db.open_stream(StreamKey(table, table), Claim('the-winner:1', '2026-01-01T00:00:00+00:00'))
    with pytest.raises(StaleEpochError, match=r'the-winner:1 at 2026-01-01.*epoch 2'):
        next(older)
    assert blocks(db, table) == [1]
    assert taken.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}
    with pytest.raises(StaleEpochError, match='the-winner'):
        db.open_stream(StreamKey(table, table), Claim('a-third', 'later'), after=1)


def test_who_takes_a_stream_ends_what_its_older_writer_left_open(db, table, config):
    stream(db, table, response(eth(0, 9, '0xa'), 1))
    with SnowflakeLoader(config) as abandoned:
        # A client that died in the middle of its transaction, with the row of the stream locked by it.
        session = abandoned.sessions.take()
        state = abandoned.list_streams()[0].state
        session.run(f'BEGIN NAME {abandoned.transaction_prefix(state.number)}{state.epoch}')
        session.run(f'DELETE FROM {quoted(table)}')
        session.run(f"UPDATE {TABLE} SET document = 'lost' WHERE table_name = ?", (table,))
        taken = db.open_stream(StreamKey(table, table), Claim.now())
        assert taken.position.to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}
        session.broken = True
        abandoned.sessions.give(session)
    assert blocks(db, table) == [1]
    assert [t for t in db.own.named('SHOW TRANSACTIONS') if str(t['name']).lower().startswith('amp_')] == []


def test_an_answer_that_is_lost_after_the_commit_is_no_second_commit(config, table, recorded):
    _, connections = recorded
    lost: list[str] = []

    def lose(sql: str) -> None:
        if sql == 'COMMIT' and lost:
            lost.clear()
            raise OperationalError('the connection broke', errno=250003)

    with SnowflakeLoader({**config, 'pool_size': 1}) as db:
        results = db.load_stream_continuous(
            iter([response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11)]), table
        )
        next(results)
        lost.append('the next one')
        for connection in connections:
            connection.after = lose
        # The batches cannot be asked for again, so this stream ends here; the next one reads what is true.
        with pytest.raises(AmpError):
            list(results)
        assert not lost
        assert blocks(db, table) == [1, 11]
        again = stream(db, table, response(eth(20, 29, '0xc', '0xb'), 21))
        assert [r.rows_loaded for r in again] == [1]
        assert blocks(db, table) == [1, 11, 21]


def test_numbers_that_snowflake_has_not_are_refused_by_column_and_land_as_text(db, table):
    rows = pa.table(
        {'value': [str(2**256 - 1), '7'], 'wide': pa.array([Decimal(2**250), Decimal(7)], pa.decimal256(76, 0))}
    )
    for column in rows.column_names:
        refused = db.load_table(rows.select([column]), table, column_types={column: 'decimal'})
        assert f'column {column!r}' in refused.error
        assert 'text' in refused.error
        assert not db.table_exists(table) or db.scan(table).read_all().num_rows == 0
        small = db.load_table(rows.select([column]).slice(1), table, column_types={column: 'decimal'}, mode='overwrite')
        assert small.success, small.error
        assert db.own.run(f'SELECT {column} + 1 FROM {quoted(table)}') == [(8,)]
        db.own.run(f'DROP TABLE {quoted(table)}')
    result = db.load_table(rows, table, column_types={'value': 'text', 'wide': 'text'})
    assert result.success, result.error
    assert sorted(db.own.run(f'SELECT value, wide FROM {quoted(table)}')) == [
        (str(2**256 - 1), str(2**250)),
        ('7', '7'),
    ]


def nested_rows() -> pa.Table:
    entry = pa.struct([('address', pa.binary(20)), ('keys', pa.list_(pa.binary(32))), ('n', pa.uint64())])
    return pa.table(
        {
            'access_list': pa.array(
                [[{'address': b'\x02' * 20, 'keys': [b'\x03' * 32], 'n': 2**64 - 1}, None], [], None], pa.list_(entry)
            ),
            'one': pa.array([{'address': None, 'keys': [], 'n': 0}, None, None], entry),
            'pairs': pa.array([[('a "quoted"\n \\', 1)], [], None], pa.map_(pa.string(), pa.int32())),
            'big': pa.array([[Decimal('9' * 38)], [None], None], pa.list_(pa.decimal128(38, 0))),
            'prices': pa.array([[0.1, None], [], None], pa.list_(pa.float64())),
            'wide': pa.array([[Decimal(2**250)], [], None], pa.list_(pa.decimal256(76, 0))),
            'block_num': [1, 2, 3],
        }
    )


@pytest.mark.parametrize('method', METHODS)
def test_nested_columns_are_variants_where_those_keep_every_number(config, table, method, request):
    change = {'loading_method': method}
    if method == 'snowpipe_streaming':
        change = {key: request.getfixturevalue('channel_of_own')[key] for key in CHANNEL_KEYS} | change
    rows = nested_rows()
    with SnowflakeLoader({**config, **change}) as db:
        stream(db, table, ResponseBatch.data_batch(rows.to_batches()[0], response(eth(0, 9, '0xa')).metadata))
        kinds = {name: kind.partition('(')[0] for name, kind in db.columns(table).items()}
        assert [kinds[name] for name in ('ACCESS_LIST', 'ONE', 'PAIRS', 'BIG')] == ['VARIANT'] * 4
        assert [kinds[name] for name in ('PRICES', 'WIDE')] == ['VARCHAR'] * 2
        back = db.scan(table).read_all().sort_by('block_num')
        assert values(back.rename_columns({'block_num': ROW})) == values(rows.rename_columns({'block_num': ROW}))
        inside = db.own.run(
            f'SELECT access_list[0]:n::NUMBER(20,0), access_list[0]:address::VARCHAR, ARRAY_SIZE(access_list), '
            f'pairs[0]:key::VARCHAR, big[0]::NUMBER(38,0) FROM {quoted(table)} WHERE block_num = 1'
        )
        assert inside == [(2**64 - 1, '0x' + '02' * 20, 2, 'a "quoted"\n \\', int('9' * 38))]
        nulls = db.own.run(f'SELECT COUNT(*) - COUNT(access_list), COUNT(*) - COUNT(one) FROM {quoted(table)}')
        assert nulls == [(1, 2)], 'what is null is NULL, not the null of JSON'


def test_nested_columns_are_parsed_inside_the_transaction_and_copied_before_it(config, table, recorded):
    notes, _ = recorded
    batch = nested_rows().to_batches()[0]
    with SnowflakeLoader({**config, 'pool_size': 1}) as db:
        stream(db, table, ResponseBatch.data_batch(batch, response(eth(0, 9, '0xa')).metadata))
        notes['pool'].clear()
        stream(db, table, ResponseBatch.data_batch(batch, response(eth(0, 10, '0xb')).metadata))
    taken, unit = split_at_second_begin(notes['pool'])
    assert kinds(taken)[4:] == ['PUT', 'CREATE TEMPORARY', 'COPY INTO', 'COMMIT']
    assert [sql.split()[0] for sql in unit] == ['BEGIN', 'SELECT', 'DELETE', 'INSERT', 'UPDATE', 'COMMIT', 'DROP']
    assert '"ACCESS_LIST" VARCHAR' in taken[5]
    assert 'PARSE_JSON("ACCESS_LIST")' in unit[3]
    assert 'PARSE_JSON("PRICES")' not in unit[3]


def test_history_is_kept_where_it_is_wished(config, table):
    with SnowflakeLoader({**config, 'preserve_reorg_history': True}) as db:
        stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11, 12))
        [undone, replaced] = stream(db, table, response(eth(10, 20, '0xc', '0xa'), 13))
        assert undone.metadata['rows_undone'] == 2
        assert replaced.rows_loaded == 1
        assert blocks(db, table) == [1, 13]
        assert db.get_table_info(table)['row_count'] == 2
        every = db.own.run(f'SELECT block_num, {MARK} = TRUE, {MARKED_AT} IS NOT NULL FROM {quoted(table)} ORDER BY 1')
        assert every == [(1, None, False), (11, True, True), (12, True, True), (13, None, False)]
        view = quoted(f'{table}_current')
        assert db.own.run(f'SELECT block_num FROM {view} ORDER BY block_num') == [(1,), (13,)]
        # A wider table has a wider view.
        wider = pa.record_batch({'block_num': [21], 'tx_hash': ['x'], 'added': [True]})
        last = ResponseBatch.data_batch(wider, response(eth(21, 21, '0xd', '0xc')).metadata)
        stream(db, table, last, settings=StreamSettings(strict=False, schema_evolution='evolve'))
        assert db.own.run(f'SELECT added FROM {view} WHERE block_num = 21') == [(True,)]
        upsert = {'mode': 'upsert', 'key_columns': ['block_num']}
        with pytest.raises(ConfigError, match='choose one'):
            stream(db, table, response(eth(22, 22, '0xe', '0xd'), 22), **upsert)
        db.own.run(f'DROP VIEW {view}')
        db.own.run(f'DROP TABLE {quoted(table)}')


@pytest.mark.parametrize('method', ['stage', 'insert', 'pandas'])
def test_upsert_replaces_by_key_and_the_last_of_equals_counts(config, table, method):
    with SnowflakeLoader({**config, 'loading_method': method}) as db:
        key, other = (
            pa.array([b'\x01', b'\x02'], pa.binary(1)),
            pa.array([b'\x02', b'\x03', b'\x03', None], pa.binary(1)),
        )
        db.load_table(pa.table({'k': key, 'camelCase': ['a', 'b']}), table)
        result = db.load_table(
            pa.table({'k': other, 'camelCase': ['B', 'c', 'C', 'n']}), table, mode='upsert', key_columns=['k']
        )
        assert result.success, result.error
        again = pa.table({'k': other.slice(3), 'camelCase': ['N']})
        assert db.load_table(again, table, mode='merge', key_columns=['k']).success
        found = db.scan(table).read_all().to_pydict()
        pairs = dict(zip(found['k'], found['camelCase'], strict=True))
        assert pairs == {b'\x01': 'a', b'\x02': 'B', b'\x03': 'C', None: 'N'}
        assert len(found['k']) == 4
        assert 'nope' in db.load_table(again, table, mode='upsert', key_columns=['nope']).error


def test_upsert_in_a_stream_gives_back_what_it_replaced(db, table):
    def keyed(block_range, key, value):
        batch = pa.record_batch({'k': [key], 'v': [value]})
        return ResponseBatch.data_batch(batch, response(block_range).metadata)

    def now():
        return dict(db.own.run(f'SELECT k, v FROM {quoted(table)}'))

    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    db.load_table(pa.table({'k': [7], 'v': ['plain']}), table)
    stream(db, table, keyed(eth(0, 0, '0xa'), 1, 'old'), keyed(eth(1, 1, '0xb', '0xa'), 1, 'new'), **upsert)
    stream(db, table, keyed(eth(2, 2, '0xc', '0xb'), 7, 'streamed'), **upsert)
    assert now() == {1: 'new', 7: 'streamed'}
    stream(db, table, ResponseBatch.reorg_batch([eth(2, 2, '0xd')]), **upsert)
    assert now() == {1: 'new', 7: 'plain'}
    stream(db, table, ResponseBatch.reorg_batch([eth(0, 1, '0xd')]), **upsert)
    assert now() == {7: 'plain'}


@pytest.mark.parametrize(
    ('first', 'then'),
    [
        (pa.array([1]), pa.array([1.5])),
        (pa.array([1]), pa.array(['007'])),
        (pa.array([Decimal('1.5')], pa.decimal128(10, 1)), pa.array([Decimal('1.25')], pa.decimal128(10, 2))),
        (pa.array(['x']), pa.array([b'\xab'])),
        (pa.array([0], pa.date32()), pa.array([1], pa.timestamp('us'))),
    ],
    ids=['real', 'text', 'scale', 'bytes', 'moment'],
)
def test_a_column_that_would_change_values_refuses_them(config, table, first, then):
    for column, told in ((first, None), (then, 'does not keep'), (first, None)):
        with SnowflakeLoader(config) as db:
            result = db.load_table(pa.table({'v': column}), table)
            assert result.success if told is None else told in (result.error or 'no error')
    with SnowflakeLoader(config) as db:
        assert db.get_table_info(table)['row_count'] == 2


def test_overwrite_is_one_transaction(db, table):
    good = pa.record_batch({'x': pa.array([1], pa.int64())})
    assert db.load_batch(good, table).success

    def batches():
        yield good
        raise ProtocolError('the source broke')

    with pytest.raises(ProtocolError, match='the source broke'):
        db.load_reader(pa.RecordBatchReader.from_batches(good.schema, batches()), table, mode='overwrite')
    assert db.scan(table).read_all().to_pydict() == {'x': [1]}
    assert db.own.run('LIST @AMP_STAGE') == []
    stream(db, table, ResponseBatch.data_batch(good, response(eth(0, 9, '0xa')).metadata), mode='overwrite')
    assert db.get_table_info(table)['row_count'] == 1


def test_two_streams_in_one_table_undo_only_their_own(db, table):
    stream(db, table, response(eth(0, 9, '0xa'), 1), stream_name='one')
    stream(db, table, response(eth(0, 9, '0xb'), 2), stream_name='two')
    stream(db, table, ResponseBatch.reorg_batch([eth(0, 9, '0xc')]), stream_name='one')
    assert blocks(db, table) == [2]
    with pytest.raises(ConfigError, match='two'):
        stream(db, table, response(eth(0, 9, '0xa'), 1), stream_name='one', mode='overwrite')


def test_many_files_at_once(config, table):
    rows = pa.table({'n': pa.array(range(600_000)), 'text': [f'{i * 2654435761 % 2**61:x}' for i in range(600_000)]})
    with SnowflakeLoader({**config, 'file_mb': 1}) as db:
        result = db.load_table(rows, table)
        assert result.success, result.error
        assert result.metadata['loading_method'] == 'stage'
        [(count, total)] = db.own.run(f'SELECT COUNT(*), SUM(n) FROM {quoted(table)}')
        assert (count, int(total)) == (600_000, sum(range(600_000)))


def test_workers_share_the_pool(config, table):
    with SnowflakeLoader({**config, 'pool_size': 2}) as db:
        part = pa.table({'n': pa.array(range(100))})
        assert db.load_table(part, table).success
        with ThreadPoolExecutor(6) as workers:
            results = list(workers.map(lambda _: db.load_table(part, table), range(12)))
        assert all(r.success for r in results), [r.error for r in results]
        assert db.get_table_info(table)['row_count'] == 1300


def test_hostile_names_of_streams_touch_nothing_else(config, table):
    hostile = ('x"; drop table t; --', "quote's back\\slash", 'ünï cødé a.b 100%s ? $1 {m}')
    with SnowflakeLoader({**config, 'preserve_reorg_history': True}) as db:
        assert db.load_table(pa.table({'x': [1]}), table).success
        for start in hostile:
            name = f'{start} {table}'
            stream(db, name, TWO[0], TWO[1])
            stream(db, name, ResponseBatch.reorg_batch([eth(10, 19, '0xz')]))
            assert blocks(db, name) == [1, 9]
            view = quoted(f'{name}_current')
            assert db.own.run(f'SELECT COUNT(*) FROM {view}') == [(2,)]
            info = db.get_table_info(name)
            assert (info['table_name'], info['row_count'], info['exists']) == (name, 2, True)
            assert info['columns'][:2] == TWO[0].data.schema.names
            db.own.run(f'DROP VIEW {view}')
            db.own.run(f'DROP TABLE {quoted(name)}')
            db.own.run(f'DELETE FROM {TABLE} WHERE table_name = ?', (name,))
        assert db.scan(table).read_all().to_pydict() == {'x': [1]}
        db.own.run(f'DROP VIEW {quoted(f"{table}_current")}')


def test_a_stream_with_new_columns_is_refused_with_the_difference_or_widens_its_table(db, table):
    stream(db, table, TWO[0])
    batch = TWO[1].data.append_column('added', pa.array([2**64 - 1, None], pa.uint64()))
    wider = ResponseBatch.data_batch(batch, TWO[1].metadata)
    with pytest.raises(SchemaError, match='lacks: added uint64'):
        stream(db, table, wider, schema_evolution='freeze')
    assert blocks(db, table) == [1, 9]
    stream(db, table, wider, schema_evolution='evolve')
    found = db.scan(table).read_all().sort_by('block_num').to_pydict()
    assert [None if n is None else int(n) for n in found['added']] == [None, None, 2**64 - 1, None]
    assert 'added' in db.get_table_info(table)['columns']


# Snowpipe Streaming, against the stand-in for its protocol


@pytest.fixture
def pipe(config, table):
    with SnowflakeLoader(config) as made, snowpipe(config) as server:
        made.load_table(pa.table({'block_num': pa.array([], pa.int64()), 'tx_hash': pa.array([], pa.string())}), table)
        channel = {'loading_method': 'snowpipe_streaming', 'streaming_url': server.url, 'token': 'a-token'}
        with SnowflakeLoader({**config, **channel, 'authenticator': 'snowflake'}) as loader:
            yield loader, server


def test_the_offset_token_is_the_id_of_the_rows(pipe, table):
    db, server = pipe
    stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11))
    ids = sorted(str(row['_amp_tx_id']) for row in db.stamped_scan(table).read_all().to_pylist())
    assert [token.split(':')[0] for _, token in server.appended] == ids
    assert {name for name, _ in server.appended} == {f'amp-{db.list_streams()[0].state.number}-1'}


def test_a_refused_append_is_rolled_back_and_nothing_of_it_is_seen(pipe, table):
    db, server = pipe
    stream(db, table, response(eth(0, 9, '0xa'), 1))
    results = db.load_stream_continuous(iter([response(eth(10, 19, '0xb', '0xa'), 11)]), table)
    server.answer_with = [503]
    with pytest.raises(AmpError, match=r'503|do not continue'):
        list(results)
    assert blocks(db, table) == [1]
    stream(db, table, response(eth(10, 19, '0xb', '0xa'), 11))
    assert blocks(db, table) == [1, 11]


def test_rows_that_arrive_after_their_unit_failed_are_not_shown(pipe, table):
    db, _ = pipe
    responses = [response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11, complete=False)]
    with pytest.raises(AmpError, match='inside a microbatch'):
        stream(db, table, *responses)
    stream(db, table, response(eth(10, 19, '0xb', '0xa'), 12))
    assert blocks(db, table) == [1, 12]
    assert db.own.run(f'SELECT COUNT(*) FROM {quoted(table)}') == [(2,)]


def test_a_view_shows_only_rows_of_units_that_are_done(pipe, table, monkeypatch):
    db, _ = pipe
    view = quoted(f'{table}_committed')
    looked: list[tuple[list[int], list[int]]] = []

    def now() -> tuple[list[int], list[int]]:
        raw, shown = (db.own.run(f'SELECT block_num FROM {name} ORDER BY 1') for name in (quoted(table), view))
        return [n for (n,) in raw], [n for (n,) in shown]

    def look(point: str) -> None:
        if point == 'channel.committed':
            looked.append(now())

    db.own.run(f'INSERT INTO {quoted(table)} (block_num) VALUES (500)')
    stream(db, table, response(eth(0, 9, '0xa'), 1))
    stream(db, table, response(eth(0, 9, '0xz'), 100), stream_name='other')
    monkeypatch.setattr(points, 'hook', look)
    stream(db, table, response(eth(10, 19, '0xb', '0xa'), 11))
    monkeypatch.setattr(points, 'hook', None)
    assert looked == [([1, 11, 100, 500], [1, 100, 500])]
    assert now() == ([1, 11, 100, 500], [1, 11, 100, 500])
    # A writer that woke up late adds rows under ids of an epoch that is over.
    late = StreamState(db.list_streams()[0].state.number, 1).first_id + 7
    db.streaming_destination().open_stream(StreamKey(table, table), Claim.now())
    db.own.run(f'INSERT INTO {quoted(table)} (block_num, _amp_tx_id) VALUES (77, {late})')
    assert now() == ([1, 11, 77, 100, 500], [1, 11, 100, 500])
    assert sorted(db.scan(table).read_all()['block_num'].to_pylist()) == [1, 11, 100, 500]
    wider = response(eth(20, 29, '0xc', '0xb'), 21)
    wider = ResponseBatch.data_batch(wider.data.append_column('added', pa.array(['x'])), wider.metadata)
    stream(db, table, wider, schema_evolution='evolve')
    assert db.own.run(f'SELECT added FROM {view} WHERE block_num = 21') == [('x',)]
    db.own.run(f'DROP VIEW {view}')


def test_a_table_of_the_name_of_the_view_is_left_alone(pipe, table, caplog):
    db, _ = pipe
    db.own.run(f'CREATE TABLE {quoted(f"{table}_committed")} (x NUMBER(1,0))')
    stream(db, table, response(eth(0, 9, '0xa'), 1))
    assert 'no view of the committed rows' in caplog.text
    assert db.own.run(f'SELECT COUNT(*) FROM {quoted(f"{table}_committed")}') == [(0,)]
    db.own.run(f'DROP TABLE {quoted(f"{table}_committed")}')


def test_a_stream_goes_on_in_the_way_it_was_begun(pipe, table, config):
    db, _ = pipe
    stream(db, table, response(eth(0, 9, '0xa'), 1))
    with SnowflakeLoader(config) as staged:
        with pytest.raises(DestinationError, match='Snowpipe channel'):
            stream(staged, table, response(eth(10, 19, '0xb', '0xa'), 11))
        assert [info.key for info in staged.list_streams()] == [StreamKey(table, table)]
        stream(staged, table, response(eth(0, 9, '0xa'), 2), stream_name='other')
        assert len({info.state.number for info in staged.list_streams()}) == 2
        assert blocks(staged, table) == [1, 2]


def test_what_a_channel_cannot_do_is_refused(pipe, table, config):
    db, _ = pipe
    with pytest.raises(AmpError, match='replace rows by key'):
        stream(db, table, response(eth(0, 9, '0xa'), 1), mode='upsert', key_columns=['block_num'])
    refused = db.load_table(pa.table({'x': [1]}), 'Needs "quotes"')
    assert 'needs quotes' in refused.error
    with SnowflakeLoader({**config, 'loading_method': 'snowpipe_streaming'}) as by_password:
        assert 'private_key or token' in by_password.load_table(pa.table({'block_num': [1]}), table).error


# The state store


def test_marks_by_hand_are_kept_and_a_stream_refuses_them(db, table):
    store = db.state_store
    assert isinstance(store, SnowflakeStreamStateStore)
    ids = [BatchIdentifier('eth', s, e, f'0x{e}', f'0x{s - 1}') for s, e in ((0, 9), (20, 29), (10, 14))]
    assert store.get_resume_position('c', table) is None
    store.mark_processed('c', table, ids)
    store.mark_processed('alias', table, ids[:1])
    assert store.is_processed('c', table, ids)
    assert not store.is_processed('c', table, [BatchIdentifier('eth', 0, 9, '0xother')])
    assert store.get_resume_position('c', table).to_dict() == {'eth': {'number': 29, 'hash': '0x29'}}
    found = store.get_resume_position('c', table, detect_gaps=True)
    assert [str(gap) for gap in found.gaps] == ['eth 15-19']
    assert found.to_dict() == {'eth': {'number': 14, 'hash': '0x14'}}
    assert [b.end_block for b in store.invalidate_from_block('c', table, 'eth', 12)] == [14, 29], 'by overlap'
    store.cleanup_before_block('c', table, 'eth', 10)
    assert store.get_resume_position('c', table).to_dict() == {'eth': {'number': 9, 'hash': '0x9'}}
    assert store.is_processed('c', table, ids[:1])
    assert db.own.run(f'SELECT scheme, COUNT(*) FROM {TABLE} WHERE table_name = ? GROUP BY 1', (table,)) == [
        ('marks', 1)
    ]
    stream(db, f'{table}_s', response(eth(0, 9, '0xa'), 1))
    with pytest.raises(DestinationError, match='only a commit'):
        store.mark_processed('c', f'{table}_s', ids)
    assert store.get_resume_position('c', f'{table}_s').to_dict() == {'ethereum': {'number': 9, 'hash': '0xa'}}
    db.own.run(f'DROP TABLE {quoted(f"{table}_s")}')
    db.own.run(f'DELETE FROM {TABLE} WHERE table_name = ?', (f'{table}_s',))


def test_the_file_for_administrators_runs(db, table):
    text = (Path(__file__).parents[4] / 'sql' / 'snowflake_stream_state.sql').read_text()
    for statement in re.sub(r'--[^\n]*', '', text).split(';'):
        if statement.strip():
            db.own.run(statement)
    stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11))
    found = db.own.run(
        'SELECT network, start_block, end_block, end_hash FROM amp_stream_batches WHERE table_name = ? ORDER BY 2',
        (table,),
    )
    assert found == [('ethereum', 0, 9, '0xa'), ('ethereum', 10, 19, '0xb')]


# When something is wrong


def test_a_host_that_is_down_is_worth_another_try(config):
    with pytest.raises(DestinationError, match='cannot be reached') as failed:
        SnowflakeLoader(
            {**config, 'port': free_port(), 'login_timeout': 3, 'host': '127.0.0.1', 'protocol': 'http'}
        ).connect()
    assert failed.value.retryable
    assert config['password'] not in str(failed.value)


@pytest.mark.skipif(is_real(), reason='the variables name an account already')
def test_variables_name_the_account_that_the_tests_use(config, table, monkeypatch):
    for key in ('account', 'user', 'password', 'database', 'schema', 'host', 'port', 'protocol'):
        monkeypatch.setenv(f'SNOWFLAKE_{key.upper()}', str(config[key]))
    with snowflake_config() as named, SnowflakeLoader(named) as there, SnowflakeLoader(config) as here:
        assert is_real()
        assert named == {key: config[key] for key in named}
        assert there.load_table(pa.table({'x': [1]}), table).success
        assert here.get_table_info(table)['row_count'] == 1


def refused_login(config: dict[str, Any]) -> DestinationError:
    with pytest.raises(DestinationError, match='refuses') as failed:
        SnowflakeLoader(config).connect()
    assert not failed.value.retryable
    assert '\n' not in str(failed.value)
    return failed.value


def without_login(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in {'password', 'token', 'private_key', 'authenticator'}}


def test_a_wrong_password_is_permanent_and_in_no_text(config):
    failed = refused_login({**config, 'password': 'not-the-secret-one'})
    assert failed.context['code'] == 390100
    assert 'check user and password' in str(failed)
    assert 'not-the-secret-one' not in f'{failed} {failed!r} {failed.context} {failed.__cause__}'


@pytest.mark.skipif(is_real(), reason='it would change the key of a real user')
def test_a_key_logs_in_and_another_one_does_not(config, table):
    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
    pem, other = (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode() for key in keys)
    public = keys[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with SnowflakeLoader(config) as db:
        db.own.run(f"ALTER USER {config['user']} SET RSA_PUBLIC_KEY='{''.join(public.splitlines()[1:-1])}'")
    with SnowflakeLoader({**without_login(config), 'private_key': pem}) as db:
        stream(db, table, response(eth(0, 9, '0xa'), 1))
        assert blocks(db, table) == [1]
    failed = refused_login({**without_login(config), 'private_key': other})
    assert failed.context['code'] == 390144
    assert 'the key does not fit' in str(failed)
    assert other.splitlines()[1] not in f'{failed} {failed!r} {failed.context}'


@pytest.mark.skipif(is_real(), reason='the token is one of the stand-in')
def test_an_oauth_token_logs_in_and_a_wrong_one_does_not(config, table):
    with SnowflakeLoader({**without_login(config), 'token': 'a-token'}) as db:
        assert db.load_table(pa.table({'x': [1]}), table).success
    failed = refused_login({**without_login(config), 'token': 'a-token-that-is-over'})
    assert failed.context['code'] == 390303
    assert 'a-token-that-is-over' not in f'{failed} {failed!r} {failed.context}'


@pytest.mark.skipif(is_real(), reason='the role is one of the stand-in')
def test_a_missing_privilege_is_one_sentence_and_permanent(config, db, table):
    assert db.load_table(pa.table({'x': [1]}), table).success
    with SnowflakeLoader({**config, 'role': 'AMP_READER'}) as reader:
        result = reader.load_table(pa.table({'x': [2]}), table)
        assert not result.success
        assert 'the role lacks a privilege' in result.error
        assert config['password'] not in result.error
        with pytest.raises(DestinationError) as failed:
            stream(reader, table, response(eth(0, 9, '0xa'), 1))
        assert (failed.value.context['code'], failed.value.retryable) == (3001, False)
        assert reader.scan(table).read_all().num_rows == 1
    assert db.get_table_info(table)['row_count'] == 1


def test_a_database_that_is_not_there_is_permanent(config):
    with pytest.raises(DestinationError, match=r'no schema NO_SUCH_DATABASE\..*check database') as failed:
        SnowflakeLoader({**config, 'database': 'NO_SUCH_DATABASE'}).connect()
    assert not failed.value.retryable


def test_a_table_that_another_transaction_holds_is_worth_another_try(config, db, table):
    stream(db, table, response(eth(0, 9, '0xa'), 1), response(eth(10, 19, '0xb', '0xa'), 11))
    key, settings = StreamKey(table, table), StreamSettings(retry_seconds=0, strict=False)
    given = [response(eth(10, 20, '0xc', '0xa'), 12)]
    with SnowflakeLoader({**config, 'lock_timeout': 1}) as waiting, db.sessions.borrowed() as holder:
        holder.run('BEGIN NAME somebody_else')
        holder.run(f'DELETE FROM {quoted(table)} WHERE block_num = 11')
        with pytest.raises(DestinationError, match='another transaction holds the table') as failed:
            list(StreamEngine(waiting, StreamJob(key), Again(given).connect, settings).run())
        assert (failed.value.context['code'], failed.value.retryable) == (625, True)
        holder.run('ROLLBACK')
        stream(waiting, table, *given)
    assert blocks(db, table) == [1, 12]


class Again:
    """A source that can be asked again."""

    backlog = False
    repeatable = True

    def __init__(self, responses: list[ResponseBatch]) -> None:
        self._responses = responses

    def connect(self, position: Any) -> Again:
        self._left = iter(self._responses)
        return self

    def get(self, timeout: float | None = None) -> Any:
        return next(self._left, END)

    def close(self) -> None:
        pass


def test_errors_are_sentences_with_the_code_of_the_driver(db, table):
    db.load_table(pa.table({'x': [1]}), table)
    db.own.run(f'DROP TABLE {quoted(table)}')
    result = db.load_table(pa.table({'x': [1]}), table)
    assert 'does not exist' in result.error
    assert db.load_table(pa.table({'x': [1]}), table).success, 'the next one makes it again'
    with pytest.raises(LoadError, match='does not exist'):
        db.scan('no_such_table')
    assert db.get_table_info('no_such_table') is None
    assert not is_transient(ProgrammingError('x', errno=2003))
    assert is_transient(ProgrammingError('x', errno=625))
    assert is_transient(OperationalError('x', errno=250003))
    assert is_transient(DatabaseError('x', errno=390114))
    assert not is_transient(DatabaseError('deadlock 625', errno=250001, sqlstate='28000'))


def test_a_session_that_broke_is_opened_again(db, table):
    db.load_table(pa.table({'x': [1]}), table)
    db.own.close()
    session = db.sessions.take()
    session.close()
    db.sessions.give(session)
    assert db.load_table(pa.table({'x': [2]}), table).success
    assert db.get_table_info(table)['row_count'] == 2


PAGE = (Path(__file__).parents[4] / 'docs' / 'destinations' / 'snowflake.md').read_text()


def test_the_example_of_the_page_runs(config, capsys):
    [example] = re.findall(r'```python\n(.*?)```', PAGE, flags=re.DOTALL)
    where = {
        key: value for key, value in config.items() if key not in {'account', 'user', 'password', 'port', 'database'}
    }
    host = f'{config["account"]}:{config["port"]}' if 'port' in config else config['account']
    url = f'snowflake://{config["user"]}:{quote(config["password"])}@{host}/{config["database"]}?{urlencode(where)}'
    found = re.search(r"'(snowflake://[^']+)'", example)[1]
    exec(compile(example.replace(found, url), 'snowflake.md', 'exec'), {})
    assert capsys.readouterr().out == '2 2\n'
    with SnowflakeLoader(config) as db:
        db.own.run('DROP TABLE blocks')


def test_the_page_shows_the_statements_that_are_sent(config, table, recorded):
    notes, _ = recorded
    with SnowflakeLoader({**config, 'pool_size': 1}) as db:
        stream(db, table, response(eth(0, 9, '0xa'), 1))
        stream(db, table, response(eth(0, 10, '0xb'), 2))
    [shown] = re.findall(r'```sql\n(.*?)```', PAGE, flags=re.DOTALL)
    words = [line.split()[0] for line in shown.splitlines()]
    assert [sql.split()[0] for sql in notes['pool']][-len(words) :] == words
