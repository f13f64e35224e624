"""Packets that no kernel would send for a pod: written byte by byte, sent and heard by packet sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator

from felix_py.layout import HOST_MAC
from tests.support.isolate import NetworkNamespace

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6, _ETH_P_ALL = 0x0800, 0x0806, 0x86DD, 0x0003
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
SOLICIT_ROUTER, SOLICIT, ADVERTISE = 133, 135, 136

_PATIENCE = 10.0
"""Seconds for a packet to cross the node; what decides is the packet that was sent last."""


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!IxxxB", length, protocol)


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def udp(source: str, destination: str, port: int, data: bytes = b"forged", source_port: int = 4000) -> bytes:
    """A UDP datagram with its checksum."""
    length = 8 + len(data)
    blank = struct.pack("!HHHH", source_port, port, length, 0) + data
    found = checksum(_pseudo(packed(source), packed(destination), UDP, length) + blank) or 0xFFFF
    return blank[:6] + struct.pack("!H", found) + blank[8:]


def icmp(kind: int, code: int, body: bytes) -> bytes:
    """An ICMP message (RFC 792); ``body`` is what comes behind its checksum."""
    return struct.pack("!BBH", kind, code, checksum(struct.pack("!BBH", kind, code, 0) + body)) + body


def icmpv6(source: str, destination: str, kind: int, body: bytes, code: int = 0) -> bytes:
    """An ICMPv6 message (RFC 4443); ``body`` is what comes behind its checksum."""
    blank = struct.pack("!BBH", kind, code, 0) + body
    found = checksum(_pseudo(packed(source), packed(destination), ICMPV6, len(blank)) + blank)
    return blank[:2] + struct.pack("!H", found) + blank[4:]


def neighbour_discovery(kind: int, source: str, destination: str, target: str = "", data: bytes = b"") -> bytes:
    """A solicitation or advertisement with a link-layer address (RFC 4861, section 4), and any payload behind."""
    option = struct.pack("!BB", 2 if kind == ADVERTISE else 1, 1) + b"\x02\x00\x00\x00\x00\x07"
    if kind == SOLICIT_ROUTER:
        body = b"\0" * 4
    else:
        body = struct.pack("!I", 0x60000000 if kind == ADVERTISE else 0) + packed(target or destination)
    return icmpv6(source, destination, kind, body + option + data)


def ipv6(
    source: str, destination: str, payload: bytes, header: int = ICMPV6, hop_limit: int = 255, extra: bytes = b""
) -> bytes:
    """``extra``: extension headers; ``header`` is then the type of the first of them."""
    length = len(extra) + len(payload)
    return (
        struct.pack("!IHBB", 6 << 28, length, header, hop_limit)
        + packed(source)
        + packed(destination)
        + extra
        + payload
    )


def ipv4(
    source: str, destination: str, payload: bytes, protocol: int = UDP, *, fragment: int = 0, ident: int = 1
) -> bytes:
    """``fragment``: the header's word of flags and offset."""
    blank = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol, 0)
    blank += packed(source) + packed(destination)
    return blank[:10] + struct.pack("!H", checksum(blank)) + blank[12:] + payload


def options(next_header: int, data: bytes = b"") -> bytes:
    """A header of options (hop-by-hop, destination) with one that is to be skipped if unknown."""
    padding = -(len(data) + 4) % 8
    body = struct.pack("!BB", 0x1E, len(data) + padding) + data + b"\0" * padding
    return struct.pack("!BB", next_header, (len(body) + 2) // 8 - 1) + body


def fragment_header(next_header: int, offset: int, *, more: bool, ident: int = 7) -> bytes:
    """``offset`` in bytes, a multiple of 8."""
    return struct.pack("!BBHI", next_header, 0, offset | more, ident)


class Wire:
    """A packet socket on one interface of a namespace: sends whole packets to the host end, hears all."""

    def __init__(self, place: NetworkNamespace, interface: str = "eth0", towards: str = HOST_MAC) -> None:
        with place.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self._socket.bind((interface, 0))
        self._socket.settimeout(_PATIENCE)
        self._head = bytes.fromhex(towards.replace(":", "")) + self._socket.getsockname()[4]

    def send(self, packet: bytes, kind: int = 0) -> None:
        kind = kind or (ETH_P_IPV6 if packet[0] >> 4 == 6 else ETH_P_IP)
        self._socket.send(self._head + struct.pack("!H", kind) + packet)

    def until(self, last: bytes) -> list[bytes]:
        """The IP packets that came, up to and without the one that holds ``last``."""
        found: list[bytes] = []
        while True:
            data, (_, kind, direction, *_) = self._socket.recvfrom(1 << 16)
            if direction == socket.PACKET_OUTGOING or kind not in (ETH_P_IP, ETH_P_IPV6):
                continue
            if last in data:
                return found
            found.append(data[14:])

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def wires(*wires: Wire) -> Iterator[None]:
    """Close them all at the end."""
    try:
        yield
    finally:
        for wire in wires:
            wire.close()
