"""The Delta Lake destination in an object store: the same commits, made atomic by conditional put."""

from __future__ import annotations

import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import obstore
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from amp.errors import ConfigError, DestinationError, StaleEpochError
from amp.loaders.deltalog.files import Files
from amp.loaders.implementations.deltalake_loader import DeltaLakeLoader
from amp.loaders.unit import Claim
from amp.streaming import ResponseBatch
from amp.streaming.ledger import StreamKey
from tests.integration.loaders.backends.test_deltalake import files
from tests.integration.loaders.test_base_streaming import eth
from tests.integration.loaders.test_shared_streams import chain, numbers, stream
from tests.support.s3 import BUCKET, s3_options

pytestmark = [pytest.mark.integration, pytest.mark.deltalake]


@pytest.fixture(scope='module')
def options():
    with s3_options() as found:
        yield found


@pytest.fixture
def config(options):
    return {'url': f'deltalake+s3://{BUCKET}/{uuid.uuid4().hex}', 'storage_options': options}


@pytest.fixture
def db(config):
    with DeltaLakeLoader(config) as opened:
        yield opened


def test_plain_loads(db):
    name = 'logs "of" ünï'
    assert db.load_table(pa.table({'k': [1, 2], 'u': pa.array([0, 2**64 - 1], pa.uint64())}), name).success
    upsert = {'mode': 'upsert', 'key_columns': ['k']}
    assert db.load_table(pa.table({'k': [2, 3], 'u': pa.array([7, 8], pa.uint64())}), name, **upsert).success
    assert db.scan(name).read_all().sort_by('k')['u'].cast(pa.uint64()).to_pylist() == [0, 7, 8]
    assert db.load_table(pa.table({'k': [9]}), name, mode='overwrite').success
    assert db.get_table_info(name)['row_count'] == 1


def test_a_stream_with_a_reorg_in_one_commit(db, options):
    stream(db, *chain(0, 4))
    stream(db, *chain(0, 2), table='another')
    before, version = files(db), db.open_table('t').version()
    results = stream(db, ResponseBatch.reorg_batch([eth(30, 39, '0xd')]), *chain(3, 2))
    assert [r.rows_loaded for r in results] == [0, 2, 2]
    assert len(before - files(db)) == 1
    assert db.open_table('t').version() == version + 4, 'the epoch, the undo, and two units'
    assert numbers(db) == [n for i in range(5) for n in (i * 10, i * 10 + 9)]
    assert [info.key.table for info in db.list_streams()] == ['another', 't']
    assert DeltaTable(db.place_of('t'), storage_options=options).count() == 10


def test_the_older_writer_loses(db, config):
    older = db.load_stream_continuous(iter(chain(0, 2)), 't')
    next(older)
    with DeltaLakeLoader(config) as newer:
        newer.open_stream(StreamKey('t', 't'), Claim('the-winner', 'later'))
    with pytest.raises(StaleEpochError, match='the-winner'):
        next(older)
    assert numbers(db) == [0, 9]


def test_of_many_that_make_a_file_at_once_the_store_of_these_tests_lets_one(config, options):
    """A commit is that. A store that lets two succeed loses the rows of one, and these tests would blame the loader."""
    store = Files(config['url'].removeprefix('deltalake+'), options).store

    def make(name: str) -> bool:
        try:
            obstore.put(store, name, b'x' * 200, mode='create')
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for n in range(40):
                assert sum(pool.map(make, [f'file-{n}'] * 8)) == 1
    finally:
        sys.setswitchinterval(interval)


def test_concurrent_appends_lose_and_double_nothing(config):
    def append(worker: int) -> None:
        with DeltaLakeLoader(config) as db:
            for i in range(3):
                result = db.load_table(pa.table({'x': [worker * 10 + i]}), 't')
                assert result.success, result.error

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    with DeltaLakeLoader(config) as db:
        assert sorted(db.scan('t').read_all()['x'].to_pylist()) == sorted(
            w * 10 + i for w in range(8) for i in range(3)
        )


def test_files_are_joined_and_vacuumed(db):
    for i in range(5):
        db.load_table(pa.table({'x': [i]}), 't')
    assert db.optimize('t') == {'files_removed': 5, 'files_added': 1}
    assert sorted(db.scan('t').read_all()['x'].to_pylist()) == [0, 1, 2, 3, 4]
    assert db.vacuum('t') == []


def test_a_bucket_that_is_not_there_is_named_and_no_secret_is_told(options):
    fast = {**options, 'max_retries': '0', 'retry_timeout': '1s'}
    nowhere = DeltaLakeLoader({'root': 's3://no-such-bucket/x', 'storage_options': fast})
    result = nowhere.load_table(pa.table({'x': [1]}), 't')
    assert not result.success
    assert 's3://no-such-bucket/x/t' in result.error
    assert 'the-secret' not in result.error
    with pytest.raises(DestinationError, match='no-such-bucket'):
        nowhere.open_stream(StreamKey('t', 't'), Claim('one', 'now'))
    unknown = DeltaLakeLoader({'root': f's3://{BUCKET}/x', 'storage_options': {**options, 'AWS_NO_SUCH_OPTION': '1'}})
    with pytest.raises(ConfigError, match='options for s3'):
        unknown.open_stream(StreamKey('t', 't'), Claim('one', 'now'))
