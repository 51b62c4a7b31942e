"""What a table is: creation, evolution, registration, the registry."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field

from amplify_db_utils import ColumnarStore, DuckDBParquetStore, SchemaConflict, TableNotFound
from amplify_db_utils.schema import to_arrow_schema
from tests.columnar_store.conftest import Opener
from tests.columnar_store.models import PARTITION_BY, Image, image

pytestmark = [pytest.mark.integration, pytest.mark.parquet]


class Everything(BaseModel):
    text: str
    number: int
    real: float
    flag: bool
    moment: datetime
    day: date
    raw: bytes
    blob: dict[str, Any]
    plain_blob: dict
    words: list[str]
    moments: list[datetime]
    maybe: str | None
    defaulted: int = 3
    bounded: int = Field(ge=0)


def test_a_model_becomes_a_schema() -> None:
    schema = to_arrow_schema(Everything)
    assert [str(field.type) for field in schema] == [
        *('string', 'int64', 'double', 'bool', 'timestamp[us, tz=UTC]', 'date32[day]', 'binary'),
        *('large_string', 'large_string', 'list<item: string>', 'list<item: timestamp[us, tz=UTC]>'),
        *('string', 'int64', 'int64'),
    ]
    assert [field.name for field in schema if field.nullable] == ['maybe', 'defaulted']


def test_an_annotation_without_a_type_is_refused_by_name() -> None:
    class Odd(BaseModel):
        things: list

    class Odder(BaseModel):
        either: int | str

    for model in (Odd, Odder):
        with pytest.raises(TypeError, match='Unsupported annotation'):
            to_arrow_schema(model)
    with pytest.raises(TypeError, match='Pydantic model'):
        to_arrow_schema('text')  # type: ignore[arg-type]


def test_creating_twice_changes_nothing(images: DuckDBParquetStore, root: Path) -> None:
    before = (root / '_registry' / 'tables.json').stat().st_mtime_ns
    images.create_table('images', Image, partition_by=PARTITION_BY)
    assert images.log('images').snapshot().version == 0
    assert (root / '_registry' / 'tables.json').stat().st_mtime_ns == before


class Noted(Image):
    notes: str | None = None


class NotedByNumber(Image):
    notes: int | None = None


def test_a_nullable_column_is_added_and_old_rows_read_as_null(images: DuckDBParquetStore, reopen: Opener) -> None:
    older = reopen()
    images.write('images', [image(1)])
    images.create_table('images', Noted, partition_by=PARTITION_BY)
    images.write('images', [image(2, notes='x')])
    older.write('images', [image(3)])  # a handle from before
    assert {row['image_id']: row['notes'] for row in older.read('images')} == {
        'image 00001': None,
        'image 00002': 'x',
        'image 00003': None,
    }
    assert images.count('images', {'notes': None}) == 2


class Fewer(BaseModel):
    image_id: str
    instrument: str
    year: int
    month: int


class OtherType(Image):
    year: str  # type: ignore[assignment]


class NowRequired(Image):
    area: float  # type: ignore[assignment]


class NewRequired(Image):
    notes: str


@pytest.mark.parametrize(
    ('model', 'keys', 'match'),
    [
        (Fewer, PARTITION_BY, 'cannot be removed'),
        (OtherType, PARTITION_BY, 'Cannot change type'),
        (NowRequired, PARTITION_BY, 'cannot become required'),
        (NewRequired, PARTITION_BY, 'must be nullable'),
        (Image, ['instrument'], 'partition_by'),
        (Image, None, 'partition_by'),
        (Image, ['year', 'instrument', 'month'], 'partition_by'),
    ],
)
def test_other_changes_are_refused_and_change_nothing(
    images: DuckDBParquetStore, reopen: Opener, root: Path, model: type[BaseModel], keys: list[str] | None, match: str
) -> None:
    opened_earlier = reopen()
    opened_earlier.count('images')
    registry = (root / '_registry' / 'tables.json').read_bytes()
    for handle in (images, opened_earlier, reopen()):
        with pytest.raises(SchemaConflict, match=match):
            handle.create_table('images', model, partition_by=keys)
        with pytest.raises(ValueError, match=match):
            handle.register_table('images', model, partition_by=keys)
        assert handle.get_schema('images') == to_arrow_schema(Image)
    assert (root / '_registry' / 'tables.json').read_bytes() == registry
    assert images.log('images').snapshot().version == 0


def test_a_handle_opened_earlier_cannot_take_back_what_another_added(
    images: DuckDBParquetStore, reopen: Opener
) -> None:
    opened_earlier = reopen()
    opened_earlier.create_table('images', Image, partition_by=PARTITION_BY)
    images.create_table('images', Noted, partition_by=PARTITION_BY)
    for model, match in ((Image, 'cannot be removed'), (NotedByNumber, 'Cannot change type')):
        with pytest.raises(ValueError, match=match):
            opened_earlier.create_table('images', model, partition_by=PARTITION_BY)
    assert reopen().get_schema('images') == opened_earlier.get_schema('images') == to_arrow_schema(Noted)


def test_a_table_registered_earlier_follows_what_others_add(images: DuckDBParquetStore, reopen: Opener) -> None:
    class Looser(Noted):
        timestamp: datetime | None  # type: ignore[assignment]

    class Placed(Image):
        place: str | None = None

    worker = reopen()
    worker.register_table('images', Placed, partition_by=PARTITION_BY)
    images.create_table('images', Looser, partition_by=PARTITION_BY)
    images.write('images', [image(1, notes='x', timestamp=None)])
    assert next(worker.read('images', columns=['notes', 'place'])) == {'notes': 'x', 'place': None}
    worker.write('images', [image(2, notes='y', place='z', timestamp=None)])
    assert images.get_schema('images').names == [*Image.model_fields, 'notes', 'place']
    assert images.count('images', {'timestamp': None, 'notes': {'in': ['x', 'y']}}) == 2


@pytest.mark.parametrize(
    ('model', 'keys', 'match'), [(OtherType, ['month'], 'Cannot change type'), (Image, ['year'], 'partition_by')]
)
def test_a_registered_table_that_another_made_differently_is_refused(
    images: DuckDBParquetStore, reopen: Opener, model: type[BaseModel], keys: list[str], match: str
) -> None:
    worker = reopen()
    worker.register_table('late', model, partition_by=keys)
    assert worker.count('late') == 0
    images.create_table('late', Image, partition_by=['month'])
    for use in (lambda: worker.count('late'), lambda: worker.write('late', [image(1)]), lambda: worker.read('late')):
        with pytest.raises(SchemaConflict, match=match):
            use()
    assert images.log('late').snapshot().version == 0


def test_a_required_column_may_become_nullable(images: DuckDBParquetStore) -> None:
    class Looser(Image):
        timestamp: datetime | None  # type: ignore[assignment]

    images.create_table('images', Looser, partition_by=PARTITION_BY)
    images.write('images', [image(1, timestamp=None)])
    assert images.get_schema('images').field('timestamp').nullable
    assert next(images.read('images'))['timestamp'] is None


@pytest.mark.parametrize(
    ('schema', 'keys', 'match'),
    [
        (pa.schema([('a', 'int64')]), ['b'], 'not present in the schema'),
        (pa.schema([('a', 'int64'), ('b', 'int64')]), ['a', 'a'], 'twice'),
        (pa.schema([('a', 'int64')]), ['a'], 'every one'),
        (pa.schema([('a', 'int64'), ('A', 'int64')]), None, 'case'),
        (pa.schema([('a', pa.list_(pa.int64())), ('b', 'int64')]), ['a'], 'cannot be a partition key'),
        (pa.schema([('a', 'int64'), ('b', 'int64')]), 'a', 'list of columns'),
        (pa.schema([('a', 'int64'), ('b', 'int64')]), 5, 'list of columns'),
        (pa.schema([('a', 'int64'), ('b', 'int64')]), [5], 'not present in the schema'),
        (pa.schema([]), None, 'at least one column'),
        (pa.schema([('a', 'int64'), ('b\x00c', 'int64')]), None, 'NUL'),
    ],
)
def test_what_cannot_be_a_table_is_refused(store: DuckDBParquetStore, schema: pa.Schema, keys: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        store.create_table('t', schema, partition_by=keys)
    assert store.tables() == []


def test_unknown_tables(store: DuckDBParquetStore) -> None:
    for use in (
        lambda: store.write('none', [{}]),
        lambda: store.read('none'),
        lambda: store.bulk_read('none'),
        lambda: store.count('none'),
        lambda: store.get_schema('none'),
        lambda: store.distinct_values('none', ['a']),
        lambda: store.join('none', 'none', 'a'),
        lambda: store.compact('none'),
        lambda: store.vacuum('none'),
    ):
        for kind in (KeyError, RuntimeError, TableNotFound):
            with pytest.raises(kind, match="table 'none' is not registered"):
                use()


def test_registering_writes_nothing_and_makes_the_table_usable(reopen: Opener, root: Path) -> None:
    root.mkdir()
    worker = reopen()
    worker.register_table('images', Image, partition_by=PARTITION_BY)
    assert worker.count('images') == 0
    assert list(worker.read('images')) == []
    assert worker.get_schema('images').names == list(Image.model_fields)
    assert list(root.iterdir()) == []
    worker.write('images', [image(1)])
    assert reopen().count('images') == 1


def test_a_registered_column_is_added_by_the_first_write(images: DuckDBParquetStore, reopen: Opener) -> None:
    images.write('images', [image(1)])
    worker = reopen()
    worker.register_table('images', Noted, partition_by=PARTITION_BY)
    assert next(worker.read('images'))['notes'] is None
    assert images.get_schema('images') == to_arrow_schema(Image)
    worker.write('images', [image(2, notes='y')])
    assert images.get_schema('images').names[-1] == 'notes'


def hive(folder: Path, **partitions: pa.Table) -> None:
    for name, table in partitions.items():
        (folder / name.replace('__', '=')).mkdir(parents=True)
        pq.write_table(table, folder / name.replace('__', '=') / 'data.parquet')


def test_an_existing_hive_directory_is_adopted_without_rewriting(store: DuckDBParquetStore, root: Path) -> None:
    schema = pa.schema([('id', 'int64'), ('year', 'int64')])
    hive(root / 'old', year__2023=pa.table({'id': [1, 2]}), year__2024=pa.table({'id': [3]}))
    files = {path: path.read_bytes() for path in (root / 'old').rglob('*.parquet')}
    store.register_table('old', schema, partition_by=['year'])
    assert store.count('old') == 3
    assert store.distinct_values('old', ['year']) == [{'year': 2023}, {'year': 2024}]
    assert store.bulk_read('old', {'year': 2024}).to_pylist() == [{'id': 3, 'year': 2024}]
    assert not (root / 'old' / '_delta_log').exists()
    store.write('old', [{'id': 4, 'year': 2023}], overwrite=True)
    assert sorted(row['id'] for row in store.read('old')) == [3, 4]
    assert all(path.read_bytes() == data for path, data in files.items())


def test_a_directory_in_another_layout_is_no_table(store: DuckDBParquetStore, root: Path) -> None:
    hive(root / 'old', month__1=pa.table({'id': [1]}))
    schema = pa.schema([('id', 'int64'), ('year', 'int64')])
    with pytest.raises(SchemaConflict, match='month=1'):
        store.register_table('old', schema, partition_by=['year'])
    with pytest.raises(SchemaConflict, match='month=1'):
        store.create_table('old', schema, partition_by=['year'])


def test_files_of_another_type_are_no_table(store: DuckDBParquetStore, root: Path) -> None:
    hive(root / 'old', year__1=pa.table({'id': [[1]]}))
    with pytest.raises(SchemaConflict, match=r'has .id. as list'):
        store.create_table('old', pa.schema([('id', 'int64'), ('year', 'int64')]), partition_by=['year'])


def test_the_registry_is_plain_json_for_arrows_file_systems(images: DuckDBParquetStore, root: Path) -> None:
    filesystem, path = pafs.LocalFileSystem(), str(root / '_registry' / 'tables.json')
    with filesystem.open_input_stream(path) as stream:
        entries = json.loads(stream.read())
    assert entries['images']['partition_by'] == PARTITION_BY
    assert entries['images']['columns'] == list(Image.model_fields)
    entries['foreign'] = {'schema_fields': [{'name': 'id', 'type': 'int64', 'nullable': True}], 'partition_by': None}
    with filesystem.open_output_stream(path) as stream:
        stream.write(json.dumps(entries).encode())
    images.create_table('more', Image)
    assert set(json.loads(Path(path).read_text())) == {'images', 'foreign', 'more'}
    assert images.tables() == ['foreign', 'images', 'more']
    images.write('foreign', [{'id': 5}])
    assert images.bulk_read('foreign').to_pylist() == [{'id': 5}]


def test_data_files_are_plain_parquet_in_hive_directories(images: DuckDBParquetStore, root: Path) -> None:
    images.write('images', [image(at, instrument='a=b/c %') for at in range(20)])
    keys = pa.schema([to_arrow_schema(Image).field(key) for key in PARTITION_BY])
    files = sorted((root / 'images').glob('instrument=*/year=2024/month=*/*.parquet'))
    found = pads.dataset(
        files, partitioning=pads.partitioning(keys, flavor='hive'), partition_base_dir=str(root / 'images')
    ).to_table()
    assert len(files) == 12
    assert found.select(images.get_schema('images').names).sort_by('image_id').to_pylist() == (
        images.bulk_read('images').sort_by('image_id').to_pylist()
    )


def test_a_lost_registry_is_written_anew(images: DuckDBParquetStore, root: Path) -> None:
    (root / '_registry' / 'tables.json').unlink()
    assert images.count('images') == 0
    images.create_table('images', Image, partition_by=PARTITION_BY)
    assert (root / '_registry' / 'tables.json').exists()


def test_another_backend_can_stand_behind_the_same_class() -> None:
    with pytest.raises(TypeError, match='abstract'):
        ColumnarStore()  # type: ignore[abstract]
    assert issubclass(DuckDBParquetStore, ColumnarStore)


def test_a_moment_is_utc_in_schema_and_rows(store: DuckDBParquetStore) -> None:
    store.create_table('t', Everything)
    assert store.get_schema('t').field('moment').type.tz == 'UTC'
    assert datetime.now(UTC).tzinfo is UTC
