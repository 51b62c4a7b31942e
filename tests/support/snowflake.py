"""Snowflake for the tests: the account that SNOWFLAKE_ACCOUNT names, else a fakesnow server that is started here.

fakesnow wants other versions of things than the project does, so it lives in an environment of its own, made once in
the folder of the environment that runs the tests.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

_REQUIREMENTS = ('fakesnow[server]==0.12.1', 'snowflake-connector-python[pandas]<5')
_FOLDER = Path(sys.prefix) / 'share' / 'amp-tests' / 'fakesnow-0.12.1'
_KEYS = (
    'account',
    'user',
    'password',
    'private_key',
    'private_key_passphrase',
    'token',
    'authenticator',
    'database',
    'schema',
    'warehouse',
    'role',
    'host',
    'protocol',
)


def is_real() -> bool:
    """True when the tests run against an account."""
    return 'SNOWFLAKE_ACCOUNT' in os.environ


@contextmanager
def snowflake_config() -> Iterator[dict[str, Any]]:
    """The configuration of a loader for a schema that tests may fill as they like."""
    if is_real():
        given = {key: os.environ.get(f'SNOWFLAKE_{key.upper()}') for key in _KEYS}
        port = {'port': int(os.environ['SNOWFLAKE_PORT'])} if 'SNOWFLAKE_PORT' in os.environ else {}
        yield {key: value for key, value in given.items() if value} | port
        return
    with start_fakesnow() as config:
        yield config


@contextmanager
def start_fakesnow() -> Iterator[dict[str, Any]]:
    """A fresh server on a free port, gone afterwards."""
    python = fakesnow_python()
    port = free_port()
    server = Path(__file__).with_name('fakesnow_server.py')
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    environment['PYTHONWARNINGS'] = 'ignore'
    process = subprocess.Popen([python, '-P', server, str(port)], env=environment, stdin=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield {
            'account': 'fakesnow',
            'user': 'tester',
            'password': 'a-Secret-of-the-tests',
            'database': 'AMP_TESTS',
            'host': '127.0.0.1',
            'port': port,
            'protocol': 'http',
            'network_timeout': 120,
            'login_timeout': 60,
        }
    finally:
        process.kill()
        process.wait()


def fakesnow_python() -> Path:
    """The Python of the server's environment, which is made when it is not there."""
    _FOLDER.parent.mkdir(parents=True, exist_ok=True)
    ready = _FOLDER / '.ready'
    with _FOLDER.with_suffix('.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            _make(_FOLDER)
            ready.touch()
    return _FOLDER / 'bin' / 'python'


def _make(folder: Path) -> None:
    uv = shutil.which('uv') or shutil.which('uv', path=str(Path(sys.prefix) / 'bin'))
    if uv is not None:
        commands = [[uv, 'venv', '-q', '--clear', '--python', sys.executable, folder]]
        commands += [[uv, 'pip', 'install', '-q', '--python', folder / 'bin' / 'python', *_REQUIREMENTS]]
    else:
        commands = [[sys.executable, '-m', 'venv', '--clear', folder]]
        commands += [[folder / 'bin' / 'python', '-m', 'pip', 'install', '-q', *_REQUIREMENTS]]
    for command in commands:
        subprocess.run([str(part) for part in command], check=True)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f'the fakesnow server ended with {process.returncode}')
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError('the fakesnow server did not listen in time')
