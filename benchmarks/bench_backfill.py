"""How a backfill grows with its workers, and what planning and resuming one costs.

    python benchmarks/bench_backfill.py [partitions] [rows a partition]

Against a server that takes 50 ms for each answer, N workers should be N times as fast as one (into PostgreSQL, where
units commit beside each other). Without latency, two workers into PostgreSQL beside one; the CPU time of this process
and of the whole machine is told beside it, because two cores are shared with both servers. Planning: 100,000 partitions
around 1,000 gaps. Resuming: a finished backfill of 1,000,000 blocks.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil
from _harness import REPOSITORY, Report
from _server import bare_server

import amp
from amp.loaders.implementations.postgresql_loader import PostgreSQLLoader
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor, RangeQueue, missing
from amp.streaming.types import BlockRange

sys.path.insert(0, str(REPOSITORY))
from tests.support.postgres import postgresql_config

_SIZE = 100


def drop(config: dict[str, Any]) -> None:
    with PostgreSQLLoader(config) as loader:
        loader.connection.execute('DROP TABLE IF EXISTS logs, _amp_streams')


def run(url: str, config: dict[str, Any], workers: int, partitions: int, rows: int) -> float:
    """Seconds of a backfill into a fresh table."""
    drop(config)
    blocks = partitions * _SIZE
    with amp.Client(url) as client:
        client.configure_connection('pg', 'postgresql', config)
        chosen = ParallelConfig(workers, 'logs', min_block=1, max_block=blocks + 1, partition_size=_SIZE)
        query = f'SELECT * FROM logs WHERE 0 = 0 /* rows={rows} blocks={blocks} */'
        runner = ParallelStreamExecutor(client, chosen, query=query, connection='pg', destination='logs')
        started = time.perf_counter()
        results = list(runner.load_with_resume_optimization())
        seconds = time.perf_counter() - started
        assert len(results) == partitions
        assert sum(result.rows_loaded for result in results) == partitions * rows
        return seconds


def main(partitions: int, rows: int) -> int:
    report = Report()
    with postgresql_config() as config:
        with bare_server(latency=0.05) as url:
            alone = run(url, config, 1, partitions, rows)
            print(f'1 worker: {alone:.2f} s')
            for workers in (2, 4, 8):
                seconds = min(run(url, config, workers, partitions, rows) for _ in range(2))
                print(f'{workers} workers: {seconds:.2f} s')
                report.at_least(f'{workers} workers against linear, 50 ms latency', alone / seconds / workers, 0.9)
        with bare_server() as url:
            for workers in (1, 2):
                own, machine = psutil.Process().cpu_times(), psutil.cpu_times()
                seconds = run(url, config, workers, 8, 125_000)
                used, all_used = psutil.Process().cpu_times(), psutil.cpu_times()
                ours = (used.user + used.system - own.user - own.system) / seconds
                theirs = (all_used.user + all_used.system - machine.user - machine.system) / seconds
                rate = 1_000_000 / seconds
                print(
                    f'no latency, {workers} workers: {rate / 1e6:.2f} M rows/s, {ours:.2f} cores here, {theirs:.2f} in all'
                )
        report.at_most('planning 100,000 partitions with 1,000 gaps, seconds', planning(), 1)
        report.at_most('resuming a finished backfill of 1,000,000 blocks, seconds', resuming(config), 1)
        drop(config)
    return report.finish()


def planning() -> float:
    """Seconds to find 1,000 gaps and to cut what is missing into 100,000 partitions."""
    done = [BlockRange('n', start, start + 999) for start in range(0, 2_000_000, 2_000)]
    started = time.perf_counter()
    queue = RangeQueue(missing(done, 0, 1_999_999, 'n'), size=10)
    count = 0
    while queue.take() is not None:
        count += 1
    assert count == 100_000
    return time.perf_counter() - started


def resuming(config: dict[str, Any]) -> float:
    """Seconds of a second run that finds everything there: plan, look, nothing to do."""
    drop(config)
    with bare_server() as url, amp.Client(url) as client:
        client.configure_connection('pg', 'postgresql', config)
        query = 'SELECT * FROM logs WHERE 0 = 0 /* rows=1 blocks=1000000 */'
        chosen = ParallelConfig(4, 'logs', min_block=1, max_block=1_000_001, partition_size=5_000)
        runner = ParallelStreamExecutor(client, chosen, query=query, connection='pg', destination='logs')
        assert len(list(runner.load_with_resume_optimization())) == 200
        started = time.perf_counter()
        assert list(runner.load_with_resume_optimization()) == []
        return time.perf_counter() - started


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [64, 1_000][len(given) :])))
