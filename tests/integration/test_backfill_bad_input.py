"""What a backfill cannot do, or what is taken from it on the way: a clear answer each time, and nothing lost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from amp import Client
from amp.devserver import LocalAmp
from amp.errors import ConfigError, LoadError, SourceError
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.registry import create_loader
from amp.streaming.resilience import RetryConfig
from tests.integration.test_parallel_streaming import below, blocks, executor, stored_tables
from tests.support.command_line import amp as run_amp
from tests.support.faults import hook
from tests.support.following import SQL, expected, in_order, stored

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture(scope='module')
def amp():
    with LocalAmp.simulate(seed=5, blocks=600, logs_per_block=(1, 4)) as server:
        yield server


@pytest.fixture
def destination(tmp_path):
    return f'duckdb:///{tmp_path}/chain.db'


@pytest.mark.parametrize(
    ('column', 'sql', 'told'),
    [
        ('log_index', 'SELECT block_num, log_index FROM eth_rpc.logs', "'log_index' is no block number: it differs"),
        ('log_index', 'SELECT * FROM eth_rpc.logs', "'log_index' is no block number: it differs"),
        ('n', 'WITH a AS (SELECT * FROM eth_rpc.logs) SELECT block_num - 1 AS n FROM a', "'n' is no block number"),
        ('n', 'SELECT block_num AS n FROM eth_rpc.logs UNION ALL SELECT tx_index FROM eth_rpc.logs', 'no block number'),
        ('address', 'SELECT * FROM eth_rpc.logs', "'address' is no block number: it is fixed_size_binary"),
        ('nix', 'SELECT * FROM eth_rpc.logs', "does not select 'nix'"),
    ],
)
def test_a_column_that_is_not_the_number_of_the_block(amp, destination, column, sql, told):
    with pytest.raises(ConfigError, match=told):
        list(executor(amp, destination, sql, block_column=column, max_block=300).load_with_resume_optimization())
    assert not stored_tables(destination)


@pytest.mark.parametrize(
    ('column', 'sql'),
    [
        ('_block_num', 'SELECT _block_num, address FROM eth_rpc.logs'),
        ('n', 'SELECT CAST(block_num AS BIGINT) AS n, address FROM eth_rpc.logs -- as it was'),
        # Nothing to hold it against here, so it is taken at its word.
        ('n', 'SELECT n FROM (SELECT block_num AS n FROM eth_rpc.logs) AS hidden'),
    ],
)
def test_a_column_that_is_the_number_of_the_block_by_another_name(amp, destination, column, sql):
    results = list(executor(amp, destination, sql, block_column=column, max_block=90).load_with_resume_optimization())
    assert sum(r.rows_loaded for r in results) == len(below(amp, 90))


def test_a_table_without_blocks(destination):
    with LocalAmp.simulate(seed=5, blocks=0) as empty, pytest.raises(SourceError, match='no blocks for this query'):
        list(executor(empty, destination, max_block=10).load_with_resume_optimization())
    assert not stored_tables(destination)


def test_no_blocks_between_the_ends(amp, destination):
    with pytest.raises(ConfigError, match=r'min_block \(50\) must be < max_block \(50\)'):
        executor(amp, destination, min_block=50, max_block=50)
    typed = run_amp('backfill', amp.url, SQL, '--to', destination, '-t', 'logs', '--from', '9', '--end', '9')
    assert typed.returncode == 2
    assert b'--from 9 is not below --end 9' in typed.stderr


def commits_wait_until(condition: Callable[[], bool]) -> Callable[[str], None]:
    """A hook that holds back whoever would commit: nobody is through before the others have come."""
    deadline = time.monotonic() + 60

    def wait(point: str) -> None:
        while point == 'lane.before_commit' and not condition() and time.monotonic() < deadline:
            time.sleep(0.02)

    return wait


@pytest.mark.postgresql
def test_more_workers_than_connections(amp, postgresql_test_config, caplog, monkeypatch):
    """Those that the server does not let in leave their part to the others."""
    hook(monkeypatch, commits_wait_until(lambda: 'too many connections' in caplog.text))
    name = f'few_{os.getpid()}'
    with create_loader('postgresql', postgresql_test_config) as admin:
        admin.connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'few' CONNECTION LIMIT 4".encode())
        admin.connection.execute(f'CREATE SCHEMA {name} AUTHORIZATION {name}'.encode())
        try:
            config = {**postgresql_test_config, 'schema': name, 'user': name, 'password': 'few'}
            quick = RetryConfig(max_retries=2, initial_backoff_ms=10, max_backoff_ms=50)
            runner = executor(amp, 'few', max_block=400, num_workers=8, partition_size=10, retry_config=quick)
            runner.client.configure_connection('few', 'postgresql', config)
            with caplog.at_level(logging.WARNING, 'amp.backfill'):
                results = list(runner.load_with_resume_optimization())
            assert [r.error for r in results if not r.success] == []
            assert sum(r.metadata['blocks'] for r in results) == 400
            assert 'too many connections' in caplog.text
            with create_loader('postgresql', config) as loader:
                assert in_order(loader.scan('logs').read_all()) == below(amp, 400)
        finally:
            admin.connection.execute(f'DROP SCHEMA {name} CASCADE'.encode())
            admin.connection.execute(f'DROP ROLE {name}'.encode())


def test_a_table_of_other_columns_ends_it_at_once(amp, destination):
    with DuckDBLoader({'path': destination.removeprefix('duckdb:///')}) as only:
        only.connection.execute('CREATE TABLE logs (block_num INTEGER)')
    with pytest.raises(LoadError, match=r"blocks \d+ to \d+ of 'logs' were not loaded: the rows have columns"):
        list(executor(amp, destination, max_block=100).load_with_resume_optimization())
    assert stored(destination) == []


def _die(*_: object) -> None:
    os._exit(9)


def test_a_worker_that_is_lost_for_good(amp, destination):
    """A pool whose process died takes nothing more: every partition is told with its range, and a rerun loads them."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn'), initializer=_die) as pool:
        runner = executor(amp, destination, max_block=200, num_workers=1, partition_size=40, executor=pool)
        results = list(runner.load_with_resume_optimization())
    assert not any(r.success for r in results)
    assert blocks(results) == [(n, n + 40) for n in range(0, 200, 40)]
    list(executor(amp, destination, max_block=200).load_with_resume_optimization())
    assert stored(destination) == below(amp, 200)


