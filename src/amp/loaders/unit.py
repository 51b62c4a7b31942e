"""What the stream engine and a destination say to each other.

A destination that is exactly-once gives the engine four methods (`StreamingDestination`); each commit is a `Unit`.
Two ways lead there. Same transaction: `commit` makes undo, rows and state visible at once. Undo by id: `begin` first
makes an intent durable (the undo, the rewound position, the first id), and `open_stream` finishes what an intent
announces. Either way the engine needs nothing more, and nothing of it knows which destination it drives.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from amp.loaders.types import LoadMode
from amp.streaming.ledger import StreamKey, StreamState, Undo

__all__ = ['Claim', 'StreamInfo', 'StreamJob', 'StreamingDestination', 'Unit']


@dataclass(frozen=True)
class StreamJob:
    """What a stream is to do at its destination; the same value for all of its units."""

    key: StreamKey
    mode: LoadMode = LoadMode.APPEND
    key_columns: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """Who takes a stream, when, and with which query (None: rows that no query gave). Stored with the epoch."""

    owner: str
    taken_at: str
    query: str | None = None

    @classmethod
    def now(cls, query: str | None = None) -> Claim:
        """A claim of this process; no other one is made with the same owner."""
        owner = f'{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}'
        return cls(owner, datetime.now(UTC).isoformat(timespec='seconds'), query)

    @property
    def fingerprint(self) -> str | None:
        """What tells one query from another: SHA-256 of its text without surrounding space and final semicolon."""
        if self.query is None:
            return None
        return hashlib.sha256(self.query.strip().rstrip(';').strip().encode()).hexdigest()[:32]


@dataclass(frozen=True)
class StreamInfo:
    """A stream as a destination remembers it; `committed_at` is ISO 8601 in UTC, None before the first commit."""

    key: StreamKey
    state: StreamState
    claim: Claim
    committed_at: str | None = None


class Unit(Protocol):
    """One commit. Whatever happens before `commit` returns can be taken back by `rollback`."""

    def write(self, batch: pa.RecordBatch) -> int:
        """Take stamped rows; the number taken. Nothing of them is visible as committed yet."""

    def commit(self, state: StreamState) -> None:
        """Make undo, rows and `state` durable together. Raises StaleEpochError when the stream has a newer epoch."""

    def rollback(self) -> None:
        """Forget it all. Never raises for a connection that is gone."""


class StreamingDestination(Protocol):
    """What an exactly-once destination offers the engine."""

    def list_streams(self) -> Sequence[StreamInfo]:
        """Every stream that this destination remembers."""

    def open_stream(self, key: StreamKey, claim: Claim, after: int | None = None) -> StreamState:
        """Take a new epoch durably, undo what was never finished, and return what is committed.

        `after`: the epoch that the claimer had before; StaleEpochError when somebody else has taken the stream since.
        """

    def begin(self, job: StreamJob, state: StreamState, first_id: int, undo: Undo | None) -> Unit:
        """Open a unit whose rows carry ids from `first_id` on; `state` is what is committed before it."""
