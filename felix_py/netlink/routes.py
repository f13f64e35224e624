"""Routes as rtnetlink messages: packing, and reading a dump back. No I/O.

Source: rtnetlink(7), the kernel's include/uapi/linux/rtnetlink.h and net/ipv4/fib_semantics.c, net/ipv6/route.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.netlink.wire import AF, NLM_F_CREATE, NLM_F_EXCL, attr, attributes, message
from felix_py.records import NextHop, Route, RouteKind
from felix_py.refs import RouteRef
from policy.model import Family

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

_SRC, _IIF = 2, 3
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH, _TABLE = 1, 4, 5, 6, 7, 9, 15
TABLE_MAIN, TABLE_LOCAL = 254, 255
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_KINDS = {RouteKind.UNICAST: 1, RouteKind.BLACKHOLE: 6}
_ONLINK = 4
_DEAD = 1
_UNICAST = 1
_STATIC = 4
_VIA = 18
_FIB_MATCH = 0x2000
_METRIC = {Family.V4: 0, Family.V6: 1024}
"""Metric of a route made without one; routes of the same prefix with another metric coexist."""

_RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBI")
_U16, _U32 = struct.Struct("=H"), struct.Struct("=I")

PROTOCOLS = (ROUTE_PROTOCOL_PODS, ROUTE_PROTOCOL_LEARNED)
"""Our protocol numbers, in order of preference for a destination that both want."""

NO_WAY = (errno.EINVAL, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES)
"""The kernel's answers to :func:`lookup` and :func:`match` where a blackhole, an unreachable or a prohibit route
covers the address, or none does."""

Destination = tuple[Family, bytes, int]
"""Packed network address and prefix length."""

Hop = tuple[bytes, int]
"""Packed gateway (empty: on link) and interface index (0 in a wanted route: the one that the kernel resolves).

The gateway of an IPv4 route may be an IPv6 address (RFC 8950).
"""


class Packed(NamedTuple):
    """A route in the kernel's terms; ``hops`` sorted. IPv6 has no scopes: 0 there. ``metric`` 0: the default."""

    destination: Destination
    protocol: int
    kind: int
    scope: int
    source: bytes
    hops: tuple[Hop, ...]
    metric: int = 0

    def satisfies(self, wanted: Packed) -> bool:
        """Whether the kernel's route (self) is the wanted one."""
        if (self.kind, self.scope, self.source) != (wanted.kind, wanted.scope, wanted.source):
            return False
        if self.metric != wanted.metric:
            return False
        if len(self.hops) != len(wanted.hops):
            return False
        pairs = zip(self.hops, wanted.hops, strict=True)
        return all(mine[0] == asked[0] and asked[1] in (0, mine[1]) for mine, asked in pairs)


def parse_destination(key: RouteRef) -> Destination:
    """The destination of a route's key.

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
    """Destination as a RouteRef spells it."""
    family, packed, length = destination
    return f"{socket.inet_ntop(AF[family], packed)}/{length}"


def pack(route: Route, destination: Destination, interface_index: Callable[[str], int]) -> Packed:
    """A wanted route in the kernel's terms; ``destination`` is its key's, parsed.

    Raises:
        ValueError: an invalid address, or one of the other family, or a unicast route without next hop; and
            what ``interface_index`` raises.
    """
    family = destination[0]
    metric = normal_metric(family, route.metric)
    if route.kind is RouteKind.BLACKHOLE:
        return Packed(destination, route.key.protocol, _KINDS[route.kind], _SCOPE_UNIVERSE, b"", (), metric)
    if not route.next_hops:
        raise ValueError("a unicast route without next hops")
    hops: list[Hop] = []
    for hop in route.next_hops:
        of = Family.V6 if ":" in hop.gateway else family
        gateway = _address(of, hop.gateway) if hop.gateway else b""
        hops.append((gateway, interface_index(hop.interface) if hop.interface else 0))
    hops.sort()
    if (b"", 0) in hops:
        raise ValueError("a next hop with neither gateway nor interface")
    scope = _SCOPE_LINK if route.link_scope and family is Family.V4 else _SCOPE_UNIVERSE
    source = _address(family, route.source) if route.source else b""
    return Packed(destination, route.key.protocol, _KINDS[route.kind], scope, source, tuple(hops), metric)


def normal_metric(family: Family, metric: int) -> int:
    """A metric as :class:`Packed` has it: 0 for that of a route made without one."""
    return 0 if metric == _METRIC[family] else metric


def _address(family: Family, text: str) -> bytes:
    try:
        return socket.inet_pton(AF[family], text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IPv{int(family)} address") from None


def new(route: Packed, flags: int) -> bytes:
    """RTM_NEWROUTE. A hop with gateway and interface is ``onlink``, whatever the interface's addresses."""
    parts = [_head(route.destination, route.protocol, route.kind, route.scope)]
    if route.metric:
        parts.append(attr(_PRIORITY, _U32.pack(route.metric)))
    if route.source:
        parts.append(attr(_PREFSRC, route.source))
    if len(route.hops) == 1:
        gateway, index = route.hops[0]
        if gateway and index:
            parts[0] = _head(route.destination, route.protocol, route.kind, route.scope, _ONLINK)
        parts.append(_hop(route.destination[0], gateway, index))
    elif route.hops:
        parts.append(attr(_MULTIPATH, b"".join(_path(route.destination[0], hop) for hop in route.hops)))
    return message(RTM_NEWROUTE, flags, b"".join(parts))


