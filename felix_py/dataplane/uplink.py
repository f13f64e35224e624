"""Flags and MTU of interfaces (netdevice(7)): the MTU that pod interfaces inherit."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterable

from felix_py.dataplane.link_messages import AF, U32
from felix_py.dataplane.netlink import NETLINK_ROUTE, Netlink, attr, attributes, message
from felix_py.layout import INTERFACE_PREFIX, ROUTE_PROTOCOL_LEARNED
from policy.model import Family

_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_DEFAULT = 1500

_RTM_GETROUTE = 26
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH = 1, 4, 9
_RTM_F_FIB_MATCH, _RT_TABLE_MAIN, _RTN_UNICAST = 0x2000, 254, 1
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")


def uplink_mtu(nodes: Iterable[str] = ()) -> int:
    """The least MTU, in bytes, of the interfaces by which the node's traffic leaves.

    Those are the ones of default routes, of routes learned from peers, and of the routes to ``nodes``, which are
    addresses. Where there is none of these: of all interfaces that are up and neither loopback nor a pod's; 1500
    when there is none. Takes as long as reading all routes takes: not for the event loop.

    Raises:
        OSError: the kernel does not answer.
    """
    with Netlink(NETLINK_ROUTE) as netlink:
        indexes = _default_and_learned(netlink) | _towards(netlink, nodes)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        names = [name for index, name in socket.if_nameindex() if index in indexes or not indexes]
        mtus = [mtu for name in names if not name.startswith(INTERFACE_PREFIX) and (mtu := _mtu(probe, name))]
    return min(mtus, default=_DEFAULT)


def _default_and_learned(netlink: Netlink) -> set[int]:
    found: set[int] = set()
    for family in Family:
        request = _ROUTE.pack(AF[family], 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
        for answer in netlink.dump(message(_RTM_GETROUTE, 0, request)):
            if answer[7] == _RTN_UNICAST and (answer[1] == 0 or answer[5] == ROUTE_PROTOCOL_LEARNED):
                found |= _interfaces(answer)
    return found


def _towards(netlink: Netlink, nodes: Iterable[str]) -> set[int]:
    found: set[int] = set()
    for address in nodes:
        family = Family.V6 if ":" in address else Family.V4
        request = _ROUTE.pack(AF[family], family.bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
        request += attr(_RTA_DST, socket.inet_pton(AF[family], address))
        try:
            answer = netlink.get(message(_RTM_GETROUTE, 0, request))
        except OSError:  # no route
            continue
        if answer[7] == _RTN_UNICAST:  # not our own address
            found |= _interfaces(answer)
    return found


def _interfaces(answer: memoryview) -> set[int]:
    """Indexes of a route's interfaces."""
    parts = attributes(answer[_ROUTE.size :])
    found = {U32.unpack(parts[_RTA_OIF])[0]} if _RTA_OIF in parts else set()
    hops, offset = parts.get(_RTA_MULTIPATH, memoryview(b"")), 0
    while offset + _HOP.size <= len(hops):
        length, _, _, index = _HOP.unpack_from(hops, offset)
        found.add(index)
        offset += max((length + 3) & ~3, _HOP.size)
    return found


def interface_state(name: str) -> bool | None:
    """Whether an interface is up; None: there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            (flags,) = struct.unpack_from("=16xH", _ioctl(probe, _SIOCGIFFLAGS, name))
        except OSError:
            return None
    return bool(flags & _IFF_UP)


def _mtu(probe: socket.socket, name: str) -> int:
    """MTU of an interface that counts, else 0 (also when it has just gone)."""
    try:
        (flags,) = struct.unpack_from("=16xH", _ioctl(probe, _SIOCGIFFLAGS, name))
        if not flags & _IFF_UP or flags & _IFF_LOOPBACK:
            return 0
        (mtu,) = struct.unpack_from("=16xi", _ioctl(probe, _SIOCGIFMTU, name))
    except OSError:
        return 0
    return int(mtu)


def _ioctl(probe: socket.socket, request: int, name: str) -> bytes:
    return fcntl.ioctl(probe, request, struct.pack("=16s24x", name.encode()))
