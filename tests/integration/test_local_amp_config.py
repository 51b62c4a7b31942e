"""Several datasets of several networks from one file, derived ones among them; ports that are in use."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import httpx
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp
from amp.devserver.anvil import Anvil, install_anvil
from amp.devserver.config import ServerConfig, read_config
from amp.devserver.simulator import TRANSFER_TOPIC
from amp.errors import ConfigError, SourceError
from tests.support.bare_client import BareClient
from tests.support.command_line import AMP
from tests.support.ports import free_port

pytestmark = pytest.mark.integration


PORTS = 'port = 0\njsonl_port = 0\nadmin_port = 0\n'


def config(folder, text: str, ports: str = PORTS):
    file = folder / 'amp-local.toml'
    file.write_text(ports + textwrap.dedent(text))
    return file


def serve(file) -> LocalAmp:
    return LocalAmp.from_config(read_config(file))


@pytest.fixture(scope='module')
def two_anvils():
    binary = install_anvil()
    with Anvil(binary, port=free_port()) as one, Anvil(binary, port=free_port()) as other:
        for anvil, transfers in ((one, 3), (other, 5)):
            token = anvil.deploy_erc20()
            for amount in range(transfers):
                anvil.transfer(token, anvil.accounts[1], amount + 1)
                anvil.mine()
        yield one, other


def test_two_nodes_of_two_networks_at_once(two_anvils, tmp_path, monkeypatch):
    one, other = two_anvils
    monkeypatch.setenv('OTHER_NODE', other.url.removeprefix('http://'))
    file = config(
        tmp_path,
        f"""
        [datasets.eth]
        kind = "evm-rpc"
        url = "{one.url}"
        network = "here"
        poll_seconds = 0.02

        [datasets.far]
        kind = "evm-rpc"
        url = "http://${{OTHER_NODE}}"
        network = "there"
        store = "kept/far"
        finality = 0
        segment_blocks = 2
        poll_seconds = 0.02

        [datasets.erc20]
        kind = "derived"
        tables.transfers = '''
            SELECT block_num, evm_decode_type(data, 'uint256') AS amount
            FROM eth.logs WHERE topic0 = x'{TRANSFER_TOPIC.hex()}'
        '''
        """,
    )
    with serve(file) as amp, BareClient(amp.url) as client:
        assert amp.networks == ['here', 'there']
        amp.wait_for_block(4, dataset='eth')
        amp.wait_for_block(6, dataset='far')
        with client.open('SELECT a.hash FROM eth.blocks a JOIN far.blocks b ON a.block_num = b.block_num') as stream:
            received = list(stream)
        ranges = {r['network']: (r['numbers']['end'], r['hash']) for r in received[-1].metadata['ranges']}
        assert ranges == {
            'here': (4, one.call('eth_getBlockByNumber', '0x4', False)['hash']),
            'there': (6, other.call('eth_getBlockByNumber', '0x6', False)['hash']),
        }
        with pytest.raises(fl.FlightInternalError, match='here and there'):
            client.stream('SELECT hash FROM eth.blocks UNION ALL SELECT hash FROM far.blocks')
        # Each stream has the network of its own dataset, and they go on apart.
        streams = {name: client.stream(f'SELECT block_num FROM {name}.blocks') for name in ('eth', 'far')}
        spans = {name: stream.microbatch()[-1] for name, stream in streams.items()}
        assert {name: (last.range['network'], last.span) for name, last in spans.items()} == {
            'eth': ('here', (0, 4)),
            'far': ('there', (0, 6)),
        }
        other.mine(2)
        assert streams['far'].microbatch()[-1].span[0] == 7
        for stream in streams.values():
            stream.__exit__()
        amounts = client.query('SELECT amount FROM erc20.transfers ORDER BY block_num')['amount'].to_pylist()
        assert amounts == [str(10**24), '1', '2', '3']
        with client.stream('SELECT amount FROM erc20.transfers') as stream:
            assert stream.microbatch()[-1].range['network'] == 'here'
        with httpx.Client(base_url=amp.admin_url) as admin:
            listed = [d['name'] for d in admin.get('/datasets').json()['datasets']]
            assert listed == ['erc20', 'eth', 'far']
            jobs = {j['descriptor']['dataset_name']: j for j in admin.get('/jobs').json()['jobs']}
            progress = admin.get(f'/jobs/{jobs["far"]["id"]}/progress').json()['tables']['logs']
            assert progress['files_count'] >= 3
            assert progress['total_size_bytes'] > 0
            # A stopped job follows its node no longer, and a new one does again.
            assert admin.put(f'/jobs/{jobs["eth"]["id"]}/stop').status_code == 200
            one.mine(3)
            with pytest.raises(TimeoutError):
                amp.wait_for_block(7, dataset='eth', timeout=0.3)
            assert admin.post('/datasets/_/eth/versions/latest/deploy', json={}).status_code == 202
            amp.wait_for_block(7, dataset='eth')
        assert httpx.post(amp.jsonl_url, content='SELECT max(block_num) AS n FROM eth.blocks').json() == {'n': 7}
    assert sorted(p.name for p in (tmp_path / 'kept' / 'far').iterdir() if p.is_dir()) == [
        'blocks',
        'logs',
        'transactions',
    ]


def test_simulated_stored_and_derived_upon_derived(tmp_path):
    with LocalAmp.simulate(blocks=20, network='old', logs_per_block=3) as made:
        for table in made.datasets['eth_rpc']:
            (tmp_path / 'raw').mkdir(exist_ok=True)
            pq.write_table(made.canonical(table), tmp_path / 'raw' / f'{table}.parquet')
    file = config(
        tmp_path,
        """
        [datasets.archive]
        kind = "parquet"
        path = "raw"
        network = "old"
        version = "2.1.0"

        [datasets.sim]
        kind = "simulator"
        seed = 7
        blocks = 30

        [datasets.busiest]
        kind = "derived"
        dependencies = { made = "_/per_block@1.0.0" }
        tables.busy = "SELECT n, logs FROM made.counts WHERE logs >= 10"

        [datasets.per_block]
        kind = "derived"
        version = "1.0.0"
        dependencies = { chain = "sim" }
        tables.counts = "SELECT block_num() AS n, count(*) AS logs FROM chain.logs GROUP BY block_num()"
        tables.joined = "SELECT l.log_index, b.hash FROM chain.logs l JOIN chain.blocks b ON l.block_num = b.block_num"
        """,
    )
    with serve(file) as amp, BareClient(amp.url) as client:
        assert client.query('SELECT count(*) AS n FROM "archive@2.1.0".logs')['n'].to_pylist() == [60]
        assert client.query('SELECT count(*) AS n FROM per_block.joined')['n'].to_pylist() == [300]
        assert client.query('SELECT sum(logs) AS n FROM busiest.busy')['n'].to_pylist() == [300]
        amp.mine(2, dataset='sim')
        with client.stream('SELECT n, logs FROM busiest.busy') as stream:
            received = stream.microbatch()
            assert received[-1].span == (0, 31)
            assert received[-1].range['hash'] == amp.block_hash(31, dataset='sim')
            amp.reorg(4, dataset='sim')
            assert stream.microbatch()[-1].span == (28, 32)
        # A derived table beside a raw one, in one stream: what comes later joins what was there before.
        joined = 'SELECT b.hash, c.logs FROM sim.blocks b JOIN per_block.counts c ON b.block_num = c.n'
        with client.stream(joined) as stream:
            assert sum(received.rows for received in stream.microbatch()) == 33
            amp.mine(2, dataset='sim')
            later = stream.microbatch()
            assert (later[-1].span, sum(received.rows for received in later)) == ((33, 34), 2)
        with pytest.raises(ConfigError, match='only a simulated chain'):
            amp.mine(1, dataset='archive')
        with pytest.raises(KeyError, match='there is no dataset'):
            amp.mine(1, dataset='nothing')


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('[datasets.a]\nkind = "sim"', r"datasets\.a: Input tag 'sim'"),
        ('[datasets.a]\nkind = "evm-rpc"', r'datasets\.a\.evm-rpc\.url: Field required'),
        ('[datasets.a]\nkind = "simulator"\nblock = 3', r'block: Extra inputs'),
        ('[datasets.a]\nkind = "simulator"\nlogs_per_block = -3', r'logs_per_block.*greater than or equal to 0'),
        ('[datasets.a]\nkind = "simulator"\nlogs_per_block = [5, 2]', r'a \(lowest, highest\), not \(5, 2\)'),
        ('[datasets.a]\nkind = "simulator"\nfirst_block = 18446744073709551610', r'first_block: Input should be less'),
        ('[datasets.a]\nkind = "simulator"\nblock_time = inf', r'block_time: Input should be a finite number'),
        ('[datasets.a]\nkind = "simulator"\nversion = "01.0.0"', r'version: String should match'),
        ('[datasets.a]\nkind = "simulator"\nnetwork = ""', r'network: String should have at least 1'),
        ('[datasets.A-b]\nkind = "simulator"', r'datasets\.A-b'),
        ('x = ', 'is no TOML'),
        ('', 'datasets: Field required'),
        (
            '[datasets.a]\nkind = "evm-rpc"\nurl = "http://${NO_SUCH_VARIABLE}"',
            'the environment has no NO_SUCH_VARIABLE',
        ),
        ('[datasets.a]\nkind = "parquet"\npath = "nowhere"', 'nowhere holds no dataset'),
        ('[datasets.d]\nkind = "derived"\ntables.t = "SELECT 1 AS x"', 'tables of one network, not of none'),
        (
            '[datasets.s]\nkind = "simulator"\n[datasets.d]\nkind = "derived"\ntables.t = "SELECT * FROM s.nope"',
            'the dataset d: .*Table nope not found in dataset s',
        ),
        (
            '[datasets.s]\nkind = "simulator"\n[datasets.d]\nkind = "derived"\ntables.t = "SELECT count(*) AS n FROM s.logs"',
            'the dataset d: .*non-incremental operation: Aggregate',
        ),
        (
            '[datasets.a]\nkind = "derived"\ndependencies.x = "b"\ntables.t = "SELECT * FROM x.t"\n'
            '[datasets.b]\nkind = "derived"\ndependencies.x = "a"\ntables.t = "SELECT * FROM x.t"',
            'the datasets a, b are made of each other',
        ),
    ],
)
def test_a_configuration_that_cannot_be_meant(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        serve(config(tmp_path, text))


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match='cannot be read: No such file'):
        read_config(tmp_path / 'nothing.toml')


def test_a_port_in_use_is_said_and_nothing_is_left_listening():
    with LocalAmp.simulate(blocks=1, jsonl_port=0) as amp:
        taken = int(amp.url.rpartition(':')[2])
        with pytest.raises(ConfigError, match=rf'cannot listen on 127\.0\.0\.1:{taken}: Address already in use'):
            LocalAmp.simulate(port=taken).start()
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        jsonl = int(amp.jsonl_url.rpartition(':')[2])
        with pytest.raises(ConfigError, match=f'{jsonl}: Address already in use'):
            LocalAmp.simulate(jsonl_port=jsonl, admin_port=port).start()
        with LocalAmp.simulate(admin_port=port) as other:
            assert httpx.get(f'{other.admin_url}/healthz').status_code == 200
    with pytest.raises(ConfigError, match='cannot listen on'):
        LocalAmp.simulate(host='203.0.113.7').start()


@pytest.mark.parametrize(
    'pair', [('port', 'jsonl_port'), ('port', 'admin_port'), ('jsonl_port', 'admin_port')], ids='-'.join
)
def test_one_port_for_two_is_said(pair):
    port = free_port()
    with pytest.raises(ConfigError, match=f'{pair[0]} and {pair[1]} are both {port}'):
        LocalAmp.simulate(**dict.fromkeys(pair, port)).start()


def test_the_command_serves_a_file(tmp_path):
    file = config(tmp_path, '[datasets.sim]\nkind = "simulator"\nblocks = 3\nblock_time = 0.05\n')
    with subprocess.Popen(
        [*AMP, 'serve', '--config', str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().strip()
        with BareClient(url) as client, client.stream('SELECT block_num FROM sim.blocks') as stream:
            last = 0
            while last < 8:
                last = stream.microbatch()[-1].span[1]
        port = url.rpartition(':')[2]
        again = subprocess.run(
            [*AMP, 'serve', '--config', str(file), '--port', port],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert again.returncode == 3
        assert 'Address already in use' in again.stderr
        assert 'Traceback' not in again.stderr
        os.kill(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert 'sim.blocks' in said
    assert 'jsonl' in said
    assert 'admin' in said
    wrong = subprocess.run(
        [*AMP, 'serve', '--config', str(tmp_path / 'no.toml')], capture_output=True, text=True, timeout=240, check=False
    )
    assert wrong.returncode == 3
    assert 'no.toml cannot be read' in wrong.stderr


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['int', 'term'])
def test_the_command_ends_though_a_query_does_not(number):
    # A join that never looks up.
    logs = ', '.join(f'eth_rpc.logs {name}' for name in 'abc')
    sql = f'SELECT count(*) FROM {logs} WHERE a.log_index + b.log_index + c.log_index = 77'
    command = [*AMP, 'serve', '--simulate', '7', '--blocks', '400', '--block-time', '0', '--port', '0']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        with BareClient(url) as client:
            ticket = client.info(sql).endpoints[0].ticket
            with pytest.raises(fl.FlightTimedOutError):
                client.flight.do_get(ticket, fl.FlightCallOptions(timeout=1)).read_all()
        process.send_signal(number)
        assert process.wait(60) == 130
        assert 'panicked' not in process.stderr.read()


def test_a_source_that_fails_gives_the_others_back(tmp_path):
    file = config(
        tmp_path,
        """
        [datasets.a]
        kind = "evm-rpc"
        url = "http://127.0.0.1:9"
        store = "kept"
        """,
    )
    for _ in range(2):
        # Not "another process has the store".
        with pytest.raises(SourceError, match='does not answer'):
            serve(file)


PAGE = (Path(__file__).parents[2] / 'docs' / 'local_amp.md').read_text()


def test_the_file_of_the_page(tmp_path):
    """As it stands but for the datasets that want a node and files of the reader's."""
    [text] = re.findall(r'```toml\n(.*?)```', PAGE, flags=re.DOTALL)
    file = config(tmp_path, text, ports='')
    assert set(read_config(file).datasets) == {'sim', 'mainnet', 'archive', 'erc20'}
    told = tomllib.loads(text)
    own = {name: told['datasets'][name] for name in ('sim', 'erc20')}
    free = {'port': 0, 'jsonl_port': 0, 'admin_port': 0}
    with LocalAmp.from_config(ServerConfig.model_validate({**told, **free, 'datasets': own})) as amp:
        with BareClient(amp.url) as client:
            assert client.query('SELECT count(*) AS n FROM erc20.transfers')['n'].to_pylist() == [10_000]
        commands = [line for line in PAGE.splitlines() if line.startswith('curl ')]
        assert len(commands) == 5
        for line in commands:
            here = line.replace('http://localhost:1603', amp.jsonl_url).replace('http://localhost:1610', amp.admin_url)
            done = subprocess.run([*shlex.split(here), '-sf'], capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == 0, line


def test_the_tests_of_the_page(tmp_path):
    [text] = [each for each in re.findall(r'```python\n(.*?)```', PAGE, flags=re.DOTALL) if 'pytest_plugins' in each]
    (tmp_path / 'test_mine.py').write_text(text)
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'test_mine.py']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout
    assert '3 passed' in done.stdout
