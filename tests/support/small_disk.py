"""A disk of some megabytes, to be filled: a file system in memory, which only root can mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """`folder` with so much room, made if need be; unmounted afterwards, whoever still uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = _run('mount', '-t', 'tmpfs', '-o', f'size={megabytes}m,mode=755', 'tmpfs', str(folder))
    if mounted.returncode:
        pytest.skip(f'needs the right to mount a small disk: {mounted.stderr.strip()}')
    try:
        yield folder
    finally:
        _run('umount', '--lazy', str(folder))


def make_room(folder: Path, megabytes: int) -> None:
    """Let the disk be larger from now on."""
    assert not _run('mount', '-o', f'remount,size={megabytes}m', str(folder)).returncode


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
