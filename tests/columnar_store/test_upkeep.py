"""Small files, old files, damaged files, a full disk, and stores of an older form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amplify_db_utils import BadRecord, DamagedData, DuckDBParquetConfig, DuckDBParquetStore, StoreError
from amplify_db_utils.migrate import main
from amplify_db_utils.schema import to_arrow_schema
from tests.columnar_store.conftest import Opener, finish
from tests.columnar_store.models import PARTITION_BY, Image, image
from tests.support.small_disk import small_disk

pytestmark = [pytest.mark.integration, pytest.mark.parquet]


def data_files(root: Path, table: str = 'images') -> list[Path]:
    return sorted((root / table).rglob('*.parquet'))


def test_compact_joins_small_files_and_vacuum_deletes_them(
    images: DuckDBParquetStore, reopen: Opener, root: Path
) -> None:
    rows = [image(at, month=at % 2) for at in range(20)]
    for row in rows:
        images.write('images', [row])
    under_way = reopen().read('images')
    first = next(under_way)
    assert images.compact('images') == 20
    assert images.compact('images') == 0
    assert images.log('images').snapshot().files.num_rows == 2
    assert sorted(images.read('images'), key=lambda row: row['image_id']) == rows
    assert len([first, *under_way]) == 20
    assert images.vacuum('images') == []
    assert len(data_files(root)) == 22
    assert len(images.vacuum('images', retention_hours=0)) == 20
    assert len(data_files(root)) == 2
    assert sorted(reopen().read('images'), key=lambda row: row['image_id']) == rows


def test_compact_leaves_large_files_alone(images: DuckDBParquetStore) -> None:
    for _ in range(3):
        images.write('images', [image(at, month=1) for at in range(50)])
    assert images.compact('images', target_size=1) == 0
    sizes = images.log('images').snapshot().files['size'].to_pylist()
    assert images.compact('images', target_size=2 * max(sizes) + 1) == 3
    for wrong in (0, -1):
        with pytest.raises(ValueError, match='target_size'):
            images.compact('images', target_size=wrong)
        with pytest.raises(ValueError, match='retention_hours'):
            images.vacuum('images', retention_hours=wrong - 0.5)


def test_vacuum_keeps_what_was_taken_out_lately(images: DuckDBParquetStore, root: Path) -> None:
    images.write('images', [image(1)])
    old = time.time() - 3600
    for path in (*data_files(root), *(root / 'images' / '_delta_log').iterdir()):
        os.utime(path, (old, old))
    images.write('images', [image(1)], overwrite=True)
    assert images.vacuum('images', retention_hours=0.5) == []
    assert len(images.vacuum('images', retention_hours=0)) == 1


def test_old_columns_survive_a_compaction(images: DuckDBParquetStore) -> None:
    class Noted(Image):
        notes: str | None = None

    images.write('images', [image(1, month=1)])
    images.create_table('images', Noted, partition_by=PARTITION_BY)
    images.write('images', [image(2, month=1, notes='x')])
    assert images.bulk_read('images', {'notes': 'x'}).num_rows == images.count('images', {'notes': None}) == 1
    assert images.compact('images') == 2
    assert [row['notes'] for row in images.read('images')] == [None, 'x']


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(30, 60):
        data[at] ^= 0xFF
    path.write_bytes(data)


def shorten(path: Path) -> None:
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, 1), path)


@pytest.mark.parametrize('damage', [Path.unlink, truncate, flip, shorten, lambda path: path.write_bytes(b'')])
def test_a_damaged_file_is_an_error_not_fewer_rows(
    images: DuckDBParquetStore, root: Path, damage: Callable[[Path], None]
) -> None:
    images.write('images', [image(at, month=at % 2) for at in range(100)])
    [victim] = (root / 'images').rglob('month=1/*.parquet')
    damage(victim)
    for use in (
        lambda: images.bulk_read('images'),
        lambda: list(images.read('images')),
        lambda: images.bulk_read('images', {'month': 1}),
        lambda: images.bulk_read('images', {'image_id': {'gte': ''}}),
        lambda: images.distinct_values('images', ['image_id']),
        lambda: list(images.join('images', 'images', 'image_id')),
        lambda: images.compact('images') + len(list(images.read('images'))),
    ):
        with pytest.raises(DamagedData, match=r'damaged|changed|gone'):
            use()
    assert images.bulk_read('images', {'month': 0}).num_rows == 50  # what is whole can be read
    assert images.count('images') == 100  # the log alone says so, and this
    assert images.count('images', {'month': {'in': [1]}}) == 50
    found = images.distinct_values('images', ['month'], {'year': 2024})
    assert sorted(row['month'] for row in found) == [0, 1]


def test_a_page_that_rots_is_found_by_a_filtered_read(images: DuckDBParquetStore, root: Path) -> None:
    images.write('images', [image(at, month=1) for at in range(2000)])
    wanted = {'area': {'gte': 990.0}}
    assert images.bulk_read('images', wanted).num_rows == images.count('images', wanted) == 20
    [victim] = (root / 'images').rglob('*.parquet')
    column = pq.read_metadata(victim).row_group(0).column(2)
    assert column.path_in_schema == 'area'
    data = bytearray(victim.read_bytes())
    data[column.dictionary_page_offset + column.total_compressed_size - 9] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DamagedData, match='checksum'):
        images.bulk_read('images', wanted, columns=['image_id'])
    with pytest.raises(DamagedData, match='checksum'):
        images.count('images', wanted)
    assert images.count('images', {'image_id': 'image 01999'}) == 1  # what is whole can be read


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import os
records = [image(at, image_id=os.urandom(8).hex(), month=at % 2) for at in range(40_000)]
try:
    store.write('images', records, overwrite=sys.argv[2] == 'True')
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_full_disk_leaves_the_old_state(
    images: DuckDBParquetStore, python: Callable[..., subprocess.Popen[str]], root: Path, overwrite: bool
) -> None:
    images.write('images', [image(at, month=at % 2) for at in range(10)])
    before = data_files(root)
    assert finish(python(FULL, str(overwrite))) == 'OSError\n'
    assert images.count('images') == 10
    assert data_files(root) == before


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_disk_that_is_full_for_real(tmp_path: Path, overwrite: bool) -> None:
    with (
        small_disk(tmp_path / 'disk', 4) as disk,
        DuckDBParquetStore(DuckDBParquetConfig(root=disk / 'store')) as store,
    ):
        store.create_table('t', pa.schema([('k', 'int64'), ('raw', 'binary')]), partition_by=['k'])
        store.write('t', [{'k': 1, 'raw': b'old'}])
        before = data_files(disk / 'store')
        large = [{'k': at % 2, 'raw': os.urandom(1000)} for at in range(8000)]
        with pytest.raises(OSError, match='No space left'):
            store.write('t', large, overwrite=overwrite)
        assert data_files(disk / 'store') == before
        assert list(store.read('t')) == [{'k': 1, 'raw': b'old'}]
        store.write('t', large[:100], overwrite=overwrite)  # the room is there again
        assert store.count('t') == 100 + (not overwrite)


MANY_FILES = """
import resource
import pyarrow as pa
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
store.create_table('t', pa.schema([('k', 'int64'), ('v', 'int64')]), ['k'])
store.write('t', [{'k': at, 'v': at} for at in range(600)])
print(store.count('t'), sum(store.bulk_read('t')['v'].to_pylist()))
"""


def test_many_partitions_do_not_keep_their_files_open(python: Callable[..., subprocess.Popen[str]]) -> None:
    assert finish(python(MANY_FILES)) == f'600 {sum(range(600))}\n'


def legacy(root: Path, entry: dict[str, object]) -> None:
    (root / '_registry').mkdir(parents=True)
    (root / '_registry' / 'tables.json').write_text(
        json.dumps({'images': entry, 'empty': {**entry, 'partition_by': None}})
    )
    table = pa.Table.from_pylist([image(at, month=1 + at % 2) for at in range(10)], schema=to_arrow_schema(Image))
    pq.write_to_dataset(table, root / 'images', partition_cols=PARTITION_BY)


FIELDS = [{'name': field.name, 'type': str(field.type), 'nullable': field.nullable} for field in to_arrow_schema(Image)]


@pytest.mark.parametrize('place', ['', '_registry/tables.json'])
def test_an_older_store_is_migrated(root: Path, reopen: Opener, capsys: pytest.CaptureFixture[str], place: str) -> None:
    legacy(root, {'schema_fields': FIELDS, 'partition_by': PARTITION_BY})
    store = reopen()
    assert store.count('images') == 10  # read as it is, before
    before = {path: path.read_bytes() for path in data_files(root)}
    assert main([str(root / place)]) == 0
    assert capsys.readouterr().out == '2 tables migrated: images, empty\n'
    assert main([str(root / place)]) == 0
    assert capsys.readouterr().out == '0 tables migrated\n'
    assert {path: path.read_bytes() for path in data_files(root)} == before
    assert store.get_schema('images') == to_arrow_schema(Image)
    store.write('images', [image(at, month=1) for at in range(3)], overwrite=True)
    assert sorted(row['month'] for row in reopen().read('images')) == [1, 1, 1, 2, 2, 2, 2, 2]
    entries = json.loads((root / '_registry' / 'tables.json').read_text())
    assert {name: entry['partition_by'] for name, entry in entries.items()} == {'images': PARTITION_BY, 'empty': None}
    assert all('schema_ipc' in entry for entry in entries.values())


def test_what_cannot_be_migrated_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root)]) == 1
    assert 'no _registry/tables.json' in capsys.readouterr().err
    legacy(root, {'partition_by': None})
    assert main([str(root)]) == 1
    assert 'does not say what table' in capsys.readouterr().err
    (root / '_registry' / 'tables.json').write_text('{"images": ')
    assert main([str(root)]) == 1
    assert 'is no JSON' in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main([])
    assert wrong.value.code == 2
    capsys.readouterr()


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name('amplify-db-migrate')
    done = subprocess.run([command, '--help'], capture_output=True, text=True, check=True)
    assert 'tables.json' in done.stdout


def test_the_rules_of_an_older_registry_hold(root: Path, store: DuckDBParquetStore) -> None:
    legacy(root, {'schema_fields': FIELDS, 'partition_by': PARTITION_BY})
    with pytest.raises(ValueError, match='partition_by'):
        store.create_table('images', Image, partition_by=['year'])
    with pytest.raises(BadRecord):
        store.write('images', [{}])
    assert not (root / 'images' / '_delta_log').exists()
    assert issubclass(DamagedData, StoreError)
