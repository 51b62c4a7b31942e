"""The loader of the demo: the real command line in a process of its own, known only by the events it writes.

That is what makes it fair to kill it: nothing of it lives in the process that watches.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

from amp.errors import AmpError

__all__ = ['Event', 'Follower']

Event = dict[str, Any]

_PATIENCE = 120.0  # seconds to reach a block that is there
_ALONE = 30.0  # seconds that the loader goes on trying when there is no server


class Follower:
    """`amp load --stream` of `sql` into the table `transfers` of `path`. `seen` is called with each of its events."""

    def __init__(self, url: str, sql: str, path: Path, seen: Callable[[Event], None]) -> None:
        self._command = [sys.executable, '-m', 'amp', 'load', url, sql, '--stream', '--json']
        self._command += ['--to', f'duckdb:///{quote(str(path))}', '--table', 'transfers']
        # Should the demo itself be killed, nobody is left to end the loader: without a server it ends by itself.
        self._command += ['--option', f'retry_seconds={_ALONE:.0f}']
        self._seen = seen
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._position: dict[str, dict[str, Any]] = {}
        self._failure: Event | None = None
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the follower
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._complaints.close()

    def start(self) -> None:
        """Start the process; after `stop` or a kill it goes on from the position in the file."""
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends this in order
        )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                if line.endswith(b'\n'):  # a kill may cut the last one short
                    self._events.put(json.loads(line))
        self._events.put(None)

    def stop(self) -> None:
        """End it as Ctrl-C would: the unit in hand is finished or rolled back."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._drain()

    def kill(self) -> None:
        """End it as `kill -9` does: at once, whatever it is doing. What it has told until then is taken."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self._drain()

    def _drain(self) -> None:
        while (event := self._events.get()) is not None:
            self._take(event)

    def wait_for(self, number: int, block_hash: str, *, patience: float = _PATIENCE) -> None:
        """Wait until it has committed this very block. Raises AmpError when it fails or takes too long."""
        deadline = time.monotonic() + patience
        while not self._is_at(number, block_hash):
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AmpError(f'the loader has not reached block {number} within {patience:.0f} s') from None
            if event is None:
                raise self._died()
            self._take(event)

    def poll(self, seconds: float) -> None:
        """Take events for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                return
            if event is None:
                raise self._died()
            self._take(event)

    def _take(self, event: Event) -> None:
        self._position = event.get('position') or self._position
        if event['event'] == 'error':
            self._failure = event
        self._seen(event)

    def _is_at(self, number: int, block_hash: str) -> bool:
        return any(at['number'] == number and at['hash'] == block_hash for at in self._position.values())

    def _died(self) -> AmpError:
        process, self._process = self._process, None
        code = process.wait() if process is not None else None
        if self._failure is not None:
            error = AmpError(self._failure['error'], hint=self._failure.get('hint'))
            error.exit_code = int(self._failure['exit_code'])
            return error
        self._complaints.seek(0)
        told = self._complaints.read().decode(errors='replace').strip().splitlines()
        return AmpError(f'the loader ended with code {code}{": " + told[-1] if told else ""}')
