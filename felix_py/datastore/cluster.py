"""The agent's view of the cluster as one object to start, wait for, subscribe to and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from felix_py import log
from felix_py.datastore.absence import Discovery
from felix_py.datastore.announcement_writer import AnnouncementWriter
from felix_py.datastore.block_objects import BlockObjects
from felix_py.datastore.client import Api
from felix_py.datastore.clock import SystemClock
from felix_py.datastore.conditions import ConditionWriter
from felix_py.datastore.decode import Kind
from felix_py.datastore.event_writer import EventWriter, ObjectRef
from felix_py.datastore.followed import Followed
from felix_py.datastore.informer import Reflector, Sink, Timing
from felix_py.datastore.kinds import (
    CLUSTER_POLICY_KINDS,
    IP_POOLS,
    NAMESPACES,
    NODES,
    OWN_KINDS,
    PODS,
    POLICIES,
    POOL_KINDS,
    pods,
)
from felix_py.datastore.named_secrets import NamedSecrets
from felix_py.datastore.outage import Outage
from felix_py.datastore.probe import Probe
from felix_py.datastore.service_kinds import ServiceObjects
from felix_py.datastore.status_writer import StatusWriter
from felix_py.datastore.store import Problem, Record, Store, Table
from felix_py.records import LoadBalancer
from policy.change import Change
from policy.model import ClusterPolicy, ObjectKey, Pod, PolicyRef

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

OnInvalid = Callable[[str, ObjectKey, str], None]
"""Called with kind, key and reason, once per reason, on the event loop."""

_KINDS = (PODS, NAMESPACES, POLICIES, NODES, *CLUSTER_POLICY_KINDS, *OWN_KINDS)
_API_VERSIONS = {kind.name: kind.api_version for kind in _KINDS}


class Source(Protocol[R_co]):
    """A source of all objects of one kind.

    It feeds its sink as :class:`felix_py.datastore.informer.Reflector` does: a list between LIST_BEGIN and
    LIST_END, then changes; it lists again whenever it is in doubt.
    """

    def start(self, sink: Sink[R_co]) -> None:
        """Begin, and call ``sink`` on the running event loop."""

    async def stop(self) -> None:
        """End: ``sink`` is not called afterwards."""

    def age(self) -> float:
        """Seconds since the source last received anything."""


PodSource = Source[Pod]
"""Replaceable: a cluster of thousands of nodes may one day publish its pods in a compact form."""


def watch_all_pods(api: Api, timing: Timing, outage: Outage, node_name: str) -> PodSource:
    """The pods of all nodes, by one watch on the API server."""
    return Reflector(api, pods(node_name), timing, outage=outage)


class _Watched(Struct, Generic[R], frozen=True):
    table: Table[R]
    source: Source[R]

    def start(self) -> None:
        self.source.start(self.table.apply)


class Cluster:
    """Informers, store, Event and condition writers of one agent. Everything here belongs to one event loop.

    Use::

        cluster = Cluster(connect(config.kubeconfig), node_name=config.node_name)
        cluster.store.subscribe(handler)
        cluster.start()
        await cluster.in_sync()
        …
        await cluster.stop()
    """

    def __init__(
        self,
        api: Api,
        *,
        node_name: str,
        timing: Timing | None = None,
        on_invalid: OnInvalid | None = None,
        pod_source: Callable[[Api, Timing, Outage, str], PodSource] = watch_all_pods,
        tiers_in_force: bool = False,
        configured: bool = False,
        pooled: bool = False,
        namespace: str = "kube-system",
    ) -> None:
        """``tiers_in_force``: the kernel has rules of cluster-scoped policies from before a restart. The
        absence of their kinds is then believed later. ``configured``: the same of our own kinds, whose objects
        are in force. ``pooled``: the same of pools. ``namespace``: the agent's own, where Secrets are.
        """
        timing = timing or Timing()
        self.store = Store(self._report)
        self.events = EventWriter(api, node_name=node_name)
        self.conditions = ConditionWriter(api)
        self.statuses = StatusWriter(api, node_name=node_name)
        self.announcements = AnnouncementWriter(api)
        self.api = api
        """For writes; blocking."""
        self._node_name = node_name
        self._on_invalid = on_invalid
        self._log = log.get("cluster")
        self.store.subscribe(self._judge)
        store = self.store
        clock = SystemClock()
        discovery, outage = Discovery(api, clock), Outage(timing.lost, clock)
        self.secrets = NamedSecrets(api, namespace, timing, outage)

        def reflected(table: Table[R]) -> _Watched[R]:
            if table.kind in POOL_KINDS:
                in_force = pooled
            else:
                in_force = configured if table.kind in OWN_KINDS else tiers_in_force and table.kind.optional
            reflector = Reflector(api, table.kind, timing, discovery=discovery, outage=outage, in_force=in_force)
            return _Watched(table, reflector)

        self._sources: list[_Watched[Any]] = [
            reflected(store.nodes),
            reflected(store.namespaces),
            reflected(store.policies),
            *(reflected(store.cluster_policies(kind)) for kind in CLUSTER_POLICY_KINDS),
            *(reflected(store.own(kind)) for kind in OWN_KINDS),
            _Watched(store.pods, pod_source(api, timing, outage, node_name)),
        ]
        sources = [watched.source for watched in self._sources]
        reflectors = [one for one in sources if isinstance(one, Reflector)]
        self._follow = partial(Followed, api, timing, reflectors, discovery=discovery, outage=outage)
        self.services = ServiceObjects(api, timing, node_name, reflectors, outage)
        """Services and EndpointSlices, which nothing but BGP asks for."""
        self.block_objects = BlockObjects(api, timing, node_name, reflectors, discovery, outage)
        """IPAMBlocks and BlockAffinities, which nothing but IPPools asks for."""
        self._probe = Probe(api, reflectors, timing)

    def start(self) -> None:
        """List and watch. Call it on the running event loop, once, after the handlers have subscribed."""
        self._log.info("watching the cluster", server=self.api.server)
        for watched in self._sources:
            watched.start()
        self._probe.start()
        self.events.start()
        self.conditions.start()
        self.statuses.start()

    def followed(self, *kinds: Kind[Any]) -> Followed:
        """Kinds to follow for a while, beside those that all agents follow."""
        return self._follow(kinds)

    async def in_sync(self) -> None:
        """Return once the first full list of every kind has been given to the handlers."""
        await self.store.in_sync.wait()

    async def stop(self) -> None:
        """End all watches; the store keeps its content."""
        stops = [watched.source.stop() for watched in self._sources]
        others = (self.events, self.conditions, self.statuses, self.announcements, self._probe)
        others_here = (self.services.stop(), self.secrets.stop(), self.block_objects.stop())
        await asyncio.gather(*stops, *others_here, *(asyncio.to_thread(one.stop) for one in others))
        self.api.close()

    def ages(self) -> dict[str, float]:
        """Kind -> seconds since its source last heard from the API server."""
        ages = {watched.table.kind.name: watched.source.age() for watched in self._sources}
        return ages | self.services.ages() | self.block_objects.ages()

    def refuses_pools(self) -> bool:
        """Whether the API server does not let us see IPPools, IPReservations or blocks."""
        pools = [one.source for one in self._sources if one.table.kind in POOL_KINDS]
        refused = any(isinstance(source, Reflector) and source.refused for source in pools)
        return refused or self.block_objects.refused()

    def refused_kinds(self) -> list[str]:
        """Other kinds that it does not let us see, by name."""
        found = self.services.refused_kinds()
        for kind, source in ((one.table.kind, one.source) for one in self._sources):
            if kind not in POOL_KINDS and isinstance(source, Reflector) and source.refused:
                found.append(kind.name)
        return sorted(found)

    async def set_network_available(self, node: str) -> None:
        """Set the condition NetworkUnavailable of ``node`` to False, so that pods are scheduled to it.

        Cloud node controllers set it to True until a network plug-in resets it.

        Raises:
            ApiError: the API server refuses (no such node, or not allowed: patch on nodes/status).
            Unreachable: no answer.
        """
        await asyncio.to_thread(self._patch_condition, node)

    def _patch_condition(self, node: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "FelixPyIsUp",
            "message": "felix-py is running on this node",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        body = msgspec.json.encode({"status": {"conditions": [condition]}})
        path = f"/api/v1/nodes/{quote(node, safe='')}/status"
        # A strategic merge patch merges conditions by their type: the kubelet's own stay.
        content_type = "application/strategic-merge-patch+json"
        with self.api.request("PATCH", path, body=body, content_type=content_type) as answer:
            answer.read()

    def tell_node(self, warning: bool, reason: str, message: str) -> None:
        """Write an Event on this node's object, if it is known."""
        if (node := self.store.nodes.records.get(("", self._node_name))) is not None:
            ref = ObjectRef("Node", "v1", "", node.name, node.uid)
            (self.events.warning if warning else self.events.normal)(ref, reason, message)

    def warn_own(self, kind: Kind[Any], name: str, uid: str, reason: str, message: str) -> None:
        """Write a Warning on a cluster-scoped object of ours."""
        self.events.warning(ObjectRef(kind.name, kind.api_version, "", name, uid), reason, message)

    def tell_service(self, service: LoadBalancer, warning: bool, reason: str, message: str) -> None:
        """Write an Event on a Service."""
        ref = ObjectRef("Service", "v1", service.namespace, service.name, service.uid)
        (self.events.warning if warning else self.events.normal)(ref, reason, message)

    def warn_pool(self, name: str, uid: str, reason: str, message: str) -> None:
        """Write a Warning on an IPPool."""
        self.warn_own(IP_POOLS, name, uid, reason, message)

    def warn(self, policy: PolicyRef, reason: str, message: str) -> None:
        """Write a Warning on a policy. ``reason``: one CamelCase word; ``message``: text for people."""
        table = self.store.policies_of(policy.kind)
        record = table.records.get((policy.namespace, policy.name))
        uid = record.uid if record is not None else ""
        ref = ObjectRef(table.kind.name, table.kind.api_version, policy.namespace, policy.name, uid)
        self.events.warning(ref, reason, message)

    def _report(self, problem: Problem) -> None:
        namespace, name = problem.key
        shown = f"{namespace}/{name}".lstrip("/")
        self._log.warning("cannot use an object", kind=problem.kind, object=shown, reason=problem.reason)
        if name:
            ref = ObjectRef(problem.kind, _API_VERSIONS[problem.kind], namespace, name, problem.uid)
            self.events.warning(ref, f"Invalid{problem.kind}", problem.reason)
        if self._on_invalid is not None:
            self._on_invalid(problem.kind, problem.key, problem.reason)

    def _judge(self, changes: Sequence[Change[Record]]) -> None:
        """Have the condition reviewed of policies that have problems, or had some before the change."""
        for change in changes:
            match change.after:
                case ClusterPolicy() as policy:
                    had = change.before.problems if isinstance(change.before, ClusterPolicy) else ()
                    if policy.problems or had:
                        self.conditions.review(policy.kind.value, policy.name)
