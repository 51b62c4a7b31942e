"""Rows get their labels on every way into a destination, and a stream with labels undoes its reorgs."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
import pytest

from amp.client import Client
from amp.config.label_manager import LabelManager
from amp.devserver import LocalAmp
from amp.errors import AmpError, ConfigError, LoadError
from amp.loaders.base import DataLoader
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.types import LabelJoinConfig
from amp.pipeline import read_pipeline, run_pipeline
from amp.streaming import BatchMetadata, BlockRange, ResponseBatch
from tests.support.by_id_loader import ByIdLoader
from tests.support.command_line import AMP, end, environment, exit_code, one_sentence, until
from tests.support.command_line import amp as run_amp
from tests.support.following import QUICK, at_head

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]

SQL = 'SELECT block_num, log_index, address FROM eth_rpc.logs'


@pytest.fixture
def local() -> Iterator[LocalAmp]:
    with LocalAmp.simulate(seed=3, blocks=40, microbatch_max_blocks=8) as server:
        yield server


@pytest.fixture
def names(local: LocalAmp) -> dict[bytes, str]:
    """Names for half of the contracts that the chain's logs come from."""
    contracts = sorted(local.canonical('logs')['address'].unique().to_pylist())
    return {address: f'T{n}' for n, address in enumerate(contracts[::2])}


@pytest.fixture
def label_dir(tmp_path: Path, names: dict[bytes, str]) -> Path:
    lines = [
        f'0x{address.hex().upper() if n % 2 else address.hex()},{name},{n}\n'
        for n, (address, name) in enumerate(names.items())
    ]
    (tmp_path / 'tokens.csv').write_text('address,symbol,decimals\n' + ''.join(lines))
    return tmp_path


@pytest.fixture
def client(local: LocalAmp, label_dir: Path) -> Iterator[Client]:
    with Client(local.url, label_dir=label_dir) as connected:
        connected.add_label('tokens', 'tokens.csv')
        yield connected


def expected(local: LocalAmp, names: dict[bytes, str], how: str = 'inner') -> list[tuple[Any, ...]]:
    rows = local.canonical('logs').select(['block_num', 'log_index', 'address']).to_pylist()
    labelled = [(*row.values(), names.get(row['address'])) for row in rows]
    return sorted(row for row in labelled if how == 'left' or row[3] is not None)


def stored(path: Path, table: str = 'logs') -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        sql = f'SELECT block_num, log_index, address, symbol FROM "{table}"'
        return sorted(connection.execute(sql).fetchall())


def test_load_with_a_bare_name_and_left(
    local: LocalAmp, client: Client, names: dict[bytes, str], tmp_path: Path
) -> None:
    url = f'duckdb:///{tmp_path}/chain.db'
    wanted = expected(local, names)
    assert 0 < len(wanted) < local.canonical('logs').num_rows
    result = client.sql(SQL).load(url, 'logs', label_config='tokens')
    assert result.rows_loaded == len(wanted)
    assert (result.metadata['total_rows'], result.metadata['schema_fields']) == (len(wanted), 5)
    assert stored(tmp_path / 'chain.db') == wanted
    left = LabelJoinConfig('tokens', 'address', 'address', how='left')
    client.sql(SQL).load(url, 'everything', label_config=[left])
    found = stored(tmp_path / 'chain.db', 'everything')
    assert sorted(found, key=str) == sorted(expected(local, names, 'left'), key=str)


def test_a_configured_connection_has_the_labels_too(
    local: LocalAmp, client: Client, names: dict[bytes, str], tmp_path: Path
) -> None:
    client.configure_label('again', str(tmp_path / 'tokens.csv'), binary_columns=['address'])
    client.configure_connection('here', 'duckdb', {'path': str(tmp_path / 'chain.db')})
    hexed = "SELECT block_num, log_index, '0x' || encode(address, 'hex') AS contract FROM eth_rpc.logs"
    config = LabelJoinConfig('again', 'address', 'contract')
    result = client.sql(hexed).load('here', 'logs', label_config=config)
    assert result.rows_loaded == len(expected(local, names))


@pytest.mark.parametrize('batch_size', [1, 7, None])
def test_a_stream_with_labels_undoes_its_reorgs(
    local: LocalAmp, client: Client, names: dict[bytes, str], tmp_path: Path, batch_size: int | None
) -> None:
    url = f'duckdb:///{tmp_path}/chain.db'
    options: dict[str, Any] = {'stream': True, 'label_config': 'tokens', 'retry': QUICK, 'batch_size': batch_size}
    with closing(client.sql(SQL).load(url, 'logs', **options)) as results:
        assert any(at_head(local, result) for result in results)
        local.reorg(11)
        seen = []
        for result in results:
            seen.append(result)
            if at_head(local, result):
                break
        assert any(result.is_reorg for result in seen)
    assert stored(tmp_path / 'chain.db') == expected(local, names)
    local.mine(5)
    with closing(client.sql(SQL).load(url, 'logs', **options)) as results:
        assert any(at_head(local, result) for result in results)
    assert stored(tmp_path / 'chain.db') == expected(local, names)


