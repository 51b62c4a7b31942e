"""Amp's own Parquet files over the wire: every column of every table, nested lists included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp, schemas
from amp.errors import ConfigError
from tests.support.bare_client import BareClient

pytestmark = pytest.mark.integration

TABLES = {'eth_rpc': schemas.EVM_RPC, 'eth_firehose': schemas.FIREHOSE}


def _value(type_: pa.DataType, row: int):
    if pa.types.is_fixed_size_binary(type_):
        return bytes([row % 256]) * type_.byte_width
    if pa.types.is_list(type_):
        return [_value(type_.value_type, row + i) for i in range(row % 3)]
    if pa.types.is_struct(type_):
        return {field.name: _value(field.type, row) for field in type_}
    if pa.types.is_binary(type_):
        return bytes(range(row % 7))
    if pa.types.is_string(type_):
        return str(2**200 + row)
    if pa.types.is_boolean(type_):
        return row % 2 == 0
    return row


def made_up(schema: pa.Schema, block: int, rows: int) -> pa.Table:
    columns = {}
    for at, field in enumerate(schema):
        if field.name in {'_block_num', 'block_num'}:
            values = [block] * rows
        else:
            values = [None if field.nullable and row % 4 == 1 else _value(field.type, row + at) for row in range(rows)]
        columns[field.name] = pa.array(values, field.type)
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


@pytest.fixture(scope='module')
def amp_parquet(amp_test_data, tmp_path_factory) -> Path:
    """A mainnet block that Amp wrote, or rows of the same schemas."""
    if amp_test_data is not None and (amp_test_data / 'amp-parquet').is_dir():
        return amp_test_data / 'amp-parquet'
    folder = tmp_path_factory.mktemp('amp-parquet')
    covered = {'numbers': {'start': 15_000_000, 'end': 15_000_000}, 'network': 'mainnet'}
    for dataset, tables in TABLES.items():
        (folder / dataset).mkdir()
        for name, schema in tables.items():
            table = made_up(schema, 15_000_000, 1 if name == 'blocks' else 50)
            marked = table.replace_schema_metadata({'nozzle_metadata': json.dumps({'ranges': [covered]})})
            pq.write_table(marked, folder / dataset / f'{name}.parquet')
    return folder


@pytest.fixture(scope='module')
def server(amp_parquet):
    with LocalAmp.from_parquet(amp_parquet) as amp, BareClient(amp.url) as client:
        yield amp, client


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(('dataset', 'table'), [(d, t) for d, tables in TABLES.items() for t in tables])
def test_every_column_arrives_as_it_was_written(server, amp_parquet, dataset, table, streaming):
    amp, client = server
    written = pq.read_table(amp_parquet / dataset / f'{table}.parquet').replace_schema_metadata(None)
    with client.open(f'SELECT * FROM {dataset}.{table}', amp_stream=str(streaming)) as stream:
        received = stream.microbatch()
        assert stream.schema.equals(written.schema)
    found = pa.Table.from_batches([r.batch for r in received])
    found.validate(full=True)
    assert found.schema.equals(TABLES[dataset][table])
    assert found.num_rows == written.num_rows > 0
    for name in written.schema.names:
        assert found[name].combine_chunks().equals(written[name].combine_chunks()), name
    assert received[-1].span == (15_000_000, 15_000_000)
    assert received[-1].range['network'] == 'mainnet'
    assert received[-1].range['hash'] == amp.block_hash(15_000_000)


def test_a_batch_query_may_read_several_datasets(server):
    _, client = server
    sql = (
        'SELECT r.tx_hash, f.return_data FROM eth_rpc.transactions r '
        'JOIN eth_firehose.transactions f ON r.tx_index = f.tx_index'
    )
    with client.open(sql) as stream:
        received = list(stream)
    assert len(received[-1].metadata['ranges']) == 1
    assert sum(r.rows for r in received) >= 50


def test_files_of_several_blocks_in_any_order_are_one_table(tmp_path):
    with LocalAmp.simulate(blocks=30, logs_per_block=(0, 6), network='elsewhere', first_block=100) as amp:
        for name in schemas.EVM_RPC:
            table = amp.canonical(name)
            cut = pa.compute.less(table['_block_num'], 112)
            folder = tmp_path / 'eth_rpc' / name
            folder.mkdir(parents=True)
            pq.write_table(table.filter(cut), folder / 'b.parquet')
            pq.write_table(table.filter(pa.compute.invert(cut)), folder / 'a.parquet')
        with LocalAmp.from_parquet(tmp_path / 'eth_rpc', network='elsewhere') as stored:
            assert stored.head == amp.head
            for name in schemas.EVM_RPC:
                assert stored.canonical(name).equals(amp.canonical(name))


@pytest.mark.parametrize('folder', [False, True], ids=['file', 'folder'])
def test_a_file_that_is_gone_fails_the_query(tmp_path, folder):
    with LocalAmp.simulate(blocks=6) as amp:
        for name in schemas.EVM_RPC:
            place = tmp_path / 'eth_rpc' / name
            place.mkdir(parents=True)
            pq.write_table(amp.canonical(name).slice(0, 2), place / 'a.parquet')
            pq.write_table(amp.canonical(name).slice(2), place / 'b.parquet')
            if not folder:
                shutil.rmtree(place)
                pq.write_table(amp.canonical(name), place.with_suffix('.parquet'))
    with LocalAmp.from_parquet(tmp_path, network='simnet') as amp, BareClient(amp.url) as client:
        asked = 'SELECT count(DISTINCT data) AS n FROM eth_rpc.logs'
        assert client.query(asked)['n'].to_pylist() == [60]
        (tmp_path / 'eth_rpc' / ('logs/b.parquet' if folder else 'logs.parquet')).unlink()
        for sql in (asked, 'SELECT count(*) AS n FROM eth_rpc.logs', 'SELECT * FROM eth_rpc.logs'):
            with pytest.raises(fl.FlightInternalError, match=r'query execution error .*parquet cannot be read'):
                client.query(sql)
        twice = (
            'streaming query execution error . Caused by: streaming query execution error -> .*parquet cannot be read'
        )
        with pytest.raises(fl.FlightInternalError, match=twice):
            client.stream('SELECT data FROM eth_rpc.logs').microbatch()
        assert client.query('SELECT count(*) AS n FROM eth_rpc.blocks')['n'].to_pylist() == [6]


def test_what_is_not_a_directory_of_datasets_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='not a directory'):
        LocalAmp.from_parquet(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='no dataset'):
        LocalAmp.from_parquet(tmp_path)
    (tmp_path / 'd').mkdir()
    pq.write_table(made_up(schemas.BLOCKS, 5, 1), tmp_path / 'd' / 'blocks.parquet')
    with pytest.raises(ConfigError, match='of which network'):
        LocalAmp.from_parquet(tmp_path)
    pq.write_table(made_up(schemas.LOGS, 6, 3), tmp_path / 'd' / 'logs.parquet')
    with pytest.raises(ConfigError, match='do not fit together'):
        LocalAmp.from_parquet(tmp_path, network='mainnet')
    pq.write_table(pa.table({'x': [1]}), tmp_path / 'd' / 'logs.parquet')
    with pytest.raises(ConfigError, match='no column _block_num'):
        LocalAmp.from_parquet(tmp_path, network='mainnet')


def peak_of_serving(folder: Path, logs: int) -> int:
    """Peak memory in bytes of a server that has sent every row of `logs` to somebody."""
    command = [sys.executable, '-m', 'amp', 'serve', '--parquet', str(folder), '--port', '0']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            with BareClient(server.stdout.readline().strip()) as client:
                with client.open('SELECT * FROM eth_rpc.logs') as stream:
                    assert sum(received.rows for received in stream) == logs
                with client.stream('SELECT block_num, data FROM eth_rpc.logs') as stream:
                    streamed = 0
                    while streamed < logs:
                        streamed += sum(received.rows for received in stream.microbatch())
            status = Path(f'/proc/{server.pid}/status').read_text()
        finally:
            server.terminate()
    [peak] = (line.split()[1] for line in status.splitlines() if line.startswith('VmHWM:'))
    return int(peak) * 1024


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is looked up as Linux tells it')
def test_a_million_logs_take_no_more_memory_than_a_hundred_thousand(tmp_path):
    peaks = []
    for blocks in (1_000, 10_000):
        folder = tmp_path / str(blocks) / 'eth_rpc'
        folder.mkdir(parents=True)
        amp = LocalAmp.simulate(seed=5, blocks=blocks, logs_per_block=100)
        for name in ('blocks', 'logs'):
            marked = amp.canonical(name).replace_schema_metadata(
                {'nozzle_metadata': json.dumps({'ranges': [{'network': 'simnet'}]})}
            )
            pq.write_table(marked, folder / f'{name}.parquet', compression='zstd', row_group_size=1 << 15)
        peaks.append(peak_of_serving(folder.parent, blocks * 100))
    # The rows themselves are 240 MiB more.
    assert peaks[1] - peaks[0] < 80 << 20, peaks
