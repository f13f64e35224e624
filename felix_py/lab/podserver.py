"""The program that runs in the lab's pods: it says who it is, then repeats what it is told.

TCP: the name and a newline as soon as somebody connects, then an echo. UDP: each datagram is answered with the
name, a newline and the datagram. All pods' servers live in one process: a socket belongs to the network namespace
in which it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from felix_py.lab.namespaces import inside
from policy.model import Family

Port = tuple[str, int]
"""("TCP" or "UDP", port number)."""

_ANY = {Family.V4: "0.0.0.0", Family.V6: "::"}
_CHUNK = 1 << 16


class PodServer:
    """Answers as ``name`` on all ``ports`` of a network namespace, at the given addresses or at all of them."""

    def __init__(
        self,
        name: str,
        netns: Path,
        ports: Sequence[Port],
        families: Sequence[Family],
        addresses: Sequence[str] = (),
    ) -> None:
        self._greeting = f"{name}\n".encode()
        self._netns = netns
        self._ports = ports
        self._addresses = addresses or [_ANY[family] for family in families]
        self._servers: list[asyncio.Server] = []
        self._endpoints: list[asyncio.DatagramTransport] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the namespace is gone, or a port is taken (pods on the host network share one).
        """
        loop = asyncio.get_running_loop()
        for opened in await asyncio.to_thread(self._open):
            if opened.type == socket.SOCK_STREAM:
                self._servers.append(await asyncio.start_server(self._connected, sock=opened))
            else:
                endpoint, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self._greeting), sock=opened)
                self._endpoints.append(endpoint)

    async def stop(self) -> None:
        """Close everything, connections too."""
        for server in self._servers:
            server.close()
        for endpoint in self._endpoints:
            endpoint.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

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

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, OSError, asyncio.CancelledError):
                writer.write(self._greeting)
                while data := await reader.read(_CHUNK):
                    writer.write(data)
                    await writer.drain()
        finally:
            self._connections.discard(task)
            writer.close()


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
