"""Misbehaviour on demand: what a test tells the local Amp to do wrong.

A fault is armed, waits for its moment in a result, happens a number of times, and is gone. The moment is inside a
microbatch, after so many data batches of it were sent, and in any case before its completion batch; `at_block` waits
for the microbatch that holds the block. A batch query is one microbatch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

__all__ = ['FAULT_CODES', 'Fault', 'FaultError', 'Faults', 'Message']

FAULT_CODES = frozenset(
    {
        'CANCELLED',
        'DEADLINE_EXCEEDED',
        'INTERNAL',
        'INVALID_ARGUMENT',
        'NOT_FOUND',
        'PERMISSION_DENIED',
        'UNAUTHENTICATED',
        'UNAVAILABLE',
        'UNIMPLEMENTED',
    }
)


class FaultError(Exception):
    """A status that a test asked for. `code` is the name of the gRPC code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EndOfResult(Exception):  # noqa: N818
    """Ends a result as if it were complete."""


@dataclass(frozen=True, slots=True)
class Message:
    """A record batch on its way to the client."""

    batch: pa.RecordBatch
    metadata: bytes
    complete: bool = False
    blocks: tuple[int, int] | None = None
    """First and last block of the microbatch."""


Action = Callable[[Message, Callable[[], bool]], list[Message]]
"""Given the message that is about to be sent and a test for a client that is gone: what is sent instead."""


@dataclass(eq=False)
class Fault:
    """An armed fault. `fired` counts how often it happened; `wait` waits for the first time."""

    action: Action
    after_batches: int = 0
    at_block: int | None = None
    times: int = 1
    at_completion: bool = False
    fired: int = 0
    _happened: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout: float = 30) -> None:
        """Wait until the fault has happened. Raises TimeoutError."""
        if not self._happened.wait(timeout):
            raise TimeoutError(f'the fault has not happened within {timeout} s')

    def release(self) -> None:
        """Let a stalled result go on."""
        self._released.set()

    def due(self, message: Message, sent: int) -> bool:
        """True when this is the moment."""
        if self.fired >= self.times:
            return False
        if self.at_block is not None and (
            message.blocks is None or not message.blocks[0] <= self.at_block <= message.blocks[1]
        ):
            return False
        return message.complete or (sent >= self.after_batches and not self.at_completion)

    def fire(self) -> None:
        """Count it, and tell who waits."""
        self.fired += 1
        self._happened.set()


