"""The distribution: its README runs, its names are what it says, its wheel works by itself."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import amplify_db_utils

pytestmark = [pytest.mark.integration, pytest.mark.parquet]
_COMPILER = os.environ.get('CC') or (sysconfig.get_config_var('CC') or 'cc').split()[0]
_COMPILES = shutil.which(_COMPILER) is not None and Path(sysconfig.get_path('include'), 'Python.h').exists()
PACKAGE = Path(__file__).parents[2] / 'packages' / 'amplify-db-utils'


def test_the_getting_started_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r'```python\n(.*?)```', (PACKAGE / 'README.md').read_text(), flags=re.DOTALL)
    assert blocks
    code = '\n'.join(block for block in blocks if 's3://' not in block)
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_public_names() -> None:
    names = amplify_db_utils.__all__
    assert names == sorted(names)
    assert {'ColumnarStore', 'DuckDBParquetConfig', 'DuckDBParquetStore', 'Filters'} <= set(names)
    assert all(hasattr(amplify_db_utils, name) for name in names)


def test_it_knows_nothing_of_amp() -> None:
    code = 'import sys, amplify_db_utils; print([name for name in sys.modules if name == "amp" or name.startswith("amp.")])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'
    assert not [
        path
        for path in (PACKAGE / 'src').rglob('*.py')
        if re.search(r'^\s*(from|import) amp\b', path.read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize('compiler', ["the machine's compiler", 'no compiler'])
def test_the_wheel_works_bare(tmp_path: Path, compiler: str) -> None:
    uv = shutil.which('uv') or str(Path(sys.executable).with_name('uv'))
    run = functools.partial(subprocess.run, check=True, cwd=tmp_path)
    with_one = {**os.environ} if compiler != 'no compiler' else {**os.environ, 'CC': str(tmp_path / 'none')}
    run([uv, 'build', '--quiet', '--out-dir', 'dist', PACKAGE], env=with_one)  # the wheel out of the sdist
    [wheel] = (tmp_path / 'dist').glob('*.whl')
    run([uv, 'venv', '--quiet', '--no-project', '--python', sys.executable, 'venv'])
    python = tmp_path / 'venv' / 'bin' / 'python'
    run([uv, 'pip', 'install', '--quiet', '--python', python, wheel])
    code = (
        'import pyarrow as pa\n'
        'from amplify_db_utils import DuckDBParquetConfig, DuckDBParquetStore\n'
        'with DuckDBParquetStore(DuckDBParquetConfig(root="store")) as store:\n'
        '    store.create_table("t", pa.schema([("k", "string"), ("v", "int64")]), partition_by=["k"])\n'
        '    store.write("t", [{"k": "a", "v": 1}])\n'
        '    print(list(store.read("t")), list(store.join("t", "t", "k", select="left")))\n'
        'from amplify_db_utils.cells import compiled\n'
        'print(compiled is not None)\n'
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
    done = subprocess.run([python, '-c', code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, is_compiled = done.stdout.splitlines()
    assert rows == "[{'k': 'a', 'v': 1}] [{'k': 'a', 'v': 1}]"
    assert is_compiled == str(compiler != 'no compiler' and _COMPILES)
    subprocess.run(
        [tmp_path / 'venv' / 'bin' / 'amplify-db-migrate', tmp_path / 'store'], check=True, capture_output=True
    )
