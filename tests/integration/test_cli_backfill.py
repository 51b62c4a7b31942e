"""`amp backfill`, as it is typed."""

from __future__ import annotations

import json

import pytest

from amp.backfill.progress import Cell, Progress
from amp.cli.backfill import _duration
from amp.devserver import LocalAmp
from amp.streaming.parallel import QueryPartition
from amp.streaming.types import BlockRange
from tests.support.command_line import amp as run_amp
from tests.support.following import SQL, expected, stored

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


@pytest.fixture(scope='module')
def server():
    with LocalAmp.simulate(seed=8, blocks=300, logs_per_block=(0, 3)) as running:
        yield running


def test_a_backfill_and_its_rerun(server, tmp_path):
    to = f'duckdb:///{tmp_path}/chain.db'
    first = run_amp(
        'backfill', server.url, SQL, '--to', to, '-t', 'logs', '--end', '200', '--json', '--partition-size', '50'
    )
    assert first.returncode == 0, first.stderr
    events = [json.loads(line) for line in first.stdout.splitlines()]
    assert [e['event'] for e in events].count('commit') == 4
    assert events[-1]['blocks'] == 200
    assert stored(to) == [row for row in expected(server) if row[0] < 200]
    again = run_amp('backfill', server.url, SQL, '--to', to, '-t', 'logs', '--workers', '2')
    assert again.returncode == 0, again.stderr
    assert b'100' in again.stderr
    assert stored(to) == expected(server)


def test_what_cannot_be_split_says_why(server, tmp_path):
    to = f'duckdb:///{tmp_path}/chain.db'
    refused = run_amp('backfill', server.url, 'SELECT block_num FROM eth_rpc.logs LIMIT 5', '--to', to, '-t', 'logs')
    assert refused.returncode == 3
    assert b'LIMIT counts rows over all blocks' in refused.stderr
    both = run_amp('backfill', server.url, SQL, '--to', to, '-t', 'logs', '--follow', '--end', '5')
    assert both.returncode == 2


def test_the_map_of_ranges():
    progress = Progress()
    assert progress.cells(10) == []
    progress.planned('n', 0, 99, [BlockRange('n', 20, 59), BlockRange('n', 80, 99)])
    assert progress.blocks_left == 60
    assert ''.join(str(int(c)) for c in progress.cells(10)) == '0011110011'
    piece = QueryPartition(0, 20, 40)
    progress.began(piece)
    assert progress.cells(10)[2:4] == [Cell.RUNNING, Cell.RUNNING]
    progress.ended(piece, loaded=True)
    progress.ended(QueryPartition(1, 80, 100), loaded=False)
    assert ''.join(str(int(c)) for c in progress.cells(10)) == '0000110033'
    assert progress.seconds_left is not None
    assert (progress.there, progress.failed) == (40, 1)
    assert [_duration(seconds) for seconds in (0.2, 59, 90, 12_000)] == ['1 s', '59 s', '2 min', '3 h 20 min']
