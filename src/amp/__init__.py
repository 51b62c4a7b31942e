"""Ask Amp, a database for blockchain data, a question in SQL, and land the answer exactly once.

    import amp

    client = amp.Client('grpc://localhost:1602')
    client.sql('SELECT * FROM eth_rpc.blocks').load('duckdb:///chain.db', 'blocks')

Names are imported when they are first used: `import amp` loads no Arrow and no driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amp.errors import (
    AmpError,
    AuthError,
    ConfigError,
    ConnectError,
    DestinationError,
    IncompleteResultError,
    IntegrityError,
    LoadError,
    MissingExtraError,
    ProtocolError,
    QueryError,
    ReorgTooDeepError,
    SchemaError,
    SourceError,
    StaleEpochError,
    VerifyError,
)

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader
    from amp.loaders.types import LabelJoinConfig, LoadConfig, LoadMode, LoadResult
    from amp.query import Query
    from amp.streaming.types import BatchMetadata, BlockRange, ResponseBatch, ResumeWatermark

    __version__: str

__all__ = [
    'AmpError',
    'AuthError',
    'BatchMetadata',
    'BlockRange',
    'Client',
    'ConfigError',
    'ConnectError',
    'DataLoader',
    'DestinationError',
    'IncompleteResultError',
    'IntegrityError',
    'LabelJoinConfig',
    'LoadConfig',
    'LoadError',
    'LoadMode',
    'LoadResult',
    'MissingExtraError',
    'ProtocolError',
    'Query',
    'QueryError',
    'ReorgTooDeepError',
    'ResponseBatch',
    'ResumeWatermark',
    'SchemaError',
    'SourceError',
    'StaleEpochError',
    'VerifyError',
    '__version__',
]

_HOMES = {
    'BatchMetadata': 'amp.streaming.types',
    'BlockRange': 'amp.streaming.types',
    'Client': 'amp.client',
    'DataLoader': 'amp.loaders.base',
    'LabelJoinConfig': 'amp.loaders.types',
    'LoadConfig': 'amp.loaders.types',
    'LoadMode': 'amp.loaders.types',
    'LoadResult': 'amp.loaders.types',
    'Query': 'amp.query',
    'ResponseBatch': 'amp.streaming.types',
    'ResumeWatermark': 'amp.streaming.types',
}


# Not for type checkers: to them a name that is not there would be one of type Any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == '__version__':
            from importlib.metadata import version

            value: Any = version('amp-python')
        elif name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
