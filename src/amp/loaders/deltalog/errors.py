"""What delta-rs and the stores below it raise, as sentences. Which kind it is, class and code of the error say."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from deltalake.exceptions import (
    CommitFailedError,
    DeltaError,
    DeltaProtocolError,
    SchemaMismatchError,
    TableNotFoundError,
)
from obstore.exceptions import BaseError

from amp.errors import AmpError, DestinationError, LoadError, SchemaError, redact

__all__ = ['DRIVER_ERRORS', 'explained', 'is_transient', 'sentence', 'uses_delta']

DRIVER_ERRORS = (DeltaError, BaseError, OSError)

_COLOURS = re.compile(r'\x1b\[[0-9;]*m')
_BACKTRACE = re.compile(r'\s*(stack backtrace|Backtrace|Debug source|Detail: Python exception).*', re.DOTALL)
_OS_ERROR = re.compile(r'os error (\d+)')
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_KEPT_NOTHING = 'nothing of the last unit was kept'

_user: list[int] = []


def uses_delta() -> None:
    """Say that this process calls delta-rs now. Raises DestinationError in a child that was forked after its parent did."""
    if not _user:
        _user.append(os.getpid())
    if _user[0] != os.getpid():
        raise DestinationError(
            'Delta Lake was used before this process was forked, and cannot be used in both',
            hint="start workers with multiprocessing.get_context('spawn')",
        )


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Errors of the driver as ours; `place` is the table's."""
    try:
        yield
    except AmpError:
        raise
    except DRIVER_ERRORS as error:
        raise sentence(error, place) from error


def sentence(error: Exception, place: str) -> AmpError:
    """The error as one of ours."""
    text = _plain(error)
    found = _OS_ERROR.search(str(error))
    code = int(found.group(1)) if found is not None else getattr(error, 'errno', None)
    place = redact(place)
    unwritten = _unwritten(code, error, place, text)
    if unwritten is not None:
        return unwritten
    if isinstance(error, TableNotFoundError):
        return LoadError(f'there is no Delta table at {place}', path=place)
    if isinstance(error, SchemaMismatchError):
        return SchemaError(f'the rows do not fit the Delta table at {place}: {text}', path=place)
    if isinstance(error, DeltaProtocolError):
        return DestinationError(
            f'the Delta table at {place} needs what this delta-rs does not have: {text}', path=place
        )
    failed = DestinationError(f'Delta Lake refused at {place}: {text}', path=place)
    if isinstance(error, CommitFailedError):
        failed = DestinationError(
            f'other writers changed the Delta table at {place} while it was written: {text}',
            hint=f'{_KEPT_NOTHING}; run it again',
            path=place,
        )
    failed.retryable = is_transient(error, place)
    return failed


def _unwritten(code: int | None, error: Exception, place: str, text: str) -> DestinationError | None:
    if code in _NO_SPACE:
        return DestinationError(f'the disk of {place} is full', hint=f'{_KEPT_NOTHING}; free some space', path=place)
    if code in _NOT_ALLOWED or isinstance(error, PermissionError):
        return DestinationError(f'{place} may not be written: {text}', hint='check its permissions', path=place)
    if code == errno.ENAMETOOLONG:
        return DestinationError(
            f'a name below {place} is too long for its disk: {text}',
            hint=f'{_KEPT_NOTHING}; each value of a partition column is the name of a folder: partition by a short one',
            path=place,
        )
    return None


def is_transient(error: Exception, place: str) -> bool:
    """True for a conflict with another commit, and for what a network may have done to an object store."""
    if isinstance(error, CommitFailedError):
        return True
    permanent = (TableNotFoundError, SchemaMismatchError, DeltaProtocolError, PermissionError, FileNotFoundError)
    return '://' in place and isinstance(error, DRIVER_ERRORS) and not isinstance(error, permanent)


def _plain(error: Exception) -> str:
    text = _BACKTRACE.sub('', _COLOURS.sub('', str(error)))
    return redact(' '.join(text.replace('↳', ':').split())[:300])
