"""A BFD session with the socket that its packets leave by, and the sockets that packets come by."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import sys

from bgp.bfd import packet
from bgp.bfd.session import Session
from bgp.bfd.settings import TTL, Report, Wanted
from bgp.prefixes import is_link_local

PORT, MULTIHOP_PORT = 3784, 4784  # RFC 5881, 4 and RFC 5883, 5

_SOURCE_PORTS = range(49152, 65536)  # RFC 5881, 4
_TRIES = 64
_IP_RECVTTL = 12  # ip(7); Python has no name for it
_NETWORK_CONTROL = 0xC0  # class selector 6, as the BFD of routers
_RETRY = 1.0
_PACKET_MOST = 256
_ANOTHER_SOCKET = (errno.EINVAL, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL)
"""Errors of a socket that is bound to an address or an interface that is gone, or is another one by now."""

_NEVER = float("inf")

Sender = tuple[str, str]
"""Address and, if that is link-local, interface."""


class Link:
    """One session and the socket that its packets leave by, with a source port of its own (RFC 5881, 4)."""

    def __init__(self, wanted: Wanted, discriminator: int, now: float) -> None:
        self.wanted = wanted
        self.session = Session(wanted.timers, discriminator, now, random.random, announce=True)
        self.scheduled = _NEVER
        """When this is to be looked at next; another time in the heap is out of date."""
        self._told: object = None
        self._socket: socket.socket | None = None
        self._open_at = now

    def send(self, packets: list[packet.Packet], now: float) -> str:
        """Send; returns why there is no socket to send by, if that is news."""
        if self._socket is None:
            if now < self._open_at:
                return ""
            try:
                self._socket = _sending(self.wanted)
            except OSError as error:
                self._open_at = now + _RETRY
                return f"cannot send from {self.wanted.source}: {error}"
        port = MULTIHOP_PORT if self.wanted.multihop else PORT
        try:
            for one in packets:
                self._socket.sendto(packet.encode(one), _address(self.wanted.peer, port, self.wanted.interface))
        except OSError as error:
            # Without a route, say: for the peer it is the same as a lost packet.
            if error.errno in _ANOTHER_SOCKET:
                self.close()
        return ""

    def close(self) -> None:
        """Give the port back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def news(self, now: float) -> Report | None:
        """A report if anything but time has changed since the last one."""
        session = self.session
        state = (
            session.path,
            session.state,
            session.remote_state,
            session.diagnostic,
            session.remote_diagnostic,
            session.remote_independent,
            session.transmit_interval,
            session.detection_time,
        )
        if state == self._told:
            return None
        self._told = state
        return self.report(now)

    def report(self, now: float) -> Report:
        """What the agent is told."""
        session = self.session
        return Report(
            peer=self.wanted.peer,
            interface=self.wanted.interface,
            path=session.path,
            age=now - session.since,
            state=session.state.name,
            remote_state=session.remote_state.name,
            diagnostic=session.diagnostic,
            remote_diagnostic=session.remote_diagnostic,
            independent=session.remote_independent,
            transmit_interval=session.transmit_interval,
            detection_time=session.detection_time,
        )


def _sending(wanted: Wanted) -> socket.socket:
    """A socket bound to the session's address and a port in the range for it. Raises OSError."""
    family = family_of(wanted.peer)
    new = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, TTL)
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _NETWORK_CONTROL)
        else:
            new.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
            new.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _NETWORK_CONTROL)
        _bind(new, wanted)
    except OSError:
        new.close()
        raise
    return new


def _bind(new: socket.socket, wanted: Wanted) -> None:
    for left in reversed(range(_TRIES)):
        try:
            new.bind(_address(wanted.source, random.choice(_SOURCE_PORTS), wanted.interface))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not left:
                raise
        else:
            return


def receiving(family: int, multihop: bool) -> socket.socket:
    """A socket for all packets of one kind, which tells each one's TTL or hop limit. Raises OSError."""
    new = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        else:
            new.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        new.bind(("", MULTIHOP_PORT if multihop else PORT))
    except OSError:
        new.close()
        raise
    return new


def receive(incoming: socket.socket) -> tuple[bytes, Sender, int] | None:
    """The next packet, who sent it and the TTL that it came with; None if there is none."""
    try:
        data, ancillary, _, sender = incoming.recvmsg(_PACKET_MOST, 64)
    except OSError:
        return None
    ttl = int.from_bytes(ancillary[0][2], sys.byteorder) if ancillary else 0
    interface = ""
    if len(sender) == 4 and is_link_local(sender[0]):
        with contextlib.suppress(OSError):
            interface = socket.if_indextoname(sender[3])
    return data, (sender[0], interface), ttl


def family_of(address: str) -> int:
    """The address family of a socket."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _address(address: str, port: int, interface: str) -> tuple[str, int] | tuple[str, int, int, int]:
    """Raises OSError for an interface that is not there."""
    if ":" not in address:
        return address, port
    return address, port, 0, socket.if_nametoindex(interface) if interface else 0
