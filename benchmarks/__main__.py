"""Every benchmark, one after the other: against its bare path, and against the run that is recorded.

    python -m benchmarks [quick|full] [--only duckdb,redis] [--tolerance 0.15] [--record]

Writes performance_benchmarks.json (what was measured, on which machine, with which versions) and docs/benchmarks.svg. Each
benchmark holds its claims against bounds of its own. Then every claim is compared with benchmarks/baseline.json; one that
got worse by more than the tolerance is shown. The exit code is 1 when a bound was missed, a claim got worse, or a
benchmark failed. `--record` makes this run the one that later ones are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._picture import picture
from benchmarks._record import Run, machine, missing, regressions, versions

FOLDER = Path(__file__).resolve().parent
BASELINE = FOLDER / 'baseline.json'
RESULT = FOLDER.parent / 'performance_benchmarks.json'
PICTURE = FOLDER.parent / 'docs' / 'benchmarks.svg'

TOLERANCE = {'quick': 0.30, 'full': 0.15}
# Full sizes are each benchmark's own. Small ones find a blunder in minutes; what they say of a ratio is rough.
QUICK = {
    'backfill': ['64', '20'],
    'clickhouse': ['200000', '3', '2000000'],
    'client': ['500000', '5'],
    'columnar_store': ['writing', 'reading', '--rows', '200000', '--repetitions', '3'],
    'deltalake': ['200000', '3', '2000000'],
    'duckdb': ['200000', '3', '2000000'],
    'evm': ['50000'],
    'iceberg': ['200000', '3', '2000000'],
    'labels': ['100000', '15'],
    'lmdb': ['200000', '3'],
    'local_amp': ['1000', '100', '3'],
    'parquet': ['300000', '3'],
    'postgresql': ['200000', '3', '2000000'],
    'redis': ['50000', '3'],
    'snowflake': ['200000', '3', '50000'],
}


def names() -> list[str]:
    """Every benchmark that there is."""
    return sorted(path.stem.removeprefix('bench_') for path in FOLDER.glob('bench_*.py'))


def run_one(name: str, size: str) -> dict[str, Any]:
    """One benchmark in a process of its own: what it prints is shown, and its last line is what it measured."""
    arguments = QUICK.get(name, []) if size == 'quick' else []
    started = time.perf_counter()
    command = [sys.executable, str(FOLDER / f'bench_{name}.py'), *arguments]
    last = ''
    path = os.pathsep.join([str(FOLDER.parent), os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent, env=environment) as process:
        for line in process.stdout or ():
            if last:
                print(last, end='', flush=True)
            last = line
    measured = told(last)
    return {'seconds': round(time.perf_counter() - started, 1), 'exit_code': process.returncode, **measured}


def told(line: str) -> dict[str, Any]:
    """What the last line of a benchmark says; nothing when it did not come so far."""
    try:
        found = json.loads(line)
    except ValueError:
        print(line, end='')
        return {'claims': {}, 'rows_per_second': {}}
    return dict(found)


def judge(run: Run, record: Run | None, tolerance: float) -> int:
    """Say what went wrong; the exit code."""
    wrong = [f'{name} failed' for name, b in run['benchmarks'].items() if b['exit_code'] and not b['claims']]
    for name, benchmark in run['benchmarks'].items():
        for claim, measured in benchmark['claims'].items():
            if not measured['ok']:
                wrong.append(f'{name}: {claim}: {measured["value"]} is not {measured["sign"]} {measured["bound"]}')
    if record is None:
        print(f'\nno run of size {run["size"]} is recorded: nothing to compare with (--record makes this one it)')
    else:
        wrong += [f'worse than recorded: {change}' for change in regressions(run, record, tolerance)]
        for claim in missing(run, record):
            print(f'recorded and measured no more: {claim}')
    print(f'\n{len(wrong)} of it went wrong (tolerance {tolerance:.0%}):' if wrong else '\nall bounds hold')
    for line in wrong:
        print(f'  {line}')
    return 1 if wrong else 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__.splitlines()[0])
    parser.add_argument('size', nargs='?', choices=sorted(TOLERANCE), default='full')
    parser.add_argument('--only', default='', help=f'some of: {", ".join(names())}')
    parser.add_argument('--tolerance', type=float, help=f'how much worse is a regression; by default {TOLERANCE}')
    parser.add_argument('--record', action='store_true', help='compare later runs with this one')
    chosen = parser.parse_args(arguments)
    wanted = chosen.only.split(',') if chosen.only else names()
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        parser.error(f'there is no benchmark {unknown[0]!r}; there are {", ".join(names())}')
    run: dict[str, Any] = {'size': chosen.size, 'machine': machine(), 'versions': versions(), 'benchmarks': {}}
    for name in wanted:
        print(f'\n== {name}', flush=True)
        run['benchmarks'][name] = run_one(name, chosen.size)
    recorded: dict[str, Any] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    record = recorded.get(chosen.size)
    code = judge(run, record, chosen.tolerance if chosen.tolerance is not None else TOLERANCE[chosen.size])
    if chosen.record:
        kept = {} if record is None or not chosen.only else record['benchmarks']
        run = {**run, 'benchmarks': dict(sorted({**kept, **run['benchmarks']}.items()))}
        recorded[chosen.size] = run
        BASELINE.write_text(_json(recorded))
        print(f'recorded in {BASELINE.name}; now run scripts/generate_docs.py')
    RESULT.write_text(_json(run))
    PICTURE.write_text(picture(run, record))
    print(f'written: {RESULT.name}, {PICTURE.parent.name}/{PICTURE.name}')
    return code


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + '\n'


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
