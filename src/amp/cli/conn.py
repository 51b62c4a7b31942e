"""`amp conn` and `amp config`: what names stand for, where each value comes from, and whether it works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp.cli.console import command, emit, note, paint
from amp.cli.inputs import AsJson, key_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from amp.config.connection_manager import Connection
    from amp.config.secrets import Setting

__all__ = ['config', 'conn']

conn = typer.Typer(help='Names for destinations.', no_args_is_help=True)
config = typer.Typer(help='What is configured, and where.', no_args_is_help=True)

Name = Annotated[str, typer.Argument(help='The name of the connection.')]


def _manager() -> Any:
    from amp.config.connection_manager import ConnectionManager

    return ConnectionManager()


def _connections(*, as_json: bool) -> Iterator[Connection]:
    """Every connection that can be told; in the end, exit code 3 when there are others, each told with what is wrong."""
    from amp.errors import ConfigError, redact

    manager = _manager()
    is_wrong = False
    for name in manager.names():
        try:
            found = manager.get(name)
        except ConfigError as error:
            is_wrong = True
            told = redact(error.message)
            if as_json:
                emit('connection', name=name, loader=None, error=told, hint=error.hint)
            note(f'{paint("wrong:", "red")} {name}: {told}' + (f' ({error.hint})' if error.hint else ''))
            continue
        yield found
    if is_wrong:
        raise typer.Exit(3)


@conn.command('list')
@command
def list_(as_json: AsJson = False) -> None:
    """Every name that is known here, with its loader. Exit code 3 when one of them is wrong."""
    if not _manager().names() and not as_json:
        note('no connections yet: amp conn add NAME URL')
    for found in _connections(as_json=as_json):
        if as_json:
            emit('connection', name=found.name, loader=found.loader)
        else:
            print(f'{found.name}  {found.loader}')


@conn.command()
@command
def test(name: Name) -> None:
    """Connect, say how long it took, and disconnect."""
    import time

    from amp.loaders.registry import create_loader

    found = _manager().get(name)
    started = time.perf_counter()
    with create_loader(found.loader, found.config()) as loader:
        loader.health_check()
        streams = len(loader.streaming_destination().list_streams())
    note(f'{paint("ok", "green")}  {name} ({found.loader}) in {time.perf_counter() - started:.2f} s, {streams} streams')


@conn.command()
@command
def add(
    name: Name,
    url: Annotated[str | None, typer.Argument(help='Its URL; or give --loader and --set.', show_default=False)] = None,
    *,
    loader: Annotated[str | None, typer.Option(help='The loader, when there is no URL.')] = None,
    setting: Annotated[
        list[str] | None, typer.Option('--set', '-s', metavar='KEY=VALUE', help='A setting; repeatable.')
    ] = None,
    user: Annotated[bool, typer.Option('--user', help="Into your own file instead of this folder's amp.toml.")] = False,
    force: Annotated[bool, typer.Option('--force', help='Replace a connection of this name, whole.')] = False,
) -> None:
    """Write a connection into amp.toml. A secret is written as a reference (env:, file:, cmd:, keyring:), never itself."""
    import tomlkit
    from tomlkit.exceptions import ConvertError

    from amp.config.connection_manager import ConnectionManager
    from amp.config.files import read_file, user_file
    from amp.config.urls import is_url, loader_of_url
    from amp.errors import ConfigError

    values: dict[str, Any] = {**({'url': url} if url else {}), **key_values(setting or [])}
    _refuse_secret(values)
    if url is not None and not is_url(url):
        raise ConfigError(f'{url!r} is not the URL of a destination', hint='for example duckdb:///chain.db')
    if url is None and loader is None:
        raise typer.BadParameter('give a URL, or --loader with --set KEY=VALUE')
    kind = loader or loader_of_url(str(url))
    _refuse_unknown(kind, values)
    ConnectionManager().configure(name, kind, values)
    path = user_file() if user else Path('amp.toml')
    is_there = path.exists()
    if is_there and name in read_file(path).connections and not force:
        raise ConfigError(f'{path} has a connection {name!r} already', hint='--force replaces it, and all that it says')
    document = tomlkit.parse(path.read_text(encoding='utf-8')) if is_there else tomlkit.document()
    sections = document.setdefault('connections', tomlkit.table(is_super_table=True))
    try:
        sections[name] = {**({'loader': loader} if loader else {}), **values}
    except ConvertError as error:
        raise ConfigError('null is no value in amp.toml', hint='leave the key out') from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomlkit.dumps(document), encoding='utf-8')
    note(f'{paint("added", "green")}  {name} in {path}')


def _refuse_secret(values: Mapping[str, Any]) -> None:
    from amp.config.secrets import clear_secret, looks_secret
    from amp.errors import ConfigError

    key = clear_secret(values)
    if key is None:
        return
    # Without key=value: that is what is taken out of a text that is shown.
    places = 'env:NAME, file:PATH, cmd:COMMAND or keyring:SERVICE/USER'
    is_url = not looks_secret(key)
    raise ConfigError(
        f'{"the URL" if key == "url" else key} holds a secret, which is not written to a file in clear',
        hint=f'leave the password out, and --set the key password to where it is: {places}'
        if is_url
        else f'--set it to where it is: {places}',
    )


def _refuse_unknown(kind: str, values: Mapping[str, Any]) -> None:
    """A loader or a key that there is not; the keys of a loader that is not installed, or that reads them itself, are not known."""
    from dataclasses import fields

    from amp.errors import ConfigError, MissingExtraError
    from amp.loaders.hooks import Hooks, config_class
    from amp.loaders.options import listed
    from amp.loaders.registry import get_loader_class

    try:
        found = get_loader_class(kind)
    except MissingExtraError:
        return
    config = config_class(found)
    reads_itself = found._parse_config is not Hooks._parse_config and not found.__module__.startswith('amp.loaders.')
    if config is None or reads_itself:
        return
    known = {f.name for f in fields(config)}
    general = {'url', 'resilience', 'state', *({'user'} if 'username' in known else ())}
    unknown = sorted(set(values) - known - general)
    if unknown:
        raise ConfigError(f'{kind} has no key {unknown[0]!r}', hint=f'its keys: {listed(known)}')


@conn.command()
@command
def remove(name: Name) -> None:
    """Take a connection out of the amp.toml that has it."""
    import tomlkit

    from amp.config.files import config_files
    from amp.errors import ConfigError

    found = next((file for file in config_files() if name in file.connections), None)
    if found is None:
        raise ConfigError(f'no amp.toml has a connection {name!r}', hint='amp conn list')
    document: Any = tomlkit.parse(found.path.read_text(encoding='utf-8'))
    del document['connections'][name]
    found.path.write_text(tomlkit.dumps(document), encoding='utf-8')
    note(f'{paint("removed", "green")}  {name} from {found.path}')


@config.command()
@command
def show(
    origin: Annotated[bool, typer.Option('--origin', help='Where each value comes from.')] = False,
    as_json: AsJson = False,
) -> None:
    """The server and every connection with their settings; secrets are not shown. Exit code 3 when one is wrong."""
    from amp.config.files import missing_file
    from amp.config.source import source

    if missing := missing_file():
        note(f'AMP_CONFIG names {missing}, which is no file')
    if server := source():
        if as_json:
            emit('source', settings={k: {'value': s.shown, 'origin': s.origin} for k, s in server.items()})
        else:
            _print('source', '', server, origin=origin)
    for found in _connections(as_json=as_json):
        if as_json:
            settings = {k: {'value': s.shown, 'origin': s.origin} for k, s in found.settings.items()}
            emit('connection', name=found.name, loader=found.loader, settings=settings)
        else:
            _print(found.name, found.loader, found.settings, origin=origin)


def _print(name: str, loader: str, settings: Mapping[str, Setting], *, origin: bool) -> None:
    heading = paint(name, 'bold') if sys.stdout.isatty() else name
    print(f'{heading}  {loader}'.rstrip())
    for key, setting in sorted(settings.items()):
        where = f'   # {setting.origin}' if origin else ''
        print(f'  {key} = {setting.shown}{where}')
