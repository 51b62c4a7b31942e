"""`amp demo`: real blocks with a real reorg, streamed into a DuckDB file, and proven against the chain."""

from __future__ import annotations

import importlib.util
import random
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
    chaos: Annotated[
        bool, typer.Option('--chaos', help='Kills, cuts and reorgs for a minute, on a made-up chain; then the proof.')
    ] = False,
    seconds: Annotated[
        int | None, typer.Option(min=1, max=86_400, help='With --chaos: how long it goes on.  [default: 60]')
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help='With --chaos: the seed of an earlier run, for the same chain and mischief.'),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See it work: a chain, a server, a stream into DuckDB, a reorg in the middle, and the proof. Half a minute.

    The chain is anvil, a real EVM, when Node.js is there to fetch it; else a simulated one.
    """
    if not chaos and (seconds is not None or seed is not None):
        raise typer.BadParameter('--seconds and --seed belong to --chaos')
    from amp.errors import MissingExtraError, VerifyError

    if importlib.util.find_spec('duckdb') is None:
        raise MissingExtraError('duckdb', 'duckdb')
    from amp.cli.demo.screen import Screen
    from amp.cli.demo.story import run
    from amp.cli.local import import_devserver

    import_devserver()
    if chaos:
        _chaos(path, seconds or 60, seed, as_json=as_json)
        return
    with interruptible(), Screen(as_json=as_json) as screen:
        proof = run(screen, path, blocks, simulate=simulate)
    screen.summarise(proof, path)
    if not proof.holds:
        raise VerifyError('the rows in the file are not those of the chain', hint='this is a bug: please report it')


def _chaos(path: Path, seconds: int, seed: int | None, *, as_json: bool) -> None:
    from amp.cli.demo.chaos import run
    from amp.cli.demo.chaos_screen import ChaosScreen
    from amp.errors import VerifyError

    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    with interruptible(), ChaosScreen(chosen, as_json=as_json) as screen:
        verdict = run(screen, path, seconds, chosen)
    screen.conclude(verdict, path)
    if not verdict.holds:
        raise VerifyError(
            'the rows in the file are not those of the chain',
            hint=f'this is a bug: please report it with the file {str(path)!r} and --seed {chosen}',
        )
