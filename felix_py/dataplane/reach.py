"""Next hop resolution: a next hop must be on a link of the host that is up and has a carrier (RFC 4271 9.1.2.1).

The kernel refuses a whole route if one of its gateways is not directly on a link, or is the host's own address;
so next hops are resolved before routes are chosen. Our own routes are ignored: a learned route never makes a next
hop reachable, so that learned routes cannot resolve themselves.

:class:`Links` holds what was read from the kernel, :class:`Hosts` resolves with it; neither does I/O.
:func:`read_links` reads, and :class:`LinkChanges` tells after which netlink events to read again.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from msgspec import Struct

from bgp.rib import Reached
from felix_py.layout import INTERFACE_PREFIX, ROUTE_PROTOCOL_PODS
from felix_py.netlink import links as link_messages
from felix_py.netlink import routes as route_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.links import Link
from felix_py.netlink.routes import PROTOCOLS, TABLE_LOCAL, TABLE_MAIN, Connected, Destination
from felix_py.netlink.wire import AF, NETLINK_ROUTE, messages
from policy.model import Family

GROUPS = (1, 5, 7, 9, 11)
"""RTNLGRP_LINK, and IFADDR and ROUTE of IPv4 and IPv6."""

_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_AF_UNSPEC = 0
_SILENT = "its link {} is down or has no carrier"
_IGNORED = "its link {} is one of ignoredInterfaces"


class Links(Struct, frozen=True):
    """The host's links. ``interfaces``: index -> name and whether it is up and has a carrier.

    ``own``: the host's addresses, and those that are no single host's (broadcast, anycast).
    ``pods``: destinations of our own routes to pods.
    """

    interfaces: dict[int, tuple[str, bool]]
    connected: tuple[Connected, ...]
    own: tuple[Destination, ...]
    pods: tuple[Destination, ...]


class _Table:
    """Longest prefix match, with one look-up for each distinct prefix length."""

    def __init__(self) -> None:
        self._by_length: dict[tuple[Family, int], dict[int, list[tuple[int, int]]]] = {}
        self._lengths: dict[Family, list[int]] = {}

    def add(self, destination: Destination, metric: int = 0, interface: int = 0) -> None:
        family, packed, length = destination
        if (family, length) not in self._by_length:
            self._by_length[family, length] = {}
            self._lengths[family] = sorted((*self._lengths.get(family, ()), length), reverse=True)
        key = int.from_bytes(packed, "big") >> (family.bits - length)
        self._by_length[family, length].setdefault(key, []).append((metric, interface))

    def matches(self, family: Family, packed: bytes) -> Iterable[tuple[int, list[tuple[int, int]]]]:
        """Matching prefix lengths with their (metric, interface) pairs, the longest first."""
        number = int.from_bytes(packed, "big")
        for length in self._lengths.get(family, ()):
            if found := self._by_length[family, length].get(number >> (family.bits - length)):
                yield length, found


class Hosts:
    """Implements :data:`bgp.rib.Reach`."""

    def __init__(self, links: Links, never: Iterable[str] = (), ignored: Iterable[str] = ()) -> None:
        """``never``: CIDRs (this node's pods, its addresses) that no next hop may be in. ``ignored``: patterns of
        interfaces that no next hop is sought on (``ignoredInterfaces`` of BGPConfiguration).

        Raises:
            ValueError: one of them is no CIDR.
        """
        self._interfaces = links.interfaces
        names = {name for name, _ in links.interfaces.values()}
        self._ignored = {name for name in names if any(fnmatchcase(name, pattern) for pattern in ignored)}
        self._connected, self._own, self._pods = _Table(), _Table(), _Table()
        for route in links.connected:
            self._connected.add(route.destination, route.metric, route.interface)
        for destination in links.own:
            self._own.add(destination)
        for destination in (*links.pods, *map(_destination, never)):
            self._pods.add(destination)

    def __call__(self, next_hop: str) -> Reached:
        """The interface of a next hop, or why it is unreachable. A link-local one names it: ``fe80::1%eth0``."""
        family = Family.V6 if ":" in next_hop else Family.V4
        address, _, scope = next_hop.partition("%")
        packed = socket.inet_pton(AF[family], address)
        if any(self._own.matches(family, packed)):
            return Reached(problem="it is an address of this node")
        if any(self._pods.matches(family, packed)):
            return Reached(problem="it is a pod's address")
        if scope in self._ignored:
            return Reached(problem=_IGNORED.format(scope))
        if scope:
            up = any(name == scope and carries for name, carries in self._interfaces.values())
            return Reached(scope, family.bits) if up else Reached(problem=_SILENT.format(scope))
        silent, ignored = "", ""
        for length, found in self._connected.matches(family, packed):
            for _, index in sorted(found):
                name, carries = self._interfaces.get(index, ("", False))
                if name in self._ignored:
                    ignored = name
                    continue
                if carries:
                    return Reached(name, length)
                silent = silent or name
        if silent:
            return Reached(problem=_SILENT.format(silent))
        if ignored:
            return Reached(problem=_IGNORED.format(ignored))
        return Reached(problem="it is on no link of this node")


def _destination(cidr: str) -> Destination:
    address, _, length = cidr.partition("/")
    family = Family.V6 if ":" in address else Family.V4
    try:
        return family, socket.inet_pton(AF[family], address), int(length) if length else family.bits
    except OSError:
        raise ValueError(f"{cidr!r} is not a CIDR") from None


def read_links(families: Collection[Family]) -> Links:
    """Read the links of the calling thread's network namespace.

    Raises:
        OSError: the kernel does not answer.
    """
    connected: list[Connected] = []
    own: list[Destination] = []
    pods: list[Destination] = []
    with Netlink(NETLINK_ROUTE) as netlink:
        links = map(link_messages.read_link, netlink.dump(link_messages.dump_links()))
        interfaces = {link.index: _state(link) for link in links}
        for family in families:
            for answer in netlink.dump(route_messages.dump_table(family, TABLE_MAIN)):
                protocol = route_messages.protocol_of(answer)
                if protocol == ROUTE_PROTOCOL_PODS:
                    pods.append(route_messages.read_destination(answer)[0])
                elif protocol not in PROTOCOLS:
                    connected += route_messages.read_connected(answer)
            for answer in netlink.dump(route_messages.dump_table(family, TABLE_LOCAL)):
                destination, unicast = route_messages.read_destination(answer)
                if not unicast:
                    own.append(destination)
    return Links(interfaces, tuple(connected), tuple(own), tuple(pods))


def _state(link: Link) -> tuple[str, bool]:
    return link.name, link.flags & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP


class LinkChanges:
    """Judges events of links, addresses and routes. Those of pods' interfaces do not concern next hops."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, bool]] = {}

    def begin(self, links: Links) -> None:
        """Take over the links as they are now."""
        self._known = dict(links.interfaces)

    def concern_us(self, datagram: bytes) -> bool:
        """Whether a next hop's resolution may have changed; true if the datagram cannot be parsed."""
        found = False
        try:
            for kind, body in messages(memoryview(datagram)):
                found |= self._one(kind, body)
        except (struct.error, ValueError, IndexError, OSError):
            return True
        return found

    def _one(self, kind: int, body: memoryview) -> bool:
        match kind:
            case link_messages.RTM_NEWLINK | link_messages.RTM_DELLINK:
                if body[0] != _AF_UNSPEC:  # AF_BRIDGE: a bridge announces its ports
                    return False
                return self._link(link_messages.read_link(body), gone=kind == link_messages.RTM_DELLINK)
            case link_messages.RTM_NEWADDR | link_messages.RTM_DELADDR:
                index, _ = link_messages.read_address(body)
                return not self._is_pods(index)
            case route_messages.RTM_NEWROUTE | route_messages.RTM_DELROUTE:
                event = route_messages.read_event(body)
                return event.direct and event.protocol not in PROTOCOLS and not self._is_pods(event.interface)
        return False

    def _link(self, link: Link, *, gone: bool) -> bool:
        before = self._known.pop(link.index, None)
        if gone:
            return before is not None and before[1] and not link.name.startswith(INTERFACE_PREFIX)
        now = self._known[link.index] = _state(link)
        if before == now:
            return False
        return any(not state[0].startswith(INTERFACE_PREFIX) for state in (before, now) if state is not None)

    def _is_pods(self, index: int) -> bool:
        return self._known.get(index, ("", False))[0].startswith(INTERFACE_PREFIX)
