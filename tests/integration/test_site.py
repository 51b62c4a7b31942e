"""The site is built as readers get it, with every warning an error, and its own first examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amp.devserver import LocalAmp

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / 'docs'


def test_it_builds_without_a_warning(tmp_path):
    mkdocs = Path(sys.executable).with_name('mkdocs')
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(
        [mkdocs, 'build', '--strict', '--quiet', '--site-dir', tmp_path / 'site'],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, '')
    assert (tmp_path / 'site' / 'destinations' / 'redis' / 'index.html').exists()


@pytest.mark.parametrize('page', sorted(path.stem for path in (DOCS / 'destinations').glob('[!i]*.md')))
def test_every_destination_has_its_guarantee_box(page):
    text = (DOCS / 'destinations' / f'{page}.md').read_text()
    box = '\n'.join(line for line in text.splitlines() if line.startswith('>'))
    for what in ('Guarantee', 'power cut', 'reader'):
        assert re.search(what, box, re.IGNORECASE), what
    for heading in ('Types', 'Speed'):
        assert f'## {heading}' in text, heading


@pytest.mark.parametrize('page', ['index', 'columnar_store'])
def test_the_examples_of_a_page_run(page, tmp_path):
    blocks = re.findall(r'```python\n(.*?)```', (DOCS / f'{page}.md').read_text(), flags=re.DOTALL)
    assert blocks
    with LocalAmp.simulate(seed=7, blocks=30, logs_per_block=3) as amp:
        for code in blocks:
            here = code.replace('grpc://localhost:1602', amp.url)
            done = subprocess.run(
                [sys.executable, '-c', here], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()


def test_pictures_name_no_machine_and_no_other_place():
    for picture in (DOCS / 'pictures').glob('*.svg'):
        text = picture.read_text()
        assert set(re.findall(r'https?://([\w.-]+)', text)) <= {'www.w3.org', '127.0.0.1', 'www.textualize.io'}

        assert not re.search(r'/(?:home|root|work|Users)/', text)
