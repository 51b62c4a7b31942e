"""`amp loaders`: the destinations that there are, and what each can do."""

from __future__ import annotations

import json
import sys
from typing import Any

from amp.cli.console import command
from amp.cli.inputs import AsJson

__all__ = ['loaders']


@command
def loaders(as_json: AsJson = False) -> None:
    """List the destinations: ready ones with their modes, the others with what to install."""
    found = [_describe(name) for name in _names()]
    if as_json:
        for row in found:
            print(json.dumps(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style='bold')
    for heading in ('loader', 'modes', 'streams', ''):
        table.add_column(heading)
    for row in found:
        state = '[green]ready[/]' if row['ready'] else f'[yellow]{escape(row["install"])}[/]'
        table.add_row(row['loader'], ' '.join(row['modes']), row['guarantee'], state)
    console = Console() if sys.stdout.isatty() else Console(width=200, color_system=None)
    console.print(table)


def _names() -> list[str]:
    from amp.loaders.registry import get_available_loaders

    return get_available_loaders()


def _describe(name: str) -> dict[str, Any]:
    from amp.errors import ConfigError, MissingExtraError
    from amp.loaders.registry import get_loader_class

    try:
        found = get_loader_class(name)
    except MissingExtraError as error:
        return {'loader': name, 'ready': False, 'modes': [], 'guarantee': '', 'install': error.hint or ''}
    except ConfigError as error:
        # A package with a mistake in it does not hide the others.
        return {'loader': name, 'ready': False, 'modes': [], 'guarantee': '', 'install': str(error)}
    modes = sorted(mode.value for mode in found.SUPPORTED_MODES)
    return {'loader': name, 'ready': True, 'modes': modes, 'guarantee': found.guarantee_of(), 'install': ''}
