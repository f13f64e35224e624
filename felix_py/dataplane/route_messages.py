"""Routes as rtnetlink messages: packing, and reading a dump back. No I/O.

Source: rtnetlink(7), the kernel's include/uapi/linux/rtnetlink.h and net/ipv4/fib_semantics.c, net/ipv6/route.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from felix_py.dataplane.netlink import attr, attributes, message
from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.records import NextHop, Route, RouteKind
from felix_py.refs import RouteRef
from policy.model import Family

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH, _TABLE = 1, 4, 5, 6, 7, 9, 15
TABLE_MAIN, TABLE_LOCAL = 254, 255
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_KINDS = {RouteKind.UNICAST: 1, RouteKind.BLACKHOLE: 6}
_ONLINK = 4
_DEAD = 1
_UNICAST = 1
_VIA = 18
_FIB_MATCH = 0x2000
_AF = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
_METRIC = {Family.V4: 0, Family.V6: 1024}
"""What the kernel makes of a route without a metric. Ours have none; others of the same prefix coexist."""

_RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBI")
_U32 = struct.Struct("=I")

PROTOCOLS = (ROUTE_PROTOCOL_PODS, ROUTE_PROTOCOL_LEARNED)
"""Those that are ours, in order of preference where two want the same destination."""

Destination = tuple[Family, bytes, int]
"""Packed network address and prefix length."""

Hop = tuple[bytes, int]
"""Packed gateway (empty: on link) and interface index (0 in a wanted route: whatever the kernel resolved)."""


class Packed(NamedTuple):
    """A route in the kernel's terms; ``hops`` sorted. IPv6 has no scopes: 0 there."""

    destination: Destination
    protocol: int
    kind: int
    scope: int
    source: bytes
    hops: tuple[Hop, ...]

    def satisfies(self, wanted: Packed) -> bool:
        """Whether the kernel's route (self) is the wanted one."""
        if (self.kind, self.scope, self.source) != (wanted.kind, wanted.scope, wanted.source):
            return False
        return self.hops == wanted.hops or (
            len(self.hops) == len(wanted.hops)
            and all(
                mine[0] == asked[0] and (not asked[1] or mine[1] == asked[1])
                for mine, asked in zip(self.hops, wanted.hops, strict=True)
            )
        )


def parse_destination(key: RouteRef) -> Destination:
    """
    Raises:
        ValueError: not a CIDR, or bits set behind the prefix.
    """
    address, _, length = key.destination.partition("/")
    family = Family.V6 if ":" in address else Family.V4
    packed = _address(family, address)
    if not length.isdecimal() or int(length) > family.bits:
        raise ValueError(f"{key.destination!r} is not a CIDR")
    if int.from_bytes(packed, "big") & ((1 << family.bits - int(length)) - 1):
        raise ValueError(f"{key.destination!r} has bits set behind its prefix")
    return family, packed, int(length)


def destination_text(destination: Destination) -> str:
    """As in a RouteRef."""
    family, packed, length = destination
    return f"{socket.inet_ntop(_AF[family], packed)}/{length}"


def pack(route: Route, destination: Destination, interface_index: Callable[[str], int]) -> Packed:
    """A wanted route in the kernel's terms; ``destination`` is its key's, parsed.

    Raises:
        ValueError: an address is none, or of the other family, or a unicast route has no next hop; and what
            ``interface_index`` raises.
    """
    family = destination[0]
    if route.kind is RouteKind.BLACKHOLE:
        return Packed(destination, route.key.protocol, _KINDS[route.kind], _SCOPE_UNIVERSE, b"", ())
    if not route.next_hops:
        raise ValueError("a unicast route without next hops")
    hops: list[Hop] = []
    for hop in route.next_hops:
        gateway = _address(family, hop.gateway) if hop.gateway else b""
        hops.append((gateway, interface_index(hop.interface) if hop.interface else 0))
    hops.sort()
    if (b"", 0) in hops:
        raise ValueError("a next hop with neither gateway nor interface")
    scope = _SCOPE_LINK if route.link_scope and family is Family.V4 else _SCOPE_UNIVERSE
    source = _address(family, route.source) if route.source else b""
    return Packed(destination, route.key.protocol, _KINDS[route.kind], scope, source, tuple(hops))


