"""What amp's doors give, as the type checkers see it: read by mypy and pyrefly, never run.

`assert_type` says what a user's variable is. A line that must be refused carries an ignore; were it accepted one day,
the ignore would be unused, and that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pyarrow as pa

import amp
from amp import Client, LabelJoinConfig, LoadMode, LoadResult, Query, ResumeWatermark, events
from amp.devserver import LocalAmp
from amp.events import Committed, Retrying, Undone, Working
from amp.loaders import DataLoader, create_loader, get_available_loaders, get_loader_class
from amp.loaders.implementations import DuckDBLoader, PostgreSQLLoader
from amp.loaders.implementations.duckdb_loader import DuckDBConfig
from amp.streaming.iterator import StreamingResultIterator
from amp.streaming.lmdb_state import LMDBStreamStateStore
from amp.streaming.parallel import ParallelConfig, ParallelStreamExecutor, QueryPartition
from amp.streaming.state import InMemoryStreamStateStore, StreamStateStore, make_local_store
from amp.streaming.types import BatchIdentifier, BlockRange, ResponseBatch
from amplify_db_utils import ColumnarStore, DuckDBParquetConfig, DuckDBParquetStore


def asking(tables: Path) -> None:
    """A client and its ways to read."""
    with Client('grpc://localhost:1602', auth=True, label_dir=tables) as client:
        assert_type(client, Client)
    assert_type(amp.Client('grpc://localhost:1602'), Client)
    assert_type(amp.__version__, str)
    assert_type(client.url, str)
    assert_type(client.list_connections(), dict[str, str])
    assert_type(client.get_available_loaders(), list[str])
    assert_type(client.make_loader('duckdb:///chain.db'), DataLoader[Any])
    client.configure_connection('warehouse', 'duckdb', {'database': 'chain.db'})
    client.configure_label('tokens', tables / 'tokens.csv', binary_columns=['address'])

    query = client.sql('SELECT * FROM eth_rpc.blocks')
    assert_type(query, Query)
    assert_type(query.schema(), pa.Schema)
    assert_type(query.to_arrow(), pa.Table)
    assert_type(query.to_pandas(types_mapper=None), pd.DataFrame)
    assert_type(query.stream(), Iterator[pa.RecordBatch])
    assert_type(query.to_reader(), pa.RecordBatchReader)
    with query.responses(ResumeWatermark(), max_bytes=1 << 20) as responses:
        assert_type(responses, StreamingResultIterator)
        for response in responses:
            assert_type(response, ResponseBatch)
            assert_type(response.data, pa.RecordBatch | None)
            assert_type(response.metadata.ranges, tuple[BlockRange, ...])

    Client(1602)  # type: ignore[arg-type]
    Client('grpc://localhost:1602', retries=3)  # type: ignore[call-arg]
    client.sql(b'SELECT 1')  # type: ignore[arg-type]
    query.to_polars()  # type: ignore[attr-defined]
    amp.Clientt('grpc://localhost:1602')  # type: ignore[attr-defined]


def loading(query: Query, stream: bool) -> None:
    """One result without `stream`, an iterator of them with it, and either where only the run knows."""
    assert_type(query.load('duckdb:///chain.db', 'blocks'), LoadResult)
    assert_type(query.load('duckdb:///chain.db', 'blocks', stream=False, mode=LoadMode.OVERWRITE), LoadResult)
    results = query.load('warehouse', 'blocks', stream=True, resume=False, retention=128)
    assert_type(results, Generator[LoadResult, None, None])
    for result in results:
        assert_type(result.rows_loaded, int)
        assert_type(result.duration, float)
        assert_type(result.error, str | None)
        assert_type(result.is_reorg, bool)
        assert_type(result.invalidation_ranges, list[BlockRange] | None)
    assert_type(
        query.load('warehouse', 'blocks', stream=stream),
        LoadResult | Generator[LoadResult, None, None],
    )

    query.load(
        'warehouse', 'blocks', mode='upsert', key_columns=['block_num'], batch_size=10_000, config={'threads': 2}
    )
    query.load('warehouse')  # type: ignore[call-overload]
    query.load('warehouse', 'blocks', stream='yes')  # type: ignore[call-overload]
    query.load('warehouse', 'blocks', batch_size='many')  # type: ignore[call-overload]
    query.load('warehouse', 'blocks', parallel_config=4)  # type: ignore[call-overload]
    query.load('warehouse', 'blocks').close()  # type: ignore[attr-defined]


def labels(query: Query) -> None:
    """Labels by name, by their columns, and several of both."""
    join = LabelJoinConfig('tokens', 'address', 'token', how='left', columns=['symbol'], prefix='token_')
    assert_type(join.label_keys, tuple[str, ...])
    assert_type(query.load('warehouse', 'transfers', label_config=join), LoadResult)
    assert_type(query.load('warehouse', 'transfers', label_config='tokens'), LoadResult)
    assert_type(query.load('warehouse', 'transfers', label_config=['tokens', join]), LoadResult)
    LabelJoinConfig('tokens', ['chain', 'address'], ['chain', 'token'])
    LabelJoinConfig('tokens', 'address', 'token', how='outer')  # type: ignore[arg-type]
    LabelJoinConfig('tokens', 'address')  # type: ignore[call-arg]
    join.how = 'inner'  # type: ignore[misc]


def parallel(client: Client, query: Query) -> None:
    """Several workers: by `load`, and by the executor itself."""
    config = ParallelConfig(4, 'eth_rpc.logs', max_block=1_000, executor=ThreadPoolExecutor(4))
    assert_type(query.load('warehouse', 'logs', parallel_config=config), LoadResult)
    assert_type(query.load('warehouse', 'logs', parallel_config=config, stream=True), Generator[LoadResult, None, None])
    executor = ParallelStreamExecutor(client, config, connection='warehouse')
    assert_type(executor.load_with_resume_optimization(), Generator[LoadResult, None, None])
    assert_type(
        executor.execute_parallel_stream('SELECT * FROM eth_rpc.logs', 'logs', 'warehouse', {'mode': 'append'}),
        Generator[LoadResult, None, None],
    )
    assert_type(executor.progress.blocks_left, int)
    assert_type(executor.progress.seconds_left, float | None)
    assert_type(QueryPartition(0, 0, 100).block_column, str)
    ParallelConfig('4', 'eth_rpc.logs')  # type: ignore[arg-type]
    ParallelStreamExecutor(config, client)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LinesConfig:
    """The configuration of a loader of one's own."""

    folder: str


