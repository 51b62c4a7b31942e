"""What is typed: the server, the SQL, and `key=value` options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from amp.cli.console import note
from amp.cli.server import Auth, Token, default_url

__all__ = ['AsJson', 'Auth', 'Metrics', 'Sql', 'Token', 'Url', 'answering_metrics', 'key_values', 'server_and_sql']

Url = Annotated[
    str | None,
    typer.Argument(
        metavar='URL',
        show_default=False,
        help='The Amp server, such as grpc://localhost:1602 or grpc+tls://host; left out, it is AMP_URL or that of amp.toml.',
    ),
]
Sql = Annotated[
    str | None,
    typer.Argument(
        metavar='SQL',
        show_default=False,
        help='The question in SQL; @FILE reads it from a file, - from standard input.',
    ),
]
AsJson = Annotated[bool, typer.Option('--json', help='One JSON event a line on standard output.')]
Metrics = Annotated[
    str | None,
    typer.Option(
        '--metrics', metavar='HOST:PORT', envvar='AMP_METRICS', show_envvar=True, help='Answer Prometheus there.'
    ),
]


def server_and_sql(url: str | None, sql: str | None) -> tuple[str, str]:
    """The server and the SQL itself. One argument alone is the SQL, and the server is the usual one. Raises a usage error."""
    if sql is None:
        url, sql = default_url(), url
        if not url or sql is None:
            raise typer.BadParameter(
                'give the URL of the server and the SQL, or set AMP_URL (or [source] of amp.toml) and give the SQL alone'
            )
    return url or '', _read(sql)


def _read(text: str) -> str:
    if text == '-':
        if sys.stdin.isatty():
            note('type the SQL, then Ctrl-D:')
        text = sys.stdin.read()
    elif text.startswith('@'):
        path = Path(text[1:])
        try:
            text = path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else 'it is not text'
            raise typer.BadParameter(f'cannot read {str(path)!r}: {reason}') from error
    if not text.strip():
        raise typer.BadParameter('the SQL is empty')
    return text.strip()


@contextmanager
def answering_metrics(address: str | None) -> Iterator[None]:
    """Metrics over HTTP inside the block, where an address was given. Raises ConfigError."""
    if not address:
        yield
        return
    from amp.instrumentation.prometheus import serve

    end = serve(address)
    try:
        yield
    finally:
        end()


def key_values(pairs: Sequence[str]) -> dict[str, object]:
    """`['a=1', 'b=x']` as `{'a': 1, 'b': 'x'}`: a value that is JSON is taken as such. Raises a usage error."""
    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key:
            raise typer.BadParameter(f'{pair!r} is not key=value')
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
