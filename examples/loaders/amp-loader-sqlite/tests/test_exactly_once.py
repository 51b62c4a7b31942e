"""The SQLite loader may call itself exactly-once."""

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests


class TestSQLite(ExactlyOnceTests):
    """Also at the points inside its own transaction."""

    needed_points = ExactlyOnceTests.needed_points | {'commit.begun', 'commit.undone', 'commit.before'}

    def make_destination(self, tmp_path):
        """A file of its own for each test."""
        return Destination('sqlite', {'path': str(tmp_path / 'rows.db'), 'durable': False})
