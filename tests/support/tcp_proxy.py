"""A TCP proxy that can break a connection at a moment that matters: after so many bytes, or instead of a reply."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class TcpProxy:
    """Stands before `host:port` on a port of this machine. Everything passes until a test says otherwise.

    A `host` that is a path is a Unix socket; then `port` means nothing.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._bytes_left: int | None = None
        self._lose_reply_to: bytes | None = None
        self._refusing = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name='tcp-proxy', daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # shutdown wakes the thread that accepts; close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()

    def cut_after(self, sent: int) -> None:
        """Cut the connection over which the next `sent` bytes of clients have gone, once."""
        with self._lock:
            self._bytes_left = sent

    def lose_reply_to(self, text: bytes) -> None:
        """Let the next message that holds `text` through, wait for the answer, throw it away and cut, once."""
        with self._lock:
            self._lose_reply_to = text

    def refuse(self, refusing: bool = True) -> None:
        """Close new connections at once, as a server that is down would."""
        self._refusing = refusing

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = self._dial()
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.append(pair)
            threading.Thread(target=self._to_server, args=(pair,), daemon=True).start()
            threading.Thread(target=self._to_client, args=(pair,), daemon=True).start()

    def _dial(self) -> socket.socket:
        if not self._host.startswith('/'):
            return socket.create_connection((self._host, self._port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._host)
        return server

    def _to_server(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.client.recv(65_536):
                with self._lock:
                    if self._lose_reply_to is not None and self._lose_reply_to in data:
                        self._lose_reply_to = None
                        pair.reply_is_lost = True
                    cut = self._bytes_left is not None and len(data) >= self._bytes_left
                    if cut:
                        data, self._bytes_left = data[: self._bytes_left], None
                    elif self._bytes_left is not None:
                        self._bytes_left -= len(data)
                pair.server.sendall(data)
                if cut:
                    self.cuts += 1
                    break
        pair.close()

    def _to_client(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.server.recv(65_536):
                if pair.reply_is_lost:
                    self.cuts += 1
                    break
                pair.client.sendall(data)
        pair.close()


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.reply_is_lost = False

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
