"""Several processes and threads on one store: nothing lost, nothing torn, also when one is killed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from amplify_db_utils import DuckDBParquetConfig, DuckDBParquetStore, StoreError
from amplify_db_utils.storage import open_storage
from tests.columnar_store.conftest import Opener, finish
from tests.columnar_store.models import PARTITION_BY, image

pytestmark = [pytest.mark.integration, pytest.mark.parquet]
Python = Callable[..., 'subprocess.Popen[str]']

APPENDS = """
import threading
me = int(sys.argv[2])
store.close()
def append(thread):
    with DuckDBParquetStore(DuckDBParquetConfig(root=sys.argv[1])) as mine:
        for at in range(5):
            mine.write('images', [image(1000 * me + 100 * thread + at, month=at % 2)])
threads = [threading.Thread(target=append, args=(at,)) for at in range(4)]
[one.start() for one in threads]
[one.join() for one in threads]
"""


def test_sixteen_writers_lose_nothing(images: DuckDBParquetStore, python: Python) -> None:
    for process in [python(APPENDS, str(number)) for number in range(4)]:
        finish(process)
    found = Counter(row['image_id'] for row in images.read('images'))
    expected = {
        f'image {1000 * process + 100 * thread + at:05}'
        for process in range(4)
        for thread in range(4)
        for at in range(5)
    }
    assert found == Counter(expected)
    assert images.count('images') == 80


CREATES = """
import pyarrow as pa
me = sys.argv[2]
for _ in range(2):
    store.create_table('shared', Image, partition_by=PARTITION_BY)
    for at in range(4):
        store.create_table(f'own {me} {at}', Image)
store.write('shared', [image(int(me))])
while True:
    have = store.get_schema('wide')
    try:
        store.create_table('wide', have.append(pa.field(f'column {me}', pa.int64())))
        break
    except SchemaConflict:
        pass  # another process added its column meanwhile
"""


def test_many_processes_create_tables_at_once(store: DuckDBParquetStore, python: Python, root: Path) -> None:
    store.create_table('wide', pa.schema([('id', 'int64')]))
    processes = [python(CREATES, str(number)) for number in range(5)]
    seen: set[str] = set()
    deadline = time.monotonic() + 120
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        now = set(json.loads((root / '_registry' / 'tables.json').read_bytes()))  # never torn
        assert seen <= now
        seen = now
    for process in processes:
        finish(process)
    assert store.count('shared') == 5
    assert set(store.get_schema('wide').names) == {'id', *(f'column {number}' for number in range(5))}
    entries = json.loads((root / '_registry' / 'tables.json').read_bytes())
    assert set(entries) == {'shared', 'wide', *(f'own {number} {at}' for number in range(5) for at in range(4))}
    assert entries['wide']['columns'] == store.get_schema('wide').names


OVERWRITES = """
size = 2000
for generation in range(int(sys.argv[2]), int(sys.argv[3])):
    records = [image(at, month=1 + at % 4, area=float(generation)) for at in range(size)]
    store.write('images', records, overwrite=True)
    print(generation, flush=True)
