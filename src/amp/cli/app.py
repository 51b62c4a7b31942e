"""The commands of `amp`, put together. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from amp.cli.auth import auth
from amp.cli.backfill import backfill
from amp.cli.conn import config, conn
from amp.cli.demo import demo
from amp.cli.doctor import doctor
from amp.cli.load import load, stream
from amp.cli.loaders import loaders
from amp.cli.plan import plan
from amp.cli.query import query
from amp.cli.run import run
from amp.cli.serve import serve
from amp.cli.status import status
from amp.cli.ui import ui
from amp.cli.verify import verify

__all__ = ['app']

_EPILOG = (
    'Exit codes: 0 ok, 1 failure, 2 usage, 3 configuration, 4 source, 5 destination, 6 integrity, 130 interrupted.'
)

app = typer.Typer(
    name='amp',
    help='Ask Amp, a database for blockchain data, a question in SQL and land the answer exactly once.',
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version('amp-python')
        except PackageNotFoundError:
            number = 'of a source tree that is not installed'
        typer.echo(f'amp {number}')
        raise typer.Exit


@app.callback()
def _amp(
    version: Annotated[
        bool, typer.Option('--version', callback=_version, is_eager=True, help='Show the version and exit.')
    ] = False,
) -> None:
    pass


for _command in (query, plan, load, stream, run, backfill, status, verify, ui, serve, demo, doctor, loaders):
    app.command()(_command)
app.add_typer(auth, name='auth')
app.add_typer(conn, name='conn')
app.add_typer(config, name='config')
