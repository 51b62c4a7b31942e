"""`amp serve`: a local Amp over a node, Parquet files, or a made-up chain."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amp.cli.console import INTERRUPTED, command, interruptible, note, paint
from amp.cli.local import import_devserver

if TYPE_CHECKING:
    from amp.devserver import LocalAmp
    from amp.devserver.local import Listening

__all__ = ['serve']

_PORT = 1602
_END_SECONDS = 8.0
_QUERY_SECONDS = 2.0


@command
def serve(
    simulate: Annotated[int | None, typer.Option('--simulate', metavar='SEED', help='Serve a made-up chain.')] = None,
    rpc: Annotated[str | None, typer.Option('--rpc', metavar='URL', help='Serve the blocks of an EVM node.')] = None,
    parquet: Annotated[
        Path | None, typer.Option('--parquet', metavar='DIR', help="Serve Amp's raw tables: DIR/DATASET/TABLE.parquet.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option('--config', metavar='FILE', help='Serve the datasets that a TOML file describes.')
    ] = None,
    blocks: Annotated[int, typer.Option('--blocks', min=0, help='Blocks of the made-up chain at the start.')] = 1000,
    block_time: Annotated[
        float, typer.Option('--block-time', min=0, help='Seconds between new made-up blocks; 0 adds none.')
    ] = 2.0,
    store: Annotated[
        Path | None, typer.Option('--store', metavar='DIR', help="Keep the node's final blocks in Parquet files.")
    ] = None,
    start_block: Annotated[int, typer.Option('--start-block', min=0, help='The first block of the node.')] = 0,
    host: Annotated[str | None, typer.Option(help='The address to listen on; 127.0.0.1 unless said.')] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help='The port, 1602 unless said; 0 takes a free one.')
    ] = None,
    jsonl_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help='Serve JSON Lines on this port; Amp has 1603.')
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help='Serve the Admin API on this port; Amp has 1610.')
    ] = None,
    friendly: Annotated[
        bool, typer.Option('--friendly', help="Explain errors to people, where Amp's own texts and codes would do.")
    ] = False,
) -> None:
    """Serve a local Amp for development, until Ctrl-C. Its URL is the one line on standard output.

    It asks for no token: keep it on the loopback address, or behind something that does.
    """
    if sum(source is not None for source in (simulate, rpc, parquet, config)) != 1:
        raise typer.BadParameter('choose one source: --simulate SEED, --rpc URL, --parquet DIR or --config FILE')
    given: Listening = {'friendly': friendly}
    if host is not None:
        given['host'] = host
    if jsonl_port is not None:
        given['jsonl_port'] = jsonl_port
    if admin_port is not None:
        given['admin_port'] = admin_port
    with interruptible(), contextlib.ExitStack() as stack:
        if config is not None:
            server, block_times = _configured(config, given, port)
        else:
            given['port'] = _PORT if port is None else port
            server = _local(simulate, rpc, parquet, blocks, store, start_block, given)
            block_times = {name: block_time for name in server.datasets if simulate is not None and block_time}
        stack.callback(_end_queries)
        stack.enter_context(server)
        stack.enter_context(_leaving())
        _introduce(server)
        _mine(server, block_times)


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """From the first Ctrl-C in the block the process ends within a few seconds, and at the second one at once."""
    try:
        yield
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        last = threading.Timer(_END_SECONDS, os._exit, [INTERRUPTED])
        last.daemon = True
        last.start()
        raise


def _end_queries() -> None:
    """A query that computes and never looks up would be told of the interpreter's end in the middle: a crash."""
    from amp.devserver.ahead import wait_for_all

    if not wait_for_all(_QUERY_SECONDS):
        os._exit(INTERRUPTED)


def _local(
    simulate: int | None,
    rpc: str | None,
    parquet: Path | None,
    blocks: int,
    store: Path | None,
    start_block: int,
    listening: Listening,
) -> LocalAmp:
    local = import_devserver()
    if simulate is not None:
        return local.simulate(seed=simulate, blocks=blocks, **listening)
    if rpc is not None:
        return local.from_rpc(rpc, store=store, start_block=start_block, **listening)
    return local.from_parquet(parquet or '.', **listening)


def _configured(path: Path, given: Listening, port: int | None) -> tuple[LocalAmp, dict[str, float]]:
    """The server of a file, with what the command line says instead; and the seconds between new made-up blocks."""
    local = import_devserver()
    from amp.devserver.config import SimulatedDataset, read_config

    said = {key: value for key, value in given.items() if key != 'friendly' or value}
    if port is not None:
        said['port'] = port
    config = read_config(path).model_copy(update=said)
    times = {
        name: raw.block_time for name, raw in config.raw.items() if isinstance(raw, SimulatedDataset) and raw.block_time
    }
    return local.from_config(config), times


def _mine(server: LocalAmp, block_times: dict[str, float]) -> None:
    """Wait for Ctrl-C, and add blocks to the made-up chains when it is time."""
    pause = threading.Event()
    due = {name: time.monotonic() + seconds for name, seconds in block_times.items()}
    while True:
        name = min(due, key=lambda each: due[each], default=None)
        if name is None:
            pause.wait(3600)
            continue
        if (left := due[name] - time.monotonic()) > 0:
            # No wait is longer than Python allows.
            pause.wait(min(left, 3600))
            continue
        server.mine(1, dataset=name)
        due[name] += block_times[name]


def _introduce(server: LocalAmp) -> None:
    """The URL on stdout; on stderr what is served and what to type."""
    print(server.url, flush=True)
    note(f'{paint("a local Amp", "bold")} for development, {", ".join(server.networks)}; Ctrl-C ends it')
    first = ''
    for dataset, tables in server.datasets.items():
        quoted = dataset if dataset.isidentifier() else f'"{dataset}"'
        names = [f'{quoted}.{table}' for table in tables]
        first = first or names[0]
        note(f'  {paint("tables", "dim")}  {", ".join(names)}')
    for name, url in server.http_urls.items():
        note(f'  {paint(name, "dim")}  {url}')
    if sys.stderr.isatty() and first:
        note(f"  {paint('try', 'dim')}     amp query {server.url} 'SELECT * FROM {first} LIMIT 10'")
