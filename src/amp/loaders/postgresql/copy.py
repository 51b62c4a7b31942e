"""Arrow to PostgreSQL: the type of each column, and rows as the bytes of COPY BINARY.

COPY BINARY carries no types: what arrives is read as whatever the column is. So each column is planned against the
type that the table has, cast to the one Arrow form whose bytes PostgreSQL reads as that type, and refused by name
where there is none. The encoder itself is pgpq's; a wide decimal is written in PostgreSQL's own digits here.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import pgpq
import pgpq.encoders
import pgpq.schema
import psycopg
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

from amp.errors import DestinationError, SchemaError
from amp.loaders.arrow_types import type_table
from amp.loaders.json_text import has_nul, is_bytes, is_list, is_text, json_text, plain
from amp.loaders.sql import quote

__all__ = ['CopyEncoder', 'CopyInto', 'column_type']

_CHUNK_BYTES = 8 * 1024**2
_TYPE_NAME = re.compile(
    r'(?P<base>[a-z ]+?)\s*(?:\((?P<numbers>-?\d+(?:,-?\d+)?)\))?(?P<zone> with(?:out)? time zone)?'
)
_INTEGERS = {'smallint': pa.int16(), 'integer': pa.int32(), 'bigint': pa.int64()}
_CLOCKS = {'timestamp', 'time', 'interval'}
# What PostgreSQL's dates and timestamps reach back to (4713 BC), and the last of its dates, counted from 1970.
_FIRST_MICROSECOND, _FIRST_DAY, _LAST_DAY = -210_866_803_200_000_000, -2_440_588, 2_145_042_905

_TYPES = type_table('postgresql')

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute

Column: TypeAlias = 'pa.Array[Any]'
Convert: TypeAlias = Callable[[Column], Column]


@dataclass(frozen=True)
class _Plan:
    """How a column goes out: cast to `wire` after `convert`, looked over by `check`, as jsonb or as it is."""

    wire: pa.DataType
    convert: Convert | None = None
    check: Callable[[Column], str | None] | None = None
    is_jsonb: bool = False


def column_type(field: pa.Field[Any]) -> str:
    """The PostgreSQL type of a new column that holds every value of `field`. Raises SchemaError."""
    found = _TYPES.landing(field).column
    is_array = found.endswith('[]')
    return 'jsonb' if is_array and _array_plan(field.type, found.removesuffix('[]')) is None else found


class CopyEncoder:
    """Batches of `schema` as COPY BINARY for columns of `types` (name to the type as PostgreSQL writes it).

    Raises SchemaError, by column, for a type that does not go into the table's, and for a value that does not fit.
    """

    def __init__(self, schema: pa.Schema, types: Mapping[str, str]) -> None:
        self.schema = schema
        self._plans = [_plan(field, types) for field in schema]
        self._wire = pa.schema(
            [pa.field(f.name, plan.wire) for f, plan in zip(schema, self._plans, strict=True)], metadata=None
        )
        builders = {
            field.name: pgpq.encoders.StringEncoderBuilder.new_with_output(field, pgpq.schema.Jsonb())
            if plan.is_jsonb
            else pgpq.ArrowToPostgresBinaryEncoder.infer_encoder(field)
            for field, plan in zip(self._wire, self._plans, strict=True)
        }
        self._encoder = pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(self._wire, builders)

    def header(self) -> bytes:
        """What comes before the first row."""
        return bytes(self._encoder.write_header())

    def rows(self, batch: pa.RecordBatch) -> Iterator[bytes]:
        """The rows of a batch, some megabytes at a time."""
        step = batch.num_rows * _CHUNK_BYTES // max(batch.nbytes, 1) + 1
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            columns = [
                _sent(field.name, column, plan)
                for field, column, plan in zip(self.schema, part.columns, self._plans, strict=True)
            ]
            yield self._encoder.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._wire))

    def end(self) -> bytes:
        """What comes after the last row."""
        return bytes(self._encoder.finish())


class CopyInto:
    """An open COPY into a quoted table that takes batches as they come; nothing but the batch in hand is in memory.

    When the schema of the batches changes, that COPY ends and another begins in the same transaction.
    """

    def __init__(self, connection: psycopg.Connection[Any], table: str, types: Mapping[str, str]) -> None:
        self._connection = connection
        self._table = table
        self._types = types
        self._encoder: CopyEncoder | None = None
        self._context: Any = None
        self._copy: psycopg.Copy

    def write(self, batch: pa.RecordBatch) -> int:
        """Send the rows of a batch; their number."""
        encoder = self._encoder
        if encoder is None or not encoder.schema.equals(batch.schema):
            self.finish()
            encoder = self._open(batch.schema)
        for data in encoder.rows(batch):
            self._copy.write(data)
        return batch.num_rows

    def finish(self) -> None:
        """End the COPY: from here on the rows are checked and in the transaction."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            self._copy.write(encoder.end())
            context, self._context = self._context, None
            context.__exit__(None, None, None)

    def abandon(self) -> None:
        """Let go of a COPY whose connection was closed."""
        context, self._context, self._encoder = self._context, None, None
        if context is not None:
            with suppress(psycopg.Error, _AbandonedError):
                context.__exit__(_AbandonedError, _AbandonedError(), None)

    def _open(self, schema: pa.Schema) -> CopyEncoder:
        encoder = CopyEncoder(schema, self._types)
        columns = ', '.join(quote(name) for name in schema.names)
        self._context = self._connection.cursor().copy(
            f'COPY {self._table} ({columns}) FROM STDIN (FORMAT binary)'.encode()
        )
        self._copy = self._context.__enter__()
        self._copy.write(encoder.header())
        self._encoder = encoder
        return encoder


