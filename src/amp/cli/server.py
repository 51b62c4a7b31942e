"""The server that a command asks: its URL and the token for it, typed or configured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from amp.client import Client

__all__ = ['Auth', 'Token', 'default_url', 'open_client']

Token = Annotated[
    str | None, typer.Option('--token', envvar='AMP_AUTH_TOKEN', show_envvar=True, help='The bearer token.')
]
Auth = Annotated[bool, typer.Option('--auth', help='Send the token of your login (amp auth login), kept fresh.')]


def default_url() -> str:
    """AMP_URL, else that of `[source]` in amp.toml; empty when neither says one. Raises ConfigError."""
    if os.environ.get('AMP_URL'):
        return os.environ['AMP_URL']
    from amp.config.source import source

    url = source().get('url')
    return '' if url is None else str(url.value)


def open_client(url: str, token: str | None = None, *, auth: bool = False, **options: Any) -> Client:
    """A client of `url`. What `[source]` says of tokens is for its own URL alone. Raises ConfigError."""
    from amp.client import Client
    from amp.config.source import token_for

    if token is None and not auth:
        token, auth = token_for(url)
    return Client(url, auth_token=token, auth=auth, **options)
