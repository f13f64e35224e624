"""By which interface packets to an address leave this host, as the kernel decides it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from felix_py.netlink import routes as messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import AF, NETLINK_ROUTE
from policy.model import Family


def ways(addresses: Collection[str]) -> dict[str, str]:
    """Address -> name of the interface; empty: packets to it end here. All rules and tables count.

    Raises:
        OSError: the kernel does not answer.
    """
    with Netlink(NETLINK_ROUTE) as netlink:
        return {address: _way(netlink, address) for address in addresses}


def _way(netlink: Netlink, address: str) -> str:
    family = Family.V6 if ":" in address else Family.V4
    try:
        _, index = messages.looked_up(
            netlink.get(messages.lookup((family, socket.inet_pton(AF[family], address), family.bits)))
        )
    except OSError as error:
        # What a blackhole, an unreachable or a prohibit route says, and no route at all.
        if error.errno in (errno.EINVAL, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES):
            return ""
        raise
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:
        return ""  # gone since
