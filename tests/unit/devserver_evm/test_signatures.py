"""Signatures as people write them: their topics and selectors, the Arrow types of their parameters, and the errors."""

from __future__ import annotations

import pyarrow as pa
import pytest
from eth_utils import event_signature_to_log_topic, function_signature_to_4byte_selector

from amp.devserver.evm.signatures import SignatureError, parse_event, parse_function, parse_type

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ('text', 'canonical'),
    [
        ('Transfer(address indexed from, address indexed to, uint256 value)', 'Transfer(address,address,uint256)'),
        ('event Transfer(address indexed from,address indexed to,uint value);', 'Transfer(address,address,uint256)'),
        ('Transfer(address indexed, address indexed, uint256)', 'Transfer(address,address,uint256)'),
        ('Deep((uint8 a, (int, bytes3)[] b)[2] indexed x, string y)', 'Deep((uint8,(int256,bytes3)[])[2],string)'),
        ('Deep(tuple(address payable a)[3][] x)', 'Deep((address)[3][])'),
        ('Nothing()', 'Nothing()'),
        ('event(uint8 indexed indexed)', 'event(uint8)'),
        ('$odd_Name1(bool $)', '$odd_Name1(bool)'),
    ],
)
def test_the_topic_of_an_event(text, canonical):
    assert parse_event(text).topic == event_signature_to_log_topic(canonical)


@pytest.mark.parametrize(
    ('text', 'canonical'),
    [
        ('transfer(address to, uint256 amount)', 'transfer(address,uint256)'),
        ('function transfer(address _to, uint _v) public returns (bool success)', 'transfer(address,uint256)'),
        ('function f() external view virtual returns (uint256, string memory)', 'f()'),
        ('f(bytes calldata x, (uint8, string)[2] memory y) payable;', 'f(bytes,(uint8,string)[2])'),
        ('function(uint8 x)', 'function(uint8)'),
    ],
)
def test_the_selector_of_a_function(text, canonical):
    assert parse_function(text).selector == function_signature_to_4byte_selector(canonical)


def test_topics_come_before_the_body_and_hashes_stand_for_what_does_not_fit():
    event = parse_event('E(string indexed s, uint8 a, uint8[] indexed l, (bool, bool) indexed t, string b)')
    assert [(name, str(type_)) for name, type_ in event.topics] == [
        ('s', 'bytes32'),
        ('l', 'bytes32'),
        ('t', 'bytes32'),
    ]
    assert [(name, str(type_)) for name, type_ in event.body] == [('a', 'uint8'), ('b', 'string')]


@pytest.mark.parametrize('kind', ['int', 'uint'])
@pytest.mark.parametrize('bits', range(8, 257, 8))
def test_integers_have_the_arrow_type_of_their_width(kind, bits):
    letter = '' if kind == 'int' else 'u'
    if bits <= 64:
        width = next(w for w in (8, 16, 32, 64) if bits <= w)
        wanted = getattr(pa, f'{letter}int{width}')()
    else:
        wanted = pa.decimal128(38, 0) if bits <= 120 else pa.decimal256(76, 0) if bits <= 248 else pa.string()
    assert parse_type(f'{kind}{bits}').arrow == wanted


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('bool', pa.bool_()),
        ('address', pa.binary(20)),
        ('bytes', pa.binary()),
        ('bytes1', pa.binary(1)),
        ('bytes32', pa.binary(32)),
        ('string', pa.string()),
        ('uint', pa.string()),
        ('int', pa.string()),
        ('uint8[]', pa.list_(pa.field('item', pa.uint8()))),
        ('uint8[3][]', pa.list_(pa.field('item', pa.list_(pa.field('item', pa.uint8()), 3)))),
        ('(bool, string)', pa.struct([('c0', pa.bool_()), ('c1', pa.string())])),
        (' ( uint8 , ( bool ) ) ', pa.struct([('c0', pa.uint8()), ('c1', pa.struct([('c0', pa.bool_())]))])),
    ],
)
def test_other_types(text, wanted):
    assert parse_type(text).arrow == wanted


@pytest.mark.parametrize(
    ('parse', 'text', 'told'),
    [
        (parse_event, '', 'expected the name of the event, found the end'),
        (parse_event, 'Transfer', "expected '('"),
        (parse_event, 'Transfer(', 'expected a type, found the end'),
        (parse_event, 'Transfer(address', "expected ',', found the end"),
        (parse_event, 'Transfer(address from to)', "expected ',', found 'to'"),
        (parse_event, 'Transfer(address 1)', "expected the name of a parameter, found '1'"),
        (parse_event, 'Transfer(addr x)', "expected a Solidity type, found 'addr'"),
        (parse_event, 'Transfer(uint7 x)', "'uint7'"),
        (parse_event, 'Transfer(uint264 x)', "'uint264'"),
        (parse_event, 'Transfer(bytes33 x)', "'bytes33'"),
        (parse_event, 'Transfer(uint08 x)', "'uint08'"),
        (parse_event, 'Transfer(uint8 x) nonsense', "expected the end, found 'nonsense'"),
        (parse_event, 'Transfer(uint8,)', "expected a type, found ')'"),
        (parse_event, 'É(uint8 x)', 'the name of the event'),
        (
            parse_event,
            'E(bool indexed,bool indexed,bool indexed,bool indexed)',
            'only have 3 indexed parameters but has 4',
        ),
        (parse_function, 'f(uint8)', 'function f has unnamed input parameter'),
        (parse_function, 'f(uint8 x) returns', "expected '('"),
        (parse_type, 'uint8 x', "expected the end, found 'x'"),
        (parse_type, 'function', 'cannot convert solidity type function'),
        (parse_type, '()', 'a type inside of the tuple'),
        (parse_type, 'uint8[0]', 'the length of an array'),
        (parse_type, 'uint8[-1]', 'the length of an array'),
        (parse_type, 'uint8[', 'expected the length of an array, found the end'),
        (parse_type, 'uint8[99999999999999999999]', 'the length of an array'),
        (parse_type, 'uint8[1000000]', 'more than 1024 words'),
        (parse_type, 'string[100][100]', 'more than 1024 words'),
        (parse_type, 'uint8' + '[]' * 50, 'nested more than 16 deep'),
        (parse_type, '(' * 5000, 'nested more than 16 deep'),
        (parse_type, '(' * 40 + 'bool' + ')' * 40, 'nested more than 16 deep'),
        (parse_event, 'E(' + 'x' * 100_000, 'expected a Solidity type'),
    ],
)
def test_malformed_signatures_are_refused_where_they_go_wrong(parse, text, told):
    with pytest.raises(SignatureError) as caught:
        parse(text)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_anonymous_event_has_no_topic():
    with pytest.raises(SignatureError, match='anonymous event E has no topic0'):
        _ = parse_event('event E(bool x) anonymous').topic