def _address(family: Family, text: str) -> bytes:
    try:
        return socket.inet_pton(_AF[family], text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IPv{int(family)} address") from None


def new(route: Packed, flags: int) -> bytes:
    """RTM_NEWROUTE. A hop with both gateway and interface is ``onlink``: the gateway is on that link, whatever
    the interface's addresses say."""
    parts = [_head(route.destination, route.protocol, route.kind, route.scope)]
    if route.source:
        parts.append(attr(_PREFSRC, route.source))
    if len(route.hops) == 1:
        gateway, index = route.hops[0]
        if gateway and index:
            parts[0] = _head(route.destination, route.protocol, route.kind, route.scope, _ONLINK)
        parts.append(_hop(gateway, index))
    elif route.hops:
        parts.append(attr(_MULTIPATH, b"".join(map(_path, route.hops))))
    return message(RTM_NEWROUTE, flags, b"".join(parts))


def delete(destination: Destination, protocol: int) -> bytes:
    """RTM_DELROUTE: the kernel deletes it only if it carries this protocol number."""
    return message(RTM_DELROUTE, 0, _head(destination, protocol, 0, _SCOPE_ANY))


def dump(family: Family, protocol: int) -> bytes:
    """RTM_GETROUTE for the main table's routes of one protocol number; the kernel filters (strict checking)."""
    head = _RTMSG.pack(_AF[family], 0, 0, 0, TABLE_MAIN, protocol, 0, 0, 0)
    return message(RTM_GETROUTE, 0, head + attr(_TABLE, _U32.pack(TABLE_MAIN)))


def dump_table(family: Family, table: int) -> bytes:
    """RTM_GETROUTE for all routes of one table."""
    head = _RTMSG.pack(_AF[family], 0, 0, 0, table & 0xFF, 0, 0, 0, 0)
    return message(RTM_GETROUTE, 0, head + attr(_TABLE, _U32.pack(table)))


def match(destination: Destination) -> bytes:
    """RTM_GETROUTE that asks which routing table entry covers a destination."""
    family, packed, _ = destination
    head = _RTMSG.pack(_AF[family], family.bits, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    return message(RTM_GETROUTE, 0, head + attr(_DST, packed))


def lookup(destination: Destination) -> bytes:
    """RTM_GETROUTE that asks by which route a packet to an address would go."""
    family, packed, length = destination
    head = _RTMSG.pack(_AF[family], length, 0, 0, 0, 0, 0, 0, 0)
    return message(RTM_GETROUTE, 0, head + attr(_DST, packed))


def looked_up(answer: memoryview) -> tuple[int, int]:
    """Of the answer to a :func:`lookup`: the route's kind (RTN_UNICAST …) and the interface's index, or 0."""
    kind = _RTMSG.unpack_from(answer)[7]
    found = attributes(answer[_RTMSG.size :])
    return kind, _U32.unpack(found[_OIF])[0] if _OIF in found else 0


def _head(destination: Destination, protocol: int, kind: int, scope: int, flags: int = 0) -> bytes:
    family, packed, length = destination
    head = _RTMSG.pack(_AF[family], length, 0, 0, TABLE_MAIN, protocol, scope, kind, flags)
    return head + attr(_DST, packed)


def _hop(gateway: bytes, index: int) -> bytes:
    return (attr(_GATEWAY, gateway) if gateway else b"") + (attr(_OIF, _U32.pack(index)) if index else b"")


def _path(hop: Hop) -> bytes:
    gateway, index = hop
    inner = attr(_GATEWAY, gateway) if gateway else b""
    return _RTNEXTHOP.pack(8 + len(inner), _ONLINK if gateway and index else 0, 0, index) + inner


def read(answer: memoryview) -> Packed | None:
    """A route of a dump; None for one with another metric than ours have."""
    number, length, _, tos, _, protocol, scope, kind, _ = _RTMSG.unpack_from(answer)
    family = Family.V4 if number == socket.AF_INET else Family.V6
    found = attributes(answer[_RTMSG.size :])
    metric = _U32.unpack(found[_PRIORITY])[0] if _PRIORITY in found else 0
    if metric != _METRIC[family] or tos:
        return None
    packed = bytes(found.get(_DST, b"")).ljust(family.bits // 8, b"\0")
    hops: list[Hop] = []
    if kind == _KINDS[RouteKind.UNICAST]:
        hops = _paths(found[_MULTIPATH]) if _MULTIPATH in found else [_read_hop(found)]
    source = bytes(found.get(_PREFSRC, b""))
    return Packed((family, packed, length), protocol, kind, scope, source, tuple(sorted(hops)))


class Connected(NamedTuple):
    """A destination that this host reaches without a gateway. ``interface``: its index."""

    destination: Destination
    metric: int
    interface: int


def protocol_of(answer: memoryview) -> int:
    """The protocol number of a route in a dump."""
    return answer[5]


def read_destination(answer: memoryview) -> tuple[Destination, bool]:
    """Of a route in a dump: its destination, and whether packets to it go anywhere (RTN_UNICAST)."""
    number, length, *_ = _RTMSG.unpack_from(answer)
    family = Family.V4 if number == socket.AF_INET else Family.V6
    packed = bytes(attributes(answer[_RTMSG.size :]).get(_DST, b"")).ljust(family.bits // 8, b"\0")
    return (family, packed, length), answer[7] == _UNICAST


def read_connected(answer: memoryview) -> list[Connected]:
    """What a route in a dump says of hosts on links: nothing if it has gateways, is dead, or leads nowhere."""
    _, _, _, tos, _, _, _, kind, flags = _RTMSG.unpack_from(answer)
    if kind != _UNICAST or flags & _DEAD or tos:
        return []
    found = attributes(answer[_RTMSG.size :])
    if _GATEWAY in found or _VIA in found:
        return []
    destination, _ = read_destination(answer)
    metric = _U32.unpack(found[_PRIORITY])[0] if _PRIORITY in found else 0
    hops = _paths(found[_MULTIPATH]) if _MULTIPATH in found else [_read_hop(found)]
    return [Connected(destination, metric, index) for gateway, index in hops if index and not gateway]


def unpack(route: Packed) -> Route | None:
    """The wanted route that the kernel's one is; None for one that we never make, or whose interface is gone.

    A gateway's interface is the kernel's business (see :data:`Hop`).
    """
    kinds = [kind for kind, number in _KINDS.items() if number == route.kind]
    family = route.destination[0]
    try:
        hops = [
            NextHop(gateway=socket.inet_ntop(_AF[family], gateway))
            if gateway
            else NextHop(interface=socket.if_indextoname(index))
            for gateway, index in route.hops
        ]
    except OSError:
        return None
    if not kinds:
        return None
    source = socket.inet_ntop(_AF[family], route.source) if route.source else ""
    key = RouteRef(destination_text(route.destination), route.protocol)
    return Route(key, kinds[0], tuple(sorted(hops, key=_text)), route.scope == _SCOPE_LINK, source)


def _text(hop: NextHop) -> tuple[str, str]:
    return hop.gateway, hop.interface


class Event(NamedTuple):
    """What an event says of a route; ``interface``: index, 0 where there are several or none; ``direct``: it has
    no gateway, or several next hops.
    """

    destination: Destination
    protocol: int
    interface: int
    direct: bool = True


def read_event(body: memoryview) -> Event:
    """An RTM_NEWROUTE or RTM_DELROUTE behind its message header.

    Raises:
        struct.error: it is too short.
    """
    number, length, _, _, _, protocol, _, _, _ = _RTMSG.unpack_from(body)
    family = Family.V4 if number == socket.AF_INET else Family.V6
    found = attributes(body[_RTMSG.size :])
    packed = bytes(found.get(_DST, b"")).ljust(family.bits // 8, b"\0")
    index = _U32.unpack(found[_OIF])[0] if _OIF in found else 0
    return Event((family, packed, length), protocol, index, _GATEWAY not in found)


def _read_hop(found: dict[int, memoryview]) -> Hop:
    index: int = _U32.unpack(found[_OIF])[0] if _OIF in found else 0
    return bytes(found.get(_GATEWAY, b"")), index


def _paths(paths: memoryview) -> list[Hop]:
    hops: list[Hop] = []
    while len(paths) >= _RTNEXTHOP.size:
        length, _, _, index = _RTNEXTHOP.unpack_from(paths)
        if length < _RTNEXTHOP.size:
            break
        gateway = attributes(paths[_RTNEXTHOP.size : length]).get(_GATEWAY, b"")
        hops.append((bytes(gateway), index))
        paths = paths[(length + 3) & ~3 :]
    return hops
