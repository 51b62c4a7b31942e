"""Any text is just data: names of tables and columns, values, roots."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_db_utils import DuckDBParquetConfig, DuckDBParquetStore
from amplify_db_utils.names import partition_texts, partition_values, table_directory, table_name
from tests.columnar_store.conftest import Opener

pytestmark = [pytest.mark.integration, pytest.mark.parquet]

VALUES = [
    *(
        '',
        ' ',
        'a b',
        'a/b',
        '/',
        '..',
        '../..',
        '../../etc/passwd',
        '.',
        '100%',
        '%2F',
        '%',
        'a=b',
        '=',
        '&',
        '?x=1',
        '#',
    ),
    *(
        "it's",
        '"',
        "'; DROP TABLE images; --",
        '\\',
        '\\0',
        '\\\\',
        '\x00',
        '\n',
        '\t',
        '*',
        '[x]',
        '{a,b}',
        '~',
        '$HOME',
    ),
    *(
        'ü',
        '日本',
        '😀',
        'e\u0301',
        '\u202e',
        '__HIVE_DEFAULT_PARTITION__',
        'null',
        'NULL',
        'None',
        '42',
        '1e3',
        'true',
        '_x',
        '.x',
    ),
    *('x' * 1000, 'ü' * 300),
]


def assert_inside(root: Path) -> None:
    """Nothing was written beside the root, and everything below it is where a table may have it."""
    assert list(root.parent.iterdir()) == [root]


def test_partition_values_of_any_text(store: DuckDBParquetStore, reopen: Opener, root: Path) -> None:
    schema = pa.schema([('k', pa.string()), ('b', pa.bool_()), ('v', pa.int64())])
    store.create_table('t', schema, partition_by=['k', 'b'])
    rows = [{'k': value, 'b': [True, False, None][at % 3], 'v': at} for at, value in enumerate([*VALUES, None])]
    store.write('t', rows)
    for handle in (store, reopen()):
        assert sorted(handle.read('t'), key=lambda row: row['v']) == rows
        found = handle.distinct_values('t', ['k'])
        assert len(found) == len(rows)
        assert {row['k'] for row in found} == {*VALUES, None}
        for row in rows:
            assert list(handle.read('t', {'k': row['k']})) == [row]
            assert handle.count('t', {'k': {'in': [row['k']]}}) == 1
    store.write('t', [row | {'v': row['v'] + 1000} for row in rows], overwrite=True)
    store.write('t', rows)
    assert store.compact('t') == 2 * len(rows)
    assert len(store.vacuum('t', retention_hours=0)) == 3 * len(rows)
    assert sorted(row['v'] for row in store.read('t')) == [*range(len(rows)), *range(1000, 1000 + len(rows))]
    assert_inside(root)


def test_values_of_any_text_in_an_ordinary_column(store: DuckDBParquetStore) -> None:
    store.create_table('t', pa.schema([('k', pa.string()), ('v', pa.int64())]))
    store.write('t', [{'k': value, 'v': at} for at, value in enumerate(VALUES)])
    for at, value in enumerate(VALUES):
        assert [row['v'] for row in store.read('t', {'k': value})] == [at]
    assert {row['k'] for row in store.distinct_values('t', ['k'])} == set(VALUES)


@pytest.mark.parametrize('name', [value for value in VALUES if value and len(value) < 100])
def test_a_table_of_any_name(store: DuckDBParquetStore, reopen: Opener, root: Path, name: str) -> None:
    store.create_table(name, pa.schema([('k', pa.string()), ('v', pa.int64())]), partition_by=['k'])
    store.write(name, [{'k': 'a', 'v': 1}])
    assert reopen().count(name, {'k': 'a'}) == 1
    assert len(list(store.join(name, name, 'k'))) == 1
    assert store.tables() == [name]
    assert_inside(root)
    assert {path.name for path in root.iterdir()} == {'_registry', table_directory(name)}


@pytest.mark.parametrize('name', ['', None, 7, 'x' * 300, '\ud800'])
def test_what_is_no_table_name(store: DuckDBParquetStore, name: object) -> None:
    with pytest.raises(ValueError, match=r'name|surrogates'):
        store.create_table(name, pa.schema([('v', 'int64')]))  # type: ignore[arg-type]


def test_the_registry_is_no_table(store: DuckDBParquetStore) -> None:
    store.create_table('_registry', pa.schema([('v', 'int64')]))
    store.create_table('_delta_log', pa.schema([('v', 'int64')]))
    assert store.tables() == ['_delta_log', '_registry']


def test_columns_of_any_name(store: DuckDBParquetStore, reopen: Opener) -> None:
    names = [value for value in VALUES if value and len(value) < 100 and value not in {'NULL', 'null', '\x00'}]
    names += ['from', 'select', 'path', 'p0', 'rows', 'camelCase', 'file_index', 'filename', 'rowid']
    schema = pa.schema([(name, pa.int64()) for name in names])
    keys = [names[0], "it's", 'a/b', 'a=b', '..', '100%']
    store.create_table('t', schema, partition_by=keys)
    row = {name: at for at, name in enumerate(schema.names)}
    store.write('t', [row, {name: value + 1 for name, value in row.items()}])
    for handle in (store, reopen()):
        assert list(handle.read('t', {'"': row['"'], "it's": row["it's"]})) == [row]
        for name in schema.names:
            assert handle.count('t', {name: {'lt': row[name] + 1}}) == 1
            assert handle.bulk_read('t', {name: {'lt': row[name] + 1}}).to_pylist() == [row]
            assert len(handle.distinct_values('t', list({name, 'path'}))) == 2
        joined = sorted(handle.join('t', 't', names[3], select='left'), key=lambda found: found['/'])
        assert joined == [row, {name: value + 1 for name, value in row.items()}]


ROOTS = [
    "it's",
    'a "b"',
    'a*b',
    'a?b',
    '[x]',
    '{a,b}',
    'a%2Fb',
    '100%',
    '%',
    'a b ',
    '#x',
    'ü 日本 😀',
    'a\\b',
    'a\nb',
    '$HOME',
    'a;b',
    '<|>',
    '=',
    '~',
    'a:b',
    'a,b@c+d',
    '-a',
]


@pytest.mark.parametrize('name', ROOTS)
def test_a_root_of_any_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    for expected in (2, 4):
        with DuckDBParquetStore(DuckDBParquetConfig(root=root)) as store:
            store.create_table('t', pa.schema([('k', pa.string()), ('v', pa.int64())]), partition_by=['k'])
            store.write('t', [{'k': 'a', 'v': 1}, {'k': 'b', 'v': 2}])
            assert store.count('t', {'v': {'gte': 1}}) == len(list(store.read('t'))) == expected
    with DuckDBParquetStore(DuckDBParquetConfig(root=root)) as store:
        store.write('t', [{'k': 'a', 'v': 9}], overwrite=True)
        assert store.compact('t') == 2
        assert len(store.vacuum('t', 0)) == 4
        assert sorted(row['v'] for row in store.read('t')) == [2, 2, 9]
        assert store.tables() == ['t']
    assert_inside(root)


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with DuckDBParquetStore(DuckDBParquetConfig(root='here')) as store:
        monkeypatch.chdir('/')
        store.create_table('t', pa.schema([('v', 'int64')]))
    assert (tmp_path / 'here' / 't').is_dir()


@given(st.text(min_size=1, max_size=30))
def test_a_tables_directory_tells_its_name(name: str) -> None:
    directory = table_directory(name)
    assert table_name(directory) == name
    assert '/' not in directory
    assert '%' not in directory
    assert not directory.startswith('.')
    assert directory != '_registry'


@given(st.lists(st.none() | st.text(max_size=10), min_size=1))
def test_partition_texts_tell_their_values(values: list[str | None]) -> None:
    texts = partition_texts(pa.array(values, pa.string()))
    assert '' not in texts  # the log would read it as null
    assert partition_values(pa.chunked_array([pa.array(texts, pa.string())])).to_pylist() == values
