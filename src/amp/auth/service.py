"""What is asked of the place that gives out tokens: a new one for an old one, and a login by a code in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from amp.auth.login import LOG_IN, Login
from amp.errors import AuthError, ConfigError, ConnectError, redact

__all__ = ['AuthService', 'DeviceCode']

PLATFORM = 'https://auth.amp.thegraph.com'
_TIMEOUT = 15.0
_MOST_BYTES = 1024**2
_RETRY_AFTER = 60.0
_LONGEST = 100 * 365 * 86_400  # seconds; an answer that says more means nothing
_LOOPBACK = {'localhost', '127.0.0.1', '::1'}
_REFUSED = {400, 401, 403}


@dataclass(frozen=True)
class DeviceCode:
    """A login that waits for its user: `user_code` is to be typed at `verification_uri`. Times are in seconds."""

    user_code: str
    verification_uri: str
    expires_in: float
    interval: float
    device_code: str = field(repr=False)
    verifier: str = field(repr=False)


class AuthService:
    """The service at `url` (default: AMP_AUTH_URL, else Amp's own). Raises ConfigError for one without TLS.

    Its methods raise ConnectError when it does not answer (`retry_after` in the context, where it says so) and
    AuthError when it refuses. No error holds a token.
    """

    def __init__(self, url: str | None = None, *, timeout: float = _TIMEOUT) -> None:
        self.url = (url or os.environ.get('AMP_AUTH_URL') or PLATFORM).rstrip('/')
        parts = _parts(self.url)
        if parts is None:
            raise ConfigError('the address of the login service is not a URL', hint='correct AMP_AUTH_URL')
        if parts.scheme != 'https' and not (parts.scheme == 'http' and parts.hostname in _LOOPBACK):
            raise ConfigError(
                f'tokens are not sent to {redact(self.url)!r}, which is not https', hint='correct AMP_AUTH_URL'
            )
        self._timeout = timeout

    def __repr__(self) -> str:
        return f'AuthService({redact(self.url)!r})'

    def refresh(self, login: Login) -> Login:
        """The login with a new token."""
        body = {'refresh_token': login.refresh_token, 'user_id': login.user_id}
        found = self._ask('/api/v1/auth/refresh', body, bearer=login.access_token)
        user = found.get('user')
        token, refresh = found.get('token'), found.get('refresh_token')
        if not isinstance(user, dict) or not _is_text(token) or not (refresh is None or _is_text(refresh)):
            raise self._unreadable()
        if user.get('id') != login.user_id:
            raise AuthError('the token that came is of another user', hint=LOG_IN)
        return replace(
            login,
            access_token=str(token),
            refresh_token=login.refresh_token if refresh is None else str(refresh),
            accounts=_accounts(user.get('accounts')),
            expiry=self._expiry(found),
        )

    def authorize(self) -> DeviceCode:
        """A code for the user to type in a browser."""
        verifier = _base64(secrets.token_bytes(32))
        challenge = _base64(hashlib.sha256(verifier.encode()).digest())
        found = self._ask('/api/v1/device/authorize', {'code_challenge': challenge, 'code_challenge_method': 'S256'})
        texts = [found.get(key) for key in ('user_code', 'verification_uri', 'device_code')]
        times = [found.get(key) for key in ('expires_in', 'interval')]
        if not all(map(_is_text, texts)) or not all(isinstance(t, int | float) and 0 < t <= _LONGEST for t in times):
            raise self._unreadable()
        user_code, uri, device_code = map(str, texts)
        if not uri.startswith(('https://', 'http://')):
            raise self._unreadable()
        return DeviceCode(user_code, uri, float(times[0] or 0), float(times[1] or 0), device_code, verifier)

    def poll(self, code: DeviceCode) -> Login | None:
        """The login, None as long as the user has not confirmed it. Raises AuthError once it is too late."""
        query = urlencode({'device_code': code.device_code, 'code_verifier': code.verifier})
        found = self._ask(f'/api/v1/device/token?{query}', None)
        error = found.get('error')
        if error in {'authorization_pending', 'slow_down'}:
            return None
        if error is not None:
            late = error == 'expired_token'
            raise AuthError('the code was not confirmed in time' if late else 'the login was refused', hint=LOG_IN)
        texts = [found.get(key) for key in ('access_token', 'refresh_token', 'user_id')]
        if not all(map(_is_text, texts)):
            raise self._unreadable()
        token, refresh, user = map(str, texts)
        return Login(token, refresh, user, _accounts(found.get('user_accounts')), self._expiry(found))

    def _expiry(self, found: Mapping[str, Any]) -> int:
        seconds = found.get('expires_in')
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST:
            raise self._unreadable()
        return int((time.time() + seconds) * 1000)

    def _ask(self, path: str, body: Mapping[str, object] | None, bearer: str | None = None) -> dict[str, Any]:
        """The JSON object of an answer; an OAuth error (`error`) of a request without bearer is one too."""
        status, headers, raw = self._send(path, body, bearer)
        found = _parsed(raw)
        if status == 429:
            after = _seconds(headers.get('retry-after'))
            raise ConnectError(
                f'{self._host} asks to be left alone for {after:.0f} s', hint='try again then', retry_after=after
            )
        if status in _REFUSED and bearer is None and found is not None and _is_text(found.get('error')):
            return found
        if status in _REFUSED:
            raise AuthError(f'{self._host} refuses to renew the login (HTTP {status})', hint=LOG_IN, code=status)
        if status >= 500:
            raise ConnectError(f'{self._host} fails (HTTP {status})', hint='try again later', code=status)
        if status >= 300 or found is None:
            raise self._unreadable(status)
        return found

    def _send(self, path: str, body: Mapping[str, object] | None, bearer: str | None) -> tuple[int, Any, bytes]:
        import http.client
        import urllib.error
        import urllib.request

        class Straight(urllib.request.HTTPRedirectHandler):
            """Follows nothing: a redirect would take the token along, wherever it points."""

            def redirect_request(self, *args: Any, **options: Any) -> None:
                return None

        headers = {'accept': 'application/json', 'user-agent': 'amp-python'}
        if body is not None:
            headers['content-type'] = 'application/json'
        if bearer is not None:
            headers['authorization'] = f'Bearer {bearer}'
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310 - the scheme is checked above
        try:
            with urllib.request.build_opener(Straight).open(request, timeout=self._timeout) as answer:
                return answer.status, answer.headers, answer.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, 'reason', None) or type(error).__name__
            failed = ConnectError(
                f'cannot reach {self._host}: {redact(str(reason))}', hint='is the network there? try again'
            )
        # Not chained: the request, token and all, is in the frames of the cause.
        raise failed

    @property
    def _host(self) -> str:
        return urlsplit(self.url).netloc.rpartition('@')[2]

    def _unreadable(self, status: int | None = None) -> ConnectError:
        told = '' if status is None or status < 300 else f' (HTTP {status})'
        return ConnectError(f'the answer of {self._host} cannot be read{told}', hint='is AMP_AUTH_URL right?')


def _parts(url: str) -> SplitResult | None:
    """None for what names no host and port."""
    try:
        parts = urlsplit(url)
        is_url = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if is_url else None


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _accounts(found: object) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _seconds(text: str | None) -> float:
    seconds = float(text) if text is not None and text.strip().isdecimal() else _RETRY_AFTER
    return seconds if seconds <= _LONGEST else _RETRY_AFTER


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()
