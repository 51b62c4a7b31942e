"""The file that a login lives in: `~/.amp/cache/amp_cli_auth`, one JSON object that Amp's tools share.

Whoever can read it can act as its user, so it is kept to its owner. It is replaced whole, never written in place, and
a lock beside it keeps two processes from renewing at the same time: the second would spend a token that is spent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amp.errors import AuthError, ConnectError

__all__ = ['Login', 'LoginFile']

logger = logging.getLogger('amp.auth')

LOG_IN = 'log in: amp auth login'
_EARLY_MS = 5 * 60 * 1000
_LATEST_MS = 253_402_300_799_000  # the end of the year 9999; what is later is no moment (nor are infinity and NaN)
_MOST_BYTES = 64 * 1024
_LOCK_SECONDS = 60.0
_LOCK_PAUSE = 0.05


@dataclass(frozen=True)
class Login:
    """What the file says. `expiry` is in milliseconds since 1970, None where not known. Its repr holds no token."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    user_id: str
    accounts: tuple[str, ...] | None = field(default=None, repr=False)
    expiry: int | None = None
    # What another tool may have put there besides.
    rest: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def is_due(self, now_ms: float | None = None) -> bool:
        """True when it should be renewed: unknown, past, or at most five minutes ahead."""
        now = time.time() * 1000 if now_ms is None else now_ms
        return self.accounts is None or self.expiry is None or self.expiry - now <= _EARLY_MS

    def is_expired(self, now_ms: float | None = None) -> bool:
        """True when no server takes it any more, as far as the file says."""
        now = time.time() * 1000 if now_ms is None else now_ms
        return self.expiry is not None and self.expiry <= now

    def to_json(self) -> str:
        """The file."""
        known = {
            'accessToken': self.access_token,
            'refreshToken': self.refresh_token,
            'userId': self.user_id,
            'accounts': None if self.accounts is None else list(self.accounts),
            'expiry': self.expiry,
        }
        return json.dumps({**self.rest, **known})

    @classmethod
    def from_json(cls, text: str) -> Login:
        """From the file. Raises ValueError that says what is wrong, and no value of it."""
        found = _object(text)
        wrong = next((key for key in ('accessToken', 'refreshToken', 'userId') if not _is_text(found.get(key))), None)
        if wrong is not None:
            raise ValueError(f'it has no {wrong}')
        expiry, accounts = found.get('expiry'), found.get('accounts')
        is_number = isinstance(expiry, int | float) and not isinstance(expiry, bool)
        if expiry is not None and not (is_number and 0 <= expiry <= _LATEST_MS):
            raise ValueError('its expiry is not a number of milliseconds')
        if accounts is not None and not (isinstance(accounts, list) and all(map(_is_text, accounts))):
            raise ValueError('its accounts are not a list of texts')
        known = {'accessToken', 'refreshToken', 'userId', 'expiry', 'accounts'}
        return cls(
            found['accessToken'],
            found['refreshToken'],
            found['userId'],
            None if accounts is None else tuple(accounts),
            None if expiry is None else int(expiry),
            {key: value for key, value in found.items() if key not in known},
        )


class LoginFile:
    """The file at `path` (default: the user's). Every method raises AuthError for a file that cannot be used."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else Path.home() / '.amp' / 'cache' / 'amp_cli_auth'

    def __repr__(self) -> str:
        return f'LoginFile({str(self.path)!r})'

    def read(self) -> Login:
        """The login. A file that others may read is closed to them; one that others may write is refused."""
        try:
            with self.path.open('rb') as file:
                self._check_mode(file.fileno())
                raw = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            raise AuthError(f'nobody is logged in: there is no {self.path}', hint=LOG_IN) from None
        except OSError as error:
            reason = error.strerror or 'it cannot be read'
            raise AuthError(
                f'the login in {self.path} cannot be read: {reason}', hint=f'chmod 600 {self.path}'
            ) from error
        try:
            if len(raw) > _MOST_BYTES:
                raise ValueError('it is too large')
            return Login.from_json(raw.decode())
        except ValueError as error:
            # Not chained: the error of a parser carries the text, and the text is the secret.
            reason = 'it is not text' if isinstance(error, UnicodeDecodeError) else str(error)
            broken = AuthError(f'the login in {self.path} does not parse: {reason}', hint=f'{LOG_IN} writes it anew')
        raise broken

    def _check_mode(self, file: int) -> None:
        if os.name != 'posix':
            return
        status = os.fstat(file)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AuthError(
                f'others may write the login in {self.path}, so it may not be yours',
                hint=f'look at it, then chmod 600 {self.path}',
            )
        if status.st_mode & (stat.S_IRGRP | stat.S_IROTH) and status.st_uid == os.getuid():
            # Other tools write it with the modes of any file.
            with contextlib.suppress(OSError):
                os.fchmod(file, 0o600)
                logger.info('%s was readable for others, and is not any more', self.path)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[Callable[[Login], None]]:
        """What replaces the file when it is called; nothing changes otherwise.

        That the place can be written is known on entry, before a token is spent on a new one.
        """
        target = Path(os.path.realpath(self.path))
        beside = target.with_name(f'.{target.name}.{os.getpid()}.{secrets.token_hex(4)}')
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from error

        def write(login: Login) -> None:
            try:
                os.write(file, login.to_json().encode())
                os.fsync(file)
                beside.replace(target)
            except OSError as error:
                raise self._cannot_write(error) from error

        try:
            yield write
        finally:
            os.close(file)
            beside.unlink(missing_ok=True)

    def write(self, login: Login) -> None:
        """Replace the file."""
        with self.locked(), self.replacing() as write:
            write(login)

    def remove(self) -> bool:
        """Take it away; False when there was none. A renewal that goes on is waited for: it would put a new one there."""
        if not os.path.lexists(self.path):
            return False
        with self.locked():
            try:
                self.path.unlink()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise self._cannot_write(error) from error
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process, and one thread of it, at a time. Raises ConnectError when another does not come to an end."""
        try:
            import fcntl
        except ImportError:  # no such locks on Windows; the file is replaced whole all the same
            yield
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + '.lock'), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from error
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ConnectError(
                            f'another process has been renewing the login in {self.path} for a minute',
                            hint='is there one that hangs?',
                        ) from None
                    time.sleep(_LOCK_PAUSE)
            yield
        finally:
            os.close(lock)

    def _cannot_write(self, error: OSError) -> AuthError:
        return AuthError(
            f'the login in {self.path} cannot be replaced: {error.strerror or error}',
            hint='make its folder writable, or give a token: AMP_AUTH_TOKEN',
        )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    raise ValueError('it is not a JSON object')


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
