"""Cluster objects, endpoints and learned routes, noted as they come and moved into the planner on demand.

Nothing here does I/O. Noting is cheap; :meth:`Facts.collect` runs when an apply is about to start, so a burst of
events costs one plan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from msgspec.structs import replace

from bgp.prefixes import PrefixSet, version
from felix_py.agent import own_prefixes
from felix_py.agent.announced import Announced
from felix_py.agent.held import HeldLeases
from felix_py.agent.host_gateway import HostGateway
from felix_py.agent.own_prefixes import OwnPrefixes, hosts_of
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.agent.remote_routes import RemoteRoutes
from felix_py.agent.view import ClusterView
from felix_py.datastore.store import Record
from felix_py.desired.planner import Planner, learned_routes
from felix_py.layout import EXCLUDED
from felix_py.notices import NoticeKind
from felix_py.observe import disputes
from felix_py.records import Lease, NodeRecord, endpoint_of
from felix_py.refs import LinkRef, Ref, RouteRef
from policy.change import Change
from policy.engine.compile import Engine
from policy.ir import Delta
from policy.model import Family, ObjectKey, Pod

_ROUTES_AT_A_TIME = 5000
"""Routes moved in one call: some ten milliseconds' work."""


class Facts:
    """Cluster objects, endpoints and learned routes of one agent."""

    def __init__(
        self,
        node_name: str,
        pods: Mapping[ObjectKey, Pod],
        nodes: Mapping[ObjectKey, NodeRecord],
        held: HeldLeases,
        engine: Engine,
        view: ClusterView,
        cluster_cidrs: tuple[str, ...] = (),
        *,
        changed: Callable[[], None] = lambda: None,
        tell: Callable[[NoticeKind, Mapping[str, str]], None] = lambda _kind, _now: None,
        on_policy: Sequence[Callable[[Delta], None]] = (),
        host_gateway: HostGateway | None = None,
        pooled: Pooled | None = NO_POOLS,
        announced: Announced | None = None,
    ) -> None:
        """``pods`` and ``nodes`` are the store's: they show the state after the last change that was folded.

        ``changed`` is called at every note, to request a collection. ``tell`` is called with all notices of one
        kind, by subject, when they may have changed; ``on_policy`` with each change of compiled policy, once the
        view shows the state after it. ``host_gateway`` makes routes from Node objects. ``pooled`` None: whether
        there are IPPools is not known yet. ``announced`` None: no pod's annotation is believed.
        """
        self.held = held
        self.engine = engine
        self.view = view
        self.nodes_changed = asyncio.Event()
        """Set when Nodes, and so perhaps pod CIDRs, have changed; its waiter clears it."""
        self._node_name = node_name
        self._families = engine.families
        self._cluster_cidrs = cluster_cidrs
        self._changed = changed
        self._tell = tell
        self._on_policy = on_policy
        self._pods = pods
        self._nodes = nodes
        self._nodes_changed = True
        self._own_stale = True
        self._own_last = OwnPrefixes()
        self._own_known = False
        self._pooled = pooled
        self._announced = announced
        self._inside = PrefixSet()
        self._attached: dict[ObjectKey, tuple[Lease, ...]] = {}
        self._moved: dict[ObjectKey, None] = {}
        self._leaving: list[Lease] = []
        self.remote = RemoteRoutes()
        """Routes to other nodes' pods."""
        self._host_gateway = host_gateway
        self._disputes = 0

    # --- cluster objects -----------------------------------------------------------------------------

    def fold(self, change: Change[Record]) -> None:
        """Take over a new, changed or deleted object."""
        self.view.fold(change)
        if node := change.of(NodeRecord):
            self._fold_node(node.before, node.after)
        else:
            self.engine.fold(change)
        self._changed()

    def _fold_node(self, before: NodeRecord | None, after: NodeRecord | None) -> None:
        self.engine.fold(Change(before.as_peer() if before else None, after.as_peer() if after else None))
        if before is None or after is None or _where(before) != _where(after):
            self._note_nodes()

    def _note_nodes(self) -> None:
        self._nodes_changed = self._own_stale = True
        self.nodes_changed.set()

    def _own(self) -> OwnPrefixes:
        """This node's pod prefixes, computed on demand because at the start all Nodes come at once."""
        if self._own_stale:
            self._own_stale = False
            self._own_known = self._own_known or self.node is not None
            standing = self.held.standing()
            self._own_last = self._own_last.following(
                self.node, self._other_nodes(), standing, self._families, self.pooled
            )
            self._inside = PrefixSet(self._own_last.lasting)
        return self._own_last

    @property
    def pooled(self) -> Pooled:
        """Pools and blocks as last known."""
        return self._pooled or NO_POOLS

    @property
    def pools_known(self) -> bool:
        """Whether it is known which pools there are."""
        return self._pooled is not None

    def set_pooled(self, pooled: Pooled) -> None:
        """Take over pools and blocks."""
        if pooled != self._pooled:
            self._pooled = pooled
            self._note_nodes()
            self._changed()

    def _other_nodes(self) -> list[NodeRecord]:
        return [node for node in self._every_node() if node.name != self._node_name]

    def _every_node(self) -> Iterator[NodeRecord]:
        return (_without_others(node, self._families) for node in self._nodes.values())

    @property
    def node(self) -> NodeRecord | None:
        """This node's Node object."""
        node = self._nodes.get(("", self._node_name))
        return None if node is None else _without_others(node, self._families)

    def pod(self, key: ObjectKey) -> Pod | None:
        """The API server's object of a pod."""
        return self._pods.get(key)

    def pods_here(self) -> list[Pod]:
        """The API server's pods of this node."""
        return [pod for pod in self._pods.values() if self.is_here(pod)]

    def is_here(self, pod: Pod) -> bool:
        """Whether a pod is scheduled to this node."""
        return pod.node == self._node_name

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """This node's pod CIDRs; empty until its object is known."""
        return self.node.pod_cidrs if self.node else ()

    @property
    def address_cidrs(self) -> tuple[str, ...]:
        """The CIDRs that this node gives addresses of: its blocks, and podCIDRs of families without pools."""
        from_pools = {int(family) for family in self.pooled.families}
        return (
            *self.pooled.blocks,
            *self.pooled.borrowed,
            *(cidr for cidr in self.pod_cidrs if version(cidr) not in from_pools),
        )

    def node_addresses(self) -> list[str]:
        """The addresses of all nodes."""
        return [address for node in self._nodes.values() for address in node.addresses]

    @property
    def own_prefixes(self) -> tuple[str, ...] | None:
        """The prefixes of this node: its podCIDRs, also while its object is gone, its blocks, and the addresses
        of running pods outside of them. None: its object was never seen, or pools are not known yet."""
        own = self._own()
        return own.all if self._own_known and self.pools_known else None

    @property
    def announced(self) -> tuple[str, ...] | None:
        """Those of :attr:`own_prefixes` that BGP may tell."""
        own = self.own_prefixes
        return None if own is None else self.pooled.exported(own)

    @property
    def never_learned(self) -> tuple[str, ...]:
        """Prefixes that nobody else may teach this node: its own, but for what others have out of them."""
        return self.pooled.not_others(self.own_prefixes or ())

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """The cluster's pod CIDRs: as configured, else those of all nodes; and all pools for pods."""
        cidrs = self._cluster_cidrs
        if not cidrs:
            cidrs = tuple(sorted({cidr for node in self._every_node() for cidr in node.pod_cidrs}))
        return tuple(dict.fromkeys((*cidrs, *self.pooled.cluster_cidrs)))

    @property
    def no_next_hops(self) -> tuple[str, ...]:
        """CIDRs and addresses that no next hop may be in: this node's pods, and its own addresses."""
        return (*self._own().all, *(self.node.addresses if self.node else ()))

    # --- endpoints -----------------------------------------------------------------------------------

    def attach(self, lease: Lease) -> None:
        """Add an endpoint, whose interface is up."""
        self.held.add(lease)
        self._endpoint(lease)

    def leaving(self, lease: Lease) -> None:
        """Expect the deletion of a pod's interface: that it or its route is missing is no drift from now on.

        No reason for an apply: the kernel removes the route with the interface, and :meth:`detach` follows.
        """
        self.held.leaving(lease)
        self._leaving.append(lease)

    def is_leaving(self, ref: Ref) -> bool:
        """Whether this belongs to a pod whose interface is being deleted, which no plan knows yet.

        Any thread may ask.
        """
        match ref:
            case LinkRef(interface):
                return any(interface == lease.interface for lease in self._leaving)
            case RouteRef(destination):
                return any(destination in hosts_of(lease) for lease in self._leaving)
        return False

    def detach(self, lease: Lease) -> None:
        """Remove an endpoint, if it was attached."""
        self.held.remove(lease)
        self._endpoint(lease)

    def _endpoint(self, changed: Lease) -> None:
        key = changed.owner
        # At a start all endpoints come before the Node: to look at all of them for each would take the square.
        if self._own_stale or not all(map(self._inside.covers, hosts_of(changed, self._families))):
            self._note_nodes()
        if leases := self.held.of(key):
            endpoint, pod = endpoint_of(*leases), self.pod(key)
            if self._announced:
                pod = self._announced.told(pod)  # as it was folded
            self.engine.attach(endpoint, pod)
            self.view.attach(endpoint, pod)
        else:
            self.engine.detach(key)
            self.view.detach(key)
        self._moved[key] = None
        self._changed()

    # --- routes --------------------------------------------------------------------------------------

    def learned(
        self,
        routes: Mapping[str, tuple[str, ...]],
        interface_of: Callable[[str], str] = lambda _gateway: "",
        metric_of: Callable[[str], int] = lambda _prefix: 0,
    ) -> None:
        """Note changed best routes: prefix -> gateways, () when withdrawn.

        ``interface_of`` returns the interface of a gateway; empty: the kernel resolves it. ``metric_of`` returns
        the metric of a prefix's route; 0: the default.
        """
        self.remote.from_bgp(learned_routes(routes, interface_of, metric_of))
        self._changed()

    # --- to the planner ------------------------------------------------------------------------------

    def collect(self, planner: Planner) -> bool:
        """Move everything noted since the last call into the planner. Returns True if there is more to move.

        Routes to other nodes are moved in slices, because this blocks the event loop.
        """
        if self._host_gateway and (self._nodes_changed or self._host_gateway.due):
            nodes, own = list(self._every_node()), self._own()
            self._host_gateway.make(self.remote, nodes, own, self.cluster_cidrs, self.no_next_hops, self.pooled)
        if self._nodes_changed:
            self._nodes_changed = False
            for change in self._announced.review(self.pooled) if self._announced else ():
                self.view.fold(change)
                self.engine.fold(change)
            own = self._own()
            pods, pooled = (*self.cluster_cidrs, *own.all), self.pooled
            inside = (*pods, *pooled.all_pools())
            planner.cluster(own.dead_ends(pooled), inside, set(self.node_addresses()), pooled.masqueraded(pods))
            self._tell_of_prefixes()
        self.view.advance()
        for delta in self.engine.flush():
            planner.policy(delta)
            for listener in self._on_policy:
                listener(delta)
        if self._disputes != self.engine.holders.revision:
            self._disputes = self.engine.holders.revision
            self._tell(NoticeKind.ADDRESS_CLAIMED_TWICE, disputes.told(self.engine.holders))
        moved, self._moved = self._moved, {}
        for key in moved:
            self._move(planner, key)
        leaving, self._leaving = self._leaving, []
        for lease in leaving:
            if lease in self._attached.get(lease.owner, ()):
                planner.leave(lease)
        planner.learned(self.remote.take(_ROUTES_AT_A_TIME))
        return self.remote.undone

    def _tell_of_prefixes(self) -> None:
        own, standing = self._own(), self.held.standing()
        outside, shared = own_prefixes.told(own, self.node, self._other_nodes(), standing, self.pooled)
        self._tell(NoticeKind.PODS_OUTSIDE_POD_CIDR, outside)
        self._tell(NoticeKind.POD_CIDR_SHARED, shared)

    def _move(self, planner: Planner, key: ObjectKey) -> None:
        before, now = self._attached.pop(key, ()), self.held.of(key)
        for lease in before:
            if lease not in now:
                planner.detach(lease)
        if now:
            self._attached[key] = now
        for lease in now:
            if lease not in before:
                planner.attach(lease)


def _without_others(node: NodeRecord, families: Collection[Family]) -> NodeRecord:
    """Returns the node without podCIDRs of families that are switched off: no pod has such an address."""
    cidrs = tuple(cidr for cidr in node.pod_cidrs if (Family.V6 if ":" in cidr else Family.V4) in families)
    return node if cidrs == node.pod_cidrs else replace(node, pod_cidrs=cidrs)


def _where(node: NodeRecord) -> object:
    """The fields that planner and BGP use: a heartbeat or label must not cost as much as all nodes do."""
    drain = node.drain, EXCLUDED in node.labels
    return node.addresses, node.internal_addresses, node.pod_cidrs, *drain
