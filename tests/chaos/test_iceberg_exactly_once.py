"""Iceberg may call itself exactly-once."""

from __future__ import annotations

import pytest

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests


@pytest.mark.iceberg
class TestIceberg(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.after',
        'commit.files_written',
        'commit.before',
        'commit.after',
    }

    def make_destination(self, tmp_path):
        # Compaction and expiry come often, so that they are killed as well.
        config = {'warehouse': str(tmp_path / 'lake'), 'compact_every': 2, 'expire_every': 3, 'keep_minutes': 0}
        return Destination('iceberg', config)
