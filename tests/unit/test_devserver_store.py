"""A store of runs in files: small ones are joined into larger ones, whatever happens meanwhile, and nobody notices."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amp.devserver import LocalAmp, schemas
from amp.devserver.chain import Chain, Segment
from amp.devserver.engine import Engine
from amp.devserver.readers import READERS
from amp.devserver.sql import Statement
from amp.devserver.store import ParquetStore

pytestmark = pytest.mark.unit

IDENTITY = {'network': 'simnet', 'chain_id': 1, 'start_block': 0}
RUN, RUNS = 3, 16
TABLES = ('blocks', 'logs', 'transactions')


@pytest.fixture(scope='module')
def made_up() -> LocalAmp:
    return LocalAmp.simulate(seed=3, blocks=RUN * (RUNS + 2), logs_per_block=(0, 4))


def runs_of(amp: LocalAmp) -> list[Segment]:
    view = amp._engine.datasets['eth_rpc'].snapshot()
    found = []
    for first in range(0, view.last + 1, RUN):
        blocks = [view.canonical(number) for number in range(first, first + RUN)]
        rows = {name: view.rows(name, first, first + RUN - 1) for name in schemas.EVM_RPC}
        tables = {
            name: pa.Table.from_batches(batches, schema=schemas.EVM_RPC[name]).combine_chunks()
            for name, batches in rows.items()
        }
        empty = {name: pa.RecordBatch.from_pylist([], schema=schema) for name, schema in schemas.EVM_RPC.items()}
        batches = {name: table.to_batches()[0] if table.num_rows else empty[name] for name, table in tables.items()}
        found.append(Segment(blocks, batches))
    return found


@pytest.fixture
def folder(made_up, tmp_path) -> Path:
    """A store of small runs."""
    store = ParquetStore(tmp_path / 'store', schemas.EVM_RPC, IDENTITY)
    for segment in runs_of(made_up):
        store.put('simnet', segment)
    store.close()
    return tmp_path / 'store'


def names(folder: Path) -> dict[str, list[str]]:
    return {table: sorted(p.name for p in (folder / table).iterdir()) for table in TABLES}


def chain_of(store: ParquetStore) -> Chain:
    chain = Chain('simnet', schemas.EVM_RPC)
    while (run := store.run_from(chain.head.number + 1 if chain.head else 0)) is not None:
        chain.settle(run)
    return chain


def same_rows(chain: Chain, amp: LocalAmp) -> None:
    view = chain.snapshot()
    assert view.last == RUN * (RUNS + 2) - 1
    for table in TABLES:
        rows = pa.Table.from_batches(view.rows(table, 0, view.last), schema=schemas.EVM_RPC[table])
        assert rows.equals(amp.canonical(table)), table
    engine = Engine({'eth_rpc': chain})
    for table in TABLES:
        query = engine.prepare(Statement(f'SELECT count(*) AS n FROM eth_rpc.{table}'))
        [counted] = engine.run(query, lambda name: view.scan(name[1]))
        assert counted['n'][0].as_py() == amp.canonical(table).num_rows, table


def test_runs_are_joined_and_described_as_amp_does(folder, made_up):
    store = ParquetStore(folder, schemas.EVM_RPC, IDENTITY)
    before = chain_of(store)
    assert store.join('simnet', RUN * (RUNS + 2) - 1)
    assert not store.join('simnet', RUN * (RUNS + 2) - 1), 'two runs are too few'
    last = RUN * RUNS - 1
    for table, found in names(folder).items():
        assert len(found) == 3
        assert found[0] == f'000000000-{made_up.block_hash(last)[2:18]}.parquet'
        said = pq.read_metadata(folder / table / found[0]).metadata
        described = json.loads(said[b'nozzle_metadata'])
        assert (described['table'], described['filename']) == (table, found[0])
        [covered] = described['ranges']
        assert covered['numbers'] == {'start': 0, 'end': last}
        assert (covered['hash'], covered['prev_hash']) == (made_up.block_hash(last), '0x' + '00' * 32)
        assert (said[b'generation'], said[b'parent_file_ids']) == (b'1', b'[]')
    same_rows(before, made_up)
    same_rows(chain_of(store), made_up)
    store.close()
    again = ParquetStore(folder, schemas.EVM_RPC, IDENTITY)
    same_rows(chain_of(again), made_up)
    again.close()


def test_only_what_is_settled_is_joined(folder):
    store = ParquetStore(folder, schemas.EVM_RPC, IDENTITY)
    assert not store.join('simnet', RUN * RUNS - 2)
    assert store.join('simnet', RUN * RUNS - 1)
    store.close()


def test_a_query_that_reads_has_its_files_to_the_end(folder, made_up):
    store = ParquetStore(folder, schemas.EVM_RPC, IDENTITY)
    chain = chain_of(store)
    engine = Engine({'eth_rpc': chain})
    view = chain.snapshot()
    query = engine.prepare(Statement('SELECT * FROM eth_rpc.transactions'))
    reading = engine.run(query, lambda name: view.scan(name[1]))
    found = [next(reading)]
    few = names(folder)
    assert not store.join('simnet', RUN * (RUNS + 2) - 1)
    for table, files in names(folder).items():
        assert [name for name in files if name.endswith('.parquet')] == few[table]
    found += reading
    assert sum(batch.num_rows for batch in found) == made_up.canonical('transactions').num_rows
    assert store.join('simnet', RUN * (RUNS + 2) - 1)
    assert all(len(files) == 3 for files in names(folder).values())
    same_rows(chain, made_up)
    store.close()


def test_rows_are_read_again_from_files_that_were_replaced_meanwhile(folder, made_up):
    store = ParquetStore(folder, schemas.EVM_RPC, IDENTITY)
    run = store.run_from(RUN)
    old = dict(run.tables)
    assert store.join('simnet', RUN * RUNS - 1)
    new = run.tables

    class Replaced(dict):
        def __getitem__(self, table):
            # The moment after the files are gone, and before the reader has looked.
            run.tables = new
            return old[table]

    run.tables = Replaced()
    rows = pa.Table.from_batches(run.rows('blocks', RUN, 2 * RUN - 1))
    assert rows['block_num'].to_pylist() == list(range(RUN, 2 * RUN))
    store.close()


def test_replacing_waits_for_nobody_and_readers_wait_for_it():
    with READERS.reading(), READERS.replacing() as alone:
        assert not alone
    with READERS.replacing() as alone:
        assert alone
        with READERS.replacing() as other:
            assert not other


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from amp.devserver import schemas
from amp.devserver.store import ParquetStore

original, last = sys.argv[1], int(sys.argv[2])
left = None

def watch(event, arguments):
    global left
    if left is None or event not in {'open', 'os.rename', 'os.remove'}:
        return
    if event == 'open' and not str(arguments[0]).endswith('.tmp'):
        return
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
for at in map(int, sys.argv[3:]):
    folder = f'{original}-{at}'
    shutil.copytree(original, folder)
    # A process for each, which has not to import everything again.
    child = os.fork()
    if child == 0:
        store = ParquetStore(Path(folder), schemas.EVM_RPC, {'network': None, 'chain_id': None, 'start_block': None})
        left = at
        store.join('simnet', last)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='files that are open cannot be replaced there, and none are')
def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(folder, made_up):
    # For each table a file that is written and two names that it gets; then every part goes.
    steps = 3 * (3 + RUNS)
    moments = [0, 1, 5, 6, 7, 8, 9, 10, 26, steps - 1, steps]
    command = [sys.executable, '-c', KILLED, str(folder), str(RUN * RUNS - 1), *map(str, moments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL.value)] * (len(moments) - 1) + ['0']
    for at in moments:
        store = ParquetStore(Path(f'{folder}-{at}'), schemas.EVM_RPC, IDENTITY)
        files = names(store.folder)
        assert files['blocks'] == files['logs'] == files['transactions'], at
        assert len(files['blocks']) in {3, RUNS + 2}, at
        store.join('simnet', RUN * RUNS - 1)
        assert all(len(found) == 3 for found in names(store.folder).values()), at
        same_rows(chain_of(store), made_up)
        store.close()
