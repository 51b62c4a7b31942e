"""Where a store is and how to reach it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DuckDBParquetConfig:
    """A store's root and, for S3, the way there.

    Args:
        root: a directory, or `s3://bucket/prefix`.
        s3_endpoint: `host:port` or a URL, for servers other than AWS; a URL's scheme outweighs `s3_use_ssl`.
        s3_access_key: without it the usual AWS environment and profile are asked.
        s3_secret_key: goes with the access key; never shown.
        s3_use_ssl: https (the default) or http.
        threads: of joins and distinct values in DuckDB, and of writing files; None is one a core.
        s3_region: where the server cares.

    """

    root: str | os.PathLike[str]
    s3_endpoint: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: str | None = field(default=None, repr=False)
    s3_use_ssl: bool = True
    threads: int | None = None
    s3_region: str | None = None

    def __post_init__(self) -> None:
        if not os.fspath(self.root):
            raise ValueError('root must be a directory or s3://bucket/prefix')
        if self.threads is not None and self.threads < 1:
            raise ValueError(f'threads must be None or a positive whole number, not {self.threads!r}')
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError('s3_access_key and s3_secret_key go together: give both or neither')
