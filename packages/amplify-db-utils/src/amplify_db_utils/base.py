"""What every backend promises: the abstract store and the shape of a filter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import pyarrow as pa
from pydantic import BaseModel

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

Filters: TypeAlias = Mapping[str, Any]
"""Column name to a value (equality, None for null), to `{"gte"|"gt"|"lte"|"lt": value}` (they combine), or to `{"in": [...]}`."""

Select: TypeAlias = Literal['left', 'right', 'both']
Records: TypeAlias = 'Sequence[Mapping[str, Any]] | pa.Table | pa.RecordBatch | pd.DataFrame'
TableSchema: TypeAlias = 'type[BaseModel] | pa.Schema'


class ColumnarStore(ABC):
    """An append-only store of tables: appends, partition overwrites, lookups, range scans and bulk reads. Not SQL."""

    @abstractmethod
    def create_table(self, table: str, schema: TableSchema, partition_by: Sequence[str] | None = None) -> None:
        """Make the table, or add the nullable columns that it lacks. Safe to call from many processes at once.

        Raises ValueError, and changes nothing, where columns would go, types change, or `partition_by` differ.
        """

    @abstractmethod
    def register_table(self, table: str, schema: TableSchema, partition_by: Sequence[str] | None = None) -> None:
        """Make the table known to this handle alone, writing nothing; the same rules as `create_table` hold."""

    @abstractmethod
    def get_schema(self, table: str) -> pa.Schema:
        """The declared columns, in order. Raises KeyError for an unknown table."""

    @abstractmethod
    def write(self, table: str, records: Records, overwrite: bool = False) -> None:
        """Append the records, or replace every partition that occurs in them; all of them or none."""

    @abstractmethod
    def read(
        self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The matching rows one by one, as dicts with the columns in the order asked for."""

    @abstractmethod
    def bulk_read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The matching rows as one Arrow table."""

    @abstractmethod
    def count(self, table: str, filters: Filters | None = None) -> int:
        """How many rows match."""

    @abstractmethod
    def distinct_values(
        self, table: str, fields: Sequence[str], filters: Filters | None = None
    ) -> list[dict[str, Any]]:
        """The distinct combinations of the fields among matching rows, in no particular order."""

    @abstractmethod
    def join(
        self,
        left: str,
        right: str,
        on: str,
        left_filters: Filters | None = None,
        right_filters: Filters | None = None,
        select: Select = 'both',
    ) -> Iterator[dict[str, Any]]:
        """The inner join of two tables on a column of both, as dicts."""

    def close(self) -> None:  # noqa: B027
        """Let go of what the handle holds; a backend without anything to let go of need not override it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
