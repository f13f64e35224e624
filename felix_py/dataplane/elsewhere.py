"""Whether an address is used by something else than a pod of ours: the host, a foreign route, a neighbour.

For example the bridge of a former CNI plugin, with the first address of the node's podCIDR, or a pod behind it.
Source: rtnetlink(7), the kernel's include/uapi/linux/{rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from contextlib import suppress

from felix_py.layout import is_interface_name
from felix_py.netlink import routes as route_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import AF, NETLINK_ROUTE, attr, message
from felix_py.records import Elsewhere
from policy.model import Family

_RTM_GETNEIGH = 30
_NDA_DST = 1
_UNICAST, _LOCAL, _BROADCAST, _ANYCAST = 1, 2, 3, 4
_HELD = {
    _LOCAL: "an address of this host ({0})",
    _BROADCAST: "a broadcast address of {0}",
    _ANYCAST: "an anycast address of {0}",
}
_SEEN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT: there is, or was, a neighbour. Others: it was only sought."""

_NEIGH = struct.Struct("=BxxxiHBB")

_INTERFACES_AGE = 120.0
"""Seconds for which the list of interfaces is kept: making it costs a millisecond with many interfaces."""


class ElsewhereLookup:
    """Asks the kernel in the namespace it was made in; 10 us for each foreign interface. One thread at a time."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_ROUTE)
        self._names: dict[int, str] = {}
        self._names_until = 0.0

    def close(self) -> None:
        self._netlink.close()

    def __call__(self, family: Family, number: int, length: int) -> Elsewhere | None:
        """The user of an address of a pod CIDR with prefix length ``length``; None: the kernel knows of none.

        Routes as wide as the pod CIDR, or wider, are no evidence of a user.

        Raises:
            OSError: the kernel does not answer.
        """
        raw = number.to_bytes(family.bits // 8, "big")
        return self._route(family, raw, length) or self._neighbour(family, raw)

    def _route(self, family: Family, raw: bytes, length: int) -> Elsewhere | None:
        try:
            answer = self._netlink.get(route_messages.match((family, raw, family.bits)))
        except OSError as error:
            if error.errno in route_messages.NO_WAY:  # or our blackhole for the pod CIDR: the address is free
                return None
            raise
        found, protocol, kind = answer[1], route_messages.protocol_of(answer), answer[7]
        held = kind in _HELD or (kind == _UNICAST and found > min(length, family.bits - 1))
        if protocol in route_messages.PROTOCOLS or not held:
            return None
        _, index = route_messages.looked_up(answer)
        interface = _name(index) if index else "several interfaces"
        network = ipaddress.ip_network((raw, found), strict=False)
        what = str(network.network_address if found == family.bits else network)
        how = _HELD.get(kind, "routed through {0} by somebody else").format(interface)
        return Elsewhere(what, how, int(network.broadcast_address))

    def _neighbour(self, family: Family, raw: bytes) -> Elsewhere | None:
        for index, name in self._interfaces().items():
            request = _NEIGH.pack(AF[family], index, 0, 0, 0) + attr(_NDA_DST, raw)
            with suppress(OSError):  # no entry, or the interface is gone
                state = _NEIGH.unpack_from(self._netlink.get(message(_RTM_GETNEIGH, 0, request)))[2]
                if state & _SEEN:
                    text = socket.inet_ntop(AF[family], raw)
                    return Elsewhere(text, f"a neighbour on {name}", int.from_bytes(raw, "big"))
        return None

    def _interfaces(self) -> dict[int, str]:
        """Interfaces other than pods': a pod may forge neighbour entries."""
        if time.monotonic() >= self._names_until:
            self.refresh()
        return self._names

    def refresh(self) -> None:
        """List the interfaces, so that later calls need not. Any thread may call this."""
        self._names = {index: name for index, name in socket.if_nameindex() if not is_interface_name(name)}
        self._names_until = time.monotonic() + _INTERFACES_AGE


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"
