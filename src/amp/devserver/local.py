"""LocalAmp: a server, its datasets, and the handles by which tests, the CLI and the demo drive them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, TypeVar, Unpack

import pyarrow as pa

from amp.devserver.catalog import Catalog, CatalogError
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.faults import Faults
from amp.devserver.friendly import friendly as explain
from amp.devserver.parquet import load_directory
from amp.devserver.ports import check_free
from amp.devserver.service import AmpFlightServer
from amp.devserver.simulator import Simulator
from amp.devserver.sources import RpcOptions, Source, node_source, simulated_source
from amp.errors import ConfigError, QueryError, SourceError

if TYPE_CHECKING:
    from amp.devserver.config import DerivedDataset, ServerConfig
    from amp.devserver.http import HttpServer

__all__ = ['Listening', 'LocalAmp']

T = TypeVar('T')


class Listening(TypedDict, total=False):
    """How a local Amp listens and answers; every key may be left out.

    `port` 0 is a free one. A bearer token is asked for only when `token` is given, so that clients can be tested; the HTTP
    endpoints then ask for it too.
    `friendly` explains errors to people, where Amp's own texts and codes would do. The JSON Lines endpoint and the Admin API
    listen only when they are given a port.
    """

    host: str
    port: int
    token: str | None
    friendly: bool
    microbatch_max_blocks: int
    jsonl_port: int | None
    admin_port: int | None


class LocalAmp:
    """A local Amp over simulated, stored or real blocks.

    Make one with `simulate`, `from_parquet`, `from_rpc` or `from_config`. It listens on the loopback interface unless told
    otherwise, and is a development server. As a context manager it starts and stops itself. What tests do to a chain is
    done to the first dataset, unless they name another.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        versions: Mapping[str, str] | None = None,
        **listening: Unpack[Listening],
    ) -> None:
        self.faults = Faults()
        self._sources = dict(sources)
        self._host = listening.get('host', '127.0.0.1')
        self._port = listening.get('port', 0)
        self._token = listening.get('token')
        self._friendly = listening.get('friendly', False)
        self._max_blocks = listening.get('microbatch_max_blocks', 1000)
        self._http_ports = {'jsonl': listening.get('jsonl_port'), 'admin': listening.get('admin_port')}
        self._http: dict[str, HttpServer] = {}
        self._server: AmpFlightServer | None = None
        nodes = {name: source.node for name, source in self._sources.items() if source.node is not None}
        self._engine = Engine({name: source.chain for name, source in self._sources.items()}, nodes)
        self.catalog = Catalog(self._sources, self._engine)
        self.catalog.add_sources(versions)

    @classmethod
    def simulate(
        cls,
        *,
        seed: int = 1,
        blocks: int = 0,
        network: str = 'simnet',
        dataset: str = 'eth_rpc',
        logs_per_block: int | tuple[int, int] = 10,
        first_block: int = 0,
        **listening: Unpack[Listening],
    ) -> Self:
        """A made-up chain of `blocks` blocks; the same seed gives the same rows."""
        source = simulated_source(
            network, seed=seed, blocks=blocks, logs_per_block=logs_per_block, first_block=first_block
        )
        return cls({dataset: source}, **listening)

    @classmethod
    def from_parquet(cls, directory: str | Path, *, network: str | None = None, **listening: Unpack[Listening]) -> Self:
        """The datasets of a directory of raw tables: `<directory>/<dataset>/<table>.parquet`.

        Raises ConfigError, and SourceError for a damaged file.
        """
        chains = load_directory(Path(directory), network=network)
        return cls({name: Source(chain) for name, chain in chains.items()}, **listening)

    @classmethod
    def from_rpc(
        cls,
        url: str,
        *,
        network: str | None = None,
        dataset: str = 'eth_rpc',
        start_block: int = 0,
        poll_seconds: float = 0.25,
        store: str | Path | None = None,
        workers: int = 4,
        segment_blocks: int = 500,
        calls_per_second: float | None = None,
        finality: int | None = None,
        timeout: float = 30,
        **listening: Unpack[Listening],
    ) -> Self:
        """The blocks of an EVM node, followed from `start_block` for as long as the server runs.

        Without `network` the node is asked for its chain id, and ConnectError is raised when it does not answer. A node
        that falls silent later is waited for; `source_error` then says why. With `store`, a folder, final blocks are kept
        in Parquet files and served from there; the next server goes on where they end. ConfigError is raised when they are
        of another chain.
        """
        options = RpcOptions(
            start_block=start_block,
            poll_seconds=poll_seconds,
            store=Path(store) if store is not None else None,
            workers=workers,
            segment_blocks=segment_blocks,
            calls_per_second=calls_per_second,
            finality=finality,
            timeout=timeout,
        )
        return cls({dataset: node_source(url, network, options)}, **listening)

    @classmethod
    def from_config(cls, config: ServerConfig) -> Self:
        """Several datasets, of several networks and derived ones, as a configuration says.

        Raises ConfigError, and SourceError for files and nodes that cannot be read.
        """
        sources: dict[str, Source] = {}
        try:
            for name, raw in config.raw.items():
                sources[name] = raw.source(config.folder)
            amp = cls(
                sources,
                versions={name: raw.version for name, raw in config.raw.items()},
                host=config.host,
                port=config.port,
                friendly=config.friendly,
                microbatch_max_blocks=config.microbatch_max_blocks,
                jsonl_port=config.jsonl_port,
                admin_port=config.admin_port,
            )
            for name, derived in config.derived.items():
                amp._derive(name, derived)
        except BaseException:  # whatever it is, no source stays open
            for source in sources.values():
                source.close()
            raise
        return amp

    def _derive(self, name: str, derived: DerivedDataset) -> None:
        own = {each.name: f'_/{each.name}@{each.latest}' for each in self.catalog.datasets.values()}
        try:
            self.catalog.add_derived(name, derived.tables, derived.dependencies or own, derived.version)
        except CatalogError as error:
            raise ConfigError(f'the dataset {name}: {error}') from error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Listen. A port of 0 becomes a free one, which a later start takes again. Raises ConfigError for one in use."""
        if self._server is None:
            self._check_ports()
            check_free(self._host, self._port)
            self._listen_http()
            self._server = AmpFlightServer(
                f'grpc://{self._host}:{self._port}',
                self._engine,
                self.faults,
                microbatch_max_blocks=self._max_blocks,
                token=self._token,
                explain=self._explained if self._friendly else None,
            )
            self._port = self._server.port
            for source in self._sources.values():
                source.start()
        return self

    def stop(self) -> None:
        """End open streams and stop listening; the chains are kept, and `start` serves them again."""
        if self._server is not None:
            for source in self._sources.values():
                source.stop()
            for http in self._http.values():
                http.close()
            self._http.clear()
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stop for good, and let another server have the stores."""
        self.stop()
        for source in self._sources.values():
            source.close()

    def _check_ports(self) -> None:
        ports = {'port': self._port} | {f'{name}_port': port for name, port in self._http_ports.items()}
        taken: dict[int, str] = {}
        for name, port in ports.items():
            if port and taken.setdefault(port, name) != name:
                raise ConfigError(
                    f'{taken[port]} and {name} are both {port}', hint='choose another port for one; 0 takes a free one'
                )

    def _listen_http(self) -> None:
        """Start the HTTP servers that have a port; none when one of them cannot have it."""
        wanted = {name: port for name, port in self._http_ports.items() if port is not None}
        if not wanted:
            return
        # Frameworks that a test of streams does not wait for.
        try:
            from amp.devserver.admin import admin_app
            from amp.devserver.http import HttpServer
            from amp.devserver.jsonl import jsonl_app
        except ModuleNotFoundError as error:
            raise ConfigError(
                f'the HTTP endpoints need the package {error.name!r}, which is not installed',
                hint="pip install 'amp-python[serve]'",
            ) from error
        explained = self._explained if self._friendly else None
        try:
            for name, port in wanted.items():
                app = jsonl_app(self._engine, explained) if name == 'jsonl' else admin_app(self.catalog)
                self._http[name] = HttpServer(app, self._host, port, name, self._token)
                self._http_ports[name] = self._http[name].port
        except ConfigError:
            for http in self._http.values():
                http.close()
            self._http.clear()
            raise

    @property
    def jsonl_url(self) -> str:
        """`http://host:port` of the JSON Lines endpoint. Raises RuntimeError when it does not listen."""
        return self._http_url('jsonl')

    @property
    def admin_url(self) -> str:
        """`http://host:port` of the Admin API. Raises RuntimeError when it does not listen."""
        return self._http_url('admin')

    @property
    def http_urls(self) -> dict[str, str]:
        """The HTTP servers that listen, by the names `jsonl` and `admin`."""
        return {name: http.url for name, http in self._http.items()}

    def _http_url(self, name: str) -> str:
        if name not in self._http:
            raise RuntimeError(f'the local Amp does not listen there: give {name}_port, and start it')
        return self._http[name].url

    @property
    def url(self) -> str:
        """`grpc://host:port`. Raises RuntimeError before the first start."""
        if not self._port:
            raise RuntimeError('the local Amp has no port before it is started')
        return f'grpc://{self._host}:{self._port}'

    @property
    def network(self) -> str:
        """The network of the (first) dataset."""
        return self._chain().network

    @property
    def networks(self) -> list[str]:
        """The networks of all datasets."""
        return sorted({chain.network for chain in self._engine.datasets.values()})

    @property
    def datasets(self) -> dict[str, tuple[str, ...]]:
        """The tables of each dataset, of the revision that was deployed last."""
        # Revisions have keys of their own, `name@hash`.
        return {name: tuple(chain.schemas) for name, chain in self._engine.datasets.items() if '@' not in name}

    @property
    def head(self) -> tuple[int, str] | None:
        """Number and hash of the latest block of the first dataset that queries see; None before there is one."""
        return self.head_of(None)

    def head_of(self, dataset: str | None) -> tuple[int, str] | None:
        """Number and hash of the latest block of a dataset that queries see; None before there is one."""
        block = self._chain(dataset).head
        return (block.number, block.hash) if block is not None else None

    def block_hash(self, number: int, *, dataset: str | None = None) -> str:
        """The hash of a canonical block. Raises KeyError when there is none of that number."""
        block = self._chain(dataset).snapshot().canonical(number)
        if block is None:
            raise KeyError(f'there is no block {number}')
        return block.hash

    def canonical(self, table: str) -> pa.Table:
        """All canonical rows of `table` (or `dataset.table`) now: what a complete load must hold."""
        dataset, _, name = table.rpartition('.')
        chain = self._chain(dataset or None)
        view = chain.snapshot()
        rows = view.rows(name, view.first, view.last) if view.first is not None and view.last is not None else []
        return pa.Table.from_batches(rows, schema=chain.schemas[name])

    def mine(self, blocks: int = 1, *, dataset: str | None = None) -> None:
        """Add blocks; queries see them on return."""
        self._simulator(dataset).mine(blocks)

    def reorg(self, depth: int, extend: int = 1, *, dataset: str | None = None) -> None:
        """Replace the last `depth` blocks and grow by `extend`; with 0 nothing is seen before the chain is higher."""
        self._simulator(dataset).reorg(depth, extend)

    def switch_back(self, extend: int = 1, *, dataset: str | None = None) -> None:
        """Return to the branch that was left last, grown `extend` blocks above the present head."""
        self._simulator(dataset).switch_back(extend)

    def sync(self) -> None:
        """Fetch what the nodes have now; queries see it on return. Raises SourceError when one does not answer."""
        for source in self._sources.values():
            if source.follower is not None:
                source.follower.sync()

    def wait_for_block(self, number: int, *, timeout: float = 30, dataset: str | None = None) -> None:
        """Wait until queries see this block. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        chain = self._chain(dataset)
        while True:
            view = chain.snapshot()
            if view.last is not None and view.last >= number:
                return
            if not chain.wait(view.version, max(deadline - time.monotonic(), 0)):
                raise TimeoutError(f'block {number} has not come within {timeout} s; the latest is {view.last}')

    @property
    def open_streams(self) -> int:
        """Streams that are being served now."""
        return self._server.open_streams if self._server is not None else 0

    @property
    def source_error(self) -> SourceError | None:
        """Why the last attempt to read a node failed; None when none did."""
        followers = [source.follower for source in self._sources.values() if source.follower is not None]
        return next((follower.error for follower in followers if follower.error is not None), None)

    def forget_orphans(self) -> None:
        """Drop the blocks that are not canonical: a cursor that names one is then unknown to the server."""
        for source in self._sources.values():
            source.chain.forget_orphans()

    def _explained(self, error: QueryError) -> QueryError:
        return explain(error, self.datasets)

    def _simulator(self, dataset: str | None) -> Simulator:
        simulator = self._source(dataset).simulator
        if simulator is None:
            raise ConfigError('only a simulated chain can be mined by hand', hint='use LocalAmp.simulate()')
        return simulator

    def _chain(self, dataset: str | None = None) -> Chain:
        return self._named(dataset, self._engine.datasets)

    def _source(self, dataset: str | None) -> Source:
        return self._named(dataset, self._sources)

    def _named(self, dataset: str | None, known: Mapping[str, T]) -> T:
        if dataset is None:
            return known[next(iter(self._sources))]
        if dataset not in known:
            raise KeyError(f'there is no dataset {dataset!r}; there is {", ".join(known)}')
        return known[dataset]
