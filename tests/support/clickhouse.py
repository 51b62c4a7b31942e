"""A ClickHouse for the tests: the server that CLICKHOUSE_HOST names, or the real engine behind our own HTTP front."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.chdb_http import chdb_front
from tests.support.containers import config_of

PASSWORD = 'server-side-secret'


@contextmanager
def clickhouse_config(folder: Path, container: Any | None = None) -> Iterator[dict[str, Any]]:
    """The configuration of a loader for a database that tests may fill as they like: the one in `container`, if given."""
    if container is not None:
        yield config_of('clickhouse', container)
        return
    if 'CLICKHOUSE_HOST' in os.environ:
        yield {
            'host': os.environ['CLICKHOUSE_HOST'],
            'port': int(os.environ.get('CLICKHOUSE_PORT', '8123')),
            'database': os.environ.get('CLICKHOUSE_DB', 'default'),
            'username': os.environ.get('CLICKHOUSE_USER', 'default'),
            'password': os.environ.get('CLICKHOUSE_PASSWORD', ''),
        }
        return
    with chdb_front(str(folder / 'data'), user='amp', password=PASSWORD) as config:
        yield config
