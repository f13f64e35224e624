"""A proxy in front of an API server that does what the worst of them do, as often as a test wants."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 1 << 16
_TRICKLE = 16
_PAUSE = 0.001


class Mood(StrEnum):
    """What it does to connections, also to those that there are."""

    WELL = "well"
    HANG = "hang"
    """Takes all and passes nothing on; a connection that has met this stays so for ever."""
    CUT = "cut"
    """Passes half of an answer on, and closes."""
    RESET = "reset"
    """Closes what it has accepted."""
    BAD_GATEWAY = "bad gateway"
    """Answers itself."""
    GARBAGE = "garbage"
    """Passes the head of an answer on, and other bytes than the server's behind it."""
    SLOW = "slow"
    """Passes everything on, a few bytes at a time."""


_REFUSAL = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>"


class BadProxy:
    """Speaks plain HTTP to clients, and to the server what its URL says. Use it in a ``with``.

    ``met`` counts the connections or answers that each mood has met.
    """

    def __init__(self, server: str, context: ssl.SSLContext | None) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname or "", parts.port or 443)
        self._context = context
        self._lock = threading.Lock()
        self._mood = Mood.WELL
        self._open: set[socket.socket] = set()
        self._dead: set[socket.socket] = set()
        self.met: Counter[Mood] = Counter()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._close_all()

    def become(self, mood: Mood) -> None:
        """Be so from now on."""
        with self._lock:
            self._mood = mood
            if mood is Mood.HANG:
                self._dead |= self._open
                self.met[mood] += len(self._open)
        if mood not in (Mood.WELL, Mood.HANG, Mood.SLOW):
            self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            found, self._open = self._open, set()
        for one in found:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            with self._lock:
                mood = self._mood
                self._open.add(client)
                if mood in (Mood.HANG, Mood.RESET, Mood.BAD_GATEWAY):
                    self.met[mood] += 1
                if mood is Mood.HANG:
                    self._dead.add(client)
            if mood is Mood.RESET:
                return
            if mood is Mood.BAD_GATEWAY:
                client.recv(_CHUNK)
                client.sendall(_REFUSAL)
                return
            with socket.create_connection(self._server, 30) as plain:
                plain.settimeout(None)
                with self._secure(plain) as server:
                    self._relay(client, server)
        with self._lock:
            self._open.discard(client)
            self._dead.discard(client)

    def _secure(self, plain: socket.socket) -> socket.socket:
        return self._context.wrap_socket(plain, server_hostname=self._server[0]) if self._context else plain

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Until either side has ended. By one thread: two that use one TLS connection crash the interpreter."""
        with selectors.DefaultSelector() as both:
            for one in (client, server):
                both.register(one, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in both.select()}
                if client in ready:
                    if not (data := client.recv(_CHUNK)):
                        return
                    if client not in self._dead:
                        server.sendall(data)
                if server in ready:
                    for data in _received(server):
                        if not data:
                            self._ended(client)
                            return
                        if client not in self._dead:
                            self._pass_on(data, client)

    def _ended(self, client: socket.socket) -> None:
        """The server has closed; one that hangs does not show it."""
        while client in self._dead and client.recv(_CHUNK):
            pass

    def _pass_on(self, data: bytes, client: socket.socket) -> None:
        mood = self._mood
        if mood in (Mood.CUT, Mood.GARBAGE, Mood.SLOW):
            self.met[mood] += 1
        match mood:
            case Mood.CUT:
                client.sendall(data[: len(data) // 2])
                raise ConnectionAbortedError
            case Mood.GARBAGE:
                head, end, body = data.partition(b"\r\n\r\n") if data.startswith(b"HTTP/") else (b"", b"", data)
                client.sendall(head + end + b"\xfe" * len(body))
            case Mood.SLOW:
                for start in range(0, len(data), _TRICKLE):
                    client.sendall(data[start : start + _TRICKLE])
                    threading.Event().wait(_PAUSE)
            case _:
                client.sendall(data)


def _received(server: socket.socket) -> Iterator[bytes]:
    """All that there is; empty bytes at the end. A TLS connection that is readable may have nothing for us."""
    server.settimeout(0)
    try:
        while data := server.recv(_CHUNK):
            yield data
        yield data
    except (ssl.SSLWantReadError, BlockingIOError):
        server.settimeout(None)