class LinesLoader(DataLoader[LinesConfig]):
    """A loader of one's own: its configuration has its type, and the base's methods theirs."""

    URL_PATH_KEY = 'folder'
    SUPPORTED_MODES = {LoadMode.APPEND, LoadMode.OVERWRITE}  # noqa: RUF012

    def connect(self) -> None:
        """Make the folder."""
        assert_type(self.config, LinesConfig)
        Path(self.config.folder).mkdir(parents=True, exist_ok=True)
        self._is_connected = True

    def disconnect(self) -> None:
        """Nothing is open."""
        self._is_connected = False

    def _load_batch_impl(self, batch: pa.RecordBatch, table_name: str, **kwargs: Any) -> int:
        self.config.path  # type: ignore[attr-defined]  # noqa: B018
        return batch.num_rows


class WrongLoader(DataLoader[LinesConfig]):
    """Methods that do not fit those of the base."""

    def connect(self) -> bool:  # type: ignore[override]
        """It says whether it worked, where nobody asks."""
        return True

    def _load_batch_impl(self, batch: pa.Table, table_name: str) -> None:  # type: ignore[override]
        """A batch is no table, and the number of rows is wanted."""


def loaders(table: pa.Table, reader: pa.RecordBatchReader, responses: list[ResponseBatch]) -> None:
    """A loader by its name or its class, and what its calls give."""
    assert_type(create_loader('duckdb', {'database': 'chain.db'}), DataLoader[Any])
    assert_type(get_loader_class('duckdb'), type[DataLoader[Any]])
    assert_type(get_available_loaders(), list[str])
    assert_type(DuckDBLoader({'database': 'chain.db'}).config, DuckDBConfig)
    with LinesLoader({'folder': 'out'}) as loader:
        assert_type(loader, LinesLoader)
        assert_type(loader.load_table(table, 'tokens', mode='overwrite'), LoadResult)
        assert_type(loader.load_table(reader, 'tokens'), LoadResult)
        assert_type(loader.load_reader(reader, 'tokens'), LoadResult)
        assert_type(loader.load_batch(table.to_batches()[0], 'tokens'), LoadResult)
        assert_type(loader.load_stream(reader, 'tokens'), Iterator[LoadResult])
        assert_type(loader.load_stream_continuous(responses, 'tokens'), Iterator[LoadResult])
        assert_type(loader.get_table_schema('tokens'), pa.Schema | None)
        assert_type(loader.state_store, StreamStateStore)
        assert_type(loader.guarantee, str)
        loader.load_table(responses, 'tokens')  # type: ignore[arg-type]
        loader.load_table(table)  # type: ignore[call-arg]
    LinesLoader('out')  # type: ignore[arg-type]
    PostgreSQLLoader()  # type: ignore[call-arg]
    DataLoader({})  # type: ignore[abstract]


