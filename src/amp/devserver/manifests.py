"""Manifests of datasets as the Admin API carries them, with Arrow types in the names that the server gives them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from amp.devserver.chain import Chain
from amp.devserver.derived import DerivedChain

__all__ = ['Manifest', 'arrow_fields', 'derived_manifest', 'manifest_hash', 'raw_manifest', 'type_name']

Manifest = dict[str, Any]

_UNITS = {'s': 'Second', 'ms': 'Millisecond', 'us': 'Microsecond', 'ns': 'Nanosecond'}
_NAMES: dict[pa.DataType, str] = {
    pa.null(): 'Null',
    pa.bool_(): 'Boolean',
    pa.int8(): 'Int8',
    pa.int16(): 'Int16',
    pa.int32(): 'Int32',
    pa.int64(): 'Int64',
    pa.uint8(): 'UInt8',
    pa.uint16(): 'UInt16',
    pa.uint32(): 'UInt32',
    pa.uint64(): 'UInt64',
    pa.float16(): 'Float16',
    pa.float32(): 'Float32',
    pa.float64(): 'Float64',
    pa.string(): 'Utf8',
    pa.large_string(): 'LargeUtf8',
    pa.string_view(): 'Utf8View',
    pa.binary(): 'Binary',
    pa.large_binary(): 'LargeBinary',
    pa.binary_view(): 'BinaryView',
    pa.date32(): 'Date32',
    pa.date64(): 'Date64',
}


def type_name(type_: Any) -> Any:
    """The type as the server writes it: a name, or an object of the name and its parameters."""
    if type_ in _NAMES:
        return _NAMES[type_]
    return next((describe(type_) for test, describe in _WITH_PARAMETERS if test(type_)), str(type_))


def _field(field: pa.Field[Any]) -> dict[str, Any]:
    """A field inside of a type, which has more keys than one of a table."""
    return {
        'name': field.name,
        'data_type': type_name(field.type),
        'nullable': field.nullable,
        'dict_id': 0,
        'dict_is_ordered': False,
        'metadata': {},
    }


_WITH_PARAMETERS: list[tuple[Callable[[Any], bool], Callable[[Any], dict[str, Any]]]] = [
    (pa.types.is_fixed_size_binary, lambda t: {'FixedSizeBinary': t.byte_width}),
    (pa.types.is_timestamp, lambda t: {'Timestamp': [_UNITS[t.unit], t.tz]}),
    (pa.types.is_decimal, lambda t: {f'Decimal{t.bit_width}': [t.precision, t.scale]}),
    (pa.types.is_list, lambda t: {'List': _field(t.value_field)}),
    (pa.types.is_fixed_size_list, lambda t: {'FixedSizeList': [_field(t.value_field), t.list_size]}),
    (pa.types.is_struct, lambda t: {'Struct': [_field(field) for field in t]}),
]


def arrow_fields(schema: pa.Schema) -> dict[str, Any]:
    """The schema of a table: `{"arrow": {"fields": [...]}}`."""
    fields = [{'name': f.name, 'type': type_name(f.type), 'nullable': f.nullable} for f in schema]
    return {'arrow': {'fields': fields}}


def raw_manifest(chain: Chain, start_block: int) -> Manifest:
    """The manifest of a raw dataset; its fields leave `_block_num` out."""
    kind = 'firehose' if 'calls' in chain.schemas else 'evm-rpc'
    tables = {
        name: {'schema': arrow_fields(_written(schema)), 'network': chain.network}
        for name, schema in chain.schemas.items()
    }
    return {
        'kind': kind,
        'network': chain.network,
        'start_block': start_block,
        'finalized_blocks_only': False,
        'tables': tables,
    }


def derived_manifest(chain: DerivedChain, dependencies: Mapping[str, str]) -> Manifest:
    """The manifest of a derived dataset."""
    tables = {
        name: {'input': {'sql': table.sql}, 'schema': arrow_fields(_written(table.schema))}
        for name, table in chain.tables.items()
    }
    return {'kind': 'manifest', 'dependencies': dict(dependencies), 'tables': tables, 'functions': {}}


def _written(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != '_block_num'])


def manifest_hash(manifest: Manifest) -> str:
    """64 hex digits that name the manifest, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(',', ':')).encode()).hexdigest()
