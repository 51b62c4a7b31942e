"""The server's built-in functions: for each call, the types that it takes, the type that it gives, and what it does.

Some results depend on a literal (a signature, a type), so the implementation is made for one call. Where the arguments
may be of several types, it is made once these are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from amp.devserver.evm.calls import Call
from amp.devserver.evm.decode import Calldata, decode_sequence, decode_topic
from amp.devserver.evm.encode import EncodingError, encode_sequence
from amp.devserver.evm.signatures import SignatureError, parse_event, parse_function, parse_type
from amp.devserver.evm.solidity import SolType
from amp.devserver.evm.units import UnitsError, shift_units
from amp.devserver.evm.words import Column, bitmap, buffer_of, fixed_of, valid_rows, with_nulls

__all__ = ['BLOCK_NUM', 'BUILDERS', 'BY_TYPES', 'FunctionError', 'Implementation', 'Types']

Types = Sequence[pa.DataType]

_HASH = pa.binary(32)
_HEX_DIGITS = np.frombuffer(b'0123456789abcdef', dtype=np.uint8)
_TEXT = (pa.string(),)


class FunctionError(ValueError):
    """What a function says about its arguments, in the server's words as far as they are known."""


@dataclass(frozen=True)
class Implementation:
    """The types of the arguments, the field of the result, and the function over whole columns."""

    arguments: tuple[pa.DataType, ...]
    result: pa.Field[pa.DataType]
    run: Callable[..., Column]
    volatility: str = 'immutable'


def _never(*_: Column) -> Column:
    raise FunctionError('called with arguments that it does not take')


def _nullable(type_: pa.DataType) -> pa.Field[pa.DataType]:
    return pa.field('result', type_)


def _signature(call: Call, at: int, what: str = 'a string literal for the signature') -> str:
    text = call.literal(at)
    if text is None:
        found = 'expected Utf8, got Null' if call.is_null(at) else f'{call.display}: expected {what}'
        raise FunctionError(found)
    return text


def _in_context(call: Call, what: str, error: SignatureError) -> FunctionError:
    """DataFusion tells where an error came from before it tells the error."""
    return FunctionError(f'{call.display}\ncaused by\nError during planning: {what}{error}')


def _decode_log(call: Call, _: Types) -> Implementation:
    taken = (_HASH, _HASH, _HASH, pa.binary(), pa.string())
    if len(call.arguments) != len(taken):
        return Implementation(taken, _nullable(pa.null()), _never)
    try:
        event = parse_event(_signature(call, 4))
    except SignatureError as error:
        raise _in_context(call, 'parse event signature: ', error) from error
    topics, body = event.topics, event.body
    fields = [pa.field(name, type_.arrow) for name, type_ in [*topics, *body]]
    if not fields:
        return Implementation(taken, _nullable(pa.null()), lambda *columns: pa.nulls(len(columns[0])))

    def run(*columns: Column) -> Column:
        arrays = [decode_topic(type_, column) for (_, type_), column in zip(topics, columns, strict=False)]
        values, ok = decode_sequence([type_ for _, type_ in body], Calldata(columns[3]))
        return pa.StructArray.from_arrays(arrays + [with_nulls(value, ok) for value in values], fields=fields)

    return Implementation(taken, pa.field('result', pa.struct(fields), nullable=False), run)


def _topic(call: Call, _: Types) -> Implementation:
    def run(column: Column) -> Column:
        # Like the server this looks at the signature when it runs, not when the query is planned.
        text = call.literal(0)
        if text is None:
            raise FunctionError('evm_topic: expected scalar argument for the signature but got Utf8')
        try:
            topic = parse_event(text).topic
        except SignatureError as error:
            anonymous = 'anonymous event' in str(error)
            raise (
                FunctionError(str(error)) if anonymous else _in_context(call, 'parse event signature: ', error)
            ) from error
        return _constant(topic, len(column))

    return Implementation(_TEXT, _nullable(_HASH), run)


