"""What happens to rows between the source and the loader: steps that change batches without changing their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def labels(self, schema: pa.Schema) -> str | None:
        """What rows of `schema` are joined with, for the stream's state; None without labels."""
        records = [record(schema) for step in self._steps if (record := getattr(step, 'record', None)) is not None]
        return records[0] if records else None

    def __bool__(self) -> bool:
        return bool(self._steps)

    def batches(self, batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        """The batches after all steps, as they come, without those that no row is left of."""
        if not self._steps:
            return batches
        return (shaped for shaped in map(self.batch, batches) if shaped.num_rows)
