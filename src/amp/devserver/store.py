"""Settled blocks of an EVM chain in Parquet files, as Amp writes them: `<folder>/<table>/<first block>-<hash>.parquet`.

A run of blocks is one file a table, all of one name, and is there when its file of `blocks` is, which comes last: what a
crash leaves behind is removed by the next that opens the folder. `store.json` says of which chain they are.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from amp.devserver.chain import Segment
from amp.devserver.parquet import METADATA_KEY
from amp.devserver.segments import StoredSegment, StoredTable, read_blocks
from amp.errors import ConfigError, SourceError

__all__ = ['ParquetStore']

_log = logging.getLogger(__name__)

_ROW_GROUP = 1 << 15
_IDENTITY = 'store.json'
_BLOCKS = 'blocks'


class ParquetStore:
    """The runs of one dataset in a folder, which it has for itself until `close`.

    `identity` is what is to be the same whenever the folder is opened: network, chain id, first block. Values that are
    None are taken from the folder. Raises ConfigError when they differ, or when another process has the folder.
    """

    def __init__(self, folder: Path, schemas: Mapping[str, pa.Schema], identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._schemas = schemas
        self._writing = threading.Lock()
        for table in schemas:
            (folder / table).mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / '.lock')
        try:
            self.identity = self._identity(identity)
            self.runs = self._open_runs()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def run_from(self, first: int) -> StoredSegment | None:
        """The run that begins with this block."""
        return self.runs.get(first)

    def gap_after(self, first: int, last: int) -> int:
        """The last block of `first` to `last` before the next run."""
        return min((start - 1 for start in self.runs if first < start <= last), default=last)

    def put(self, network: str, segment: Segment) -> StoredSegment:
        """Write a run; it is durable on return. The rows are those of the segment, in its order."""
        first, last = segment.blocks[0], segment.blocks[-1]
        name = f'{first.number:09d}-{last.hash[2:18]}.parquet'
        covered: dict[str, Any] = {
            'numbers': {'start': first.number, 'end': last.number},
            'network': network,
            'hash': last.hash,
            'prev_hash': first.parent_hash,
        }
        if last.timestamp is not None:
            covered['timestamp'] = last.timestamp
        for table in sorted(self._schemas, key=lambda table: table == _BLOCKS):
            _write(self.folder / table / name, table, segment.tables[table], covered)
        run = self._run(name)
        with self._writing:
            self.runs[first.number] = run
        return run

    def _identity(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        file = self.folder / _IDENTITY
        try:
            known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        except ValueError as error:
            raise ConfigError(f'{file} cannot be read: {error}') from error
        for key, value in wanted.items():
            if value is not None and known.get(key, value) != value:
                raise ConfigError(
                    f'the store {self.folder} has {key} {known[key]}, and {value} is wanted',
                    hint='choose another folder',
                )
        identity = {**wanted, **known}
        if identity != known and None not in identity.values():
            beside = file.with_suffix('.tmp')
            beside.write_text(json.dumps(identity))
            beside.replace(file)
        return identity

    def _open_runs(self) -> dict[int, StoredSegment]:
        names = {table: {p.name for p in (self.folder / table).glob('*.parquet')} for table in self._schemas}
        whole = set.intersection(*names.values())
        for table in self._schemas:
            for path in (self.folder / table).iterdir():
                if path.name not in whole:
                    path.unlink()
        runs: dict[int, StoredSegment] = {}
        for name in sorted(whole):
            try:
                run = self._run(name)
            except (SourceError, ValueError) as error:
                _log.warning('%s; its blocks are fetched again', error)
                for table in self._schemas:
                    (self.folder / table / name).rename(self.folder / table / f'{name}.damaged')
                continue
            runs[run.first] = run
        return runs

    def _run(self, name: str) -> StoredSegment:
        tables = {t: StoredTable(self.folder / t, [self.folder / t / name]) for t in self._schemas}
        for table, stored in tables.items():
            if not stored.schema.equals(self._schemas[table]):
                raise ValueError(f'{self.folder / table / name} has other columns than the table {table}')
        return StoredSegment(read_blocks([self.folder / _BLOCKS / name]), tables)


def _write(path: Path, table: str, batch: pa.RecordBatch, covered: Mapping[str, Any]) -> None:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    described = {
        'table': table,
        'filename': path.name,
        'created_at': {'secs': seconds, 'nanos': nanos},
        'ranges': [covered],
    }
    metadata = {
        METADATA_KEY: json.dumps(described, separators=(',', ':')).encode(),
        b'generation': b'0',
        b'parent_file_ids': b'[]',
    }
    beside = path.with_suffix('.tmp')
    with beside.open('wb') as file:
        rows = pa.Table.from_batches([batch]).replace_schema_metadata(metadata)
        pq.write_table(rows, file, compression='zstd', row_group_size=_ROW_GROUP)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name last through a power cut, where a folder can be told to."""
    if os.name != 'posix':
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _locked(path: Path) -> IO[bytes]:
    """The file, open and ours alone for as long as it is."""
    file = path.open('ab')
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:
        # Not on this system: two servers over one folder are the user's affair.
        return file
    except OSError as error:
        file.close()
        raise ConfigError(f'another process has the store {path.parent}', hint='one local Amp a store') from error
    return file
