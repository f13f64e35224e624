"""Netlink events: which of them concern us. No I/O.

Most events on a node do not, and some come in thousands, so deciding must be cheap: a socket filter drops other
programs' routes before they reach us, and messages about rules are searched, not parsed.

Source: rtnetlink(7), socket filters: the kernel's Documentation/networking/filter.rst, include/uapi/linux/
{rtnetlink,netconf,netfilter/nf_tables}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from msgspec import Struct

from felix_py.dataplane.host_ends import MAC, SYSCTLS
from felix_py.dataplane.iptables_text import BUILTIN_CHAINS
from felix_py.dataplane.protocols import Look
from felix_py.layout import CHAIN_PREFIX, INTERFACE_PREFIX, LINK_GROUP
from felix_py.netlink import links as link_messages
from felix_py.netlink import routes as route_messages
from felix_py.netlink.links import RTM_NEWADDR, RTM_NEWLINK, Link, read_address, read_link
from felix_py.netlink.routes import PROTOCOLS, RTM_DELROUTE, RTM_NEWROUTE, TABLE_MAIN, Destination
from felix_py.netlink.wire import HEADER, NLM_F_REPLACE, attributes, messages
from policy.model import Family

GROUPS = (1, 5, 7, 9, 11, 24, 25)
"""RTNLGRP_LINK, and IFADDR, ROUTE and NETCONF of IPv4 and IPv6."""

_RTM_NEWNETCONF = 80
_NETCONFA_IFINDEX = 1
_NETCONF_ALL = -1
_NETCONF = {Family.V4: {2: "forwarding", 3: "rp_filter", 5: "proxy_arp"}, Family.V6: {2: "forwarding"}}
"""NETCONFA_… -> name of the setting, for the settings that we keep."""

_AF_UNSPEC, _AF_INET = 0, 2
_INT = struct.Struct("=i")
_NOTHING = Look(0)


class Hint(Struct, frozen=True):
    """What to read back, and whether failed writes may succeed now."""

    look: Look = _NOTHING
    retry: bool = False

    def __or__(self, other: Hint) -> Hint:
        if other is _NO_MATTER:  # most events
            return self
        return Hint(self.look | other.look, self.retry or other.retry)


_NO_MATTER = Hint()
_RETRY = Hint(retry=True)
_ROUTES = Hint(Look.ROUTES)
_POD = Hint(Look.LINKS | Look.ROUTES)
_LINKS = Hint(Look.LINKS)
_SETTINGS = Hint(Look.SETTINGS)

LOST = Hint(Look.LINKS | Look.ROUTES | Look.SETTINGS, retry=True)
"""After lost events of the host."""


class _Known(Struct, frozen=True):
    """An interface as of its last event. ``right``: up, and a right host end of a pod as far as events tell."""

    name: str = ""
    up: bool = False
    right: bool = False

    @property
    def is_pods(self) -> bool:
        return self.name.startswith(INTERFACE_PREFIX)

    @classmethod
    def of(cls, link: Link) -> _Known:
        right = link.up and link.mac == MAC and link.group == LINK_GROUP and not link.master
        return cls(link.name, link.up, right)


_UNKNOWN = _Known()


class HostEvents:
    """Judges events of links, addresses, routes and settings. Keeps names and states of all interfaces."""

    def __init__(self, has_interface: Callable[[str], bool], wants_route: Callable[[Destination], bool]) -> None:
        """``has_interface``: whether a host end of that name is wanted; ``wants_route``: a route of ours."""
        self._has_interface = has_interface
        self._wants_route = wants_route
        self._links: dict[int, _Known] = {}
        self._unready: set[int] = set()
        self._holders: dict[str, int] = {}

    def begin(self, links: Iterable[Link]) -> None:
        """Take over the interfaces as they are now."""
        self._links = {link.index: _Known.of(link) for link in links}
        self._holders = {known.name: index for index, known in self._links.items() if known.is_pods}
        self._unready.clear()

    def feed(self, datagrams: Iterable[bytes]) -> Hint:
        """Judge the events since the last call. An event that cannot be parsed concerns us."""
        hint = _NO_MATTER
        for data in datagrams:
            hint |= self._datagram(memoryview(data))
        # The events of the steps in which an interface is made may come only after it has become a pod's.
        unready, self._unready = self._unready, set()
        for index in unready:
            known = self._links.get(index, _UNKNOWN)
            if not known.right and self._has_interface(known.name):
                hint |= _POD
        return hint

    def _datagram(self, data: memoryview) -> Hint:
        hint = _NO_MATTER
        try:
            for kind, body in messages(data):
                hint |= self._one(kind, body)
        except (struct.error, ValueError, IndexError, OSError):
            return LOST
        return hint

    def _one(self, kind: int, body: memoryview) -> Hint:
        match kind:
            case link_messages.RTM_NEWLINK | link_messages.RTM_DELLINK:
                return self._link(kind, body)
            case link_messages.RTM_NEWADDR | link_messages.RTM_DELADDR:
                return self._address(kind, body)
            case route_messages.RTM_NEWROUTE | route_messages.RTM_DELROUTE:
                return self._route(body)
        return self._setting(body) if kind == _RTM_NEWNETCONF else _NO_MATTER

    def _link(self, kind: int, body: memoryview) -> Hint:
        if body[0] != _AF_UNSPEC:  # AF_BRIDGE: a bridge announces its ports
            return _NO_MATTER
        link = read_link(body)
        before = self._links.pop(link.index, _UNKNOWN)
        now = _Known.of(link) if kind == RTM_NEWLINK else _UNKNOWN
        if now is not _UNKNOWN:
            self._links[link.index] = now
        if before.name != now.name and self._has_interface(before.name):
            return _POD  # deleted, or renamed
        if before.is_pods and before.name != now.name:
            self._holders.pop(
                before.name, None
            )  # not wanted: the next interface of this name does not take it over
        if now.is_pods:
            if self._holders.setdefault(now.name, link.index) != link.index and self._has_interface(now.name):
                return _POD  # another interface has taken the name of a pod's
            if before.right and not now.right and self._has_interface(now.name):
                return _POD
            self._unready.add(link.index)
            return _NO_MATTER
        if now.up:
            return _NO_MATTER if before.up else _RETRY
        # The kernel removes the interface's IPv4 routes without events.
        return _ROUTES if before.up and not before.is_pods else _NO_MATTER

    def _address(self, kind: int, body: memoryview) -> Hint:
        index, _ = read_address(body)
        known = self._links.get(index, _UNKNOWN)
        if kind == RTM_NEWADDR:
            return _NO_MATTER if known.is_pods else _RETRY
        if known.is_pods:
            return _POD if self._has_interface(known.name) else _NO_MATTER
        # With its last address an interface loses all its routes, those of IPv4 without events.
        return _ROUTES

    def _route(self, body: memoryview) -> Hint:
        seen = route_messages.read_event(body)
        if seen.protocol not in PROTOCOLS:
            return _ROUTES if self._wants_route(seen.destination) else _NO_MATTER
        known = self._links.get(seen.interface, _UNKNOWN)
        if known.is_pods and not self._has_interface(known.name):
            return _NO_MATTER  # its pod is being deleted
        return _ROUTES

    def _setting(self, body: memoryview) -> Hint:
        family = Family.V4 if body[0] == _AF_INET else Family.V6
        found = attributes(body[4:])
        if _NETCONFA_IFINDEX not in found:
            return _NO_MATTER
        index = _INT.unpack(found[_NETCONFA_IFINDEX])[0]
        if index == _NETCONF_ALL:
            return _SETTINGS if self._is_wrong(family, found, ("forwarding",)) else _NO_MATTER
        if not self._has_interface(self._links.get(index, _UNKNOWN).name):
            return _NO_MATTER
        return _LINKS if self._is_wrong(family, found, SYSCTLS[family]) else _NO_MATTER

    def _is_wrong(self, family: Family, found: dict[int, memoryview], settings: Iterable[str]) -> bool:
        return any(
            name in settings and kind in found and _INT.unpack(found[kind])[0] != int(SYSCTLS[family][name])
            for kind, name in _NETCONF[family].items()
        )


# --- rules -----------------------------------------------------------------------------------------------

_OURS = CHAIN_PREFIX.encode()
_NFTA_RULE_CHAIN, _NFTA_CHAIN_NAME = 2, 3
_BUILTIN = {
    # With the last byte of the attribute's type before the name, so that KUBE-FORWARD is not taken for FORWARD.
    struct.pack("=H", kind)[-1:] + chain.encode() + b"\0"
    for kind in (_NFTA_RULE_CHAIN, _NFTA_CHAIN_NAME)
    for chain in BUILTIN_CHAINS
}


def rules_concern_us(data: bytes) -> bool:
    """Whether messages of NFNLGRP_NFTABLES name a chain of ours or a built-in one; may be true by chance."""
    return _OURS in data or any(name in data for name in _BUILTIN)


def origin(data: bytes) -> int:
    """Netlink port of the process that caused a datagram's messages; one process causes all of them."""
    port: int = HEADER.unpack_from(data)[4] if len(data) >= HEADER.size else 0
    return port


