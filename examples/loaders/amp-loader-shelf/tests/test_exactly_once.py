"""The shelf may call itself exactly-once."""

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests


class TestShelf(ExactlyOnceTests):
    """Also the points between one write to the folder and the next."""

    needed_points = ExactlyOnceTests.needed_points | {
        'intent.written',
        'shelf.before_document',
        'shelf.put',
        'shelf.deleted',
    }

    def make_destination(self, tmp_path):
        """Rows of units that are not done lie there hidden, and go when the stream is opened: counted too."""
        return Destination(
            'shelf',
            {'root': str(tmp_path / 'shelf'), 'durable': False},
            count_raw=lambda loader, table: loader.count_raw(table),
        )
