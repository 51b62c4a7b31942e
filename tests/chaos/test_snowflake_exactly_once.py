"""What the Snowflake loader does when it is killed, against the stand-in: atomicity itself only an account can prove.

The stand-in's transactions are DuckDB's. What is proven here is the loader's part: which statements lie between BEGIN
and COMMIT, what a new process ends, removes and reads, and that ids, runs and positions fit together. A lost answer to
COMMIT has its own test beside the other tests of this destination: the driver's requests are compressed on the wire.
"""

from __future__ import annotations

import pytest

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests
from tests.chaos.matrix import one_scenario, slow
from tests.support.snowflake import is_real

_TRANSACTION = {
    'files.staged',
    'transaction.before',
    'undo.before',
    'undo.after',
    'rows.copied',
    'commit.before_state',
    'commit.before',
    'commit.after',
}


@pytest.mark.snowflake
class TestSnowflake(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | _TRANSACTION

    # Most of a run is the start of processes that log in.
    test_a_few_crashes = slow(ExactlyOnceTests.test_a_few_crashes)
    test_kills_at_random_moments = slow(ExactlyOnceTests.test_kills_at_random_moments)
    test_two_streams_in_one_table = slow(ExactlyOnceTests.test_two_streams_in_one_table)

    @pytest.fixture(autouse=True)
    def _server(self, snowflake_test_config):
        self.server = snowflake_test_config

    def make_destination(self, tmp_path):
        # A schema of its own: the streams of other tests are none of ours. An account's is made beforehand.
        config = dict(self.server)
        if not is_real():
            config['schema'] = f'CHAOS_{tmp_path.name[-40:]}'.upper().replace('-', '_')
        return Destination('snowflake', config)

    @one_scenario
    def test_a_crash_at_every_point(self, kit, scenario):
        super().test_a_crash_at_every_point(kit, scenario)
