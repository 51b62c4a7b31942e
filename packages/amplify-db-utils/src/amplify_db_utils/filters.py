"""Filters: from dicts to conditions on stored columns, and from conditions to Arrow expressions.

A value becomes a typed literal or the filter is refused. Nothing of a filter is ever text that something parses.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from amplify_db_utils._arrow import Field, Kind, Scalar, literal
from amplify_db_utils.errors import BadFilter
from amplify_db_utils.schema import stored_type

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    'eq': operator.eq,
    'gte': operator.ge,
    'gt': operator.gt,
    'lte': operator.le,
    'lt': operator.lt,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = re.compile(r'(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:[.,](\d{1,9}))?)?))?\s*(Z|[+-]\d\d:?\d\d)?')


@dataclass(frozen=True)
class Condition:
    """One demand on one column: `op` is eq, gte, gt, lte, lt, in, null, any (not null) or none.

    `values` are literals of the stored type, none for null, any and none; `or_null` lets nulls pass too.
    """

    column: str
    op: str
    values: tuple[Scalar, ...] = ()
    or_null: bool = False


def parse(filters: Any, schema: pa.Schema) -> list[Condition]:
    """The conditions of a filter on a table's declared schema. Raises BadFilter for what the table cannot be asked."""
    if filters is None:
        return []
    if not isinstance(filters, Mapping):
        raise BadFilter(f'filters are a dict of column names, not {type(filters).__name__}')
    conditions: list[Condition] = []
    for name, wanted in filters.items():
        if not isinstance(name, str) or name not in schema.names:
            raise BadFilter(f'no column {name!r} to filter on; there are {schema.names}')
        field = schema.field(name)
        if isinstance(wanted, Mapping):
            conditions += _operators(field, wanted)
        elif wanted is None:
            conditions.append(Condition(name, 'null'))
        else:
            conditions.append(_compare(field, 'eq', wanted))
    return conditions


def _operators(field: Field, wanted: Mapping[str, Any]) -> Iterable[Condition]:
    if not wanted:
        raise BadFilter(f'the filter on {field.name!r} is empty; use gte, gt, lte, lt or in')
    for op, value in wanted.items():
        if op == 'in':
            yield _membership(field, value)
        elif op not in _COMPARE or op == 'eq':
            raise BadFilter(f'unknown operator {op!r} on {field.name!r}; use gte, gt, lte, lt or in')
        elif value is None:
            raise BadFilter(f'{op} on {field.name!r} needs a value, not None')
        else:
            yield _compare(field, op, value)


def _membership(field: Field, values: Any) -> Condition:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise BadFilter(f'in on {field.name!r} takes a list of values, not {values!r}')
    members: list[Scalar] = []
    or_null = False
    for value in values:
        if value is None:
            or_null = True
            continue
        one = _compare(field, 'eq', value)
        members += one.values
    return Condition(field.name, 'in', tuple(members), or_null)


def _compare(field: Field, op: str, value: Any) -> Condition:
    if not isinstance(value, str | bytes) and hasattr(value, 'item') and hasattr(value, 'dtype'):
        value = value.item()  # a NumPy scalar
    kind, stored = field.type, stored_type(field.type)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return _exact(field.name, kind, stored, op, value)
    if pa.types.is_floating(kind) and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _real(field.name, stored, op, value)
    typed = _literal(field.name, kind, stored, value)
    if pa.types.is_boolean(kind) and op != 'eq':
        raise BadFilter(f'{op} means nothing on the yes/no column {field.name!r}')
    return Condition(field.name, op, (typed,))


