"""A backfill on a Dask cluster, one of whose two workers is killed in the middle."""

from __future__ import annotations

import os
import signal

import pytest
from distributed import Client as DaskClient
from distributed import LocalCluster

from amp import Client
from amp.backfill.dask_pool import DaskExecutor
from amp.devserver import LocalAmp
from amp.loaders.registry import create_loader
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor
from tests.support.following import SQL, expected, in_order

pytestmark = [pytest.mark.integration, pytest.mark.postgresql, pytest.mark.filterwarnings('default')]


def test_a_killed_worker_costs_no_row(postgresql_test_config, tmp_path):
    config = {**postgresql_test_config, 'schema': f'dask_{os.getpid()}'}
    with (
        LocalAmp.simulate(seed=6, blocks=600, logs_per_block=(0, 4)) as amp,
        LocalCluster(
            n_workers=2, threads_per_worker=1, host='127.0.0.1', dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        DaskClient(cluster) as dask,
        Client(amp.url) as client,
    ):
        pids = list(dask.run(os.getpid).values())
        client.configure_connection('pg', 'postgresql', config)
        chosen = ParallelConfig(2, 'eth_rpc.logs', max_block=600, partition_size=20, executor=DaskExecutor(dask))
        runner = ParallelStreamExecutor(client, chosen, query=SQL, connection='pg', destination='logs')
        results = []
        for result in runner.load_with_resume_optimization():
            if not results:
                os.kill(pids[0], signal.SIGKILL)
            results.append(result)
        assert all(result.success for result in results)
        with create_loader('postgresql', config) as loader:
            assert in_order(loader.scan('logs').read_all()) == expected(amp)
            assert [finding for report in verify(loader, source=client) for finding in report.findings] == []
            loader.connection.execute(f'DROP SCHEMA "{config["schema"]}" CASCADE'.encode())
