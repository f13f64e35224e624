"""Flags and MTU of interfaces (netdevice(7)), and the MTU that pod interfaces inherit."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterable

from felix_py.layout import INTERFACE_PREFIX, ROUTE_PROTOCOL_LEARNED
from felix_py.netlink import routes as route_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import AF, NETLINK_ROUTE
from policy.model import Family

_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
_DEFAULT = 1500

_RTN_UNICAST = 1


def uplink_mtu(nodes: Iterable[str] = ()) -> int:
    """The least MTU, in bytes, of the interfaces by which the node's traffic leaves.

    Those are the interfaces of default routes, of routes learned from peers, and of the routes to the addresses
    ``nodes``. If there is none: all interfaces that are up and neither loopback nor a pod's; 1500 if there are
    none of these either. Reads all routes, which may take long: not for the event loop.

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
        for answer in netlink.dump(route_messages.dump_table(family, route_messages.TABLE_MAIN)):
            learned = route_messages.protocol_of(answer) == ROUTE_PROTOCOL_LEARNED
            if answer[7] == _RTN_UNICAST and (answer[1] == 0 or learned):
                found |= route_messages.interfaces(answer)
    return found


def _towards(netlink: Netlink, nodes: Iterable[str]) -> set[int]:
    found: set[int] = set()
    for address in nodes:
        family = Family.V6 if ":" in address else Family.V4
        destination = (family, socket.inet_pton(AF[family], address), family.bits)
        try:
            answer = netlink.get(route_messages.match(destination))
        except OSError:  # no route
            continue
        if answer[7] == _RTN_UNICAST:  # not our own address
            found |= route_messages.interfaces(answer)
    return found


def interface_state(name: str) -> bool | None:
    """Whether an interface is up; None if there is none."""
    flags = _flags(name)
    return None if flags is None else bool(flags & _IFF_UP)


def carries(name: str) -> bool:
    """Whether an interface is up and has a carrier: of a veth pair, whether the other end is up as well."""
    return bool((_flags(name) or 0) & _IFF_RUNNING)


def _flags(name: str) -> int | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            (flags,) = struct.unpack_from("=16xH", _ioctl(probe, _SIOCGIFFLAGS, name))
        except OSError:
            return None
    return int(flags)


def _mtu(probe: socket.socket, name: str) -> int:
    """MTU of an interface that is up and not loopback, else 0 (also if it is gone)."""
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