class _AbandonedError(Exception):
    """Ends a COPY from this side."""


def _plan(field: pa.Field[Any], types: Mapping[str, str]) -> _Plan:
    target = types.get(field.name)
    if not types:
        raise DestinationError('the table does not exist', hint='leave out create_table=False to make it')
    if target is None:
        raise SchemaError(
            f'the table has no column {field.name!r}', hint=f'its columns: {", ".join(types)}', column=field.name
        )
    kind = field.type
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        plan = _plan_of(kind.value_type, target)
        plan = plan and _Plan(plan.wire, _after(plain, plan.convert), plan.check, plan.is_jsonb)
    else:
        plan = _plan_of(kind, target)
    if plan is None:
        raise SchemaError(
            f'column {field.name!r} of type {kind} does not go into the {target} that the table has',
            hint=f'a new table would have {_fitting(field)}: change the column, or cast in the query',
            column=field.name,
        )
    return plan


def _fitting(field: pa.Field[Any]) -> str:
    try:
        return column_type(field)
    except SchemaError:
        return 'no type for it'


def _plan_of(kind: Any, target: str) -> _Plan | None:
    if pt.is_null(kind):
        return _Plan(pa.binary())
    if target.endswith('[]'):
        return _array_plan(kind, target.removesuffix('[]'))
    if target in {'json', 'jsonb'}:
        convert = None if is_text(kind) else json_text
        return _Plan(pa.string(), convert, _without_nul, is_jsonb=target == 'jsonb')
    parsed = _TYPE_NAME.fullmatch(target)
    if parsed is not None and parsed['base'] == 'numeric':
        return _numeric_plan(kind, parsed['numbers'])
    # A column of fewer digits than microseconds would round.
    is_coarse = parsed is not None and parsed['base'] in _CLOCKS and parsed['numbers'] not in {None, '6'}
    return _scalar_plan(kind, parsed['base'] + (parsed['zone'] or '')) if parsed and not is_coarse else None


def _scalar_plan(kind: Any, base: str) -> _Plan | None:
    plan: _Plan | None = None
    if base in _INTEGERS and pt.is_integer(kind):
        plan = _Plan(_INTEGERS[base])
    elif base == 'double precision' and pt.is_floating(kind):
        plan = _Plan(pa.float64())
    elif base == 'real' and (pt.is_float16(kind) or pt.is_float32(kind)):
        plan = _Plan(pa.float32())
    elif base == 'boolean' and pt.is_boolean(kind):
        plan = _Plan(kind)
    elif base in {'text', 'character varying'} and is_text(kind):
        plan = _Plan(pa.large_string() if pt.is_large_string(kind) else pa.string(), check=_without_nul)
    elif base == 'bytea' and is_bytes(kind):
        plan = _Plan(pa.binary() if pt.is_binary_view(kind) else kind)
    elif base == 'date' and pt.is_date(kind):
        plan = _Plan(pa.date32(), check=_a_date)
    elif base == 'timestamp without time zone' and pt.is_timestamp(kind) and kind.tz is None:
        plan = _Plan(pa.timestamp('us'), check=_a_timestamp)
    elif base == 'timestamp with time zone' and pt.is_timestamp(kind) and kind.tz is not None:
        plan = _Plan(pa.timestamp('us', kind.tz), check=_a_timestamp)
    elif base == 'time without time zone' and pt.is_time(kind):
        plan = _Plan(pa.time64('us'))
    elif base == 'interval' and pt.is_duration(kind):
        plan = _Plan(pa.duration('us'))
    return plan


def _numeric_plan(kind: Any, numbers: str | None) -> _Plan | None:
    scale = int(numbers.partition(',')[2] or 0) if numbers is not None else None
    if pt.is_uint64(kind) and (scale is None or scale >= 0):
        return _Plan(kind)
    if pt.is_integer(kind) and (scale is None or scale >= 0):
        return _Plan(pa.decimal128(20, 0))
    if is_text(kind) and (scale is None or scale >= 0):
        return _Plan(pa.binary(), _numeric_from_text)
    if not pt.is_decimal(kind) or (scale is not None and scale < kind.scale):
        return None
    if pt.is_decimal256(kind) or kind.scale < 0:
        return _Plan(pa.binary(), _numeric_from_decimal)
    return _Plan(pa.decimal128(kind.precision, kind.scale))