def new_default(family: Family, gateway: str, interface: int, table: int = TABLE_MAIN) -> bytes:
    """RTM_NEWROUTE for a static default route through an ``onlink`` gateway; EEXIST if the table has one."""
    head = _RTMSG.pack(AF[family], 0, 0, 0, table & 0xFF, _STATIC, _SCOPE_UNIVERSE, _UNICAST, _ONLINK)
    hop = _hop(family, socket.inet_pton(AF[family], gateway), interface)
    return message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, head + attr(_TABLE, _U32.pack(table)) + hop)


def delete(destination: Destination, protocol: int, metric: int = 0) -> bytes:
    """RTM_DELROUTE: the kernel deletes the route only if it has this protocol number, and this metric.

    IPv4 has no word for "no metric": then of several routes the one with the lowest metric goes.
    """
    least = metric or _METRIC[destination[0]]
    priority = attr(_PRIORITY, _U32.pack(least)) if least else b""
    return message(RTM_DELROUTE, 0, _head(destination, protocol, 0, _SCOPE_ANY) + priority)


def dump(family: Family, protocol: int) -> bytes:
    """RTM_GETROUTE for the main table's routes of one protocol number; the kernel filters (strict checking)."""
    return dump_table(family, TABLE_MAIN, protocol)


def dump_table(family: Family, table: int, protocol: int = 0) -> bytes:
    """RTM_GETROUTE for the routes of one table; ``protocol`` 0: of any protocol number."""
    head = _RTMSG.pack(AF[family], 0, 0, 0, table & 0xFF, protocol, 0, 0, 0)
    return message(RTM_GETROUTE, 0, head + attr(_TABLE, _U32.pack(table)))


