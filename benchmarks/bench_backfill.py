"""How a backfill grows with its workers, and what planning and resuming one costs.

    python benchmarks/bench_backfill.py [partitions] [rows a partition]

Against a server that takes 50 ms for each answer, N workers should be N times as fast as one: the same partitions, the
same server, PostgreSQL, where units commit beside each other. Latency must be what is waited for, or the cores decide:
so the claim is made for partitions of few rows, and partitions of 1,000 are told beside it. Each line says what the
processors did: seconds of this process, of the source and of PostgreSQL, what no number of workers goes below (those
seconds on all cores), and how many cores anything else on the machine took meanwhile, which a fair run has near zero.

Without latency: two workers into PostgreSQL and Delta Lake beside one, and what the source alone gives two readers who
drop everything. Planning: 100,000 partitions around 1,000 gaps. Resuming: a finished backfill of 1,000,000 blocks, while
another session holds a lock against everybody on its table, so it could not look at one row.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
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

_LATENCY = 0.05
_HEAVY_ROWS = 1_000
_CORES = psutil.cpu_count() or 1


@dataclass(frozen=True)
class Used:
    """Seconds of processors: this process, the source, the destination's server, and the whole machine."""

    here: float
    source: float
    server: float
    machine: float

    @property
    def ours(self) -> float:
        return self.here + self.source + self.server


class Cpu:
    """Reads what was used since it was made; `server` is a process whose children count too, None when it is elsewhere."""

    def __init__(self, server: psutil.Process | None) -> None:
        self._server = server
        self._began = self._now()

    def used(self) -> Used:
        pairs = zip(self._now(), self._began, strict=True)
        return Used(*(now - then for now, then in pairs))

    def _now(self) -> tuple[float, float, float, float]:
        me, all_of_it = psutil.Process(), psutil.cpu_times()
        sources = [child for child in me.children() if '_server.py' in ' '.join(child.cmdline())]
        family = [self._server, *self._server.children()] if self._server else []
        machine = all_of_it.user + all_of_it.nice + all_of_it.system
        return _seconds(me), sum(map(_seconds, sources)), sum(map(_seconds_with_the_dead, family)), machine


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _seconds_with_the_dead(process: psutil.Process) -> float:
    """Sessions that have ended count as their parent's, from the moment that it has noticed."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def postgres_process(config: dict[str, Any]) -> psutil.Process | None:
    """The server's first process, when it is on this machine."""
    with PostgreSQLLoader(config) as loader:
        [(pid,)] = loader.run('SELECT pg_backend_pid()')
    try:
        parent = psutil.Process(pid).parent()
    except psutil.NoSuchProcess:
        return None
    return parent if parent and 'postgres' in parent.name() else None


def drop(config: dict[str, Any]) -> None:
    with PostgreSQLLoader(config) as loader:
        loader.connection.execute('DROP TABLE IF EXISTS logs, _amp_streams')


def executor(
    client: amp.Client, to: str, workers: int, partitions: int, rows: int, size: int = 100
) -> ParallelStreamExecutor:
    blocks = partitions * size
    chosen = ParallelConfig(workers, 'logs', min_block=1, max_block=blocks + 1, partition_size=size)
    query = f'SELECT * FROM logs WHERE 0 = 0 /* rows={rows} blocks={blocks} */'
    return ParallelStreamExecutor(client, chosen, query=query, connection=to, destination='logs')


@dataclass(frozen=True)
class Bench:
    """PostgreSQL, and where its processes are."""

    config: dict[str, Any]
    process: psutil.Process | None

    def run(self, url: str, workers: int, partitions: int, rows: int, to: str = 'pg') -> tuple[float, Used]:
        """Seconds of a backfill into a fresh table, everything in it: planning, opening, the last commit."""
        drop(self.config)
        with amp.Client(url) as client:
            client.configure_connection('pg', 'postgresql', self.config)
            runner = executor(client, to, workers, partitions, rows)
            cpu, started = Cpu(self.process), time.perf_counter()
            results = list(runner.load_with_resume_optimization())
            seconds, used = time.perf_counter() - started, cpu.used()
        assert len(results) == partitions
        assert sum(result.rows_loaded for result in results) == partitions * rows
        return seconds, used

    def scaling(self, url: str, partitions: int, rows: int, rounds: int) -> dict[int, float]:
        """Best seconds by number of workers, in turn, so that a slow spell of the machine hits all."""
        best: dict[int, float] = {}
        for _ in range(rounds):
            for workers in (1, 2, 4, 8):
                seconds, used = self.run(url, workers, partitions, rows)
                best[workers] = min(seconds, best.get(workers, seconds))
                _tell_scaling(workers, partitions, rows, seconds, used, best)
        return best


