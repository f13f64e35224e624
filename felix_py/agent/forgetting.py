"""Which addresses may still have connections of an earlier holder, and when these are deleted.

The kernel finds an address's connections only by walking its whole table, which takes milliseconds of CPU time
however few they are. So released addresses wait for others for a while, and share one walk. An address that is to
be given out again does not wait: its connections are gone before its next holder has it.

What an earlier life of the agent released and did not get round to is not noted anywhere: the table itself tells
which addresses have connections (:meth:`felix_py.dataplane.protocols.FlowTable.busy`), once for each network that
an address comes from.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from typing import Protocol

from policy.model import Family

REST = 5.0
"""Seconds that a released address waits for others."""

_COVER = {Family.V4: 16, Family.V6: 64}
"""Prefix length of the networks that are looked at as a whole."""


class Connections(Protocol):
    """The table of connections, as :class:`felix_py.agent.flows.Flows` has it."""

    async def forget(self, addresses: Collection[str]) -> None:
        """Delete every connection of some addresses. Never raises."""

    async def busy(self, networks: Collection[str]) -> set[str]:
        """Addresses inside the networks that have connections. Raises OSError."""


class Forgetting:
    """Deletes the connections of released addresses. For the event loop."""

    def __init__(self, connections: Connections, rest: float = REST) -> None:
        """``rest``: see :data:`REST`."""
        self._connections = connections
        self._rest = rest
        self._due: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[asyncio.Future[None], frozenset[str]] = {}
        self._looks: dict[str, asyncio.Future[bool]] = {}
        self._inherited: set[str] = set()
        """Addresses that had connections when their network was looked at."""

    def begin(self, cidrs: Collection[str]) -> None:
        """Look at the networks that addresses will come from; without it, the first address of each waits."""
        self._look({_cover(cidr) for cidr in cidrs})

    def release(self, addresses: Collection[str]) -> None:
        """The addresses have no holder any more, and no connection of theirs can begin."""
        self._due.update(addresses)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._rest, self._forget)

    async def gone(self, addresses: Collection[str]) -> None:
        """Return once no connection of an earlier holder of the addresses is left."""
        looks = self._look({_cover(address) for address in addresses})
        known = [await asyncio.shield(look) for look in looks]
        self._due |= self._inherited.intersection(addresses) if all(known) else set(addresses)
        if not self._due.isdisjoint(addresses):
            self._forget()
        if running := [work for work, of in self._running.items() if not of.isdisjoint(addresses)]:
            await asyncio.wait(running)

    async def close(self) -> None:
        """Delete what is due, and wait for all deletions under way."""
        self._forget()
        if self._running:
            await asyncio.wait(list(self._running))

    def _look(self, networks: Collection[str]) -> list[asyncio.Future[bool]]:
        if new := [network for network in networks if network not in self._looks]:
            look = asyncio.ensure_future(self._ask(new))
            self._looks |= dict.fromkeys(new, look)
        return [self._looks[network] for network in networks]

    async def _ask(self, networks: Collection[str]) -> bool:
        """Whether the table could be read; if not, the next holder has it looked at again."""
        try:
            self._inherited |= await self._connections.busy(networks)
        except OSError:
            for network in networks:
                del self._looks[network]
            return False
        return True

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._due:
            return
        due, self._due = frozenset(self._due), set()
        self._inherited -= due
        work = asyncio.ensure_future(self._connections.forget(due))
        self._running[work] = due
        work.add_done_callback(self._running.pop)


def _cover(text: str) -> str:
    """The network that is looked at for an address or CIDR."""
    inside = ipaddress.ip_network(text, strict=False)
    length = min(inside.prefixlen, _COVER[Family(inside.version)])
    return str(inside.supernet(new_prefix=length))
