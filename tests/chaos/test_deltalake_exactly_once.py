"""Delta Lake may call itself exactly-once, and refuses by name what it could not take back."""

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


@pytest.mark.deltalake
class TestDeltaLake(ExactlyOnceTests):
    needed_points = ExactlyOnceTests.needed_points | {
        'undo.before',
        'undo.after',
        'commit.before_state',
        'commit.before',
        'commit.after',
    }

    def make_destination(self, tmp_path):
        return Destination('deltalake', {'root': str(tmp_path / 'lake')})


class _LosesCommits:
    """A network that loses the answer of the store to the file of the log that is the commit."""

    def __init__(self, proxy: TcpProxy, config: dict[str, Any]) -> None:
        self._proxy = proxy
        self._lost = 0
        endpoint = {'AWS_ENDPOINT_URL': f'http://127.0.0.1:{proxy.port}'}
        self.config = {**config, 'storage_options': {**config['storage_options'], **endpoint}}

    def lose_replies(self) -> None:
        self._lost = self._proxy.cuts + 1
        self._proxy.lose_reply_to(f'PUT /{BUCKET}/root/trial_1/_delta_log/'.encode())

    def heal(self) -> None:
        assert self._proxy.cuts == self._lost, 'no answer was lost'


@pytest.mark.chaos
@pytest.mark.integration
@pytest.mark.deltalake
def test_a_lost_answer_of_an_object_store():
    """delta-rs puts the commit again, meets its own, and calls it a conflict; it is none, and rows are there once."""
    with s3_options() as options:
        config = {'root': f's3://{BUCKET}/root', 'storage_options': options}

        @contextmanager
        def proxy() -> Iterator[_LosesCommits]:
            server = urlsplit(options['AWS_ENDPOINT_URL'])
            with TcpProxy(server.hostname or '', server.port or 0) as network:
                yield _LosesCommits(network, config)

        with Conformance(Destination('deltalake', config, proxy=proxy)) as kit:
            proofs.lost_acknowledgement(kit)
