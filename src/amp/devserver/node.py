"""JSON-RPC to an EVM node: calls and batches of calls, at a pace that the node bears, with errors that name it."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from amp.errors import ConfigError, ConnectError, SourceError

__all__ = ['EvmNode', 'NodeError', 'Pace', 'TooMuchError']

Call = tuple[str, Sequence[object]]

_BUSY = {429, 502, 503, 504}
_TOO_LARGE = 413
# "Limit exceeded" of EIP-1474, and the HTTP status that some providers put into the answer itself.
_BUSY_CODES = {-32005, 429}
_TRIES = 6
_EXAMPLE = 'for example http://127.0.0.1:8545'
_ESCAPES = 'in a password / is written %2F, ? is %3F, # is %23 and @ is %40'
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class NodeError(SourceError):
    """The node answered with an error. Context: method, code, and the node's own reason and data."""


class TooMuchError(NodeError):
    """The node did not take so many calls at once, or was too slow with them: fewer may do."""


class _BusyError(Exception):
    """The node asks for a pause of so many seconds; None when it does not say how long."""

    def __init__(self, told: str, seconds: float | None = None) -> None:
        super().__init__(told)
        self.seconds = seconds


class Pace:
    """At most `calls_per_second` (None: no limit), and none at all during a pause; shared by threads."""

    def __init__(self, calls_per_second: float | None = None) -> None:
        if calls_per_second is not None and not calls_per_second > 0:
            raise ConfigError(f'calls_per_second is more than 0, not {calls_per_second}')
        self._seconds_each = 1 / calls_per_second if calls_per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def delay(self, calls: int) -> float:
        """Take the place of so many calls; the seconds until they may be made."""
        with self._lock:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + calls * self._seconds_each
            return start - now

    def pause(self, seconds: float) -> None:
        """No calls for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class EvmNode:
    """A node at an `http://` or `https://` URL, for any number of threads. `timeout` is in seconds, for each exchange.

    `url` is the URL without its user and password, which go into a header of each request; `shown` leaves out the path too, which is a key at some
    providers. A node that is busy (HTTP 429, 503 and the like) is asked again a few times, after the pause that it names.
    """

    def __init__(self, url: str, *, timeout: float = 30, calls_per_second: float | None = None) -> None:
        self.url, self.shown, self._headers = _parts(url)
        self._timeout = timeout
        self._ids = itertools.count(1)
        self._pace = Pace(calls_per_second)
        self._closed = threading.Event()

    def close(self) -> None:
        """Let nobody wait for the node any more."""
        self._closed.set()

    def reopen(self) -> None:
        """Be patient again."""
        self._closed.clear()

    def call(self, method: str, *params: object) -> Any:
        """The result of one call. Raises ConnectError when the node does not answer, NodeError when it refuses."""
        return self.batch([(method, params)])[0]

    def batch(self, calls: Sequence[Call]) -> list[Any]:
        """The results of several calls in one exchange, in the order of the calls."""
        if not calls:
            return []
        ids = [next(self._ids) for _ in calls]
        requests = [
            {'jsonrpc': '2.0', 'id': id_, 'method': method, 'params': list(params)}
            for id_, (method, params) in zip(ids, calls, strict=True)
        ]
        # Not every node takes batches: one call is sent as one.
        answer = self._patiently(requests[0] if len(requests) == 1 else requests, len(requests))
        if len(requests) > 1 and isinstance(answer, dict) and 'error' in answer:
            raise TooMuchError(str(self._refused(calls[0][0], answer['error'])))
        answers = [answer] if isinstance(answer, dict) else answer
        if not isinstance(answers, list) or not all(isinstance(item, dict) for item in answers):
            raise NodeError(f'the node {self.shown} answered with something that is not JSON-RPC')
        by_id = {item['id']: item for item in answers if isinstance(item.get('id'), int)}
        results = []
        for id_, (method, _) in zip(ids, calls, strict=True):
            item = by_id.get(id_, {'error': {'message': 'no answer'}})
            if 'error' in item:
                raise self._refused(method, item['error'])
            results.append(item.get('result'))
        return results

    def _patiently(self, body: object, calls: int) -> Any:
        """The answer to a request, after as many pauses as the node asks for."""
        told = ''
        for attempt in range(_TRIES):
            if self._closed.wait(self._pace.delay(calls)):
                raise ConnectError(f'the node {self.shown} is not asked any more')
            try:
                return _not_busy(self._post(body, calls))
            except _BusyError as busy:
                told = str(busy)
                pause = _SHORTEST_PAUSE * 2**attempt if busy.seconds is None else busy.seconds
                self._pace.pause(min(pause, _LONGEST_PAUSE))
        raise ConnectError(
            f'the node {self.shown} is busy: {told}, {_TRIES} times in a row',
            hint='calls_per_second makes it slower, and another node may allow more',
        )

    def _post(self, body: object, calls: int) -> Any:
        request = urllib.request.Request(  # noqa: S310  # the scheme was checked
            self.url, json.dumps(body).encode(), {'Content-Type': 'application/json'}
        )
        for name, value in self._headers.items():
            # Not for another server that this one names.
            request.add_unredirected_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                self._raise_status(error.code, error.headers.get('Retry-After'), calls)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                text = f'the node {self.shown} has not answered within {self._timeout:g} s'
                raise (TooMuchError(text) if calls > 1 else ConnectError(text)) from error
            raise ConnectError(
                f'the node {self.shown} does not answer: {reason}', hint='is it running, and is the URL right?'
            ) from error

    def _raise_status(self, status: int, retry_after: str | None, calls: int) -> NoReturn:
        if status in _BUSY:
            named = retry_after is not None and retry_after.isdecimal()
            raise _BusyError(f'HTTP {status}', float(retry_after or 0) if named else None)
        text = f'the node {self.shown} answered HTTP {status}'
        raise TooMuchError(text) if status == _TOO_LARGE and calls > 1 else ConnectError(text)

    def _refused(self, method: str, error: Any) -> NodeError:
        told = error if isinstance(error, dict) else {'message': str(error)}
        text = f'the node {self.shown} refuses {method}: {told.get("message")}'
        return NodeError(text, method=method, code=told.get('code'), reason=told.get('message'), data=told.get('data'))


def _parts(url: str) -> tuple[str, str, dict[str, str]]:
    """The URL without its user, the URL as it may be shown, and the headers that say who asks. Raises ConfigError."""
    if not url.isprintable() or ' ' in url:
        raise ConfigError('the URL of the node has spaces or invisible characters', hint=_EXAMPLE)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError('the URL of the node cannot be read: its host or port is none', hint=_ESCAPES) from None
    if parts.scheme not in {'http', 'https'} or not host:
        raise ConfigError('that is not the URL of a node: it is http:// or https:// and a host', hint=_EXAMPLE)
    user, at, place = parts.netloc.rpartition('@')
    if not at and '@' in url:
        # The password ended the host: what follows must not be taken for a path.
        raise ConfigError('the URL of the node has an @ behind its host', hint=_ESCAPES)
    headers = {}
    if at:
        name, _, password = user.partition(':')
        pair = unquote_to_bytes(name) + b':' + unquote_to_bytes(password)
        headers['Authorization'] = f'Basic {base64.b64encode(pair).decode()}'
    plain = urlunsplit((parts.scheme, place, parts.path, parts.query, ''))
    return plain, f'{parts.scheme}://{f"[{host}]" if ":" in host else host}{f":{port}" if port else ""}', headers


def _not_busy(answer: Any) -> Any:
    """The answer, unless it says in its own words that it comes too soon."""
    for item in answer if isinstance(answer, list) else [answer]:
        error = item.get('error') if isinstance(item, dict) else None
        if isinstance(error, dict) and error.get('code') in _BUSY_CODES:
            raise _BusyError(str(error.get('message')))
    return answer