def test_the_head_moves_backwards(tmp_path):
    """A server restored from an older copy: what it no longer has is told, what is there stays, and it goes on later."""
    destination = f'duckdb:///{tmp_path}/chain.db'
    with LocalAmp.simulate(seed=5, blocks=300) as before:
        list(executor(before, destination, max_block=200, reorg_buffer=0).load_with_resume_optimization())
    with LocalAmp.simulate(seed=5, blocks=150) as restored:
        with pytest.raises(SourceError, match='blocks up to 149, not up to 299'):
            list(executor(restored, destination, max_block=300).load_with_resume_optimization())
        shorter = list(executor(restored, destination, max_block=150).load_with_resume_optimization())
        assert shorter == []
        assert stored(destination) == in_order(before_rows(destination))
        restored.mine(150)
        list(executor(restored, destination, max_block=300).load_with_resume_optimization())
        assert stored(destination) == expected(restored)


def before_rows(destination: str):
    with DuckDBLoader({'path': destination.removeprefix('duckdb:///')}) as loader:
        return loader.scan('logs').read_all()


def test_the_head_moves_backwards_while_it_runs(tmp_path):
    """The plan was made with blocks that are gone: such partitions fail with their range, and nothing is recorded."""
    destination = f'duckdb:///{tmp_path}/chain.db'
    once = RetryConfig(max_retries=0)
    with LocalAmp.simulate(seed=5, blocks=300) as full, LocalAmp.simulate(seed=5, blocks=150) as restored:
        runner = executor(full, destination, max_block=300, num_workers=1, partition_size=50, retry_config=once)
        results = []
        for result in runner.load_with_resume_optimization():
            if not results:
                runner.client.transport = Client(restored.url).transport
            results.append(result)
        assert blocks(r for r in results if not r.success)[-1] == (250, 300)
        assert 'the server has blocks 0 to 149' in next(r.error for r in results if not r.success)
        list(executor(full, destination, max_block=300).load_with_resume_optimization())
        assert stored(destination) == expected(full)
