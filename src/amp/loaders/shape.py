"""What happens to rows between the source and the loader: steps that change batches without changing their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

__all__ = ['Shape', 'Step']


class Step(Protocol):
    """One change. It knows the schema that it makes before it has seen a row."""

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema after the step. Raises SchemaError or ConfigError when the step does not fit."""

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows after the step, in the schema that `schema` announced."""


class Shape:
    """Steps, one after the other; without steps nothing is touched."""

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self._steps = tuple(steps)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema after all steps."""
        for step in self._steps:
            schema = step.schema(schema)
        return schema

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows after all steps."""
        for step in self._steps:
            batch = step.batch(batch)
        return batch

    def reader(self, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The rows of a reader after all steps, as they come."""
        if not self._steps:
            return reader
        return pa.RecordBatchReader.from_batches(self.schema(reader.schema), self._batches(reader))

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield self.batch(batch)
