"""What an error of a read or a write means: damage, a storage out of reach, an interrupt, or what it says itself."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa
from deltalake.exceptions import DeltaError

from amplify_db_utils.errors import DamagedData, StorageUnavailable, StoreError

# Arrow has codes of S3 errors in its texts alone.
_AWS = re.compile(r'AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?')
_PASSING = {
    *('NETWORK_CONNECTION', 'REQUEST_TIMEOUT', 'SLOW_DOWN', 'SERVICE_UNAVAILABLE', 'THROTTLING'),
    *('INTERNAL_FAILURE', 'CLIENT_SIGNING_FAILURE', 'REQUEST_EXPIRED'),
}
# So has the log's library, and what it says of one is in several lines, with colours.
_OBJECT_STORE = re.compile(r'Error performing [A-Z]+ .* - (?:HTTP error|Server returned non-2xx status code\W+(\d+))')
_COLOURS = re.compile(r'\x1b\[[0-9;]*m')
_BESIDES = re.compile(r'\s*(stack backtrace|Debug source).*', re.DOTALL)
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
_REFUSED = {'ACCESS_DENIED', 'INVALID_ACCESS_KEY_ID', 'INVALID_CLIENT_TOKEN_ID', 'SIGNATURE_DOES_NOT_MATCH'}
_OF_THE_MACHINE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}


@contextmanager
def damage(what: str = 'a data file') -> Iterator[None]:
    """Errors of reading `what` as DamagedData, unless they say nothing of the file.

    Raises StorageUnavailable where a server did not answer, what was raised where a right or a resource is missing.
    """
    with reaching():
        try:
            yield
        except (StoreError, MemoryError):
            raise
        except (OSError, pa.ArrowException) as error:
            if _is_passing(error) or _is_refusal(error):
                raise
            raise DamagedData(f'{what} is gone or damaged: {error}') from error


@contextmanager
def reaching(*more: type[Exception], hint: str = 'try again') -> Iterator[None]:
    """Errors of a storage that is out of reach for now as StorageUnavailable: those of Arrow, of the log, and of `more`."""
    reached: tuple[type[Exception], ...] = (OSError, DeltaError, *more)
    try:
        yield
    except StoreError:
        raise
    except reached as error:
        if not _is_passing(error):
            if _COLOURS.search(str(error)):
                error.args = (_in_one_line(error),)
            raise
        raise StorageUnavailable(f'the storage does not answer for now, {hint}: {_in_one_line(error):.400}') from error


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt of a DuckDB query on the main thread as KeyboardInterrupt.

    The driver asks for signals while it waits, loses what their handler raises, and raises an error without a class;
    what is raised while it asks for the rows of a stream it tells at the end of an error of its own, as Arrow does.
    """
    try:
        yield
    except (RuntimeError, duckdb.Error, OSError, pa.ArrowException) as error:
        lost = type(error) is RuntimeError and str(error) == 'Query interrupted'
        if lost or str(error).rstrip(': \n').endswith('KeyboardInterrupt'):
            raise KeyboardInterrupt from error
        raise


def _is_passing(error: Exception) -> bool:
    found = _AWS.search(str(error))
    if found is not None:
        return found[1] in _PASSING or int(found[2] or 0) in _PASSING_STATUS
    found = _OBJECT_STORE.search(_in_one_line(error))
    return found is not None and (found[1] is None or int(found[1]) in _PASSING_STATUS)


def _in_one_line(error: Exception) -> str:
    text = _BESIDES.sub('', _COLOURS.sub('', str(error)))
    return ' '.join(text.replace('\u21b3', ':').split())


def _is_refusal(error: Exception) -> bool:
    found = _AWS.search(str(error))
    if found is not None:
        return found[1] in _REFUSED or found[2] in {'401', '403'}
    return getattr(error, 'errno', None) in _OF_THE_MACHINE
