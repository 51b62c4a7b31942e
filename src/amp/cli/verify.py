"""`amp verify`: is what a destination holds what its streams say, and what the server has?"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from amp.cli.console import command, emit, interruptible, note, paint
from amp.cli.inputs import AsJson, Auth, Token, server_and_sql
from amp.cli.labels import Labels, add_labels, typed_labels
from amp.cli.server import open_client
from amp.cli.status import Destination, Source

if TYPE_CHECKING:
    from amp.loaders.findings import Report

__all__ = ['verify']


@command
def verify(
    destination: Destination,
    table: Annotated[
        str | None, typer.Option('--table', '-t', help='The table; left out, every table that a stream feeds.')
    ] = None,
    name: Annotated[str | None, typer.Option('--name', help='Only the stream of this name.')] = None,
    source: Source = None,
    query: Annotated[
        str | None,
        typer.Option('--query', '-q', metavar='SQL', help='What the rows must be; default: the query of the stream.'),
    ] = None,
    block_column: Annotated[
        str | None,
        typer.Option('--block-column', help='Holds the block number; default: _block_num, block_num or block_number.'),
    ] = None,
    label: Labels = None,
    token: Token = None,
    auth: Auth = False,
    as_json: AsJson = False,
) -> None:
    """Hold the rows of a destination against the recorded history and, with --source, against the server.

    Nothing is changed. Exit code 6 when something is off, with the blocks or ids named.
    """
    if query is not None and not source:
        raise typer.BadParameter('--query is what to ask the server; add --source URL')
    if (name or query) and not table:
        raise typer.BadParameter('say which table it is about: --table TABLE')
    if label and not source:
        raise typer.BadParameter('--label is what the rows of the server are joined with; add --source URL')
    labels = typed_labels(label, None, left=False)
    text = server_and_sql(source or '', query)[1] if query is not None else None
    from amp.errors import VerifyError
    from amp.loaders.status import open_destination
    from amp.loaders.verify import verify as verified

    with interruptible(), contextlib.ExitStack() as stack:
        client = stack.enter_context(open_client(source, token, auth=auth)) if source else None
        if client is not None:
            add_labels(client, labels)
        loader = stack.enter_context(open_destination(destination))
        reports = verified(loader, table, name=name, source=client, query=text, block_column=block_column)
    for report in reports:
        _tell(report, as_json=as_json)
    if not reports and not as_json:
        note('no streams here yet')
    off = sum(len(report.findings) for report in reports)
    if off:
        raise VerifyError(
            f'{off} finding{"s" * (off != 1)}: the rows are not what they should be',
            hint='load the blocks that are named again, or the whole table with --mode overwrite',
        )


def _tell(report: Report, *, as_json: bool) -> None:
    if as_json:
        for finding in report.findings:
            emit('finding', table=report.key.table, stream=report.key.name, **finding.to_dict())
        emit('verified', **report.to_dict())
        return
    name = report.key.table if report.key.name == report.key.table else f'{report.key.table} ({report.key.name})'
    for finding in report.findings:
        print(f'{_styled(f"{finding.kind:<8}", "red")} {name}: {finding.text}')
    if report.ok:
        print(f'{_styled("verified", "green")} {name}: {_summary(report)}')
    for text in report.notes:
        note(f'{paint("note:", "yellow")} {name}: {text}')


def _summary(report: Report) -> str:
    blocks = sum(r.end - r.start + 1 for r in report.history)
    compared = sum(r.end - r.start + 1 for r in report.compared)
    text = f'{report.rows:,} rows of {blocks:,} blocks fit the recorded history'
    if compared == blocks and blocks:
        return f'{text} and are those of the server: none lost, none twice, none orphaned'
    return f"{text}, and those of {compared:,} blocks are the server's" if compared else text


def _styled(text: str, style: str) -> str:
    return paint(text, style) if sys.stdout.isatty() else text
