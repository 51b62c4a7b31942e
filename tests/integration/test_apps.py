"""The apps, run as a reader would run them: against a local Amp, with fakesnow in the place of Snowflake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amp.devserver import LocalAmp
from amp.loaders import create_loader
from tests.support.snowflake import snowflake_config

pytestmark = [pytest.mark.integration, pytest.mark.snowflake]

APPS = Path(__file__).parents[2] / 'apps'
QUERY = str(APPS / 'queries' / 'erc20_transfers.sql')


@pytest.fixture(scope='module')
def server():
    with LocalAmp.simulate(seed=11, blocks=120, logs_per_block=4) as amp:
        yield amp


@pytest.fixture(scope='module')
def warehouse():
    with snowflake_config() as config:
        yield config


@pytest.fixture
def run(server, warehouse, tmp_path):
    def call(app: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        bare = {key: value for key, value in os.environ.items() if not key.startswith(('AMP_', 'SNOWFLAKE_'))}
        environment = {
            **bare,
            'AMP_URL': server.url,
            'AMP_CONN_SNOWFLAKE': json.dumps({'loader': 'snowflake', **warehouse}),
            **variables,
        }
        environment = {key: value for key, value in environment.items() if value}
        return subprocess.run(
            [sys.executable, str(APPS / app), *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return call


def tokens(server: LocalAmp, folder: Path) -> Path:
    """A label for one of the contracts of the chain."""
    import amp

    contracts = amp.Client(server.url).sql('SELECT DISTINCT address FROM eth_rpc.logs').to_arrow()['address']
    path = folder / 'tokens.csv'
    path.write_text(f'address,symbol\n0x{contracts[0].as_py().hex()},ONE\n')
    return path


def test_a_range_then_the_rest_and_nothing_twice(run, server, warehouse):
    """Half of the blocks, then all: the second run brings only what is missing, as every app's user expects."""
    arguments = ['--query-file', QUERY, '--table', 'app_transfers', '--workers', '2', '--json']
    first = run('snowflake_parallel_loader.py', *arguments, '--max-block', '60', '--partition-size', '30')
    assert first.returncode == 0, first.stderr
    second = run('snowflake_parallel_loader.py', *arguments)
    assert second.returncode == 0, second.stderr
    [told] = [json.loads(line) for line in second.stdout.splitlines() if '"summary"' in line]
    with create_loader('snowflake', warehouse) as loader:
        stored = loader.scan('app_transfers').read_all()
        assert told['rows'] == sum(block.as_py() >= 60 for block in stored['block_num'])
    wanted = server_rows(server)
    assert sorted(zip(*(stored[c].to_pylist() for c in ('block_num', 'log_index')), strict=True)) == wanted


def server_rows(server: LocalAmp) -> list[tuple[int, int]]:
    """The oracle: every log of the simulated chain is a Transfer."""
    import amp

    rows = amp.Client(server.url).sql('SELECT block_num, log_index FROM eth_rpc.logs').to_arrow()
    return sorted(zip(rows['block_num'].to_pylist(), rows['log_index'].to_pylist(), strict=True))


def test_erc20_in_parallel(run):
    done = run('test_erc20_parallel_load.py', '--blocks', '40', '--workers', '2', '--partition-size', '20')
    assert done.returncode == 0, done.stderr
    assert 'every one of 160 rows is there, once' in done.stderr


def test_erc20_with_labels(run, server, tmp_path):
    arguments = ['--label-csv', str(tokens(server, tmp_path)), '--blocks', '40', '--workers', '2']
    done = run('test_erc20_labeled_parallel.py', *arguments)
    assert done.returncode == 0, done.stderr
    assert 'every one of 160 rows is there, once' in done.stderr
    [symbols] = [line for line in done.stderr.splitlines() if line.startswith('symbol: ')]
    assert 0 < int(symbols.split()[1]) < 160


@pytest.mark.parametrize(
    ('arguments', 'variables', 'sentence'),
    [
        (
            [],
            {'AMP_CONN_SNOWFLAKE': '', 'SNOWFLAKE_USER': 'me'},
            'not set: SNOWFLAKE_ACCOUNT; SNOWFLAKE_DATABASE; one of',
        ),
        ([], {}, 'give --query-file'),
        (['--query-file', 'no.sql'], {}, "the query file 'no.sql' cannot be read"),
        (['--query-file', QUERY, '--label-csv', 'no.csv'], {}, 'no.csv'),
        (['--query-file', QUERY, '--loading-method', 'fax'], {}, "there is no loading_method 'fax'"),
        (['--query', 'SELECT * FROM eth_rpc.logs LIMIT 5'], {}, 'LIMIT'),
        (['--query-file', QUERY, '--min-block', '9', '--max-block', '9'], {}, 'block'),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(run, arguments, variables, sentence):
    done = run('snowflake_parallel_loader.py', '--table', 'wrong', *arguments, **variables)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith('error: ')
    assert sentence in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('app', ['snowflake_parallel_loader.py', 'test_erc20_parallel_load.py'])
def test_an_option_that_is_missing_is_named(run, app):
    done = run(app, AMP_URL='')
    assert done.returncode == 2
    assert '--server' in done.stderr


@pytest.mark.duckdb
@pytest.mark.parametrize(
    ('notebook', 'last'), [('erc20_transfers.py', '480 transfers of '), ('block_explorer.py', 'block 119: ')]
)
def test_notebooks_run_as_programs(run, notebook, last):
    done = run(f'notebooks/{notebook}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(last)


@pytest.mark.duckdb
def test_a_notebook_names_tokens_by_a_file_of_labels(run, server, tmp_path):
    done = run('notebooks/erc20_transfers.py', AMP_LABELS=str(tokens(server, tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '480 transfers of 2 tokens'
