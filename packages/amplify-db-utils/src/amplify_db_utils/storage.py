"""Where bytes are: one directory or bucket prefix, for Arrow's file systems and for the transaction log alike."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from amplify_db_utils.config import DuckDBParquetConfig
from amplify_db_utils.faults import reaching

if TYPE_CHECKING:
    from obstore.store import S3Store

_LOG = '_delta_log'
_LISTINGS = 10
_S3_ATTEMPTS = 5  # of one request, with growing pauses between: some seconds


class Storage:
    """A root, on disk or on S3. Paths are relative to it, with `/`."""

    def __init__(self, filesystem: pafs.FileSystem, base: str, options: dict[str, str] | None) -> None:
        self.filesystem = filesystem
        self.base = base
        self.options = options
        """The log library's storage options; None on a local disk."""
        self._aliases: tempfile.TemporaryDirectory[str] | None = None
        self._alias_of: dict[str, Path] = {}
        self._lock = threading.Lock()

    @property
    def local(self) -> bool:
        """Whether the root is a directory of this machine's file system."""
        return self.options is None

    def path(self, *parts: str) -> str:
        """A path that `filesystem` takes."""
        return '/'.join((self.base, *parts))

    def log_uri(self, directory: str) -> str:
        """The URI under which the log library finds the table in `directory`."""
        if not self.local:
            return 's3://' + self.path(directory)
        root = Path(self.base)
        if re.fullmatch(r'[\w /.\-~+@,:]*', self.base):
            return (root / directory).as_uri()
        return self._alias(directory, root).as_uri()

    def _alias(self, directory: str, root: Path) -> Path:
        # The log library misreads %XX, brackets and backslashes in a path, and resolves links to it. A harmless
        # directory whose _delta_log is a link hides the path from it; it never touches anything but the log.
        with self._lock:
            return self._alias_of.get(directory) or self._new_alias(directory, root)

    def _new_alias(self, directory: str, root: Path) -> Path:
        if self._aliases is None:
            self._aliases = tempfile.TemporaryDirectory(prefix='amplify-db-utils-')
        alias = Path(self._aliases.name) / str(len(self._alias_of))
        alias.mkdir()
        (root / directory / _LOG).mkdir(parents=True, exist_ok=True)
        (alias / _LOG).symlink_to(root / directory / _LOG, target_is_directory=True)
        self._alias_of[directory] = alias
        return alias

    def listing(self, *parts: str, recursive: bool = False) -> list[pafs.FileInfo]:
        """What is in a directory; nothing where there is none. Raises StorageUnavailable."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True, recursive=recursive)
        with reaching():
            for _ in range(_LISTINGS):
                # Arrow asks whether a directory is there after it failed to list it: one made in between is an error.
                with contextlib.suppress(FileNotFoundError):
                    return list(self.filesystem.get_file_info(selector))
            return list(self.filesystem.get_file_info(selector))

    def has_log(self, directory: str) -> bool:
        """Whether a transaction log has begun there."""
        return any(info.base_name.endswith(('.json', '.parquet')) for info in self.listing(directory, _LOG))

    def has_version(self, directory: str, version: int) -> bool:
        """Whether a log on a disk has the file of that version."""
        return os.path.exists(self.path(directory, _LOG, f'{version:020}.json'))  # noqa: PTH110 - before every read

    def make_directory(self, directory: str) -> None:
        """Make a directory on a disk; S3 has none."""
        if self.local:
            self.filesystem.create_dir(self.path(directory), recursive=True)

    def read(self, path: str) -> bytes | None:
        """The bytes of a small file, None where there is none."""
        try:
            with reaching(), self.filesystem.open_input_stream(self.path(path)) as stream:
                data: bytes = stream.read()
        except FileNotFoundError:
            return None
        return data

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files; those that are not there are no matter."""
        if self.local:
            for path in paths:
                Path(self.path(path)).unlink(missing_ok=True)
            return
        import obstore
        from obstore.exceptions import BaseError

        # Arrow's file system would leave an empty object in the place of each directory.
        with reaching(BaseError), contextlib.suppress(FileNotFoundError):
            for start in range(0, len(paths), 1000):
                obstore.delete(self.objects(), list(paths[start : start + 1000]))

    def objects(self) -> S3Store:
        """The same S3 root for conditional puts, which Arrow's file system does not offer."""
        from obstore.store import S3Store

        bucket, _, prefix = self.base.partition('/')
        settings: dict[str, Any] = {'virtual_hosted_style_request': False}
        options = self.options or {}
        for ours, theirs in (
            ('endpoint', 'AWS_ENDPOINT_URL'),
            ('access_key_id', 'AWS_ACCESS_KEY_ID'),
            ('secret_access_key', 'AWS_SECRET_ACCESS_KEY'),
            ('region', 'AWS_REGION'),
        ):
            if theirs in options:
                settings[ours] = options[theirs]
        # Deleting many in one request is what servers other than AWS may lack.
        settings['disable_bulk_delete'] = 'AWS_ENDPOINT_URL' in options
        http = options.get('AWS_ALLOW_HTTP') == 'true'
        return S3Store(bucket, prefix=prefix or None, client_options={'allow_http': http}, **settings)

    def close(self) -> None:
        """Remove the aliases, if any were made."""
        if self._aliases is not None:
            self._aliases.cleanup()
            self._aliases = None
            self._alias_of.clear()


def open_storage(config: DuckDBParquetConfig) -> Storage:
    """The storage of a config. Raises ValueError for a root that is neither a directory nor S3."""
    root = os.fspath(config.root)
    scheme, separator, rest = root.partition('://')
    if not separator:
        return Storage(pafs.LocalFileSystem(), os.path.abspath(Path(root).expanduser()), None)  # noqa: PTH100
    if scheme == 'file':
        return Storage(pafs.LocalFileSystem(), str(Path(rest)), None)
    if scheme != 's3':
        raise ValueError(f'a root is a directory or s3://bucket/prefix, not {scheme}://...')
    if not rest or rest.startswith('/'):  # the first part of the prefix is never taken for the bucket
        raise ValueError(f'a root on S3 is s3://bucket/prefix; {root!r} names no bucket')
    return _s3(config, rest.strip('/'))


def _s3(config: DuckDBParquetConfig, base: str) -> Storage:
    settings: dict[str, Any] = {}
    options: dict[str, str] = {'AWS_VIRTUAL_HOSTED_STYLE_REQUEST': 'false'}
    if config.s3_endpoint:
        url = config.s3_endpoint
        if '://' not in url:
            url = f'{"https" if config.s3_use_ssl else "http"}://{url}'
        parts = urlsplit(url)
        settings |= {'endpoint_override': parts.netloc, 'scheme': parts.scheme}
        options |= {
            'AWS_ENDPOINT_URL': url.rstrip('/'),
            'AWS_ALLOW_HTTP': 'true' if parts.scheme == 'http' else 'false',
        }
    if config.s3_access_key and config.s3_secret_key:
        settings |= {'access_key': config.s3_access_key, 'secret_key': config.s3_secret_key}
        options |= {'AWS_ACCESS_KEY_ID': config.s3_access_key, 'AWS_SECRET_ACCESS_KEY': config.s3_secret_key}
    region = config.s3_region or os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
    if region or config.s3_endpoint:
        settings['region'] = options['AWS_REGION'] = region or 'us-east-1'
    patient = pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
    return Storage(pafs.S3FileSystem(retry_strategy=patient, **settings), base, options)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a new file beside `path` and move it there: a reader sees the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    os.close(handle)
    try:
        write(Path(name))
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
