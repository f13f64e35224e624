"""IPAMBlocks of all nodes and BlockAffinities of this one, which only clusters with IPPools need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from felix_py import log
from felix_py.datastore.absence import Discovery
from felix_py.datastore.client import Api
from felix_py.datastore.decode import Kind
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.kinds import IPAM_BLOCKS, block_affinities
from felix_py.datastore.outage import Outage
from felix_py.datastore.store import Problem, Table
from felix_py.ipam.resources import BlockAffinity, IPAMBlock
from policy.change import Change

OnBlocks = Callable[[Sequence[Change[Any]]], None]
"""Receives changes of IPAMBlock and BlockAffinity in order, on the loop."""


class BlockObjects:
    """Both kinds, from when they are first wanted until the agent ends. On the event loop only."""

    def __init__(
        self,
        api: Api,
        timing: Timing,
        node: str,
        watched: list[Reflector[Any]],
        discovery: Discovery,
        outage: Outage,
    ) -> None:
        """``watched``: the agent's reflectors, whose silent watches are looked after; ours join them."""
        self._log = log.get("blocks")
        self._watched = watched
        self._handler: OnBlocks = lambda _changes: None
        self._started = False
        affinities = block_affinities(node)
        self.blocks: Table[IPAMBlock] = self._table(IPAM_BLOCKS)
        self.affinities: Table[BlockAffinity] = self._table(affinities)

        def reflector(kind: Kind[Any]) -> Reflector[Any]:
            # Blocks may be in use: that the kinds are not there is believed late.
            return Reflector(api, kind, timing, discovery=discovery, outage=outage, in_force=True)

        self._sources: list[tuple[Table[Any], Reflector[Any]]] = [
            (self.blocks, reflector(IPAM_BLOCKS)),
            (self.affinities, reflector(affinities)),
        ]

    def _table(self, kind: Kind[Any]) -> Table[Any]:
        return Table(kind, self._publish, self._say, lambda _kind: None)

    def subscribe(self, handler: OnBlocks) -> None:
        """Give ``handler`` every change from now on. Call it once, before :meth:`want`."""
        self._handler = handler

    def want(self) -> None:
        """Watch both kinds."""
        if self._started:
            return
        self._started = True
        self._log.info("watching blocks, since there are IPPools")
        for table, reflector in self._sources:
            self._watched.append(reflector)
            reflector.start(table.apply)

    @property
    def wanted(self) -> bool:
        """Whether the kinds are watched."""
        return self._started

    def listed(self) -> bool:
        """Whether the full lists of both kinds are in."""
        return all(table.listed.is_set() for table, _ in self._sources)

    def refused(self) -> bool:
        """Whether the API server does not let us see them."""
        return self._started and any(reflector.refused for _, reflector in self._sources)

    def ages(self) -> dict[str, float]:
        """Kind -> seconds since its watch last heard from the API server; none before they are wanted."""
        return {table.kind.name: source.age() for table, source in self._sources} if self._started else {}

    async def stop(self) -> None:
        """End the watches."""
        if self._started:
            await asyncio.gather(*(reflector.stop() for _, reflector in self._sources))

    def _publish(self, changes: Sequence[Change[Any]]) -> None:
        try:
            self._handler(changes)
        except MemoryError:
            raise
        except Exception:
            # A defect of ours with one object must not end the watch.
            self._log.exception("cannot take over blocks", changes=len(changes))

    def _say(self, problem: Problem) -> None:
        self._log.warning("cannot use an object", kind=problem.kind, object=problem.key[1], reason=problem.reason)
