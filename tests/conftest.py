"""Session fixtures: where each destination is, for every test that wants one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair: on a busy one a first import alone is longer than any bound, and a
# test that hangs is ended by the timeout of all tests.
# The examples are the same in every run; who looks for new ones says `--hypothesis-profile search`.
settings.register_profile('amp', deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile('search', settings.get_profile('amp'), derandomize=False)
settings.load_profile('amp')

# A shell starts background jobs with SIGINT ignored, which is inherited; these tests press it, here and in processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every worker must give a test the same name: an object's address in one is another in each of them."""
    with_addresses = [item.nodeid for item in items if ' at 0x' in item.nodeid]
    if with_addresses:
        raise pytest.UsageError(f'Names of tests with an address in them (give `ids=`): {with_addresses}')


@pytest.fixture(scope='session')
def amp_test_data() -> Path | None:
    """The folder of real Amp-written Parquet, where it is at hand."""
    folder = Path(os.environ.get('AMP_TEST_DATA', Path(__file__).parents[2] / 'shared' / 'data'))
    return folder if folder.is_dir() else None


@pytest.fixture(scope='session')
def duckdb_test_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {'path': str(tmp_path_factory.mktemp('duckdb') / 'test.duckdb')}


def _container_of(system: str):
    @pytest.fixture(scope='session', name=f'{system}_container')
    def running():
        """The server in a container; None where there is no Docker, or USE_TESTCONTAINERS is false."""
        from tests.support.containers import container

        with container(system) as started:
            yield started

    return running


redis_container = _container_of('redis')
postgresql_container = _container_of('postgresql')
clickhouse_container = _container_of('clickhouse')


@pytest.fixture(scope='session')
def redis_test_config(redis_container):
    """A server: in a container, else the one that REDIS_HOST names, else one that is started here."""
    from tests.support.redis_server import redis_config

    with redis_config(redis_container) as config:
        yield config


@pytest.fixture(scope='session')
def lmdb_test_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {'db_path': str(tmp_path_factory.mktemp('lmdb'))}


@pytest.fixture(scope='session')
def iceberg_test_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {'warehouse': str(tmp_path_factory.mktemp('iceberg'))}


@pytest.fixture(scope='session')
def postgresql_test_config(postgresql_container):
    """A server: in a container, else the one that POSTGRES_HOST names, else one that is started here."""
    from tests.support.postgres import postgresql_config

    with postgresql_config(postgresql_container) as config:
        yield config


@pytest.fixture(scope='session')
def clickhouse_test_config(tmp_path_factory: pytest.TempPathFactory, clickhouse_container):
    """A server: in a container, else the one that CLICKHOUSE_HOST names, else the real engine behind a small front."""
    from tests.support.clickhouse import clickhouse_config

    with clickhouse_config(tmp_path_factory.mktemp('clickhouse'), clickhouse_container) as config:
        yield config


@pytest.fixture(scope='session')
def clickhouse_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The engine inside the process of the tests, which can have one folder open at a time."""
    return {'interface': 'chdb', 'path': str(tmp_path_factory.mktemp('chdb') / 'data')}


@pytest.fixture(scope='session')
def snowflake_test_config():
    from tests.support.snowflake import snowflake_config

    with snowflake_config() as config:
        yield config


@pytest.fixture(scope='session')
def s3_test_options():
    """Storage options for a bucket; the memory of its server is one, so use a root of your own."""
    from tests.support.s3 import s3_options

    with s3_options() as options:
        yield options


@pytest.fixture(scope='session')
def deltalake_test_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {'root': str(tmp_path_factory.mktemp('deltalake') / 'lake')}


@pytest.fixture(scope='session')
def parquet_test_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {'root': str(tmp_path_factory.mktemp('parquet') / 'store')}


@pytest.fixture
def small_test_table() -> pa.Table:
    return pa.table(
        {
            'id': pa.array(range(100), pa.int64()),
            'name': [f'name {i}' for i in range(100)],
            'value': pa.array([i * 0.5 for i in range(100)], pa.float64()),
            'flag': [i % 2 == 0 for i in range(100)],
        }
    )
