"""`amp ui`: a page on this machine that shows where streams stand."""

from __future__ import annotations

import contextlib
import secrets
from typing import Annotated

import typer

from amp.cli.console import command, interruptible, note
from amp.cli.inputs import Token
from amp.cli.status import Source

__all__ = ['ui']


@command
def ui(
    destinations: Annotated[
        list[str], typer.Argument(metavar='DESTINATION', help='URLs or names of destinations.', show_default=False)
    ],
    source: Source = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option('--metrics', metavar='HOST:PORT', help='Where a running amp answers for metrics; repeatable.'),
    ] = None,
    host: Annotated[str, typer.Option(help='An address of this machine alone.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=0, max=65535, help='0 takes a free one.')] = 8642,
    interval: Annotated[float, typer.Option(min=0.2, help='Seconds between two looks.')] = 2.0,
    token: Token = None,
) -> None:
    """Show streams on a page: positions, lag, gaps, reorgs, and the commands to act on them. It changes nothing."""
    from amp.errors import MissingExtraError

    try:
        import uvicorn

        from amp.ui.server import listen, make_app
        from amp.ui.watcher import Watcher
    except ImportError as error:
        raise MissingExtraError('ui', error.name or 'starlette') from error
    with contextlib.closing(listen(host, port)) as sock, interruptible():
        watcher = Watcher(destinations, source, token, metrics or (), interval)
        key = secrets.token_urlsafe(18)
        server = uvicorn.Server(
            uvicorn.Config(make_app(watcher, key), log_level='warning', access_log=False, lifespan='off', ws='none')
        )
        watcher.start()
        shown = f'[{host}]' if ':' in host else host
        print(f'http://{shown}:{sock.getsockname()[1]}/?token={key}', flush=True)
        note('Ctrl-C ends it.')
        try:
            server.run([sock])
        finally:
            watcher.close()
