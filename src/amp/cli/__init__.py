"""The command line `amp`: one small file a command. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os

__all__ = ['main']

# They log what they also raise, with tracebacks; what is raised is told once, in a sentence.
_DRIVERS = ('clickhouse_connect', 'psycopg', 'snowflake', 'urllib3')


def main() -> None:
    """Run the command line and exit with its code (see `amp.errors` for their meaning)."""
    from amp.cli.app import app

    if os.environ.get('AMP_DEBUG', '') in ('', '0'):
        for name in _DRIVERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    app(prog_name='amp')
