"""`amp demo --chaos`: whatever it kills, cuts and reorganises, the rows are those of the chain."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from tests.support.command_line import amp

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


def test_a_few_seconds_of_chaos(tmp_path: Path) -> None:
    done = amp('demo', '--chaos', '--seconds', '8', '--seed', '1', '--json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    summary = events[-1]
    assert (summary['event'], summary['seed'], summary['verified']) == ('summary', 1, True)
    assert (summary['lost'], summary['twice'], summary['orphaned'], summary['findings']) == (0, 0, 0, [])
    assert summary['kills'] == sum(event['event'] == 'kill' for event in events) > 0
    assert summary['reorgs'] > 0
    assert summary['rows'] == summary['written'] - summary['rows_undone'] + summary['untold']
    with duckdb.connect(str(tmp_path / 'demo.duckdb'), read_only=True) as connection:
        assert connection.execute('SELECT count(*) FROM transfers').fetchone() == (summary['rows'],)
