"""What each destination holds of what Amp sends: data, one table a destination. See `arrow_types.py` for the words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from amp.loaders.arrow_types import Rule, TypeTable
from amp.loaders.json_text import json_text

__all__ = ['TABLES']

_JSON = Rule('', pa.string(), json_text)


def _micro(kind: Any) -> pa.DataType:
    return pa.timestamp('us', kind.tz)


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

TABLES: dict[str, TypeTable] = {
    'postgresql': _POSTGRESQL,
}
