"""The command line as a user runs it: a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AMP = [sys.executable, '-m', 'amp']


def environment(**extra: str) -> dict[str, str]:
    """The environment without the variables that amp reads."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith('AMP_') and key != 'NO_COLOR'}
    return {**plain, 'COLUMNS': '200', **extra}


def amp(
    *arguments: str, stdin: bytes = b'', cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end; output captured."""
    return subprocess.run(
        [*AMP, *arguments],
        input=stdin,
        capture_output=True,
        timeout=280,
        check=False,
        cwd=cwd,
        env=environment(**extra),
    )


def exit_code(*arguments: str) -> int:
    """Run in this process, for what ends before anything starts."""
    from amp.cli.app import app

    try:
        app(list(arguments), prog_name='amp')
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def one_sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """The sentence of the error on stderr; asserts that there is one, no traceback, and nothing on stdout."""
    told = done.stderr.decode()
    assert 'Traceback' not in told, told
    lines = [line for line in told.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, told
    assert done.stdout == b''
    return lines[0]


def until(
    process: subprocess.Popen[bytes], wanted: Callable[[dict[str, Any]], bool], seconds: float = 120
) -> dict[str, Any]:
    """The first JSON event on the process's stdout that is wanted; what comes after it stays to be read."""
    deadline = time.monotonic() + seconds
    while True:
        event: dict[str, Any] = json.loads(_line(process, deadline))
        if wanted(event):
            return event


def _line(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """The next line, and not a byte more: a line that waits in a buffer here is one that `select` does not see."""
    assert process.stdout is not None
    line = b''
    while not line.endswith(b'\n'):
        if not select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError(f'no such event in time; the last was {line!r}')
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f'it ended with code {process.wait(30)}'
        line += byte
    return line


def end(process: subprocess.Popen[bytes], how: int = signal.SIGINT) -> tuple[int, list[dict[str, Any]]]:
    """Signal the process: its exit code and the events that were still to come."""
    process.send_signal(how)
    out, _ = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in out.splitlines()]
