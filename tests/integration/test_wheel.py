"""The wheel, installed bare into an environment of its own: what a user has after `pip install amp-python`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
UV = shutil.which('uv') or str(Path(sys.executable).with_name('uv'))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('dist')
    subprocess.run([UV, 'build', '--quiet', '--wheel', '--out-dir', folder, REPOSITORY], check=True, cwd=folder)
    [built] = folder.glob('amp_python-*.whl')
    return built


@pytest.fixture(scope='module')
def bare(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('bare')
    subprocess.run([UV, 'venv', '--quiet', '--no-project', '--python', sys.executable, folder / 'venv'], check=True)
    binaries = folder / 'venv' / 'bin'
    subprocess.run([UV, 'pip', 'install', '--quiet', '--python', binaries / 'python', wheel], check=True)
    return binaries


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )


def test_it_holds_all_that_the_code_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'amp/py.typed', 'amp/ui/static/index.html', 'amp/ui/static/page.js', 'amp/ui/static/page.css'} <= names
    here = {path.relative_to(REPOSITORY / 'src').as_posix() for path in (REPOSITORY / 'src' / 'amp').rglob('*.py')}
    assert here <= names
    assert not [name for name in names if not name.startswith(('amp/', 'amp_python-'))]


def test_without_an_extra_every_door_says_what_it_needs(bare, tmp_path):
    assert run(bare / 'amp', '--version', folder=tmp_path).stdout.startswith('amp ')
    listed = run(bare / 'amp', 'loaders', folder=tmp_path)
    assert (listed.returncode, listed.stdout.count("pip install 'amp-python[")) == (0, 9)
    for arguments, extra in (
        (['serve', '--simulate', '1'], 'serve'),
        (['ui', 'duckdb:///x.db'], 'ui'),
        (['status', 'duckdb:///x.db'], 'duckdb'),
    ):
        done = run(bare / 'amp', *arguments, folder=tmp_path)
        assert done.returncode == 3, done.stderr
        assert f"pip install 'amp-python[{extra}]'" in done.stderr
        assert 'Traceback' not in done.stderr


def test_a_program_that_only_asks_needs_no_extra(bare, tmp_path):
    code = 'import amp; print(amp.Client("grpc://localhost:1").sql("SELECT 1")); print(sorted(amp.__all__)[0])'
    done = run(bare / 'python', '-W', 'error', '-c', code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