"""


def generations(store: DuckDBParquetStore) -> list[float]:
    """The generation that each row of the table is of."""
    areas: list[float] = store.bulk_read('images', columns=['area'])['area'].to_pylist()
    return areas


def test_a_reader_sees_each_overwrite_whole_or_not_at_all(
    images: DuckDBParquetStore, python: Python, reopen: Opener
) -> None:
    finish(python(OVERWRITES, '0', '1'))
    writers = [python(OVERWRITES, str(first), str(first + 1000)) for first in (1000, 2000)]
    readers = [images, reopen()]
    seen: set[float] = set()
    deadline = time.monotonic() + 90

    def watch(store: DuckDBParquetStore) -> None:
        while len(seen) < 8:
            assert time.monotonic() < deadline, seen
            assert [writer.poll() for writer in writers] == [None, None]
            found = Counter(generations(store))
            assert set(found.values()) == {2000}, found
            seen.update(found)
            assert len({row['area'] for row in store.read('images', {'month': {'in': [1, 3]}})}) == 1
            assert store.count('images') == 2000

    with ThreadPoolExecutor() as pool:
        for watching in [pool.submit(watch, reader) for reader in readers]:
            watching.result()


def test_overwrites_and_compactions_at_once_leave_one_generation(images: DuckDBParquetStore, python: Python) -> None:
    finish(python(OVERWRITES, '0', '1'))
    writer = python(OVERWRITES, '1', '25')
    while writer.poll() is None:
        images.compact('images')
        assert len(set(generations(images))) == 1
    finish(writer)
    assert Counter(generations(images)) == {24.0: 2000}


def test_kill_9_at_any_moment_leaves_old_or_new(images: DuckDBParquetStore, python: Python) -> None:
    finish(python(OVERWRITES, '0', '1'))
    least = 0.0
    for lines in (1, 2, 3, 5):
        writer = python(OVERWRITES, str(int(least) + 1), str(int(least) + 1000))
        assert writer.stdout is not None
        for _ in range(lines):
            last = float(writer.stdout.readline())
        writer.kill()
        writer.wait()
        found = Counter(generations(images))
        assert len(found) == 1, found
        [(generation, rows)] = found.items()
        assert rows == 2000
        assert generation >= last  # what was reported written is there
        least = generation
    images.write('images', [image(0, month=1)], overwrite=True)  # nobody left a lock behind
    assert images.count('images', {'month': 1}) == 1


KILLED = """
import os, signal
from amplify_db_utils.records import as_table
stored = as_table([image(at, month=at % 3, area=2.0) for at in range(300)], store.get_schema('images'), PARTITION_BY)
staging = store.stage('images')
staging.add(stored)
print(len(staging.adds), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_between_the_files_and_the_commit_leaves_the_old_state(
    images: DuckDBParquetStore, python: Python, root: Path
) -> None:
    images.write('images', [image(at, month=at % 3, area=1.0) for at in range(300)])
    writer = python(KILLED)
    out, _ = writer.communicate(timeout=60)
    assert (writer.returncode, out) == (-9, '3\n')
    assert len(list((root / 'images').rglob('*.parquet'))) == 6
    assert Counter(generations(images)) == {1.0: 300}
    assert len(images.vacuum('images', retention_hours=0)) == 3
    assert Counter(generations(images)) == {1.0: 300}


def test_threads_share_one_handle(images: DuckDBParquetStore) -> None:
    def work(number: int) -> int:
        images.write('images', [image(number)])
        rows = list(images.join('images', 'images', 'image_id', left_filters={'image_id': f'image {number:05}'}))
        return len(rows) + images.count('images', {'image_id': f'image {number:05}'})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [2] * 24
    assert images.count('images') == 24


def test_an_overwrite_that_finds_its_partition_empty_still_excludes_another(
    images: DuckDBParquetStore, reopen: Opener
) -> None:
    stores = [reopen() for _ in range(6)]
    start = threading.Barrier(len(stores))

    def overwrite(number: int) -> None:
        stores[number].count('images')
        start.wait(30)
        stores[number].write('images', [image(at, month=1, area=float(number)) for at in range(50)], overwrite=True)

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(overwrite, range(len(stores))))
    assert list(Counter(generations(images)).values()) == [50]


FORKS = """
import os
child = os.fork()
if not child:
    try:
        store.count('images')
    except StoreError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_is_told_so(images: DuckDBParquetStore, python: Python) -> None:
    out = finish(python('store.count("images")\n' + FORKS))
    assert 'spawn' in out
    assert out.endswith('\n7\n')
    assert issubclass(StoreError, Exception)


def test_a_commit_of_ones_own_keeps_its_mark(images: DuckDBParquetStore) -> None:
    from deltalake.transaction import Transaction

    log = images.log('images')
    with images.stage('images') as staging:
        staging.add(pa.Table.from_pylist([image(1)], schema=log.snapshot().stored))
        staging.keep()
        log.commit(staging.adds, transactions=[Transaction('mine', 41)])
    assert log.table.transaction_version('mine') == 41
    assert images.count('images') == 1

    def refuse(table: object) -> None:
        raise PermissionError('another owner')

    with images.stage('images') as staging:
        staging.add(pa.Table.from_pylist([image(2)], schema=log.snapshot().stored))
        with pytest.raises(PermissionError):
            log.commit(staging.adds, check=refuse)
    assert images.count('images') == 1
    assert images.vacuum('images', 0) == []
    assert list(log.snapshot().partition_by) == PARTITION_BY


def test_a_directory_that_is_made_while_it_is_listed_is_no_error(tmp_path: Path) -> None:
    storage, made, over = open_storage(DuckDBParquetConfig(root=tmp_path)), tmp_path / 't', threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            made.mkdir()
            made.rmdir()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come_and_go)
        try:
            for _ in range(20_000):
                assert storage.listing('t') == []
        finally:
            over.set()
        coming.result(60)
