"""What an import brings along: never a driver, never what a script that only connects has no use for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVERS = {
    'clickhouse_connect', 'datafusion', 'deltalake', 'duckdb', 'lmdb', 'obstore', 'pandas', 'pgpq', 'prometheus_client',
    'psycopg', 'pyiceberg', 'redis', 'rich', 'snowflake', 'sqlglot', 'typer',
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    """The top-level names and the amp modules in sys.modules of a new Python that ran `code`."""
    done = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path.insert(0, "src"); {code}; print(*sys.modules)'],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    'code',
    [
        'import amp',
        'import amp; [getattr(amp, name) for name in amp.__all__]',
        'import amp; amp.Client("grpc://localhost").sql("SELECT 1")',
        'import amp.loaders.registry as r; r.get_available_loaders()',
        'import src.amp.client',
    ],
)
def test_no_driver_is_imported(code: str) -> None:
    assert not modules_after(code) & DRIVERS


def test_import_amp_alone_loads_no_arrow() -> None:
    assert 'pyarrow' not in modules_after('import amp')


@pytest.mark.parametrize('module', ['amp.flight.transport', 'amp.flight.protocol', 'amp.streaming.iterator'])
def test_flight_and_streaming_know_no_loader(module: str) -> None:
    loaded = modules_after(f'import {module}')
    assert not {name for name in loaded if name.startswith('amp.loaders')}


def test_streaming_knows_no_flight() -> None:
    loaded = modules_after('import amp.streaming.iterator, amp.streaming.types')
    assert 'pyarrow.flight' not in loaded
    assert not {name for name in loaded if name.startswith('amp.flight')}
