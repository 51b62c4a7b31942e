"""How large a statement may be. DataFusion plans by recursion, and a stack that overflows takes the server with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from amp.devserver.sql import Token

__all__ = ['MAX_CHAIN', 'MAX_CHARACTERS', 'kept', 'too_long_a_chain']

MAX_CHARACTERS = 1 << 20
MAX_CHAIN = 400
"""Operators that depend on each other: half of what DataFusion survives in a thread with a stack of 8 MiB."""

MAX_KEPT = 1 << 15
"""Characters of a text beyond which nothing that is made of it is kept for the next time: tokens take far more room."""

T = TypeVar('T')


def kept(most: int) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Keep what a function gave for the last `most` texts, long ones excepted."""

    def decorate(function: Callable[[str], T]) -> Callable[[str], T]:
        remembered = lru_cache(maxsize=most)(function)

        @wraps(function)
        def remembering(text: str) -> T:
            return remembered(text) if len(text) <= MAX_KEPT else function(text)

        return remembering

    return decorate


_OPERATORS = {'+', '-', '*', '/', '%', '|', '&', '^', '<', '>', '=', '[', ':', 'and', 'or', 'not', 'like', 'is'}
_SETS = {'union', 'intersect', 'except', 'join'}
_NEW_EXPRESSION = {',', 'select', 'from', 'where', 'on', 'group', 'order', 'having', 'when', 'then', 'else', 'values'}


def too_long_a_chain(tokens: Iterable[Token]) -> bool:
    """True when operators are chained beyond the limit, counted through parentheses; many short expressions are fine."""
    # For each open parenthesis, and outside of all: set operations so far, and operators of this expression.
    levels = [[0, 0]]
    depth = 0
    for token in tokens:
        if token.kind in {'text', 'name'}:
            continue
        word = token.word
        if word == '(':
            levels.append([1, 0])
            depth += 1
        elif word == ')' and len(levels) > 1:
            depth -= sum(levels.pop())
        elif word in _SETS:
            depth += 1 - levels[-1][1]
            levels[-1] = [levels[-1][0] + 1, 0]
        elif word in _NEW_EXPRESSION:
            depth -= levels[-1][1]
            levels[-1][1] = 0
        elif word in _OPERATORS:
            depth += 1
            levels[-1][1] += 1
        if depth > MAX_CHAIN:
            return True
    return False
