"""The examples of the README and of the pages run, against a local Amp in the place of the reader's server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from amp.devserver import LocalAmp

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / 'README.md').read_text()


LABELS = (REPOSITORY / 'docs' / 'label_manager.md').read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', text, flags=re.DOTALL)


@pytest.fixture(scope='module')
def server():
    with LocalAmp.simulate(seed=7, blocks=30, logs_per_block=3) as amp:
        yield amp.url


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
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


@pytest.mark.parametrize('page', ['resilience', 'parallel_streaming', 'destinations/duckdb'])
def test_the_examples_of_a_page(page, server, tmp_path):
    text = (REPOSITORY / 'docs' / f'{page}.md').read_text()
    examples = blocks('python', text)
    assert examples
    for code in examples:
        here = code.replace('grpc://localhost:1602', server).replace('max_block=1_000', 'max_block=30')
        done = run([sys.executable, '-c', here], tmp_path)
        assert done.returncode == 0, done.stderr
