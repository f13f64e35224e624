"""``routeSource: kubernetes`` in the agent: routes to nodes of the same segment follow Node objects and links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from itertools import islice

from bgp.prefixes import PrefixSet
from felix_py.agent.own_prefixes import OwnPrefixes
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.agent.remote_routes import RemoteRoutes
from felix_py.dataplane.reach import Hosts, Links
from felix_py.desired.host_gateway import NodeRoutes, node_routes
from felix_py.notices import NoticeKind, Notices
from felix_py.records import NodeRecord

_TELL = 1.0
"""Seconds between two updates of the notices."""

_NODES_TOLD = 20
"""Nodes with notices of their own: a whole segment may be out of reach."""


class HostGateway:
    """Makes the routes from Node objects. On the event loop only."""

    def __init__(
        self, node_name: str, service_cidrs: Collection[str], notices: Notices, changed: Callable[[], None]
    ) -> None:
        """``changed`` is called when links have changed, to have the routes made anew."""
        self._name = node_name
        self._service_cidrs = service_cidrs
        self._notices = notices
        self._changed = changed
        self._links: Links | None = None
        self._linked = asyncio.Event()
        self._found = NodeRoutes()
        self._told: tuple[NodeRoutes, int] | None = None
        self.due = False
        """Whether links have changed since the routes were made."""

    def on_links(self, links: Links) -> None:
        """Take over the host's links."""
        self._links = links
        self.due = True
        self._linked.set()
        self._changed()

    async def linked(self) -> None:
        """Return once the links are known: before that, no node is on one."""
        await self._linked.wait()

    def make(
        self,
        remote: RemoteRoutes,
        nodes: Collection[NodeRecord],
        own: OwnPrefixes,
        cluster_cidrs: Collection[str],
        never: Collection[str],
        pooled: Pooled = NO_POOLS,
    ) -> None:
        """Make the routes anew. ``never``: CIDRs that no next hop may be in."""
        self.due = False
        if self._links is None:
            return
        self._found = node_routes(
            self._name,
            nodes,
            Hosts(self._links, never),
            own=own.cidrs,
            within=PrefixSet(cluster_cidrs),
            never=PrefixSet((*self._service_cidrs, *own.strays)),
            blocks=pooled.of_others(),
        )
        remote.from_nodes(self._found.routes)

    # --- what an operator must know ------------------------------------------------------------------

    async def keep_telling(self, remote: RemoteRoutes) -> None:
        """Keep the notices, until cancelled. Begin once BGP has had time to tell its routes."""
        while True:
            self.tell(remote)
            await asyncio.sleep(_TELL)

    def tell(self, remote: RemoteRoutes) -> None:
        """Update the notices of nodes whose pods no route of ours leads to."""
        if self._told and self._told[0] is self._found and self._told[1] == remote.bgp_revision:
            return
        self._told = (self._found, remote.bgp_revision)
        taught = PrefixSet(remote.bgp_prefixes() if self._found.apart else ())
        missing = self._found.refused | {
            claim: why for claim, why in self._found.apart.items() if not taught.covers(claim.cidr)
        }
        of_node: dict[str, list[str]] = {}
        for claim in sorted(missing):
            of_node.setdefault(claim.node, []).append(f"{claim.cidr} ({missing[claim]})")
        told = {
            node: f"there is no route to the pods of node {node}: {'; '.join(cidrs)}"
            for node, cidrs in islice(of_node.items(), _NODES_TOLD)
        }
        if len(of_node) > _NODES_TOLD:
            told["others"] = f"there is no route to the pods of {len(of_node) - _NODES_TOLD} further nodes"
        self._notices.replace(NoticeKind.NODE_ROUTE, told)
