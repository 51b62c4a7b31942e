"""Arrow types from the way DataFusion writes them in its messages."""

from __future__ import annotations

import re

import pyarrow as pa

__all__ = ['parse_types']

_TOKEN = re.compile(
    r'\s*(?:"(?P<name>(?:[^"\\]|\\.)*)"|\'(?P<item>[^\']*)\'|(?P<word>non-null|[A-Za-z]\w*)|(?P<number>-?\d+)|(?P<mark>[(),:]))'
)
_PLAIN: dict[str, pa.DataType] = {
    'Null': pa.null(),
    'Boolean': pa.bool_(),
    'Int8': pa.int8(),
    'Int16': pa.int16(),
    'Int32': pa.int32(),
    'Int64': pa.int64(),
    'UInt8': pa.uint8(),
    'UInt16': pa.uint16(),
    'UInt32': pa.uint32(),
    'UInt64': pa.uint64(),
    'Float16': pa.float16(),
    'Float32': pa.float32(),
    'Float64': pa.float64(),
    'Binary': pa.binary(),
    'Utf8': pa.string(),
    'Date32': pa.date32(),
    # The planner casts these to the plain ones for us.
    'LargeBinary': pa.binary(),
    'BinaryView': pa.binary(),
    'LargeUtf8': pa.string(),
    'Utf8View': pa.string(),
}


def parse_types(text: str) -> list[pa.DataType] | None:
    """The types of a list such as `Int64, List(Utf8)`; None when one is not among those that the functions take."""
    try:
        return _Parser(text).types()
    except (ValueError, IndexError):
        return None


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(text[at:])
            self._tokens.append((match.lastgroup or '', match[match.lastgroup or 0]))
            at = match.end()
        self._at = 0

    def types(self) -> list[pa.DataType]:
        found = [self._type()] if self._tokens else []
        while self._at < len(self._tokens):
            self._expect(',')
            found.append(self._type())
        return found

    def _take(self, kind: str) -> str:
        token = self._tokens[self._at]
        if token[0] != kind:
            raise ValueError(token)
        self._at += 1
        return token[1]

    def _expect(self, *texts: str) -> None:
        for text in texts:
            if self._tokens[self._at][1] != text:
                raise ValueError(text)
            self._at += 1

    def _skip(self, text: str) -> bool:
        found = self._at < len(self._tokens) and self._tokens[self._at][1] == text
        self._at += found
        return found

    def _type(self) -> pa.DataType:
        word = self._take('word')
        if word in _PLAIN:
            return _PLAIN[word]
        self._expect('(')
        found: pa.DataType
        if word == 'FixedSizeBinary':
            found = pa.binary(int(self._take('number')))
        elif word in {'Decimal128', 'Decimal256'}:
            precision = int(self._take('number'))
            self._expect(',')
            scale = int(self._take('number'))
            found = pa.decimal128(precision, scale) if word == 'Decimal128' else pa.decimal256(precision, scale)
        elif word == 'List':
            found = pa.list_(self._item())
        elif word == 'FixedSizeList':
            size = int(self._take('number'))
            self._expect('x')
            found = pa.list_(self._item(), size)
        elif word == 'Struct':
            found = self._struct()
        else:
            raise ValueError(word)
        self._expect(')')
        return found

    def _item(self) -> pa.Field[pa.DataType]:
        nullable = not self._skip('non-null')
        type_, name = self._type(), 'item'
        if self._skip(','):
            self._expect('field', ':')
            name = self._take('item')
        return pa.field(name, type_, nullable)

    def _struct(self) -> pa.DataType:
        fields: list[pa.Field[pa.DataType]] = []
        while self._tokens[self._at][1] != ')' or self._tokens[self._at][0] == 'name':
            if fields:
                self._expect(',')
            name = re.sub(r'\\(.)', r'\1', self._take('name'))
            self._expect(':')
            nullable = not self._skip('non-null')
            fields.append(pa.field(name, self._type(), nullable))
        return pa.struct(fields)