def test_the_position_moves_over_microbatches_that_no_label_knows(
    local: LocalAmp, client: Client, tmp_path: Path
) -> None:
    (tmp_path / 'nothing.csv').write_text(f'address,symbol\n0x{"00" * 20},none\n')
    client.add_label('nothing', 'nothing.csv')
    url = f'duckdb:///{tmp_path}/chain.db'
    with closing(client.sql(SQL).load(url, 'logs', stream=True, label_config='nothing', retry=QUICK)) as results:
        rows = 0
        for result in results:
            rows += result.rows_loaded
            if at_head(local, result):
                break
    assert rows == 0
    assert stored(tmp_path / 'chain.db') == []


def test_a_loader_that_undoes_by_id_has_labels_too(
    local: LocalAmp, client: Client, names: dict[bytes, str], tmp_path: Path
) -> None:
    client.configure_connection(
        'own', ByIdLoader.__name__.lower().removesuffix('loader'), {'path': str(tmp_path / 'own.db')}
    )
    with closing(client.sql(SQL).load('own', 'logs', stream=True, label_config='tokens', retry=QUICK)) as results:
        assert any(at_head(local, result) for result in results)
        local.reorg(5)
        assert any(at_head(local, result) for result in results)
    with client.make_loader('own') as loader:
        found = loader.scan('logs').read_all().select(['block_num', 'log_index', 'address', 'symbol']).to_pylist()
    assert sorted(tuple(row.values()) for row in found) == expected(local, names)


def test_a_replaced_file_labels_the_rows_that_follow(local: LocalAmp, client: Client, tmp_path: Path) -> None:
    [contract, *_] = local.canonical('logs')['address'].to_pylist()
    path = tmp_path / 'fresh.csv'
    path.write_text(f'address,symbol\n0x{contract.hex()},old\n')
    client.add_label('fresh', path, reload=True)
    url = f'duckdb:///{tmp_path}/chain.db'
    last = local.head[0]
    with closing(client.sql(SQL).load(url, 'logs', stream=True, label_config='fresh', retry=QUICK)) as results:
        assert any(at_head(local, result) for result in results)
        path.with_suffix('.new').write_text(f'address,symbol\n0x{contract.hex()},new\n')
        path.with_suffix('.new').replace(path)
        local.mine(20)
        assert any(at_head(local, result) for result in results)
    rows = stored(tmp_path / 'chain.db')
    assert {symbol for block, *_, symbol in rows if block <= last} == {'old'}
    assert {symbol for block, *_, symbol in rows if block > last} == {'new'}


@pytest.mark.parametrize('streaming', [False, True])
def test_mistakes_are_told_before_a_table_is_made(client: Client, tmp_path: Path, streaming: bool) -> None:
    def load(table: str, label_config: object, sql: str = SQL) -> None:
        url = f'duckdb:///{tmp_path}/chain.db'
        results = client.sql(sql).load(url, table, label_config=label_config, stream=streaming)
        if streaming:
            with closing(results):
                next(results)

    with pytest.raises(ConfigError, match=r"no label 'tokns'.*'tokens'"):
        load('a', 'tokns')
    with pytest.raises((ConfigError, LoadError), match="no column 'contract'"):
        load('b', LabelJoinConfig('tokens', 'address', 'contract'))
    with pytest.raises((ConfigError, LoadError), match="both have a column 'symbol'"):
        load('c', 'tokens', "SELECT block_num, address, 'x' AS symbol FROM eth_rpc.logs")
    with duckdb.connect(str(tmp_path / 'chain.db')) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE table_name IN ('a', 'b', 'c')")
        assert tables.fetchall() == []


# Without a client

MANY = 100_000


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[DuckDBLoader]:
    (tmp_path / 'even.csv').write_text('k,twice\n' + ''.join(f'{k},{2 * k}\n' for k in range(0, 1000, 2)))
    manager = LabelManager(tmp_path)
    manager.add_label('even', 'even.csv')
    with DuckDBLoader({'path': str(tmp_path / 'own.db')}, label_manager=manager) as connected:
        yield connected


def numbers(size: int) -> pa.Table:
    return pa.table({'n': pa.array(range(size), pa.int64()), 'k': pa.array([n % 1000 for n in range(size)])})


EVEN = LabelJoinConfig('even', 'k', 'k')


