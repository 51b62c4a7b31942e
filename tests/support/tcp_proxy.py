"""A TCP proxy that breaks connections at moments that matter: after so many bytes, instead of a reply, by a schedule.

What it can do, and counts in `done`: `cut` (the connection ends as if the peer had closed it), `reset` (it ends with RST),
`stall` (it stays open and nothing passes), `lost reply`, `answered` (an HTTP status instead of the server's answer),
`refused`, and `drip`. Bytes are counted over all connections, in the direction `sent` (to the server) or `received`.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

__all__ = ['Direction', 'Kind', 'TcpProxy', 'schedule']

Kind = Literal['cut', 'reset', 'stall']
Direction = Literal['sent', 'received']

_REQUEST = re.compile(rb'(GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.[01]\r\n')
_LENGTH = re.compile(rb'\r\ncontent-length: *(\d+)', re.IGNORECASE)
_CHUNKED = re.compile(rb'\r\ntransfer-encoding: *chunked', re.IGNORECASE)
_RST = struct.pack('ii', 1, 0)


@dataclass
class _Armed:
    kind: Kind
    direction: Direction
    left: int
    seconds: float | None = None
    fired: Callable[[], None] | None = None


@dataclass
class _Answer:
    status: int
    times: int
    to: bytes
    retry_after: int | None


class TcpProxy:
    """Stands before `host:port` on a port of this machine. Everything passes until a test says otherwise.

    A `host` that is a path is a Unix socket; then `port` means nothing. `listen` is the address of the proxy itself.
    """

    def __init__(self, host: str, port: int, *, listen: str = '127.0.0.1') -> None:
        self.address = (host, port)
        self._listener = socket.create_server((listen, 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._armed: list[_Armed] = []
        self._answers: list[_Answer] = []
        self._lose_reply_to: bytes | None = None
        self._refusing = False
        self._rate: int | None = None
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name='tcp-proxy', daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        # shutdown wakes the thread that accepts; close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal()
        self.cut()

    @property
    def cuts(self) -> int:
        """How many connections were ended by what was armed."""
        return self.done['cut'] + self.done['reset'] + self.done['lost reply']

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        with self._lock:
            self._pairs = [pair for pair in self._pairs if not pair.closed.is_set()]
            return len(self._pairs)

    # Now

    def cut(self) -> None:
        """End every connection now."""
        for pair in self._take_pairs():
            pair.close()

    def reset(self) -> None:
        """End every connection now, with RST to both ends."""
        for pair in self._take_pairs():
            pair.reset()
            self.done['reset'] += 1

    def refuse(self, refusing: bool = True) -> None:
        """Close new connections at once, as a server that is down would."""
        self._refusing = refusing

    def drip(self, bytes_per_second: int | None) -> None:
        """From now on let so many bytes a second pass on each connection and way; None is all."""
        self._rate = bytes_per_second
        self.done['drip'] += bytes_per_second is not None

    def heal(self) -> None:
        """Disarm everything; what stalls is reset."""
        with self._lock:
            self._armed.clear()
            self._answers.clear()
            self._lose_reply_to, self._rate, self._refusing = None, None, False
            stalled = [pair for pair in self._pairs if pair.stalled.is_set()]
        for pair in stalled:
            pair.reset()

    # Once, at a moment

    def cut_after(self, sent: int) -> None:
        """Cut the connection over which the next `sent` bytes of clients have gone, once."""
        self.arm('cut', 'sent', sent)

    def arm(
        self,
        kind: Kind,
        direction: Direction,
        after: int = 0,
        *,
        seconds: float | None = None,
        fired: Callable[[], None] | None = None,
    ) -> None:
        """Do this once, to the connection over which the next `after` bytes of this direction have gone.

        A stall ends with a reset after `seconds`, or with `heal`.
        """
        with self._lock:
            self._armed.append(_Armed(kind, direction, after, seconds, fired))

    def lose_reply_to(self, text: bytes) -> None:
        """Let the next message that holds `text` through, wait for the answer, throw it away and cut, once."""
        with self._lock:
            self._lose_reply_to = text

    def answer(self, status: int, *, times: int = 1, to: bytes = b'', retry_after: int | None = None) -> None:
        """Answer the next requests of HTTP whose first bytes hold `to` with a status; the server never sees them."""
        with self._lock:
            self._answers.append(_Answer(status, times, to, retry_after))

    def misbehave(self, faults: Iterator[tuple[Kind, Direction, int]], *, stall_seconds: float = 1.0) -> None:
        """Arm one fault after the other, the next when one has happened; see `schedule`."""

        def next_one() -> None:
            following = None if self._closed else next(faults, None)
            if following is not None:
                kind, direction, after = following
                self.arm(kind, direction, after, seconds=stall_seconds, fired=next_one)

        next_one()

    # Inside

    def _take_pairs(self) -> list[_Pair]:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        return [pair for pair in pairs if not pair.closed.is_set()]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                self.done['refused'] += 1
                client.close()
                continue
            try:
                server = self._dial()
            except OSError:
                client.close()
                continue
            for end in (client, server):
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server)
            with self._lock:
                self._pairs = [*(p for p in self._pairs if not p.closed.is_set()), pair]
            threading.Thread(target=self._pump, args=(pair, 'sent'), name='tcp-proxy-sent', daemon=True).start()
            threading.Thread(target=self._pump, args=(pair, 'received'), name='tcp-proxy-back', daemon=True).start()

    def _dial(self) -> socket.socket:
        host, port = self.address
        if not host.startswith('/'):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(host)
        return server

    def _pump(self, pair: _Pair, direction: Direction) -> None:
        source, sink = (pair.client, pair.server) if direction == 'sent' else (pair.server, pair.client)
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if pair.stalled.is_set():
                    pair.closed.wait()
                    return
                if direction == 'sent' and self._is_answered(pair, data):
                    break
                if direction == 'received' and pair.reply_is_lost:
                    self.done['lost reply'] += 1
                    break
                if not self._pass(pair, direction, data, sink):
                    return
        if not pair.closed.is_set():
            pair.close()

    def _pass(self, pair: _Pair, direction: Direction, data: bytes, sink: socket.socket) -> bool:
        """Hand bytes on, up to a fault that is due; False when that has ended the connection."""
        with self._lock:
            if direction == 'sent' and self._lose_reply_to is not None and self._lose_reply_to in data:
                self._lose_reply_to = None
                pair.reply_is_lost = True
            due = self._due(direction, len(data))
        self._send(sink, data if due is None else data[: due.left])
        if due is None:
            return True
        self.done[due.kind] += 1
        if due.fired is not None:
            due.fired()
        if due.kind == 'stall':
            pair.stalled.set()
            if not pair.closed.wait(due.seconds):
                self.done['stall ended here'] += 1
        if due.kind == 'cut':
            pair.close()
        else:
            pair.reset()
        return False

    def _due(self, direction: Direction, count: int) -> _Armed | None:
        for armed in self._armed:
            if armed.direction != direction:
                continue
            if armed.left <= count:
                self._armed.remove(armed)
                return armed
            armed.left -= count
        return None

    def _send(self, sink: socket.socket, data: bytes) -> None:
        rate = self._rate
        if rate is None:
            sink.sendall(data)
            return
        step = max(rate // 50, 1)
        for at in range(0, len(data), step):
            sink.sendall(data[at : at + step])
            if self._rate is not None:
                time.sleep(step / rate)

    def _is_answered(self, pair: _Pair, data: bytes) -> bool:
        """True when this was a request that got its answer here."""
        if _REQUEST.match(data) is None:
            return False
        with self._lock:
            answer = next((a for a in self._answers if a.to in data), None)
            if answer is None:
                return False
            answer.times -= 1
            if not answer.times:
                self._answers.remove(answer)
        _read_request(pair.client, data)
        retry = f'Retry-After: {answer.retry_after}\r\n' if answer.retry_after is not None else ''
        head = f'HTTP/1.1 {answer.status} Not now\r\n{retry}Content-Length: 0\r\nConnection: close\r\n\r\n'
        pair.client.sendall(head.encode())
        self.done['answered'] += 1
        return True


def schedule(
    seed: int,
    *,
    sent: int,
    received: int,
    kinds: Sequence[Kind] = ('cut', 'reset', 'stall'),
    most: int | None = None,
) -> Iterator[tuple[Kind, Direction, int]]:
    """Faults for `misbehave`, the same for the same seed: what, on which way, and after how many bytes.

    `sent` and `received` are the bytes between two faults on each way, in the mean.
    """
    chance = random.Random(seed)
    means: dict[Direction, int] = {'sent': sent, 'received': received}
    made = 0
    while most is None or made < most:
        made += 1
        direction = chance.choice(list(means))
        yield chance.choice(kinds), direction, int(chance.expovariate(1 / means[direction]))


def _read_request(client: socket.socket, data: bytes) -> None:
    """Read a request to its end: a server that answers before that may be taken for one that is gone."""
    head, _, body = data.partition(b'\r\n\r\n')
    if _CHUNKED.search(head):
        while not body.endswith(b'0\r\n\r\n'):
            more = client.recv(65_536)
            if not more:
                return
            body = body[-16:] + more
        return
    found = _LENGTH.search(head)
    left = int(found[1]) - len(body) if found else 0
    if left > 0 and b'100-continue' in head.lower():
        return
    while left > 0:
        more = client.recv(min(left, 65_536))
        if not more:
            return
        left -= len(more)


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.reply_is_lost = False
        self.stalled = threading.Event()
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def reset(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self.closed.set()
        for end in (self.client, self.server):
            # A thread that waits in recv keeps the socket open until it is woken: shutdown of the reading half wakes it.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)
            end.close()
