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
        if logging.lastResort is not None:
            logging.lastResort.addFilter(_is_told_here_alone)

    app(prog_name='amp')


def _is_told_here_alone(record: logging.LogRecord) -> bool:
    """False for the failure of a load: the command ends with the same sentence."""
    return record.levelno != logging.ERROR or not record.name.startswith('amp.loaders.')
