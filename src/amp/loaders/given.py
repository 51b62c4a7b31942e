"""A stream of batches that a caller has already: they come once, and cannot be asked for again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from amp.errors import AmpError, ProtocolError
from amp.loaders.options import as_keys, as_mode
from amp.loaders.settings import StreamSettings
from amp.loaders.stream import StreamEngine
from amp.loaders.types import LoadMode, LoadResult
from amp.loaders.unit import StreamJob
from amp.streaming.iterator import END, End
from amp.streaming.ledger import StreamKey
from amp.streaming.resilience import ExponentialBackoff
from amp.streaming.types import ResponseBatch, ResumeWatermark

if TYPE_CHECKING:
    from amp.loaders.base import DataLoader

__all__ = ['follow_responses']


class _Given:
    """Batches that a caller made: they come once, and cannot be asked for again."""

    backlog = False
    repeatable = False

    def __init__(self, responses: Iterable[ResponseBatch]) -> None:
        self._responses = iter(responses)
        self._used = False
        self.failure: AmpError | None = None

    def connect(self, position: ResumeWatermark | None) -> _Given:
        if self._used:
            at = position.to_json() if position else 'the beginning'
            before = f'; it failed there: {self.failure}' if self.failure is not None else ''
            raise ProtocolError(
                f'the batches do not continue the stream, which stands at {at}{before}',
                hint='give batches that follow from there, or load from a query: it can be asked again',
            ) from self.failure
        self._used = True
        return self

    def get(self, timeout: float | None = None) -> ResponseBatch | Literal[End.END] | None:
        del timeout
        return next(self._responses, END)

    def close(self) -> None:
        """Nothing to stop."""


class _Engine(StreamEngine):
    """Tells the batches why they are asked for again: the reason would be lost with them."""

    def __init__(self, loader: DataLoader[Any], job: StreamJob, given: _Given, settings: StreamSettings) -> None:
        super().__init__(loader, job, given.connect, settings)
        self._given = given

    def _pause(self, backoff: ExponentialBackoff, failure: AmpError | None) -> None:
        self._given.failure = failure
        super()._pause(backoff, failure)


def follow_responses(
    loader: DataLoader[Any],
    responses: Iterable[ResponseBatch],
    table_name: str,
    *,
    stream_name: str | None = None,
    mode: LoadMode | str = LoadMode.APPEND,
    key_columns: Iterable[str] | str = (),
    settings: StreamSettings | None = None,
    **options: Any,
) -> Iterator[LoadResult]:
    """Drive a loader through batches that are already there. Ranges need no parent hash here.

    Options that are none of these are settings (`retention=`, `create_table=`, ...); an unknown one is a TypeError.
    """
    key = StreamKey(table_name, stream_name or table_name)
    job = StreamJob(key, as_mode(mode), as_keys(key_columns))
    chosen = replace(settings or StreamSettings(strict=False), **options)
    yield from _Engine(loader, job, _Given(responses), chosen).run()
