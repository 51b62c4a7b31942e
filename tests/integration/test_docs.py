"""The examples of the README and of the pages run, against a local Amp in the place of the reader's server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amp.devserver import LocalAmp

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / 'README.md').read_text()


LABELS = (REPOSITORY / 'docs' / 'label_manager.md').read_text()
GUIDE = (REPOSITORY / 'src' / 'amp' / 'loaders' / 'NEW_LOADER_GUIDE.md').read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', text, flags=re.DOTALL)


@pytest.fixture(scope='module')
def server():
    with LocalAmp.simulate(seed=7, blocks=30, logs_per_block=3) as amp:
        yield amp.url


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize('number', range(len(blocks('python'))))
def test_python_examples(number, server, tmp_path):
    code = blocks('python')[number].replace('grpc://localhost:1602', server)
    done = run([sys.executable, '-c', code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_command_line_examples_of_your_own_server(server, tmp_path):
    lines = [line for block in blocks('sh') for line in block.splitlines() if line.startswith('amp ')]
    finite = [line for line in lines if '--stream' not in line and 'verify' not in line and 'status' not in line]
    assert len(finite) >= 2
    for line in finite:
        done = run(shlex.split(line.replace('grpc://host:1602', server)), tmp_path)
        assert done.returncode == 0, f'{line}\n{done.stderr}'


def test_a_stream_of_the_readme_can_be_looked_at_and_verified(server, tmp_path):
    """The `--stream` example, ended by a signal as a reader would; then the two commands that check it."""
    lines = [line for block in blocks('sh') for line in block.splitlines() if line.startswith('amp ')]
    [stream] = [line for line in lines if '--stream' in line]
    arguments = [*shlex.split(stream.replace('grpc://host:1602', server)), '--json']
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'}
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert any('"event": "commit"' in line for line in process.stdout)
        process.terminate()
        assert process.wait(30) == 130
    for line in (line for line in lines if line.startswith(('amp status', 'amp verify'))):
        done = run(shlex.split(line.replace('grpc://host:1602', server)), tmp_path)
        assert done.returncode == 0, f'{line}\n{done.stdout}{done.stderr}'


def test_the_examples_of_the_page_about_labels(server, tmp_path):
    """In its order and in one folder, as a reader would; the file is the one that the page shows."""
    [label] = blocks('csv', LABELS)
    (tmp_path / 'tokens.csv').write_text(label)
    examples = [[sys.executable, '-c', code] for code in blocks('python', LABELS)]
    lines = [line for block in blocks('sh', LABELS) for line in block.splitlines() if line.startswith('amp ')]
    assert (len(examples), len(lines)) == (4, 1)
    for example in (*examples, *map(shlex.split, lines)):
        here = [part.replace('grpc://localhost:1602', server).replace('grpc://host:1602', server) for part in example]
        done = run(here, tmp_path)
        assert done.returncode == 0, f'{example}\n{done.stderr}'
        assert done.stdout.strip() or example[0] == 'amp'


def test_pages_that_are_tables_of_the_code_are_up_to_date():
    done = run([sys.executable, str(REPOSITORY / 'scripts' / 'generate_docs.py'), '--check'], REPOSITORY)
    assert done.returncode == 0, done.stderr


PAGES = ['resilience', 'parallel_streaming', 'reorg_handling', 'implementing_data_loaders', 'destinations/duckdb']


@pytest.mark.parametrize('page', PAGES)
def test_the_examples_of_a_page(page, server, tmp_path):
    text = (REPOSITORY / 'docs' / f'{page}.md').read_text()
    examples = blocks('python', text)
    assert examples
    for code in examples:
        here = code.replace('grpc://localhost:1602', server).replace('max_block=1_000', 'max_block=30')
        done = run([sys.executable, '-c', here], tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_first_loader_of_the_guide(tmp_path):
    """The block that stands alone; the others are files, which `generate_docs.py --check` compares."""
    [code, *_] = blocks('python', GUIDE)
    done = run([sys.executable, '-c', code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('at-least-once\n')
    assert (tmp_path / 'out' / 'tokens.csv').read_text() == '"block_num","symbol"\n1,"USDC"\n2,"WETH"\n'


def test_the_packages_that_the_guide_shows_are_the_ones_that_are_there():
    shown = re.findall(r'<!-- file: (\S+) -->', GUIDE)
    assert sorted(shown) == [
        'examples/loaders/amp-loader-shelf/src/amp_loader_shelf/shelf_loader.py',
        'examples/loaders/amp-loader-sqlite/pyproject.toml',
        'examples/loaders/amp-loader-sqlite/src/amp_loader_sqlite/sqlite_loader.py',
        'examples/loaders/amp-loader-sqlite/tests/test_exactly_once.py',
    ]


@pytest.mark.parametrize('page', sorted((REPOSITORY / 'docs').rglob('*.md')), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    prose = re.sub(r'```.*?```|`[^`\n]*`', '', page.read_text(), flags=re.DOTALL)
    for name, anchor in re.findall(r'\]\(([\w./-]*\.md)?(?:#([\w-]+))?\)', prose):
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), name
        titles = re.findall(r'^#+ (.+)$', there.read_text(), flags=re.MULTILINE)
        anchors = {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles}
        assert not anchor or anchor in anchors, f'{name}#{anchor}'


def test_every_manifest_of_the_page_about_labels_is_one():
    manifests = [yaml.safe_load(block) for block in blocks('yaml', LABELS)]
    pods = [manifest['spec'] for manifest in manifests if 'containers' in manifest['spec']]
    assert (len(manifests), len(pods)) == (3, 2)
    for pod in pods:
        volumes = {volume['name'] for volume in pod['volumes']}
        for container in [*pod['containers'], *pod.get('initContainers', [])]:
            assert {mount['name'] for mount in container['volumeMounts']} <= volumes
            assert all(mount['mountPath'] == '/data' for mount in container['volumeMounts'])
