"""What a destination whose processes take long to start leaves to the full matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from amp.testing.scenarios import SCENARIOS

_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

one_scenario = pytest.mark.parametrize(
    'scenario',
    [_BY_NAME['reorg inside a range'], pytest.param(_BY_NAME['backlog'], marks=pytest.mark.slow)],
    ids=str,
)
"""Of the two scenarios in which there is a crash at every point, the one with the reorg is always run."""


def slow(test: Callable[..., Any]) -> Callable[..., Any]:
    """The same proof, in the full matrix only."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> Any:
        return test(*arguments, **options)

    return pytest.mark.slow(run)