def _decode_params(call: Call, _: Types) -> Implementation:
    taken = (pa.binary(), pa.string())
    if len(call.arguments) != len(taken):
        return Implementation(taken, _nullable(pa.null()), _never)
    try:
        function = parse_function(_signature(call, 1))
    except SignatureError as error:
        raise _in_context(call, 'parse function signature: ', error) from error
    fields = [pa.field(name, type_.arrow) for name, type_ in function.inputs]

    def run(column: Column, _: Column) -> Column:
        calldata = Calldata(column)
        calldata.valid &= calldata.begins_with(function.selector)
        arrays, ok = decode_sequence([type_ for _, type_ in function.inputs], calldata, skip=4)
        if not fields:
            return pa.Array.from_buffers(pa.struct([]), len(column), [bitmap(ok)])
        return with_nulls(pa.StructArray.from_arrays(arrays, fields=fields), ok)

    return Implementation(taken, _nullable(pa.struct(fields)), run)


def _decode_type(call: Call, _: Types) -> Implementation:
    taken = (pa.binary(), pa.string())
    if len(call.arguments) != len(taken):
        return Implementation(taken, _nullable(pa.null()), _never)
    try:
        type_ = parse_type(_signature(call, 1, 'scalar argument for the Solidity type'))
    except SignatureError as error:
        raise FunctionError(f'failed to parse Solidity type: {error}') from error

    def run(column: Column, _: Column) -> Column:
        (values,), ok = decode_sequence([type_], Calldata(column))
        return with_nulls(values, ok)

    return Implementation(taken, _nullable(type_.arrow), run)


def _encode_params(call: Call, types: Types) -> Implementation:
    if not call.arguments:
        raise FunctionError("'evm_encode_params' does not support zero arguments")

    def run(*columns: Column) -> Column:
        try:
            function = parse_function(_signature(call, -1, 'scalar argument for the Solidity function signature'))
        except SignatureError as error:
            raise _in_context(call, 'parse function signature: ', error) from error
        wanted, found = len(function.inputs), len(columns) - 1
        if wanted != found:
            text = f'expected {wanted} arguments for the function signature but got {found}'
            raise FunctionError(f'evm_encode_params: {text}')
        return _encoded([type_ for _, type_ in function.inputs], columns[:-1], len(columns[-1]), function.selector)

    return Implementation(tuple(types), _nullable(pa.binary()), run)


def _encode_type(call: Call, types: Types) -> Implementation:
    if len(types) != 2:
        raise FunctionError(f'evm_encode_type: expected at 2 arguments, but got {len(types)}')

    def run(column: Column, signature: Column) -> Column:
        try:
            type_ = parse_type(_signature(call, 1, 'scalar argument for the Solidity type'))
        except SignatureError as error:
            raise FunctionError(f'failed to parse Solidity type: {error}') from error
        return _encoded([type_], [column], len(signature), b'')

    return Implementation(tuple(types), _nullable(pa.binary()), run)


def _encoded(types: Sequence[SolType], columns: Sequence[Column], rows: int, prefix: bytes) -> Column:
    try:
        return encode_sequence(types, columns, rows, prefix)
    except EncodingError as error:
        raise FunctionError(str(error)) from error


def _encode_hex(call: Call, _: Types) -> Implementation:
    if len(call.arguments) != 1:
        return Implementation(_TEXT, _nullable(pa.binary(20)), _never)
    if call.is_null(0):
        raise FunctionError('evm_encode_hex: input cannot be null')
    text = call.literal(0)
    if text is None:
        return Implementation(_TEXT, pa.field('result', pa.binary(20), nullable=False), _no_scalar)
    value = _bytes_of_hex(text)
    type_ = pa.binary(len(value))
    return Implementation(
        _TEXT, pa.field('result', type_, nullable=False), lambda column: _constant(value, len(column))
    )


def _constant(value: bytes, rows: int) -> Column:
    scalar: Any = pa.scalar(value, pa.binary(len(value)))
    return pa.repeat(scalar, rows)


def _no_scalar(_: Column) -> Column:
    raise FunctionError('evm_encode_hex: expected scalar argument but got Utf8')