class Faults:
    """The faults of one server. Methods arm a fault and return it; `clear` disarms all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self._refusals: dict[str, list[FaultError]] = {'get_flight_info': [], 'do_get': []}
        self._split_rows: int | None = None
        self._keep_alives = False
        self._keep_alive_seconds: float | None = None
        self._ignored_cursors = 0
        self._repeats = 0

    def error(
        self,
        code: str,
        message: str = 'a fault',
        *,
        after_batches: int = 0,
        at_block: int | None = None,
        times: int = 1,
    ) -> Fault:
        """End the result with a gRPC status."""
        _check_code(code)

        def action(_: Message, __: Callable[[], bool]) -> list[Message]:
            raise FaultError(code, message)

        return self._arm(Fault(action, after_batches, at_block, times))

    def cut(self, *, after_batches: int = 0, at_block: int | None = None, times: int = 1) -> Fault:
        """Lose the connection inside a microbatch: the client sees UNAVAILABLE."""
        return self.error('UNAVAILABLE', 'Socket closed', after_batches=after_batches, at_block=at_block, times=times)

    def end_early(self, *, after_batches: int = 0, at_block: int | None = None, times: int = 1) -> Fault:
        """End the result cleanly, without its completion batch."""

        def action(_: Message, __: Callable[[], bool]) -> list[Message]:
            raise EndOfResult

        return self._arm(Fault(action, after_batches, at_block, times))

    def stall(self, *, after_batches: int = 0, at_block: int | None = None, times: int = 1) -> Fault:
        """Send nothing more until the fault is released, or the client or the server is gone."""

        def action(message: Message, gone: Callable[[], bool]) -> list[Message]:
            while not fault._released.wait(0.05):
                if gone():
                    raise EndOfResult
            return [message]

        fault = Fault(action, after_batches, at_block, times)
        return self._arm(fault)

    def call(
        self, function: Callable[[], object], *, after_batches: int = 0, at_block: int | None = None, times: int = 1
    ) -> Fault:
        """Call a function in the middle of a microbatch: the place for a reorg that comes at a bad time."""

        def action(message: Message, _: Callable[[], bool]) -> list[Message]:
            function()
            return [message]

        return self._arm(Fault(action, after_batches, at_block, times))

    def keep_alive(self, count: int = 1, *, after_batches: int = 0, at_block: int | None = None) -> Fault:
        """Send zero-row batches with the microbatch's ranges, not complete."""

        def action(message: Message, _: Callable[[], bool]) -> list[Message]:
            return [_keep_alive_before(message)] * count + [message]

        return self._arm(Fault(action, after_batches, at_block))

    def override_metadata(
        self,
        metadata: bytes | None,
        *,
        after_batches: int = 0,
        at_block: int | None = None,
        at_completion: bool = False,
        times: int = 1,
    ) -> Fault:
        """Send a batch (or, `at_completion`, the completion batch) with these bytes, or with none at all."""

        def action(message: Message, _: Callable[[], bool]) -> list[Message]:
            return [replace(message, metadata=metadata or b'')]

        return self._arm(Fault(action, after_batches, at_block, times, at_completion))

    def refuse(self, code: str, message: str = 'a fault', *, call: str = 'do_get', times: int = 1) -> None:
        """Answer the next calls of `get_flight_info` or `do_get` with a gRPC status."""
        _check_code(code)
        with self._lock:
            self._refusals[call] += [FaultError(code, message)] * times

    def split(self, rows: int | None) -> None:
        """From now on send at most so many rows a batch; None for the server's own size."""
        with self._lock:
            self._split_rows = rows

    def keep_alives(self, on: bool = True) -> None:
        """From now on send a zero-row batch before every batch."""
        with self._lock:
            self._keep_alives = on

    def keep_alive_every(self, seconds: float | None) -> None:
        """How long a microbatch may compute in silence; None for the server's own interval, 30 s or more."""
        with self._lock:
            self._keep_alive_seconds = seconds

    @property
    def keep_alive_seconds(self) -> float | None:
        """The interval that was asked for."""
        return self._keep_alive_seconds

    def ignore_cursor(self, times: int = 1) -> None:
        """Start the next streams from the first block, whatever cursor they bring."""
        with self._lock:
            self._ignored_cursors += times

    def repeat_microbatch(self, times: int = 1) -> None:
        """Send the next microbatch twice, completion batches and all."""
        with self._lock:
            self._repeats += times

    def clear(self) -> None:
        """Disarm everything; what is stalled goes on."""
        with self._lock:
            for fault in self._armed:
                fault.release()
            self._armed.clear()
            self._refusals = {call: [] for call in self._refusals}
            self._keep_alive_seconds = None
            self._split_rows, self._keep_alives, self._ignored_cursors, self._repeats = None, False, 0, 0

    def check_call(self, call: str) -> None:
        """Raises FaultError when this call is to be refused."""
        with self._lock:
            refusal = self._refusals[call].pop(0) if self._refusals[call] else None
        if refusal is not None:
            raise refusal

    def takes_cursor_away(self) -> bool:
        """True when the cursor of the stream that starts now is to be ignored."""
        with self._lock:
            ignored = self._ignored_cursors > 0
            self._ignored_cursors -= ignored
        return ignored

    @property
    def split_rows(self) -> int | None:
        """The most rows of a batch."""
        return self._split_rows

    def apply(self, microbatch: Iterable[Message], gone: Callable[[], bool]) -> Iterator[Message]:
        """The messages of one microbatch with the faults that are due. Raises FaultError or EndOfResult."""
        with self._lock:
            repeated = self._repeats > 0
            self._repeats -= repeated
        kept: list[Message] = []
        for sent, message in enumerate(microbatch):
            for replaced in self._one(message, sent, gone):
                if repeated:
                    kept.append(replaced)
                yield replaced
        yield from kept

    def _one(self, message: Message, sent: int, gone: Callable[[], bool]) -> list[Message]:
        with self._lock:
            due = [fault for fault in self._armed if fault.due(message, sent)]
            keep_alives = self._keep_alives
        before = [_keep_alive_before(message)] if keep_alives else []
        for fault in due:
            with self._lock:
                if fault.fired >= fault.times:
                    continue
                fault.fire()
                if fault.fired == fault.times:
                    self._armed.remove(fault)
            *extra, message = fault.action(message, gone)
            before += extra
        return [*before, message]

    def _arm(self, fault: Fault) -> Fault:
        with self._lock:
            self._armed.append(fault)
        return fault


def _keep_alive_before(message: Message) -> Message:
    metadata = message.metadata.replace(b'"ranges_complete":true', b'"ranges_complete":false')
    return Message(message.batch.slice(0, 0), metadata, False, message.blocks)


def _check_code(code: str) -> None:
    if code not in FAULT_CODES:
        raise ValueError(f'{code!r} is not one of {", ".join(sorted(FAULT_CODES))}')