def local(blocks: int) -> None:
    """A local Amp."""
    with LocalAmp.simulate(seed=1, blocks=blocks, logs_per_block=(0, 10), microbatch_max_blocks=4) as server:
        assert_type(server, LocalAmp)
        assert_type(server.url, str)
        assert_type(server.head, tuple[int, str] | None)
        assert_type(server.datasets, dict[str, tuple[str, ...]])
        assert_type(server.canonical('logs'), pa.Table)
        server.mine(3)
        server.reorg(2, extend=1)
        server.mine('3')  # type: ignore[arg-type]
    LocalAmp.simulate(block=3)  # type: ignore[call-arg]
    LocalAmp.from_rpc('http://localhost:8545', workers='all')  # type: ignore[arg-type]


def listening() -> None:
    """Events are told apart by their class."""

    def listener(event: events.Event) -> None:
        match event:
            case Committed():
                assert_type(event.stream, str | None)
                assert_type(event.position, Mapping[str, object])
            case Undone():
                assert_type(event.rows, int | None)
            case Retrying():
                assert_type(event.error, Exception)
            case Working():
                assert_type(event.first, int | None)

    def deaf() -> None: ...

    assert_type(events.listen(listener), Callable[[], None])
    events.listen(deaf)  # type: ignore[arg-type]


def remembering(batch: BatchIdentifier) -> None:
    """State stores, all of one kind."""
    store = make_local_store({'storage': 'lmdb', 'connection_name': 'warehouse'})
    assert_type(store, StreamStateStore)
    assert_type(store.is_processed('warehouse', 'logs', [batch]), bool)
    assert_type(store.get_resume_position('warehouse', 'logs', detect_gaps=True), ResumeWatermark | None)
    assert_type(store.invalidate_from_block('warehouse', 'logs', 'mainnet', 100), list[BatchIdentifier])
    assert_type(store.load_document(('logs', 'logs')), str | None)
    with LMDBStreamStateStore('warehouse') as lmdb:
        assert_type(lmdb, LMDBStreamStateStore)
        store = lmdb
    LinesLoader({'folder': 'out', 'state': InMemoryStreamStateStore()})
    store.mark_processed('warehouse', 'logs', batch)  # type: ignore[arg-type]
    store.load_document('logs')  # type: ignore[arg-type]


def columnar(frame: pd.DataFrame, table: pa.Table) -> None:
    """The columnar store of amplify_db_utils, by its class and by its abstract door."""
    with DuckDBParquetStore(DuckDBParquetConfig('data', threads=2)) as store:
        assert_type(store, DuckDBParquetStore)
        assert_type(store.tables(), list[str])
        assert_type(store.read_batches('logs'), pa.RecordBatchReader)
        assert_type(store.compact('logs'), int)
        assert_type(store.vacuum('logs', retention_hours=1), list[str])
    door: ColumnarStore = store
    door.create_table('logs', table.schema, partition_by=['block_date'])
    door.write('logs', [{'block_num': 1}])
    door.write('logs', table, overwrite=True)
    door.write('logs', frame)
    assert_type(door.read('logs', {'block_num': {'gte': 1}}, ['block_num']), Iterator[dict[str, Any]])
    assert_type(door.bulk_read('logs'), pa.Table)
    assert_type(door.count('logs', {'block_num': 1}), int)
    assert_type(door.distinct_values('logs', ['block_num']), list[dict[str, Any]])
    assert_type(door.join('logs', 'blocks', 'block_num', select='left'), Iterator[dict[str, Any]])
    DuckDBParquetStore('data')  # type: ignore[arg-type]
    ColumnarStore()  # type: ignore[abstract]
    door.join('logs', 'blocks', 'block_num', select='all')  # type: ignore[arg-type]
    door.count('logs', 'block_num = 1')  # type: ignore[arg-type]
