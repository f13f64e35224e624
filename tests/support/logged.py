"""What the kernel sends to the reader of an NFLOG group, made up: nfnetlink_log's messages, byte for byte."""

from __future__ import annotations

import ipaddress
import struct

from felix_py.dataplane.ip_header import IPHeader
from felix_py.dataplane.nflog import LoggedPacket
from felix_py.desired.deny_log import Drop
from felix_py.netlink.wire import attr
from policy.model import Family

PACKET = 4 << 8


def datagram(*messages: bytes) -> memoryview:
    """Several messages in one datagram, as the kernel collects them."""
    return memoryview(b"".join(message + b"\0" * (-len(message) & 3) for message in messages))


def logged_message(
    prefix: str, payload: bytes, *, family: int = 2, sequence: int | None = 0, hook: int = 2, kind: int = PACKET
) -> bytes:
    """One NFULNL_MSG_PACKET."""
    body = struct.pack(">BBH", family, 0, 88)
    body += attr(1, struct.pack(">HBB", 0x0800, hook, 0))
    body += attr(10, prefix.encode() + b"\0")
    body += attr(2, struct.pack(">I", 0x30000))
    body += attr(4, struct.pack(">I", 7)) + attr(5, struct.pack(">I", 9))
    body += attr(9, payload)
    if sequence is not None:
        body += attr(12, struct.pack(">I", sequence))
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def ipv4(
    source: str, destination: str, protocol: int, inside: bytes, *, offset: int = 0, options: int = 0
) -> bytes:
    """An IPv4 packet (RFC 791); ``options`` in words of four bytes, ``offset`` of a fragment."""
    length = 20 + 4 * options
    head = struct.pack(">BBHHHBBH", 0x40 | length // 4, 0, length + len(inside), 1, offset, 64, protocol, 0)
    ends = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    return head + ends + b"\1" * 4 * options + inside


def ipv6(source: str, destination: str, protocol: int, inside: bytes) -> bytes:
    """An IPv6 packet (RFC 8200); extension headers are part of ``inside``."""
    head = struct.pack(">IHBB", 6 << 28, len(inside), protocol, 64)
    return head + ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed + inside


def ports(source: int, destination: int) -> bytes:
    """The start of a TCP, UDP or SCTP header."""
    return struct.pack(">HH", source, destination) + b"\0" * 8


def dropped(
    drop: Drop,
    source: str = "10.1.0.2",
    destination: str = "10.1.0.3",
    port: int | None = 80,
    *,
    when: float = 0.0,
    protocol: int = 6,
    indev: int = 0,
) -> LoggedPacket:
    """A packet as the reader hands it on."""
    family = Family.V6 if ":" in source else Family.V4
    header = IPHeader(family, source, destination, protocol, 40000 if port else None, port)
    return LoggedPacket(family, drop.prefix(), header, "FORWARD", indev, 0, 0, when)
