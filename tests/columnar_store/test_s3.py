"""The same store on two S3 servers."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from amplify_db_utils import (
    BadRecord,
    DamagedData,
    DuckDBParquetConfig,
    DuckDBParquetStore,
    StorageUnavailable,
    StoreError,
    registry,
)
from amplify_db_utils.names import table_directory
from amplify_db_utils.registry import PATH
from amplify_db_utils.storage import open_storage
from tests.columnar_store.conftest import S3Server
from tests.columnar_store.models import PARTITION_BY, Image, image
from tests.support.s3 import s3_endpoint
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.parquet]


@pytest.fixture(params=['moto', 'localbucket'])
def config(request: pytest.FixtureRequest) -> DuckDBParquetConfig:
    server: S3Server = request.getfixturevalue(request.param)
    return server.config(f"it's a prefix/{uuid.uuid4().hex}")


@pytest.fixture
def store(config: DuckDBParquetConfig) -> Iterator[DuckDBParquetStore]:
    with DuckDBParquetStore(config) as opened:
        yield opened


def test_a_store_on_s3(store: DuckDBParquetStore, config: DuckDBParquetConfig) -> None:
    store.create_table('images', Image, partition_by=PARTITION_BY)
    store.create_table('images', Image, partition_by=PARTITION_BY)
    values = ['IFCB107', 'a/b', "it's", '100%', '..', 'ü', '', 'a=b']
    rows = [image(at, instrument=value, month=1) for at, value in enumerate(values)]
    store.write('images', rows)
    store.write('images', [rows[0] | {'area': 9.0}], overwrite=True)
    store.write('images', rows[1:])
    with DuckDBParquetStore(config) as other:
        assert other.count('images') == 15
        for row in rows[1:]:
            assert list(other.read('images', {'instrument': row['instrument']})) == [row, row]
        assert list(other.read('images', {'instrument': 'IFCB107'}, ['area'])) == [{'area': 9.0}]
        assert {row['instrument'] for row in other.distinct_values('images', ['instrument'])} == set(values)
        assert len(list(other.join('images', 'images', 'image_id', select='left'))) == 1 + 7 * 4
        assert other.tables() == ['images']
        assert other.compact('images') == 14
        assert len(other.vacuum('images', 0)) == 15
        assert other.bulk_read('images').num_rows == 15
    assert 'secret' not in repr(config)


def test_adopting_a_directory_on_s3(store: DuckDBParquetStore, config: DuckDBParquetConfig) -> None:
    storage = open_storage(config)
    table = store_table()
    with storage.filesystem.open_output_stream(
        storage.path('old', 'instrument=x', 'year=1', 'month=1', 'a.parquet')
    ) as stream:
        pq.write_table(table.drop_columns(PARTITION_BY), stream)
    store.register_table('old', Image, partition_by=PARTITION_BY)
    assert store.count('old') == 3
    assert storage.filesystem.get_file_info(storage.path('old', '_delta_log')).type == pafs.FileType.NotFound
    store.write('old', [image(7)])
    assert store.count('old', {'instrument': 'x'}) == 3
    assert store.count('old') == 4


@pytest.mark.parametrize('name', ["it's", '../up', '/', 'a//b', '100% ü?x#y=z', '%2F', '"; DROP TABLE x; --'])
def test_a_table_of_any_name_on_s3(moto: S3Server, name: str) -> None:
    prefix = uuid.uuid4().hex
    config = dataclasses.replace(moto.config(prefix), s3_endpoint=f'http://{moto.endpoint}', s3_use_ssl=True)
    with DuckDBParquetStore(config) as store:
        store.create_table(name, Image, partition_by=['instrument'])
        store.write(name, [image(1, instrument=name), image(2)])
        store.write(name, [image(3, instrument=name)], overwrite=True)
        with DuckDBParquetStore(config) as other:
            assert list(other.read(name, {'instrument': name}, ['image_id'])) == [{'image_id': 'image 00003'}]
            assert other.count(name) == 2
            assert other.tables() == [name]
        storage = store.log(name).storage
        here = storage.filesystem.get_file_info(pafs.FileSelector(storage.path()))
        assert {info.base_name for info in here} == {'_registry', table_directory(name)}


def store_table() -> pa.Table:
    return pa.Table.from_pylist([image(at) for at in range(3)])


def test_sixteen_writers_race(store: DuckDBParquetStore, config: DuckDBParquetConfig) -> None:
    store.create_table('images', Image, partition_by=PARTITION_BY)

    def append(writer: int) -> None:
        with DuckDBParquetStore(config) as mine:
            for at in range(2):
                mine.write('images', [image(100 * writer + at, month=at)])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(append, range(16)))
    found = Counter(row['image_id'] for row in store.read('images'))
    assert found == Counter(f'image {100 * writer + at:05}' for writer in range(16) for at in range(2))


def test_the_registry_loses_no_update(store: DuckDBParquetStore, config: DuckDBParquetConfig) -> None:
    def create(number: int) -> None:
        with DuckDBParquetStore(config) as mine:
            mine.create_table('shared', Image)
            mine.create_table(f'table {number}', Image)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(create, range(6)))
    storage = open_storage(config)
    entries = json.loads(storage.read(PATH) or b'')
    assert set(entries) == {'shared', *(f'table {number}' for number in range(6))}
    assert store.tables() == sorted(entries)


def test_overwrites_race_and_one_wins_whole(store: DuckDBParquetStore, config: DuckDBParquetConfig) -> None:
    store.create_table('images', Image, partition_by=PARTITION_BY)

    def overwrite(writer: int) -> None:
        with DuckDBParquetStore(config) as mine:
            mine.write('images', [image(at, month=at % 3, area=float(writer)) for at in range(30)], overwrite=True)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(overwrite, range(6)))
    assert list(Counter(store.bulk_read('images')['area'].to_pylist()).values()) == [30]


@pytest.fixture
def shaky(moto: S3Server) -> Iterator[tuple[DuckDBParquetStore, TcpProxy]]:
    """A store behind a network that can fail, with a table of 100 rows."""
    host, _, port = moto.endpoint.partition(':')
    with TcpProxy(host, int(port)) as network:
        config = dataclasses.replace(moto.config(uuid.uuid4().hex), s3_endpoint=f'127.0.0.1:{network.port}')
        with DuckDBParquetStore(config) as opened:
            opened.create_table('images', Image, partition_by=PARTITION_BY)
            opened.write('images', [image(at, month=1) for at in range(100)])
            yield opened, network


def reads(store: DuckDBParquetStore) -> list[Callable[[], int]]:
    wanted = {'area': {'gte': 0}}
    return [
        lambda: store.bulk_read('images').num_rows,
        lambda: store.bulk_read('images', wanted).num_rows,
        lambda: store.count('images', wanted),
        lambda: len(list(store.read('images'))),
        lambda: len(store.distinct_values('images', ['image_id'])),
        lambda: len(list(store.join('images', 'images', 'image_id', select='left'))),
    ]


def test_an_answer_of_a_busy_server_is_asked_for_again(shaky: tuple[DuckDBParquetStore, TcpProxy]) -> None:
    store, network = shaky
    for use in reads(store):
        network.answer(503, to=b'.parquet')
        assert use() == 100
        network.cut()  # the connections that are kept open
        assert use() == 100
    assert network.done['answered'] == len(reads(store))


def test_a_server_that_stays_busy_is_no_damage(shaky: tuple[DuckDBParquetStore, TcpProxy]) -> None:
    store, network = shaky
    for use in reads(store)[1:5:3]:  # each takes all the patience there is
        network.answer(503, times=100, to=b'.parquet')
        with pytest.raises(StorageUnavailable, match='try again'):
            use()
        network.heal()
        assert use() == 100


def test_a_log_on_a_server_that_stops_is_out_of_reach() -> None:
    with s3_endpoint() as url:
        server = S3Server('moto', url.removeprefix('http://'))
        server.make_bucket()
        config = server.config(uuid.uuid4().hex)
        store = DuckDBParquetStore(config)
        log = store.log('images')
        assert log.storage.options is not None
        log.storage.options['max_retries'] = '1'
        store.create_table('images', Image, partition_by=PARTITION_BY)
        store.write('images', [image(1)])
        rows = pa.Table.from_pylist([image(2)], schema=log.snapshot().stored)
        staging = store.stage('images')
        staging.add(rows)
    for use in (
        lambda: store.write('images', [image(2)]),
        lambda: store.count('images'),
        lambda: log.commit(staging.adds),
        lambda: log.create(rows.schema, PARTITION_BY),
        lambda: log.add_columns(pa.schema([('notes', 'string')])),
        lambda: registry.update(log.storage, lambda: {'more': {}}),
    ):
        with pytest.raises(StorageUnavailable, match=r'^the storage does not answer for now, try again: [^\x1b\n]*$'):
            use()
    with pytest.raises(BadRecord), staging:  # and what went wrong before that is told
        raise BadRecord
    with s3_endpoint() as url, DuckDBParquetStore(dataclasses.replace(config, s3_endpoint=url)) as again:
        assert [row['image_id'] for row in again.read('images')] == ['image 00001']


def test_a_commit_without_an_answer_is_in_doubt(shaky: tuple[DuckDBParquetStore, TcpProxy]) -> None:
    store, network = shaky
    network.answer(503, times=100, to=b'.json HTTP')
    with pytest.raises(StorageUnavailable, match='look whether the rows are there'):
        store.write('images', [image(100, month=1)])
    network.heal()
    store.write('images', [image(101, month=1)])
    assert store.count('images') == 101


def test_an_object_that_is_gone_is_damage(shaky: tuple[DuckDBParquetStore, TcpProxy]) -> None:
    store, _ = shaky
    storage = store.log('images').storage
    [path] = store.log('images').snapshot().files['path'].to_pylist()
    storage.delete([f'images/{path}'])
    for use in reads(store):
        with pytest.raises(DamagedData, match='gone'):
            use()


def test_without_the_right_to_read_it_says_so(shaky: tuple[DuckDBParquetStore, TcpProxy]) -> None:
    store, network = shaky
    network.answer(403, times=100, to=b'.parquet')
    with pytest.raises(OSError, match='ACCESS_DENIED') as caught:
        store.bulk_read('images')
    assert not isinstance(caught.value, StoreError)


@pytest.mark.parametrize('root', ['s3://', 's3:///', 's3:///store/prefix'])
def test_a_root_without_a_bucket_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match='names no bucket'):
        DuckDBParquetStore(DuckDBParquetConfig(root=root))


def test_what_a_server_says_for_itself_is_one_line(moto: S3Server) -> None:
    config = dataclasses.replace(moto.config('x'), root='s3://no-such-bucket/x')
    with DuckDBParquetStore(config) as store, pytest.raises(OSError, match='NoSuchBucket') as caught:
        store.create_table('images', Image)
    assert not isinstance(caught.value, StoreError)
    assert str(caught.value).isprintable()
