"""Connection tracking entries as ctnetlink messages: requests, and parsing of dumps. No I/O.

Source: the kernel's include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h,
net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Final

from felix_py.netlink.wire import AF, attr, message, nested
from felix_py.records import Flow
from policy.model import Family, Protocol

_CTNETLINK: Final = 1 << 8
IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = _CTNETLINK | 1, _CTNETLINK | 2

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _TIMEOUT, _ID, _TUPLE_MASTER, _ZONE, _FILTER = 1, 2, 3, 7, 12, 14, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT = 1, 2
_NLA_TYPE_MASK = 0x3FFF
_IPS_SEEN_REPLY, _IPS_ASSURED = 1 << 1, 1 << 2

_FAMILIES = {int(number): family for family, number in AF.items()}
_IP_ATTRS = {Family.V4: (1, 2), Family.V6: (3, 4)}
"""CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST."""
_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}

_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_BE32 = struct.Struct(">I")
_BE16 = struct.Struct(">H")

_GENMSG = 4
"""Bytes of struct nfgenmsg, before the attributes."""
_TUPLE_HEAD: dict[int, tuple[bytes, int]] = {
    AF[family]: (nested(_TUPLE_IP, bytes(size * 2 + 8))[:4] + attr(_IP_ATTRS[family][0], bytes(size))[:4], size)
    for family, size in ((Family.V4, 4), (Family.V6, 16))
}
"""By address family: the bytes of a tuple before its source address, and an address's size in bytes."""


class End(enum.Enum):
    """One of an entry's four addresses: in the original direction or in the reply direction.

    The value is the tuple's attribute and the flag in CTA_FILTER_ORIG_FLAGS or CTA_FILTER_REPLY_FLAGS.
    """

    SOURCE = (_TUPLE_ORIG, 1)
    DESTINATION = (_TUPLE_ORIG, 2)
    REPLY_SOURCE = (_TUPLE_REPLY, 1)
    REPLY_DESTINATION = (_TUPLE_REPLY, 2)


POLICY_ENDS = (End.SOURCE, End.REPLY_SOURCE)
"""The addresses that policy judges: the connection's source, and its destination behind DNAT."""


def packed(address: str) -> tuple[Family, bytes]:
    """Family and packed form of an address.

    Raises:
        ValueError: not an address.
    """
    family = Family.V6 if ":" in address else Family.V4
    try:
        return family, socket.inet_pton(AF[family], address)
    except OSError:
        raise ValueError(f"{address!r} is not an address") from None


def dump(family: Family | None) -> bytes:
    """IPCTNL_MSG_CT_GET for all entries of a family; None: of both."""
    return message(IPCTNL_MSG_CT_GET, 0, _genmsg(family))


def filtered_dump(family: Family, end: End, address: bytes) -> bytes:
    """IPCTNL_MSG_CT_GET for the entries with an address at one end; kernels before 5.8 ignore the filter.

    Not for IPv6: up to 6.18 at least, the kernel compares IPv6 addresses the wrong way round and leaves out just
    the entries that were asked for (ctnetlink_filter_match_tuple).
    """
    kind, flag = end.value
    wanted = nested(kind, nested(_TUPLE_IP, attr(_IP_ATTRS[family][flag - 1], address)))
    flags = nested(_FILTER, attr(kind, _U32.pack(flag)))
    return message(IPCTNL_MSG_CT_GET, 0, _genmsg(family) + wanted + flags)


def delete(flow: Flow) -> bytes:
    """IPCTNL_MSG_CT_DELETE of this entry only, not of a later one with the same addresses and ports."""
    return message(IPCTNL_MSG_CT_DELETE, 0, flow.entry)


def _genmsg(family: Family | None) -> bytes:
    return struct.pack("BBH", AF[family] if family else socket.AF_UNSPEC, 0, 0)


def concerned(wanted: Mapping[Family, Collection[bytes]], ends: Collection[End]) -> Callable[[bytes], bool]:
    """Returns a test whether an entry of a dump has one of the addresses at one of the ends.

    The test raises:
        ValueError: the entry has no addresses.
    """
    by_number = {int(AF[family]): addresses for family, addresses in wanted.items()}
    anywhere = not set(ends) <= set(POLICY_ENDS)

    def test(entry: bytes) -> bool:
        addresses = by_number.get(entry[0])
        if not addresses:
            return False
        # The kernel puts the fields at fixed offsets; with 100,000 entries, comparing there is worth it.
        head, size = _TUPLE_HEAD[entry[0]]
        reply = entry[4] | entry[5] << 8
        if entry[8:16] != head or entry[8 + reply : 16 + reply] != head:
            return any(_address(entry, end) in addresses for end in ends)
        if entry[16 : 16 + size] in addresses or entry[16 + reply : 16 + reply + size] in addresses:
            return True
        if not anywhere:
            return False
        second = 20 + size
        other = second + reply
        return entry[second : second + size] in addresses or entry[other : other + size] in addresses

    return test


