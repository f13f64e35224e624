"""The addresses of the host's own interfaces. Source: rtnetlink(7), RTM_GETADDR."""

from __future__ import annotations

import socket
import struct
from typing import Final

from felix_py.dataplane.netlink import NETLINK_ROUTE, Netlink, attributes, message

_RTM_GETADDR: Final = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFADDR = struct.Struct("=BBBBI")


def host_addresses() -> frozenset[str]:
    """Canonical texts of both families, of the calling thread's network namespace.

    Raises:
        OSError: the kernel does not answer.
    """
    found = set()
    with Netlink(NETLINK_ROUTE) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for answer in netlink.dump(message(_RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0))):
                parts = attributes(answer[_IFADDR.size :])
                raw = parts.get(_IFA_LOCAL, parts.get(_IFA_ADDRESS))
                if raw is not None:
                    found.add(socket.inet_ntop(answer[0], bytes(raw)))
    return frozenset(found)
