"""`amp serve`: a local Amp over a node, Parquet files, or a made-up chain."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amp.cli.console import command, interruptible, note, paint

if TYPE_CHECKING:
    from amp.devserver import LocalAmp

__all__ = ['serve']


@command
def serve(
    simulate: Annotated[int | None, typer.Option('--simulate', metavar='SEED', help='Serve a made-up chain.')] = None,
    rpc: Annotated[str | None, typer.Option('--rpc', metavar='URL', help='Serve the blocks of an EVM node.')] = None,
    parquet: Annotated[
        Path | None, typer.Option('--parquet', metavar='DIR', help="Serve Amp's raw tables: DIR/DATASET/TABLE.parquet.")
    ] = None,
    blocks: Annotated[int, typer.Option('--blocks', min=0, help='Blocks of the made-up chain at the start.')] = 1000,
    block_time: Annotated[
        float, typer.Option('--block-time', min=0, help='Seconds between new made-up blocks; 0 adds none.')
    ] = 2.0,
    host: Annotated[str, typer.Option(help='The address to listen on.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=0, max=65535, help='The port; 0 takes a free one.')] = 1602,
    friendly: Annotated[
        bool, typer.Option('--friendly', help="Explain errors to people, where Amp's own texts and codes would do.")
    ] = False,
) -> None:
    """Serve a local Amp for development, until Ctrl-C. Its URL is the one line on standard output.

    It asks for no token: keep it on the loopback address, or behind something that does.
    """
    if sum(source is not None for source in (simulate, rpc, parquet)) != 1:
        raise typer.BadParameter('choose one source: --simulate SEED, --rpc URL or --parquet DIR')
    with interruptible(), _local(simulate, rpc, parquet, blocks, host, port, friendly) as server:
        _introduce(server)
        pause = threading.Event()
        if simulate is None or block_time == 0:
            while True:
                pause.wait(3600)
        while not pause.wait(block_time):
            server.mine(1)


@contextlib.contextmanager
def _local(
    simulate: int | None, rpc: str | None, parquet: Path | None, blocks: int, host: str, port: int, friendly: bool
) -> Iterator[LocalAmp]:
    from amp.cli.local import import_devserver

    local = import_devserver()
    if simulate is not None:
        server = local.simulate(seed=simulate, blocks=blocks, host=host, port=port, friendly=friendly)
    elif rpc is not None:
        server = local.from_rpc(rpc, host=host, port=port, friendly=friendly)
    else:
        server = local.from_parquet(parquet or '.', host=host, port=port, friendly=friendly)
    with server:
        yield server


def _introduce(server: LocalAmp) -> None:
    """The URL on stdout; on stderr what is served and what to type."""
    print(server.url, flush=True)
    note(f'{paint("a local Amp", "bold")} for development, {server.network}; Ctrl-C ends it')
    first = ''
    for dataset, tables in server.datasets.items():
        quoted = dataset if dataset.isidentifier() else f'"{dataset}"'
        names = [f'{quoted}.{table}' for table in tables]
        first = first or names[0]
        note(f'  {paint("tables", "dim")}  {", ".join(names)}')
    if sys.stderr.isatty() and first:
        note(f"  {paint('try', 'dim')}     amp query {server.url} 'SELECT * FROM {first} LIMIT 10'")