# --- the socket filter -----------------------------------------------------------------------------------

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_IF_EQUAL, _IF_SET, _RETURN = 0x15, 0x45, 0x06
_WHOLE = 0xFFFFFFFF
_INSTRUCTION = struct.Struct("=HBBI")
_TYPE, _FLAGS, _PORT, _TABLE, _PROTOCOL = 4, 6, 12, 20, 21
"""Offsets of nlmsg_type, nlmsg_flags, nlmsg_pid, rtm_table and rtm_protocol."""


def host_filter(own_port: int) -> bytes:
    """Classic BPF program for the socket; drops others' routes, and our routes as written by ``own_port``.

    If another program replaces a route of ours by its own, the only message is that of the new route, with
    NLM_F_REPLACE set: such messages pass.
    """
    pods, learned = PROTOCOLS
    program = (
        # operation, how many to skip if true, if false, operand
        (_LOAD_HALF, 0, 0, _TYPE),
        (_IF_EQUAL, 1, 0, _as_loaded("=H", RTM_NEWROUTE)),
        (_IF_EQUAL, 0, 9, _as_loaded("=H", RTM_DELROUTE)),  # else pass
        (_LOAD_BYTE, 0, 0, _TABLE),
        (_IF_EQUAL, 0, 8, TABLE_MAIN),  # else drop
        (_LOAD_WORD, 0, 0, _PORT),
        (_IF_EQUAL, 6, 0, _as_loaded("=I", own_port)),  # drop
        (_LOAD_BYTE, 0, 0, _PROTOCOL),
        (_IF_EQUAL, 3, 0, pods),  # pass
        (_IF_EQUAL, 2, 0, learned),  # pass
        (_LOAD_HALF, 0, 0, _FLAGS),
        (_IF_SET, 0, 1, _as_loaded("=H", NLM_F_REPLACE)),  # else drop
        (_RETURN, 0, 0, _WHOLE),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*step) for step in program)


def foreign_filter() -> bytes:
    """Classic BPF program that drops our own routes and routes of other tables than main."""
    pods, learned = PROTOCOLS
    program = (
        (_LOAD_HALF, 0, 0, _TYPE),
        (_IF_EQUAL, 1, 0, _as_loaded("=H", RTM_NEWROUTE)),
        (_IF_EQUAL, 0, 5, _as_loaded("=H", RTM_DELROUTE)),  # else pass
        (_LOAD_BYTE, 0, 0, _TABLE),
        (_IF_EQUAL, 0, 4, TABLE_MAIN),  # else drop
        (_LOAD_BYTE, 0, 0, _PROTOCOL),
        (_IF_EQUAL, 2, 0, pods),  # drop
        (_IF_EQUAL, 1, 0, learned),  # drop
        (_RETURN, 0, 0, _WHOLE),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*step) for step in program)


def _as_loaded(form: str, value: int) -> int:
    """A host-order number as the filter loads it, most significant byte first."""
    return int.from_bytes(struct.pack(form, value), "big")
