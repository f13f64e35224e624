"""The addresses of the host's own interfaces. Source: rtnetlink(7), RTM_GETADDR."""

from __future__ import annotations

from felix_py.netlink.connection import Netlink
from felix_py.netlink.links import dump_addresses, read_address
from felix_py.netlink.wire import NETLINK_ROUTE
from policy.model import Family


def host_addresses() -> frozenset[str]:
    """Addresses of both families in canonical text, in the calling thread's network namespace.

    Raises:
        OSError: the kernel does not answer.
    """
    with Netlink(NETLINK_ROUTE) as netlink:
        answers = [answer for family in Family for answer in netlink.dump(dump_addresses(family))]
    return frozenset(address for _, address in map(read_address, answers) if address)
