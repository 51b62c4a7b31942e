"""Solidity types and values at random: each value as eth-abi takes it, and as an Arrow column gives it back."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
from hypothesis import strategies as st

from amp.devserver.evm.solidity import Array, Bytes, Scalar, SolType, Tuple

INTEGERS = st.builds(Scalar, st.sampled_from(['int', 'uint']), st.integers(1, 32).map(lambda n: n * 8))
SCALARS = st.one_of(
    INTEGERS,
    st.builds(Scalar, st.just('bytes'), st.integers(1, 32)),
    st.just(Scalar('bool', 1)),
    st.just(Scalar('address', 20)),
)
LEAVES = st.one_of(SCALARS, st.builds(Bytes, st.booleans()))
TYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Array, inner, st.one_of(st.none(), st.integers(1, 3))),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: Tuple(tuple(items))),
    ),
    max_leaves=6,
)


def values_of(type_: SolType) -> st.SearchStrategy:
    """Pairs: the value for eth-abi, and what `to_pylist` says of it."""
    if isinstance(type_, Scalar):
        return _scalars(type_)
    if isinstance(type_, Bytes):
        return (st.text(max_size=70) if type_.text else st.binary(max_size=70)).map(lambda value: (value, value))
    if isinstance(type_, Array):
        least, most = (0, 3) if type_.length is None else (type_.length, type_.length)
        items = st.lists(values_of(type_.item), min_size=least, max_size=most)
        return items.map(lambda pairs: ([abi for abi, _ in pairs], [arrow for _, arrow in pairs]))
    parts = st.tuples(*[values_of(item) for item in type_.items])
    return parts.map(
        lambda pairs: (tuple(abi for abi, _ in pairs), {f'c{at}': arrow for at, (_, arrow) in enumerate(pairs)})
    )


def _scalars(type_: Scalar) -> st.SearchStrategy:
    if type_.kind == 'bool':
        return st.booleans().map(lambda value: (value, value))
    if type_.kind == 'address':
        return st.binary(min_size=20, max_size=20).map(lambda value: ('0x' + value.hex(), value))
    if type_.kind == 'bytes':
        return st.binary(min_size=type_.size, max_size=type_.size).map(lambda value: (value, value))
    low, high = (-(2 ** (type_.size - 1)), 2 ** (type_.size - 1) - 1) if type_.kind == 'int' else (0, 2**type_.size - 1)
    # Small ones too: most numbers between these bounds have all their digits.
    numbers = st.one_of(st.integers(low, high), st.integers(max(low, -1000), min(high, 10**12)))
    if pa.types.is_string(type_.arrow):
        return numbers.map(lambda value: (value, str(value)))
    if pa.types.is_decimal(type_.arrow):
        return numbers.map(lambda value: (value, Decimal(value)))
    return numbers.map(lambda value: (value, value))
