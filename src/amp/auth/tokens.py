"""Where the bearer token of a call comes from. It is asked for with every new call, so a long stream has a fresh one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from amp.auth.login import Login, LoginFile
from amp.auth.service import AuthService
from amp.errors import AuthError, ConnectError, SourceError

__all__ = ['FixedToken', 'LoginToken', 'Token']

logger = logging.getLogger('amp.auth')


class Token(Protocol):
    """Asked by several threads."""

    def current(self) -> str | None:
        """The token to send now. Raises AuthError when there is none to be had, ConnectError when not just now."""

    def renew(self, refused: str) -> bool:
        """A server did not take `refused`: True when there is another one now. Raises as `current` does."""


class FixedToken:
    """A token that was given, or none."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def current(self) -> str | None:
        """As it was given."""
        return self._token

    def renew(self, refused: str) -> bool:
        """There is no other."""
        del refused
        return False


class LoginToken:
    """The token of the login in `file`, renewed when at most five minutes of it are left.

    What is renewed is written back before it is used, for all processes and tools that share the file.
    """

    def __init__(self, file: LoginFile | None = None, service: AuthService | None = None) -> None:
        self._file = file or LoginFile()
        self._service = service or AuthService()
        self._not_before = 0.0
        self._lock = threading.Lock()

    def current(self) -> str:
        """The token. One that is still good is used when it cannot be renewed just now."""
        login = self._file.read()
        if not login.is_due():
            return login.access_token
        with self._lock:
            try:
                return self._renewed(login, Login.is_due).access_token
            except SourceError as error:
                if login.expiry is None or login.is_expired():
                    raise _expired(error, login) from error
                logger.warning('the login could not be renewed, and is good for a little longer: %s', error)
                return login.access_token

    def renew(self, refused: str) -> bool:
        """A new token, whatever the file says of the old one: clocks differ, and tokens are revoked."""
        with self._lock:
            login = self._file.read()
            if login.access_token == refused:
                login = self._renewed(login, lambda found: found.access_token == refused)
            return login.access_token != refused

    def _renewed(self, seen: Login, is_stale: Callable[[Login], bool]) -> Login:
        wait = self._not_before - time.monotonic()
        if wait > 0:
            raise ConnectError(f'the login is not renewed for another {wait:.0f} s', hint='it was asked too often')
        with self._file.locked():
            login = self._file.read()
            if not is_stale(login):
                return login
            with self._file.replacing() as write:
                try:
                    renewed = self._service.refresh(login)
                except AuthError:
                    # A tool that takes no lock may have been faster, and our refresh token is spent.
                    found = self._file.read()
                    if found == login or is_stale(found):
                        raise
                    return found
                except ConnectError as error:
                    self._not_before = time.monotonic() + float(str(error.context.get('retry_after', 0)))
                    raise
                write(renewed)
        logger.info('the login was renewed, until %s', _until(renewed))
        return renewed


def _expired(error: SourceError, login: Login) -> SourceError:
    if isinstance(error, ConnectError) or not login.is_expired():
        return error
    return AuthError(f'the login expired at {_until(login)} and {error.message}', hint=error.hint)


def _until(login: Login) -> str:
    return time.strftime('%Y-%m-%d %H:%M', time.localtime((login.expiry or 0) / 1000))
