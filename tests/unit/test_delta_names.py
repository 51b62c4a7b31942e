"""Names as folders, and decimal text as numbers of so many digits."""

from __future__ import annotations

import re
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.errors import ConfigError, SchemaError
from amp.loaders.deltalog.files import folder_name, name_of_folder
from amp.loaders.digits import at_most_digits

pytestmark = pytest.mark.unit

names = st.text(st.characters(exclude_characters='\x00', exclude_categories=['Cs']), min_size=1, max_size=12)


@given(names)
def test_a_name_comes_back_from_its_folder(name):
    folder = folder_name(name)
    assert re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9._-]*', folder)
    assert name_of_folder(folder) == name


@given(names, names)
def test_two_names_are_two_folders(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_names_that_are_usual_stay_as_they_are():
    assert [folder_name(name) for name in ('eth_logs', 'a.b-C9', '_x', 'x_')] == ['eth_logs', 'a.b-C9', '_x', 'x_']
    assert folder_name('..') == '__2E.'
    assert folder_name('a__b/ü') == 'a__5F_b__2F__C3__BC'


@pytest.mark.parametrize('name', ['', 'a\x00b', 'x' * 201, 'ü' * 100])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ConfigError):
        folder_name(name)


@given(st.integers(-(10**80), 10**80))
def test_text_goes_to_a_decimal_exactly_or_not_at_all(number):
    texts = pa.array([str(number), None])
    if abs(number) < 10**38:
        assert at_most_digits(38)(texts).cast(pa.decimal128(38, 0)).to_pylist() == [Decimal(number), None]
    else:
        with pytest.raises(SchemaError, match='38 digits'):
            at_most_digits(38)(texts)


@pytest.mark.parametrize('text', ['1.5', '', ' 1', 'abc', '1e5', '1\n'])
def test_text_that_is_no_whole_number_is_refused(text):
    with pytest.raises(SchemaError, match='whole number'):
        at_most_digits(38)(pa.array([text]))


def test_zeros_in_front_are_no_digits():
    assert at_most_digits(2)(pa.array(['-00099'])).cast(pa.decimal128(2, 0)).to_pylist() == [Decimal(-99)]
