"""Decoding and encoding by column against eth-abi, for any type; and data that no encoder makes."""

from __future__ import annotations

from itertools import pairwise

import eth_abi
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp.devserver.evm.decode import Calldata, decode_sequence, decode_topic
from amp.devserver.evm.encode import EncodingError, encode_sequence
from amp.devserver.evm.signatures import parse_type
from amp.devserver.evm.solidity import Scalar
from amp.devserver.evm.words import decimal_text, with_nulls
from tests.unit.devserver_evm.values import SCALARS, TYPES, values_of

pytestmark = pytest.mark.unit


def decode(types, column: pa.Array, skip: int = 0) -> list[list]:
    arrays, ok = decode_sequence(types, Calldata(column), skip)
    found = []
    for type_, array in zip(types, arrays, strict=True):
        array.validate(full=True)
        assert array.type == type_.arrow
        found.append(with_nulls(array, ok).to_pylist())
    return found


ROWS = st.lists(TYPES, min_size=1, max_size=3).flatmap(
    lambda types: st.tuples(
        st.just(types), st.lists(st.tuples(*[values_of(type_) for type_ in types]), min_size=1, max_size=5)
    )
)


@given(ROWS, st.integers(0, 5))
@settings(max_examples=100)
def test_what_eth_abi_encodes_is_decoded(given_rows, skip):
    types, rows = given_rows
    names = [str(type_) for type_ in types]
    data = [bytes(skip) + eth_abi.encode(names, [abi for abi, _ in row]) for row in rows]
    # A slice: the first row is not at the beginning of the buffers, and the nulls are not either.
    column = pa.array([b'unrelated', None, *data, None], pa.binary()).slice(1)
    assert decode(types, column, skip) == [[None, *[row[at][1] for row in rows], None] for at in range(len(types))]


@given(ROWS)
@settings(max_examples=80)
def test_what_is_decoded_is_encoded_as_eth_abi_does(given_rows):
    types, rows = given_rows
    names = [str(type_) for type_ in types]
    data = [eth_abi.encode(names, [abi for abi, _ in row]) for row in rows]
    arrays, _ = decode_sequence(types, Calldata(pa.array(data)))
    if any('256' in name for name in names):
        # Numbers of 256 bits are text, which does not go back.
        with pytest.raises(EncodingError, match='cannot convert string to solidity type'):
            encode_sequence(types, arrays, len(rows))
        return
    encoded = encode_sequence(types, arrays, len(rows), b'\x01\x02\x03\x04')
    encoded.validate(full=True)
    assert encoded.to_pylist() == [b'\x01\x02\x03\x04' + row for row in data]
    sliced = encode_sequence(types, [array.slice(1) for array in arrays], len(rows) - 1)
    assert sliced.to_pylist() == data[1:]


@given(ROWS, st.data())
@settings(max_examples=100)
def test_spoilt_data_is_null_or_something_and_spoils_no_other_row(given_rows, data):
    types, rows = given_rows
    good = eth_abi.encode([str(type_) for type_ in types], [abi for abi, _ in rows[0]])
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(bad[: data.draw(st.integers(0, len(bad)))])
    found = decode(types, pa.array([good, cut, b'', good]))
    for at in range(len(types)):
        assert found[at][0] == found[at][3] == rows[0][at][1]
        assert found[at][2] is None


@given(SCALARS.flatmap(lambda type_: st.tuples(st.just(type_), st.lists(values_of(type_), min_size=1, max_size=5))))
def test_topics(given_values):
    type_, values = given_values
    words = [eth_abi.encode([str(type_)], [abi]) for abi, _ in values]
    topic = pa.array([None, None, *words], pa.binary(32)).slice(1)
    found = decode_topic(type_, topic)
    found.validate(full=True)
    assert found.to_pylist() == [None, *[arrow for _, arrow in values]]


@given(st.lists(st.integers(-(2**255), 2**255 - 1), min_size=1, max_size=20), st.booleans())
def test_decimal_text(numbers, signed):
    numbers = numbers if signed else [number + 2**255 for number in numbers]
    words = np.frombuffer(b''.join(n.to_bytes(32, 'big', signed=signed) for n in numbers), dtype=np.uint8)
    offsets, text = decimal_text(words.reshape(-1, 32), signed=signed)
    found = [text[a:b].tobytes().decode() for a, b in pairwise(offsets)]
    assert found == [str(number) for number in numbers]


@pytest.mark.parametrize(
    ('type_', 'data'),
    [
        ('uint8', (256).to_bytes(32, 'big')),
        ('int8', (128).to_bytes(32, 'big')),
        ('int8', (-129).to_bytes(32, 'big', signed=True)),
        ('uint120', (2**120).to_bytes(32, 'big')),
        ('uint248', (2**248).to_bytes(32, 'big')),
        ('uint256', bytes(31)),
        ('string', (32).to_bytes(32, 'big') + (2).to_bytes(32, 'big') + b'a'),
        ('string', (2**255).to_bytes(32, 'big')),
        ('string', (2**31).to_bytes(32, 'big') + bytes(64)),
        ('uint8[]', (32).to_bytes(32, 'big') + (2**30).to_bytes(32, 'big')),
        ('uint8[]', (32).to_bytes(32, 'big') + (2).to_bytes(32, 'big') + bytes(32)),
        ('uint8[2]', bytes(32)),
        ('string[2]', (32).to_bytes(32, 'big') + bytes(32)),
    ],
)
def test_undecodable(type_, data):
    assert decode([parse_type(type_)], pa.array([data])) == [[None]]


