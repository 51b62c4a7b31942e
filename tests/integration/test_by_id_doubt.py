"""Undo by id when nobody knows what happened: a commit whose answer is lost, a roll back that could not delete."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from amp.devserver import LocalAmp
from amp.loaders.registry import LoaderRegistry
from tests.support.by_id_loader import ByIdLoader
from tests.support.following import expected, in_order, until_head

pytestmark = pytest.mark.integration


class FlakyLoader(ByIdLoader):
    """A destination behind a bad network: answers get lost, deletes fail, as often as `faults` says."""

    faults: ClassVar[dict[str, int]] = {}

    def is_transient(self, error: Exception) -> bool:
        return isinstance(error, ConnectionResetError) or super().is_transient(error)

    def _write_state(self, key: str, text: str, expected: str | None) -> bool:
        done = super()._write_state(key, text, expected)
        if '"intent":null' in text and '"state":"' in text:
            self._maybe_lose('answers of done')
        return done

    def _delete_runs(self, table_name: str, runs: Any) -> int:
        self._maybe_lose('deletes')
        return super()._delete_runs(table_name, runs)

    def _maybe_lose(self, what: str) -> None:
        if self.faults.get(what, 0) > 0:
            self.faults[what] -= 1
            raise ConnectionResetError(f'{what}: the connection broke')


@pytest.fixture
def flaky(tmp_path):
    FlakyLoader.faults = {}
    LoaderRegistry.register('flaky', FlakyLoader)
    return f'flaky:///?path={tmp_path}/rows.sqlite'


@pytest.fixture
def amp():
    with LocalAmp.simulate(seed=2, blocks=40, logs_per_block=(1, 3), microbatch_max_blocks=5) as server:
        yield server


def rows(path: str):
    with FlakyLoader({'path': path.partition('path=')[2]}) as loader:
        return in_order(loader.scan('logs').read_all())


@pytest.mark.parametrize('lost', [1, 2, 5])
def test_a_done_whose_answer_is_lost_keeps_its_rows(amp, flaky, lost):
    FlakyLoader.faults = {'answers of done': lost}
    until_head(amp, flaky, commit_rows=1)
    assert FlakyLoader.faults['answers of done'] == 0
    assert rows(flaky) == expected(amp)


def test_rows_that_a_roll_back_could_not_delete_are_never_shown(amp, flaky):
    """The source breaks inside a microbatch, and the destination at the same moment."""
    FlakyLoader.faults = {'deletes': 1}
    amp.faults.split(2)
    amp.faults.cut(after_batches=2, at_block=22)
    until_head(amp, flaky, commit_rows=1)
    assert FlakyLoader.faults['deletes'] == 0
    assert rows(flaky) == expected(amp)


def test_a_cut_inside_a_microbatch_leaves_no_row_behind(amp, flaky):
    amp.faults.split(2)
    amp.faults.cut(after_batches=2, at_block=22)
    until_head(amp, flaky, commit_rows=1)
    assert rows(flaky) == expected(amp)
    with FlakyLoader({'path': flaky.partition('path=')[2]}) as loader:
        assert loader.count_raw('logs') == len(expected(amp))
