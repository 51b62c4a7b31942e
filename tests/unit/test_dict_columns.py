"""Columns out of dicts: compiled code and Python make the same ones, and leave the same records to be refused."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_db_utils import BadRecord, cells
from amplify_db_utils.records import as_table

pytestmark = pytest.mark.unit

KINDS = {
    'text': pa.string(),
    'flag': pa.bool_(),
    'number': pa.int64(),
    'small': pa.int8(),
    'positive': pa.uint64(),
    'real': pa.float64(),
    'moment': pa.timestamp('us', 'UTC'),
    'naive': pa.timestamp('us'),
    'coarse': pa.timestamp('ms', 'UTC'),
    'fine': pa.timestamp('ns', 'UTC'),
}
FIRST = datetime.fromisoformat('0001-01-01')
ZONES = [None, UTC, timezone(timedelta(0)), ZoneInfo('UTC'), ZoneInfo('Europe/London'), timezone(timedelta(hours=-7))]
USUAL = {
    'text': st.text(),
    'flag': st.booleans(),
    'number': st.integers(-(2**63), 2**63 - 1),
    'small': st.integers(-128, 127),
    'positive': st.integers(0, 2**64 - 1),
    'real': st.floats(),
    'moment': st.datetimes(timezones=st.sampled_from(ZONES)),
    'naive': st.datetimes(),
    'coarse': st.datetimes().map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)),
    'fine': st.datetimes(datetime.fromisoformat('1700-01-01'), datetime.fromisoformat('2200-01-01')),
}
STRANGE = st.one_of(*USUAL.values(), st.just('\ud800'), st.integers(), st.decimals(), st.binary(), st.just([1]))


@st.composite
def records(draw: st.DrawFn, odd: bool) -> list[dict[str, Any]]:
    """Dicts in which columns are there or not, in any order, with values that fit or (if `odd`) may not."""
    made = []
    for _ in range(draw(st.integers(1, 12))):
        chosen = draw(st.permutations(list(KINDS)))[: draw(st.integers(0, len(KINDS)))]
        values = {name: draw(st.none() | USUAL[name]) for name in chosen}
        if odd and draw(st.booleans()) and values:
            values[draw(st.sampled_from(chosen))] = draw(STRANGE)
        made.append({'other': 0} | values if draw(st.booleans()) else values)
    return made


@contextmanager
def only_python() -> Iterator[None]:
    with mock.patch.object(cells, 'compiled', None):
        yield


def outcome(rows: list[Any], schema: pa.Schema, keys: list[str]) -> pa.Table | None:
    try:
        return as_table(rows, schema, keys)
    except BadRecord:
        return None


def same(one: pa.Table | None, other: pa.Table | None) -> bool:
    if one is None or other is None:
        return one is other
    one.validate(full=True)
    # As texts: NaN is not equal to itself.
    return one.schema.equals(other.schema) and str(one.to_pylist()) == str(other.to_pylist())


@given(
    rows=records(odd=False) | records(odd=True),
    required=st.sets(st.sampled_from(list(KINDS)), max_size=2),
    keys=st.lists(st.sampled_from(list(KINDS)), max_size=1),
)
def test_compiled_code_and_python_make_the_same_columns(
    rows: list[dict[str, Any]], required: set[str], keys: list[str]
) -> None:
    schema = pa.schema([pa.field(name, kind, name not in required) for name, kind in KINDS.items()])
    compiled = outcome(rows, schema, keys)
    with only_python():
        assert same(compiled, outcome(rows, schema, keys))


def test_records_of_many_parts_are_taken_in_their_order() -> None:
    chance = random.Random(5)
    rows = [
        {name: None if chance.random() < 0.1 else value for name, value in chance.sample(sorted(one.items()), len(one))}
        for one in (
            {'text': 'ab' * chance.randrange(40), 'number': at, 'real': at / 7, 'flag': at % 3 == 0, 'moment': moment}
            for at, moment in enumerate(FIRST + timedelta(days=36, seconds=at) * at for at in range(20_000))
        )
    ]
    schema = pa.schema([pa.field(name, KINDS[name]) for name in ('text', 'number', 'real', 'flag', 'moment')])
    with only_python():
        wanted = as_table(rows, schema)
    assert as_table(rows, schema).equals(wanted)


class Yes(dict[str, Any]):
    """A dict that answers for keys it does not have."""

    def __missing__(self, key: str) -> int:
        return 7


class Key(str):
    """A key that is equal to another and not the same."""

    __slots__ = ()


@pytest.mark.parametrize(
    'rows',
    [
        [OrderedDict(number=1)],
        [{'number': 1}, OrderedDict(number=2)],
        [Yes()],
        [{Key('number'): 1}],
        [{'number': 1, 7: 2}, {7: 2, 'number': 1}, {}],
        [{None: 3}, {'number': 1}],
    ],
    ids=['ordered', 'ordered later', 'missing', 'key', 'other keys', 'other keys only'],
)
def test_dicts_of_every_kind_are_what_they_are_to_python(rows: list[Any]) -> None:
    schema = pa.schema([pa.field('number', pa.int64())])
    with only_python():
        wanted = as_table(rows, schema)
    assert as_table(rows, schema).equals(wanted)
    assert wanted.num_rows == len(rows)


@pytest.mark.parametrize('bad', [None, 5, 'text', ['number', 1]])
def test_what_is_no_dict_is_refused_with_its_place(bad: Any) -> None:
    schema = pa.schema([pa.field('number', pa.int64())])
    for rows in ([bad], [{'number': 1}] * 9000 + [bad]):
        with pytest.raises(BadRecord, match=f'record {len(rows) - 1} is no dict but {type(bad).__name__}'):
            as_table(rows, schema)


def test_a_zone_that_answers_for_nothing_else_is_heard() -> None:
    class Broken(tzinfo):
        def utcoffset(self, _: datetime | None) -> timedelta:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        as_table([{'moment': datetime(2024, 1, 1, tzinfo=Broken())}], pa.schema([pa.field('moment', KINDS['moment'])]))


def test_records_that_others_change_meanwhile_are_taken_as_they_are_then() -> None:
    rows: list[dict[str, Any]] = [{'other': 0, 'number': at} for at in range(3)]
    allocate = pa.allocate_buffer

    def elsewhere(*given: Any, **named: Any) -> pa.Buffer:
        """What other threads may do whenever they get their turn."""
        for row in rows:
            row[f'new {len(row)}'] = row.pop('other', 1)
        return allocate(*given, **named)

    with mock.patch.object(pa, 'allocate_buffer', elsewhere):
        taken = as_table(rows, pa.schema([pa.field('number', pa.int64()), pa.field('text', pa.string())]))
    assert taken.to_pylist() == [{'number': at, 'text': None} for at in range(3)]


def test_text_longer_than_the_room_made_for_it() -> None:
    rows = [{'text': 'é' * size} for size in (0, 1, 100_000, 3, 200_000)]
    assert as_table(rows, pa.schema([pa.field('text', pa.string())])).to_pylist() == rows
