"""What loading into LMDB costs beside LMDB's own bulk paths.

    python benchmarks/bench_lmdb.py [rows] [repetitions]

Whole batches: the bare path serializes each batch and puts it under a number, one transaction for all. Rows by key: the
bare path gets keys and rows that were encoded beforehand, in the order of the keys, and hands them to `putmulti`. Both
end with the same fsync. For streams the bare path writes the same two stamp columns.
"""

from __future__ import annotations

import struct
import sys
import tempfile

import lmdb
import pyarrow as pa
from _harness import Places, Report, interleaved, speed_ratio
from _server import make_batches
from _streams import one_microbatch, stamped

from amp.loaders.implementations.lmdb_loader import LMDBLoader
from amp.loaders.lmdb.table import _pieces
from amp.loaders.row_bytes import RowBytes
from amp.loaders.row_keys import KeySpec, Numbering

_MAP = 8 << 30
_KEY = '{tx_hash}{log_index}'


def bare_batches(path: str, batches: list[pa.RecordBatch]) -> None:
    env = lmdb.open(path, map_size=_MAP)
    with env.begin(write=True) as txn:
        for number, batch in enumerate(batches):
            txn.put(struct.pack('>Q', number), memoryview(batch.serialize()))
    env.close()


def encoded(batches: list[pa.RecordBatch]) -> list[list[tuple[bytes, bytes]]]:
    """Keys and rows of each batch, sorted by key."""
    spec, codec = KeySpec.of_pattern(_KEY, 't', batches[0].schema.names), RowBytes(batches[0].schema)
    pieces = []
    for batch in batches:
        keys, rows = spec.encode(batch, Numbering(1)), codec.encode(batch, 1)
        pieces.append(sorted(zip(_pieces(keys), _pieces(rows), strict=True)))
    return pieces


def bare_rows(path: str, pieces: list[list[tuple[bytes, bytes]]]) -> None:
    env = lmdb.open(path, map_size=_MAP)
    with env.begin(write=True) as txn, txn.cursor() as cursor:
        for piece in pieces:
            consumed, added = cursor.putmulti(piece, overwrite=False)
            assert consumed == added
    env.close()


def loaded(path: str, batches: list[pa.RecordBatch], **config: str) -> None:
    with LMDBLoader({'db_path': path, 'map_size': _MAP, **config}) as loader:
        reader = pa.RecordBatchReader.from_batches(batches[0].schema, iter(batches))
        result = loader.load_reader(reader, 't')
        assert result.success, result.error


def streamed(path: str, batches: list[pa.RecordBatch], **config: str) -> None:
    with LMDBLoader({'db_path': path, 'map_size': _MAP, **config}) as loader:
        assert all(result.success for result in loader.load_stream_continuous(one_microbatch(batches), 't'))


def main(rows: int, repetitions: int) -> int:
    report = Report()
    size = 65_536
    batches = make_batches(count=-(-rows // size), rows=size)
    rows = sum(batch.num_rows for batch in batches)
    with_stamps = list(stamped(batches))
    pieces = encoded(batches)
    with tempfile.TemporaryDirectory() as folder:
        folders = Places(folder)
        timings = interleaved(
            {
                'bare IPC puts': lambda: bare_batches(folders.new(), batches),
                'load, batches': lambda: loaded(folders.new(), batches),
                'bare IPC puts, stamped': lambda: bare_batches(folders.new(), with_stamps),
                'stream, batches': lambda: streamed(folders.new(), batches),
                'bare putmulti, encoded': lambda: bare_rows(folders.new(), pieces),
                'load, rows by key': lambda: loaded(folders.new(), batches, key_pattern=_KEY),
                'load, msgpack': lambda: loaded(folders.new(), batches, key_pattern=_KEY, serialization='msgpack'),
            },
            repetitions,
        )
    report.rates(timings, rows)
    report.at_least('batches / bare IPC puts', speed_ratio(timings, 'load, batches', 'bare IPC puts'), 0.9)
    report.at_least(
        'stream of batches / bare stamped puts', speed_ratio(timings, 'stream, batches', 'bare IPC puts, stamped'), 0.9
    )
    report.at_least(
        'rows by key / encoded putmulti', speed_ratio(timings, 'load, rows by key', 'bare putmulti, encoded'), 0.5
    )
    report.at_least('msgpack / encoded putmulti', speed_ratio(timings, 'load, msgpack', 'bare putmulti, encoded'), 0.3)
    return report.finish()


if __name__ == '__main__':
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1_000_000, 5][len(given) :])))
