"""A backfill with two workers and its hand-over, into destinations of every make."""

from __future__ import annotations

from contextlib import closing

import pytest

from amp import Client
from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from amp.loaders.urls import loader_of_url
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig
from tests.support.following import SQL, at_head, expected, stored

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
