"""Calls of functions in the text of a statement: where their names stand and what their arguments are, as tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from amp.devserver.sql import Token, tokens_of

__all__ = ['Call', 'calls_block_num', 'find_calls', 'with_block_num']

_OPEN = {'(': ')', '[': ']', '{': '}'}
# What is nested deeper is not planned: the parser gives up at 50.
_MAX_DEPTH = 60
_CLOSE = set(_OPEN.values())


@dataclass(frozen=True, slots=True)
class Call:
    """`function(arguments)`, perhaps qualified by a dataset; `start` and `end` are those of the name in the text.

    `inside` is where the arguments begin, after the parenthesis.
    """

    function: str
    dataset: str | None
    start: int
    end: int
    inside: int
    arguments: tuple[tuple[Token, ...], ...]

    @property
    def display(self) -> str:
        """The name that the function has in column names and messages."""
        return self.function if self.dataset is None else f'{self.dataset}.{self.function}'

    @property
    def key(self) -> tuple[str, ...]:
        """The same for calls that are written alike."""
        words = [
            token.text if token.kind != 'word' else token.word for part in self.arguments for token in (*part, _COMMA)
        ]
        return (self.display, *words)

    def literal(self, at: int) -> str | None:
        """The argument's value when it is a string literal, perhaps in parentheses."""
        tokens = self.arguments[at]
        while len(tokens) > 2 and tokens[0].text == '(' and tokens[-1].text == ')':
            tokens = tokens[1:-1]
        return tokens[0].literal if len(tokens) == 1 else None

    def is_null(self, at: int) -> bool:
        """True when the argument is the word NULL."""
        return len(self.arguments[at]) == 1 and self.arguments[at][0].word == 'null'


_COMMA = Token('mark', ',', 0, 0)


def find_calls(sql: str, plain: Collection[str], qualified: Collection[str] = ()) -> list[Call]:
    """The calls of these functions; those that are `qualified` have a dataset and a dot before their name."""
    lower = sql.lower()
    # Most statements call none of them, and the tokens of a long one take seconds.
    if not any(name in lower for name in (*plain, *qualified)):
        return []
    tokens = tokens_of(sql)
    found = []
    for at, token in enumerate(tokens[:-1]):
        name = token.identifier
        if tokens[at + 1].text != '(' or name is None:
            continue
        dotted = at > 0 and tokens[at - 1].text == '.'
        if name in plain and not dotted:
            first, dataset = token, None
        elif name in qualified and dotted and at > 1 and (at < 3 or tokens[at - 3].text != '.'):
            first, dataset = tokens[at - 2], tokens[at - 2].identifier
            if dataset is None:
                continue
        else:
            continue
        arguments = _arguments(tokens, at + 2)
        if arguments is not None:
            found.append(Call(name, dataset, first.start, token.end, tokens[at + 1].end, arguments))
    return found


def calls_block_num(sql: str) -> bool:
    """True when `block_num()` is in the statement."""
    return any(not call.arguments for call in find_calls(sql, {'block_num'}))


def with_block_num(sql: str, function: str) -> str:
    """The statement with `function(_block_num)` for `block_num()`."""
    parts, at = [], 0
    for call in find_calls(sql, {'block_num'}):
        if not call.arguments:
            parts += [sql[at : call.start], f'{function}(_block_num']
            at = call.inside
    return ''.join([*parts, sql[at:]])


def _arguments(tokens: Sequence[Token], at: int) -> tuple[tuple[Token, ...], ...] | None:
    """What stands between the commas up to the closing parenthesis; None when there is none."""
    parts: list[tuple[Token, ...]] = []
    part: list[Token] = []
    depth = 0
    for token in tokens[at:]:
        if depth == 0 and token.text == ')':
            return (*parts, tuple(part)) if part or parts else ()
        if depth == 0 and token.text == ',':
            parts.append(tuple(part))
            part = []
            continue
        depth += token.kind == 'mark' and token.text in _OPEN
        if depth > _MAX_DEPTH:
            return None
        depth -= token.kind == 'mark' and token.text in _CLOSE
        part.append(token)
    return None
