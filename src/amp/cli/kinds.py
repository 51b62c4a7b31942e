"""The formats there are, apart from what writes them: naming one imports nothing."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePath

__all__ = ['BINARY', 'Format', 'format_of']


class Format(StrEnum):
    """The shapes in which rows leave the command line."""

    table = 'table'
    json = 'json'
    jsonl = 'jsonl'
    csv = 'csv'
    parquet = 'parquet'
    arrow = 'arrow'


BINARY = frozenset({Format.parquet, Format.arrow})
_SUFFIXES = {
    '.json': Format.json,
    '.jsonl': Format.jsonl,
    '.ndjson': Format.jsonl,
    '.csv': Format.csv,
    '.parquet': Format.parquet,
    '.arrow': Format.arrow,
    '.feather': Format.arrow,
    '.ipc': Format.arrow,
}


def format_of(path: PurePath) -> Format | None:
    """The format that a file's suffix means, if any."""
    return _SUFFIXES.get(path.suffix.lower())
