"""Flags and MTU of interfaces (netdevice(7)): the MTU that pod interfaces inherit."""

from __future__ import annotations

import fcntl
import socket
import struct

from felix_py.plan.layout import INTERFACE_PREFIX

_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_DEFAULT = 1500


def uplink_mtu() -> int:
    """The least MTU, in bytes, of all interfaces that are up and neither loopback nor a pod's (netdevice(7)).

    What a pod sends may leave by any of them. 1500 when there is none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        mtus = [
            mtu
            for _, name in socket.if_nameindex()
            if not name.startswith(INTERFACE_PREFIX) and (mtu := _mtu(probe, name))
        ]
    return min(mtus, default=_DEFAULT)


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
