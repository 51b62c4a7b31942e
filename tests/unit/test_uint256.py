"""Decimal text to 256-bit numbers."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.errors import SchemaError
from amp.loaders.uint256 import uint256_bytes

pytestmark = pytest.mark.unit

NUMBERS = st.one_of(st.none(), st.integers(0, 2**256 - 1), st.integers(0, 10**20))


@given(st.lists(NUMBERS, max_size=20), st.integers(0, 3))
def test_every_number_comes_out(numbers, skipped):
    texts = pa.array([None if n is None else str(n) for n in numbers], pa.string()).slice(skipped)
    found = uint256_bytes(texts).to_pylist()
    assert [None if b is None else int.from_bytes(b, 'little') for b in found] == numbers[skipped:]


@pytest.mark.parametrize('text', ['', '-1', '1.5', 'abc', '1\n', ' 1', '0x10', '1' * 79, str(2**256), '9' * 78])
def test_anything_else_is_refused(text):
    with pytest.raises(SchemaError):
        uint256_bytes(pa.array(['1', text]))


def test_other_kinds_of_text():
    for kind in (pa.large_string(), pa.string_view()):
        assert uint256_bytes(pa.array(['258'], kind))[0].as_py()[:2] == b'\x02\x01'
