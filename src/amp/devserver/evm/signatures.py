"""Signatures of events and functions, and types, as people write them: their parameters, topics and selectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from eth_hash.auto import keccak

from amp.devserver.evm.solidity import HASH, WORD, Array, Bytes, Scalar, SolType, Tuple
from amp.devserver.limits import kept

__all__ = ['Event', 'Function', 'SignatureError', 'parse_event', 'parse_function', 'parse_type']

_MAX_DEPTH = 16
# A literal must not be able to ask for gigabytes a batch.
_MAX_SLOTS = 1024
_TOKEN = re.compile(r'\s*(?:(?P<word>[A-Za-z_$][\w$]*)|(?P<number>\d+)|(?P<mark>.))', re.DOTALL)
_SIZED = re.compile(r'(?P<kind>uint|int|bytes)(?P<size>[1-9]\d{0,2})')
_LOCATIONS = {'memory', 'calldata', 'storage', 'payable'}
_ATTRIBUTES = {
    'external',
    'public',
    'internal',
    'private',
    'view',
    'pure',
    'payable',
    'virtual',
    'override',
    'constant',
}


class SignatureError(ValueError):
    """A signature or type that cannot be read; the text says where."""


@dataclass(frozen=True)
class _Parameter:
    name: str
    type: SolType
    indexed: bool = False


@dataclass(frozen=True)
class Event:
    """An event's topics and body, each a list of names and types; topics that are hashes have the type bytes32."""

    name: str
    parameters: tuple[_Parameter, ...]
    anonymous: bool

    @cached_property
    def topic(self) -> bytes:
        """The first topic. Raises SignatureError for an anonymous event."""
        if self.anonymous:
            raise SignatureError(f'anonymous event {self.name} has no topic0')
        return bytes(keccak(_canonical(self.name, self.parameters)))

    @cached_property
    def topics(self) -> list[tuple[str, Scalar]]:
        """The indexed parameters; of strings, bytes, arrays and tuples the log holds the hash."""
        indexed = [parameter for parameter in self.parameters if parameter.indexed]
        return [(p.name, p.type if isinstance(p.type, Scalar) else HASH) for p in indexed]

    @cached_property
    def body(self) -> list[tuple[str, SolType]]:
        """The other parameters."""
        return [(p.name, p.type) for p in self.parameters if not p.indexed]


@dataclass(frozen=True)
class Function:
    """A function's name and parameters."""

    name: str
    parameters: tuple[_Parameter, ...]

    @cached_property
    def selector(self) -> bytes:
        """The first four bytes of its calldata."""
        return bytes(keccak(_canonical(self.name, self.parameters)))[:4]

    @cached_property
    def inputs(self) -> list[tuple[str, SolType]]:
        """Names and types of its parameters."""
        return [(p.name, p.type) for p in self.parameters]


def _canonical(name: str, parameters: tuple[_Parameter, ...]) -> bytes:
    return f'{name}({",".join(str(p.type) for p in parameters)})'.encode()


@kept(1024)
def parse_event(text: str) -> Event:
    """`[event] Name(type [indexed] [name], ...) [anonymous]`. Raises SignatureError."""
    parser = _Parser(text)
    parser.skip('event')
    name = parser.name('the name of the event')
    parameters = parser.parameters(may_be_indexed=True)
    anonymous = parser.skip('anonymous')
    parser.end()
    indexed = sum(parameter.indexed for parameter in parameters)
    if indexed > 3:
        raise SignatureError(f'event can only have 3 indexed parameters but has {indexed}')
    return Event(name, parameters, anonymous)


@kept(1024)
def parse_function(text: str) -> Function:
    """`[function] name(type name, ...) [public view ... returns (...)]`. Raises SignatureError."""
    parser = _Parser(text)
    parser.skip('function')
    name = parser.name('the name of the function')
    parameters = parser.parameters()
    while parser.skip(*_ATTRIBUTES):
        pass
    if parser.skip('returns'):
        parser.parameters()
    parser.end()
    if any(not parameter.name for parameter in parameters):
        raise SignatureError(f'function {name} has unnamed input parameter')
    return Function(name, parameters)


