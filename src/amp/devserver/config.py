"""The file that `amp serve --config` reads: where to listen, and the datasets with the networks that they are of."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from amp.devserver.names import SEMVER, TABLE
from amp.devserver.sources import RpcOptions, Source, node_source, parquet_source, simulated_source
from amp.errors import ConfigError

__all__ = ['DerivedDataset', 'NodeDataset', 'ParquetDataset', 'ServerConfig', 'SimulatedDataset', 'read_config']

Name = Annotated[str, StringConstraints(pattern=r'^[a-z_][a-z0-9_]*$')]
TableName = Annotated[str, StringConstraints(pattern=rf'^{TABLE}$')]
VersionText = Annotated[str, StringConstraints(pattern=rf'^{SEMVER}$')]
Network = Annotated[str, StringConstraints(min_length=1)]
LogCount = Annotated[int, Field(ge=0, le=1_000_000)]
Port = Annotated[int, Field(ge=0, le=65535)]

# Those after twice as many have no time in nanoseconds.
_LAST_BLOCK = 300_000_000
_VARIABLE = re.compile(r'\$\{(\w+)\}')


class _Strict(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class SimulatedDataset(_Strict):
    """A made-up chain; `block_time` is the seconds between new blocks, and 0 adds none."""

    kind: Literal['simulator']
    version: VersionText = '0.0.1'
    network: Network = 'simnet'
    seed: int = 1
    blocks: int = Field(default=1000, ge=0, le=_LAST_BLOCK)
    block_time: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    first_block: int = Field(default=0, ge=0, le=_LAST_BLOCK)
    logs_per_block: LogCount | tuple[LogCount, LogCount] = 10

    def source(self, folder: Path) -> Source:
        """The chain."""
        return simulated_source(
            self.network,
            seed=self.seed,
            blocks=self.blocks,
            logs_per_block=self.logs_per_block,
            first_block=self.first_block,
        )


class NodeDataset(_Strict):
    """The blocks of an EVM node. `url` may hold `${VARIABLE}`s; `store` is a folder, relative to the file's."""

    kind: Literal['evm-rpc']
    version: VersionText = '0.0.1'
    url: str
    network: Network | None = None
    store: Path | None = None
    start_block: int = Field(default=0, ge=0)
    poll_seconds: float = Field(default=1.0, gt=0)
    workers: int = Field(default=4, ge=1, le=64)
    segment_blocks: int = Field(default=500, ge=1)
    calls_per_second: float | None = Field(default=None, gt=0)
    finality: int | None = Field(default=None, ge=0)
    timeout: float = Field(default=30, gt=0)

    def source(self, folder: Path) -> Source:
        """The chain, and what follows the node. Raises ConfigError and ConnectError."""
        options = RpcOptions(
            start_block=self.start_block,
            poll_seconds=self.poll_seconds,
            store=folder / self.store if self.store is not None else None,
            workers=self.workers,
            segment_blocks=self.segment_blocks,
            calls_per_second=self.calls_per_second,
            finality=self.finality,
            timeout=self.timeout,
        )
        return node_source(_expanded(self.url), self.network, options)


class ParquetDataset(_Strict):
    """Raw tables in files: `<path>/<table>.parquet`, or `<path>/<table>/*.parquet`."""

    kind: Literal['parquet']
    version: VersionText = '0.0.1'
    path: Path
    network: Network | None = None

    def source(self, folder: Path) -> Source:
        """The chain. Raises ConfigError and SourceError."""
        return parquet_source(folder / self.path, self.network)


class DerivedDataset(_Strict):
    """Tables that are SQL over other datasets; `dependencies` gives each a name for the SQL, its own without."""

    kind: Literal['derived']
    version: VersionText = '0.0.1'
    dependencies: dict[Name, str] = {}
    tables: dict[TableName, str] = Field(min_length=1)


RawDataset = SimulatedDataset | NodeDataset | ParquetDataset
AnyDataset = Annotated[RawDataset | DerivedDataset, Field(discriminator='kind')]


class ServerConfig(_Strict):
    """A local Amp. A port of 0 is a free one; an HTTP port that is None is not listened on."""

    host: str = '127.0.0.1'
    port: Port = 1602
    jsonl_port: Port | None = 1603
    admin_port: Port | None = 1610
    friendly: bool = False
    microbatch_max_blocks: int = Field(default=1000, ge=1)
    datasets: dict[Name, AnyDataset] = Field(min_length=1)
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def raw(self) -> dict[str, RawDataset]:
        """The datasets that come from outside."""
        return {name: each for name, each in self.datasets.items() if not isinstance(each, DerivedDataset)}

    @property
    def derived(self) -> dict[str, DerivedDataset]:
        """The datasets that are made of others, each after those that it is made of."""
        left = {name: each for name, each in self.datasets.items() if isinstance(each, DerivedDataset)}
        ordered: dict[str, DerivedDataset] = {}
        while left:
            ready = [name for name, each in left.items() if not _needs(each) & (left.keys() - {name})]
            if not ready:
                raise ConfigError(f'the datasets {", ".join(sorted(left))} are made of each other')
            for name in ready:
                ordered[name] = left.pop(name)
        return ordered


def _needs(dataset: DerivedDataset) -> set[str]:
    return {reference.rpartition('/')[2].partition('@')[0] for reference in dataset.dependencies.values()}


def _expanded(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f'the environment has no {match[1]}, which the URL of a node wants')
        return os.environ[match[1]]

    return _VARIABLE.sub(value, text)


def read_config(path: Path) -> ServerConfig:
    """The configuration in a TOML file. Raises ConfigError, which says what is wrong and where."""
    try:
        read: dict[str, Any] = tomllib.loads(path.read_text())
        return ServerConfig.model_validate({**read, 'folder': path.parent})
    except OSError as error:
        raise ConfigError(f'{path} cannot be read: {error.strerror or error}') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is no TOML: {error}') from error
    except ValidationError as error:
        told = '; '.join(f'{_place(each["loc"])}: {each["msg"]}' for each in error.errors(include_input=False))
        raise ConfigError(f'{path}: {told}') from error


def _place(parts: tuple[int | str, ...]) -> str:
    return '.'.join(str(part) for part in parts) or 'the file'
