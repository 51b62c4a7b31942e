"""Iceberg may call itself exactly-once."""

from __future__ import annotations

import pytest

from amp.testing.conformance import Conformance, Destination, Scenario, Trial
from amp.testing.suite import ExactlyOnceTests
from tests.chaos.matrix import one_scenario, slow


@pytest.mark.iceberg
class TestIceberg(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.after',
        'commit.files_written',
        'commit.before',
        'commit.after',
    }

    test_a_few_crashes = slow(ExactlyOnceTests.test_a_few_crashes)
    test_kills_at_random_moments = slow(ExactlyOnceTests.test_kills_at_random_moments)
    test_two_streams_in_one_table = slow(ExactlyOnceTests.test_two_streams_in_one_table)

    @one_scenario
    def test_a_crash_at_every_point(self, kit: Conformance, scenario: Scenario):
        super().test_a_crash_at_every_point(kit, scenario)

    def make_destination(self, tmp_path):
        # Files are merged and snapshots expire often, so that they do in the middle of everything else.
        config = {
            'warehouse': str(tmp_path / 'lake'),
            'compact_every': 9,
            'expire_every': 7,
            'keep_snapshots': 4,
            'keep_minutes': 0,
        }
        return Destination('iceberg', config)

    def test_a_crash_while_looking_after_the_table(self, kit: Conformance):
        """Merging and expiring are commits like any other: killed in the middle, they have happened or they have not."""

        def play(trial: Trial) -> None:
            trial.arm()
            trial.finish()

        points = ['expire.committed', 'compact.written']
        options = {'commit_rows': 1, 'retention': 4}
        orders = [{'point': point, 'nth': 1} for point in points]
        trial = kit.trial(play, options=options, orders=orders, blocks=48, logs_per_block=2, cap=1)
        assert trial.kills == points
