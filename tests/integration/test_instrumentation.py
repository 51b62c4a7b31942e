"""Metrics and logs of a real stream: they move when rows are durable, and only then."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from amp import Client, events
from amp.devserver import LocalAmp
from amp.errors import ConfigError
from amp.instrumentation import logs, opentelemetry, prometheus
from amp.streaming.parallel import ParallelConfig
from tests.support.following import SQL, stored, until_head
from tests.support.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=4, blocks=20, logs_per_block=(1, 3)) as server:
        yield server


def test_metrics_are_what_is_stored(amp, tmp_path, caplog):
    destination = f'duckdb:///{tmp_path}/chain.db'
    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    caplog.set_level(logging.INFO, 'amp.events')
    stops = [prometheus.watch(registry), opentelemetry.watch(MeterProvider([reader])), logs.watch()]
    try:
        until_head(amp, destination)
        amp.reorg(3)
        until_head(amp, destination)
        labels = {'loader': 'duckdb', 'table': 'logs', 'stream': 'logs'}
        rows = registry.get_sample_value('amp_rows_total', labels)
        undone = registry.get_sample_value('amp_rows_undone_total', labels)
        assert rows - undone == len(stored(destination))
        assert registry.get_sample_value('amp_reorgs_total', labels) == 1
        assert registry.get_sample_value('amp_position', {**labels, 'network': 'simnet'}) == amp.head[0]
        found = {
            m.name: m for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics
        }
        assert sum(p.value for p in found['amp.rows'].data.data_points) == rows
        assert sum(p.value for p in found['amp.reorgs'].data.data_points) == 1
    finally:
        for stop in stops:
            stop()
    told = [record for record in caplog.records if record.name == 'amp.events']
    assert {record.amp_event for record in told} == {'committed', 'undone'}
    assert sum(record.amp_rows for record in told if record.amp_event == 'committed') == rows
    before = len(told)
    amp.mine(2)
    until_head(amp, destination)
    assert len([record for record in caplog.records if record.name == 'amp.events']) == before


def test_they_cost_nothing_when_unused():
    code = (
        'import sys, amp.instrumentation.prometheus, amp.instrumentation.opentelemetry, amp.instrumentation.logs; '
        "print([m for m in sys.modules if m.startswith(('prometheus_client', 'opentelemetry'))])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_the_command_line_answers_for_its_metrics(amp, tmp_path):
    """A stream with --metrics, asked over HTTP as Prometheus would; the port is free again when it has ended."""
    port = free_port()
    destination = f'duckdb:///{tmp_path}/chain.db'
    address = f'127.0.0.1:{port}'
    amp_command = str(Path(sys.executable).with_name('amp'))
    arguments = [amp_command, 'stream', amp.url, SQL, '--to', destination, '--table', 'logs', '--json']
    with subprocess.Popen([*arguments, '--metrics', address], stdout=subprocess.PIPE, text=True) as process:
        seen = (json.loads(line) for line in process.stdout)
        assert any(e['event'] == 'commit' and e['position']['simnet']['number'] == amp.head[0] for e in seen)
        with urllib.request.urlopen(f'http://{address}/metrics', timeout=60) as answer:
            text = answer.read().decode()
        taken = subprocess.run([*arguments, '--metrics', address], capture_output=True, text=True, check=False)
        process.terminate()
        assert process.wait(30) == 130
    assert f'amp_rows_total{{loader="duckdb",stream="logs",table="logs"}} {float(len(stored(destination)))}' in text
    assert f'amp_position{{loader="duckdb",network="simnet",stream="logs",table="logs"}} {float(amp.head[0])}' in text
    assert (taken.returncode, taken.stderr.count('\n')) == (3, 2)
    assert 'metrics cannot be served' in taken.stderr
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f'http://{address}/metrics', timeout=60)


def test_a_reading_never_shows_half_of_an_event():
    registry, over = CollectorRegistry(), threading.Event()
    undone = events.Undone('duckdb', 'logs', 'logs', rows=7, depth=2)

    def undo() -> None:
        while not over.is_set():
            events.emit(undone)

    end = prometheus.watch(registry)
    undoing = threading.Thread(target=undo)
    undoing.start()
    try:
        for _ in range(2000):
            seen = {
                s.name: s.value
                for family in registry.collect()
                for s in family.samples
                if 'undone' in s.name or 'reorgs' in s.name
            }
            count = seen.get('amp_reorgs_total', 0)
            assert (seen.get('amp_rows_undone_total', 0), seen.get('amp_blocks_undone_total', 0)) == (
                7 * count,
                2 * count,
            )
    finally:
        over.set()
        undoing.join()
        end()
    assert count
    assert list(registry.collect()) == []


@pytest.mark.parametrize('address', ['9464x', 'localhost', '127.0.0.1:99999', ':'])
def test_an_address_that_is_none(address):
    with pytest.raises(ConfigError, match='no address for metrics'):
        prometheus.serve(address)


def test_what_workers_have_in_hand_is_told_while_they_have_it(amp, tmp_path):
    """Each partition begins and ends at its worker; afterwards no block is in hand."""
    registry, seen = CollectorRegistry(), []
    stops = [prometheus.watch(registry), events.listen(seen.append)]
    try:
        config = ParallelConfig(2, 'eth_rpc.logs', max_block=20, partition_size=5)
        Client(amp.url).sql(SQL).load(f'duckdb:///{tmp_path}/chain.db', 'logs', parallel_config=config)
        told = [event for event in seen if isinstance(event, events.Working)]
        spans = [(event.first, event.last) for event in told if event.first is not None]
        assert sorted(spans) == [(0, 4), (5, 9), (10, 14), (15, 19)]
        for worker in {event.worker for event in told}:
            own = [event.first is None for event in told if event.worker == worker]
            assert own == [False, True] * (len(own) // 2)
        [family] = [metric for metric in registry.collect() if metric.name == 'amp_partition_block']
        assert family.samples == []
    finally:
        for stop in stops:
            stop()
