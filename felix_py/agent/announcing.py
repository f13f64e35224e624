"""Keeps the speaker at what this node announces, and the kernel at what must not leave it again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from bgp.resources import BGPConfiguration
from bgp.services import Drained
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.facts import Facts
from felix_py.agent.service_prefixes import Objects, ServicePrefixes
from felix_py.dataplane.service_drops import Dropping
from felix_py.ipam.load_balancers import announced
from felix_py.notices import NoticeKind, Notices
from felix_py.speaker import Speaker
from policy.model import Family

_LOOK = 10.0
"""Seconds between two looks whether the API server refuses us the Services."""

_AGAIN = 1.0
_UNLISTED, _DROPS = "Services", "routing rules"


class Announcing:
    """The announcements of this node. On the event loop only."""

    def __init__(
        self,
        facts: Facts,
        objects: Objects,
        families: tuple[Family, ...],
        notices: Notices,
        speaker: Speaker,
        pools: DeclaredPools | None = None,
    ) -> None:
        """``pools``: those of the cluster, whose addresses for load balancers are announced."""
        self._facts = facts
        self._notices = notices
        self._speaker = speaker
        self._due, self._news = asyncio.Event(), asyncio.Event()
        self._refused = False
        self._announced: object = None
        self._sent: object = None
        self._dropping = Dropping(families, self._tell_drops)
        self.prefixes = ServicePrefixes(objects, self._due.set)
        self._pools = pools
        if pools is not None:
            self.prefixes.set_pools(None)
            pools.on_change(self._take_pools)
            self._take_pools()

    def configure(self, config: BGPConfiguration) -> None:
        """Set what is in force on this node."""
        self.prefixes.configure(config)

    def nowhere(self) -> None:
        """No BGP is configured: nothing is announced, and nothing that an earlier life announced is dropped."""
        self._dropping.set(())

    def review(self) -> None:
        """The Nodes, or the prefixes of this one's pods, may have changed."""
        if (node := self._facts.node) is not None:
            self.prefixes.set_node(node.labels, node.drain)
        self._due.set()

    def _take_pools(self) -> None:
        if self._pools is not None and self._pools.listed:
            self.prefixes.set_pools(announced(self._pools.pools))

    def drained(self) -> Drained:
        """How far the drain of this node is."""
        found = self.prefixes.drained()
        return replace(found, sent=self._announced is not None and self._sent == self._state())

    async def run_drops(self) -> None:
        """Keep the kernel's rules until cancelled, also before :meth:`run`."""
        await self._dropping.run()

    @property
    def dropped(self) -> frozenset[str] | None:
        """The Service prefixes whose packets are dropped where no Service takes them; None: not known yet."""
        return self._dropping.prefixes

    async def run(self) -> None:
        """Announce until cancelled; everything stays announced then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_for_refusals())
            tasks.create_task(self._keep_announcing())
            tasks.create_task(self._keep_delivering())

    async def _look_for_refusals(self) -> None:
        """Announce the prefixes of pods although Services are not known, if they may never be. A server that is
        only away is waited for: what an earlier agent announced is announced still."""
        while not self.prefixes.known:
            await asyncio.sleep(_LOOK)
            if self._pools is not None and not self._pools.listed:
                self.prefixes.set_pools(())
            self._refused = self.prefixes.refused
            self._due.set()

    async def _keep_announcing(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._announce()

    async def _keep_delivering(self) -> None:
        """While the node is being drained, find out when ExaBGP has sent what was announced last."""
        while True:
            await self._news.wait()
            self._news.clear()
            what = self._state()
            while self.prefixes.drained().asked and self._sent != what:
                if await self._speaker.delivered():
                    self._sent = what
                else:
                    await asyncio.sleep(_AGAIN)
                what = self._state()

    def _state(self) -> object:
        return self.prefixes.drained().stage, self._announced

    def _announce(self) -> None:
        own = self._facts.announced
        known = self.prefixes.known
        if own is None or not (known or self._refused):
            # An agent that has never seen its Node object, or no Services yet, must not withdraw what works.
            return
        self._tell_unlisted(known)
        found = self.prefixes.announcements(own)
        # Dropping begins before the first packet may come, and ends with the last one, or nearly so.
        self._dropping.set(self.prefixes.service_prefixes())
        if found != self._announced:
            self._announced = found
            self._speaker.announce(found.values())
        self._news.set()

    def _tell_unlisted(self, known: bool) -> None:
        text = (
            "Services cannot be listed, so addresses of Services are not announced: see the log, and whether the "
            "ClusterRole felix-py is of this version"
        )
        self._notices.tell(NoticeKind.BGP, _UNLISTED, "" if known else text)

    def _tell_drops(self, problem: str) -> None:
        self._notices.tell(NoticeKind.BGP, _DROPS, problem)