def _tell_scaling(workers: int, partitions: int, rows: int, seconds: float, used: Used, best: dict[int, float]) -> None:
    each = 1_000 / partitions
    print(
        f'{workers} workers, {rows:,} rows a partition: {seconds:6.2f} s, {best[1] / seconds / workers:.2f} of linear; '
        f'CPU a partition {used.here * each:.1f} ms here, {used.source * each:.1f} source, {used.server * each:.1f} '
        f'PostgreSQL; {_CORES} cores need {used.ours / _CORES:.2f} s of the {seconds:.2f}; '
        f'others took {max(used.machine - used.ours, 0) / seconds:.2f} cores',
        flush=True,
    )


def source_alone(url: str, readers: int, partitions: int, rows: int) -> None:
    """What the source gives to readers who drop everything."""
    cpu, started = Cpu(None), time.perf_counter()

    def read() -> None:
        with amp.Client(url) as client:
            for _ in range(partitions // readers):
                with closing(client.sql(f'SELECT 1 /* rows={rows} */').responses(streaming=False)) as responses:
                    for _ in responses:
                        pass

    _side_by_side(read, readers)
    seconds = time.perf_counter() - started
    _tell_rate(f'the source alone, {readers} readers', partitions * rows, seconds, cpu.used())


def _side_by_side(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _tell_rate(name: str, rows: int, seconds: float, used: Used) -> None:
    print(
        f'no latency, {name}: {rows / seconds / 1e6:.2f} M rows/s; cores: {used.here / seconds:.2f} here, '
        f'{used.source / seconds:.2f} source, {used.server / seconds:.2f} PostgreSQL, of {_CORES}; '
        f'others {max(used.machine - used.ours, 0) / seconds:.2f}',
        flush=True,
    )


def without_latency(bench: Bench) -> None:
    partitions, rows = 8, 125_000
    with bare_server() as url:
        source_alone(url, 2, partitions, rows)
        for destination in ('PostgreSQL', 'Delta Lake'):
            for workers in (1, 2):
                folder = tempfile.mkdtemp()
                to = 'pg' if destination == 'PostgreSQL' else f'deltalake:///{folder}/lake'
                seconds, used = bench.run(url, workers, partitions, rows, to)
                _tell_rate(f'{destination}, {workers} workers', partitions * rows, seconds, used)
                shutil.rmtree(folder)


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
    with bare_server() as url, amp.Client(url) as client, PostgreSQLLoader(config) as other:
        client.configure_connection('pg', 'postgresql', config)
        runner = executor(client, 'pg', 4, 1_000, 1, size=1_000)
        assert len(list(runner.load_with_resume_optimization())) == 1_000
        # Whoever reads or writes a row of it waits for good.
        other.connection.execute('BEGIN; LOCK TABLE logs IN ACCESS EXCLUSIVE MODE')
        started = time.perf_counter()
        assert list(runner.load_with_resume_optimization()) == []
        seconds = time.perf_counter() - started
        other.connection.execute('ROLLBACK')
        return seconds


def main(partitions: int, rows: int) -> int:
    report = Report()
    with postgresql_config() as config:
        bench = Bench(config, postgres_process(config))
        with bare_server(latency=_LATENCY) as url:
            # What is imported and made once is no worker's.
            bench.run(url, 2, 8, rows)
            best = bench.scaling(url, partitions, rows, rounds=2)
            for workers in (2, 4, 8):
                claim = f'{workers} workers against linear, 50 ms latency, {rows} rows a partition'
                report.at_least(claim, best[1] / best[workers] / workers, 0.9)
            bench.scaling(url, partitions // 4, _HEAVY_ROWS, rounds=1)
        without_latency(bench)
        report.at_most('planning 100,000 partitions with 1,000 gaps, seconds', planning(), 1)
        report.at_most('resuming a finished backfill of 1,000,000 blocks, seconds', resuming(config), 1)
        drop(config)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [640, 20][len(given) :])))
