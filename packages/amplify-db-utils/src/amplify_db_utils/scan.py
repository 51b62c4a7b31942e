"""Reading: the files of a snapshot that may match, as one Arrow dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from amplify_db_utils import filters
from amplify_db_utils._arrow import literal
from amplify_db_utils.errors import DamagedData
from amplify_db_utils.faults import damage
from amplify_db_utils.filters import Condition
from amplify_db_utils.log import Snapshot
from amplify_db_utils.storage import Storage

_BATCH = 1 << 16  # rows


class Scan:
    """The rows of a snapshot that meet the conditions, with the columns asked for in that order."""

    def __init__(
        self,
        storage: Storage,
        directory: str,
        snapshot: Snapshot,
        conditions: Sequence[Condition],
        columns: Sequence[str],
    ) -> None:
        self.snapshot = snapshot
        self.columns = list(columns)
        self._all_conditions = conditions
        self.declared = pa.schema([snapshot.schema.field(name) for name in columns])
        self._storage = storage
        self._directory = directory
        on_keys = [one for one in conditions if one.column in snapshot.partition_by]
        self.conditions = [one for one in conditions if one.column not in snapshot.partition_by]
        self.files = _prune(snapshot, on_keys, self.conditions)

    @property
    def by_partition(self) -> bool:
        """Whether the log alone decides which rows match; `conditions` are those that it does not decide."""
        return not self.conditions

    @property
    def local(self) -> bool:
        """Whether the files are on a disk of this machine."""
        return self._storage.local

    def paths(self) -> list[str]:
        """Where the files are, in their order."""
        start = self._storage.path(self._directory, '')
        return [start + path for path in self._relative]

    def table(self) -> pa.Table:
        """All of it, with the declared types. Raises DamagedData."""
        with damage():
            table = self._dataset.to_table(columns=self.columns, filter=self._filter, **_READING)
            self._check_rows(table.num_rows)
            return self._declare(table)

    def stored_table(self) -> pa.Table:
        """All of it, with the stored types. Raises DamagedData."""
        with damage():
            table = self._dataset.to_table(columns=self.columns, filter=self._filter, **_READING)
            self._check_rows(table.num_rows)
            return table.cast(self.stored)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The same in batches, read a little ahead. Raises DamagedData."""
        for batch in self.stored_batches():
            with damage():
                declared = self._declare(pa.Table.from_batches([batch])).to_batches()
            yield from declared

    def stored_batches(self) -> Iterator[pa.RecordBatch]:
        """The batches with the stored types. Raises DamagedData."""
        scanner = self._dataset.scanner(
            columns=self.columns,
            filter=self._filter,
            batch_size=_BATCH,
            batch_readahead=4,
            fragment_readahead=2,
            **_READING,
        )
        rows = 0
        with damage():
            for batch in scanner.to_batches():
                rows += batch.num_rows
                yield batch
        self._check_rows(rows)

    @property
    def stored(self) -> pa.Schema:
        """The schema of `stored_batches`."""
        return pa.schema([self.snapshot.stored.field(name) for name in self.columns])

    def count(self) -> int:
        """How many rows; from the log where it knows. Raises DamagedData."""
        if self.by_partition and not self.files.column('rows').null_count:
            return pc.sum(self.files.column('rows')).as_py() or 0
        floating = [
            one.column for one in self.conditions if pa.types.is_floating(self.snapshot.stored.field(one.column).type)
        ]
        if floating:
            # A file's bounds leave NaN out, and Arrow would count whole row groups by them.
            part = Scan(self._storage, self._directory, self.snapshot, self._all_conditions, floating[:1])
            return sum(batch.num_rows for batch in part.stored_batches())
        with damage():
            rows: int = self._dataset.count_rows(filter=self._filter, **_READING)
        return rows

    @property
    def _filter(self) -> pc.Expression | None:
        return filters.expression(self.conditions)

    def _declare(self, table: pa.Table) -> pa.Table:
        return table if table.schema.equals(self.declared) else table.cast(self.declared)

    def _check_rows(self, rows: int) -> None:
        expected = self.files.column('rows')
        if self.by_partition and not expected.null_count and rows != (pc.sum(expected).as_py() or 0):
            raise DamagedData(f'{rows} rows were read where the log has {pc.sum(expected)}: a data file was changed')

    @cached_property
    def _relative(self) -> list[Any]:
        return self.files.column('path').to_pylist()

    def _check_sizes(self) -> None:
        if not self.local:
            return  # a request for each file; the footer is looked for where the size says it ends
        found = self._storage.filesystem.get_file_info(self.paths())
        sizes: list[Any] = self.files.column('size').to_pylist()
        for path, size, info in zip(self._relative, sizes, found, strict=True):
            if info.size != size:
                raise DamagedData(f'{path!r} is gone or was changed: its size is {info.size}, in the log {size}')

    @cached_property
    def _dataset(self) -> pads.FileSystemDataset:
        # Required columns are nullable here: what a file lacks is null, and the cast at the end says no to it.
        schema = pa.schema([field.with_nullable(True) for field in self.snapshot.stored])
        sizes: list[Any] = self.files.column('size').to_pylist()
        self._check_sizes()
        fragments = [
            _FORMAT.make_fragment(
                path,
                self._storage.filesystem,
                partition_expression=where,
                file_size=size,
            )
            for path, size, where in zip(self.paths(), sizes, self._partition_expressions(), strict=True)
        ]
        return pads.FileSystemDataset(fragments, schema, _FORMAT, self._storage.filesystem)

    def _partition_expressions(self) -> Iterator[pc.Expression | None]:
        keys = self.snapshot.partition_by
        made: dict[tuple[object, ...], pc.Expression | None] = {(): None}
        for row in (
            zip(*(self.files.column(f'p{at}') for at in range(len(keys))), strict=True)
            if keys
            else [()] * len(self.files)
        ):
            if row not in made:
                whole = None
                for key, value in zip(keys, row, strict=True):
                    part = pc.field(key) == literal(value) if value.is_valid else pc.field(key).is_null()
                    whole = part if whole is None else whole & part
                made[row] = whole
            yield made[row]


def _prune(snapshot: Snapshot, on_keys: Sequence[Condition], others: Sequence[Condition]) -> pa.Table:
    files = snapshot.files
    places = {key: f'p{at}' for at, key in enumerate(snapshot.partition_by)}
    wanted = filters.expression(on_keys, places)
    if wanted is not None:
        files = files.filter(wanted)
    if others and {'min', 'max'} <= set(files.column_names):
        possible = filters.may_match(others, files.schema.field('min').type)
        if possible is not None:
            files = files.filter(possible)
    return files


_FORMAT = pads.ParquetFileFormat()
_READING: dict[str, Any] = {
    'fragment_scan_options': pads.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=True)
}
