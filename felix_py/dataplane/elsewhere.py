"""Whether something else than a pod of ours uses an address: the host itself, a foreign route, a neighbour.

Such as the bridge of the CNI plugin that was here before, with the first address of the node's podCIDR, or a pod
behind it. Source: rtnetlink(7), the kernel's include/uapi/linux/{rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import time
from contextlib import suppress

from felix_py.dataplane.link_messages import AF, U32
from felix_py.dataplane.netlink import NETLINK_ROUTE, Netlink, attr, attributes, message
from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS, is_interface_name
from felix_py.records import Elsewhere
from policy.model import Family

_RTM_GETROUTE, _RTM_GETNEIGH = 26, 30
_RTA_DST, _RTA_OIF, _NDA_DST = 1, 4, 1
_RTM_F_FIB_MATCH = 0x2000  # answer with the route that matches and not with what it comes to
_UNICAST, _LOCAL, _BROADCAST, _ANYCAST = 1, 2, 3, 4
_HELD = {
    _LOCAL: "an address of this host ({0})",
    _BROADCAST: "a broadcast address of {0}",
    _ANYCAST: "an anycast address of {0}",
}
_OURS = (ROUTE_PROTOCOL_PODS, ROUTE_PROTOCOL_LEARNED)
_SEEN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""REACHABLE, STALE, DELAY, PROBE, PERMANENT: somebody is, or was, there. Others are only asked for."""

_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGH = struct.Struct("=BxxxiHBB")

_INTERFACES_AGE = 120.0
"""Seconds for which a list of the interfaces is good: making one costs a millisecond where there are many."""


class ElsewhereLookup:
    """Asks the kernel, in the network namespace in which this was made; some 10 us for each interface of others.

    One thread at a time.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_ROUTE)
        self._names: dict[int, str] = {}
        self._names_until = 0.0

    def close(self) -> None:
        """Close the socket; closing twice is fine."""
        self._netlink.close()

    def __call__(self, family: Family, number: int, length: int) -> Elsewhere | None:
        """Who uses an address of a pod CIDR with prefix length ``length``; None: nobody that the kernel knows.

        Routes as wide as the pod CIDR, or wider, say nothing of an address.

        Raises:
            OSError: the kernel does not answer.
        """
        raw = number.to_bytes(family.bits // 8, "big")
        return self._route(family, raw, length) or self._neighbour(family, raw)

    def _route(self, family: Family, raw: bytes, length: int) -> Elsewhere | None:
        request = _ROUTE.pack(AF[family], family.bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH) + attr(_RTA_DST, raw)
        try:
            answer = self._netlink.get(message(_RTM_GETROUTE, 0, request))
        except OSError as error:
            # No route, or a blackhole (as ours for the whole pod CIDR), unreachable or prohibit: nobody is there.
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
                return None
            raise
        _, found, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(answer)
        if protocol in _OURS or not (
            kind in _HELD or (kind == _UNICAST and found > min(length, family.bits - 1))
        ):
            return None
        oif = attributes(answer[_ROUTE.size :]).get(_RTA_OIF)
        interface = _name(U32.unpack(oif)[0]) if oif is not None else "several interfaces"
        network = ipaddress.ip_network((raw, found), strict=False)
        what = str(network.network_address if found == family.bits else network)
        how = _HELD.get(kind, "routed through {0} by somebody else").format(interface)
        return Elsewhere(what, how, int(network.broadcast_address))

    def _neighbour(self, family: Family, raw: bytes) -> Elsewhere | None:
        for index, name in self._interfaces().items():
            request = _NEIGH.pack(AF[family], index, 0, 0, 0) + attr(_NDA_DST, raw)
            with suppress(OSError):  # there is no entry, or no such interface any more
                state = _NEIGH.unpack_from(self._netlink.get(message(_RTM_GETNEIGH, 0, request)))[2]
                if state & _SEEN:
                    text = socket.inet_ntop(AF[family], raw)
                    return Elsewhere(text, f"a neighbour on {name}", int.from_bytes(raw, "big"))
        return None

    def _interfaces(self) -> dict[int, str]:
        """The interfaces that are not pods': what a pod claims about neighbours counts for nothing."""
        if time.monotonic() >= self._names_until:
            self.refresh()
        return self._names

    def refresh(self) -> None:
        """List the interfaces anew, so that no later call has to. From any thread."""
        self._names = {index: name for index, name in socket.if_nameindex() if not is_interface_name(name)}
        self._names_until = time.monotonic() + _INTERFACES_AGE


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"
