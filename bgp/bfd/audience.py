"""Those who are told of BFD sessions, by a Unix socket: a line of each at first, and then one a change."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterable

from bgp.bridge import LOOK, listen

_CLIENTS_MOST = 8
_UNREAD_MOST = 1024 * 1024
_CHUNK = 65536


class Audience:
    """The socket and who is connected. Nobody is waited for: whoever does not read is disconnected."""

    def __init__(self, path: str) -> None:
        """Raises OSError if there can be no socket at ``path``."""
        self._path = path
        self._listener = listen(path)
        self.look_at = 0.0
        """When :meth:`look` is due, in seconds of the monotonic clock."""
        self._unread: dict[socket.socket, bytearray] = {}

    def look(self, now: float) -> str:
        """Listen anew where somebody has removed the socket; returns why that is not possible, or empty."""
        self.look_at = now + LOOK
        if os.path.lexists(self._path):  # one that is not ours is of the next process
            return ""
        try:
            listener = listen(self._path)
        except OSError as error:
            return f"cannot listen on {self._path}: {error}"
        self._listener.close()
        self._listener = listener
        return ""

    def register(self, poll: select.poll) -> None:
        """Have ``poll`` wait for what :meth:`serve` can do something about."""
        poll.register(self._listener, select.POLLIN)
        for client, unread in self._unread.items():
            poll.register(client, select.POLLIN | (select.POLLOUT if unread else 0))

    def serve(self, ready: set[int], everything: Callable[[], Iterable[bytes]]) -> None:
        """Handle the descriptors that are ready; whoever is new is sent the lines of ``everything``."""
        for client in [client for client in self._unread if client.fileno() in ready]:
            self._serve(client)
        if self._listener.fileno() in ready:
            self._accept(everything)

    def tell(self, line: bytes) -> None:
        """Send a line to everybody."""
        for client in list(self._unread):
            self._unread[client] += line
            self._write(client)

    def _accept(self, everything: Callable[[], Iterable[bytes]]) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._unread) >= _CLIENTS_MOST:
            client.close()
            return
        client.setblocking(False)
        self._unread[client] = bytearray(b"".join(everything()))
        self._write(client)

    def _serve(self, client: socket.socket) -> None:
        try:
            client.recv(_CHUNK)
        except BlockingIOError:
            self._write(client)
        except OSError:
            self._drop(client)
        else:
            self._drop(client)  # it has left, or says what nobody asked for

    def _write(self, client: socket.socket) -> None:
        unread = self._unread[client]
        try:
            del unread[: client.send(unread)]
        except BlockingIOError:
            if len(unread) > _UNREAD_MOST:
                self._drop(client)
        except OSError:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        del self._unread[client]
        client.close()
