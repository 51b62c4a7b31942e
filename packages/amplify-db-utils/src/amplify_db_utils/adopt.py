"""Hive directories of Parquet without a log: reading them as they are, and beginning a log over them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from amplify_db_utils import names
from amplify_db_utils._arrow import Array
from amplify_db_utils.errors import SchemaConflict
from amplify_db_utils.faults import damage
from amplify_db_utils.files import statistics
from amplify_db_utils.log import Snapshot
from amplify_db_utils.schema import stored_schema
from amplify_db_utils.storage import Storage


def hive_snapshot(storage: Storage, directory: str, schema: pa.Schema, partition_by: Sequence[str]) -> Snapshot:
    """The table that a directory without a log is, by its listing. Raises SchemaConflict for another layout."""
    found = parquet_files(storage, directory)
    try:
        texts = [names.parse_hive(path, partition_by) for path, _ in found]
    except ValueError as error:
        raise SchemaConflict(f'{directory!r} cannot be read as a table: {error}') from error
    columns: dict[str, Array] = {
        'path': pa.array([path for path, _ in found], pa.string()),
        'size': pa.array([size for _, size in found], pa.int64()),
        'rows': pa.nulls(len(found), pa.int64()),
    }
    stored = stored_schema(schema)
    for place, key in enumerate(partition_by):
        column = pa.array([one[place] for one in texts], pa.string())
        try:
            columns[f'p{place}'] = _typed(column, stored.field(key).type)
        except pa.ArrowException as error:
            raise SchemaConflict(
                f'directories of {key!r} are not named by {schema.field(key).type}: {error}'
            ) from error
    listed = pa.table(columns)
    return Snapshot(-1, schema, tuple(partition_by), lambda: listed)


def _typed(texts: Array, kind: pa.DataType) -> Array:
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        return texts.cast(kind)
    try:
        return texts.cast(pa.timestamp('us')).cast(kind)  # naive means UTC
    except pa.ArrowInvalid:
        return texts.cast(kind)


def parquet_files(storage: Storage, directory: str) -> list[tuple[str, int]]:
    """Path, relative to the table, and size of each Parquet file below its directory; names with _ or . first are not data."""
    start = len(storage.path(directory)) + 1
    infos = storage.listing(directory, recursive=True)
    found = [(info.path[start:], info.size) for info in infos if info.is_file and info.extension == 'parquet']
    return sorted((path, size) for path, size in found if not any(part[0] in '_.' for part in path.split('/') if part))


def adopt(storage: Storage, directory: str, snapshot: Snapshot) -> list[AddAction]:
    """What a log over the files of a hive snapshot begins with. Nothing is rewritten; every footer is read once.

    Raises DamagedData for a file that is no Parquet, SchemaConflict for one whose columns are of other types.
    """
    now = int(time.time() * 1000)
    rows = snapshot.files.select(['path', 'size']).to_pylist()

    def one(place: int) -> AddAction:
        path, size = rows[place]['path'], rows[place]['size']
        with damage(f'{path!r} of {directory!r}'):
            metadata = pq.read_metadata(storage.path(directory, path), filesystem=storage.filesystem)
        _check_types(path, metadata.schema.to_arrow_schema(), snapshot)
        values = dict(zip(snapshot.partition_by, snapshot.partitions[place], strict=True))
        return AddAction(path, size, values, now, True, statistics(metadata))

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, range(len(rows))))


def _check_types(path: str, found: pa.Schema, snapshot: Snapshot) -> None:
    for field in snapshot.stored:
        if field.name in snapshot.partition_by:
            continue
        if field.name not in found.names:
            if not field.nullable:
                raise SchemaConflict(f'{path!r} lacks the required column {field.name!r}')
            continue
        kind = found.field(field.name).type
        try:
            pa.nulls(0, kind).cast(field.type)
        except pa.ArrowException:
            problem = f'{path!r} has {field.name!r} as {kind}, the table stores it as {field.type}'
            raise SchemaConflict(f'{problem}: read the file and write() its rows instead') from None
