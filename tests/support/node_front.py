"""A front before an EVM node that misbehaves when told: busy, slow, forgetful, or pretending to be of another chain."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Change = Callable[[dict[str, Any], Any], Any]
"""Given a call and the node's answer to it: what is answered instead."""


class NodeFront:
    """Passes JSON-RPC on. `asked` counts the blocks that were asked for by number; `change` rewrites answers. `path` and
    `headers` are those of the last request.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.asked: Counter[int] = Counter()
        self.requests = 0
        self.statuses: list[tuple[int, dict[str, str]]] = []
        self.change: Change = lambda call, answer: answer
        self.delay = 0.0
        self.most_calls = 1 << 20
        self.body: bytes | None = None
        self.path = ''
        self.headers: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self._server.server_port}'

    def answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self._ended.wait(self.delay)
        calls = json.loads(body)
        calls = calls if isinstance(calls, list) else [calls]
        with self._lock:
            self.requests += 1
            if self.statuses:
                status, headers = self.statuses.pop(0)
                return status, headers, b'{}'
            if len(calls) > self.most_calls:
                return 413, {}, b'{}'
            for call in calls:
                if (
                    call['method'] == 'eth_getBlockByNumber'
                    and call['params'][0].startswith('0x')
                    and call['params'][1]
                ):
                    self.asked[int(call['params'][0], 16)] += 1
        if self.body is not None:
            return 200, {}, self.body
        request = urllib.request.Request(self.node, body, {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=60) as response:
            answers = json.load(response)
        by_id = {call['id']: call for call in calls}
        if isinstance(answers, dict):
            changed = self.change(by_id[answers['id']], answers)
        else:
            changed = [self.change(by_id[one['id']], one) for one in answers]
        return 200, {}, json.dumps(changed).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        front = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                front.path, front.headers = self.path, {key.lower(): value for key, value in self.headers.items()}
                body = self.rfile.read(int(self.headers['Content-Length']))
                status, headers, answer = front.answer(body)
                try:
                    self.send_response(status)
                    for name, value in {**headers, 'Content-Length': str(len(answer))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def log_message(self, *_: object) -> None:
                pass

        return Handler
