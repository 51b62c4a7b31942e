"""Pytest fixtures, to be had with `pytest_plugins = ['amp.testing.local_amp']` or by importing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from amp.devserver import LocalAmp

__all__ = ['local_amp', 'make_local_amp']


@pytest.fixture
def local_amp() -> Iterator[LocalAmp]:
    """A started local Amp over a simulated chain of 20 blocks, ten logs each, four blocks a microbatch."""
    with LocalAmp.simulate(seed=1, blocks=20, logs_per_block=10, microbatch_max_blocks=4) as amp:
        yield amp


@pytest.fixture
def make_local_amp() -> Iterator[Callable[..., LocalAmp]]:
    """Starts local Amps with the options of `LocalAmp.simulate`, as many as a test wants; they end with the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> LocalAmp:
            return stack.enter_context(LocalAmp.simulate(**options))

        yield make