def addresses(entry: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """The four addresses of a dump's entry: source and destination, of the original and of the reply direction.

    Raises:
        ValueError: the entry has no addresses.
    """
    head, size = _TUPLE_HEAD[entry[0]]
    reply = entry[4] | entry[5] << 8
    if entry[8:16] != head or entry[8 + reply : 16 + reply] != head:
        source, destination, answering, asked = (_address(entry, end) for end in End)
        return source, destination, answering, asked
    second = 20 + size
    return (
        entry[16 : 16 + size],
        entry[second : second + size],
        entry[16 + reply : 16 + reply + size],
        entry[second + reply : second + reply + size],
    )


def _address(entry: bytes, end: End) -> bytes:
    kind, flag = end.value
    source, destination, _, _ = _tuple(entry, _attributes(entry, _GENMSG, len(entry)).get(kind))
    return source if flag == 1 else destination


def read(entry: bytes) -> Flow:
    """The entry of a dump.

    Raises:
        ValueError: the entry has no addresses.
    """
    found = _attributes(entry, _GENMSG, len(entry))
    original = found.get(_TUPLE_ORIG)
    source, _, number, _ = _tuple(entry, original)
    destination, _, _, port = _tuple(entry, found.get(_TUPLE_REPLY))
    protocol = _PROTOCOLS.get(number)
    status = _number(entry, found.get(_STATUS))
    return Flow(
        socket.inet_ntop(entry[0], source),
        socket.inet_ntop(entry[0], destination),
        protocol,
        port if protocol else 0,
        bool(status & _IPS_SEEN_REPLY),
        bool(status & _IPS_ASSURED),
        _number(entry, found.get(_TIMEOUT)),
        entry[:_GENMSG] + b"".join([_copy(entry, found.get(kind)) for kind in (_TUPLE_ORIG, _ZONE, _ID)]),
        _slice(entry, original),
        _slice(entry, found.get(_TUPLE_MASTER)),
    )


_Place = tuple[int, int]
"""Start and end offset of an attribute's payload."""


def _attributes(data: bytes, start: int, end: int) -> dict[int, _Place]:
    found: dict[int, _Place] = {}
    unpack = _ATTR.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = (start + 4, start + length)
        start += (length + 3) & ~3
    return found


_Tuple = tuple[bytes, bytes, int, int]
"""Source, destination, IP protocol number, source port (0 for a protocol that policy does not know)."""


def _tuple(entry: bytes, place: _Place | None) -> _Tuple:
    """Parses a tuple by fixed offsets if it has the layout that kernels have always used."""
    start = place[0] if place else 0
    head, size = _TUPLE_HEAD[entry[0]]
    if entry[start : start + 8] != head:
        return _any_tuple(entry, place)
    second, transport = start + 12 + size, start + 12 + 2 * size
    number = entry[transport + 8]
    port = _BE16.unpack_from(entry, transport + 16)[0] if number in _PROTOCOLS else 0
    return entry[start + 8 : start + 8 + size], entry[second : second + size], number, port


def _any_tuple(entry: bytes, place: _Place | None) -> _Tuple:
    parts = _attributes(entry, *place) if place else {}
    ip = _attributes(entry, *parts.get(_TUPLE_IP, (0, 0)))
    source, destination = (_slice(entry, ip.get(kind)) for kind in _IP_ATTRS[_FAMILIES[entry[0]]])
    if not source or not destination:
        raise ValueError(f"a connection tracking entry without addresses: {entry.hex()}")
    proto = _attributes(entry, *parts.get(_TUPLE_PROTO, (0, 0)))
    number = _slice(entry, proto.get(_PROTO_NUM))[:1]
    port = _slice(entry, proto.get(_PROTO_SRC_PORT))
    return source, destination, int.from_bytes(number), int.from_bytes(port)


def _slice(entry: bytes, place: _Place | None) -> bytes:
    return entry[place[0] : place[1]] if place else b""


def _number(entry: bytes, place: _Place | None) -> int:
    return _BE32.unpack_from(entry, place[0])[0] if place else 0


def _copy(entry: bytes, place: _Place | None) -> bytes:
    """An attribute with header and padding, to be sent back to the kernel unchanged."""
    return entry[place[0] - 4 : (place[1] + 3) & ~3] if place else b""
