"""`amp auth`: log in, and see who is. The login is shared with Amp's other tools."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from amp.cli.console import command, emit, interruptible, note, paint
from amp.cli.inputs import AsJson

if TYPE_CHECKING:
    from amp.auth.login import Login
    from amp.auth.service import AuthService, DeviceCode

__all__ = ['auth']

auth = typer.Typer(help='The login that --auth sends to a server.', no_args_is_help=True)


@auth.command()
@command
def login(
    browser: Annotated[bool, typer.Option('--browser/--no-browser', help='Open the page in a browser.')] = True,
) -> None:
    """Log in with a code that you confirm in a browser, on this machine or any other."""
    import webbrowser

    from amp.auth import AuthService, LoginFile

    service, file = AuthService(), LoginFile()
    with interruptible():
        code = service.authorize()
        note(f'open {paint(code.verification_uri, "cyan")} and type the code {paint(code.user_code, "bold")}')
        if browser and sys.stderr.isatty():
            webbrowser.open(code.verification_uri)
        found = _confirmed(service, code)
        file.write(found)
    note(f'{paint("logged in", "green")} as {found.user_id}, in {file.path}')


def _confirmed(service: AuthService, code: DeviceCode) -> Login:
    from amp.errors import AuthError

    deadline = time.monotonic() + code.expires_in
    while time.monotonic() < deadline:
        found = service.poll(code)
        if found is not None:
            return found
        time.sleep(code.interval)
    raise AuthError('the code was not confirmed in time', hint='once more: amp auth login')


@auth.command()
@command
def status(as_json: AsJson = False) -> None:
    """Show who is logged in, and until when; nothing is renewed. Exit code 4 when nobody is."""
    from amp.auth import LoginFile

    file = LoginFile()
    found = file.read()
    until = None if found.expiry is None else time.strftime('%Y-%m-%dT%H:%M:%S%z', time.localtime(found.expiry / 1000))
    if as_json:
        emit('login', user=found.user_id, until=until, expired=found.is_expired(), file=str(file.path))
        return
    told = 'until it is renewed' if until is None else f'{"expired" if found.is_expired() else "good until"} {until}'
    print(f'{found.user_id}  {told}, renewed when it is used')


@auth.command()
@command
def logout() -> None:
    """Take the login away from this machine, for all of Amp's tools."""
    from amp.auth import LoginFile

    file = LoginFile()
    note(f'removed {file.path}' if file.remove() else 'nobody was logged in')
