"""The page of `amp ui`, in a real Chromium: what it shows is what the destination and the server say."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from amp.devserver import LocalAmp
from tests.support.following import SQL, until_head
from tests.support.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

AMP = str(Path(sys.executable).with_name('amp'))
CHROMIUM = next(
    (path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), ''
)
HOSTILE = '<img src=x onerror=document.title=1>\'"; rm -rf $(echo /)'


class Text(HTMLParser):
    """The text of a page as a reader sees it, and the tags that there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.parts.append(data)

    def __str__(self) -> str:
        return ' '.join(' '.join(self.parts).split())


@contextmanager
def page(*arguments: str) -> Iterator[str]:
    """The link of a running `amp ui`, ended by a signal as a user would."""
    command = [AMP, 'ui', *arguments, '--port', '0', '--interval', '0.2']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            link = process.stdout.readline().strip()
            assert link.startswith('http://127.0.0.1:'), process.stderr.read()
            yield link
        finally:
            process.terminate()
            assert process.wait(30) == 130


def state_of(link: str) -> dict:
    """What the page asks for, after its first look."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    browser.open(link, timeout=60).close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with browser.open(f'{link.partition("?")[0]}api/state', timeout=60) as answer:
            state = json.load(answer)
        if state['at'] is not None:
            return state
        time.sleep(0.05)
    raise AssertionError('it never looked')


def seen_by_a_browser(link: str, folder: Path) -> Text:
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}', '--dump-dom',
         '--virtual-time-budget=6000', link],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return Text(done.stdout)


@pytest.fixture(scope='module')
def amp():
    with LocalAmp.simulate(seed=4, blocks=60, logs_per_block=(1, 3)) as server:
        yield server


@pytest.fixture
def destination(amp, tmp_path):
    url = f'duckdb:///{tmp_path}/chain.db'
    until_head(amp, url, HOSTILE)
    return url


def test_what_it_says_is_what_there_is(amp, destination):
    with page(destination, '--source', amp.url) as link:
        [place] = state_of(link)['destinations']
    [stream] = place['streams']
    [network] = stream['networks']
    head = amp.head[0]
    assert (stream['table'], place['problem']) == (HOSTILE, None)
    assert (network['head'], network['durable'], network['lag'], network['gaps']) == (head, head, 0, [])
    assert network['ranges'] == [[0, head]]
    assert 0 <= network['retained'] <= head


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here; .ci/run installs one')
def test_a_browser_shows_it_and_runs_nothing_of_a_name(amp, destination, tmp_path):
    with page(destination, f'duckdb:///{tmp_path}/nowhere.db', '--source', amp.url) as link:
        state_of(link)
        shown = seen_by_a_browser(link, tmp_path / 'profile')
    text = str(shown)
    assert HOSTILE in text
    assert 'img' not in shown.tags
    assert f'durable {amp.head[0]}' in text
    assert 'blocks behind 0' in text
    assert 'there is nothing at' in text
    assert 'svg' in shown.tags  # a chart was drawn
    assert 'None seen since this page was started.' in text


def test_its_commands_can_be_pasted_into_a_shell(amp, destination, tmp_path):
    with page(destination, '--source', amp.url) as link:
        [place] = state_of(link)['destinations']
    lines = {one['what']: one['line'] for one in place['streams'][0]['commands']}
    assert set(lines) == {'Where it stands', 'Compare every row', 'Go on with it', 'What a load would do'}
    environment = {**os.environ, 'PATH': f'{Path(AMP).parent}{os.pathsep}{os.environ["PATH"]}'}
    for what in ('Where it stands', 'Compare every row', 'What a load would do'):
        done = subprocess.run(
            ['sh', '-c', lines[what]], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, f'{lines[what]}\n{done.stderr}'


def test_reorgs_gaps_and_figures_of_a_running_stream(amp, tmp_path):
    """A stream with metrics, and a reorg while the page is open: its depth and rows are the process's own count."""
    url, address = f'lmdb:///{tmp_path}/chain', f'127.0.0.1:{free_port()}'
    command = [AMP, 'stream', amp.url, SQL, '--to', url, '--table', 'logs', '--metrics', address, '--json']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        events = (json.loads(line) for line in process.stdout)
        wait_for(events, lambda e: e['event'] == 'commit' and e['position']['simnet']['number'] == amp.head[0])
        with page(url, '--source', amp.url, '--metrics', address) as link:
            state_of(link)
            amp.reorg(4)
            undone = wait_for(events, lambda e: e['event'] == 'reorg')
            deadline = time.monotonic() + 60
            while not (state := state_of(link))['reorgs']:
                assert time.monotonic() < deadline
        process.terminate()
        process.wait(30)
    [reorg] = state['reorgs']
    assert (reorg['table'], reorg['network'], reorg['rows']) == ('logs', 'simnet', undone['rows_undone'])
    assert reorg['depth'] >= 4
    assert state['figures'][-1][1]['rows'] > 0


def wait_for(events, wanted):
    return next(event for event in events if wanted(event))


def refusal(request: str | urllib.request.Request) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as answer:
        return answer.code, answer.read().decode()


def test_who_has_no_token_sees_nothing(destination):
    with page(destination) as link:
        bare = link.partition('?')[0]
        for path in ('', 'api/state', 'plotly.js', 'static/page.js', '?token=wrong'):
            code, text = refusal(bare + path)
            assert (code, 'the token in it is missing or wrong' in text) == (403, True)
        assert refusal(urllib.request.Request(link, headers={'Host': 'evil.example'}))[0] == 400
        for method in ('POST', 'PUT', 'DELETE'):
            assert refusal(urllib.request.Request(link, method=method))[0] == 405


def test_a_destination_that_is_down_and_a_server_that_is_away(tmp_path):
    down = f'postgresql://me:a-secret@127.0.0.1:{free_port()}/chain?connect_timeout=2'
    with page(down, '--source', f'grpc://127.0.0.1:{free_port()}', '--metrics', f'127.0.0.1:{free_port()}') as link:
        state = state_of(link)
    [place] = state['destinations']
    assert place['problem']
    assert 'does not answer' in state['metrics']['problems'][0]
    assert 'a-secret' not in json.dumps(state)


def test_what_is_refused_at_the_start(destination):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([AMP, 'ui', destination, '--port', port], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert re.match(r'error: port \d+ cannot be had', done.stderr)
    done = subprocess.run([AMP, 'ui', destination, '--host', '0.0.0.0'], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert 'this page is for this one only' in done.stderr
