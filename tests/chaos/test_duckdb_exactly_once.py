"""DuckDB may call itself exactly-once."""

from __future__ import annotations

import pytest

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests


@pytest.mark.duckdb
class TestDuckDB(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.deleted',
        'undo.after',
        'commit.before_state',
        'commit.before',
        'commit.after',
    }

    def make_destination(self, tmp_path):
        return Destination('duckdb', {'path': str(tmp_path / 'chain.db')}, single_process=True)
