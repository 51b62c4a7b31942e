"""Ctrl-C in a load, at any moment: a backend's class of BaseLoaderTests subclasses this too."""

from __future__ import annotations

import os
import time
from typing import ClassVar

import pytest

from tests.integration.loaders.conftest import LoaderTestConfig
from tests.support.interrupts import interrupted

INTERRUPTS = int(os.environ.get('AMP_INTERRUPTS', '12'))


class InterruptTests:
    """Not for the stand-in of Snowflake: what was sent to it runs on, and it refuses what comes meanwhile."""

    config: ClassVar[LoaderTestConfig]

    # What was being opened when it came is closed when Python finds it.
    @pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::pytest.PytestUnraisableExceptionWarning')
    def test_an_interrupt_is_one_and_the_next_load_works(self, loader, small_test_table, test_table_name):
        def load():
            result = loader.load_table(small_test_table, test_table_name, batch_size=33)
            assert result.success, result.error

        with loader:
            load()
            started = time.monotonic()
            load()
            whole = time.monotonic() - started
            for step in range(INTERRUPTS):
                interrupted(load, whole * (step + 0.5) / INTERRUPTS)
            load()
            count = self.config.get_row_count(loader, test_table_name)
        assert 300 <= count <= 100 * (3 + INTERRUPTS)
        if loader.SUPPORTS_TRANSACTIONS:
            assert count % 100 == 0
