"""The child process as its parent sees it: events, orders, signals, and a spare that has done its imports already."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

__all__ = ['Child', 'Launcher', 'Order']

Order = Mapping[str, Any]
"""`point` and `nth`: where; `action`: `kill` or `stop`; `trace`: tell of every point."""

Position = Mapping[str, Mapping[str, int | str]]

TIMEOUT = 120.0


class Child:
    """A process that runs one stream. What it told is in `position`, `epoch`, `points`, `peak_rss_kb` and `error`."""

    def __init__(self, loader: str, modules: Sequence[str] = ()) -> None:
        self.position: Position | None = None
        self.epoch: int | None = None
        self.rows = 0
        self.reorgs = 0
        self.commits = 0
        self.peak_rss_kb = 0
        self.points: list[str] = []
        self.error: Mapping[str, Any] | None = None
        self.order: Order = {}
        self._events: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._ended = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(  # noqa: S603 - our own module, our own arguments
            [sys.executable, '-m', 'amp.testing.child', loader, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)},
        )
        self._reader = threading.Thread(target=self._read, name='child-events', daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def start(self, job: Mapping[str, Any]) -> None:
        """Give it its job and wait until it is about to begin. `job['order']` holds from the start."""
        self.order = job.get('order') or {}
        self._send(job)
        self._expect('ready')

    def give(self, order: Order) -> None:
        """A new order; on return it holds."""
        self.order = order
        self._send(order)
        self._expect('ordered')

    def wait_stopped(self) -> None:
        """Wait until it has stopped itself, as it was ordered."""
        self._expect('stopped')
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise AssertionError(f'the process has ended where it should have stopped: {self.told()}')

    def wait(self, done: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
        """Take events until `done()` holds; False when the process ended before. Raises AssertionError in the end."""
        deadline = time.monotonic() + timeout
        while not done():
            if self._take(deadline) is None:
                return done()
        return True

    def wait_end(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        self.wait(lambda: False, timeout)
        return self._process.wait(timeout)

    def send_signal(self, number: int) -> None:
        """Send a signal; harmless when it has ended."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """End it with SIGKILL; the exit code."""
        self._process.kill()
        return self.wait_end()

    def interrupt(self) -> int:
        """End it with SIGINT, as a person does with Ctrl-C; the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self.wait_end()

    def close(self) -> None:
        """End it if it runs, and free what it held here."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(TIMEOUT)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def told(self) -> str:
        """Its error and the end of its stderr, for a message."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(size - 4000, 0))
        return f'exit code {self._process.poll()}, error {self.error}, stderr:\n{self._stderr.read().decode()}'

    def _send(self, message: Mapping[str, Any]) -> None:
        stdin = self._process.stdin
        if stdin is None:
            raise AssertionError('a child has a stdin')
        stdin.write(json.dumps(message).encode() + b'\n')
        stdin.flush()

    def _read(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            raise AssertionError('a child has a stdout')
        for line in stdout:
            if line.endswith(b'\n'):  # a kill may cut the last one short
                self._events.put(json.loads(line))
        self._events.put(None)

    def _expect(self, event: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while (told := self._take(deadline)) is None or told['event'] != event:
            if told is None:
                raise AssertionError(f'the process ended before it said {event!r}: {self.told()}')

    def _take(self, deadline: float) -> Mapping[str, Any] | None:
        """The next event, None at the end."""
        if self._ended:
            return None
        try:
            event = self._events.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise AssertionError(
                f'nothing came from the process in time; it stands at {self.position}: {self.told()}'
            ) from None
        if event is None:
            self._ended = True
        else:
            self._note(event)
        return event

    def _note(self, event: Mapping[str, Any]) -> None:
        match event['event']:
            case 'result':
                self.position, self.epoch = event['position'], event['epoch']
                self.rows += event['rows']
                self.reorgs += event['is_reorg']
                self.commits += not event['is_reorg']
                self.peak_rss_kb = event['peak_rss_kb']
            case 'point':
                self.points.append(event['name'])
            case 'error':
                self.error = event


class Launcher:
    """Starts children; one more than asked for is always on its way, because most of a start is imports."""

    def __init__(self, loader: str, modules: Sequence[str] = ()) -> None:
        self._loader = loader
        self._modules = modules
        self._spare: Child | None = None

    def launch(self, job: Mapping[str, Any]) -> Child:
        """A child at work on `job`."""
        child = self._spare or Child(self._loader, self._modules)
        self._spare = Child(self._loader, self._modules)
        child.start(job)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None
