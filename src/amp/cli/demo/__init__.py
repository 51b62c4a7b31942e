"""`amp demo`: real blocks with a real reorg, streamed into a DuckDB file, and proven against the chain."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from amp.cli.console import command, interruptible
from amp.cli.inputs import AsJson

__all__ = ['demo']


@command
def demo(
    blocks: Annotated[int, typer.Option(min=12, max=5000, help='Blocks to mine in all.')] = 80,
    path: Annotated[
        Path, typer.Option('--path', '--keep', help="The file to write. An earlier demo's is replaced, no other.")
    ] = Path('demo.duckdb'),
    simulate: Annotated[
        bool, typer.Option('--simulate', help='A made-up chain, even where a real EVM is there.')
    ] = False,
    as_json: AsJson = False,
) -> None:
    """See it work: a chain, a server, a stream into DuckDB, a reorg in the middle, and the proof. Half a minute.

    The chain is anvil, a real EVM, when Node.js is there to fetch it; else a simulated one.
    """
    from amp.errors import MissingExtraError, VerifyError

    if importlib.util.find_spec('duckdb') is None:
        raise MissingExtraError('duckdb', 'duckdb')
    from amp.cli.demo.screen import Screen
    from amp.cli.demo.story import run
    from amp.cli.local import import_devserver

    import_devserver()
    with interruptible(), Screen(as_json=as_json) as screen:
        proof = run(screen, path, blocks, simulate=simulate)
    screen.summarise(proof, path)
    if not proof.holds:
        raise VerifyError('the rows in the file are not those of the chain', hint='this is a bug: please report it')
