"""The pages of the reference that are read off the code: the command line, and the configuration."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

import typer.main
from typer.cli import get_docs_for_click

from amp.config.connection_manager import _SYSTEM
from amp.loaders.hooks import config_class
from amp.loaders.registry import get_available_loaders, get_loader_class
from amp.loaders.settings import StreamSettings
from amp.streaming.parallel import ParallelConfig
from amp.streaming.resilience import ResilienceConfig

_CLI_INTRO = """# Command line

Data goes to standard output, everything else to standard error. `--json` is one event a line. Progress is shown on a
terminal only. Written by `scripts/generate_docs.py` from the commands themselves.

"""
_CONFIGURATION_INTRO = """# Configuration

Keys of `[connections.NAME]` in [`amp.toml`](connections.md), of `configure_connection`, of `create_loader`, and of the query
of a URL (`?key=value`). Written by `scripts/generate_docs.py` from the settings themselves.

Every connection also takes `resilience`, below.

"""


def cli_page() -> str:
    """docs/cli.md."""
    from amp.cli.app import app

    command = typer.main.get_command(app)
    _tell_whole_sentences(command)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name='amp')
    text = re.sub(r'\A# `amp`\n', '', text)
    return _CLI_INTRO + re.sub(r'[ \t]+$', '', text, flags=re.MULTILINE).strip() + '\n'


def _tell_whole_sentences(group: Any) -> None:
    """In lists of commands: what is not said in a few words would be cut."""
    for command in getattr(group, 'commands', {}).values():
        command.short_help = command.get_short_help_str(limit=sys.maxsize)
        _tell_whole_sentences(command)


def configuration_page() -> str:
    """docs/configuration.md."""
    parts = [_CONFIGURATION_INTRO.strip(), '## Destinations']
    for name in get_available_loaders():
        settings = config_class(get_loader_class(name))
        if settings is not None:
            parts += [f'### {name}', _about(settings), _table(settings), *_variables(name)]
    parts += ['## Streams', 'Options of a load with `stream=True`; `-o KEY=VALUE` on the command line.']
    parts += [_about(StreamSettings), _table(StreamSettings)]
    parts += ['## Parallel loads', _about(ParallelConfig), _table(ParallelConfig)]
    parts += [
        '## Resilience',
        '`resilience = { ... }` of a connection: the parts by their names.',
        _about(ResilienceConfig),
    ]
    for field in dataclasses.fields(ResilienceConfig):
        part = _class_of(field)
        if part is not None:
            parts += [f'### {field.name}', _about(part), _table(part)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _about(settings: Any) -> str:
    """The docstring, without what it says of exceptions of Python."""
    return inspect.cleandoc(settings.__doc__ or '').replace('\n\n', '\n').replace('\n', ' ')


def _table(settings: Any) -> str:
    rows = [
        f'| `{field.name}` | `{_type(field)}` | {_default(field)} |'
        for field in dataclasses.fields(settings)
        if not field.name.startswith('_')
    ]
    return '\n'.join(['| key | type | default |', '|---|---|---|', *rows])


def _type(field: dataclasses.Field[Any]) -> str:
    return str(field.type).replace('|', '\\|').removesuffix(' \\| None')


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return 'none' if field.default is None else f'`{getattr(field.default, "value", field.default)!r}`'
    return 'required' if field.default_factory is dataclasses.MISSING else 'its own defaults'


def _variables(name: str) -> Iterable[str]:
    known = [f'`{variable}` ({key})' for key, variables in _SYSTEM.get(name, {}).items() for variable in variables]
    return [f'Variables: {", ".join(known)}.'] if known else []


def _class_of(field: dataclasses.Field[Any]) -> Any:
    import amp.streaming.resilience as resilience

    found = getattr(resilience, str(field.type).partition(' ')[0], None)
    return found if dataclasses.is_dataclass(found) else None
