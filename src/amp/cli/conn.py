"""`amp conn` and `amp config`: what names stand for, where each value comes from, and whether it works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp.cli.console import command, emit, note, paint
from amp.cli.inputs import AsJson, key_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amp.config.secrets import Setting

__all__ = ['config', 'conn']

conn = typer.Typer(help='Names for destinations.', no_args_is_help=True)
config = typer.Typer(help='What is configured, and where.', no_args_is_help=True)

Name = Annotated[str, typer.Argument(help='The name of the connection.')]


def _manager() -> Any:
    from amp.config.connection_manager import ConnectionManager

    return ConnectionManager()


@conn.command('list')
@command
def list_(as_json: AsJson = False) -> None:
    """Every name that is known here, with its loader."""
    manager = _manager()
    for name in manager.names():
        found = manager.get(name)
        if as_json:
            emit('connection', name=name, loader=found.loader)
        else:
            print(f'{name}  {found.loader}')
    if not manager.names() and not as_json:
        note('no connections yet: amp conn add NAME URL')


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
) -> None:
    """Write a connection into amp.toml. A secret is written as a reference (env:, file:, cmd:, keyring:), never itself."""
    import tomlkit

    from amp.config.connection_manager import ConnectionManager
    from amp.config.files import user_file
    from amp.config.secrets import is_reference, looks_secret
    from amp.config.urls import is_url, loader_of_url
    from amp.errors import ConfigError, redact

    values: dict[str, Any] = {**({'url': url} if url else {}), **key_values(setting or [])}
    if url is not None and not is_url(url):
        raise ConfigError(f'{url!r} is not the URL of a destination', hint='for example duckdb:///chain.db')
    if url is None and loader is None:
        raise typer.BadParameter('give a URL, or --loader with --set KEY=VALUE')
    secret = next((k for k, v in values.items() if looks_secret(k) and not is_reference(v)), None)
    if secret is not None or (url is not None and redact(url) != url):
        raise ConfigError(
            f'{secret or "the URL"} holds a secret, which is not written to a file in clear',
            hint='name where it is: --set password=env:NAME (or file:, cmd:, keyring:)',
        )
    ConnectionManager().configure(name, loader or loader_of_url(str(url)), values)
    path = user_file() if user else Path('amp.toml')
    document = tomlkit.parse(path.read_text(encoding='utf-8')) if path.exists() else tomlkit.document()
    sections = document.setdefault('connections', tomlkit.table(is_super_table=True))
    sections[name] = {**({'loader': loader} if loader else {}), **values}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomlkit.dumps(document), encoding='utf-8')
    note(f'{paint("added", "green")}  {name} in {path}')


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
    """The server and every connection with their settings; secrets are not shown."""
    from amp.config.source import source

    if server := source():
        if as_json:
            emit('source', settings={k: {'value': s.shown, 'origin': s.origin} for k, s in server.items()})
        else:
            _print('source', '', server, origin=origin)
    manager = _manager()
    for name in manager.names():
        found = manager.get(name)
        if as_json:
            settings = {k: {'value': s.shown, 'origin': s.origin} for k, s in found.settings.items()}
            emit('connection', name=name, loader=found.loader, settings=settings)
        else:
            _print(found.name, found.loader, found.settings, origin=origin)


def _print(name: str, loader: str, settings: Mapping[str, Setting], *, origin: bool) -> None:
    heading = paint(name, 'bold') if sys.stdout.isatty() else name
    print(f'{heading}  {loader}'.rstrip())
    for key, setting in sorted(settings.items()):
        where = f'   # {setting.origin}' if origin else ''
        print(f'  {key} = {setting.shown}{where}')