def _bytes_of_hex(text: str) -> bytes:
    digits = text.removeprefix('0x')
    if len(digits) % 2:
        raise FunctionError('evm_encode_hex: invalid hex string: odd number of digits')
    wrong = re.search(r'[^0-9a-fA-F]', digits)
    if wrong is not None:
        raise FunctionError(
            f'evm_encode_hex: invalid hex string: invalid character {wrong.group()!r} at position {wrong.start()}'
        )
    if len(digits) not in {40, 64}:
        raise FunctionError(f'evm_encode_hex: expected 20 or 32 bytes, got {len(digits) // 2}')
    return bytes.fromhex(digits)


def _decode_hex(call: Call, types: Types) -> Implementation:
    if list(types) not in ([pa.binary(20)], [pa.binary(32)]):
        given = ', '.join(str(type_) for type_ in types)
        raise FunctionError(
            f"Failed to coerce arguments to satisfy a call to '{call.display}' function: coercion from {given} to the "
            'signature OneOf([Exact([FixedSizeBinary(20)]), Exact([FixedSizeBinary(32)])]) failed'
        )
    width = types[0].byte_width

    def run(column: Column) -> Column:
        text = np.empty((len(column), 2 + 2 * width), dtype=np.uint8)
        text[:, :2] = np.frombuffer(b'0x', dtype=np.uint8)
        values = fixed_of(column, width)
        text[:, 2::2], text[:, 3::2] = _HEX_DIGITS[values >> 4], _HEX_DIGITS[values & 15]
        offsets = np.arange(len(column) + 1, dtype=np.int32) * text.shape[1]
        buffers = [bitmap(valid_rows(column)), buffer_of(offsets), buffer_of(text)]
        return pa.Array.from_buffers(pa.string(), len(column), buffers)

    return Implementation(tuple(types), _nullable(pa.string()), run)


def _shift_units(_: Call, types: Types) -> Implementation:
    if len(types) != 2:
        raise FunctionError(f"The function 'shift_units' expected 2 arguments but received {len(types)}")
    value, units = types
    number = pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_decimal(value)
    if not number and not pa.types.is_string(value):
        raise FunctionError(f'shift_units: expected numeric type or Utf8 for first argument, got {_name(value)}')
    if not pa.types.is_integer(units) and not pa.types.is_string(units):
        raise FunctionError(f'shift_units: expected numeric type for second argument, got {_name(units)}')

    def run(values: Column, places: Column) -> Column:
        try:
            return shift_units(values, places)
        except UnitsError as error:
            raise FunctionError(f'shift_units: {error}') from error

    return Implementation(tuple(types), _nullable(pa.string()), run)


def _name(type_: pa.DataType) -> str:
    return 'Null' if pa.types.is_null(type_) else str(type_).capitalize()


def _outside_of_a_stream() -> Column:
    raise FunctionError('block_num() is only supported in streaming queries')


BLOCK_NUM = Implementation((), _nullable(pa.uint64()), _outside_of_a_stream, 'stable')
"""`block_num()`: a stream puts the block's number in its place before it runs, and nothing else can say it."""

BUILDERS: dict[str, Callable[[Call, Types], Implementation]] = {
    'evm_decode': _decode_log,
    'evm_decode_hex': _decode_hex,
    'evm_decode_log': _decode_log,
    'evm_decode_params': _decode_params,
    'evm_decode_type': _decode_type,
    'evm_encode_hex': _encode_hex,
    'evm_encode_params': _encode_params,
    'evm_encode_type': _encode_type,
    'evm_topic': _topic,
    'shift_units': _shift_units,
}
"""How to make the implementation of a call. Raises FunctionError for a call that the server refuses to plan."""

_CALLED = pa.struct([pa.field('data', pa.binary()), pa.field('message', pa.string())])

BY_TYPES: dict[str, pa.DataType] = {
    'eth_call': _CALLED,
    'evm_decode_hex': pa.string(),
    'evm_encode_params': pa.binary(),
    'evm_encode_type': pa.binary(),
    'shift_units': pa.string(),
}
"""The functions whose arguments may be of several types, and what they give whatever these are."""
