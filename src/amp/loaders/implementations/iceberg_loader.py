"""Iceberg: tables in a catalog, straight from Arrow. Undo, rows and state are one metadata commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

from amp.errors import AmpError, ConfigError, DestinationError, LoadError
from amp.loaders.arrow_types import Landing, wire_schema
from amp.loaders.base import DataLoader
from amp.loaders.iceberg.catalog import (
    CatalogTables,
    config_from_iceberg_url,
    explained,
    is_transient_failure,
)
from amp.loaders.iceberg.commit import Change, commit
from amp.loaders.iceberg.files import arrow_schema, top_columns
from amp.loaders.iceberg.maintenance import Upkeep, compact, expire_snapshots, remove_orphans
from amp.loaders.iceberg.scan import scan_batches
from amp.loaders.iceberg.schema import add_columns, landings, make_table, missing_columns, partition_fields
from amp.loaders.iceberg.streams import StreamRecord, newborn, read_records
from amp.loaders.iceberg.unit import REPLACING, PlainUnit, StreamUnit, current
from amp.loaders.stamps import STAMP_COLUMNS
from amp.loaders.types import LoadMode
from amp.loaders.unit import Claim, StreamInfo, StreamJob
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['IcebergLoader', 'IcebergStorageConfig']


@dataclass(frozen=True)
class IcebergStorageConfig:
    """Where the tables are and what new ones look like.

    `warehouse`: a folder, with a SQLite catalog inside unless `catalog_config` names another: the properties of any
    pyiceberg catalog, `name` among them. `partition_spec` of new tables: column names, or `{'column': 'day', 'transform':
    'day'}`, or `'day(timestamp)'`, or `'bucket[16](address)'`. `default_table_properties` of new tables.

    After every `compact_every` commits of a stream small final files are merged, after every `expire_every` snapshots
    expire but the newest `keep_snapshots` and those of the last `keep_minutes` (0 turns either off). With `sync` files on
    a local disk are on the disk before a commit names them.
    """

    warehouse: str = ''
    catalog_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    namespace: str = 'default'
    partition_spec: Sequence[str | Mapping[str, Any]] = ()
    default_table_properties: Mapping[str, str] = field(default_factory=dict)
    compact_every: int = 32
    expire_every: int = 64
    keep_snapshots: int = 64
    keep_minutes: float = 30.0
    sync: bool = False


class IcebergLoader(DataLoader[IcebergStorageConfig]):
    """Loads into Iceberg tables: append, overwrite, upsert by key, exactly-once streams, compaction, expiry."""

    SUPPORTED_MODES: ClassVar[set[LoadMode]] = set(LoadMode)
    SUPPORTS_TRANSACTIONS: ClassVar[bool] = True
    LOAD_OPTIONS: ClassVar[frozenset[str] | None] = frozenset()
    PLACE: ClassVar[tuple[str, ...]] = ('warehouse', 'namespace')
    URL_PATH_KEY: ClassVar[str | None] = 'warehouse'

    def __init__(self, config: Mapping[str, Any], label_manager: object | None = None) -> None:
        given = dict(config)
        if 'url' in given:
            given = {**config_from_iceberg_url(str(given.pop('url'))), **given}
        self._tables: CatalogTables | None = None
        self._plain: PlainUnit | None = None
        self._clears: set[str] = set()
        self._in_transaction = False
        self._unborn: dict[StreamKey, Claim] = {}
        self._held: dict[StreamKey, StreamRecord] = {}
        self._landed: tuple[pa.Schema, list[Landing]] | None = None
        super().__init__(given, label_manager)

    def _parse_config(self, config: dict[str, Any]) -> IcebergStorageConfig:
        parsed = super()._parse_config(config)
        if not parsed.warehouse and not parsed.catalog_config:
            raise ConfigError(
                "iceberg needs the configuration key 'warehouse' or 'catalog_config'",
                hint="for example warehouse='/data/lake', or catalog_config={'type': 'rest', 'uri': 'https://...'}",
            )
        partition_fields(parsed.partition_spec)
        return parsed

    @property
    def tables(self) -> CatalogTables:
        """The catalog. Raises DestinationError when it is not open."""
        if self._tables is None:
            raise DestinationError('the Iceberg catalog is not open', hint='call connect() or use `with loader:`')
        return self._tables

    def connect(self) -> None:
        """Open the catalog, making warehouse and namespace when they are not there. Raises DestinationError."""
        config = self.config
        self._tables = CatalogTables(config.warehouse, config.catalog_config, config.namespace, sync=config.sync)
        self._upkeep = Upkeep(config.compact_every, config.expire_every, config.keep_snapshots, config.keep_minutes)
        self._is_connected = True

    def disconnect(self) -> None:
        """Let go of the catalog."""
        if self._tables is not None:
            self._tables.close()
        self._tables = None
        self._created_tables.clear()
        self._is_connected = False

    def is_transient(self, error: Exception) -> bool:
        """True for a lock, a server that is away, and a commit of unknown outcome."""
        return is_transient_failure(error)

    # Plain loads

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._in_transaction, self._plain, self._clears = True, None, set()
        try:
            yield
            if self._plain is not None:
                self._plain.commit()
        except BaseException:  # Ctrl-C too: no files of half a load stay
            if self._plain is not None:
                self._plain.abort()
            raise
        finally:
            self._in_transaction, self._plain = False, None

    def _create_table_from_schema(self, schema: pa.Schema, table_name: str) -> None:
        wire = wire_schema(self._landings(schema))
        unborn = {key: claim for key, claim in self._unborn.items() if key.table == table_name}
        table = self.tables.find(table_name)
        if table is None and self._make(table_name, wire, unborn):
            return
        self._be_born(table_name)
        # The table may be older than its first stream.
        add_columns(self.tables, table_name, [f for f in wire if f.name in STAMP_COLUMNS])

    def _make(self, table_name: str, wire: pa.Schema, unborn: Mapping[StreamKey, Claim]) -> bool:
        """Make the table, with the streams that were opened before it was there; False when it is there by now."""
        records: dict[str, StreamRecord] = {}
        for key, claim in unborn.items():
            records[key.name] = newborn(key.name, claim, records).taken_by(claim)
        documents = {key: text for record in records.values() for key, text in record.to_property().items()}
        config = self.config
        partitions = partition_fields(config.partition_spec)
        made = make_table(self.tables, table_name, wire, partitions, config.default_table_properties, documents)
        if not made:
            return False
        for key in unborn:
            self._held[key] = records[key.name]
            del self._unborn[key]
        return True

    def _missing_columns(self, schema: pa.Schema, table_name: str) -> Sequence[pa.Field[Any]]:
        missing = missing_columns(self.tables, table_name, schema.names)
        return [f for f in schema if f.name in missing]

    def _add_columns(self, fields: Sequence[pa.Field[Any]], table_name: str) -> None:
        add_columns(self.tables, table_name, list(wire_schema(self._landings(pa.schema(fields)))))

    def _clear_table(self, table_name: str) -> None:
        if self._in_transaction:
            # With the rows that come in their place, in one commit.
            self._clears.add(table_name)
        else:
            PlainUnit(self.tables, table_name, (), clears=True).commit()

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        return self._load_reader_impl(pa.RecordBatchReader.from_batches(batch.schema, [batch]), table_name, **kwargs)

    def _load_reader_impl(self, reader: pa.RecordBatchReader, table_name: str, **kwargs: Any) -> int:
        if not self._in_transaction:
            with self._transaction():
                return self._load_reader_impl(reader, table_name, **kwargs)
        ways = self._landings(reader.schema)
        keys = kwargs.get('key_columns', ()) if kwargs.get('mode') in REPLACING else ()
        self._plain = unit = PlainUnit(self.tables, table_name, keys, clears=table_name in self._clears)
        return sum(unit.write(batch, ways) for batch in reader)

    def _landings(self, schema: pa.Schema) -> list[Landing]:
        if self._landed is None or not self._landed[0].equals(schema, check_metadata=True):
            self._landed = (schema, landings(schema))
        return self._landed[1]

    # Looking

    def table_exists(self, table_name: str) -> bool:
        """True when the catalog lists the table."""
        return self.tables.find(table_name) is not None

    def get_table_info(self, table_name: str) -> dict[str, Any] | None:
        """Name, row count, columns, bytes, files, snapshots and location of a table; None when it is not there."""
        table = self.tables.find(table_name)
        if table is None:
            return None
        with explained(self.tables.shown):
            files = [task.file for task in table.scan().plan_files()]
            return {
                'table_name': table_name,
                'row_count': table.scan().count(),
                'exists': True,
                'columns': top_columns(table),
                'size_bytes': sum(file.file_size_in_bytes for file in files),
                'files': len(files),
                'snapshots': len(table.metadata.snapshots),
                'location': table.location(),
            }

    def get_table_schema(self, table_name: str) -> pa.Schema | None:
        """The Arrow schema of the user's columns; None when the table is not there."""
        table = self.tables.find(table_name)
        return None if table is None else _selected(table, _user_columns(table))

    def scan(self, table_name: str) -> pa.RecordBatchReader:
        """The rows of the current snapshot, in no promised order, the user's columns only."""
        table = self._existing(table_name)
        return self._reader(table, _user_columns(table))

    def stamped_scan(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        where: Mapping[str, tuple[int, int]] | None = None,
    ) -> pa.RecordBatchReader:
        """The rows with amp's own columns; those asked for, where the named columns lie between two numbers."""
        table = self._existing(table_name)
        return self._reader(table, list(columns or top_columns(table)), where or None)

    def _existing(self, table_name: str) -> Table:
        table = self.tables.find(table_name)
        if table is None:
            raise LoadError(f'the table {table_name!r} does not exist', table=table_name)
        return table

    def _reader(
        self, table: Table, columns: Sequence[str], where: Mapping[str, tuple[int, int]] | None = None
    ) -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.RecordBatch]:
            with explained(self.tables.shown):
                yield from scan_batches(table, columns, where)

        return pa.RecordBatchReader.from_batches(_selected(table, columns), batches())

    # Streams

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that the tables of the namespace remember."""
        found = []
        for name in self.tables.names():
            try:
                table = self.tables.find(name)
            except DestinationError as error:
                # One table that cannot be read must not stand in the way of the others.
                self.logger.warning('the streams of %s are not known: %s', name, error)
                continue
            if table is not None:
                found += [record.info(name) for record in read_records(table).values()]
        return sorted(found, key=lambda info: (info.key.table, info.state.number))

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch of the stream and read what is committed.

        Before the table is there nothing can be made durable: then the claim is written with the table itself, and of
        two that came so early, the one that makes the table has the stream.
        """
        if self.tables.find(key.table) is None:
            self._unborn[key] = claim
            return StreamState(1, 1)
        self._unborn.pop(key, None)
        return self._take(key, claim, after).stream_state()

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> StreamUnit:
        """Open a unit; what it undoes is undone by its commit."""
        del first_id
        self._be_born(job.key.table)
        table = self._existing(job.key.table)
        record = self._held.get(job.key)
        if record is None or record.epoch != state.epoch:
            raise LoadError(f'the stream {job.key.name!r} of {job.key.table!r} was not opened by this loader')
        found = current(table, record, any_unit=True)
        return StreamUnit(self.tables, job, found, self._landings, undo, self._committed)

    def _committed(self, key: StreamKey) -> None:
        try:
            self._upkeep.after_commit(self.tables, key.table)
        except (AmpError, CommitFailedException, OSError) as error:
            # The unit is durable; what was not tidied up now is tidied up another time.
            self.logger.warning('looking after %s failed: %s', key.table, error)

    def _take(self, key: StreamKey, claim: Claim, after: int | None) -> StreamRecord:
        taken: list[StreamRecord] = []

        def plan(table: Table) -> Change:
            records = read_records(table)
            before = records.get(key.name) or newborn(key.name, claim, records)
            if after is not None and before.epoch not in {0, after} and before.claim.owner != claim.owner:
                raise before.stale(key.table, after)
            taken[:] = [before.taken_by(claim)]
            return Change(
                properties=taken[0].to_property(), summary={'amp.stream': key.name, 'amp.epoch': str(taken[0].epoch)}
            )

        commit(self.tables, key.table, plan)
        self._held[key] = taken[0]
        return taken[0]

    def _be_born(self, table_name: str) -> None:
        """Make claims durable that were made before the table was there. Raises StaleEpochError."""
        for key in [key for key in self._unborn if key.table == table_name]:
            claim = self._unborn[key]
            found = read_records(self._existing(table_name)).get(key.name)
            if found is not None and found.claim.owner != claim.owner:
                raise found.stale(table_name, 1)
            record = found or self._take(key, claim, None)
            self._held[key] = record
            del self._unborn[key]
            if (record.number, record.epoch) != (1, 1):
                other = DestinationError(
                    f'the table {table_name!r} was made by another stream meanwhile', hint='try again'
                )
                other.retryable = True
                raise other

    # Looking after tables

    def compact(self, table_name: str) -> int:
        """Merge small files whose rows have left the undo window; how many files went."""
        return compact(self.tables, table_name)

    def expire_snapshots(self, table_name: str, keep: int | None = None, minutes: float | None = None) -> int:
        """Forget snapshots but the newest `keep` and those of the last `minutes`, and delete files that only they
        name; how many snapshots went.
        """
        config = self.config
        return expire_snapshots(
            self.tables,
            table_name,
            config.keep_snapshots if keep is None else keep,
            config.keep_minutes if minutes is None else minutes,
        )

    def remove_orphans(self, table_name: str, older_than_hours: float = 72.0) -> int:
        """Delete files below the table that nothing names and that are older than that; how many."""
        return remove_orphans(self.tables, table_name, older_than_hours)


def _user_columns(table: Table) -> list[str]:
    return [name for name in top_columns(table) if name not in STAMP_COLUMNS]


def _selected(table: Table, columns: Sequence[str]) -> pa.Schema:
    whole = arrow_schema(table.schema())
    return pa.schema([whole.field(name) for name in columns])
