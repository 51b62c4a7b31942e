"""Readers around the rows of a plain load: one counts them, one remembers whose error stopped them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from amp.errors import AmpError, ConfigError

__all__ = ['Counted', 'Remembering', 'as_kind', 'as_table']

T = TypeVar('T')


def as_kind(given: object, kind: type[T], door: str) -> T:
    """What was given to a door that takes one kind only. Raises ConfigError for anything else, by its kind."""
    if isinstance(given, kind):
        return given
    raise ConfigError(
        f'{door} takes a {kind.__name__} of pyarrow, and {type(given).__name__} is none', hint='load_table takes more'
    )


def as_table(given: object) -> pa.Table | pa.RecordBatchReader:
    """What can be loaded as a table. Raises ConfigError for anything else, by its kind."""
    if isinstance(given, pa.RecordBatch):
        return pa.Table.from_batches([given])
    if isinstance(given, (pa.Table, pa.RecordBatchReader)):
        return given
    raise ConfigError(
        f'a Table, RecordBatch or RecordBatchReader of pyarrow can be loaded, and {type(given).__name__} is none',
        hint='pa.table(...) makes a table of data frames, dicts and whatever else speaks Arrow',
    )


@dataclass
class Counted:
    """A reader that counts what passes; it stands for the table in the metadata of a load that never had one."""

    schema: pa.Schema
    num_rows: int = 0
    nbytes: int = 0
    batches: int = 0

    def reader(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatchReader:
        """A reader over `batches`, counted from zero."""
        self.schema = schema
        self.num_rows = self.nbytes = self.batches = 0
        return pa.RecordBatchReader.from_batches(schema, self._pass(batches))

    def _pass(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.num_rows += batch.num_rows
            self.nbytes += batch.nbytes
            self.batches += 1
            yield batch


class Remembering:
    """Batches of a reader, with the error that stopped them: a bulk path would hide whose error it was.

    A driver that reads on the thread of the caller gets the Ctrl-C as well, and would make an error of its own of it.
    """

    def __init__(self, batches: pa.RecordBatchReader) -> None:
        self._batches = batches
        self.schema = batches.schema
        self.error: AmpError | KeyboardInterrupt | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches
        except (AmpError, KeyboardInterrupt) as error:
            self.error = error
            raise
