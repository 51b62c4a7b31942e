"""`amp load` and `amp stream`: the answer lands in a table, once or for as long as the chain grows."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from amp.cli.console import command, interruptible
from amp.cli.inputs import AsJson, Auth, Metrics, Sql, Token, Url, answering_metrics, key_values, server_and_sql
from amp.cli.labels import Joins, KeepAll, Labels, Reload, TypedLabel, add_labels, typed_labels
from amp.cli.progress import Reporter
from amp.cli.server import open_client

__all__ = ['load', 'stream', 'with_preset']

To = Annotated[
    str,
    typer.Option(
        '--to', help='Destination: a URL such as duckdb:///chain.db, or a configured name.', show_default=False
    ),
]
TableName = Annotated[str, typer.Option('--table', '-t', help='The table to load into; made when it is not there.')]
Mode = Annotated[str, typer.Option('--mode', '-m', help='append, overwrite, upsert or merge.')]
Keys = Annotated[
    list[str] | None, typer.Option('--key', '-k', help='A key column of upsert and merge; repeat it for several.')
]
Name = Annotated[
    str | None, typer.Option('--name', help="The stream's name, when several feed one table. Default: the table.")
]
Options = Annotated[
    list[str] | None, typer.Option('--option', '-o', metavar='KEY=VALUE', help='An option of the loader; repeatable.')
]
Preset = Annotated[
    str | None,
    typer.Option(
        '--preset', help='How it deals with failures: production, patient or off; instead of what the connection says.'
    ),
]
Fresh = Annotated[bool, typer.Option('--resume/--no-resume', help='Go on from the recorded position of a stream.')]


@command
def load(
    url: Url = None,
    sql: Sql = None,
    *,
    to: To,
    table: TableName,
    mode: Mode = 'append',
    key: Keys = None,
    streaming: Annotated[bool, typer.Option('--stream', help='Follow the chain until Ctrl-C.')] = False,
    name: Name = None,
    resume: Fresh = True,
    label: Labels = None,
    join: Joins = None,
    left: KeepAll = False,
    label_reload: Reload = False,
    option: Options = None,
    preset: Preset = None,
    token: Token = None,
    auth: Auth = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Load the answer into a table.

    Without --stream all rows arrive together or not at all, where the destination can. With it every commit moves a
    position that is kept in the destination: run the same command again and it goes on from there, exactly once.
    """
    labels = typed_labels(label, join, left=left, reload=label_reload)
    chosen = (mode, key, name, option, preset, labels, token, auth, metrics)
    _load(url, sql, to, table, *chosen, streaming=streaming, resume=resume, as_json=as_json)


@command
def stream(
    url: Url = None,
    sql: Sql = None,
    *,
    to: To,
    table: TableName,
    mode: Mode = 'append',
    key: Keys = None,
    name: Name = None,
    resume: Fresh = True,
    label: Labels = None,
    join: Joins = None,
    left: KeepAll = False,
    label_reload: Reload = False,
    option: Options = None,
    preset: Preset = None,
    token: Token = None,
    auth: Auth = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Follow the chain into a table until Ctrl-C: the same as load --stream."""
    labels = typed_labels(label, join, left=left, reload=label_reload)
    chosen = (mode, key, name, option, preset, labels, token, auth, metrics)
    _load(url, sql, to, table, *chosen, streaming=True, resume=resume, as_json=as_json)


def with_preset(preset: str | None) -> dict[str, Any]:
    """The option of a load that --preset stands for. Raises a usage error."""
    if preset is None:
        return {}
    from amp.streaming.resilience import PRESETS

    if preset not in PRESETS:
        raise typer.BadParameter(f'{preset!r} is not a preset; choose one of {", ".join(PRESETS)}')
    return {'config': {'resilience': preset}}


def _load(
    url: str | None,
    sql: str | None,
    to: str,
    table: str,
    mode: str,
    keys: list[str] | None,
    name: str | None,
    pairs: list[str] | None,
    preset: str | None,
    labels: list[TypedLabel],
    token: str | None,
    auth: bool,
    metrics: str | None,
    *,
    streaming: bool,
    resume: bool,
    as_json: bool,
) -> None:
    modes = ('append', 'overwrite', 'upsert', 'merge')
    if mode not in modes:
        raise typer.BadParameter(f'{mode!r} is not a mode; choose one of {", ".join(modes)}')
    if mode in ('upsert', 'merge') and not keys:
        raise typer.BadParameter(f'--mode {mode} needs the key columns: --key COLUMN')
    if name and not streaming:
        raise typer.BadParameter('--name is the name of a stream; add --stream')
    options: dict[str, Any] = {**key_values(pairs or [])}
    if keys:
        options['key_columns'] = keys
    if name:
        options['name'] = name
    options |= with_preset(preset)
    url, text = server_and_sql(url, sql)
    from amp.errors import redact

    with (
        interruptible() as stop,
        answering_metrics(metrics),
        open_client(url, token, auth=auth) as client,
        Reporter(f'{table} → {redact(to)}', as_json=as_json) as reporter,
    ):
        reporter.event('start', table=table, destination=redact(to), mode=mode, stream=streaming)
        options |= add_labels(client, labels)
        asked = client.sql(text)
        if not streaming:
            reporter.add(asked.load(to, table, mode=mode, **options))
            return
        results = asked.load(to, table, mode=mode, stream=True, resume=resume, stop=stop, **options)
        with contextlib.closing(results):
            for result in results:
                reporter.add(result)
