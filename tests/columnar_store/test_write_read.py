"""What goes in comes out: inputs, types, errors, projections, joins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import BaseModel

from amplify_db_utils import BadFilter, BadRecord, DuckDBParquetConfig, DuckDBParquetStore
from tests.columnar_store.conftest import finish
from tests.columnar_store.models import PARTITION_BY, Image, image

pytestmark = [pytest.mark.integration, pytest.mark.parquet, pytest.mark.usefixtures('taken_by')]
RECORDS = [image(number) for number in range(30)]


@pytest.mark.parametrize(
    'form',
    [
        list,
        pa.Table.from_pylist,
        pa.RecordBatch.from_pylist,
        pd.DataFrame,
        lambda records: pd.DataFrame(records).astype({'instrument': 'category'}),
    ],
    ids=['dicts', 'table', 'batch', 'frame', 'categories'],
)
def test_every_form_of_records(images: DuckDBParquetStore, form: Callable[..., Any]) -> None:
    images.write('images', form(RECORDS))
    assert sorted(images.read('images'), key=lambda row: row['image_id']) == RECORDS
    found = images.bulk_read('images')
    assert found.schema.equals(images.get_schema('images'))
    assert found.sort_by('image_id').to_pylist() == RECORDS


def test_many_records_are_one_file_for_each_partition(images: DuckDBParquetStore, root: Path) -> None:
    many = [image(number, month=number % 3) for number in range(2**18 + 5)]
    images.write('images', many)
    assert images.count('images') == len(many)
    assert images.count('images', {'month': 1}) == sum(record['month'] == 1 for record in many)
    files = sorted(root.rglob('*.parquet'))
    assert len(files) == 3
    for overwrite in (False, True):
        with pytest.raises(BadRecord, match=f'record {2**18 + 4} has .x.'):
            images.write('images', [*many[:-1], image(0, year='x')], overwrite=overwrite)
    assert images.count('images') == len(many)
    assert sorted(root.rglob('*.parquet')) == files


def test_partitions_keep_the_order_of_the_records(store: DuckDBParquetStore) -> None:
    schema = pa.schema({'k': pa.int64(), 'j': pa.int64(), 'v': pa.int64()})
    store.create_table('t', schema, partition_by=['k', 'j'])
    keys = [{'k': number % 12, 'j': number % 5} for number in range(60)]
    store.write('t', [key | {'v': value} for value in (0, 1) for key in keys])  # written by many threads at once
    assert store.bulk_read('t').to_pylist() == [key | {'v': value} for key in keys for value in (0, 1)]
    assert store.distinct_values('t', ['k', 'j']) == keys


@pytest.mark.slow  # it takes 7 GB of memory
@pytest.mark.parametrize('form', [list, pa.Table.from_pylist], ids=['dicts', 'table'])
def test_more_text_than_one_array_holds(store: DuckDBParquetStore, form: Callable[..., Any]) -> None:
    store.create_table('t', pa.schema({'k': pa.int64(), 'v': pa.string()}), partition_by=['k'])
    text = 'x' * 3000
    records = [{'k': at % 3, 'v': text} for at in range(2**31 // len(text) + 5)]
    store.write('t', form(records))
    lengths = pc.binary_length(store.bulk_read('t').column('v'))
    assert pc.value_counts(lengths).to_pylist() == [{'values': len(text), 'counts': len(records)}]
    assert store.count('t', {'k': 2}) == sum(record['k'] == 2 for record in records)


class Everything(BaseModel):
    key: int
    text: str
    number: int
    real: float
    flag: bool
    moment: datetime
    day: date
    raw: bytes
    blob: dict
    words: list[str]
    moments: list[datetime]
    maybe: str | None = None
    maybe_number: int | None = None
    maybe_moment: datetime | None = None
    maybe_words: list[str] | None = None


def everything(key: int, **changes: Any) -> dict[str, Any]:
    return {
        'key': key,
        'text': '42',
        'number': -(2**63),
        'real': 1.5,
        'flag': True,
        'moment': datetime(2024, 5, 17, 12, 0, 0, 123456, tzinfo=UTC),
        'day': date(2024, 5, 17),
        'raw': b'\x00\xff',
        'blob': '{"a": [1, null], "ü": "😀"}',
        'words': ['', 'b'],
        'moments': [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)],
        'maybe': None,
        'maybe_number': None,
        'maybe_moment': None,
        'maybe_words': None,
    } | changes


def test_declared_types_are_the_types_read(store: DuckDBParquetStore) -> None:
    rows = [
        everything(1),
        everything(2, maybe='x', maybe_number=2**53 + 1, maybe_moment=datetime(1969, 1, 1, tzinfo=UTC), maybe_words=[]),
    ]
    store.create_table('t', Everything, partition_by=['key'])
    store.write('t', rows)
    found = sorted(store.read('t'), key=lambda row: row['key'])
    assert found == rows
    for row in found:
        assert {name: type(value) for name, value in row.items()} | {} == {
            name: type(value) for name, value in rows[row['key'] - 1].items()
        }
    assert store.bulk_read('t').schema.equals(store.get_schema('t'))


def test_a_dict_is_stored_as_json_text(store: DuckDBParquetStore) -> None:
    store.create_table('t', Everything)
    value = {'a': [1, None, {'b': 'ü'}], 'nan': 1.5}
    store.write('t', [everything(1, blob=value), everything(2, blob='{}')])
    first, second = sorted(store.read('t'), key=lambda row: row['key'])
    assert json.loads(first['blob']) == value
    assert second['blob'] == '{}'
    assert store.bulk_read('t').schema.field('blob').type == pa.large_string()
    for wrong in (object(), float('nan')):
        with pytest.raises(BadRecord, match='no JSON'):
            store.write('t', [everything(1, blob={'x': wrong})])


def test_a_frame_brings_dicts_and_columns_that_the_table_lacks(store: DuckDBParquetStore) -> None:
    class Note(BaseModel):
        key: int
        blob: dict | None = None

    store.create_table('t', Note)
    values: list[Any] = [{'a': 1}, {'a': 'x', 'b': [None, {'c': 1}]}, None, {}, '{"text": 1}']
    frame = pd.DataFrame({'key': range(5), 'blob': values, 'other': [1, 'x', None, object(), {}]})
    store.write('t', frame)
    found = sorted(store.read('t'), key=lambda row: row['key'])
    assert [row['blob'] and json.loads(row['blob']) for row in found] == [*values[:4], {'text': 1}]
    with pytest.raises(BadRecord, match='record 1: no JSON'):
        store.write('t', pd.DataFrame({'key': [1, 2], 'blob': [{}, {'x': object()}]}))
    assert store.count('t') == 5


def test_naive_means_utc_and_other_zones_are_converted(store: DuckDBParquetStore) -> None:
    store.create_table('t', pa.schema([('at', pa.timestamp('us', 'UTC'))]))
    noon = datetime(2024, 5, 17, 12, tzinfo=UTC)
    there = timezone(timedelta(hours=5, minutes=30))
    store.write('t', [{'at': noon.replace(tzinfo=None)}])
    store.write('t', [{'at': noon}, {'at': noon.astimezone(there)}])
    store.write('t', [{'at': noon.astimezone(there)}])
    store.write('t', [{'at': noon.replace(tzinfo=None)}, {'at': noon.astimezone(there)}])
    store.write('t', pa.table({'at': pa.array([noon.replace(tzinfo=None)], pa.timestamp('ns'))}))
    assert [row['at'] for row in store.read('t')] == [noon] * 7


@pytest.mark.parametrize('unit', ['s', 'ms', 'us', 'ns'])
def test_a_moment_too_fine_for_its_column_is_refused_and_not_cut_off(store: DuckDBParquetStore, unit: str) -> None:
    second = datetime(2024, 5, 17, 12, tzinfo=UTC)
    whole = {'s': timedelta(seconds=1), 'ms': timedelta(milliseconds=1)}.get(unit, timedelta(microseconds=1))
    fits: list[list[Any]] = [
        [second + whole],
        [second + whole, None],
        [pd.Timestamp(second + whole)],
        [pd.Timestamp(second + whole), None],
        [second, pd.Timestamp(second + whole)],
    ]
    store.create_table('t', pa.schema([('at', pa.timestamp(unit, 'UTC'))]))
    for values in fits:
        store.write('t', [{'at': value} for value in values])
    expected = sorted(pd.Timestamp(value) for values in fits for value in values if value is not None)
    assert sorted(pd.Timestamp(row['at']) for row in store.read('t') if row['at'] is not None) == expected
    count = store.count('t')
    finer = {'s': 1_000_000, 'ms': 1_000, 'us': 1}.get(unit)
    if finer is None:
        too_fine: list[Any] = [datetime(1500, 1, 1, tzinfo=UTC)]
    else:
        too_fine = [pd.Timestamp((second + whole).isoformat()) + pd.Timedelta(finer, 'ns')]
        too_fine += [too_fine[0].to_pydatetime()] if unit != 'us' else []
    for value in too_fine:
        for values in ([value], [value, None], [second, value]):
            with pytest.raises(BadRecord, match="column 'at'"):
                store.write('t', [{'at': each} for each in values])
    assert store.count('t') == count


def test_years_that_nanoseconds_do_not_reach(store: DuckDBParquetStore) -> None:
    store.create_table('t', pa.schema([('at', pa.timestamp('us', 'UTC'))]))
    store.write('t', [{'at': pd.Timestamp('1500-01-01').as_unit('s')}, {'at': datetime(9999, 12, 31, tzinfo=UTC)}])
    assert sorted(row['at'].year for row in store.read('t')) == [1500, 9999]


WIDE = [
    (pa.uint8(), [0, 255]),
    (pa.uint16(), [0, 2**16 - 1]),
    (pa.uint32(), [0, 2**32 - 1]),
    (pa.uint64(), [0, 2**64 - 1]),
    (pa.int8(), [-128, 127]),
    (pa.float32(), [1.5, -0.25]),
    (pa.float16(), [1.5, -0.25]),
    (pa.decimal128(38, 3), [Decimal('-99999999999999999999999999999999999.999'), Decimal('0.001')]),
    (pa.decimal256(76, 0), [Decimal(10**76 - 1), Decimal(-1)]),
    (pa.timestamp('ns', 'UTC'), [1, 2**62 + 1]),
    (pa.timestamp('ns'), [1, 2**62 + 1]),
    (pa.timestamp('s', 'America/New_York'), [0, 10**9]),
    (pa.timestamp('us'), [0, 10**9]),
    (pa.date64(), [0, 86_400_000]),
    (pa.time64('ns'), [0, 1]),
    (pa.duration('ns'), [-1, 1]),
    (pa.binary(4), [b'abcd', b'\0\0\0\0']),
    (pa.large_binary(), [b'', b'x']),
    (pa.string_view(), ['', 'a longer text than fits a view']),
    (pa.dictionary(pa.int32(), pa.string()), ['a', 'b']),
    (pa.list_(pa.uint64()), [[2**64 - 1, None], []]),
    (
        pa.struct([('a', pa.uint64()), ('b', pa.decimal256(70, 0))]),
        [{'a': 2**64 - 1, 'b': Decimal(10**69)}, {'a': None, 'b': None}],
    ),
    (pa.map_(pa.string(), pa.uint32()), [[('a', 2**32 - 1)], []]),
]


@pytest.mark.parametrize(('kind', 'values'), WIDE, ids=[str(kind) for kind, _ in WIDE])
def test_types_that_the_log_lacks_come_back_exactly(
    store: DuckDBParquetStore, kind: pa.DataType, values: list[Any]
) -> None:
    if kind == pa.float16():
        column = pa.array(values, pa.float32()).cast(kind)
    elif pa.types.is_temporal(kind):
        column = pa.array(values, pa.int32() if pa.types.is_time32(kind) else pa.int64()).cast(kind)
    else:
        column = pa.array(values, kind)
    table = pa.table({'at': [0, 1], 'value': column})
    store.create_table('t', table.schema)
    store.write('t', table)
    assert store.get_schema('t').equals(table.schema)
    found = store.bulk_read('t')
    assert found.schema.equals(table.schema)
    assert found.equals(table)
    assert [row['at'] for row in store.read('t')] == [0, 1]
    assert len(store.distinct_values('t', ['at'])) == 2


def test_a_type_without_a_column_is_refused(store: DuckDBParquetStore) -> None:
    for kind in (pa.null(), pa.month_day_nano_interval(), pa.dense_union([pa.field('a', pa.int8())])):
        with pytest.raises(TypeError, match='no column can be of type'):
            store.create_table('t', pa.schema([('a', kind)]))


@pytest.mark.parametrize(
    ('records', 'match'),
    [
        ([image(1), image(2, year='2024')], 'record 1 has .2024.'),
        ([image(1), image(2, year=2024.5)], 'record 1 has 2024.5'),
        ([image(1), image(2, year=True)], 'record 1 has True'),
        ([image(1), image(2, year=2**63)], 'record 1 has 9223372036854775808'),
        ([image(1), image(2, image_id=7)], 'record 1 has 7'),
        ([image(1), image(2, image_id=b'x')], 'record 1 has b.x.'),
        ([image(1), image(2, image_id='\ud800')], 'record 1 has'),
        ([image(1), image(2, timestamp='2024-01-01')], 'record 1 has .2024-01-01.'),
        ([image(1), image(2, timestamp=None)], 'required and null in record 1'),
        ([image(1), image(2, area='x')], 'record 1 has .x.'),
        ([image(1), {'image_id': 'x'}], 'Missing required column .timestamp. in record 1'),
        (
            [image(1), {key: value for key, value in image(2).items() if key != 'month'}],
            'partition key .month. in record 1',
        ),
        ([image(1), 'text'], 'record 1 is no dict but str'),
        ([image(1), None], 'record 1 is no dict but NoneType'),
        ('text', 'list of dicts'),
        ({'image_id': 'x'}, 'list of dicts'),
        (7, 'list of dicts'),
        (None, 'list of dicts'),
        ((image(number) for number in range(3)), 'list of dicts'),
        ([image(1), Image(**image(2))], 'record 1 is no dict but Image'),
        (pd.DataFrame([image(1), image(2, year='2024')]), 'the DataFrame is no table'),
        (pd.DataFrame([image(1), image(2, year=2024.5)]), 'cannot hold the records exactly'),
        (pd.DataFrame([image(1), image(2, image_id=None)]), 'required and null in record 1'),
        (pd.DataFrame([image(1), image(2)]).drop(columns=['month']), 'partition key .month.'),
        (pd.DataFrame([image(1), image(2)])['year'], 'list of dicts'),
        (pa.table({'image_id': ['x']}), 'Missing required column .timestamp.'),
        (pa.Table.from_pylist(RECORDS).set_column(3, 'year', pa.array(['2024'] * 30)), 'the records bring text'),
        (pa.Table.from_pylist(RECORDS).set_column(3, 'year', pa.array([0.5] * 30)), 'cannot hold the records exactly'),
        (pa.Table.from_pylist(RECORDS).set_column(3, 'year', pa.array([2**63] * 30, pa.uint64())), 'exactly'),
        (pa.Table.from_pylist(RECORDS).set_column(1, 'timestamp', pa.array([1] * 30, pa.timestamp('ns'))), 'exactly'),
        (pa.Table.from_pylist(RECORDS).set_column(0, 'image_id', pa.nulls(30, pa.string())), 'required and null'),
        (pa.Table.from_pylist(RECORDS).append_column('year', pa.array([1] * 30)), 'occurs 2 times'),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_bad_record_refuses_the_whole_call(images: DuckDBParquetStore, root: Path, records: Any, match: str) -> None:
    images.write('images', RECORDS)
    before, files = images.log('images').snapshot(), sorted(root.rglob('*.parquet'))
    for overwrite in (False, True):
        with pytest.raises(BadRecord, match=match):
            images.write('images', records, overwrite=overwrite)
    assert images.log('images').snapshot().version == before.version
    assert images.count('images') == 30
    assert sorted(root.rglob('*.parquet')) == files


@pytest.mark.parametrize(
    ('kind', 'value'),
    [
        (pa.int64(), Decimal('1.5')),
        (pa.int64(), float('inf')),
        (pa.uint64(), -1),
        (pa.uint8(), 256),
        (pa.float64(), True),
        (pa.float64(), 2**60 + 1),
        (pa.bool_(), 1),
        (pa.string(), b'x'),
        (pa.binary(), 'x'),
        (pa.binary(2), b'abc'),
        (pa.date32(), datetime(2024, 1, 1, 5, tzinfo=UTC)),
        (pa.date32(), 5),
        (pa.timestamp('us', 'UTC'), 5),
        (pa.timestamp('us', 'UTC'), 'now'),
        (pa.decimal128(5, 1), Decimal('1.55')),
        (pa.list_(pa.int64()), [1, 2.5]),
        (pa.list_(pa.int64()), [True]),
        (pa.list_(pa.string()), 'ab'),
        (pa.list_(pa.string()), [b'x']),
        (pa.large_string(), 5),
    ],
    ids=str,
)
def test_nothing_is_converted_without_a_word(store: DuckDBParquetStore, kind: pa.DataType, value: Any) -> None:
    store.create_table('t', pa.schema([('x', kind)]))
    with pytest.raises(BadRecord, match=r'record 1|exactly'):
        store.write('t', [{'x': None}, {'x': value}])
    assert store.count('t') == 0


def test_whole_numbers_are_numbers(store: DuckDBParquetStore) -> None:
    store.create_table('t', pa.schema([('x', 'int64'), ('y', 'float64')]))
    store.write('t', [{'x': 2.0, 'y': 3}, {'x': Decimal(7), 'y': None}])
    assert list(store.read('t')) == [{'x': 2, 'y': 3.0}, {'x': 7, 'y': None}]


def test_columns_that_the_table_lacks_are_left_out_and_nullable_ones_filled(images: DuckDBParquetStore) -> None:
    images.write('images', [image(1, extra='x')])
    images.write('images', [{name: value for name, value in image(2).items() if name != 'area'}, image(3)])
    images.write('images', pa.Table.from_pylist([image(4, extra='x')]).drop_columns(['area']))
    assert [row['area'] for row in sorted(images.read('images'), key=lambda row: row['image_id'])] == [
        0.5,
        None,
        1.5,
        None,
    ]


def test_overwrite_replaces_the_partitions_that_occur(images: DuckDBParquetStore) -> None:
    images.write('images', RECORDS)
    images.write('images', RECORDS)
    images.write('images', [image(100, month=1), image(101, month=2), image(102, month=99)], overwrite=True)
    by_month = {
        row['month']: images.count('images', {'month': row['month']})
        for row in images.distinct_values('images', ['month'])
    }
    assert by_month == {month: 6 if month <= 6 else 4 for month in range(1, 13)} | {1: 1, 2: 1, 99: 1}


def test_overwrite_without_partitions_replaces_the_table(store: DuckDBParquetStore) -> None:
    store.create_table('t', Image)
    store.write('t', RECORDS)
    store.write('t', RECORDS[:1], overwrite=True)
    assert list(store.read('t')) == RECORDS[:1]
    store.write('t', [])
    assert store.count('t') == 1
    store.write('t', [], overwrite=True)
    assert store.count('t') == 0


def test_projection(images: DuckDBParquetStore) -> None:
    images.write('images', RECORDS[:1])
    assert list(images.read('images', {'year': 2024}, columns=['month', 'image_id'])) == [
        {'month': 1, 'image_id': 'image 00000'}
    ]
    assert images.bulk_read('images', {'image_id': 'image 00000'}, columns=['year']).to_pydict() == {'year': [2024]}
    assert images.bulk_read('images', {'year': 1}, columns=['area', 'year']).schema.names == ['area', 'year']
    wrong: list[Any] = [[], ['nope'], ['year', 'year'], 'year', 5, [None], [['year']]]
    for columns in wrong:
        with pytest.raises(BadFilter):
            images.read('images', columns=columns)
        with pytest.raises(ValueError, match='column'):
            images.bulk_read('images', columns=columns)
        with pytest.raises(ValueError, match='column'):
            images.distinct_values('images', columns)


def test_count_and_distinct_values(images: DuckDBParquetStore) -> None:
    images.write('images', [*RECORDS, image(31, instrument='other'), image(32, area=None)])
    assert images.count('images') == 32
    assert images.count('images', {'instrument': 'other'}) == 1
    assert images.count('images', {'area': {'gte': 10}}) == 11
    assert images.distinct_values('images', ['instrument']) == [{'instrument': 'IFCB107'}, {'instrument': 'other'}]
    assert {row['month'] for row in images.distinct_values('images', ['month'], {'instrument': 'other'})} == {8}
    assert len(images.distinct_values('images', ['month', 'instrument'])) == 13
    assert images.distinct_values('images', ['area', 'year'], {'image_id': 'image 00032'}) == [
        {'area': None, 'year': 2024}
    ]
    assert len(images.distinct_values('images', ['image_id'])) == 32
    assert images.distinct_values('images', ['image_id'], {'year': 1}) == []


class Place(BaseModel):
    image_id: str
    lat: float
    year: int


@pytest.fixture
def joined(images: DuckDBParquetStore) -> DuckDBParquetStore:
    images.create_table('places', Place)
    images.write('images', RECORDS)
    images.write(
        'places', [{'image_id': f'image {number:05}', 'lat': 40.0 + number, 'year': 1} for number in (3, 4, 999)]
    )
    images.write('places', [{'image_id': 'image 00003', 'lat': 50.0, 'year': 2}])
    return images


def test_join(joined: DuckDBParquetStore) -> None:
    left = list(joined.join('places', 'images', 'image_id', select='left'))
    assert sorted(row['lat'] for row in left) == [43.0, 44.0, 50.0]
    assert set(left[0]) == {'image_id', 'lat', 'year'}
    right = list(joined.join('places', 'images', on='image_id', left_filters={'lat': {'lt': 44}}, select='right'))
    assert right == [RECORDS[3]]
    both = list(joined.join('places', 'images', on='image_id', right_filters={'image_id': 'image 00004'}))
    assert both == [{'image_id': 'image 00004', 'lat': 44.0, 'year': 1} | {
        'year_right': 2024, **{name: RECORDS[4][name] for name in ('timestamp', 'instrument', 'month', 'area')}
    }]  # fmt: skip
    assert list(joined.join('places', 'images', on='image_id', left_filters={'lat': {'gt': 90}})) == []


def test_results_are_read_side_by_side(joined: DuckDBParquetStore) -> None:
    one, two = joined.join('places', 'images', 'image_id'), joined.join('images', 'places', 'image_id')
    three = joined.read('images')
    taken = [next(one), next(two), next(three), next(one), next(two), next(three)]
    assert len(taken) + len(list(one)) + len(list(two)) + len(list(three)) == 3 + 3 + 30


INTERRUPTED = """
import os, signal, threading, time
import pyarrow as pa
numbers = pa.array(range(500_000))
store.create_table('t', pa.schema([('k', 'int64'), ('v', 'int64')]))
store.write('t', pa.table({'k': numbers, 'v': numbers}))

