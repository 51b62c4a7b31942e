"""The example of a third-party loader without transactions may call itself exactly-once."""

from __future__ import annotations

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests


class TestById(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'intent.written',
        'undo.after',
        'commit.before',
        'commit.after',
        'by_id.before_document',
        'by_id.piece_written',
        'by_id.piece_deleted',
    }

    def make_destination(self, tmp_path):
        return Destination(
            'tests.support.by_id_loader:ByIdLoader',
            {'path': str(tmp_path / 'rows.sqlite')},
            count_raw=lambda loader, table: loader.count_raw(table),
        )
