"""Delta Lake may call itself exactly-once, and refuses by name what it could not take back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from amp.testing.conformance import Destination
from amp.testing.suite import ExactlyOnceTests


@dataclass(frozen=True)
class AppendsOnly(Destination):
    """It upserts in plain loads, not in streams."""

    @property
    def upserts(self) -> bool:
        return False


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
        return AppendsOnly('deltalake', {'root': str(tmp_path / 'lake')})
