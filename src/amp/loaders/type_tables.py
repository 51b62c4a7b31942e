"""What each destination holds of what Amp sends: data, one table a destination. See `arrow_types.py` for the words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from amp.errors import SchemaError
from amp.loaders.arrow_types import Rule, TypeTable
from amp.loaders.digits import at_most_digits
from amp.loaders.json_text import json_text
from amp.loaders.uint256 import uint256_bytes

__all__ = ['TABLES']

_JSON = Rule('', pa.string(), json_text)


def _whole_decimal(kind: Any) -> pa.DataType:
    """A decimal128 without a negative scale."""
    return pa.decimal128(min(kind.precision - min(kind.scale, 0), 38), max(kind.scale, 0))


def _same(column: str, kinds: Iterable[str], wire: pa.DataType | Callable[[Any], pa.DataType] | None = None) -> Any:
    return {kind: Rule(column, wire) for kind in kinds}


_NS_REFUSED = 'a value with nanoseconds below a microsecond is refused'

_POSTGRESQL = TypeTable(
    'PostgreSQL',
    {
        'bool': Rule('boolean'),
        **_same('smallint', ('int8', 'int16', 'uint8')),
        **_same('integer', ('int32', 'uint16')),
        **_same('bigint', ('int64', 'uint32')),
        'uint64': Rule('numeric(20,0)'),
        **_same('real', ('float16', 'float32')),
        'float64': Rule('double precision'),
        'decimal': Rule('numeric({precision},{scale})'),
        'decimal256': Rule('numeric({precision},{scale})'),
        'text': Rule('text', note='a text with the character NUL is refused'),
        'text as decimal': Rule('numeric(78,0)', note='holds every uint256'),
        'decimal256 as decimal': Rule('numeric(78,0)', note='holds every uint256'),
        'bytes': Rule('bytea'),
        'fixed bytes': Rule('bytea'),
        'date': Rule('date'),
        'time': Rule('time without time zone'),
        'time[ns]': Rule('time without time zone', note=_NS_REFUSED),
        'timestamp': Rule('timestamp without time zone'),
        'timestamp[ns]': Rule('timestamp without time zone', note=_NS_REFUSED),
        'timestamp with zone': Rule('timestamp with time zone'),
        'timestamp[ns] with zone': Rule('timestamp with time zone', note=_NS_REFUSED),
        'duration': Rule('interval'),
        'duration[ns]': Rule('interval', note=_NS_REFUSED),
        'list': Rule('{inner}[]', note='of values that are a cast away from their bytes; others as jsonb'),
        'nested': Rule('jsonb', pa.string(), json_text),
        'null': Rule('text'),
    },
)

_DUCKDB = TypeTable(
    'DuckDB',
    {
        'bool': Rule('BOOLEAN'),
        'int8': Rule('TINYINT'),
        'int16': Rule('SMALLINT'),
        'int32': Rule('INTEGER'),
        'int64': Rule('BIGINT'),
        'uint8': Rule('UTINYINT'),
        'uint16': Rule('USMALLINT'),
        'uint32': Rule('UINTEGER'),
        'uint64': Rule('UBIGINT'),
        'float16': Rule('FLOAT', pa.float32()),
        'float32': Rule('FLOAT'),
        'float64': Rule('DOUBLE'),
        'decimal': Rule('DECIMAL({precision},{scale})'),
        'decimal256': Rule('BIGNUM', pa.string(), note='of scale 0; others are refused'),
        'text': Rule('VARCHAR'),
        'text as decimal': Rule('BIGNUM', pa.string(), note='of any size'),
        'bytes': Rule('BLOB'),
        'fixed bytes': Rule('BLOB'),
        'date': Rule('DATE'),
        'time': Rule('TIME'),
        'time[ns]': Rule('TIME_NS'),
        'timestamp': Rule('TIMESTAMP', note='TIMESTAMP_S and TIMESTAMP_MS for seconds and milliseconds'),
        'timestamp[ns]': Rule('TIMESTAMP_NS'),
        'timestamp with zone': Rule('TIMESTAMP WITH TIME ZONE'),
        'timestamp[ns] with zone': Rule('TIMESTAMPTZ_NS', note='DuckDB 1.5 keeps microseconds and refuses a remainder'),
        'duration': Rule('INTERVAL', pa.duration('us')),
        'duration[ns]': Rule('INTERVAL', pa.duration('us'), note=_NS_REFUSED),
        'list': Rule('{inner}[]'),
        'struct': Rule('STRUCT({fields})'),
        'map': Rule('MAP({key}, {inner})'),
        'null': Rule('"NULL"'),
    },
)

_UTC = ('UTC', '+00:00', 'Etc/UTC', 'Z')


def _utc_micro(kind: Any) -> pa.DataType:
    """Microseconds in UTC; of another zone only the name would be lost, and nothing is lost silently."""
    if kind.tz not in _UTC:
        raise SchemaError(
            f'times of the zone {kind.tz!r} are refused: Iceberg keeps instants in UTC and forgets the zone'
        )
    return pa.timestamp('us', 'UTC')


def _fixed(kind: Any) -> pa.DataType:
    """Bytes of no length have no type in Parquet: there they are bytes of any length."""
    return kind if kind.byte_width else pa.binary()


_ICEBERG = TypeTable(
    'Iceberg',
    {
        'bool': Rule('boolean'),
        **_same('int', ('int8', 'int16', 'int32', 'uint8', 'uint16'), pa.int32()),
        **_same('long', ('int64', 'uint32'), pa.int64()),
        'uint64': Rule('decimal(20,0)', pa.decimal128(20, 0)),
        **_same('float', ('float16', 'float32'), pa.float32()),
        'float64': Rule('double'),
        'decimal': Rule('decimal({precision},{scale})', _whole_decimal, note='of at most 38 digits'),
        'text': Rule('string', pa.string()),
        'bytes': Rule('binary', pa.binary()),
        'fixed bytes': Rule('fixed[{width}]', _fixed),
        'date': Rule('date', pa.date32()),
        'time': Rule('time', pa.time64('us')),
        'time[ns]': Rule('time', pa.time64('us'), note=_NS_REFUSED),
        'timestamp': Rule('timestamp', pa.timestamp('us')),
        'timestamp[ns]': Rule('timestamp', pa.timestamp('us'), note=_NS_REFUSED),
        'timestamp with zone': Rule('timestamptz', _utc_micro, note='of UTC; other zones are refused'),
        'timestamp[ns] with zone': Rule('timestamptz', _utc_micro, note=f'of UTC; {_NS_REFUSED}'),
        'list': Rule('list<{inner}>'),
        'struct': Rule('struct<{fields}>'),
        'map': Rule('map<{key}, {inner}>'),
        'nested': Rule('string', pa.string(), json_text, note='JSON, where an inner type has no home of its own'),
        'null': Rule('string', pa.string()),
    },
)

_SNOWFLAKE = TypeTable(
    'Snowflake',
    {
        'bool': Rule('BOOLEAN'),
        **_same('NUMBER(5,0)', ('int8', 'int16', 'uint8'), pa.int32()),
        **_same('NUMBER(10,0)', ('int32', 'uint16', 'uint32'), pa.int64()),
        'int64': Rule('NUMBER(19,0)'),
        'uint64': Rule('NUMBER(20,0)', pa.decimal128(20, 0)),
        **_same('FLOAT', ('float16', 'float32', 'float64'), pa.float64()),
        'decimal': Rule(
            'NUMBER({precision},{scale})', _whole_decimal, note='of at most 38 digits, 37 of them after the point'
        ),
        'decimal256': Rule('VARCHAR', pa.string(), note='the digits of a whole number; of at most 38 of them: NUMBER'),
        'text': Rule('VARCHAR', pa.string()),
        'text as decimal': Rule(
            'NUMBER(38,0)', pa.decimal128(38, 0), at_most_digits(38), note='a value of more than 38 digits is refused'
        ),
        'decimal256 as decimal': Rule(
            'NUMBER(38,0)', pa.decimal128(38, 0), note='a value of more than 38 digits is refused'
        ),
        'bytes': Rule('BINARY', pa.binary()),
        'fixed bytes': Rule('BINARY({width})', pa.binary()),
        'date': Rule('DATE', pa.date32()),
        'time': Rule('TIME(9)', pa.time64('us')),
        'time[ns]': Rule('TIME(9)'),
        'timestamp': Rule('TIMESTAMP_NTZ(9)', pa.timestamp('us')),
        'timestamp[ns]': Rule('TIMESTAMP_NTZ(9)'),
        'timestamp with zone': Rule('TIMESTAMP_NTZ(9)', pa.timestamp('us'), note='in UTC'),
        'timestamp[ns] with zone': Rule('TIMESTAMP_NTZ(9)', pa.timestamp('ns'), note='in UTC'),
        'nested': Rule(
            'VARIANT',
            pa.string(),
            json_text,
            note='where it keeps every number; with floats, fractions or more than 38 digits inside: JSON in VARCHAR',
        ),
        'null': Rule('VARCHAR', pa.string()),
    },
)


def _whole_decimal256(kind: Any) -> pa.DataType:
    """A decimal256 without a negative scale."""
    return pa.decimal256(min(kind.precision - min(kind.scale, 0), 76), max(kind.scale, 0))


def _nanoseconds(column: Any) -> Any:
    """Durations, and times since midnight, as numbers."""
    fine: Any = pa.time64('ns') if pa.types.is_time(column.type) else pa.duration('ns')
    return column.cast(fine).cast(pa.int64())


_AS_NANOSECONDS = Rule('Int64', pa.int64(), _nanoseconds, note='nanoseconds')
_CLICKHOUSE_ZONE = 'kept in UTC; the server shows 1900 to 2299, what lies outside is kept all the same'

_CLICKHOUSE = TypeTable(
    'ClickHouse',
    {
        'bool': Rule('Bool'),
        **{f'{sign}int{bits}': Rule(f'{sign.upper()}Int{bits}') for sign in ('', 'u') for bits in (8, 16, 32, 64)},
        **_same('Float32', ('float16', 'float32'), pa.float32()),
        'float64': Rule('Float64'),
        'decimal': Rule('Decimal({precision}, {scale})', _whole_decimal),
        'decimal256': Rule('Decimal({precision}, {scale})', _whole_decimal256),
        'text': Rule('String', pa.string()),
        'text as decimal': Rule('UInt256', pa.binary(32), uint256_bytes, note='a text that is no uint256 is refused'),
        'bytes': Rule('String', pa.binary()),
        'fixed bytes': Rule('FixedString({width})'),
        'date': Rule('Date32', pa.date32(), note='the years 0 to 9999'),
        'time': _AS_NANOSECONDS,
        'time[ns]': _AS_NANOSECONDS,
        'timestamp': Rule("DateTime64(6, 'UTC')", pa.timestamp('us', 'UTC'), note=_CLICKHOUSE_ZONE),
        'timestamp[ns]': Rule("DateTime64(9, 'UTC')", pa.timestamp('ns', 'UTC'), note=_CLICKHOUSE_ZONE),
        'timestamp with zone': Rule("DateTime64(6, 'UTC')", pa.timestamp('us', 'UTC'), note=_CLICKHOUSE_ZONE),
        'timestamp[ns] with zone': Rule("DateTime64(9, 'UTC')", pa.timestamp('ns', 'UTC'), note=_CLICKHOUSE_ZONE),
        'duration': _AS_NANOSECONDS,
        'duration[ns]': _AS_NANOSECONDS,
        'list': Rule(
            'Array({inner})', note='of plain values, where the list itself cannot be null; others as JSON text'
        ),
        'nested': Rule('String', pa.string(), json_text, note='JSON text'),
        'null': Rule('String', pa.string()),
    },
)

_OWN_BYTES = 'as Arrow keeps it'
_LMDB = TypeTable(
    'LMDB',
    {
        **_same(
            _OWN_BYTES,
            (
                *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
                *('float16', 'float32', 'float64', 'decimal', 'decimal256', 'fixed bytes', 'date', 'time', 'time[ns]'),
                *('timestamp', 'timestamp[ns]', 'timestamp with zone', 'timestamp[ns] with zone'),
                *('duration', 'duration[ns]', 'null'),
            ),
        ),
        'text': Rule('text', pa.string()),
        'text as decimal': Rule(_OWN_BYTES, pa.decimal256(76, 0), at_most_digits(76), note='up to 76 digits'),
        'bytes': Rule('bytes', pa.binary()),
        'nested': Rule(
            'text', pa.string(), json_text, note='as JSON where a row has a key; whole batches keep it as it is'
        ),
    },
)

_DELTALAKE = TypeTable(
    'Delta Lake',
    {
        'bool': Rule('boolean'),
        'int8': Rule('byte'),
        **_same('short', ('int16', 'uint8'), pa.int16()),
        **_same('integer', ('int32', 'uint16'), pa.int32()),
        **_same('long', ('int64', 'uint32'), pa.int64()),
        'uint64': Rule('decimal(20,0)', pa.decimal128(20, 0)),
        **_same('float', ('float16', 'float32'), pa.float32()),
        'float64': Rule('double'),
        'decimal': Rule('decimal({precision},{scale})', _whole_decimal, note='of at most 38 digits'),
        'text': Rule('string', pa.string()),
        'text as decimal': Rule(
            'decimal(38,0)', pa.decimal128(38, 0), at_most_digits(38), note='a value of more than 38 digits is refused'
        ),
        'bytes': Rule('binary', pa.binary()),
        'fixed bytes': Rule('binary', pa.binary()),
        'date': Rule('date', pa.date32()),
        'timestamp': Rule('timestamp_ntz', pa.timestamp('us')),
        'timestamp[ns]': Rule('timestamp_ntz', pa.timestamp('us'), note=_NS_REFUSED),
        'timestamp with zone': Rule('timestamp', pa.timestamp('us', 'UTC'), note='the instant is kept, in UTC'),
        'timestamp[ns] with zone': Rule('timestamp', pa.timestamp('us', 'UTC'), note=f'in UTC; {_NS_REFUSED}'),
        'list': Rule('array<{inner}>'),
        'struct': Rule('struct<{fields}>'),
        'map': Rule('map<{key}, {inner}>'),
        'nested': Rule('string', pa.string(), json_text, note='JSON, where an inner type has no home of its own'),
        'null': Rule('string', pa.string()),
    },
)

_REDIS = TypeTable(
    'Redis',
    {
        **_same(
            'number as text',
            (
                *('int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
                *('float16', 'float32', 'float64', 'decimal', 'decimal256'),
            ),
        ),
        **_same(
            "whole number of the column's unit",
            (
                *('date', 'time', 'time[ns]', 'timestamp', 'timestamp[ns]', 'timestamp with zone'),
                *('timestamp[ns] with zone', 'duration', 'duration[ns]'),
            ),
        ),
        'bool': Rule('true or false'),
        'null': Rule('nothing'),
        'text': Rule('text', pa.string()),
        'text as decimal': Rule('number as text', pa.decimal256(76, 0), note='up to 76 digits'),
        'bytes': Rule('bytes', pa.binary(), note='0x and hex digits where a row is JSON'),
        'fixed bytes': Rule('bytes', note='0x and hex digits where a row is JSON'),
        'nested': Rule('text', pa.string(), json_text, note='as JSON'),
    },
)

_PARQUET = TypeTable(
    'the Parquet store',
    {
        **{kind: Rule(kind) for kind in ('bool', 'int8', 'int16', 'int32', 'int64', 'float32', 'float64')},
        **{
            f'uint{bits}': Rule(f'uint{bits}', note=f'stored as {stored}')
            for bits, stored in ((8, 'int16'), (16, 'int32'), (32, 'int64'), (64, 'decimal(20,0)'))
        },
        'float16': Rule('float16', note='stored as float32'),
        'decimal': Rule('decimal({precision},{scale})', _whole_decimal),
        'decimal256': Rule('decimal({precision},{scale})', _whole_decimal256, note='above 38 digits stored as text'),
        'text': Rule('string', pa.string()),
        'text as decimal': Rule(
            'decimal(76,0)', pa.decimal256(76, 0), at_most_digits(76), note='up to 76 digits, stored as text'
        ),
        'bytes': Rule('binary', pa.binary()),
        'fixed bytes': Rule('fixed_size_binary[{width}]', note='stored as binary'),
        'date': Rule('date', pa.date32()),
        **{
            kind: Rule(kind, note='stored as a whole number')
            for kind in ('time', 'time[ns]', 'duration', 'duration[ns]', 'timestamp[ns]', 'timestamp[ns] with zone')
        },
        'timestamp': Rule('timestamp', note='stored as microseconds'),
        'timestamp with zone': Rule('timestamp with zone', note='stored as microseconds in UTC'),
        'list': Rule('list<{inner}>'),
        'struct': Rule('struct<{fields}>'),
        'map': Rule('map<{key}, {inner}>'),
        'nested': Rule('string', pa.string(), json_text, note='JSON, where an inner type has no home of its own'),
        'null': Rule('string', pa.string()),
    },
)

TABLES: dict[str, TypeTable] = {
    'redis': _REDIS,
    'lmdb': _LMDB,
    'clickhouse': _CLICKHOUSE,
    'duckdb': _DUCKDB,
    'iceberg': _ICEBERG,
    'postgresql': _POSTGRESQL,
    'snowflake': _SNOWFLAKE,
    'deltalake': _DELTALAKE,
    'parquet': _PARQUET,
}
