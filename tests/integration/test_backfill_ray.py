"""A backfill on Ray, one of whose workers is killed in the middle. Ray is not among what the tests need: see the mark."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress

import psutil
import pytest

from amp import Client
from amp.devserver import LocalAmp
from amp.errors import ConfigError
from amp.loaders.registry import create_loader
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor
from tests.support.following import SQL, expected, in_order

pytestmark = [
    pytest.mark.integration,
    pytest.mark.postgresql,
    pytest.mark.slow,
    pytest.mark.filterwarnings('default'),
]


@pytest.fixture(autouse=True)
def _with_ray():
    pytest.importorskip('ray')


def a_worker_at_work() -> psutil.Process:
    """Ray writes what a worker does where its command line was."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if ''.join(process.cmdline()).startswith('ray::_call'):
                    return process
        time.sleep(0.02)
    raise AssertionError('no worker has anything to do')


def test_a_killed_worker_costs_no_row(postgresql_test_config, caplog):
    caplog.set_level(logging.WARNING, 'amp.backfill')
    from amp.backfill.ray_pool import RayExecutor

    config = {**postgresql_test_config, 'schema': f'ray_{os.getpid()}'}
    with (
        LocalAmp.simulate(seed=6, blocks=600, logs_per_block=(0, 4)) as amp,
        RayExecutor('local', workers=2) as pool,
        Client(amp.url) as client,
    ):
        client.configure_connection('pg', 'postgresql', config)
        chosen = ParallelConfig(2, 'eth_rpc.logs', max_block=600, partition_size=20, executor=pool)
        runner = ParallelStreamExecutor(client, chosen, query=SQL, connection='pg', destination='logs')
        results = []
        for result in runner.load_with_resume_optimization():
            if not results:
                os.kill(a_worker_at_work().pid, signal.SIGKILL)
            results.append(result)
        assert all(result.success for result in results)
        assert 'lost its worker' in caplog.text
        with create_loader('postgresql', config) as loader:
            assert in_order(loader.scan('logs').read_all()) == expected(amp)
            assert [finding for report in verify(loader, source=client) for finding in report.findings] == []
            loader.connection.execute(f'DROP SCHEMA "{config["schema"]}" CASCADE'.encode())


def test_what_the_executor_refuses():
    from amp.backfill.ray_pool import RayExecutor

    with pytest.raises(ConfigError, match='started here'):
        RayExecutor('auto', workers=2)
    pool = RayExecutor('local', workers=1)
    assert pool.submit(max, 1, 3).result() == 3
    pool.shutdown()
    with pytest.raises(RuntimeError, match='shut down'):
        pool.submit(max, 1, 2)
