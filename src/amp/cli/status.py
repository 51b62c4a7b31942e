"""`amp status`: where the streams of a destination stand."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from amp.cli.console import command, emit, interruptible, note, paint
from amp.cli.inputs import AsJson, Auth, Token
from amp.cli.server import open_client

if TYPE_CHECKING:
    from amp.loaders.status import StreamStatus
    from amp.streaming.types import BlockRange

__all__ = ['Destination', 'Source', 'status']

Destination = Annotated[
    str, typer.Argument(metavar='DESTINATION', help='The destination, such as duckdb:///chain.db.', show_default=False)
]
Source = Annotated[
    str | None,
    typer.Option('--source', '-s', metavar='URL', help='The Amp server, such as grpc://localhost:1602.'),
]

_MOST_RANGES = 8


@command
def status(
    destination: Destination,
    table: Annotated[str | None, typer.Option('--table', '-t', help='Only the streams of this table.')] = None,
    source: Source = None,
    token: Token = None,
    auth: Auth = False,
    as_json: AsJson = False,
) -> None:
    """Show every stream of a destination: position, history, gaps, owner and, with --source, its lag."""
    import contextlib

    from amp.loaders.status import open_destination, status_of

    with interruptible(), contextlib.ExitStack() as stack:
        client = stack.enter_context(open_client(source, token, auth=auth)) if source else None
        loader = stack.enter_context(open_destination(destination))
        found = [s for s in status_of(loader, client) if table is None or s.info.key.table == table]
    for one in found:
        if as_json:
            emit('stream', **one.to_dict())
        else:
            _show(one)
    if not found and not as_json:
        note('no streams' + (f' of the table {table!r}' if table else ' here yet'))


def _show(one: StreamStatus) -> None:
    info, state = one.info, one.info.state
    name = '' if info.key.name == info.key.table else f'  stream {info.key.name}'
    lines = [
        ('position', _position(one)),
        ('history', _listed(one.history) or 'nothing yet'),
        ('gaps', _listed(one.gaps) or 'none'),
        ('undo', f'{one.window_entries:,} units, {one.window_blocks:,} blocks can still be taken back'),
        ('writer', f'{info.claim.owner} since {info.claim.taken_at} (epoch {state.epoch})'),
        ('commit', _ago(info.committed_at)),
    ]
    if one.coverage is not None or one.server is not None:
        lines.append(('lag', _lag(one)))
    if info.claim.query is not None:
        query = ' '.join(info.claim.query.split())
        lines.append(('query', query if len(query) <= 100 else query[:99] + '…'))
    print(_styled(info.key.table, 'bold') + name)
    for heading, text in lines:
        print(f'  {_styled(f"{heading:<9}", "dim")} {text}')


def _styled(text: str, style: str) -> str:
    return paint(text, style) if sys.stdout.isatty() else text


def _position(one: StreamStatus) -> str:
    ranges = one.info.state.position.ranges
    return ', '.join(f'{r.network} {r.end:,}' + (f' {r.hash}' if r.hash else '') for r in ranges) or 'the beginning'


def _listed(ranges: tuple[BlockRange, ...]) -> str:
    text = ', '.join(f'{r.network} {r.start:,}-{r.end:,}' for r in ranges[:_MOST_RANGES])
    more = len(ranges) - _MOST_RANGES
    return text + (f' and {more:,} more' if more > 0 else '')


def _ago(moment: str | None) -> str:
    if moment is None:
        return 'none yet'
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for size, unit in ((86400, 'days'), (3600, 'hours'), (60, 'minutes')):
        if seconds >= 2 * size:
            return f'{moment} ({seconds / size:.0f} {unit} ago)'
    return f'{moment} ({max(seconds, 0):.0f} seconds ago)'


def _lag(one: StreamStatus) -> str:
    if one.coverage is None:
        return f'not known: {one.server}'
    heads = {r.network: r.end for r in one.coverage}
    texts = []
    for network, blocks in (one.lag or {}).items():
        head = f'the server has {network} {heads[network]:,}'
        if blocks > 0:
            texts.append(f'{blocks:,} blocks behind ({head})')
        elif blocks < 0:
            texts.append(f'{-blocks:,} blocks ahead ({head})')
        else:
            texts.append(f'none ({head})')
    return ', '.join(texts) or 'the server has no blocks yet'
