"""A pytest fixture, to be had with `pytest_plugins = ['amp.testing.local_amp']` or by importing it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amp.devserver import LocalAmp

__all__ = ['local_amp']


@pytest.fixture
def local_amp() -> Iterator[LocalAmp]:
    """A started local Amp over a simulated chain of 20 blocks, ten logs each, four blocks a microbatch."""
    with LocalAmp.simulate(seed=1, blocks=20, logs_per_block=10, microbatch_max_blocks=4) as amp:
        yield amp
