"""Checks that this host is the node of its name.

The agent knows its node by name only: the host's, or ``--node-name``. A machine that was cloned, renamed or
configured with another node's name would announce that node's pod addresses and give them to its own pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from felix_py import log
from felix_py.dataplane.host_addresses import host_addresses
from felix_py.notices import NoticeKind, Notices
from felix_py.records import NodeRecord

_INTERVAL = 60.0


def told(node: NodeRecord | None, here: frozenset[str]) -> dict[str, str]:
    """Returns a notice (subject -> text) if the Node object has addresses, and none of them is of this host."""
    if node is None or not node.addresses or not here.isdisjoint(node.addresses):
        return {}
    return {
        node.name: f"the Node object {node.name} has the addresses {', '.join(node.addresses)}, and this host "
        "has none of them: it may be another machine of that name, whose pod addresses are announced and given "
        "away here. Look at the host name and --node-name"
    }


class Identity:
    """Checks every minute."""

    def __init__(self, node: Callable[[], NodeRecord | None], notices: Notices) -> None:
        self._node = node
        self._notices = notices
        self._log = log.get("agent")

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                here = await asyncio.to_thread(host_addresses)
            except OSError as error:
                self._log.warning("cannot read this host's addresses", reason=str(error))
            else:
                self._notices.replace(NoticeKind.NODE_ELSEWHERE, told(self._node(), here))
            await asyncio.sleep(_INTERVAL)
