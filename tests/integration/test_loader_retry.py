"""What the base does around a load that fails: again when it surely did not happen, never when nobody knows."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from amp import events
from amp.loaders.base import DataLoader
from amp.loaders.types import LoadMode

pytestmark = pytest.mark.integration

FAST = {'retry': {'max_retries': 3, 'initial_backoff_ms': 1, 'jitter': False}}
BATCH = pa.record_batch({'id': [1, 2, 3]})


@dataclass
class _Config:
    text: str = ''
    failures: int = 0


class _Failing(DataLoader[_Config]):
    """Fails as its configuration says, then takes the rows."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = {LoadMode.APPEND, LoadMode.OVERWRITE}

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.calls = 0
        self.rows: list[int] = []

    def connect(self) -> None:
        self._is_connected = True

    def disconnect(self) -> None:
        self._is_connected = False

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        self.calls += 1
        if self.calls <= self.config.failures:
            raise Exception(self.config.text)
        self.rows += batch['id'].to_pylist()
        return batch.num_rows


class _Transactional(_Failing):
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True

    @contextmanager
    def _transaction(self):
        kept = list(self.rows)
        try:
            yield
        except BaseException:
            self.rows = kept
            raise
        if self.config.text == 'at the commit':
            raise ConnectionResetError('the answer to COMMIT was lost')


def loader(kind: type[_Failing] = _Failing, text: str = 'HTTP 429 Too Many Requests', failures: int = 2, **resilience):
    return kind({'text': text, 'failures': failures, 'resilience': {**FAST, **resilience}})


@pytest.fixture
def told():
    seen: list[Any] = []
    stop = events.listen(seen.append)
    yield seen
    stop()


def test_what_may_pass_is_tried_again_and_told(told):
    found = loader()
    result = found.load_batch(BATCH, 't')
    assert (result.success, result.rows_loaded, found.calls, found.rows) == (True, 3, 3, [1, 2, 3])
    assert [type(e).__name__ for e in told] == ['Retrying', 'Retrying', 'Committed']
    assert (told[0].kind, told[-1].rows) == ('rate limit', 3)


def test_a_table_is_read_again_from_its_start():
    found = loader(_Transactional, failures=2)
    table = pa.Table.from_batches([BATCH, BATCH])
    result = found.load_table(table, 't', batch_size=3)
    assert result.success, result.error
    assert found.rows == [1, 2, 3, 1, 2, 3]


def test_a_reader_cannot_be_read_again():
    found = loader(failures=1)
    result = found.load_reader(pa.RecordBatchReader.from_batches(BATCH.schema, [BATCH]), 't')
    assert not result.success
    assert found.calls == 1


def test_a_commit_of_unknown_outcome_is_never_repeated():
    found = loader(_Transactional, text='at the commit', failures=0)
    result = found.load_batch(BATCH, 't')
    assert not result.success
    assert found.calls == 1


@pytest.mark.parametrize(
    ('text', 'failures', 'resilience', 'calls'),
    [
        ('HTTP 400 Bad Request', 1, {}, 1),
        ('HTTP 503 Service Unavailable', 9, {}, 4),
        ('connection timeout', 1, {'retry': {'enabled': False}}, 1),
    ],
)
def test_what_will_not_pass_or_too_often_fails(text, failures, resilience, calls):
    found = loader(text=text, failures=failures, **resilience)
    result = found.load_batch(BATCH, 't')
    assert not result.success
    assert text in result.error
    assert found.calls == calls


def test_without_a_word_about_it_a_load_is_tried_once():
    found = _Failing({'text': 'HTTP 503', 'failures': 1})
    assert not found.load_batch(BATCH, 't').success
    assert found.calls == 1


def test_the_limiter_and_the_breaker_learn():
    found = loader(failures=1, back_pressure={'max_delay_ms': 5})
    assert found.rate_limiter.get_current_delay() == 0
    assert found.load_batch(BATCH, 't').success
    assert found.rate_limiter.get_current_delay() > 0
    tired = loader(text='HTTP 503', failures=99, retry={'enabled': False}, circuit_breaker={'failure_threshold': 2})
    for _ in range(2):
        tired.load_batch(BATCH, 't')
    refused = tired.load_batch(BATCH, 't')
    assert 'failed 2 times in a row' in refused.error
    assert tired.calls == 2


def test_a_listener_that_fails_does_not_stop_the_rows(told, caplog):
    def broken(event: object) -> None:
        raise RuntimeError('no metrics today')

    stop = events.listen(broken)
    try:
        assert loader(failures=0).load_batch(BATCH, 't').success
    finally:
        stop()
    assert 'a listener failed at Committed' in caplog.text
    assert len(told) == 1
