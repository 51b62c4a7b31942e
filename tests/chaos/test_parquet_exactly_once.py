"""The Parquet store may call itself exactly-once; it has no mode that replaces rows by key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from amp.testing import proofs
from amp.testing.conformance import Conformance, Destination
from amp.testing.suite import ExactlyOnceTests
from tests.support.s3 import BUCKET, s3_options
from tests.support.tcp_proxy import TcpProxy


@pytest.mark.parquet
class TestParquet(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.after',
        'commit.before_state',
        'commit.before',
        'commit.after',
    }

    def make_destination(self, tmp_path):
        return Destination('parquet', {'root': str(tmp_path / 'store')})


class _LosesCommits:
    """A network that loses the answer of the store to the file of the log that is the commit."""

    def __init__(self, proxy: TcpProxy, config: dict[str, Any]) -> None:
        self._proxy = proxy
        self._lost = 0
        self.config = {**config, 's3_endpoint': f'http://127.0.0.1:{proxy.port}'}

    def lose_replies(self) -> None:
        self._lost = self._proxy.cuts + 1
        self._proxy.lose_reply_to(f'PUT /{BUCKET}/store/trial_1/_delta_log/'.encode())

    def heal(self) -> None:
        assert self._proxy.cuts == self._lost, 'no answer was lost'


@pytest.mark.chaos
@pytest.mark.integration
@pytest.mark.parquet
def test_a_lost_answer_of_an_object_store():
    """The log is put again, meets itself, and is taken for a conflict; it is none, and rows are there once."""
    with s3_options() as options:
        server = urlsplit(options['AWS_ENDPOINT_URL'])
        config = {
            'root': f's3://{BUCKET}/store',
            's3_endpoint': options['AWS_ENDPOINT_URL'],
            's3_access_key': options['AWS_ACCESS_KEY_ID'],
            's3_secret_key': options['AWS_SECRET_ACCESS_KEY'],
        }

        @contextmanager
        def proxy() -> Iterator[_LosesCommits]:
            with TcpProxy(server.hostname or '', server.port or 0) as network:
                yield _LosesCommits(network, config)

        with Conformance(Destination('parquet', config, proxy=proxy)) as kit:
            proofs.lost_acknowledgement(kit)
