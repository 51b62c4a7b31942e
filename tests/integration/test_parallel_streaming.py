"""History in parallel against a local Amp: every row once, whoever dies, and then the stream from the next block."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context

import pytest

from amp import Client
from amp.backfill.lane import LaneSpec
from amp.backfill.remote import RemoteTask
from amp.config.urls import loader_of_url
from amp.devserver import LocalAmp
from amp.errors import ConfigError, LoadError, SourceError
from amp.loaders.registry import create_loader
from amp.loaders.status import status_of
from amp.loaders.types import LoadConfig, LoadMode
from amp.loaders.verify import verify
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor
from amp.streaming.resilience import RetryConfig
from tests.support.faults import hook
from tests.support.following import SQL, at_head, expected, follow, stored, until_head

pytestmark = pytest.mark.integration

QUICK = RetryConfig(max_retries=8, initial_backoff_ms=10, max_backoff_ms=100)


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=5, blocks=600, logs_per_block=(0, 4), microbatch_max_blocks=50) as server:
        yield server


@pytest.fixture
def destination(tmp_path):
    return f'duckdb:///{tmp_path}/chain.db'


def executor(amp: LocalAmp, destination: str, sql: str = SQL, **changes) -> ParallelStreamExecutor:
    chosen = {'num_workers': 3, 'table_name': 'eth_rpc.logs', 'partition_size': 40, 'retry_config': QUICK, **changes}
    return ParallelStreamExecutor(
        Client(amp.url), ParallelConfig(**chosen), query=sql, connection=destination, destination='logs'
    )


def below(amp: LocalAmp, end: int):
    return [row for row in expected(amp) if row[0] < end]


def blocks(results) -> list[tuple[int, int]]:
    return sorted((r.metadata['start_block'], r.metadata['end_block']) for r in results)


def test_a_closed_range_lands_once_whatever_the_workers_and_sizes_of_a_rerun(amp, destination):
    first = list(executor(amp, destination, max_block=250).load_with_resume_optimization())
    assert all(result.success for result in first)
    assert blocks(first)[0] == (0, 40)
    assert blocks(first)[-1] == (240, 250)
    assert stored(destination) == below(amp, 250)
    again = list(
        executor(amp, destination, num_workers=5, partition_size=33, max_block=400).load_with_resume_optimization()
    )
    assert blocks(again)[0] == (250, 283)
    assert stored(destination) == below(amp, 400)
    assert list(executor(amp, destination, max_block=400).load_with_resume_optimization()) == []


def test_gaps_are_filled_and_nothing_else(amp, destination):
    list(executor(amp, destination, min_block=100, max_block=200).load_with_resume_optimization())
    list(executor(amp, destination, min_block=300, max_block=301).load_with_resume_optimization())
    filled = list(executor(amp, destination, max_block=350, partition_size=1_000).load_with_resume_optimization())
    assert blocks(filled) == [(0, 100), (200, 300), (301, 350)]
    assert stored(destination) == below(amp, 350)


def test_without_a_look_at_gaps_only_what_is_above_is_loaded(amp, destination):
    list(executor(amp, destination, min_block=100, max_block=200).load_with_resume_optimization())
    above = list(
        executor(amp, destination, max_block=250, partition_size=500).load_with_resume_optimization(detect_gaps=False)
    )
    assert blocks(above) == [(200, 250)]
    list(executor(amp, destination, max_block=250).load_with_resume_optimization())
    assert stored(destination) == below(amp, 250)


def test_sizes_are_found_while_it_runs(amp, destination):
    results = list(executor(amp, destination, max_block=400, partition_size=None).load_with_resume_optimization())
    assert sum(r.metadata['blocks'] for r in results) == 400
    assert stored(destination) == below(amp, 400)


def test_the_older_name_takes_a_mapping_or_a_load_config(amp, destination):
    runner = executor(amp, destination, max_block=50)
    for said in (None, {'mode': 'append', 'create_table': True}, LoadConfig()):
        list(runner.execute_parallel_stream(SQL, 'logs', destination, said))
        assert stored(destination) == below(amp, 50)
    with pytest.raises(ConfigError, match='cannot overwrite'):
        next(runner.execute_parallel_stream(SQL, 'logs', destination, LoadConfig(mode=LoadMode.OVERWRITE)))


def followed(amp: LocalAmp, runner: ParallelStreamExecutor, before_head=lambda: None) -> list:
    results = []
    with closing(runner.load_with_resume_optimization()) as stream:
        for result in stream:
            if not results or (results[-1].metadata['operation'] != result.metadata['operation']):
                before_head()
            results.append(result)
            if result.metadata['operation'] == 'load_stream' and at_head(amp, result):
                return results
    raise AssertionError('the stream ended')


def test_backfill_then_follow_from_the_very_next_block(amp, destination):
    results = followed(amp, executor(amp, destination, reorg_buffer=100))
    streamed = [r for r in results if r.metadata['operation'] == 'load_stream']
    assert streamed[0].metadata['ranges'][0]['start'] == 500
    assert blocks(r for r in results if r.metadata['operation'] == 'load_partition')[-1][1] == 500
    assert stored(destination) == expected(amp)
    amp.mine(5)
    amp.reorg(8)
    until_head(amp, destination)
    assert stored(destination) == expected(amp)
    with create_loader(loader_of_url(destination), {'url': destination}) as loader:
        [status] = status_of(loader, Client(amp.url))
        assert not status.gaps
        assert [(r.start, r.end) for r in status.history] == [(0, amp.head[0])]
        assert status.lanes == 3
        assert [f for report in verify(loader, source=Client(amp.url)) for f in report.findings] == []


def test_the_chain_moves_between_backfill_and_stream(amp, destination):
    moved = []

    def once():
        if not moved:
            moved.append(amp.reorg(30, extend=3))

    followed(amp, executor(amp, destination, reorg_buffer=100), once)
    assert stored(destination) == expected(amp)


def test_rows_near_the_head_are_loaded_but_the_stream_brings_them_again(amp, destination):
    results = list(executor(amp, destination, max_block=600, reorg_buffer=100).load_with_resume_optimization())
    assert all(r.success for r in results)
    assert stored(destination) == expected(amp)
    amp.reorg(50, extend=2)
    until_head(amp, destination)
    assert stored(destination) == expected(amp)


def test_a_stream_never_begins_over_a_hole(amp, destination):
    list(executor(amp, destination, max_block=100).load_with_resume_optimization())
    list(executor(amp, destination, min_block=200, max_block=300).load_with_resume_optimization())
    before = stored(destination)
    with pytest.raises(ConfigError, match='simnet 100-199 is missing'), closing(follow(amp, destination)) as stream:
        next(stream)
    assert stored(destination) == before


def test_a_backfill_beside_a_live_stream_loads_what_is_below(amp, destination):
    followed(amp, executor(amp, destination, min_block=300, reorg_buffer=100))
    amp.mine(3)
    results = followed(amp, executor(amp, destination, reorg_buffer=100))
    assert blocks(r for r in results if r.metadata['operation'] == 'load_partition')[-1][1] == 300
    assert stored(destination) == expected(amp)


def test_an_error_of_the_server_is_tried_again(amp, destination):
    amp.faults.refuse('UNAVAILABLE', 'busy', times=4)
    results = list(executor(amp, destination, max_block=300).load_with_resume_optimization())
    assert all(r.success for r in results)
    assert stored(destination) == below(amp, 300)


def test_a_partition_that_fails_for_good_is_told_with_its_range_and_nothing_follows(amp, destination):
    [bad, *_] = [row[0] for row in expected(amp) if 40 <= row[0] < 80]
    broken = f'{SQL.replace(" FROM", f", 1 / (CAST(block_num AS BIGINT) - {bad}) AS x FROM")}'
    results = []
    runner = executor(amp, destination, broken, reorg_buffer=100, retry_config=RetryConfig(max_retries=0))
    with pytest.raises(LoadError, match='blocks 40 to 79') as raised:
        results.extend(runner.load_with_resume_optimization())
    assert [r.metadata['start_block'] for r in results if not r.success] == [40]
    assert sum(r.success for r in results) == 12
    assert 'only what is missing' in str(raised.value)
    with pytest.raises(LoadError):
        list(executor(amp, destination, broken, max_block=200, stop_on_error=True).load_with_resume_optimization())


@pytest.mark.parametrize(
    ('changes', 'error', 'told'),
    [
        ({'max_block': 601}, SourceError, 'blocks up to 599, not up to 600'),
        ({'sql': 'SELECT address FROM eth_rpc.logs', 'max_block': 10}, ConfigError, 'does not select'),
        (
            {'sql': 'SELECT l.block_num FROM eth_rpc.logs l JOIN eth_rpc.blocks b ON l.block_num = b.block_num'},
            ConfigError,
            'join',
        ),
        (
            {'block_column': 'log_index', 'max_block': 10, 'sql': 'SELECT block_num FROM eth_rpc.logs'},
            ConfigError,
            'log_index',
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(amp, destination, changes, error, told):
    with pytest.raises(error, match=told):
        list(executor(amp, destination, **changes).load_with_resume_optimization())
    assert not stored_tables(destination)


def stored_tables(destination: str) -> list[str]:
    with create_loader(loader_of_url(destination), {'url': destination}) as loader:
        return [info.key.table for info in loader.list_streams()]


def test_another_query_under_the_same_name_is_refused(amp, destination):
    list(executor(amp, destination, max_block=50).load_with_resume_optimization())
    with pytest.raises(ConfigError, match='another query'):
        list(
            executor(
                amp, destination, 'SELECT block_num FROM eth_rpc.logs', max_block=90
            ).load_with_resume_optimization()
        )


def test_closing_the_iterator_stops_the_workers_and_a_rerun_goes_on(amp, destination, monkeypatch):
    begun, leaving = itertools.count(1), threading.Event()

    def half_way(point: str) -> None:
        # However fast they are: some of the 60 partitions are left when they are told to stop.
        if point == 'lane.before_commit' and next(begun) > 30:
            leaving.wait(60)

    hook(monkeypatch, half_way)
    others = set(threading.enumerate())
    with closing(
        executor(amp, destination, partition_size=10, max_block=600).load_with_resume_optimization()
    ) as results:
        next(results)
        leaving.set()
    assert not [t for t in set(threading.enumerate()) - others if t.name.startswith('amp-lane')]
    hook(monkeypatch, None)
    done = stored(destination)
    list(executor(amp, destination, max_block=600).load_with_resume_optimization())
    assert stored(destination) == expected(amp)
    assert len(done) < len(expected(amp))


_KILLED = """
import sys
from amp import Client
from amp.loaders import points
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor
from tests.support.following import SQL
import os, signal
left = int(sys.argv[3])
def reached(point):
    global left
    if point == sys.argv[4]:
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
points.hook = reached
config = ParallelConfig(num_workers=2, table_name='eth_rpc.logs', partition_size=40, max_block=400)
runner = ParallelStreamExecutor(Client(sys.argv[1]), config, query=SQL, connection=sys.argv[2], destination='logs')
list(runner.load_with_resume_optimization())
"""


@pytest.mark.parametrize('point', ['lane.before_commit', 'commit.before', 'commit.after', 'lane.committed'])
def test_killed_in_the_middle_it_goes_on_where_it_was(amp, destination, point):
    for nth in (1, 3):
        done = subprocess.run(
            [sys.executable, '-c', _KILLED, amp.url, destination, str(nth), point], check=False, timeout=240
        )
        assert done.returncode == -9
    list(executor(amp, destination, max_block=400).load_with_resume_optimization())
    assert stored(destination) == below(amp, 400)


@pytest.mark.postgresql
def test_processes_into_postgresql(amp, postgresql_test_config, test_schema):
    config = {**postgresql_test_config, 'schema': test_schema}
    client = Client(amp.url)
    client.configure_connection('pg', 'postgresql', config)
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        chosen = ParallelConfig(2, 'eth_rpc.logs', max_block=400, partition_size=25, executor=pool)
        runner = ParallelStreamExecutor(client, chosen, query=SQL, connection='pg', destination='logs')
        results = list(runner.load_with_resume_optimization())
    assert sum(r.metadata['blocks'] for r in results) == 400
    with create_loader('postgresql', config) as loader:
        rows = loader.scan('logs').read_all()
        assert rows.num_rows == len(below(amp, 400))
        assert [f for report in verify(loader, source=client) for f in report.findings] == []


@pytest.mark.postgresql
def test_processes_join_labels(amp, postgresql_test_config, test_schema, tmp_path):
    config = {**postgresql_test_config, 'schema': test_schema}
    known = below(amp, 100)[0][3]
    (tmp_path / 'tokens.csv').write_text(f'address,symbol\n0x{known.hex()},ABC\n')
    client = Client(amp.url)
    client.configure_connection('pg', 'postgresql', config)
    client.add_label('tokens', tmp_path / 'tokens.csv')
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        chosen = ParallelConfig(1, 'eth_rpc.logs', max_block=100, partition_size=50, executor=pool)
        runner = ParallelStreamExecutor(client, chosen, query=SQL, connection='pg', destination='labelled')
        assert all(result.success for result in runner.load_with_resume_optimization(label_config='tokens'))
    with create_loader('postgresql', config) as loader:
        found = loader.scan('labelled').read_all()
    assert found['symbol'].to_pylist() == ['ABC'] * sum(row[3] == known for row in below(amp, 100))


def test_what_goes_to_another_process_shows_no_secret():
    client = Client('grpc://localhost:1', auth_token='hush-token')
    spec = LaneSpec('SELECT 1', 't', 't', 'n', 'block_num')
    task = RemoteTask(client.settings(), 'postgresql', {'password': 'hush-password'}, client.label_manager, spec)
    assert 'hush' not in repr(task)
    assert pickle.loads(pickle.dumps(task)).config == {'password': 'hush-password'}


@pytest.fixture
def test_schema(request, postgresql_test_config):
    from amp.loaders.sql import quote

    name = f'parallel_{os.getpid()}'
    yield name
    with create_loader('postgresql', postgresql_test_config) as loader:
        loader.connection.execute(f'DROP SCHEMA IF EXISTS {quote(name)} CASCADE'.encode())


def test_query_load_takes_a_parallel_config(amp, destination):
    with Client(amp.url) as client:
        config = ParallelConfig(2, 'eth_rpc.logs', max_block=100)
        result = client.sql(SQL).load(destination, 'logs', parallel_config=config)
        assert result.success
        assert result.rows_loaded == len(below(amp, 100))
        with closing(
            client.sql(SQL).load(destination, 'logs', stream=True, parallel_config=ParallelConfig(2, 'eth_rpc.logs'))
        ) as results:
            for each in results:
                if each.metadata['operation'] == 'load_stream' and at_head(amp, each):
                    break
    assert stored(destination) == expected(amp)
