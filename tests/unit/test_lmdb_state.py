"""The state store on the local disk: the same answers, and they survive the process."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings

from amp.errors import DestinationError, IntegrityError
from amp.streaming.lmdb_state import LMDBStreamStateStore
from amp.streaming.state import BatchIdentifier, make_local_store
from tests.unit.state_model import check_store_against_model, operations

pytestmark = pytest.mark.unit


def batch(start: int, end: int, network: str = 'eth') -> BatchIdentifier:
    return BatchIdentifier(network, start, end, f'0x{end}', f'0x{start - 1}')


def run_child(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with `batch(start, end)` and `arguments` at hand."""
    prelude = (
        'import os, signal, sys\n'
        'from tests.unit.test_lmdb_state import LMDBStreamStateStore, batch\n'
        'arguments = sys.argv[1:]\n'
    )
    src = str(Path(__file__).parents[2] / 'src')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([src, str(Path(__file__).parents[2])])}
    return subprocess.run(
        [sys.executable, '-c', prelude + code, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
        env=environment,
    )


@pytest.fixture
def store(tmp_path):
    with LMDBStreamStateStore('c', tmp_path) as opened:
        yield opened


@pytest.fixture(scope='module')
def shared_store(tmp_path_factory):
    with LMDBStreamStateStore('c', tmp_path_factory.mktemp('model'), sync=False) as opened:
        yield opened


_tables = itertools.count()


@settings(max_examples=60)
@given(steps=operations())
def test_any_history_agrees_with_the_model(shared_store, steps):
    check_store_against_model(shared_store, f'table {next(_tables)}', steps)


def test_everything_is_there_after_reopening(tmp_path):
    with LMDBStreamStateStore('c', tmp_path) as store:
        store.mark_processed('c', 't', [batch(0, 9), batch(10, 19), batch(21, 29)])
        store.cleanup_before_block('c', 't', 'eth', 12)
        assert store.replace_document(('t', 's'), 'position', None)
        said = [store.get_resume_position('c', 't', gaps) for gaps in (False, True)]
        remembered = store.processed_batches('t')
    with LMDBStreamStateStore('c', tmp_path) as store:
        assert [store.get_resume_position('c', 't', gaps) for gaps in (False, True)] == said
        assert store.processed_batches('t') == remembered
        assert store.is_processed('c', 't', [batch(0, 9)])
        assert store.load_document(('t', 's')) == 'position'


@pytest.mark.parametrize('sync', [True, False])
def test_a_call_that_returned_survives_kill_9(tmp_path, sync):
    child = run_child(
        'store = LMDBStreamStateStore("c", arguments[0], sync=arguments[1] == "True")\n'
        'store.mark_processed("c", "t", [batch(0, 9), batch(10, 19), batch(20, 29)])\n'
        'store.invalidate_from_block("c", "t", "eth", 20)\n'
        'store.replace_document(("t", "s"), "text", None)\n'
        'os.kill(os.getpid(), signal.SIGKILL)\n',
        tmp_path,
        str(sync),
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    with LMDBStreamStateStore('c', tmp_path) as store:
        assert [p.identifier for p in store.processed_batches('t')] == [batch(0, 9), batch(10, 19)]
        assert store.load_document(('t', 's')) == 'text'


def test_a_call_that_was_killed_is_done_or_not_done(tmp_path):
    """Killed while it writes without pause: each call of ten neighbours is there whole or not at all."""
    folder = Path(__file__).parents[2]
    code = (
        'import itertools, sys\n'
        'from tests.unit.test_lmdb_state import LMDBStreamStateStore, batch\n'
        'store = LMDBStreamStateStore("c", sys.argv[1], sync=False)\n'
        'for call in itertools.count():\n'
        '    store.mark_processed("c", "t", [batch(call * 100 + i * 10, call * 100 + i * 10 + 9) for i in range(10)])\n'
        '    print(call, flush=True)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder / 'src'), str(folder)])}
    child = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        for line in child.stdout:
            if int(line) >= 50:
                break
        child.kill()
        returned = [int(line) for line in child.stdout]
    finally:
        child.kill()
        child.wait(30)
        child.stdout.close()
    last = max(returned, default=50)
    with LMDBStreamStateStore('c', tmp_path) as store:
        count = len(store.processed_batches('t'))
        assert count % 10 == 0
        assert count // 10 in {last + 1, last + 2}
        found = store.get_resume_position('c', 't', detect_gaps=True)
        assert (found.ranges[0].end, found.gaps) == (count * 10 - 1, ())


def test_a_second_process_sees_and_adds(tmp_path, store):
    store.mark_processed('c', 't', [batch(0, 9)])
    child = run_child(
        'with LMDBStreamStateStore("c", arguments[0]) as store:\n'
        '    assert store.is_processed("c", "t", [batch(0, 9)])\n'
        '    store.mark_processed("c", "t", [batch(10, 19)])\n'
        '    assert store.replace_document(("t", "s"), "theirs", None)\n',
        tmp_path,
    )
    assert child.returncode == 0, child.stderr
    assert store.get_resume_position('c', 't').ranges[0].end == 19
    assert not store.replace_document(('t', 's'), 'ours', None)


def test_the_map_grows_by_itself_and_follows_another_process(tmp_path, store):
    child = run_child(
        'with LMDBStreamStateStore("c", arguments[0], sync=False) as store:\n'
        '    store.mark_processed("c", "t", [batch(i * 10, i * 10 + 9) for i in range(8_000)])\n'
        '    store.replace_document(("t", "big"), "x" * 3_000_000, None)\n',
        tmp_path,
    )
    assert child.returncode == 0, child.stderr
    assert (tmp_path / 'c' / 'data.mdb').stat().st_size > 4 << 20
    assert store.get_resume_position('c', 't').ranges[0].end == 79_999
    assert len(store.load_document(('t', 'big'))) == 3_000_000
    store.mark_processed('c', 't', [batch(80_000, 80_009)])
    assert len(store.invalidate_from_block('c', 't', 'eth', 40_000)) == 4_001


def test_stores_on_one_folder_share_it(tmp_path):
    first = LMDBStreamStateStore('c', tmp_path, sync=False)
    second = LMDBStreamStateStore('c', f'{tmp_path}/../{tmp_path.name}')
    first.mark_processed('c', 't', [batch(0, 9)])
    first.close()
    first.close()
    assert second.is_processed('c', 't', [batch(0, 9)])
    with pytest.raises(DestinationError, match='is closed'):
        first.is_processed('c', 't', [batch(0, 9)])
    second.close()


def test_threads_lose_nothing(tmp_path):
    parts = [[batch(i * 10, i * 10 + 9) for i in range(start, 200, 4)] for start in range(4)]

    def work(part: list[BatchIdentifier]) -> None:
        with LMDBStreamStateStore('c', tmp_path, sync=False) as store:
            for each in part:
                store.mark_processed('c', 't', [each])

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    with LMDBStreamStateStore('c', tmp_path) as store:
        assert len(store.processed_batches('t')) == 200
        assert store.get_resume_position('c', 't', detect_gaps=True).gaps == ()


NAMES = [
    '',
    '.',
    '..',
    'a/b',
    '../../up',
    'postgresql://u@h/db?x=1',
    'ünï ☃ 🦆',
    'nul\0inside',
    'x' * 5000,
    "'; drop",
    '\ud800',
]


def test_names_of_any_characters_stay_apart(tmp_path):
    keys = [(table, stream) for table in NAMES for stream in (*NAMES[:4], None)]
    with LMDBStreamStateStore('c', tmp_path, sync=False) as store:
        for number, (table, stream) in enumerate(keys):
            store.mark_processed('c', table, [batch(0, number, network=f'net/{number} ü' * 100)], stream=stream)
        for table, stream in keys:
            name = table if stream is None else stream
            same = [i for i, (t, s) in enumerate(keys) if (t, t if s is None else s) == (table, name)]
            found = [p.identifier.end_block for p in store.processed_batches(table, stream)]
            assert sorted(found) == same


@pytest.mark.parametrize('name', NAMES)
def test_a_connection_of_any_name_has_a_folder_of_its_own(tmp_path, name):
    data_dir = tmp_path / 'state'
    with LMDBStreamStateStore(name, data_dir) as store, LMDBStreamStateStore('plain', data_dir) as other:
        store.mark_processed('c', 't', [batch(0, 9)])
        assert not other.is_processed('c', 't', [batch(0, 9)])
    assert list(tmp_path.iterdir()) == [data_dir]
    assert len(list(data_dir.iterdir())) == 2


def test_a_configuration_makes_it(tmp_path):
    config = {'enabled': True, 'storage': 'lmdb', 'connection_name': 'prod', 'data_dir': str(tmp_path)}
    store = make_local_store(config)
    store.mark_processed('c', 't', [batch(0, 9)])
    store.close()
    with make_local_store({'storage': 'lmdb', 'data_dir': tmp_path}, connection_name='prod') as again:
        assert again.is_processed('c', 't', [batch(0, 9)])


def test_a_place_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    for data_dir in (tmp_path / 'file', Path('/proc/self/state')):
        with pytest.raises(DestinationError, match=r'cannot be opened: .* \(choose a `data_dir`'):
            LMDBStreamStateStore('c', data_dir)


def test_a_full_disk_records_nothing_and_says_so(tmp_path):
    """A limit on the size of files stands for the disk; the store goes on when there is room again."""
    child = run_child(
        'import resource\n'
        'from amp.errors import DestinationError\n'
        'store = LMDBStreamStateStore("c", arguments[0])\n'
        'store.mark_processed("c", "t", [batch(0, 9)])\n'
        'hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))\n'
        'try:\n'
        '    store.mark_processed("c", "t", [batch(i * 10, i * 10 + 9) for i in range(1, 5000)])\n'
        'except DestinationError as error:\n'
        '    print(error)\n'
        'assert [p.identifier for p in store.processed_batches("t")] == [batch(0, 9)]\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n'
        'store.mark_processed("c", "t", [batch(10, 19)])\n',
        tmp_path,
    )
    assert child.returncode == 0, child.stderr
    assert 'cannot be written' in child.stdout
    assert 'the disk is full' in child.stdout
    with LMDBStreamStateStore('c', tmp_path) as store:
        assert [p.identifier for p in store.processed_batches('t')] == [batch(0, 9), batch(10, 19)]


def test_what_is_no_state_store_is_refused(tmp_path):
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c' / 'data.mdb').write_bytes(b'not a database' * 1000)
    with pytest.raises(DestinationError, match='what lies there is not a state store'):
        LMDBStreamStateStore('c', tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    import lmdb

    (tmp_path / 'c').mkdir()
    with lmdb.open(str(tmp_path / 'c')) as environment, environment.begin(write=True) as txn:
        txn.put(b'format', b'2')
    with pytest.raises(IntegrityError, match=r"format b'2'"):
        LMDBStreamStateStore('c', tmp_path)
