"""`amp doctor`: is everything there, and can it be reached? Each finding comes with its remedy."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from amp.cli.console import command, emit, interruptible, paint
from amp.cli.inputs import AsJson, Auth, Token
from amp.cli.server import default_url, open_client

__all__ = ['doctor']

_MOST_SKEW_SECONDS = 60
_LEAST_FREE = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding; `remedy` says what to do when it is not ok."""

    what: str
    ok: bool
    found: str
    remedy: str = ''


@command
def doctor(
    source: Annotated[
        str | None,
        typer.Option(
            '--source', '-s', metavar='URL', help='The Amp server to ask; left out, it is AMP_URL or that of amp.toml.'
        ),
    ] = None,
    to: Annotated[list[str] | None, typer.Option('--to', help='A destination to reach; repeatable.')] = None,
    token: Token = None,
    auth: Auth = False,
    as_json: AsJson = False,
) -> None:
    """Check versions, drivers, permissions, the server, destinations, the clock and the disk. Exit code 1 when something is wrong."""
    failed = False
    with interruptible():
        for check in _checks(source, to or [], token, auth=auth):
            failed |= not check.ok
            if as_json:
                emit('check', what=check.what, ok=check.ok, found=check.found, remedy=check.remedy)
                continue
            mark = paint('ok   ', 'green') if check.ok else paint('WRONG', 'red')
            print(f'{mark} {check.what}: {check.found}')
            if not check.ok:
                print(f'      -> {check.remedy}')
    if failed:
        raise typer.Exit(1)


def _checks(source: str | None, destinations: list[str], token: str | None, *, auth: bool) -> Iterator[Check]:
    import pyarrow as pa

    version = platform.python_version()
    yield Check('Python', sys.version_info >= (3, 11), version, 'amp needs 3.11 or newer')
    yield Check('pyarrow', int(pa.__version__.split('.')[0]) >= 17, pa.__version__, 'pip install -U pyarrow')
    yield from _drivers()
    yield from _configuration()
    yield from _private_files()
    yield from _login()
    free = shutil.disk_usage('.').free
    yield Check('disk', free > _LEAST_FREE, f'{free / 1e9:,.1f} GB free here', 'free some space: a unit needs room')
    yield from _server(source, token, auth=auth)
    for destination in destinations:
        yield from _destination(destination)


def _drivers() -> Iterator[Check]:
    from amp.errors import MissingExtraError
    from amp.loaders.registry import get_available_loaders, get_loader_class

    missing = []
    for name in get_available_loaders():
        try:
            get_loader_class(name)
        except MissingExtraError as error:
            missing.append(f'{name} ({error.hint})')
    ready = len(get_available_loaders()) - len(missing)
    yield Check('destinations', ready > 0, f'{ready} ready' + (f'; not installed: {", ".join(missing)}' if missing else ''),
                "pip install 'amp-python[duckdb]'")  # fmt: skip
    serves = importlib.util.find_spec('datafusion') is not None
    yield Check('amp serve', True, 'ready' if serves else "not installed (pip install 'amp-python[serve]')")


def _configuration() -> Iterator[Check]:
    from amp.config.connection_manager import ConnectionManager
    from amp.config.files import missing_file
    from amp.errors import ConfigError

    if missing := missing_file():
        remedy = 'make the file, or unset AMP_CONFIG'
        yield Check('configuration', False, f'AMP_CONFIG names {missing}, which is no file', remedy)
    manager = ConnectionManager()
    try:
        names = manager.names()
    except ConfigError as error:
        yield Check('configuration', False, error.message, error.hint or 'correct amp.toml')
        return
    good = 0
    for name in names:
        try:
            manager.get(name).config()
        except ConfigError as error:
            yield Check('configuration', False, f'{name}: {error.message}', error.hint or 'correct what it says')
        else:
            good += 1
    yield Check('configuration', True, f'{good} connections')


def _private_files() -> Iterator[Check]:
    from amp.config.files import config_files
    from amp.config.secrets import clear_secret
    from amp.errors import ConfigError

    with contextlib.suppress(ConfigError):  # told as `configuration`
        for file in config_files():
            mode = file.path.stat().st_mode & 0o077 if os.name == 'posix' else 0
            if mode and any(map(clear_secret, (file.source, *file.connections.values()))):
                yield Check(
                    'permissions',
                    False,
                    f'others may read {file.path}, and it holds a secret in clear',
                    f'chmod 600 {file.path}, or say where the secret is: env:, file:, cmd:, keyring:',
                )


def _login() -> Iterator[Check]:
    from amp.auth import LoginFile
    from amp.errors import AuthError

    file = LoginFile()
    if not file.path.exists():
        return
    try:
        found = file.read()
    except AuthError as error:
        yield Check('login', False, error.message, error.hint or 'amp auth login')
        return
    yield Check('login', True, f'{found.user_id}, {"to be renewed" if found.is_due() else "good"}')


def _server(url: str | None, token: str | None, *, auth: bool) -> Iterator[Check]:
    import time

    from amp.errors import AmpError, ConfigError, redact

    try:
        url = default_url() if url is None else url
    except ConfigError as error:
        yield Check('server', False, error.message, error.hint or 'correct amp.toml')
        return
    if not url:
        return
    where = redact(url)
    try:
        with open_client(url, token, auth=auth, connect_timeout=10) as client:
            started = time.perf_counter()
            before = time.time()
            found = client.sql('SELECT CAST(now() AS BIGINT) AS now').to_arrow()
            seconds = time.perf_counter() - started
    except AmpError as error:
        yield Check('server', False, f'{where}: {error.message}', error.hint or 'is it running?')
        return
    yield Check('server', True, f'{where} answered in {seconds * 1000:.0f} ms')
    skew = abs(int(found['now'][0].as_py()) / 1e9 - before)
    yield Check('clock', skew < _MOST_SKEW_SECONDS, f'{skew:.0f} s beside the server', 'set the clocks: ntp')


def _destination(text: str) -> Iterator[Check]:
    import time

    from amp.config.connection_manager import ConnectionManager
    from amp.config.urls import is_url, loader_of_url
    from amp.errors import AmpError, redact
    from amp.loaders.registry import create_loader

    shown = redact(text)
    try:
        if is_url(text):
            made = create_loader(loader_of_url(text), {'url': text})
        else:
            connection = ConnectionManager().get(text)
            made = create_loader(connection.loader, connection.config())
        started = time.perf_counter()
        with made as loader:
            loader.health_check()
            missing = loader.missing_permissions()
            count = 0 if missing else len(loader.streaming_destination().list_streams())
    except AmpError as error:
        yield Check('destination', False, f'{shown}: {error.message}', error.hint or 'check the connection')
        return
    seconds = time.perf_counter() - started
    yield Check('destination', True, f'{shown} reached in {seconds * 1000:.0f} ms, {count} streams')
    for what, remedy in missing:
        yield Check('permissions', False, f'{shown}: {what}', remedy)
