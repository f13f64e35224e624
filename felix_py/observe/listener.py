"""The sockets of the agent's HTTP, opened before the server's modules, which take long to load."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from felix_py import log
from felix_py.cni.server import LOOK, SocketInUse, listen_at
from felix_py.config import ConfigError

BACKLOG = 32


def parse_address(text: str) -> tuple[str, int]:
    """Returns the host and port of ``ADDRESS:PORT`` or ``[IPv6]:PORT``. Raises ConfigError for other texts."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--health-address {text}: must be ADDRESS:PORT, such as 127.0.0.1:9099")
    return host, int(port)


def listen(address: str) -> socket.socket:
    """Listen; clients wait until the server is loaded. Raises ConfigError if the address cannot be used."""
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # [::] is IPv6 alone, as elsewhere in asyncio
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(place)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"--health-address {address}: {error.strerror or error}") from None
    return listener


def listen_for(group: str, path: Path) -> socket.socket:
    """Listen on a Unix socket for root and the members of a group, by name or number.

    Raises ConfigError for an unknown group, SocketInUse if another agent answers there, and OSError.
    """
    try:
        number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"--socket-group {group}: there is no such group on this host") from None
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    listener = listen_at(path, BACKLOG)
    os.chown(path, 0, number)
    os.chmod(path, 0o660)
    return listener


async def keep(
    path: Path, make: Callable[[], socket.socket], serve: Callable[[socket.socket], Awaitable[None]]
) -> None:
    """Listen anew where somebody has removed the Unix socket, until cancelled. What is there instead stays."""
    while True:
        await asyncio.sleep(LOOK)
        if os.path.lexists(path):
            continue
        try:
            await serve(make())
        except (OSError, ConfigError, SocketInUse) as error:
            reason = str(error)
            log.get("agent").error(
                "somebody has removed a socket, and it cannot be made", path=str(path), reason=reason
            )
        else:
            log.get("agent").warning("somebody has removed a socket: it is made again", path=str(path))


def remove(path: Path, inode: int) -> None:
    """Remove a Unix socket, unless it is another agent's that has started since ours stopped answering."""
    with suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()
