"""What a label join costs a batch: milliseconds, and beside Arrow's own hash join.

    python benchmarks/bench_labels.py [labels] [repetitions]

Batches of 65,536 and of 3,000 rows against 100,000 labels of three columns, every key a different one at random; keys as
bytes (what Amp sends) and as hex text. Counted is processor time of the one
thread that a join runs on (for Arrow's hash join, of which more threads take part, wall clock): on a busy machine a few
milliseconds of wall clock say little. The median of repetitions, taken in turn, is held against the bound.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from _harness import Report

from amp.config.label_manager import LabelManager
from amp.loaders.labels import LabelJoin
from amp.loaders.types import LabelJoinConfig

BATCH = 65_536
SMALL = 3_000
COLUMNS = ['symbol', 'name', 'decimals']


def addresses(rng: np.random.Generator, count: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(20), count, [None, pa.py_buffer(rng.bytes(20 * count))])


def label_file(keys: pa.Array, folder: Path) -> Path:
    lines = [f'0x{key.hex()},S{n},Token number {n},{n % 19}\n' for n, key in enumerate(keys.to_pylist())]
    path = folder / 'tokens.csv'
    path.write_text('address,symbol,name,decimals\n' + ''.join(lines))
    return path


def batch(keys: pa.Array, rng: np.random.Generator, rows: int, strangers: float, text: bool = False) -> pa.RecordBatch:
    """Rows of a log; this share of them has an address that no label knows."""
    known = keys.take(pa.array(rng.integers(0, len(keys), rows)))
    column = pc.if_else(pa.array(rng.random(rows) < strangers), addresses(rng, rows), known)
    if text:
        column = pa.array(['0x' + key.hex() for key in column.to_pylist()])
    number = pa.array(np.arange(rows))
    return pa.record_batch({'address': column, 'block_num': number, 'data': number.cast(pa.string())})


def milliseconds(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """The time of every repetition of each candidate, in turn; one round to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(repetitions + 1):
        for name, run in candidates.items():
            clock = time.perf_counter if 'Arrow' in name else time.thread_time
            started = clock()
            run()
            if repetition:
                spent[name].append((clock() - started) * 1e3)
    return spent


def main(labels: int, repetitions: int) -> int:
    report = Report()
    rng = np.random.default_rng(7)
    keys = addresses(rng, labels)
    with tempfile.TemporaryDirectory() as folder:
        manager = LabelManager()
        path = label_file(keys, Path(folder))
        manager.add_label('tokens', path)
        read = milliseconds({'read': lambda: manager.add_label('tokens', path)}, 3)['read']
    print(f'{labels:,} labels, read from a CSV in {statistics.median(read):.0f} ms')
    table = manager.get_label('tokens')
    assert table is not None
    [inner] = LabelJoin.steps(manager, 'tokens')
    [left] = LabelJoin.steps(manager, LabelJoinConfig('tokens', 'address', 'address', how='left'))
    whole, some, few = (batch(keys, rng, n, s) for n, s in ((BATCH, 0.0), (BATCH, 0.5), (SMALL, 0.5)))
    text = batch(keys, rng, BATCH, 0.5, text=True)
    assert inner.batch(whole).num_rows == BATCH
    assert left.batch(text).num_rows == BATCH
    for one in (whole, some, few):
        joined = inner.batch(one)
        theirs = pa.table(one).join(table, 'address', join_type='inner').sort_by('block_num')
        assert pa.table(joined).select(theirs.column_names).equals(theirs)
    rounds: dict[str, Callable[[], object]] = {
        '64k rows, all known': lambda: inner.batch(whole),
        '64k rows, half known': lambda: inner.batch(some),
        '64k rows, half known, left': lambda: left.batch(some),
        '64k rows, hex text, left': lambda: left.batch(text),
        '3,000 rows': lambda: inner.batch(few),
        "64k rows, Arrow's hash join": lambda: pa.table(whole).join(table, 'address', join_type='inner'),
        "3,000 rows, Arrow's hash join": lambda: pa.table(few).join(table, 'address', join_type='inner'),
    }
    spent = milliseconds(rounds, repetitions)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    for name, values in spent.items():
        print(f'{name:<32} median {medians[name]:7.2f} ms   best {min(values):7.2f} ms')
    for name in ('64k rows, all known', '64k rows, half known', '64k rows, half known, left'):
        report.at_most(f'{name}: ms', medians[name], 5.0)
    report.at_most('64k rows, hex text, left: ms', medians['64k rows, hex text, left'], 10.0)
    beside = medians['64k rows, all known'] / medians["64k rows, Arrow's hash join"]
    report.at_most("64k rows / Arrow's hash join", beside, 0.5)
    report.at_most('3,000 rows: ms', medians['3,000 rows'], 5.0)
    return report.finish()


if __name__ == '__main__':
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(arguments or [100_000]), *([] if len(arguments) > 1 else [40])))
