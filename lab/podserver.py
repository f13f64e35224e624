"""The program that runs in the lab's pods: it says who it is, then repeats what it is told.

TCP: an HTTP request is answered with who answers, at which address, and who asked. To anything else it says its
name and a newline, then comes an echo; somebody who says nothing gets the name after a second. UDP: each datagram
is answered with the name, a newline and the datagram. All pods' servers live in one process: a socket belongs to
the network namespace in which it was made.
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from lab.namespaces import inside
from policy.model import Family

Port = tuple[str, int]
"""("TCP" or "UDP", port number)."""

_ANY = {Family.V4: "0.0.0.0", Family.V6: "::"}
_SILENCE = 1.0
"""Seconds after which a client that says nothing is no HTTP client."""

_REQUEST = re.compile(rb"([A-Z]{3,10}) (\S+) HTTP/1\.[01]\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_MOST_HEAD = 1 << 16
_LINGER = 2.0


class _State(enum.Enum):
    LISTENING = enum.auto()
    ECHOING = enum.auto()
    ANSWERED = enum.auto()


class PodServer:
    """Answers as ``name`` on all ``ports`` of a network namespace, at the given addresses or at all of them."""

    def __init__(
        self,
        name: str,
        netns: Path,
        ports: Sequence[Port],
        families: Sequence[Family],
        addresses: Sequence[str] = (),
        who: Callable[[str], str] = str,
    ) -> None:
        """``who`` has a name for the address of somebody who asks."""
        self.name = name
        self.who = who
        self.greeting = f"{name}\n".encode()
        self.connections: set[asyncio.Transport] = set()
        self._netns = netns
        self._ports = ports
        self._addresses = addresses or [_ANY[family] for family in families]
        self._servers: list[asyncio.Server] = []
        self._endpoints: list[asyncio.DatagramTransport] = []

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the namespace is gone, or a port is taken (pods on the host network share one).
        """
        loop = asyncio.get_running_loop()
        for opened in await asyncio.to_thread(self._open):
            if opened.type == socket.SOCK_STREAM:
                self._servers.append(await loop.create_server(lambda: _Connection(self), sock=opened))
            else:
                endpoint, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self.greeting), sock=opened)
                self._endpoints.append(endpoint)

    async def stop(self) -> None:
        """Close everything, connections too."""
        for server in self._servers:
            server.close()
        for endpoint in self._endpoints:
            endpoint.close()
        for connection in list(self.connections):
            connection.close()

    def _open(self) -> list[socket.socket]:
        opened: list[socket.socket] = []
        try:
            with inside(self._netns):
                for protocol, port in self._ports:
                    opened += [_listen(protocol, address, port) for address in self._addresses]
        except OSError:
            for one in opened:
                one.close()
            raise
        return opened


class _Connection(asyncio.Protocol):
    """One TCP connection: HTTP, if the client's first words are a request; else name and echo."""

    def __init__(self, server: PodServer) -> None:
        self._server = server
        self._said = b""
        self._state = _State.LISTENING
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self._transport)
        self._timer = asyncio.get_running_loop().call_later(_SILENCE, self._greet)

    def data_received(self, data: bytes) -> None:
        match self._state:
            case _State.ECHOING:
                self._transport.write(data)
            case _State.LISTENING:
                self._said += data
                if _REQUEST.match(self._said):
                    if _HEAD_END.search(self._said) or len(self._said) > _MOST_HEAD:
                        self._answer()
                elif b"\n" in self._said or not self._said[:1].isupper() or len(self._said) > _MOST_HEAD:
                    self._greet()

    def eof_received(self) -> None:
        if self._state is _State.LISTENING:
            self._greet()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self._transport)
        self._stop_timer()

    def _greet(self) -> None:
        """The name, and what was said so far; from now on an echo."""
        self._stop_timer()
        self._state = _State.ECHOING
        self._transport.write(self._server.greeting + self._said)

    def _answer(self) -> None:
        """One request a connection. What still comes is read, or closing would reset it (RFC 9112, 9.6)."""
        self._stop_timer()
        self._state = _State.ANSWERED
        request = _REQUEST.match(self._said)
        assert request is not None
        own, peer = (self._transport.get_extra_info(which) for which in ("sockname", "peername"))
        method, path = (part.decode(errors="replace") for part in request.groups())
        asker = f"{self._server.who(peer[0])} from {_place(*peer[:2])}"
        body = f"{self._server.name} answers at {_place(*own[:2])}, asked by {asker}: {method} {path}\n".encode()
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/plain; charset=utf-8", f"Content-Length: {len(body)}"]
        self._transport.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        if method != "HEAD":
            self._transport.write(body)
        self._transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(_LINGER, self._transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, greeting: bytes) -> None:
        self._greeting = greeting
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # the loop's own class is no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(self._greeting + data, addr)


def _listen(protocol: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen(128)
    except OSError:
        made.close()
        raise
    return made
