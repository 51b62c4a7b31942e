"""State stores at 1,000 and 100,000 committed batches: best of several calls, in microseconds.

    python benchmarks/bench_state.py

The target is at most 1,000 us in memory for each read and for an undo, and no growth with history. `mark` on disk is
one durable commit; without sync it is what the store itself costs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable

from _harness import Report

from amp.streaming.lmdb_state import LMDBStreamStateStore
from amp.streaming.state import BatchIdentifier, InMemoryStreamStateStore, OrderedStateStore

WIDTH = 10
ROUNDS = 20


def batch(start: int, end: int) -> BatchIdentifier:
    return BatchIdentifier('mainnet', start, end, f'0x{end:064x}', f'0x{start:064x}')


def best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e6


def measure(store: OrderedStateStore, count: int) -> dict[str, float]:
    begin = time.perf_counter()
    store.mark_processed('', 't', [batch(i * WIDTH, i * WIDTH + WIDTH - 1) for i in range(count)])
    fill = (time.perf_counter() - begin) / count * 1e6
    end = count * WIDTH
    tip, over_everything = batch(end, end + WIDTH - 1), batch(0, end + WIDTH - 1)

    def timed_undo(of: BatchIdentifier) -> float:
        times = []
        for _ in range(ROUNDS):
            store.mark_processed('', 't', [of])
            begin = time.perf_counter()
            store.invalidate_from_block('', 't', 'mainnet', end)
            times.append(time.perf_counter() - begin)
        return min(times) * 1e6

    return {
        'fill, per batch': fill,
        'resume position': best(lambda: store.get_resume_position('', 't')),
        '  with gaps': best(lambda: store.get_resume_position('', 't', detect_gaps=True)),
        'is_processed': best(lambda: store.is_processed('', 't', [batch(0, WIDTH - 1)])),
        'undo of one': timed_undo(tip),
        '  over all others': timed_undo(over_everything),
        'mark one': best(lambda: store.mark_processed('', 't', [tip])),
        'undo of half, per batch': _undo_half(store, count),
    }


def _undo_half(store: OrderedStateStore, count: int) -> float:
    begin = time.perf_counter()
    removed = store.invalidate_from_block('', 't', 'mainnet', count // 2 * WIDTH)
    return (time.perf_counter() - begin) / len(removed) * 1e6


def main() -> int:
    columns: dict[str, dict[str, float]] = {}
    for count in (1_000, 100_000):
        columns[f'memory {count:,}'] = measure(InMemoryStreamStateStore(), count)
        for sync in (False, True):
            with (
                tempfile.TemporaryDirectory() as folder,
                LMDBStreamStateStore('bench', folder, sync=sync) as store,
            ):
                columns[f'lmdb {"sync " if sync else ""}{count:,}'] = measure(store, count)
    print(f'{"us":<26}' + ''.join(f'{name:>20}' for name in columns))
    for row in next(iter(columns.values())):
        print(f'{row:<26}' + ''.join(f'{column[row]:>20,.1f}' for column in columns.values()))
    report = Report()
    for row in ('resume position', '  with gaps', 'is_processed', 'undo of one'):
        report.at_most(f'us in memory at 100,000 batches: {row.strip()}', columns['memory 100,000'][row], 1000)
    return report.finish()


if __name__ == '__main__':
    sys.exit(main())
