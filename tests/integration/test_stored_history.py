"""A million logs of history, served from files by a process that does not grow with them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from amp.devserver import LocalAmp, schemas
from amp.devserver.chain import ZERO_HASH, Block
from amp.devserver.simulator import build_segment
from amp.devserver.store import ParquetStore
from amp.errors import SourceError
from tests.support.bare_client import BareClient

pytestmark = pytest.mark.integration

LOGS_PER_BLOCK = 40
RUN = 500
SERVER = (
    'import resource, sys\n'
    'from amp.devserver import LocalAmp\n'
    'with LocalAmp.from_parquet(sys.argv[1]) as amp:\n'
    '    print(amp.url, flush=True)\n'
    '    sys.stdin.readline()\n'
    '    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)\n'
)


def write_history(folder: Path, blocks: int) -> None:
    """A made-up chain in the files of a store, written run by run."""
    store = ParquetStore(folder / 'eth_rpc', schemas.EVM_RPC, {'network': 'simnet', 'chain_id': 1, 'start_block': 0})
    parent = ZERO_HASH
    for first in range(0, blocks, RUN):
        run = []
        for number in range(first, first + RUN):
            run.append(
                Block(number, '0x' + hashlib.sha256(parent.encode()).hexdigest(), parent, 1_700_000_000 + number)
            )
            parent = run[-1].hash
        store.put('simnet', build_segment(run, (LOGS_PER_BLOCK, LOGS_PER_BLOCK)))
    store.close()


def served(folder: Path) -> tuple[int, int]:
    """Rows of a stream and of a batch query over all logs, and the most memory (MiB) that the server had."""
    with subprocess.Popen(
        [sys.executable, '-c', SERVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().strip()
        rows = 0
        with BareClient(url) as client:
            last = client.query('SELECT max(block_num) AS last FROM eth_rpc.blocks')['last'][0].as_py()
            with client.open('SELECT * FROM eth_rpc.logs') as whole:
                rows += sum(received.rows for received in whole)
            with client.stream('SELECT * FROM eth_rpc.logs') as stream:
                end = -1
                while end < last:
                    microbatch = stream.microbatch()
                    rows += sum(received.rows for received in microbatch)
                    end = microbatch[-1].span[1]
        print(file=process.stdin, flush=True)
        return rows, int(process.stdout.readline())


def test_memory_does_not_grow_with_the_history(tmp_path):
    write_history(tmp_path / 'short', 5_000)
    write_history(tmp_path / 'long', 25_000)
    short_rows, short_memory = served(tmp_path / 'short')
    long_rows, long_memory = served(tmp_path / 'long')
    assert (short_rows, long_rows) == (2 * 200_000, 2 * 1_000_000)
    assert long_memory < short_memory + 100, (short_memory, long_memory)


def test_rows_that_cannot_be_read_fail_the_query_and_not_the_server(tmp_path):
    write_history(tmp_path, 1_000)
    damaged = sorted(tmp_path.glob('eth_rpc/logs/*.parquet'))[1]
    data = bytearray(damaged.read_bytes())
    data[100:-20_000] = bytes(len(data) - 20_100)
    damaged.write_bytes(data)
    with LocalAmp.from_parquet(tmp_path, microbatch_max_blocks=500) as amp, BareClient(amp.url) as client:
        with pytest.raises((fl.FlightInternalError, pa.ArrowInvalid), match='query execution error'):
            client.query('SELECT * FROM eth_rpc.logs')
        with client.stream('SELECT * FROM eth_rpc.logs') as stream:
            assert stream.microbatch()[-1].span == (0, 499)
            with pytest.raises(fl.FlightInternalError, match=damaged.name):
                stream.microbatch()
        assert client.query('SELECT count(*) AS n FROM eth_rpc.blocks')['n'].to_pylist() == [1000]


@pytest.mark.parametrize('harm', [lambda data: b'', lambda data: b'no Parquet' * 100, lambda data: data[:-100]])
def test_a_file_that_is_none_is_named_at_the_start(tmp_path, harm):
    write_history(tmp_path, 500)
    (damaged,) = tmp_path.glob('eth_rpc/logs/*.parquet')
    damaged.write_bytes(harm(damaged.read_bytes()))
    with pytest.raises(SourceError, match=f'{damaged} cannot be read'):
        LocalAmp.from_parquet(tmp_path)
