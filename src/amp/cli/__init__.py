"""The command line `amp`: one small file a command. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

__all__ = ['main']


def main() -> None:
    """Run the command line and exit with its code (see `amp.errors` for their meaning)."""
    from amp.cli.app import app

    app(prog_name='amp')
