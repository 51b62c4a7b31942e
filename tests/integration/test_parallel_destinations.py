"""A backfill with two workers and its hand-over, into destinations of every make."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from contextlib import closing

import pytest

from amp import Client
from amp.config.urls import loader_of_url
from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig
from tests.support.following import SQL, at_head, expected, in_order, stored

pytestmark = pytest.mark.integration


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=12, blocks=400, logs_per_block=(0, 3)) as server:
        yield server


@pytest.mark.parametrize(
    'url',
    [
        pytest.param('deltalake:///{path}/lake', marks=pytest.mark.deltalake),
        pytest.param('iceberg:///{path}/warehouse', marks=pytest.mark.iceberg),
        pytest.param('lmdb:///{path}/rows', marks=pytest.mark.lmdb),
        pytest.param('parquet:///{path}/store', marks=pytest.mark.parquet),
        pytest.param('clickhouse+chdb:///{path}/engine', marks=[pytest.mark.clickhouse, pytest.mark.slow]),
    ],
    ids=lambda url: url.partition(':')[0],
)
def test_backfill_hand_over_and_reorg(amp, tmp_path, url):
    destination = url.format(path=tmp_path)
    config = ParallelConfig(2, 'eth_rpc.logs', partition_size=100, reorg_buffer=100)
    kinds = []
    with Client(amp.url) as client:
        followed = client.sql(SQL).load(destination, 'logs', stream=True, parallel_config=config)
        with closing(followed) as results:
            for result in results:
                kinds.append(result.metadata['operation'])
                if kinds[-1] == 'load_stream' and at_head(amp, result):
                    if amp.head[0] > 399:
                        break
                    amp.reorg(5, extend=3)
        assert kinds.count('load_partition') == 3
        assert stored(destination) == expected(amp)
        with create_loader(loader_of_url(destination), {'url': destination}) as loader:
            assert [finding for report in verify(loader, source=client) for finding in report.findings] == []


_KILLED = """
import json, os, signal, sys
from amp import Client
from amp.loaders import points
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor
from tests.support.following import SQL
url, loader, config, point = sys.argv[1:]
left = 2
def reached(name):
    global left
    left -= name == point
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
points.hook = reached
client = Client(url)
client.configure_connection('it', loader, json.loads(config))
chosen = ParallelConfig(2, 'eth_rpc.logs', partition_size=50, max_block=300)
list(ParallelStreamExecutor(client, chosen, query=SQL, connection='it', destination='logs').load_with_resume_optimization())
"""


def killed_and_continued(amp: LocalAmp, loader_name: str, config: dict[str, object]) -> None:
    """Killed with -9 before a commit, run again and killed after one, run again: every row below the end, once."""
    for point in ('lane.before_commit', 'lane.committed'):
        arguments = [amp.url, loader_name, json.dumps(config), point]
        done = subprocess.run([sys.executable, '-c', _KILLED, *arguments], check=False, timeout=240)
        assert done.returncode == -9
    with Client(amp.url) as client:
        client.configure_connection('it', loader_name, config)
        chosen = ParallelConfig(2, 'eth_rpc.logs', partition_size=70, max_block=300)
        result = client.sql(SQL).load('it', 'logs', parallel_config=chosen)
        assert result.metadata['blocks'] < 300
        with create_loader(loader_name, config) as loader:
            assert in_order(loader.scan('logs').read_all()) == [row for row in expected(amp) if row[0] < 300]
            assert [finding for report in verify(loader, source=client) for finding in report.findings] == []


@pytest.mark.parquet
def test_killed_and_continued_into_the_parquet_store(amp, tmp_path):
    killed_and_continued(amp, 'parquet', {'root': f'{tmp_path}/store'})


@pytest.mark.slow
@pytest.mark.deltalake
def test_killed_and_continued_into_delta_lake(amp, tmp_path):
    killed_and_continued(amp, 'deltalake', {'root': f'{tmp_path}/lake'})


@pytest.mark.snowflake
def test_killed_and_continued_into_snowflake(amp, snowflake_test_config):
    """Each lane has a pool of sessions of its own."""
    killed_and_continued(
        amp, 'snowflake', {**snowflake_test_config, 'schema': f'LANES_{uuid.uuid4().hex[:12]}'.upper()}
    )