@pytest.mark.parametrize('batch_size', [1_000, 32_768, 65_536, MANY])
def test_load_table_keeps_every_row(loader: DuckDBLoader, batch_size: int) -> None:
    result = loader.load_table(numbers(MANY), 't', batch_size=batch_size, label_config=EVEN)
    assert (result.success, result.rows_loaded) == (True, MANY // 2), result.error
    rows = loader.scan('t').read_all().sort_by('n').to_pylist()
    assert rows == [{'n': n, 'k': n % 1000, 'twice': n % 1000 * 2} for n in range(0, MANY, 2)]


def test_load_batch_and_load_stream(loader: DuckDBLoader) -> None:
    [batch] = numbers(MANY).combine_chunks().to_batches()
    result = loader.load_batch(batch, 't', label_config=[EVEN])
    assert (result.rows_loaded, result.metadata['batch_size'], result.metadata['schema_fields']) == (MANY // 2,) * 2 + (
        3,
    )
    results = list(
        loader.load_stream([batch.slice(0, 10), batch.slice(10, 5)], 's', label_config=EVEN, mode='overwrite')
    )
    assert [r.rows_loaded for r in results] == [5, 3]
    assert loader.scan('s').read_all()['twice'].to_pylist() == [0, 4, 8, 12, 16, 20, 24, 28]


def test_load_stream_continuous(loader: DuckDBLoader) -> None:
    [batch] = numbers(10).combine_chunks().to_batches()
    first, second = BlockRange('one', 0, 4, '0xa'), BlockRange('one', 5, 9, '0xb', '0xa')
    responses = [
        ResponseBatch.data_batch(batch.slice(0, 5), BatchMetadata([first], ranges_complete=True)),
        ResponseBatch.data_batch(batch.slice(5), BatchMetadata([second], ranges_complete=True)),
        ResponseBatch.reorg_batch([second]),
    ]
    results = list(loader.load_stream_continuous(responses, 't', label_config=EVEN))
    assert [(r.rows_loaded, r.is_reorg) for r in results] == [(3, False), (2, False), (0, True)]
    assert loader.scan('t').read_all().to_pylist() == [{'n': n, 'k': n, 'twice': 2 * n} for n in (0, 2, 4)]


def test_a_failed_join_is_a_result_and_leaves_nothing(loader: DuckDBLoader) -> None:
    result = loader.load_table(numbers(3), 't', label_config=LabelJoinConfig('even', 'k', 'missing'))
    assert not result.success
    assert "'missing'" in str(result.error)
    assert not loader.table_exists('t')
    assert not DuckDBLoader({'path': ':memory:'}).label_manager
    with pytest.raises(ConfigError, match='knows no labels'):
        DuckDBLoader({'path': ':memory:'}).load_table(numbers(3), 't', label_config='even')


def test_labels_meet_an_older_table_and_forms(loader: DuckDBLoader) -> None:
    loader.load_table(numbers(2), 't')
    refused = loader.load_table(numbers(2), 't', label_config=EVEN)
    assert not refused.success
    options: dict[str, Any] = {'schema_evolution': 'evolve', 'column_types': {'twice': 'text'}}
    evolved = loader.load_table(numbers(3), 't', label_config=EVEN, **options)
    assert evolved.success, evolved.error
    assert loader.scan('t').read_all()['twice'].to_pylist() == [None, None, '0', '4']


def test_a_loader_that_takes_its_configuration_alone(local: LocalAmp, client: Client, names: dict[bytes, str]) -> None:
    class PlainListLoader(DataLoader[dict[str, Any]]):
        rows: ClassVar[list[pa.RecordBatch]] = []

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)

        def connect(self) -> None:
            self._is_connected = True

        def disconnect(self) -> None:
            self._is_connected = False

        def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
            self.rows.append(batch)
            return batch.num_rows

    client.configure_connection('list', 'plainlist', {})
    assert client.sql(SQL).load('list', 'logs', label_config='tokens').rows_loaded == len(expected(local, names))
    found = pa.Table.from_batches(PlainListLoader.rows).drop_columns('decimals').to_pylist()
    assert sorted(tuple(row.values()) for row in found) == expected(local, names)


# The command line


def test_load_with_labels_from_the_command_line(local: LocalAmp, label_dir: Path, names: dict[bytes, str]) -> None:
    common = ('load', local.url, SQL, '--to', 'duckdb:///chain.db')
    labelled = ('--label', 'tokens=tokens.csv')
    for table, join in (('bare', ()), ('keyed', ('--join', 'address')), ('both', ('--join', 'address=address'))):
        done = run_amp(*common, '-t', table, *labelled, *join, cwd=label_dir)
        assert done.returncode == 0, done.stderr
        assert stored(label_dir / 'chain.db', table) == expected(local, names)
    done = run_amp(*common, '-t', 'everything', *labelled, '--join', 'address', '--left', '--json', cwd=label_dir)
    assert json.loads(done.stdout.splitlines()[-1])['rows'] == local.canonical('logs').num_rows
    done = run_amp(*common, '-t', 'x', '--label', 'tokens=nothing.csv', cwd=label_dir)
    assert done.returncode == 3
    assert 'nothing.csv' in one_sentence(done)


