"""Raw tables in Parquet files, as an Amp server writes them: `<directory>/<dataset>/<table>.parquet`.

A folder `<table>/` of several files is one table too. The blocks come from the dataset's table `blocks`; the name of
the network from the metadata of its file. Rows are read when they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from amp.devserver.chain import Chain
from amp.devserver.segments import BlockIndex, StoredSegment, StoredTable, read_blocks
from amp.errors import ConfigError, SourceError

__all__ = ['METADATA_KEY', 'load_dataset', 'load_directory']

METADATA_KEY = b'nozzle_metadata'
_METADATA_KEYS = (METADATA_KEY, b'amp_metadata')


def load_directory(directory: Path, *, network: str | None = None) -> dict[str, Chain]:
    """The datasets of a directory, or the one dataset that it is. `network` overrides the files' own.

    Raises ConfigError when there are none, or when a table's rows do not belong to the blocks of its dataset; SourceError
    when a file is damaged.
    """
    if not directory.is_dir():
        raise ConfigError(f'{directory} is not a directory', hint='it holds <dataset>/<table>.parquet')
    folders = [directory] if _files(directory, 'blocks') else sorted(p for p in directory.iterdir() if p.is_dir())
    chains = {folder.name: load_dataset(folder, network) for folder in folders if _files(folder, 'blocks')}
    if not chains:
        raise ConfigError(
            f'{directory} holds no dataset', hint='expected <dataset>/blocks.parquet and its other tables'
        )
    return chains


def load_dataset(folder: Path, network: str | None = None) -> Chain:
    """One dataset: the tables of a folder. Raises ConfigError and SourceError, as `load_directory` does."""
    if not _files(folder, 'blocks'):
        raise ConfigError(f'{folder} holds no dataset', hint='expected blocks.parquet and its other tables')
    names = sorted({p.name.removesuffix('.parquet') for p in folder.iterdir() if p.suffix == '.parquet' or p.is_dir()})
    try:
        tables = {name: StoredTable(_place(folder, name), files) for name in names if (files := _files(folder, name))}
        blocks = read_blocks(_files(folder, 'blocks'))
        _check_spans(blocks, tables)
        chain = Chain(network or _network(_files(folder, 'blocks')[0]), {name: t.schema for name, t in tables.items()})
        chain.settle(StoredSegment(blocks, tables))
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f'the tables of {folder} do not fit together: {error}') from error
    return chain


def _place(folder: Path, table: str) -> Path:
    one = folder / f'{table}.parquet'
    return one if one.is_file() else folder / table


def _files(folder: Path, table: str) -> list[Path]:
    place = _place(folder, table)
    return [place] if place.is_file() else sorted(place.glob('*.parquet'))


def _check_spans(blocks: BlockIndex, tables: Mapping[str, StoredTable]) -> None:
    first, last = blocks.first, blocks.first + len(blocks) - 1
    for name, table in tables.items():
        if table.span is not None and not first <= table.span[0] <= table.span[1] <= last:
            raise ValueError(
                f'{name} has rows of blocks {table.span[0]}-{table.span[1]}, the blocks are {first}-{last}'
            )


def _network(file: Path) -> str:
    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f'{file} cannot be read: {error}') from error
    for key in _METADATA_KEYS:
        if key in metadata:
            ranges = json.loads(metadata[key]).get('ranges') or []
            if ranges:
                return str(ranges[0]['network'])
    raise ConfigError(f'{file} does not say of which network it is', hint='give network=')
