"""By which interface packets to an address leave this host, as the kernel decides it."""

from __future__ import annotations

import socket
from collections.abc import Collection

from felix_py.netlink import routes as messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_ROUTE


def ways(addresses: Collection[str]) -> dict[str, str]:
    """Address -> name of the interface; empty: packets to it end here. All rules and tables count.

    Raises:
        OSError: the kernel does not answer.
    """
    with Netlink(NETLINK_ROUTE) as netlink:
        return {address: _way(netlink, address) for address in addresses}


def _way(netlink: Netlink, address: str) -> str:
    try:
        _, index = messages.looked_up(netlink.get(messages.lookup(address)))
    except OSError as error:
        if error.errno in messages.NO_WAY:
            return ""
        raise
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:
        return ""  # gone since
