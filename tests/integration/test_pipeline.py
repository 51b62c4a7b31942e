"""Streams side by side, as a file describes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import closing

import pytest

from amp import Client
from amp.devserver import LocalAmp
from amp.errors import ConfigError
from amp.loaders.types import LoadResult
from amp.pipeline import read_pipeline, run_pipeline
from tests.support.command_line import AMP, environment
from tests.support.following import SQL, expected, stored

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

STREAM = '[[stream]]\nsource = "grpc://h"\nsql = "x"\nto = "a"\ntable = "t"\n'


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=9, blocks=400, logs_per_block=(0, 3)) as server:
        yield server


def written(path, amp, *streams: str) -> None:
    path.write_text('\n'.join([f'[source]\nurl = "{amp.url}"', *(f'[[stream]]\n{text}' for text in streams)]))


def test_two_streams_run_beside_each_other_and_one_that_fails_stops_nobody(amp, tmp_path):
    file = tmp_path / 'pipeline.toml'
    written(
        file,
        amp,
        f'sql = "{SQL}"\nto = "duckdb:///{tmp_path}/a.db"\ntable = "logs"',
        f'sql = "{SQL}"\nto = "duckdb:///{tmp_path}/b.db"\ntable = "logs"\nworkers = 2\nname = "with history"',
        f'sql = "SELECT nothing FROM eth_rpc.logs"\nto = "duckdb:///{tmp_path}/c.db"\ntable = "logs"\nname = "broken"',
    )
    at: dict[str, int] = {}
    failed = []
    with closing(run_pipeline(read_pipeline(file), Client)) as results:
        for spec, result in results:
            if isinstance(result, LoadResult):
                for place in (result.metadata.get('position') or {}).values():
                    at[spec.name] = place['number']
            else:
                failed.append(spec.name)
            if failed == ['broken'] and list(at.values()) == [399, 399]:
                break
    for name in ('a', 'b'):
        assert stored(f'duckdb:///{tmp_path}/{name}.db') == expected(amp)


def test_the_command_ends_at_a_signal(amp, tmp_path):
    written(tmp_path / 'p.toml', amp, f'sql = "{SQL}"\nto = "duckdb:///{tmp_path}/a.db"\ntable = "logs"')
    with subprocess.Popen(
        [*AMP, 'run', 'p.toml', '--json'], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        events = (json.loads(line) for line in process.stdout)
        assert any(e['event'] == 'commit' and e['position']['simnet']['number'] == 399 for e in events)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert stored(f'duckdb:///{tmp_path}/a.db') == expected(amp)


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('[[stream]', 'cannot be read'),
        ('', 'describes no stream'),
        ('[streams]', "no section 'streams'"),
        ('[[stream]]\nsql = "SELECT 1"\nto = "duckdb:///a.db"\ntable = "t"', "stream 1 has no 'source'"),
        ('[[stream]]\nsource = "grpc://h"\nsql = "SELECT 1"\nto = "duckdb:///a.db"', "stream 1 has no 'table'"),
        ('[[stream]]\nsource = "grpc://h"\nsqll = "SELECT 1"', "unknown key 'sqll'"),
        ('[[stream]]\nsource="grpc://h"\nsql="x"\nto="a"\ntable="t"\n' * 2, "two streams are called 't'"),
        ('source = "grpc://h"\n' + STREAM, r'the source is a section \[source\] with a url alone'),
        ('[source]\nurl = 5\n' + STREAM, r'the source is a section \[source\] with a url alone'),
        ('[source]\nurls = "grpc://h"\n' + STREAM, r'the source is a section \[source\] with a url alone'),
        ('stream = [1]', 'in two pairs of brackets'),
        ('[stream]\nsql = "SELECT 1"', 'in two pairs of brackets'),
        (f'{STREAM}name = 5', "stream 1: 'name' is a text, not 5"),
        (f'{STREAM}workers = "4"', "stream 1: 'workers' is a whole number, not '4'"),
        (f'{STREAM}workers = true', "stream 1: 'workers' is a whole number, not True"),
        (f'{STREAM}workers = 0', 'stream 1: 0 workers do nothing'),
        (f'{STREAM}options = 3', "stream 1: 'options' is a table of options, not 3"),
        (f'{STREAM}mode = "appnd"', "there is no mode 'appnd'"),
        (f'{STREAM}key_columns = [1]', "stream 1: 'key_columns' is a text or a list of texts"),
        (f'{STREAM}label = "tokens"', "stream 1: 'label' 'tokens' is not NAME=FILE"),
        (f'{STREAM}label = [1]', "'label' is a text or a list of texts"),
        (f'{STREAM}join = "address"', "0 'label' and 1 'join' do not pair up"),
        (f'{STREAM}label = "a=a.csv"\njoin = ["x", "y"]', "1 'label' and 2 'join' do not pair up"),
        (f'{STREAM}label = "a=a.csv"\njoin = "x,,y"', "'x,,y' is not COLUMN or COLUMN=LABEL_COLUMN"),
        (f'{STREAM}label = "a=a.csv"\nleft = true', "'left' needs a 'label' and a 'join'"),
        (f'{STREAM}label_reload = true', "'label_reload' needs a 'label'"),
        (f'{STREAM}label = "a=a.csv"\nlabel_reload = "yes"', "'label_reload' is true or false, not 'yes'"),
    ],
)
def test_a_file_with_a_mistake_says_which(tmp_path, text, told):
    file = tmp_path / 'pipeline.toml'
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_pipeline(file)
