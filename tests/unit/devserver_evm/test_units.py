"""shift_units against Python's decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp.devserver.evm.units import UnitsError, shift_units

pytestmark = pytest.mark.unit


def plain(value: Decimal) -> str:
    text = f'{value:f}'
    text = text.rstrip('0').rstrip('.') if '.' in text else text
    return '0' if text in {'-0', ''} else text


@given(
    st.lists(
        st.tuples(
            st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40, places=12),
            st.integers(-32, 32),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_point_moves(rows):
    values = pa.array([str(value) for value, _ in rows])
    units = pa.array([places for _, places in rows])
    with localcontext() as context:
        context.prec = 150
        wanted = [plain(value.scaleb(places)) for value, places in rows]
    assert shift_units(values, units).to_pylist() == wanted


@pytest.mark.parametrize(
    ('value', 'units', 'wanted'),
    [
        ('1.376988483056381409', '18', '1376988483056381409'),
        ('1.5', 18, '1500000000000000000'),
        ('1500000000000000000', -18, '1.5'),
        ('100', 6, '100000000'),
        ('1.500', 0, '1.5'),
        ('0.000', 3, '0'),
        ('-0', -3, '0'),
        ('-1', -3, '-0.001'),
        ('+7', -1, '0.7'),
        ('.5', 1, '5'),
        ('5.', 1, '50'),
        ('0007', 0, '7'),
        ('1e18', -18, '1'),
        ('1.5E-3', 3, '1.5'),
        ('115792089237316195423570985008687907853269984665640564039457584007913129639935', -32, None),
        (15, -1, '1.5'),
        (1.5, 2, '150'),
        (1e22, -22, '1'),
        (None, 3, None),
        ('3', None, None),
    ],
)
def test_single_values(value, units, wanted):
    if wanted is None and isinstance(value, str) and units is not None:
        wanted = value[:-32] + '.' + value[-32:]
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), type(None): pa.string()}
    values = pa.array([value], types[type(value)])
    places = pa.array([units], pa.string() if isinstance(units, str) else pa.int64())
    assert shift_units(values, places).to_pylist() == [wanted]


def test_decimals():
    values = pa.array([Decimal('1.50'), None, Decimal('-200.00')], pa.decimal256(60, 2))
    assert shift_units(values, pa.array([1, 1, -2])).to_pylist() == ['15', None, '-2']


@pytest.mark.parametrize(
    ('value', 'units', 'told'),
    [
        ('', 1, "'' is not a number"),
        ('.', 1, "'.' is not a number"),
        ('0x10', 1, "'0x10' is not a number"),
        ('1 000', 1, 'is not a number'),
        ('\u0661', 1, 'is not a number'),
        ('1e999999999', 1, 'an exponent is beyond'),
        ('1e99999999999999999999', 1, 'is not a number'),
        ('1', 33, 'units must be between -32 and 32 (got 33)'),
        ('1', -33, 'units must be between -32 and 32 (got -33)'),
        ('1', 'x', 'failed to parse integer'),
    ],
)
def test_refusals(value, units, told):
    with pytest.raises(UnitsError) as caught:
        shift_units(pa.array([value]), pa.array([units]))
    assert told in str(caught.value)