quiet = True
def ring(*_):
    if not quiet:
        raise KeyboardInterrupt
def bell():
    while True:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, ring)
threading.Thread(target=bell, daemon=True).start()

told = []
for use in (
    lambda: store.bulk_read('t', {'v': {'gte': 1000}}),
    lambda: store.count('t', {'v': {'gte': 1000}}),
    lambda: store.distinct_values('t', ['v']),
    lambda: sum(1 for _ in store.join('t', 't', 'k')),
):
    for _ in range(4):
        try:
            try:
                quiet = False
                while True:
                    use()
            finally:
                quiet = True
        except BaseException as error:
            told.append(type(error).__name__)
assert store.count('t', {'v': {'lt': 1000}}) == 1000
print(told)
"""


def test_an_interrupt_of_a_query_is_one(python: Callable[..., subprocess.Popen[str]]) -> None:
    assert finish(python(INTERRUPTED)) == f'{["KeyboardInterrupt"] * 16}\n'


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        ({'on': 'nope'}, 'no columns'),
        ({'on': 'lat'}, 'no columns'),
        ({'on': 'image_id', 'select': 'all'}, 'select'),
        ({'on': 'image_id', 'select': 'both; DROP TABLE x'}, 'select'),
        ({'on': 'image_id', 'select': ['left']}, 'select'),
        ({'on': None}, 'on one column'),
        ({'on': ['image_id']}, 'on one column'),
        ({'on': 'image_id', 'left_filters': {'nope': 1}}, 'no column'),
        ({'on': 'image_id', 'right_filters': {'nope': 1}}, 'no column'),
        ({'on': 'image_id', 'right_filters': {'lat': {'eq': 1}}}, 'no column'),
        ({'on': 'image_id', 'left_filters': {'lat': {'eq': 1}}}, 'unknown operator'),
    ],
)
def test_bad_joins(joined: DuckDBParquetStore, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(BadFilter, match=match):
        joined.join('places', 'images', **arguments)


def test_joining_on_different_types_is_refused(joined: DuckDBParquetStore) -> None:
    joined.create_table('other', pa.schema([('image_id', 'int64'), ('x', 'int64')]))
    with pytest.raises(BadFilter, match='cannot be joined on'):
        joined.join('other', 'images', 'image_id')


def test_an_append_over_many_partitions(store: DuckDBParquetStore) -> None:
    store.create_table('t', pa.schema([('k', 'int64'), ('v', 'int64')]), partition_by=['k'])
    table = pa.table({'k': [number % 1500 for number in range(3000)], 'v': range(3000)})
    store.write('t', table)
    assert store.count('t') == 3000
    assert len(store.distinct_values('t', ['k'])) == 1500
    assert sorted(store.bulk_read('t', {'k': 7})['v'].to_pylist()) == [7, 1507]


def test_a_closed_or_wrong_config() -> None:
    for wrong in ('', 's3://', 'gs://bucket/x'):
        with pytest.raises(ValueError, match='root'):
            DuckDBParquetStore(DuckDBParquetConfig(root=wrong))
    with pytest.raises(ValueError, match='threads'):
        DuckDBParquetConfig(root='x', threads=0)
    with pytest.raises(ValueError, match='go together'):
        DuckDBParquetConfig(root='x', s3_access_key='a')
    assert 'hush' not in repr(DuckDBParquetConfig(root='x', s3_access_key='a', s3_secret_key='hush'))


def test_partition_keys_of_every_kind(store: DuckDBParquetStore) -> None:
    kinds = {
        'flag': (pa.bool_(), [True, False, None]),
        'moment': (pa.timestamp('us', 'UTC'), [datetime(2024, 1, 1, 1, 2, 3, 4, tzinfo=UTC), datetime(1900, 1, 1, tzinfo=UTC), None]),
        'nanos': (pa.timestamp('ns', 'UTC'), [None, None, None]),
        'local': (pa.timestamp('us'), [datetime(2024, 1, 1), None, datetime(2025, 1, 1)]),  # noqa: DTZ001
        'day': (pa.date32(), [date(2024, 1, 1), date(1900, 1, 1), None]),
        'big': (pa.uint64(), [2**64 - 1, 0, None]),
        'real': (pa.float64(), [0.1, -1e300, None]),
        'money': (pa.decimal128(10, 2), [Decimal('1.10'), Decimal('-0.01'), None]),
    }  # fmt: skip
    schema = pa.schema([('id', pa.int64()), *((name, kind) for name, (kind, _) in kinds.items())])
    store.create_table('t', schema, partition_by=list(kinds))
    rows = [{'id': at, **{name: values[at] for name, (_, values) in kinds.items()}} for at in range(3)]
    store.write('t', rows)
    store.write('t', rows, overwrite=True)
    assert sorted(store.read('t'), key=lambda row: row['id']) == rows
    for name, (_, values) in kinds.items():
        for value in values:
            expected = [at for at, other in enumerate(values) if other == value]
            assert sorted(row['id'] for row in store.read('t', {name: value})) == expected, (name, value)
    assert PARTITION_BY
