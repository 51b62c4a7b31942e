"""A folder that may be read and not written: one sentence, and what is in it stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from amp.loaders.registry import create_loader

pytestmark = pytest.mark.integration

ROWS = pa.table({'block_num': pa.array([1, 2, 3], pa.int64()), 'text': ['a', 'b', 'c']})
CONFIGS = {
    'duckdb': lambda folder: {'path': f'{folder}/chain.duckdb'},
    'deltalake': lambda folder: {'root': f'{folder}/lake'},
    'iceberg': lambda folder: {'warehouse': f'{folder}/lake'},
    'lmdb': lambda folder: {'db_path': f'{folder}/chain.lmdb'},
    'parquet': lambda folder: {'root': f'{folder}/store'},
}

# Whoever is root may write everywhere: the child gives that up once all that it needs is imported.
LOADS = """
import json, os, sys
import pyarrow as pa
from amp.errors import AmpError
from amp.loaders.registry import create_loader
name, spare, config = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
rows = pa.table({'block_num': pa.array([4], pa.int64()), 'text': ['d']})
with create_loader(name, spare) as loader:
    assert loader.load_table(rows, 'logs').success
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
try:
    with create_loader(name, config) as loader:
        told = loader.load_table(rows, 'logs').error
except AmpError as error:
    told = str(error)
print(json.dumps(told))
"""


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    """A folder to close, and one that stays open; pytest's own are closed to everybody else anyway."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        closed, spare = Path(made, 'closed'), Path(made, 'spare')
        closed.mkdir()
        spare.mkdir()
        yield closed, spare
        allow(closed)


def close(folder: Path) -> None:
    for path in [*folder.rglob('*'), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def allow(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob('*'):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize('holds_the_table', [True, False], ids=['a table', 'nothing'])
@pytest.mark.parametrize('name', CONFIGS)
def test_a_folder_that_may_only_be_read(name: str, holds_the_table: bool, folders: tuple[Path, Path]) -> None:
    closed, spare = folders
    config = CONFIGS[name](closed)
    if holds_the_table:
        with create_loader(name, config) as loader:
            assert loader.load_table(ROWS, 'logs').success
    close(closed)
    child = subprocess.run(
        [sys.executable, '-c', LOADS, name, json.dumps(CONFIGS[name](spare)), json.dumps(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, 'HOME': str(spare)},
    )
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    assert told is not None, 'it was written'
    assert 'Traceback' not in told
    assert str(closed) in told
    assert 'permission' in told.lower() or 'read-only' in told.lower()
    allow(closed)
    if holds_the_table:
        with create_loader(name, config) as loader:
            assert loader.scan('logs').read_all().sort_by('block_num').to_pylist() == ROWS.to_pylist()
    else:
        assert not [path for path in closed.rglob('*') if path.is_file()]
