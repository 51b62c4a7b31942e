"""How a stream runs, and what it reads from."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from amp.loaders.types import LabelConfig
from amp.streaming.iterator import End
from amp.streaming.resilience import RetryConfig
from amp.streaming.types import BlockRange, ResponseBatch

__all__ = ['FOR_EVER', 'Source', 'StreamSettings']


class Source(Protocol):
    """One connection to the server, or any other row of batches."""

    @property
    def backlog(self) -> bool:
        """True when the next batch is here already: there is no hurry to commit."""

    @property
    def repeatable(self) -> bool:
        """True when it can be asked again from a position; False for batches that come only once."""

    def get(self, timeout: float | None = None) -> ResponseBatch | Literal[End.END] | None:
        """The next batch; END after the last; None when `timeout` seconds passed. Raises what went wrong."""

    def close(self) -> None:
        """Stop it; harmless when it has ended."""


FOR_EVER = RetryConfig(max_retries=None, initial_backoff_ms=200, max_backoff_ms=30_000)


@dataclass(frozen=True)
class StreamSettings:
    """How a stream runs.

    `retention` is the undo window in blocks. Under backlog a unit commits at the end of the microbatch that reaches
    `commit_rows`, `commit_bytes` or `commit_seconds`; without backlog, at every one. A unit without rows may wait
    `position_seconds`. `strict` holds ranges to the server's rules. `retry_seconds`: how long to go on trying without
    any progress (None: for ever); `retry`: how to wait meanwhile. `column_types`, `label_config` and
    `schema_evolution` are those of a plain load. `base`: blocks that a backfill has loaded; a stream that has not begun
    begins right after them, and must be given exactly that. `stop`: set it from any thread, and the stream ends, rolling back
    the unit in hand.
    """

    retention: int = 128
    strict: bool = True
    create_table: bool = True
    schema_evolution: str = 'freeze'
    column_types: Mapping[str, str] | None = None
    label_config: LabelConfig | None = None
    resume: bool = True
    accept_changed_query: bool = False
    commit_rows: int = 1_000_000
    commit_bytes: int = 256 * 1024**2
    commit_seconds: float = 10.0
    position_seconds: float = 0.0
    retry_seconds: float | None = None
    retry: RetryConfig | None = None
    base: BlockRange | None = None
    stop: threading.Event | None = None