@kept(1024)
def parse_type(text: str) -> SolType:
    """One type, such as `uint256`, `(address,bytes)[]` or `string`. Raises SignatureError."""
    parser = _Parser(text)
    found = parser.type()
    parser.end()
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f'{text[:200]}...'


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [match[match.lastgroup or 0] for match in _TOKEN.finditer(text.rstrip())]
        self._at = 0
        self._depth = 0

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ''

    def _take(self) -> str:
        token = self._next()
        self._at += 1
        return token

    def _refuse(self, wanted: str) -> SignatureError:
        found = repr(_shortened(self._next())) if self._next() else 'the end'
        return SignatureError(f'expected {wanted}, found {found} in {_shortened(self._text)!r}')

    def skip(self, *words: str) -> bool:
        """Pass over one of these words, if one is next and is not what the signature is named."""
        if self._next() in words and not (self._at == 0 and self._tokens[1:2] == ['(']):
            self._at += 1
            return True
        return False

    def name(self, what: str) -> str:
        """An identifier."""
        if not re.fullmatch(r'[A-Za-z_$][\w$]*', self._next()):
            raise self._refuse(what)
        return self._take()

    def expect(self, mark: str) -> None:
        """One mark, and no other."""
        if self._next() != mark:
            raise self._refuse(repr(mark))
        self._at += 1

    def end(self) -> None:
        """Nothing more but a semicolon."""
        self.skip(';')
        if self._next():
            raise self._refuse('the end')

    def parameters(self, *, may_be_indexed: bool = False) -> tuple[_Parameter, ...]:
        """`(type [indexed] [name], ...)`."""
        self.expect('(')
        found: list[_Parameter] = []
        while self._next() != ')':
            if found:
                self.expect(',')
            type_ = self.type()
            indexed = False
            while self._next() in _LOCATIONS or (may_be_indexed and self._next() == 'indexed'):
                indexed = self._take() == 'indexed' or indexed
            name = self._take() if self._next() not in {',', ')', ''} else ''
            if name and not re.fullmatch(r'[A-Za-z_$][\w$]*', name):
                self._at -= 1
                raise self._refuse('the name of a parameter')
            found.append(_Parameter(name, type_, indexed))
        self.expect(')')
        return tuple(found)

    def type(self) -> SolType:
        """A type with its array brackets."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise SignatureError(f'types are nested more than {_MAX_DEPTH} deep')
        if self._next() == 'tuple' and self._tokens[self._at + 1 : self._at + 2] == ['(']:
            self._at += 1
        found: SolType
        if self._next() == '(':
            found = Tuple(tuple(parameter.type for parameter in self.parameters()))
            if not found.items:
                raise self._refuse('a type inside of the tuple')
            self._check_size(found)
        else:
            found = self._elementary()
        brackets = 0
        while self._next() == '[':
            brackets += 1
            if brackets > _MAX_DEPTH:
                raise SignatureError(f'types are nested more than {_MAX_DEPTH} deep')
            found = Array(found, self._length())
            self._check_size(found)
        self._depth -= 1
        return found

    def _check_size(self, type_: SolType) -> None:
        if type_.slots > _MAX_SLOTS:
            raise SignatureError(f'one value of the type takes more than {_MAX_SLOTS} words')

    def _length(self) -> int | None:
        self.expect('[')
        length = None
        if self._next() != ']':
            if not re.fullmatch(r'[1-9]\d{0,6}', self._next()):
                raise self._refuse('the length of an array')
            length = int(self._take())
        self.expect(']')
        return length

    def _elementary(self) -> SolType:
        word = self.name('a type')
        if word in {'bool', 'address'}:
            return Scalar(word, 1 if word == 'bool' else 20)
        if word in {'bytes', 'string'}:
            return Bytes(word == 'string')
        if word in {'int', 'uint'}:
            return Scalar(word, 256)
        sized = _SIZED.fullmatch(word)
        size = int(sized['size']) if sized else 0
        if sized and sized['kind'] == 'bytes' and size <= WORD:
            return Scalar('bytes', size)
        if sized and sized['kind'] != 'bytes' and size <= 256 and size % 8 == 0:
            return Scalar(sized['kind'], size)
        if word == 'function':
            raise SignatureError('cannot convert solidity type function to arrow data type')
        self._at -= 1
        raise self._refuse('a Solidity type')
