"""What the local store of an at-least-once loader answers about the units that were streamed into it."""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from amp.loaders.base import DataLoader, LoadMode
from amp.loaders.marks import Marks
from amp.streaming import BatchIdentifier, BatchMetadata, BlockRange, ResponseBatch
from amp.streaming.ledger import StreamKey, StreamState
from amp.streaming.lmdb_state import LMDBStreamStateStore

pytestmark = pytest.mark.unit


class _ListLoader(DataLoader[dict[str, Any]]):
    """Keeps batches in a list, and takes rows back; it keeps no state of its own."""

    SUPPORTED_MODES: ClassVar = {LoadMode.APPEND, LoadMode.OVERWRITE}

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.batches: list[pa.RecordBatch] = []

    def connect(self) -> None:
        self._is_connected = True

    def disconnect(self) -> None:
        self._is_connected = False

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        self.batches.append(batch)
        return batch.num_rows

    def _clear_table(self, table_name: str) -> None:
        self.batches.clear()

    def _delete_runs(self, table_name: str, runs: Any) -> int:
        for run in runs:
            ids = [pc.field('_amp_tx_id') < run.first, pc.field('_amp_tx_id') > run.last]
            self.batches = [batch.filter(ids[0] | ids[1]) for batch in self.batches]
        return 0


def range_of(start: int, end: int, own: str, parent: str | None) -> BlockRange:
    return BlockRange('eth', start, end, own, parent)


FIRST, SECOND = range_of(0, 9, '0xa', None), range_of(10, 19, '0xb', '0xa')
FORK = range_of(10, 21, '0xc', '0xa')


def stream(loader: DataLoader[Any], *ranges: BlockRange, **options: Any) -> None:
    batch = pa.record_batch({'value': [1, 2]})
    responses = [ResponseBatch.data_batch(batch, BatchMetadata([r], ranges_complete=True)) for r in ranges]
    list(loader.load_stream_continuous(responses, 't', connection_name='any', **options))


def processed(loader: DataLoader[Any], *ranges: BlockRange) -> list[bool]:
    store = loader.state_store
    return [store.is_processed('any', 't', [BatchIdentifier.from_block_range(r)]) for r in ranges]


@pytest.fixture(params=['memory', 'lmdb'])
def loader(request, tmp_path):
    state = {'storage': 'lmdb', 'connection_name': 'c', 'data_dir': tmp_path} if request.param == 'lmdb' else {}
    made = _ListLoader({'state': state} if state else {})
    assert made.guarantee == 'at-least-once'
    yield made
    made.state_store.close()


def test_units_are_marked_as_they_are_committed(loader):
    stream(loader, FIRST)
    assert processed(loader, FIRST, SECOND) == [True, False]
    stream(loader, SECOND)
    assert processed(loader, FIRST, SECOND) == [True, True]
    assert loader.state_store.get_resume_position('any', 't').ranges == (SECOND,)
    assert loader.state_store.get_resume_position('any', 't', detect_gaps=True).gaps == ()


def test_a_reorg_takes_marks_back(loader):
    stream(loader, FIRST, SECOND, FORK)
    assert processed(loader, FIRST, SECOND, FORK) == [True, False, True]
    assert loader.state_store.get_resume_position('any', 't').ranges == (FORK,)


def test_overwrite_begins_anew(loader):
    stream(loader, FIRST, SECOND)
    again = range_of(0, 4, '0xd', None)
    stream(loader, again, mode='overwrite')
    assert processed(loader, FIRST, SECOND, again) == [False, False, True]


def test_streams_are_apart(loader):
    stream(loader, FIRST, stream_name='other')
    assert processed(loader, FIRST) == [False]
    assert loader.state_store.is_processed('any', 't', [BatchIdentifier.from_block_range(FIRST)], stream='other')


def test_marks_that_a_crash_left_behind_follow_the_document(tmp_path):
    key, state = StreamKey('t', 't'), StreamState(1, 1).append(1 << 51, [FIRST])
    with LMDBStreamStateStore('c', tmp_path) as store:
        ids = [BatchIdentifier.from_block_range(r) for r in (FIRST, SECOND)]
        store.mark_processed('', 't', ids[1:])
        Marks(store).opened(key, state)
        assert [store.is_processed('', 't', [one]) for one in ids] == [True, False]


def test_marks_cost_what_the_undo_window_costs(loader):
    ranges = [range_of(n, n, f'0x{n}', f'0x{n - 1}' if n else None) for n in range(300)]
    stream(loader, *ranges, retention=20)
    assert len(loader.state_store.processed_batches('t')) <= 30
    assert processed(loader, ranges[0], ranges[-1]) == [True, True]
