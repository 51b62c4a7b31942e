"""A lane whose commit has an unknown outcome: its rows are there once, also when it goes on with other blocks first."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from amp.devserver import LocalAmp
from amp.loaders.implementations.duckdb_loader import DuckDBLoader
from amp.loaders.registry import LoaderRegistry
from amp.streaming.resilience import RetryConfig
from tests.integration.test_parallel_streaming import below, executor
from tests.support.following import stored

pytestmark = [pytest.mark.integration, pytest.mark.duckdb]


class ForgetfulLoader(DuckDBLoader):
    """Commits, and loses the answer to the commits that `lost` counts down to."""

    lost: ClassVar[list[int]] = []

    def is_transient(self, error: Exception) -> bool:
        return isinstance(error, ConnectionResetError)

    def begin(self, *arguments: Any) -> Any:
        unit = super().begin(*arguments)
        commit = unit.commit

        def commit_and_forget(state: Any) -> None:
            commit(state)
            self.lost[:] = [left - 1 for left in self.lost]
            if 0 in self.lost:
                raise ConnectionResetError('the answer was lost')

        unit.commit = commit_and_forget
        return unit


@pytest.mark.parametrize('workers', [1, 3])
@pytest.mark.parametrize('retries', [0, 5], ids=['given up at once', 'tried again'])
def test_a_partition_that_is_there_after_all_is_never_loaded_twice(tmp_path, retries, workers):
    LoaderRegistry.register('forgetful', ForgetfulLoader)
    ForgetfulLoader.lost[:] = [2, 3]
    path = f'{tmp_path}/chain.db'
    retry = RetryConfig(max_retries=retries, initial_backoff_ms=1, jitter=False)
    with LocalAmp.simulate(seed=5, blocks=300, logs_per_block=(1, 3)) as amp:
        for _ in range(2):
            runner = executor(amp, f'forgetful:///{path}', max_block=200, num_workers=workers, retry_config=retry)
            assert all(result.success for result in runner.load_with_resume_optimization())
        assert max(ForgetfulLoader.lost) < 0
        assert stored(f'duckdb:///{path}') == below(amp, 200)
