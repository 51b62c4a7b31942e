"""Lanes that run elsewhere: what becomes of those that are kept out, what the lead tells of them, and where they land."""

from __future__ import annotations

import logging
import os
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from distributed import Client as DaskClient
from distributed import LocalCluster

from amp import Client, events
from amp.backfill.dask_pool import DaskExecutor
from amp.devserver import LocalAmp
from amp.errors import ConnectError, DestinationError, SchemaError
from amp.instrumentation import prometheus
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.registry import create_loader
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor
from amp.streaming.resilience import PRESETS, BackPressureConfig
from tests.integration.test_backfill_bad_input import commits_wait_until
from tests.integration.test_parallel_streaming import below, executor
from tests.support.command_line import amp as run_amp
from tests.support.faults import hook
from tests.support.following import SQL, in_order, stored
from tests.support.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings('default')]


@pytest.fixture(scope='module')
def amp():
    with LocalAmp.simulate(seed=5, blocks=300, logs_per_block=(1, 4)) as server:
        yield server


@pytest.fixture
def destination(tmp_path):
    return f'duckdb:///{tmp_path}/chain.db'


@pytest.fixture(scope='module')
def dask(tmp_path_factory):
    """A cluster in this process, which all the same speaks over sockets: nothing has to be started."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol='tcp://', host='127.0.0.1',
            dashboard_address=None, local_directory=str(tmp_path_factory.mktemp('dask')),
        ) as cluster,
        DaskClient(cluster) as client,
    ):  # fmt: skip
        yield client


@pytest.fixture(scope='module')
def processes():
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        yield pool


class Unreadable:
    """An answer that travels, and cannot be made again where it arrives."""

    def __reduce__(self):
        return _no_reading, ()


def _no_reading() -> None:
    raise LookupError('this cannot be read')


def test_an_answer_of_dask_that_cannot_be_read_is_an_error_and_not_a_wait_for_ever(dask):
    with DaskExecutor(dask) as pool:
        assert pool.submit(max, 1, 3).result(30) == 3
        assert isinstance(pool.submit(Unreadable).exception(30), LookupError)
        assert isinstance(pool.submit(int, 'x').exception(30), ValueError)
    with pytest.raises(RuntimeError, match='shut down'):
        pool.submit(max, 1, 2)
    assert dask.submit(max, 1, 2).result(30) == 2


def test_no_dask_there():
    import dask as settings

    with (
        settings.config.set({'distributed.comm.timeouts.connect': '1s'}),
        pytest.raises(ConnectError, match='no Dask cluster answers'),
    ):
        DaskExecutor(f'tcp://127.0.0.1:{free_port()}')


@pytest.mark.postgresql
def test_workers_that_are_kept_out_leave_their_part_to_the_others(amp, postgresql_test_config, caplog, monkeypatch):
    hook(monkeypatch, commits_wait_until(lambda: 'of 6 ends' in caplog.text))
    name = f'kept_out_{os.getpid()}'
    with create_loader('postgresql', postgresql_test_config) as admin, ThreadPoolExecutor(6) as pool:
        admin.connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'few' CONNECTION LIMIT 3".encode())
        admin.connection.execute(f'CREATE SCHEMA {name} AUTHORIZATION {name}'.encode())
        try:
            config = {**postgresql_test_config, 'schema': name, 'user': name, 'password': 'few'}
            runner = executor(amp, 'few', max_block=300, num_workers=6, partition_size=10, executor=pool)
            runner.client.configure_connection('few', 'postgresql', config)
            with caplog.at_level(logging.WARNING, 'amp.backfill'):
                results = list(runner.load_with_resume_optimization())
            assert [r.error for r in results if not r.success] == []
            assert sum(r.metadata['blocks'] for r in results) == 300
            assert 'of 6 ends' in caplog.text
            with create_loader('postgresql', config) as loader:
                assert in_order(loader.scan('logs').read_all()) == below(amp, 300)
        finally:
            admin.connection.execute(f'DROP SCHEMA {name} CASCADE'.encode())
            admin.connection.execute(f'DROP ROLE {name}'.encode())


@pytest.mark.duckdb
def test_when_nobody_is_let_in_it_ends_with_the_reason(amp, destination, monkeypatch):
    with ThreadPoolExecutor(2) as pool:
        runner = executor(amp, destination, max_block=200, num_workers=2, executor=pool)
        results = runner.load_with_resume_optimization()

        def shut(self: DuckDBLoader) -> None:
            raise DestinationError('the gate is shut', hint='ring the bell')

        next_loader = runner.client.make_loader
        monkeypatch.setattr(runner.client, 'make_loader', lambda *a: _then(next_loader(*a), monkeypatch, shut))
        with pytest.raises(DestinationError, match='the gate is shut') as raised:
            list(results)
        assert raised.value.hint == 'ring the bell'


def _then(loader, monkeypatch, shut):
    """A loader for the plan; those that are made afterwards are shut out."""
    connect = loader.connect
    loader.connect = lambda: (connect(), monkeypatch.setattr(DuckDBLoader, 'connect', shut))
    return loader


@pytest.mark.duckdb
def test_a_table_of_other_columns_ends_it_at_once(amp, destination):
    with DuckDBLoader({'path': destination.removeprefix('duckdb:///')}) as only:
        only.connection.execute('CREATE TABLE logs (block_num INTEGER)')
    with ThreadPoolExecutor(2) as pool, pytest.raises(SchemaError, match='the rows have columns'):
        list(executor(amp, destination, max_block=100, executor=pool).load_with_resume_optimization())
    assert stored(destination) == []


@pytest.mark.duckdb
def test_what_workers_elsewhere_have_in_hand_and_have_done_is_told_by_the_lead(amp, destination):
    """Whole tasks, each begun and ended; commits as they are heard of; afterwards no block is in hand."""
    from prometheus_client import CollectorRegistry

    registry, seen = CollectorRegistry(), []
    with ThreadPoolExecutor(2) as pool:
        stops = [prometheus.watch(registry), events.listen(seen.append)]
        try:
            results = list(
                executor(
                    amp, destination, max_block=100, num_workers=2, partition_size=5, executor=pool
                ).load_with_resume_optimization()
            )
        finally:
            for stop in stops:
                stop()
    commits = [event for event in seen if isinstance(event, events.Committed)]
    assert sum(event.rows for event in commits) == sum(r.rows_loaded for r in results) == len(below(amp, 100))
    assert sum(event.bytes for event in commits) == sum(r.metadata['bytes'] for r in results) > 0
    told = [event for event in seen if isinstance(event, events.Working)]
    spans = sorted((event.first, event.last) for event in told if event.first is not None)
    assert spans == [(n, n + 19) for n in range(0, 100, 20)]
    for worker in {event.worker for event in told}:
        own = [event.first is None for event in told if event.worker == worker]
        assert own == [False, True] * (len(own) // 2)


def landed(amp: LocalAmp, pool, loader_name: str, config: dict[str, object]) -> None:
    """Two workers of `pool` load 100 blocks, once, and a rerun has nothing to do."""
    with Client(amp.url) as client:
        client.configure_connection('it', loader_name, config)
        chosen = ParallelConfig(2, 'eth_rpc.logs', max_block=100, partition_size=10, executor=pool)
        for tasks in (10, 0):
            runner = ParallelStreamExecutor(client, chosen, query=SQL, connection='it', destination='logs')
            results = list(runner.load_with_resume_optimization())
            assert [r.error for r in results if not r.success] == []
            assert len(results) == tasks
        with create_loader(loader_name, config) as loader:
            assert in_order(loader.scan('logs').read_all()) == below(amp, 100)
            assert [finding for report in verify(loader, source=client) for finding in report.findings] == []


@pytest.mark.parquet
def test_processes_into_the_parquet_store(amp, processes, tmp_path):
    landed(amp, processes, 'parquet', {'root': f'{tmp_path}/store'})


@pytest.mark.parquet
def test_dask_into_the_parquet_store(amp, dask, tmp_path):
    with DaskExecutor(dask) as pool:
        landed(amp, pool, 'parquet', {'root': f'{tmp_path}/store'})


@pytest.mark.parquet
def test_the_command_takes_a_dask_cluster(amp, dask, tmp_path):
    to = f'parquet:///{tmp_path}/store'
    typed = run_amp(
        'backfill', amp.url, SQL, '--to', to, '-t', 'logs', '--end', '100', '-w', '2', '--partition-size', '10',
        '--dask', dask.scheduler.address,
    )  # fmt: skip
    assert typed.returncode == 0, typed.stderr
    assert stored(to) == below(amp, 100)


@pytest.fixture
def snowflake(snowflake_test_config):
    return {**snowflake_test_config, 'schema': f'REMOTE_{uuid.uuid4().hex[:12]}'.upper()}


@pytest.mark.snowflake
def test_processes_into_snowflake(amp, processes, snowflake):
    landed(amp, processes, 'snowflake', snowflake)


@pytest.mark.snowflake
def test_dask_into_snowflake(amp, dask, snowflake):
    with DaskExecutor(dask) as pool:
        landed(amp, pool, 'snowflake', snowflake)


@pytest.mark.duckdb
@pytest.mark.parametrize('elsewhere', [False, True])
def test_back_pressure_of_a_parallel_load_leaves_the_preset_of_the_url(amp, destination, monkeypatch, elsewhere):
    """Retries and breaker are the preset's, also where it comes with the URL; the pause is the load's own."""
    made = []
    connect = DuckDBLoader.connect

    def connected(self: DuckDBLoader) -> None:
        made.append(self.attempts.config)
        connect(self)

    monkeypatch.setattr(DuckDBLoader, 'connect', connected)
    pause = BackPressureConfig(max_delay_ms=7)
    url = f'{destination}?resilience=production'
    with ThreadPoolExecutor(1) as pool:
        chosen = {'back_pressure_config': pause, 'executor': pool if elsewhere else None}
        runner = executor(amp, url, max_block=80, num_workers=2, **chosen)
        assert all(result.success for result in runner.load_with_resume_optimization())
    assert len(made) >= 3
    assert {config.back_pressure for config in made} == {pause}
    assert {config.circuit_breaker for config in made} == {PRESETS['production'].circuit_breaker}
    assert {config.retry for config in made} == {PRESETS['production'].retry}
