"""The two loaders of the guide as their authors would ship them: built, installed in an environment of their own, used
by name, put through the conformance kit, and dropped as a file into amp itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from amp.devserver import LocalAmp

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / 'examples' / 'loaders'
GUIDE = (REPOSITORY / 'src/amp/loaders/NEW_LOADER_GUIDE.md').read_text()
NAMES = ('sqlite', 'shelf')
# A part of the kit for each that is quick and still sees crashes, reorgs and a second writer.
QUICK = {
    'sqlite': 'test_a_few_crashes and forgotten',
    'shelf': 'test_a_writer_that_wakes_up_late_loses and after_data',
}


@pytest.fixture(scope='module')
def python(tmp_path_factory) -> Path:
    """An environment that has both packages, and sees what this one has."""
    folder = tmp_path_factory.mktemp('plugins')
    uv = shutil.which('uv') or str(Path(sys.executable).with_name('uv'))
    done(uv, 'venv', '--quiet', '--no-project', '--python', sys.executable, 'venv', cwd=folder)
    python = folder / 'venv' / 'bin' / 'python'
    [site] = (folder / 'venv' / 'lib').glob('python*/site-packages')
    here = [sysconfig.get_path('purelib'), str(REPOSITORY / 'src')]
    (site / 'what_is_here.pth').write_text(''.join(f'import site; site.addsitedir({place!r})\n' for place in here))
    for name in NAMES:
        # A copy: building writes nothing into the repository.
        shutil.copytree(EXAMPLES / f'amp-loader-{name}', folder / name)
    install = ('pip', 'install', '--quiet', '--offline', '--no-deps', '--no-build-isolation', '--python', str(python))
    done(uv, *install, *(f'./{name}' for name in NAMES), cwd=folder)
    return python


def done(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """Run it; what it wrote on stdout."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'PYTEST', 'VIRTUAL_ENV'))}
    ran = subprocess.run(
        arguments, cwd=cwd, env={**clean, **variables}, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, f'{ran.stdout}\n{ran.stderr}'
    return ran.stdout


def amp(python: Path, *arguments: str, cwd: Path) -> str:
    return done(python, '-c', 'from amp.cli import main; main()', *arguments, cwd=cwd)


def test_installed_loaders_are_found_by_their_names(python, tmp_path):
    code = (
        'from amp.loaders import get_available_loaders, get_loader_class\n'
        f'found = [get_loader_class(name) for name in get_available_loaders() if name in {NAMES}]\n'
        'print([(c.__module__, c.guarantee_of(), sorted(m.value for m in c.SUPPORTED_MODES)) for c in found])\n'
    )
    can = "'exactly-once', ['append', 'overwrite']"
    told = done(python, '-c', code, cwd=tmp_path)
    assert told == f"[('amp_loader_shelf.shelf_loader', {can}), ('amp_loader_sqlite.sqlite_loader', {can})]\n"


@pytest.mark.parametrize('name', NAMES)
def test_an_installed_loader_is_a_destination_like_any_other(python, tmp_path, name):
    """History loaded by two workers on the command line, and verified against the server, by a URL."""
    url = f'{name}:///here'
    with LocalAmp.simulate(seed=7, blocks=12, logs_per_block=3) as server:
        sql = 'SELECT * FROM eth_rpc.logs'
        amp(python, 'backfill', server.url, sql, '--to', url, '--table', 'logs', '--workers', '2', cwd=tmp_path)
        amp(python, 'verify', url, '--table', 'logs', '--source', server.url, cwd=tmp_path)
    count = (
        'from amp.loaders import create_loader\n'
        f'with create_loader({name!r}, {{"url": {url!r}}}) as loader:\n'
        '    print(loader.get_table_info("logs")["row_count"])\n'
    )
    assert done(python, '-c', count, cwd=tmp_path) == '36\n'


@pytest.mark.parametrize('name', NAMES)
def test_an_installed_loader_passes_a_part_of_the_kit(python, name):
    passes(python, name, '-k', QUICK[name], '-m', 'not slow')


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('name', NAMES)
def test_an_installed_loader_passes_the_kit(python, name):
    passes(python, name, '-m', 'not slow')


def passes(python: Path, name: str, *selection: str) -> None:
    package = python.parents[2] / name
    said = done(python, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', *selection, cwd=package)
    assert re.search(r'\d+ passed', said), said


@pytest.mark.parametrize('name', NAMES)
def test_the_same_file_works_inside_amp(name, tmp_path):
    """Dropped into implementations/, with the block of the guide in its `__init__.py`."""
    shutil.copytree(REPOSITORY / 'src' / 'amp', tmp_path / 'amp', ignore=shutil.ignore_patterns('__pycache__'))
    inside = tmp_path / 'amp' / 'loaders' / 'implementations'
    shutil.copy(EXAMPLES / f'amp-loader-{name}' / 'src' / f'amp_loader_{name}' / f'{name}_loader.py', inside)
    [block] = re.findall(r'```python\n(try:\n.*?)```', GUIDE, flags=re.DOTALL)
    class_name = {'sqlite': 'SQLiteLoader', 'shelf': 'ShelfLoader'}[name]
    with (inside / '__init__.py').open('a') as file:
        file.write('\n' + block.replace('sqlite_loader', f'{name}_loader').replace('SQLiteLoader', class_name))
    code = (
        'import pyarrow as pa, amp, amp.loaders.implementations as inside\n'
        'from amp.loaders import create_loader, get_available_loaders\n'
        f'from amp.loaders.implementations import {class_name}\n'
        f'assert inside.__all__[-1] == {class_name!r} and amp.__file__.startswith({str(tmp_path)!r})\n'
        f'assert {name!r} in get_available_loaders()\n'
        f'with create_loader({name!r}, {{"url": "{name}:///x"}}) as loader:\n'
        f'    assert type(loader) is {class_name}\n'
        '    assert loader.load_table(pa.table({"n": [1, 2]}), "t").success\n'
        '    print(loader.scan("t").read_all()["n"].to_pylist())\n'
    )
    assert done(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == '[1, 2]\n'
