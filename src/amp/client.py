"""The Client: a server, and the destinations that a name stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from amp.config.connection_manager import ConnectionManager
from amp.config.label_manager import LabelManager
from amp.errors import ConfigError
from amp.flight.protocol import parse_endpoint
from amp.flight.transport import CONNECT_TIMEOUT, KEEPALIVE, FlightTransport
from amp.query import Query

if TYPE_CHECKING:
    from amp.auth.tokens import LoginToken
    from amp.loaders.base import DataLoader

__all__ = ['Client']


class Client:
    """Asks the Amp server at `url` (`grpc://host[:port]`, `grpc+tls://` with TLS; port 1602). Use it in many threads.

    `query_url` is another name of `url`. Sent as bearer token is `auth_token`, else AMP_AUTH_TOKEN, else, with `auth=True`,
    that of the login which `amp auth login` (or another of Amp's tools) has left, renewed in time; it is not sent without
    TLS, except to this machine. `label_dir` is where the files of labels are, the default is AMP_LABEL_DIR. `connect_timeout` (seconds) bounds the
    plan of a query, never a result; `keepalive` (seconds) is the pause between pings on a silent connection;
    `tls_root_certs` are PEM certificates to trust. The connection is made with the first query. Raises ConfigError for a URL or token that cannot be meant.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        query_url: str | None = None,
        auth_token: str | None = None,
        auth: bool = False,
        label_dir: str | Path | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT,
        keepalive: float | None = KEEPALIVE,
        tls_root_certs: str | bytes | None = None,
    ) -> None:
        if url is not None and query_url is not None and url != query_url:
            raise ConfigError('url and query_url name two servers', hint='give one of them')
        server = url if url is not None else query_url
        if server is None:
            raise ConfigError('no Amp server is named', hint="for example Client('grpc://localhost:1602')")
        token = auth_token if auth_token is not None else os.environ.get('AMP_AUTH_TOKEN')
        self._settings = {
            'url': server,
            'auth_token': token,
            'auth': auth,
            'connect_timeout': connect_timeout,
            'keepalive': keepalive,
            'tls_root_certs': tls_root_certs,
        }
        self.transport = FlightTransport(
            server,
            _login(server) if auth and token is None else token,
            connect_timeout=connect_timeout,
            keepalive=keepalive,
            tls_root_certs=tls_root_certs,
        )
        self.label_manager = LabelManager(label_dir)
        self.connection_manager = ConnectionManager()

    def __repr__(self) -> str:
        return f'Client({self.url!r})'

    @property
    def url(self) -> str:
        """The server's URL, with its port."""
        return str(self.transport.endpoint)

    def sql(self, text: str) -> Query:
        """A query, not sent yet. Raises ConfigError for an empty text."""
        return Query(self, text)

    def configure_connection(self, name: str, loader: str, config: Mapping[str, Any]) -> None:
        """Let `name` stand for a destination: `query.load(name, table)`. Raises ConfigError for an unknown loader."""
        from amp.loaders.registry import get_available_loaders, get_loader_class

        if loader not in get_available_loaders():
            get_loader_class(loader)
        self.connection_manager.configure(name, loader, config)

    def list_connections(self) -> dict[str, str]:
        """The known names, configured here or in amp.toml or a variable, each with the name of its loader.

        Raises ConfigError for a name that cannot be meant.
        """
        return {name: self.connection_manager.get(name).loader for name in self.connection_manager.names()}

    def add_label(
        self,
        name: str,
        csv_path: str | Path,
        binary_columns: Sequence[str] | None = None,
        *,
        reload: bool | None = None,
    ) -> None:
        """Read a CSV or Parquet file as the label `name`: see LabelManager.add_label. Raises ConfigError."""
        self.label_manager.add_label(name, csv_path, binary_columns, reload=reload)

    configure_label = add_label

    def get_available_loaders(self) -> list[str]:
        """The loaders that there are, installed drivers or not."""
        from amp.loaders.registry import get_available_loaders

        return get_available_loaders()

    def make_loader(self, connection: str, config: Mapping[str, Any] | None = None) -> DataLoader[Any]:
        """The loader behind a URL or a configured name, with `config` on top. Raises ConfigError, MissingExtraError."""
        from amp.loaders.registry import create_loader

        return create_loader(*self.connection_settings(connection, config), self.label_manager)

    def connection_settings(
        self, connection: str, config: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Loader and configuration behind a URL or a configured name, `config` on top. Raises ConfigError."""
        from amp.config.urls import is_url, loader_of_url

        if is_url(connection):
            return loader_of_url(connection), {'url': connection, **(config or {})}
        found = self.connection_manager.get(connection)
        return found.loader, {**found.config(), **(config or {})}

    def settings(self) -> dict[str, Any]:
        """What makes another client like this one, in another process: it holds the token."""
        return dict(self._settings)

    def close(self) -> None:
        """Closes the connection to the server."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _login(url: str) -> LoginToken:
    from amp.auth.tokens import LoginToken

    endpoint = parse_endpoint(url)
    if not endpoint.tls and not endpoint.is_loopback:
        raise ConfigError(
            f'the token of your login is not sent to {endpoint}, which has no TLS',
            hint=f'is it grpc+tls://{endpoint.host}? a token for it alone goes into auth_token= or AMP_AUTH_TOKEN',
        )
    return LoginToken()