def _array_plan(kind: Any, inner_target: str) -> _Plan | None:
    """Only of values whose wire form is a cast away: the type of the elements is written beside them."""
    if not is_list(kind):
        return None
    inner = _plan_of(kind.value_type, inner_target)
    # pgpq says `timestamp` of an element with a zone, and PostgreSQL holds it to that.
    if inner is None or inner.convert is not None or inner.is_jsonb or pt.is_null(kind.value_type):
        return None
    if getattr(inner.wire, 'tz', None) is not None or is_list(kind.value_type) or inner.wire == pa.duration('us'):
        return None
    check = inner.check
    return _Plan(pa.list_(inner.wire), check=None if check is None else lambda column: check(pc.list_flatten(column)))


def _after(first: Convert, then: Convert | None) -> Convert:
    return first if then is None else lambda column: then(first(column))


def _sent(name: str, column: Column, plan: _Plan) -> Column:
    try:
        if plan.convert is not None:
            column = plan.convert(column)
        if not column.type.equals(plan.wire):
            column = column.cast(plan.wire)
    except SchemaError as error:
        raise SchemaError(f'column {name!r}: {error.message}', hint=error.hint, column=name) from error
    except pa.ArrowInvalid as error:
        raise SchemaError(_unfit(name, error), hint='nothing of the unit was kept', column=name) from error
    wrong = plan.check(column) if plan.check is not None else None
    if wrong is not None:
        raise SchemaError(f'column {name!r} {wrong}', hint='nothing of the unit was kept', column=name)
    return column


def _unfit(name: str, error: pa.ArrowInvalid) -> str:
    if 'timestamp' in str(error) and 'lose data' in str(error):
        return f'column {name!r} has nanoseconds below a microsecond, which PostgreSQL cannot keep: {error}'
    return f'column {name!r} has a value that its type in PostgreSQL cannot hold: {error}'


def _without_nul(column: Column) -> str | None:
    return 'has a text with the character NUL, which PostgreSQL cannot hold' if has_nul(column) else None


def _a_date(column: Column) -> str | None:
    inside = _between(column.cast(pa.int32()), _FIRST_DAY, _LAST_DAY)
    return None if inside else 'has a date that PostgreSQL cannot hold'


def _a_timestamp(column: Column) -> str | None:
    inside = _between(column.cast(pa.int64()), _FIRST_MICROSECOND, None)
    return None if inside else 'has a time before 4713 BC, which PostgreSQL cannot hold'


def _between(numbers: Column, first: int, last: int | None) -> bool:
    ends = pc.min_max(numbers)
    low, high = ends['min'], ends['max']
    if not low.is_valid:
        return True
    below = pc.less(low, first) == pa.scalar(True)
    return not below and (last is None or pc.greater(high, last) == pa.scalar(False))


# PostgreSQL's numeric: how many digits, weight of the first, sign, scale (16 bits each), then digits of base 10,000.


def _numeric_from_decimal(column: Column) -> Column:
    scale = column.type.scale
    wide = column if pt.is_decimal256(column.type) else column.cast(pa.decimal256(76, scale))
    whole = pa.Array.from_buffers(pa.decimal256(76, 0), len(wide), wide.buffers(), offset=wide.offset)
    return _numeric(whole.cast(pa.string()), scale)


def _numeric_from_text(column: Column) -> Column:
    texts = column.cast(pa.string())
    if pc.any(pc.invert(pc.match_substring_regex(texts, '^-?[0-9]{1,1000}$'))) == pa.scalar(True):
        raise SchemaError('a text is not a whole number', hint='a numeric column takes decimal digits only')
    return _numeric(texts, 0)


def _numeric(texts: Column, scale: int) -> Column:
    """Whole numbers as text, times ten to the `-scale`, in PostgreSQL's binary form."""
    negative = pc.fill_null(pc.starts_with(texts, '-'), False)
    digits = pc.utf8_ltrim(pc.fill_null(texts, '0'), characters='-')
    after = -scale % 4
    longest = pc.max(pc.utf8_length(digits))
    groups = ((int(str(longest)) if longest.is_valid else 0) + after + 3) // 4
    padded = pc.utf8_lpad(digits, width=4 * groups - after, padding='0')
    padded = pc.utf8_rpad(padded, width=4 * groups, padding='0')
    fours = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4), len(texts) * groups, [None, padded.buffers()[2]])
    values: Any = fours.cast(pa.string()).cast(pa.uint16())
    body = array('H', values.buffers()[1].to_pybytes()[: 2 * groups * len(texts)])
    if sys.byteorder == 'little':
        body.byteswap()
    weight = groups - 1 - (scale + after) // 4
    heads = [
        pa.scalar(b''.join(n.to_bytes(2, 'big', signed=True) for n in (groups, weight, sign, max(scale, 0))))
        for sign in (0x4000, 0)
    ]
    columns = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * groups), len(texts), [None, pa.py_buffer(body.tobytes())]
    )
    joined = pc.binary_join_element_wise(pc.if_else(negative, *heads), columns.cast(pa.binary()), b'')
    sent: Column = pc.if_else(pc.is_valid(texts), joined, None)
    return sent
