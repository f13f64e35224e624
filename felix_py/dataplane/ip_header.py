"""Parser of the first bytes of an IP packet. No I/O; never raises, whatever the bytes are.

Source: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 792, RFC 4443; IANA's protocol number registry.
"""

from __future__ import annotations

import ipaddress
import struct

from msgspec import Struct

from policy.model import Family

_Bytes = bytes | memoryview

_PORTS = struct.Struct(">HH")

_ICMP = {Family.V4: 1, Family.V6: 58}
_WITH_PORTS = {6: "TCP", 17: "UDP", 132: "SCTP"}
_NAMES = {**_WITH_PORTS, 1: "ICMP", 58: "ICMPv6"}

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION, 135, 139, 140})
"""IPv6 extension headers (IANA, "IPv6 Extension Header Types"); ESP's inside cannot be read."""

_MOST_EXTENSIONS = 8


class IPHeader(Struct, frozen=True):
    """The headers of a packet.

    ``source_port`` and ``port`` (destination) are None if the protocol has none, or if the packet is a later
    fragment or cut off. ``icmp`` is (type, code).
    """

    family: Family
    source: str
    destination: str
    protocol: int
    source_port: int | None = None
    port: int | None = None
    icmp: tuple[int, int] | None = None

    @property
    def protocol_name(self) -> str:
        """``TCP`` and the like; the number of a protocol without a name here."""
        return _NAMES.get(self.protocol, str(self.protocol))


def parse_ip(family: Family, data: _Bytes) -> IPHeader | None:
    """Parse a packet that may be cut off; None if not even the addresses can be read."""
    return _ipv4(data) if family is Family.V4 else _ipv6(data)


def _ipv4(data: _Bytes) -> IPHeader | None:
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    source, destination = (str(ipaddress.IPv4Address(bytes(data[at : at + 4]))) for at in (12, 16))
    length = (data[0] & 0xF) * 4
    later_fragment = int.from_bytes(data[6:8], "big") & 0x1FFF
    inside = data[length:] if length >= 20 and not later_fragment else b""
    return _transport(Family.V4, source, destination, data[9], inside)


def _ipv6(data: _Bytes) -> IPHeader | None:
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    source, destination = (str(ipaddress.IPv6Address(bytes(data[at : at + 16]))) for at in (8, 24))
    protocol, inside = data[6], data[40:]
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS or len(inside) < 8:
            break
        following, length = inside[0], (inside[1] + 1) * 8
        if protocol == _FRAGMENT:
            length = 8
            if int.from_bytes(inside[2:4], "big") >> 3:
                return _transport(Family.V6, source, destination, following, b"")
        elif protocol == _AUTHENTICATION:
            length = (inside[1] + 2) * 4
        protocol, inside = following, inside[length:]
    return _transport(Family.V6, source, destination, protocol, inside)


def _transport(family: Family, source: str, destination: str, protocol: int, inside: _Bytes) -> IPHeader:
    if protocol in _WITH_PORTS and len(inside) >= 4:
        source_port, port = _PORTS.unpack_from(inside)
        return IPHeader(family, source, destination, protocol, source_port, port)
    if protocol == _ICMP[family] and len(inside) >= 2:
        return IPHeader(family, source, destination, protocol, icmp=(inside[0], inside[1]))
    return IPHeader(family, source, destination, protocol)