def test_stream_with_labels_from_the_command_line(local: LocalAmp, label_dir: Path, names: dict[bytes, str]) -> None:
    arguments = ('stream', local.url, SQL, '--to', 'duckdb:///chain.db', '-t', 'logs', '--label', 'tokens=tokens.csv')
    folder = {'AMP_LABEL_DIR': str(label_dir)}
    process = subprocess.Popen(
        [*AMP, *arguments, '--json'], stdout=subprocess.PIPE, cwd=label_dir, env=environment(**folder)
    )
    head = local.head
    assert head is not None
    until(process, lambda event: bool(event.get('position')) and event['position'][local.network]['hash'] == head[1])
    assert end(process, signal.SIGTERM)[0] == 130
    assert stored(label_dir / 'chain.db') == expected(local, names)


@pytest.mark.parametrize('reload', [True, False])
def test_a_stream_of_the_command_line_takes_a_replaced_file_when_it_is_told_to(
    local: LocalAmp, label_dir: Path, reload: bool
) -> None:
    text = (label_dir / 'tokens.csv').read_text()
    (label_dir / 'again.csv').write_text(text)
    arguments = ['stream', local.url, SQL, '--to', 'duckdb:///chain.db', '-t', 'logs', '--label', 'tokens=again.csv']
    arguments += ['--label-reload'] if reload else []
    process = subprocess.Popen([*AMP, *arguments, '--json'], stdout=subprocess.PIPE, cwd=label_dir, env=environment())

    def to_head() -> None:
        head = local.head
        assert head is not None
        until(
            process, lambda event: bool(event.get('position')) and event['position'][local.network]['hash'] == head[1]
        )

    to_head()
    (label_dir / 'newer.csv').write_text(text.replace(',T', ',NEW'))
    (label_dir / 'newer.csv').replace(label_dir / 'again.csv')
    before = local.head
    local.mine(30)
    to_head()
    assert end(process, signal.SIGTERM)[0] == 130
    assert before is not None
    with duckdb.connect(str(label_dir / 'chain.db'), read_only=True) as db:
        found = db.execute("SELECT DISTINCT block_num > ?, symbol LIKE 'NEW%' FROM logs", [before[0]]).fetchall()
    assert set(found) == {(False, False), (True, reload)}


def test_the_streams_of_a_file_have_their_labels(local: LocalAmp, label_dir: Path, names: dict[bytes, str]) -> None:
    stream = f'[[stream]]\nsource = "{local.url}"\nsql = "{SQL}"\n'
    (label_dir / 'pipeline.toml').write_text(
        f'{stream}to = "duckdb:///{label_dir}/a.db"\ntable = "logs"\nlabel = "tokens=tokens.csv"\n'
        f'{stream}to = "duckdb:///{label_dir}/b.db"\ntable = "logs"\nname = "left"\n'
        'label = ["tokens=tokens.csv"]\njoin = ["address"]\nleft = true\nlabel_reload = true\n'
        f'{stream}to = "duckdb:///{label_dir}/c.db"\ntable = "logs"\nname = "none"\nlabel = "tokens=nothing.csv"\n'
    )
    at: dict[str, Any] = {}
    failed: dict[str, AmpError] = {}
    pipeline = read_pipeline(label_dir / 'pipeline.toml')
    with closing(run_pipeline(pipeline, lambda url: Client(url, label_dir=label_dir))) as results:
        for spec, result in results:
            if isinstance(result, AmpError):
                failed[spec.name] = result
            else:
                at[spec.name] = result.metadata['position'][local.network]['number']
            if failed and local.head is not None and list(at.values()) == [local.head[0]] * 2:
                break
    assert stored(label_dir / 'a.db') == expected(local, names)
    assert stored(label_dir / 'b.db') == expected(local, names, 'left')
    assert 'nothing.csv' in str(failed['none'])


@pytest.mark.parametrize(
    'arguments',
    [
        ['--label-reload'],
        ['--label', 'tokens'],
        ['--label', '=tokens.csv'],
        ['--join', 'address'],
        ['--label', 'a=a.csv', '--label', 'b=b.csv', '--join', 'address'],
        ['--label', 'a=a.csv', '--left'],
        ['--label', 'a=a.csv', '--join', 'x,,y'],
    ],
)
def test_usage(arguments: list[str]) -> None:
    assert exit_code('load', 'grpc://host', SQL, '--to', 'duckdb:///x.db', '-t', 'logs', *arguments) == 2
