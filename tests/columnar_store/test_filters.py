"""Filters against a plain-Python oracle, and every wrong filter."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amplify_db_utils import BadFilter, DuckDBParquetConfig, DuckDBParquetStore

pytestmark = [pytest.mark.integration, pytest.mark.parquet]

MOMENTS = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=7 * step, microseconds=step) for step in range(8)]
TEXTS = ['', 'a', 'A', 'b', "it's", '100%', 'a/b', '..', 'ü', '😀', '\\0', '\\', '_', "'; DROP TABLE x; --"]
SCHEMA = pa.schema(
    [
        pa.field('id', pa.int64(), nullable=False),
        ('text', pa.string()),
        ('number', pa.int64()),
        ('small', pa.uint8()),
        ('big', pa.uint64()),
        ('real', pa.float64()),
        ('money', pa.decimal128(10, 2)),
        ('flag', pa.bool_()),
        ('moment', pa.timestamp('us', 'UTC')),
        ('day', pa.date32()),
        ('nanos', pa.timestamp('ns', 'UTC')),
        ('raw', pa.binary(1)),
    ]
)
DOMAIN: dict[str, list[Any]] = {
    'text': TEXTS,
    'number': [-(2**63), -2, -1, 0, 1, 2, 3, 2**63 - 1],
    'small': [0, 1, 2, 255],
    'big': [0, 1, 2**63, 2**64 - 1],
    'real': [-math.inf, -1.5, -0.0, 0.5, 1.0, 1e300, math.inf, math.nan],
    'money': [Decimal('-1.50'), Decimal('0.00'), Decimal('0.01'), Decimal('99999999.99')],
    'flag': [True, False],
    'moment': MOMENTS,
    'day': [moment.date() for moment in MOMENTS],
    'nanos': MOMENTS,
    'raw': [b'\x00', b'a', b'\xff'],
}
BESIDE: dict[str, list[Any]] = {
    'number': [1.5, -0.5, 2.0, 2**70, -(2**70), math.inf, -math.inf, math.nan, Decimal('0.5')],
    'small': [-1, 256, 0.5, 10**30],
    'big': [-1, 2**64, 0.5],
    'real': [1, 2**53 + 1, 10**400, Decimal('0.5')],
    'money': [Decimal('0.005'), 0, 0.5, 10**9, -(10**9), math.nan],
    'moment': [MOMENTS[1] + timedelta(microseconds=1)],
}
COMPARE = {'gte': operator.ge, 'gt': operator.gt, 'lte': operator.le, 'lt': operator.lt}


def rows(count: int = 120) -> list[dict[str, Any]]:
    made = []
    for at in range(count):
        row: dict[str, Any] = {'id': at}
        for place, (name, values) in enumerate(DOMAIN.items()):
            choice = (at * (place + 3) + at // 7) % (len(values) + 1)
            row[name] = values[choice] if choice < len(values) else None
        made.append(row)
    return made


ROWS = rows()


@pytest.fixture(
    scope='module', params=[[], ['text', 'flag'], ['moment', 'number', 'big'], ['day', 'real', 'money']], ids=str
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBParquetStore]:
    """The same rows, partitioned in several ways and written in several files."""
    with DuckDBParquetStore(DuckDBParquetConfig(root=tmp_path_factory.mktemp('filters'))) as opened:
        opened.create_table('t', SCHEMA, partition_by=request.param)
        for part in range(3):
            opened.write('t', ROWS[part::3])
        yield opened


def holds(value: Any, wanted: Any) -> bool:
    """What a filter means, in Python."""
    if not isinstance(wanted, dict):
        return value is None if wanted is None else value is not None and value == wanted
    for op, other in wanted.items():
        if op == 'in':
            if not any(holds(value, one) for one in other):
                return False
        elif value is None or value != value or other != other or not COMPARE[op](value, other):
            return False
    return True


def values_for(name: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(DOMAIN[name] + BESIDE.get(name, []))


def wanted_for(name: str) -> st.SearchStrategy[Any]:
    one = values_for(name)
    members = st.lists(st.none() | one, max_size=4)
    choices = [st.none() | one, st.fixed_dictionaries({'in': members})]
    if name != 'flag':
        ranges = st.dictionaries(st.sampled_from(sorted(COMPARE)), one, min_size=1, max_size=3)
        choices += [ranges, st.builds(lambda bounds, chosen: bounds | {'in': chosen}, ranges, members)]
    return st.one_of(choices)


FILTERS = st.lists(st.sampled_from(sorted(DOMAIN)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: wanted_for(name) for name in names})
)


@example(filters={'real': -1.5})  # a row group of -1.5 and NaN has the bounds -1.5 and -1.5
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filters=FILTERS)
def test_a_filter_means_what_python_means(store: DuckDBParquetStore, filters: dict[str, Any]) -> None:
    expected = {row['id'] for row in ROWS if all(holds(row[name], wanted) for name, wanted in filters.items())}
    assert set(store.bulk_read('t', filters, columns=['id'])['id'].to_pylist()) == expected
    whole = store.bulk_read('t', filters)
    streamed = store.read_batches('t', filters).read_all()
    assert whole.schema == streamed.schema == SCHEMA
    assert str(whole.to_pylist()) == str(streamed.to_pylist())  # as text: NaN differs from itself
    assert store.count('t', filters) == len(expected)
    assert {row['id'] for row in store.read('t', filters)} == expected
    distinct = {row['text'] for row in store.distinct_values('t', ['text'], filters)}
    assert distinct == {row['text'] for row in ROWS if row['id'] in expected}


def ids(store: DuckDBParquetStore, filters: dict[str, Any]) -> set[int]:
    return {row['id'] for row in store.read('t', filters, columns=['id'])}


@pytest.mark.parametrize(
    'text', ['2024-01-01T14:00:00.000002', '2024-01-01 14:00:00.000002Z', '2024-01-01T19:30:00.000002+05:30']
)
def test_date_texts_mean_utc_whatever_the_machines_zone(
    store: DuckDBParquetStore, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('TZ', 'Pacific/Kiritimati')
    assert ids(store, {'moment': text}) == {row['id'] for row in ROWS if row['moment'] == MOMENTS[2]}
    assert ids(store, {'nanos': text}) == {row['id'] for row in ROWS if row['nanos'] == MOMENTS[2]}
    after = {row['id'] for row in ROWS if row['moment'] and row['moment'] >= datetime(2024, 1, 2, tzinfo=UTC)}
    assert ids(store, {'moment': {'gte': '2024-01-02'}}) == ids(store, {'moment': {'gte': date(2024, 1, 2)}}) == after
    assert ids(store, {'day': '2024-01-02'}) == ids(store, {'day': datetime(2024, 1, 2)})  # noqa: DTZ001


def test_numpy_values_are_values(store: DuckDBParquetStore) -> None:
    assert ids(store, {'number': np.int64(3)}) == ids(store, {'number': 3}) != set()
    assert ids(store, {'number': {'in': np.array([1, 2])}}) == ids(store, {'number': {'in': [1, 2]}}) != set()
    assert ids(store, {'number': {'in': (one for one in (1, 2))}}) == ids(store, {'number': {'in': {1, 2}}})


def test_no_filter_is_every_row(store: DuckDBParquetStore) -> None:
    assert ids(store, {}) == set(range(len(ROWS)))
    assert store.count('t', None) == len(ROWS)


WRONG: list[tuple[Any, str]] = [
    ({'nope': 1}, 'no column'),
    ({'"id" OR 1=1 --': 1}, 'no column'),
    ({7: 1}, 'no column'),
    ('id = 1', 'dict'),
    ([('id', 1)], 'dict'),
    ({'id': {}}, 'is empty'),
    ({'id': {'eq': 1}}, 'unknown operator'),
    ({'id': {'like': 'x'}}, 'unknown operator'),
    ({'id': {'GTE': 1}}, 'unknown operator'),
    ({'id': {1: 1}}, 'unknown operator'),
    ({'id': {'gte': None}}, 'needs a value'),
    ({'id': {'in': 'abc'}}, 'list of values'),
    ({'id': {'in': 5}}, 'list of values'),
    ({'id': {'in': {'a': 1}}}, 'list of values'),
    ({'id': '1'}, 'holds numbers'),
    ({'id': True}, 'holds numbers'),
    ({'id': [1]}, 'holds numbers'),
    ({'id': {'in': [[1]]}}, 'holds numbers'),
    ({'text': 1}, 'cannot be compared'),
    ({'text': b'a'}, 'cannot be compared'),
    ({'text': '\ud800'}, 'Unicode'),
    ({'flag': 1}, 'cannot be compared'),
    ({'flag': {'gte': True}}, 'means nothing'),
    ({'real': 'x'}, 'cannot be compared'),
    ({'real': True}, 'cannot be compared'),
    ({'moment': 'yesterday'}, 'no date or time'),
    ({'moment': '2024-13-01'}, 'no date or time'),
    ({'moment': '2024-W01'}, 'no date or time'),
    ({'moment': '2024-01-01T00:00:00.1234567'}, 'finer'),
    ({'moment': 5}, 'cannot be compared'),
    ({'nanos': '3000-01-01'}, 'nanoseconds'),
    ({'day': '2024-01-01T00:00:00'}, 'no date'),
    ({'day': datetime(2024, 1, 1, 5, tzinfo=UTC)}, 'days'),
    ({'raw': 'a'}, 'cannot be compared'),
]


@pytest.mark.parametrize(('filters', 'match'), WRONG, ids=str)
def test_a_filter_that_means_nothing_is_refused(store: DuckDBParquetStore, filters: Any, match: str) -> None:
    for use in (store.read, store.bulk_read, store.count):
        with pytest.raises(BadFilter, match=match):
            use('t', filters)
    with pytest.raises(ValueError, match=match):
        store.distinct_values('t', ['id'], filters)


def test_nanoseconds_are_compared_exactly(tmp_path: Path) -> None:
    with DuckDBParquetStore(DuckDBParquetConfig(root=tmp_path)) as store:
        table = pa.table({'at': pa.array([1_000_000_001, 1_000_000_002], pa.timestamp('ns', 'UTC'))})
        store.create_table('t', table.schema)
        store.write('t', table)
        assert store.count('t', {'at': '1970-01-01T00:00:01.000000001'}) == 1
        assert store.count('t', {'at': {'gt': '1970-01-01 00:00:01.000000001Z'}}) == 1


def test_wide_decimals_are_compared_for_equality_alone(tmp_path: Path) -> None:
    with DuckDBParquetStore(DuckDBParquetConfig(root=tmp_path)) as store:
        table = pa.table({'x': pa.array([Decimal(10**70), Decimal(-1)], pa.decimal256(76, 0))})
        store.create_table('t', table.schema)
        store.write('t', table)
        assert store.count('t', {'x': 10**70}) == store.count('t', {'x': {'in': [Decimal(-1), None]}}) == 1
        assert store.count('t', {'x': 0.5}) == store.count('t', {'x': 10**80}) == 0
        with pytest.raises(BadFilter, match='stored as text'):
            store.count('t', {'x': {'gte': 1}})
