"""Stores on a directory and on two S3 servers, and Python processes to share them with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from amplify_db_utils import DuckDBParquetConfig, DuckDBParquetStore
from tests.columnar_store.models import PARTITION_BY, Image
from tests.support.ports import free_port
from tests.support.s3 import s3_endpoint

Opener = Callable[[], DuckDBParquetStore]


@dataclass
class S3Server:
    """A running S3 server."""

    name: str
    endpoint: str

    def config(self, prefix: str) -> DuckDBParquetConfig:
        return DuckDBParquetConfig(
            root=f's3://store/{prefix}',
            s3_endpoint=self.endpoint,
            s3_access_key='key',
            s3_secret_key='secret',
            s3_use_ssl=False,
        )

    def make_bucket(self) -> None:
        filesystem = pafs.S3FileSystem(
            endpoint_override=self.endpoint,
            scheme='http',
            access_key='key',
            secret_key='secret',
            region='us-east-1',
            allow_bucket_creation=True,
        )
        filesystem.create_dir('store')


@pytest.fixture(params=['compiled code', 'Python'])
def taken_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the values out of dicts."""
    if request.param == 'Python':
        monkeypatch.setattr('amplify_db_utils.cells.compiled', None)


@pytest.fixture(scope='session')
def moto() -> Iterator[S3Server]:
    with s3_endpoint() as url:
        running = S3Server('moto', url.removeprefix('http://'))
        running.make_bucket()
        yield running


@pytest.fixture(scope='session')
def localbucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp('localbucket')
    port = free_port()
    process = subprocess.Popen(
        [Path(sys.executable).with_name('localbucket'), '--port', str(port), folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not _answers(port):
        assert process.poll() is None, 'localbucket ended'
        assert time.monotonic() < deadline, 'localbucket does not answer'
        time.sleep(0.05)
    running = S3Server('localbucket', f'127.0.0.1:{port}')
    running.make_bucket()
    yield running
    process.terminate()
    process.wait(30)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / 'store'


@pytest.fixture
def reopen(root: Path) -> Iterator[Opener]:
    """Opens a further handle on the same root."""
    opened: list[DuckDBParquetStore] = []

    def one() -> DuckDBParquetStore:
        opened.append(DuckDBParquetStore(DuckDBParquetConfig(root=root)))
        return opened[-1]

    yield one
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Opener) -> DuckDBParquetStore:
    return reopen()


@pytest.fixture
def images(store: DuckDBParquetStore) -> DuckDBParquetStore:
    """The store with a partitioned table `images`."""
    store.create_table('images', Image, partition_by=PARTITION_BY)
    return store


PRELUDE = """
import sys
class NoPandas:  # no dependency, and slow to import
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'pandas':
            raise ImportError(name)
sys.meta_path.insert(0, NoPandas)
from amplify_db_utils import *
from tests.columnar_store.models import *
store = DuckDBParquetStore(DuckDBParquetConfig(root=sys.argv[1]))
"""


@pytest.fixture
def python(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python with `store` open on the root; what is still running at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, '-c', PRELUDE + code, str(root), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {'PYTHONPATH': '.'},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must succeed; its output."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