def test_what_the_server_reads_leniently():
    word = pa.array([b'\xff' * 32])
    assert decode([parse_type('bool')], word) == [[True]]
    assert decode([parse_type('address')], word) == [[b'\xff' * 20]]
    assert decode([parse_type('bytes2')], word) == [[b'\xff\xff']]
    more = pa.array([(7).to_bytes(32, 'big') + b'whatever follows'])
    assert decode([parse_type('uint8')], more) == [[7]]
    no_text = (32).to_bytes(32, 'big') + (3).to_bytes(32, 'big') + b'a\xffb'
    fine = eth_abi.encode(['string'], ['ok'])
    assert decode([parse_type('string')], pa.array([no_text, fine])) == [['a�b', 'ok']]


def test_lists_that_share_their_items_do_not_multiply():
    # Each level's offsets all point at the same next level: 200**4 items, if one believed it.
    fan = 200
    word = 32
    levels = (
        b''.join(fan.to_bytes(32, 'big') + (fan * word).to_bytes(32, 'big') * fan for _ in range(3))
        + fan.to_bytes(32, 'big')
        + bytes(word * fan)
    )
    data = (32).to_bytes(32, 'big') + levels
    good = eth_abi.encode(['uint8[][][][]'], [[[[[1]]]]])
    assert decode([parse_type('uint8[][][][]')], pa.array([data, good])) == [[None, [[[[1]]]]]]


def test_no_rows():
    for name in ('uint256', 'string', '(uint8[2],string)[]', 'string[2]'):
        type_ = parse_type(name)
        empty = pa.array([], pa.binary())
        (array,), ok = decode_sequence([type_], Calldata(empty))
        assert (len(array), len(ok)) == (0, 0)
    assert encode_sequence([parse_type('uint8[]')], [pa.array([], pa.list_(pa.uint8()))], 0).to_pylist() == []


def test_a_null_anywhere_makes_the_encoding_null():
    type_ = parse_type('(uint8[],string)[2]')
    good = [{'c0': [1, 2], 'c1': 'x'}, {'c0': [], 'c1': ''}]
    rows = [
        good,
        None,
        [good[0], None],
        [good[0], {'c0': None, 'c1': ''}],
        [good[0], {'c0': [None], 'c1': ''}],
        [good[0], {'c0': [300], 'c1': None}],
        good,
    ]
    # The 300 does not fit, but there is nothing to encode in its row anyway... unless the row were complete.
    rows[5][1]['c0'] = [30]
    item = pa.struct([('c0', pa.list_(pa.uint16())), ('c1', pa.string())])
    encoded = encode_sequence([type_], [pa.array(rows, pa.list_(item, 2))], len(rows)).to_pylist()
    wanted = eth_abi.encode([str(type_)], [[([1, 2], 'x'), ([], '')]])
    assert encoded == [wanted, None, None, None, None, None, wanted]


@pytest.mark.parametrize(
    ('type_', 'column', 'told'),
    [
        ('uint8', pa.array([300], pa.uint16()), 'cannot convert uint to solidity uint8: 300 not in [0, 2**8)'),
        ('int8', pa.array([-129], pa.int64()), 'cannot convert int to solidity int8: -129 not in [-2**7, 2**7)'),
        ('uint8', pa.array([-2], pa.int8()), 'expected int type, got uint8'),
        ('int8', pa.array([2], pa.uint8()), 'expected uint type, got int8'),
        ('string', pa.array([-2], pa.int8()), 'expected int type, got string'),
        ('bool', pa.array([1], pa.uint8()), 'expected uint type, got bool'),
        ('uint256', pa.array(['1']), 'cannot convert string to solidity type uint256'),
        ('string', pa.array([b'1']), 'cannot convert bytes to solidity type string'),
        ('uint8', pa.array([True]), 'cannot convert boolean to solidity type uint8'),
        ('address', pa.array([b'1' * 32], pa.binary(32)), 'fixed size binary of size 32 to solidity type address'),
        ('bytes', pa.array([b'1' * 32], pa.binary(32)), 'cannot convert fixed size binary to solidity type bytes'),
        ('uint8', pa.array([[1]]), 'cannot convert list to solidity type uint8'),
        ('uint8[]', pa.array([1]), 'expected int type, got uint8[]'),
        ('int64[2]', pa.array([[1]]), 'cannot convert list to solidity type int64[2]'),
        ('int64[2]', pa.array([[1]], pa.list_(pa.int64(), 1)), 'fixed size list of size 1 to solidity type int64[2]'),
        ('(int64,bool)', pa.array([{'a': 1}]), 'cannot convert struct of size 1 to solidity type (int64,bool)'),
        ('uint256', pa.array([1.5]), 'Unsupported type double for Solidity type uint256'),
        ('uint256', pa.array(['1'], pa.string()).cast(pa.decimal128(5, 1)), 'Unsupported type decimal128(5, 1)'),
        ('uint256', pa.array([-1]).cast(pa.decimal128(38, 0)), 'cannot convert uint to solidity uint256: -1 not in'),
    ],
)
def test_what_cannot_be_encoded(type_, column, told):
    with pytest.raises(EncodingError) as caught:
        encode_sequence([parse_type(type_)], [column], 1)
    assert told in str(caught.value)


@given(st.integers(-(10**38) + 1, 10**38 - 1), st.booleans())
def test_decimals_are_encoded(number, wide):
    signed = number < 0
    type_ = Scalar('int' if signed else 'uint', 256)
    arrow = pa.decimal256(76, 0) if wide else pa.decimal128(38, 0)
    column = pa.array([number], arrow)
    assert encode_sequence([type_], [column], 1).to_pylist() == [number.to_bytes(32, 'big', signed=signed)]
