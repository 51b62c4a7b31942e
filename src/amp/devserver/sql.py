"""The text of a query before DataFusion sees it: one statement, its `SETTINGS`, and what the server says otherwise.

Only tokens are looked at; what a statement means is DataFusion's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from amp.devserver.limits import MAX_CHAIN, MAX_CHARACTERS, kept, too_long_a_chain
from amp.errors import QueryError

__all__ = ['Statement', 'Token', 'caused_by', 'internal', 'invalid_argument', 'parse_statement', 'tokens_of']

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|--[^\n]*)
    |(?P<comment>/\*)
    |(?P<text>'(?:[^']|'')*'|[eE]'(?:[^'\\]|''|\\.)*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<name>"(?:[^"]|"")*"|`[^`]*`)
    |(?P<word>\w+)
    |(?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r'/\*|\*/')
_BOOLEANS = {'true': True, 'false': False}


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement without its SETTINGS; `stream` is what they said."""

    text: str
    stream: bool = False


def caused_by(error: str, *causes: str) -> str:
    """The server's way of telling a chain of errors."""
    return f'{error} | Caused by: {" -> ".join(causes)}' if causes else error


def invalid_argument(text: str) -> QueryError:
    """The error of a query that is the user's fault, as far as the server can tell."""
    return QueryError(text, code='INVALID_ARGUMENT')


def internal(text: str) -> QueryError:
    """The error of anything else; the server counts unknown tables and columns among them."""
    return QueryError(text, code='INTERNAL')


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of SQL. `kind` is text (a string literal), name (a quoted identifier), word or mark."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """What an unquoted identifier or keyword means; DataFusion reads them in lower case."""
        return self.text.lower()

    @property
    def identifier(self) -> str | None:
        """The name that it is, when it is one."""
        if self.kind == 'name':
            quote = self.text[0]
            return self.text[1:-1].replace(quote * 2, quote)
        return self.word if self.kind == 'word' else None

    @property
    def literal(self) -> str | None:
        """The value of a plain string literal; None for everything else, and for texts with escapes."""
        if self.kind != 'text' or self.text[0] in 'eE':
            return None
        if self.text[0] == '$':
            return self.text.split('$', 2)[2].rsplit('$', 2)[0]
        return self.text[1:-1].replace("''", "'")


@kept(32)
def tokens_of(sql: str) -> tuple[Token, ...]:
    """The tokens of `sql` without space and comments; comments may hold comments, and one that does not end is a token."""
    tokens: list[Token] = []
    at = 0
    while match := _TOKEN.match(sql, at):
        at = match.end()
        kind = match.lastgroup or 'mark'
        if kind == 'comment':
            end = _end_of_comment(sql, at)
            if end is None:
                tokens.append(Token(kind, match.group(), match.start(), len(sql)))
                break
            at = end
        elif kind != 'skip':
            # The tag of a dollar-quoted text is a group inside of the text's.
            tokens.append(Token('text' if kind == 'tag' else kind, match.group(), match.start(), at))
    return tuple(tokens)


def _end_of_comment(sql: str, at: int) -> int | None:
    depth = 1
    while depth:
        mark = _COMMENT.search(sql, at)
        if mark is None:
            return None
        depth += 1 if mark.group() == '/*' else -1
        at = mark.end()
    return at


def parse_statement(sql: str) -> Statement:
    """The only statement of `sql`. Raises QueryError (INVALID_ARGUMENT) for none, for several, and when it is too large."""
    if not sql.strip():
        raise invalid_argument('invalid query: the SQL query is empty')
    if len(sql) > MAX_CHARACTERS:
        raise invalid_argument(f'invalid query: the SQL query has {len(sql)} characters, more than {MAX_CHARACTERS}')
    tokens = tokens_of(sql)
    if too_long_a_chain(tokens):
        raise invalid_argument(f'invalid query: more than {MAX_CHAIN} operators are chained in one expression')
    if tokens and tokens[-1].kind == 'comment':
        lines = sql.split('\n')
        text = f'Unexpected EOF while in a multi-line comment at Line: {len(lines)}, Column: {len(lines[-1]) + 1}'
        raise invalid_argument(caused_by('SQL parse error', 'Invalid SQL syntax', f'sql parser error: {text}'))
    statements: list[list[Token]] = [[]]
    for token in tokens:
        if token.text == ';':
            statements.append([])
        else:
            statements[-1].append(token)
    found = [statement for statement in statements if statement]
    if not found:
        raise invalid_argument(caused_by('SQL parse error', 'No SQL statement found'))
    if len(found) > 1:
        raise invalid_argument(caused_by('SQL parse error', f'Expected a single SQL statement, found {len(found)}'))
    return _without_settings(sql, found[0])


def _without_settings(sql: str, tokens: list[Token]) -> Statement:
    """Cut the trailing `SETTINGS key = value, ...` off, if there is one."""
    text = sql[tokens[0].start : tokens[-1].end]
    for at in range(len(tokens) - 3, 0, -1):
        if tokens[at].word != 'settings' or tokens[at + 2].text != '=':
            continue
        settings = _settings(tokens[at + 1 :])
        if settings is None:
            break
        return Statement(sql[tokens[0].start : tokens[at].start].rstrip(), settings.get('stream') is True)
    return Statement(text)


def _settings(tokens: list[Token]) -> dict[str, object] | None:
    """Keys (lower case) and values; None when the tokens are not a list of settings."""
    settings: dict[str, object] = {}
    for at in range(0, len(tokens), 4):
        part = tokens[at : at + 4]
        if len(part) < 3 or part[1].text != '=' or (len(part) == 4 and part[3].text != ','):
            return None
        settings[part[0].word] = _BOOLEANS.get(part[2].word, part[2].text)
    return settings if len(tokens) % 4 == 3 else None