def match(destination: Destination) -> bytes:
    """RTM_GETROUTE for the routing table entry that covers a destination (RTM_F_FIB_MATCH)."""
    family, packed, _ = destination
    head = _RTMSG.pack(AF[family], family.bits, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    return message(RTM_GETROUTE, 0, head + attr(_DST, packed))


def lookup(address: str, source: str = "", arrives: int = 0) -> bytes:
    """RTM_GETROUTE for the route that a packet to an address takes; see :data:`NO_WAY`.

    ``source``: its source, for which policy routing may have other routes. ``arrives``: index of the interface
    by which it comes; then an IPv4 packet that rp_filter drops, or that must not be forwarded, has none.

    Raises:
        ValueError: it is not an address.
    """
    family = Family.V6 if ":" in address else Family.V4
    head = _RTMSG.pack(AF[family], family.bits, family.bits if source else 0, 0, 0, 0, 0, 0, 0)
    parts = [head, attr(_DST, _address(family, address))]
    if source:
        parts.append(attr(_SRC, _address(family, source)))
    if arrives:
        parts.append(attr(_IIF, _U32.pack(arrives)))
    return message(RTM_GETROUTE, 0, b"".join(parts))


def looked_up(answer: memoryview) -> tuple[int, int]:
    """Type (RTN_UNICAST …) and interface index, or 0, in the answer to :func:`lookup` or :func:`match`."""
    return answer[7], _number(attributes(answer[_RTMSG.size :]), _OIF)


def _number(found: dict[int, memoryview], kind: int) -> int:
    return _U32.unpack(found[kind])[0] if kind in found else 0


def _head(destination: Destination, protocol: int, kind: int, scope: int, flags: int = 0) -> bytes:
    family, packed, length = destination
    head = _RTMSG.pack(AF[family], length, 0, 0, TABLE_MAIN, protocol, scope, kind, flags)
    return head + attr(_DST, packed)


def _hop(family: Family, gateway: bytes, index: int) -> bytes:
    return _gateway(family, gateway) + (attr(_OIF, _U32.pack(index)) if index else b"")


def _gateway(family: Family, gateway: bytes) -> bytes:
    if len(gateway) * 8 in (0, family.bits):
        return attr(_GATEWAY, gateway) if gateway else b""
    return attr(_VIA, _U16.pack(socket.AF_INET6) + gateway)


def _path(family: Family, hop: Hop) -> bytes:
    gateway, index = hop
    inner = _gateway(family, gateway)
    return _RTNEXTHOP.pack(8 + len(inner), _ONLINK if gateway and index else 0, 0, index) + inner


def read(answer: memoryview) -> Packed | None:
    """The route of a dump's answer; None if it has a TOS, as none of ours has."""
    _, _, _, tos, _, protocol, scope, kind, _ = _RTMSG.unpack_from(answer)
    if tos:
        return None
    found = attributes(answer[_RTMSG.size :])
    destination = _destination(answer, found)
    hops = _hops(found) if kind == _KINDS[RouteKind.UNICAST] else []
    source = bytes(found.get(_PREFSRC, b""))
    metric = normal_metric(destination[0], _number(found, _PRIORITY))
    return Packed(destination, protocol, kind, scope, source, tuple(sorted(hops)), metric)


def _destination(answer: memoryview, found: dict[int, memoryview]) -> Destination:
    family = Family.V4 if answer[0] == socket.AF_INET else Family.V6
    return family, bytes(found.get(_DST, b"")).ljust(family.bits // 8, b"\0"), answer[1]


class Connected(NamedTuple):
    """A destination that this host reaches without a gateway. ``interface``: its index."""

    destination: Destination
    metric: int
    interface: int


def protocol_of(answer: memoryview) -> int:
    """The protocol number of the route in a dump's answer."""
    return answer[5]


def read_destination(answer: memoryview) -> tuple[Destination, bool]:
    """Destination of the route in a dump's answer, and whether the route is unicast (RTN_UNICAST)."""
    return _destination(answer, attributes(answer[_RTMSG.size :])), answer[7] == _UNICAST


def interfaces(answer: memoryview) -> set[int]:
    """Interface indexes of the next hops of the route in an answer."""
    return {index for _, index in _hops(attributes(answer[_RTMSG.size :])) if index}


def read_connected(answer: memoryview) -> list[Connected]:
    """The on-link destinations of the route in a dump's answer; none for one with a gateway, or a dead one."""
    _, _, _, tos, _, _, _, kind, flags = _RTMSG.unpack_from(answer)
    if kind != _UNICAST or flags & _DEAD or tos:
        return []
    found = attributes(answer[_RTMSG.size :])
    if _gateway_of(found):
        return []
    destination, metric = _destination(answer, found), _number(found, _PRIORITY)
    return [Connected(destination, metric, index) for gateway, index in _hops(found) if index and not gateway]


def unpack(route: Packed) -> Route | None:
    """The wanted route that a kernel's route stands for; None if we make none such, or its interface is gone.

    The interface of a gateway is left to the kernel (see :data:`Hop`), unless it is link-local.
    """
    kinds = [kind for kind, number in _KINDS.items() if number == route.kind]
    family = route.destination[0]
    try:
        hops = [_next_hop(gateway, index) for gateway, index in route.hops]
    except OSError:
        return None
    if not kinds:
        return None
    source = socket.inet_ntop(AF[family], route.source) if route.source else ""
    key = RouteRef(destination_text(route.destination), route.protocol)
    hops.sort(key=lambda hop: (hop.gateway, hop.interface))
    return Route(key, kinds[0], tuple(hops), route.scope == _SCOPE_LINK, source, route.metric)


def _next_hop(gateway: bytes, index: int) -> NextHop:
    if not gateway:
        return NextHop(interface=socket.if_indextoname(index))
    if len(gateway) == 4:
        return NextHop(socket.inet_ntop(socket.AF_INET, gateway))
    # Only a link-local gateway needs its interface again.
    link_local = gateway[:2] == b"\xfe\x80"
    return NextHop(socket.inet_ntop(socket.AF_INET6, gateway), socket.if_indextoname(index) if link_local else "")


class Event(NamedTuple):
    """A route event. ``interface``: index, 0 for several or none; ``direct``: no gateway, or several hops."""

    destination: Destination
    protocol: int
    interface: int
    direct: bool = True


def read_event(body: memoryview) -> Event:
    """An RTM_NEWROUTE or RTM_DELROUTE behind its message header.

    Raises:
        struct.error: it is too short.
    """
    protocol = _RTMSG.unpack_from(body)[5]
    found = attributes(body[_RTMSG.size :])
    return Event(_destination(body, found), protocol, _number(found, _OIF), _gateway_of(found) == b"")


def _gateway_of(found: dict[int, memoryview]) -> bytes:
    """The gateway, empty if there is none; RTA_VIA has its address family before it."""
    return bytes(found[_VIA][_U16.size :]) if _VIA in found else bytes(found.get(_GATEWAY, b""))


def _hops(found: dict[int, memoryview]) -> list[Hop]:
    if _MULTIPATH not in found:
        return [(_gateway_of(found), _number(found, _OIF))]
    paths = found[_MULTIPATH]
    hops: list[Hop] = []
    while len(paths) >= _RTNEXTHOP.size:
        length, _, _, index = _RTNEXTHOP.unpack_from(paths)
        if length < _RTNEXTHOP.size:
            break
        hops.append((_gateway_of(attributes(paths[_RTNEXTHOP.size : length])), index))
        paths = paths[(length + 3) & ~3 :]
    return hops
