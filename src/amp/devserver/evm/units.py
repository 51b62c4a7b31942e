"""Moving the decimal point of numbers in text: `shift_units`, on whole columns by Arrow's string kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from amp.devserver.evm.words import Column

__all__ = ['UnitsError', 'shift_units']

MAX_UNITS = 32

# Exponents beyond this make texts that nobody reads, and memory that nobody has.
_MAX_EXPONENT = 400
_NUMBER = r'^(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{1,9}))?$'


class UnitsError(ValueError):
    """A value that is no number, or units out of range."""


def shift_units(values: Column, units: Column) -> Column:
    """`values * 10**units` as plain decimal text without trailing zeros; null where either is null. Raises UnitsError.

    Values are numbers or text, units integers or text.
    """
    texts = values.cast(pa.string()) if not pa.types.is_string(values.type) else values
    found = pc.extract_regex(texts, pattern=_NUMBER)
    whole, part = found.field('whole'), found.field('part').fill_null('')
    digits = pc.add(pc.utf8_length(whole), pc.utf8_length(part))
    wrong = pc.and_not_kleene(texts.is_valid(), pc.fill_null(pc.greater(digits, pa.scalar(0)), pa.scalar(False)))
    if pc.any(wrong).as_py():
        example = texts.filter(wrong)[0].as_py()
        raise UnitsError(f'failed to parse value: {example[:80]!r} is not a number')
    places = _places(units)
    exponent = pc.utf8_ltrim(found.field('exponent'), '+')
    exponents = _integers(pc.if_else(_is(exponent, ''), '0', exponent))
    if bool((np.abs(exponents) > _MAX_EXPONENT).any()):
        raise UnitsError(f'failed to parse value: an exponent is beyond {_MAX_EXPONENT}')
    valid = pc.and_(texts.is_valid(), units.is_valid())
    shifts = places + exponents
    result = pa.nulls(len(texts), pa.string())
    # The kernels take one width for all rows; a column has few different shifts, and usually one.
    for shift in np.unique(shifts[valid.to_numpy(zero_copy_only=False)]):
        rows = pc.and_(valid, pa.array(shifts == shift))
        moved = _moved(found.field('sign').filter(rows), whole.filter(rows), part.filter(rows), int(shift))
        result = pc.replace_with_mask(result, rows, moved)
    return result


def _is(column: Column, text: str) -> Column:
    return pc.equal(column, pa.scalar(text))


def _joined(*parts: Column) -> Column:
    # The stubs want the separator to be a column like the others.
    join: Any = pc.binary_join_element_wise
    return join(*parts, '')


def _integers(texts: Column) -> npt.NDArray[np.int64]:
    return np.asarray(texts.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _places(units: Column) -> npt.NDArray[np.int64]:
    try:
        places = _integers(units)
    except pa.ArrowInvalid as error:
        raise UnitsError(f'failed to parse integer: {error}') from error
    beyond = places[np.abs(places) > MAX_UNITS]
    if len(beyond):
        raise UnitsError(f'units must be between -{MAX_UNITS} and {MAX_UNITS} (got {beyond[0]})')
    return places


def _moved(sign: Column, whole: Column, part: Column, shift: int) -> Column:
    """The numbers with the point moved to the right, or to the left when the shift is negative."""
    if shift > 0:
        part = pc.utf8_rpad(part, width=shift, padding='0')
        whole = _joined(whole, pc.utf8_slice_codeunits(part, 0, shift))
        part = pc.utf8_slice_codeunits(part, shift)
    elif shift < 0:
        whole = pc.utf8_lpad(whole, width=-shift, padding='0')
        part = _joined(pc.utf8_slice_codeunits(whole, shift), part)
        whole = pc.utf8_slice_codeunits(whole, 0, shift)
    whole, part = pc.utf8_ltrim(whole, '0'), pc.utf8_rtrim(part, '0')
    zero = pc.and_(_is(whole, ''), _is(part, ''))
    whole = pc.if_else(_is(whole, ''), '0', whole)
    point = pc.if_else(_is(part, ''), '', '.')
    minus = pc.if_else(pc.and_not(_is(sign, '-'), zero), '-', '')
    return _joined(minus, whole, point, part)
