"""The Parquet destination on S3: the same commits, made atomic by conditional put."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from amp.errors import DestinationError, StaleEpochError
from amp.loaders.implementations.parquet_loader import ParquetLoader
from amp.loaders.unit import Claim
from amp.streaming import ResponseBatch
from amp.streaming.ledger import StreamKey
from amplify_db_utils import DamagedData, DuckDBParquetConfig, DuckDBParquetStore
from tests.integration.loaders.backends.test_parquet import paths
from tests.integration.loaders.test_base_streaming import eth
from tests.integration.loaders.test_shared_streams import chain, numbers, stream
from tests.support.s3 import BUCKET, s3_options
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.parquet]


@pytest.fixture(scope='module')
def keys():
    with s3_options() as options:
        yield {
            's3_endpoint': options['AWS_ENDPOINT_URL'],
            's3_access_key': options['AWS_ACCESS_KEY_ID'],
            's3_secret_key': options['AWS_SECRET_ACCESS_KEY'],
        }


@pytest.fixture
def config(keys):
    return {'url': f'parquet+s3://{BUCKET}/{uuid.uuid4().hex}', **keys}


@pytest.fixture
def db(config):
    with ParquetLoader(config) as opened:
        yield opened


def test_plain_loads_with_partitions_and_a_hostile_name(keys):
    name = 'logs "of" ünï'
    with ParquetLoader({'root': f's3://{BUCKET}/plain', 'partition_by': ['k'], **keys}) as db:
        assert db.load_table(pa.table({'k': ['a/b', None], 'u': pa.array([0, 2**64 - 1], pa.uint64())}), name).success
        assert db.load_table(pa.table({'k': ['a/b'], 'u': pa.array([7], pa.uint64())}), name).success
        assert sorted(db.scan(name).read_all()['u'].to_pylist()) == [0, 7, 2**64 - 1]
        assert db.load_table(pa.table({'k': ['c']}), name, mode='overwrite').success
        assert db.get_table_info(name)['row_count'] == 1


def test_a_stream_with_a_reorg_and_the_store_beside_it(db, keys):
    stream(db, *chain(0, 4))
    stream(db, *chain(0, 2), table='another')
    before, version = paths(db), db.get_table_info('t')['version']
    results = stream(db, ResponseBatch.reorg_batch([eth(30, 39, '0xd')]), *chain(3, 2))
    assert [r.rows_loaded for r in results] == [0, 2, 2]
    assert len(before - paths(db)) == 1
    assert db.get_table_info('t')['version'] == version + 4, 'the epoch, the undo, and two units'
    assert [info.key.table for info in db.list_streams()] == ['another', 't']
    with DuckDBParquetStore(DuckDBParquetConfig(root=db.config.root, **keys)) as store:
        assert set(store.registered()) == {'another', 't'}
        store.write('t', [{'block_num': 1000, 'tx_hash': 'of the store'}])
        assert store.count('t') == 11
    assert numbers(db) == [*(n for i in range(5) for n in (i * 10, i * 10 + 9)), 1000]


def test_the_older_writer_loses(db, config):
    older = db.load_stream_continuous(iter(chain(0, 2)), 't')
    next(older)
    with ParquetLoader(config) as newer:
        newer.open_stream(StreamKey('t', 't'), Claim('the-winner', 'later'))
    with pytest.raises(StaleEpochError, match='the-winner'):
        next(older)
    assert numbers(db) == [0, 9]


def test_concurrent_appends_lose_and_double_nothing(config):
    def append(worker: int) -> None:
        with ParquetLoader(config) as db:
            for i in range(3):
                result = db.load_table(pa.table({'x': [worker * 10 + i]}), 't')
                assert result.success, result.error

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(append, range(6)))
    with ParquetLoader(config) as db:
        assert sorted(db.scan('t').read_all()['x'].to_pylist()) == sorted(
            w * 10 + i for w in range(6) for i in range(3)
        )


def test_a_bucket_that_is_not_there_is_named_and_no_secret_is_told(keys):
    with ParquetLoader({'root': 's3://no-such-bucket/x', **keys}) as nowhere:
        result = nowhere.load_table(pa.table({'x': [1]}), 't')
        assert not result.success
        assert 's3://no-such-bucket/x/t' in result.error
        assert 'the-secret' not in result.error
        with pytest.raises(DestinationError, match='no-such-bucket'):
            nowhere.open_stream(StreamKey('t', 't'), Claim('one', 'now'))


def test_a_server_that_does_not_answer_a_read_is_no_damage(keys):
    server = urlsplit(keys['s3_endpoint'])
    with TcpProxy(server.hostname or '', server.port or 0) as network:
        near = {**keys, 's3_endpoint': f'http://127.0.0.1:{network.port}'}
        with ParquetLoader({'root': f's3://{BUCKET}/{uuid.uuid4().hex}', **near}) as db:
            assert db.load_table(pa.table({'v': [1, 2]}), 't').success
            network.answer(503, times=100, to=b'.parquet')
            with pytest.raises(DestinationError, match='does not answer') as caught:
                db.scan('t').read_all()
            assert caught.value.retryable
            network.heal()
            assert db.scan('t').read_all().num_rows == 2
            assert not db.is_transient(DamagedData('a page differs from its checksum'))
