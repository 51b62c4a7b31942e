"""LMDB may call itself exactly-once, in both layouts."""

from __future__ import annotations

import pytest

from amp.testing.conformance import Destination, Trial
from amp.testing.suite import ExactlyOnceTests

_KEY = '{block_hash}:{log_index}:{_block_num}'
_POINTS = ExactlyOnceTests.needed_points | {
    'undo.before',
    'undo.after',
    'commit.before_state',
    'commit.before',
    'commit.after',
}


@pytest.mark.lmdb
class TestLMDBBatches(ExactlyOnceTests):
    needed_points = _POINTS

    def make_destination(self, tmp_path):
        # An upsert needs rows with keys: then a table of its own layout is made for it.
        return Destination('lmdb', {'db_path': str(tmp_path / 'db'), 'sync': False})

    def test_a_crash_between_the_commits_of_a_large_unit(self, kit):
        def play(trial: Trial) -> None:
            trial.arm()
            trial.finish()

        orders = [{'point': 'chunk.committed', 'nth': 1}]
        trial = kit.trial(play, orders=orders, blocks=50, logs_per_block=2000, cap=1000)
        assert trial.kills == ['chunk.committed']


@pytest.mark.lmdb
@pytest.mark.slow
class TestLMDBRows(ExactlyOnceTests):
    needed_points = _POINTS

    def make_destination(self, tmp_path):
        config = {'db_path': str(tmp_path / 'db'), 'sync': False}
        # The key of an upsert is another one.
        by_key = 'upsert' not in tmp_path.name
        return Destination('lmdb', {**config, **({'key_pattern': _KEY} if by_key else {'layout': 'rows'})})
