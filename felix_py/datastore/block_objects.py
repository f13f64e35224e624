"""IPAMBlocks of all nodes and BlockAffinities of this one, which only clusters with IPPools need."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from felix_py.datastore.absence import Discovery
from felix_py.datastore.client import Api
from felix_py.datastore.followed import Followed
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.kinds import IPAM_BLOCKS, block_affinities
from felix_py.datastore.outage import Outage
from felix_py.datastore.store import Table
from felix_py.ipam.resources import BlockAffinity, IPAMBlock

_RETRY = 0.1
"""Mean seconds until the second try: pods may be waiting when the first pool has come."""


class BlockObjects(Followed):
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
        """See :class:`Followed`."""
        affinities = block_affinities(node)
        super().__init__(
            api,
            replace(timing, retry=(_RETRY, timing.retry[1])),
            watched,
            (IPAM_BLOCKS, affinities),
            discovery=discovery,
            outage=outage,
            in_force=True,
            component="blocks",
        )
        self.blocks: Table[IPAMBlock] = self.table(IPAM_BLOCKS)
        self.affinities: Table[BlockAffinity] = self.table(affinities)

    def want(self) -> None:
        """Watch both kinds."""
        if self.start():
            self._log.info("watching blocks, since there are IPPools")

    @property
    def wanted(self) -> bool:
        """Whether the kinds are watched."""
        return bool(self._started)
