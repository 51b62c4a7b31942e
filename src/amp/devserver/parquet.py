"""Raw tables in Parquet files, as an Amp server writes them: `<directory>/<dataset>/<table>.parquet`.

A folder `<table>/` of several files is one table too. The blocks come from the dataset's table `blocks`; the name of
the network from the metadata of its file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amp.devserver.chain import Block, Chain, Segment
from amp.errors import ConfigError

__all__ = ['load_directory']

_SEGMENT_ROWS = 1 << 17
_METADATA_KEYS = (b'nozzle_metadata', b'amp_metadata')


def load_directory(directory: Path, *, network: str | None = None) -> dict[str, Chain]:
    """The datasets of a directory, or the one dataset that it is. `network` overrides the files' own.

    Raises ConfigError when there are none, or when a table's rows do not belong to the blocks of its dataset.
    """
    if not directory.is_dir():
        raise ConfigError(f'{directory} is not a directory', hint='it holds <dataset>/<table>.parquet')
    folders = [directory] if _files(directory, 'blocks') else sorted(p for p in directory.iterdir() if p.is_dir())
    chains = {folder.name: _load_dataset(folder, network) for folder in folders if _files(folder, 'blocks')}
    if not chains:
        raise ConfigError(
            f'{directory} holds no dataset', hint='expected <dataset>/blocks.parquet and its other tables'
        )
    return chains


def _files(folder: Path, table: str) -> list[Path]:
    one = folder / f'{table}.parquet'
    return [one] if one.is_file() else sorted((folder / table).glob('*.parquet'))


def _load_dataset(folder: Path, network: str | None) -> Chain:
    names = sorted({p.name.removesuffix('.parquet') for p in folder.iterdir() if p.suffix == '.parquet' or p.is_dir()})
    tables = {name: _read(files) for name in names if (files := _files(folder, name))}
    blocks = _blocks(tables['blocks'])
    chain = Chain(network or _network(_files(folder, 'blocks')[0]), {name: t.schema for name, t in tables.items()})
    try:
        for segment in _segments(blocks, tables):
            chain.extend(segment)
    except (ValueError, KeyError) as error:
        raise ConfigError(f'the tables of {folder} do not fit together: {error}') from error
    return chain


def _read(files: list[Path]) -> pa.Table:
    """All rows by rising block number, in one chunk; the order within a block is kept."""
    parts = [pq.read_table(file).replace_schema_metadata(None) for file in files]
    table = pa.concat_tables(parts)
    if '_block_num' not in table.schema.names:
        raise ConfigError(f'{files[0]} has no column _block_num: not a raw table of Amp')
    numbers = table.column('_block_num').to_numpy()
    if np.any(numbers[1:] < numbers[:-1]):
        table = table.take(np.argsort(numbers, kind='stable'))
    return table


def _network(file: Path) -> str:
    metadata = pq.read_metadata(file).metadata or {}
    for key in _METADATA_KEYS:
        if key in metadata:
            ranges = json.loads(metadata[key]).get('ranges') or []
            if ranges:
                return str(ranges[0]['network'])
    raise ConfigError(f'{file} does not say of which network it is', hint='give network=')


def _blocks(table: pa.Table) -> list[Block]:
    if not table.num_rows:
        raise ConfigError('the table blocks has no rows: there is no chain to serve')
    numbers = table.column('block_num').to_numpy()
    seconds = table.column('timestamp').to_numpy().astype('datetime64[s]').astype(np.int64)
    hashes, parents = _hex(table.column('hash')), _hex(table.column('parent_hash'))
    places = zip(numbers, hashes, parents, seconds, strict=True)
    return [Block(int(number), block_hash, parent, int(time)) for number, block_hash, parent, time in places]


def _hex(column: Any) -> list[str]:
    return ['0x' + value.hex() for value in column.to_numpy()]


def _segments(blocks: list[Block], tables: dict[str, pa.Table]) -> list[Segment]:
    """Runs of blocks with about as many rows as one record batch may well have."""
    most = max(table.num_rows for table in tables.values())
    size = max(len(blocks) * _SEGMENT_ROWS // max(most, 1), 1)
    numbers = {name: table.column('_block_num').to_numpy() for name, table in tables.items()}
    segments = []
    taken = dict.fromkeys(tables, 0)
    for at in range(0, len(blocks), size):
        run = blocks[at : at + size]
        batches = {}
        for name, table in tables.items():
            start = taken[name]
            end = int(np.searchsorted(numbers[name], run[-1].number, side='right'))
            batches[name] = _one_batch(table.slice(start, end - start))
            taken[name] = end
        segments.append(Segment(run, batches))
    left = [name for name, table in tables.items() if taken[name] != table.num_rows]
    if left:
        raise ValueError(f'{", ".join(left)} has rows above the last block')
    return segments


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