def _exact(name: str, kind: Kind, stored: pa.DataType, op: str, value: Any) -> Condition:
    """A comparison of whole or decimal numbers, exact whatever number it is with: below, between and beyond the column's."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadFilter(f'column {name!r} holds numbers ({kind}), not {value!r}')
    scale = kind.scale if pa.types.is_decimal(kind) else 0
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        number: Fraction | None = None
        beyond = 0 if math.isnan(value) else int(math.copysign(1, value))
    else:
        number = Fraction(value)
        lowest, highest = _bounds(kind)
        beyond = (number * 10**scale > highest) - (number * 10**scale < lowest)
    if pa.types.is_string(stored):
        return _wide_decimal(name, kind, op, value, fits=number is not None and not beyond)
    if number is None or beyond:
        holds = {'eq': False, 'gte': beyond < 0, 'gt': beyond < 0, 'lte': beyond > 0, 'lt': beyond > 0}[op]
        return Condition(name, 'any' if holds else 'none')
    floor = math.floor(number * 10**scale)
    if floor != number * 10**scale:  # between two values of the column
        if op == 'eq':
            return Condition(name, 'none')
        op = 'gt' if op in {'gt', 'gte'} else 'lte'
    exact = _decimal(floor, scale) if pa.types.is_decimal(stored) else floor
    return Condition(name, op, (pa.scalar(exact, stored),))


def _decimal(number: int, scale: int) -> Decimal:
    # From its digits: arithmetic on decimals rounds to 28 of them.
    return Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale))


def _bounds(kind: Kind) -> tuple[int, int]:
    if pa.types.is_decimal(kind):
        return 1 - 10**kind.precision, 10**kind.precision - 1
    if pa.types.is_signed_integer(kind):
        return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
    return 0, 2**kind.bit_width - 1


def _wide_decimal(name: str, kind: Kind, op: str, value: Any, *, fits: bool) -> Condition:
    if op != 'eq':
        raise BadFilter(
            f'column {name!r} of {kind} is stored as text: it can be compared for equality and in, not {op}'
        )
    number = Fraction(value) * 10**kind.scale if fits else None
    if number is None or number.denominator != 1:
        return Condition(name, 'none')
    text = pa.scalar(_decimal(number.numerator, kind.scale), kind).cast(pa.string())
    return Condition(name, op, (text,))


def _real(name: str, stored: pa.DataType, op: str, value: Any) -> Condition:
    """A comparison with a real column, exact where the value is no float."""
    try:
        near = float(value)
    except OverflowError:
        near = math.inf if value > 0 else -math.inf
    if math.isnan(near):
        return Condition(name, 'none')
    if near != value:
        if op == 'eq':
            return Condition(name, 'none')
        above = near > value
        op = ('gte' if above else 'gt') if op in {'gt', 'gte'} else ('lt' if above else 'lte')
    return Condition(name, op, (pa.scalar(near, stored),))


def _literal(name: str, kind: pa.DataType, stored: pa.DataType, value: Any) -> Scalar:
    if pa.types.is_boolean(kind) and isinstance(value, bool):
        return pa.scalar(value)
    if _is_text(kind) and isinstance(value, str):
        try:
            return pa.scalar(value, stored)
        except UnicodeEncodeError as error:
            raise BadFilter(f'the text for {name!r} is no valid Unicode') from error
    if pa.types.is_timestamp(kind) and isinstance(value, str | date):
        return _moment(name, kind, stored, value)
    if pa.types.is_date(kind) and isinstance(value, str | date):
        return pa.scalar(_day(name, value), stored)
    if _is_bytes(kind) and isinstance(value, bytes):
        return pa.scalar(value, stored)
    raise BadFilter(f'column {name!r} of type {kind} cannot be compared with {value!r}')


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return stored_type(kind) == pa.binary()


def _moment(name: str, kind: Kind, stored: pa.DataType, value: str | date) -> Scalar:
    finer = 0  # nanoseconds below the microsecond
    if isinstance(value, str):
        match = _TIMES.fullmatch(value.strip())
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            moment = None
        if match is None or moment is None:
            raise BadFilter(f'{value!r} for {name!r} is no date or time in ISO form')
        finer = int((match[3] or '').ljust(9, '0')[6:9])
    else:
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)  # noqa: DTZ001
        finer = getattr(value, 'nanosecond', 0)  # pandas
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    micros = (moment - _EPOCH) // timedelta(microseconds=1)
    if kind.unit == 'ns':
        try:
            return pa.scalar(micros * 1000 + finer, stored)
        except (pa.ArrowInvalid, OverflowError) as error:
            raise BadFilter(f'{value!r} for {name!r} is outside what nanoseconds can hold') from error
    if finer:
        raise BadFilter(f'{value!r} for {name!r} is finer than the microseconds of the column')
    return pa.scalar(micros, pa.int64()).cast(stored)


def _day(name: str, value: str | date) -> date:
    if isinstance(value, datetime):
        if value.time() != datetime.min.time():
            raise BadFilter(f'column {name!r} holds days, not moments such as {value}')
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise BadFilter(f'{value!r} for {name!r} is no date in ISO form') from error


def expression(conditions: Sequence[Condition], names: Mapping[str, str] | None = None) -> pc.Expression | None:
    """All conditions as one Arrow expression on the stored columns, or on the columns that `names` has for them."""
    parts = [
        _expression(condition, pc.field((names or {}).get(condition.column, condition.column)))
        for condition in conditions
    ]
    return reduce(operator.and_, parts) if parts else None


def _expression(condition: Condition, column: pc.Expression) -> pc.Expression:
    match condition.op:
        case 'null':
            return column.is_null()
        case 'any':
            return ~column.is_null()
        case 'none':
            return literal(False)
        case 'in':
            return _in(condition, column)
    result: pc.Expression = _COMPARE[condition.op](column, literal(condition.values[0]))
    return result


def _in(condition: Condition, column: pc.Expression) -> pc.Expression:
    nulls = column.is_null() if condition.or_null else literal(False)
    if not condition.values:
        return nulls
    members = pa.array([value.as_py() for value in condition.values], condition.values[0].type)
    found = column.isin(members)
    return found | nulls if condition.or_null else found


def may_match(conditions: Sequence[Condition], bounds: pa.StructType) -> pc.Expression | None:
    """What a file's `min` and `max` say: an expression that is true where some row may match, on tables of files."""
    known = {field.name for field in bounds}
    parts = [part for one in conditions if one.column in known and one.values for part in _may_match(one)]
    return reduce(operator.and_, parts) if parts else None


def _may_match(condition: Condition) -> Iterable[pc.Expression]:
    values = [value.as_py() for value in condition.values]
    if condition.or_null:
        return
    low, high = _scalar_like(condition, min(values), -1), _scalar_like(condition, max(values), 1)
    least, most = pc.field('min', condition.column), pc.field('max', condition.column)
    if condition.op in {'eq', 'in', 'gte', 'gt'}:
        yield (most >= low) | most.is_null()
    if condition.op in {'eq', 'in', 'lte', 'lt'}:
        yield (least <= high) | least.is_null()


def _scalar_like(condition: Condition, value: Any, direction: int) -> pc.Expression:
    if isinstance(value, datetime):  # other writers of the log cut its bounds to milliseconds
        value += direction * timedelta(milliseconds=1)
    return literal(pa.scalar(value, condition.values[0].type))
