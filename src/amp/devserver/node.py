"""JSON-RPC to an EVM node: calls and batches of calls, with errors that name the node."""

from __future__ import annotations

import http.client
import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from amp.errors import ConfigError, ConnectError, SourceError, redact

__all__ = ['EvmNode', 'NodeError']

Call = tuple[str, Sequence[object]]


class NodeError(SourceError):
    """The node answered with an error. Context: method, code, and the node's own reason and data."""


class EvmNode:
    """A node at an `http://` or `https://` URL. `timeout` is in seconds, for each exchange."""

    def __init__(self, url: str, *, timeout: float = 30) -> None:
        if urlsplit(url).scheme not in {'http', 'https'}:
            raise ConfigError(f'{redact(url)!r} is not the URL of a node', hint='for example http://127.0.0.1:8545')
        self.url = url
        self._timeout = timeout
        self._ids = itertools.count(1)

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
        answer = self._post(requests)
        if isinstance(answer, dict) and 'error' in answer:
            raise self._refused(calls[0][0], answer['error'])
        if not isinstance(answer, list):
            raise NodeError(f'the node {redact(self.url)} answered a batch with something else')
        by_id = {item.get('id'): item for item in answer}
        results = []
        for id_, (method, _) in zip(ids, calls, strict=True):
            item = by_id.get(id_, {'error': {'message': 'no answer'}})
            if 'error' in item:
                raise self._refused(method, item['error'])
            results.append(item.get('result'))
        return results

    def _post(self, body: object) -> Any:
        request = urllib.request.Request(  # noqa: S310  # the scheme was checked
            self.url, json.dumps(body).encode(), {'Content-Type': 'application/json'}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise ConnectError(f'the node {redact(self.url)} answered HTTP {error.code}') from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ConnectError(
                f'the node {redact(self.url)} does not answer: {reason}', hint='is it running, and is the URL right?'
            ) from error

    def _refused(self, method: str, error: Any) -> NodeError:
        told = error if isinstance(error, dict) else {'message': str(error)}
        text = f'the node {redact(self.url)} refuses {method}: {told.get("message")}'
        return NodeError(text, method=method, code=told.get('code'), reason=told.get('message'), data=told.get('data'))
