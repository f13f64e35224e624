"""The format of netlink messages: header, attributes, and their packing. No I/O.

Source: netlink(7), the kernel's include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Container, Iterator

from policy.model import Family

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_ATTR = struct.Struct("=HH")

AF = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}


def attr(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    length = len(payload)
    return _ATTR.pack(length + 4, kind) + payload + b"\0" * (-length & 3)


def nested(kind: int, *attrs: bytes) -> bytes:
    """An attribute that holds attributes (NLA_F_NESTED set)."""
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One request: header and ``body`` (the family's fixed header, then attributes; padded to four bytes)."""
    return HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


def messages(datagram: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and body (what follows the message header) of each message in a datagram.

    Raises:
        ValueError: a message is shorter than its header.
    """
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, _, _, _ = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size:
            raise ValueError("a netlink message that is shorter than its header")
        yield kind, datagram[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: memoryview) -> dict[int, memoryview]:
    """Attributes by type, without their flag bits; the last one of a repeated type."""
    found: dict[int, memoryview] = {}
    offset, end = 0, len(data) - 4
    while offset <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def some_attributes(data: memoryview, kinds: Container[int]) -> dict[int, memoryview]:
    """Those of :func:`attributes` that are of ``kinds``, which have no flag bits: an event of an interface has
    some fifty, of which five are of interest."""
    found: dict[int, memoryview] = {}
    offset, end, unpack = 0, len(data) - 4, _ATTR.unpack_from
    while offset <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        if kind in kinds:
            found[kind] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
