"""`amp demo`: it ends by itself, and what it says is true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.support.command_line import amp, environment, one_sentence

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


def test_the_demo_on_the_simulator(tmp_path: Path) -> None:
    done = amp('demo', '--simulate', '--blocks', '24', '--json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = [json.loads(line) for line in done.stdout.splitlines()][-1]
    assert (summary['event'], summary['verified']) == ('summary', True)
    assert (summary['missing'], summary['surplus'], summary['reorgs']) == (0, 0, 1)
    assert summary['rows'] == summary['written'] - summary['rows_undone']
    assert summary['rows_undone'] > 0
    with duckdb.connect(str(tmp_path / 'demo.duckdb'), read_only=True) as connection:
        assert connection.execute('SELECT count(*) FROM transfers').fetchone() == (summary['rows'],)


def test_the_demo_on_a_real_chain_leaves_a_query_that_works_and_may_be_repeated(tmp_path: Path) -> None:
    assert shutil.which('npm'), 'the demo on a real chain needs node'
    for _ in range(2):
        done = amp('demo', '--blocks', '20', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    told = done.stdout.decode()
    assert 'every row equals eth_getLogs of the node' in told
    assert 'anvil, a real EVM, runs at' in done.stderr.decode()
    look = next(line.strip() for line in told.splitlines() if 'demo.duckdb' in line and 'SELECT' in line)
    shown = subprocess.run(look, shell=True, capture_output=True, check=True, cwd=tmp_path, env=environment())
    assert b'transfers' in shown.stdout


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / 'demo.duckdb'
    with duckdb.connect(str(mine)) as connection:
        connection.execute('CREATE TABLE precious AS SELECT 1 AS one')
    before = mine.read_bytes()
    for content in (before, b'no database at all'):
        mine.write_bytes(content)
        done = amp('demo', '--simulate', cwd=tmp_path)
        assert done.returncode == 3
        assert 'left alone' in one_sentence(done)
        assert mine.read_bytes() == content


def test_a_place_that_cannot_be_written() -> None:
    done = amp('demo', '--simulate', '--path', '/proc/demo.duckdb')
    assert done.returncode == 3
    one_sentence(done)


def test_without_node_it_says_so_and_simulates(tmp_path: Path) -> None:
    # An empty PATH, an empty cache, and a Python with nothing beside it: no npm, no anvil.
    python = tmp_path / 'python'
    python.symlink_to(sys.executable)
    packages = os.pathsep.join(part for part in sys.path if part)
    done = subprocess.run(
        [python, '-m', 'amp', 'demo', '--blocks', '12'],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=environment(PATH=str(tmp_path), AMP_CACHE_DIR=str(tmp_path / 'cache'), PYTHONPATH=packages),
    )
    assert done.returncode == 0, done.stderr
    assert b'the simulator takes its place' in done.stderr
    assert b"every row equals the simulator's own table" in done.stdout
