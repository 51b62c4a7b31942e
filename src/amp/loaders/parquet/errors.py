"""What the columnar store and its log raise, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from amp.errors import AmpError, DestinationError, LoadError, SchemaError, redact
from amp.loaders.deltalog.errors import DRIVER_ERRORS, sentence
from amplify_db_utils.errors import (
    BadRecord,
    CommitConflict,
    DamagedData,
    SchemaConflict,
    StorageUnavailable,
    StoreError,
    TableNotFound,
)

__all__ = ['told']


@contextmanager
def told(place: str) -> Iterator[None]:
    """Errors of the store and of its log as ours; `place` is the table's, or the root."""
    try:
        yield
    except AmpError:
        raise
    except (StoreError, *DRIVER_ERRORS) as error:
        raise _ours(error, place) from error


def _ours(error: Exception, place: str) -> AmpError:
    text, place = redact(str(error)), redact(place)
    if isinstance(error, BadRecord | SchemaConflict):
        return SchemaError(
            f'the rows do not fit the table at {place}: {text}',
            hint='nothing of the unit was kept; load into a table of another name, or cast in the query',
            path=place,
        )
    if isinstance(error, TableNotFound):
        return LoadError(f'there is no table at {place}', path=place)
    if isinstance(error, StorageUnavailable):
        away = DestinationError(f'the storage of {place} does not answer: {text}', hint='run it again', path=place)
        away.retryable = True
        return away
    if isinstance(error, CommitConflict):
        conflict = DestinationError(f'other writers were faster at {place}: {text}', hint='run it again', path=place)
        conflict.retryable = True
        return conflict
    if isinstance(error, DamagedData):
        return DestinationError(
            f'the table at {place} is damaged: {text}', hint='restore the file from a copy', path=place
        )
    return DestinationError(f'{place}: {text}', path=place) if isinstance(error, StoreError) else sentence(error, place)
