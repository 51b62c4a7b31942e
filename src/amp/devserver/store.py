"""Settled blocks of an EVM chain in Parquet files, as Amp writes them: `<folder>/<table>/<first block>-<hash>.parquet`.

A run of blocks is one file a table, all of one name, and is there when its file of `blocks` is, which comes last: what a
crash leaves behind is removed by the next that opens the folder. `store.json` says of which chain they are.

Neighbouring runs are joined into larger ones, of the next generation. The larger one takes the place of its parts in a
moment in which no query reads the folder; where a crash leaves both, the parts are removed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from amp.devserver.chain import Block, Segment
from amp.devserver.parquet import METADATA_KEY
from amp.devserver.readers import READERS
from amp.devserver.segments import StoredSegment, StoredTable, read_blocks
from amp.errors import ConfigError, SourceError

__all__ = ['ParquetStore']

_log = logging.getLogger(__name__)

_ROW_GROUP = 1 << 15
_IDENTITY = 'store.json'
_BLOCKS = 'blocks'
_GENERATION = b'generation'
_JOINED = 16
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class _Run:
    name: str
    segment: StoredSegment
    generation: int


class ParquetStore:
    """The runs of one dataset in a folder, which it has for itself until `close`.

    `identity` is what is to be the same whenever the folder is opened: network, chain id, first block. Values that are
    None are taken from the folder. Raises ConfigError when they differ, or when another process has the folder.
    """

    def __init__(self, folder: Path, schemas: Mapping[str, pa.Schema], identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._schemas = schemas
        self._writing = threading.Lock()
        self._joined: tuple[str, list[_Run]] | None = None
        for table in schemas:
            (folder / table).mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / '.lock')
        try:
            self.identity = self._identity(identity)
            self._runs = self._open_runs()
        except BaseException:  # whatever it is, the folder is not kept locked
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    @property
    def empty(self) -> bool:
        """True when nothing is stored."""
        return not self._runs

    def run_from(self, first: int) -> StoredSegment | None:
        """The run that begins with this block."""
        found = self._runs.get(first)
        return found.segment if found is not None else None

    def gap_after(self, first: int, last: int) -> int:
        """The last block of `first` to `last` before the next run."""
        return min((start - 1 for start in self._runs if first < start <= last), default=last)

    def put(self, network: str, segment: Segment) -> StoredSegment:
        """Write a run; it is durable on return. The rows are those of the segment, in its order."""
        first, last = segment.blocks[0], segment.blocks[-1]
        name = _name(first, last)
        for table in self._tables():
            rows = pa.Table.from_batches([segment.tables[table]])
            _write(self.folder / table / name, [rows], _described(table, name, network, first, last), 0)
        run = self._run(name)
        with self._writing:
            self._runs[first.number] = run
        return run.segment

    def join(self, network: str, last: int, go_on: Callable[[], None] = lambda: None) -> bool:
        """Join runs up to the block `last`, if enough of them are alike; True when a larger run took their place.

        While queries read, the larger run waits beside the others for the next call. `go_on` is called now and then, and
        may raise to make an end. Raises SourceError when a file cannot be read.
        """
        # Elsewhere a file that somebody has open cannot be removed.
        if os.name != 'posix':
            return False
        if self._joined is None:
            parts = self._alike(last)
            if not parts:
                return False
            self._joined = self._write_joined(network, parts, go_on), parts
        with READERS.replacing() as alone:
            if alone:
                self._replace(*self._joined)
                self._joined = None
        return alone

    def _alike(self, last: int) -> list[_Run]:
        """Neighbours of one generation, as many as are joined; none when there are not so many."""
        found: list[_Run] = []
        runs = [self._runs[first] for first in sorted(self._runs) if self._runs[first].segment.last <= last]
        for run in runs:
            if found and (found[-1].segment.last + 1, found[-1].generation) != (run.segment.first, run.generation):
                found = []
            found.append(run)
            if len(found) == _JOINED:
                if self._size(found) <= _MOST_BYTES:
                    return found
                found = []
        return []

    def _size(self, runs: Sequence[_Run]) -> int:
        return sum((self.folder / table / run.name).stat().st_size for run in runs for table in self._schemas)

    def _write_joined(self, network: str, parts: Sequence[_Run], go_on: Callable[[], None]) -> str:
        """The files of the joined run, under a name that no query looks for."""
        first, last = parts[0].segment.blocks[0], parts[-1].segment.blocks[-1]
        name = _name(first, last)
        for table in self._tables():
            described = _described(table, name, network, first, last)
            rows = _rows_of([self.folder / table / part.name for part in parts], go_on)
            beside = self.folder / table / f'{name}.joined'
            try:
                _write(beside, rows, described, parts[0].generation + 1)
            except (pa.ArrowException, OSError) as error:
                raise SourceError(f'the files of {beside.parent} cannot be joined: {error}') from error
        return name

    def _replace(self, name: str, parts: Sequence[_Run]) -> None:
        for table in self._tables():
            path = self.folder / table / name
            path.with_name(f'{name}.joined').replace(path)
            _sync_folder(path.parent)
        whole = self._run(name)
        with self._writing:
            for part in parts:
                del self._runs[part.segment.first]
                # Whoever has the part reads on from the larger files.
                part.segment.tables = whole.segment.tables
            self._runs[whole.segment.first] = whole
        for part in parts:
            self._remove(part.name)

    def _remove(self, name: str) -> None:
        for table in reversed(self._tables()):
            (self.folder / table / name).unlink(missing_ok=True)

    def _tables(self) -> list[str]:
        """The tables in the order of writing: a run is there when its blocks are."""
        return sorted(self._schemas, key=lambda table: table == _BLOCKS)

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

    def _open_runs(self) -> dict[int, _Run]:
        names = {table: {p.name for p in (self.folder / table).glob('*.parquet')} for table in self._schemas}
        whole = set.intersection(*names.values())
        for table in self._schemas:
            for path in (self.folder / table).iterdir():
                if path.name not in whole:
                    path.unlink()
        runs: list[_Run] = []
        for name in sorted(whole):
            try:
                runs.append(self._run(name))
            except (SourceError, ValueError) as error:
                _log.warning('%s; its blocks are fetched again', error)
                for table in self._schemas:
                    (self.folder / table / name).rename(self.folder / table / f'{name}.damaged')
        return self._without_parts(runs)

    def _without_parts(self, runs: Iterable[_Run]) -> dict[int, _Run]:
        """The runs by their first blocks; those that a larger one holds are removed."""
        kept: dict[int, _Run] = {}
        reach = -1
        for run in sorted(runs, key=lambda run: (run.segment.first, -run.segment.last)):
            if run.segment.last <= reach:
                self._remove(run.name)
                continue
            kept[run.segment.first] = run
            reach = run.segment.last
        return kept

    def _run(self, name: str) -> _Run:
        tables = {t: StoredTable(self.folder / t, [self.folder / t / name]) for t in self._schemas}
        for table, stored in tables.items():
            if not stored.schema.equals(self._schemas[table]):
                raise ValueError(f'{self.folder / table / name} has other columns than the table {table}')
        blocks = self.folder / _BLOCKS / name
        generation = int((pq.read_metadata(blocks).metadata or {}).get(_GENERATION, b'0'))
        return _Run(name, StoredSegment(read_blocks([blocks]), tables), generation)


def _name(first: Block, last: Block) -> str:
    return f'{first.number:09d}-{last.hash[2:18]}.parquet'


def _described(table: str, name: str, network: str, first: Block, last: Block) -> dict[str, Any]:
    """What Amp notes of a file."""
    covered: dict[str, Any] = {
        'numbers': {'start': first.number, 'end': last.number},
        'network': network,
        'hash': last.hash,
        'prev_hash': first.parent_hash,
    }
    if last.timestamp is not None:
        covered['timestamp'] = last.timestamp
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    created = {'secs': seconds, 'nanos': nanos}
    return {'table': table, 'filename': name, 'created_at': created, 'ranges': [covered]}


def _rows_of(files: Iterable[Path], go_on: Callable[[], None]) -> Iterator[pa.Table]:
    """The rows of files that follow each other, in pieces of a row group or little more."""
    waiting: list[pa.Table] = []
    for file in files:
        with pq.ParquetFile(file) as opened:
            for index in range(max(opened.num_row_groups, 1)):
                go_on()
                waiting.append(opened.read_row_group(index) if opened.num_row_groups else opened.read())
                if sum(table.num_rows for table in waiting) >= _ROW_GROUP:
                    yield pa.concat_tables(table.replace_schema_metadata(None) for table in waiting)
                    waiting.clear()
    if waiting:
        yield pa.concat_tables(table.replace_schema_metadata(None) for table in waiting)


def _write(path: Path, rows: Iterable[pa.Table], described: Mapping[str, Any], generation: int) -> None:
    metadata = {
        METADATA_KEY: json.dumps(described, separators=(',', ':')).encode(),
        _GENERATION: str(generation).encode(),
        b'parent_file_ids': b'[]',
    }
    pieces = iter(rows)
    first = next(pieces)
    beside = path.with_name(f'{path.name}.tmp')
    with beside.open('wb') as file:
        with pq.ParquetWriter(file, first.schema.with_metadata(metadata), compression='zstd') as writer:
            for piece in chain([first], pieces):
                writer.write_table(piece.replace_schema_metadata(metadata), row_group_size=_ROW_GROUP)
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
