"""The cluster's state behind the kernel's rules, for the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

from felix_py.datastore.store import Record
from felix_py.records import NodeRecord
from policy.change import Change
from policy.holders import Holders, claimed
from policy.model import ClusterPolicy, LocalEndpoint, Namespace, NetworkPolicy, Node, ObjectKey, Pod, PolicyRef

K = TypeVar("K")
V = TypeVar("V")


class ClusterView:
    """A :class:`policy.oracle.evaluate.View` that is updated incrementally. On the event loop only.

    It gets the same events as the engine. They take effect at the next :meth:`advance`, together with the
    engine's flush: so the view is never ahead of the rules, and after an apply the two agree.
    """

    def __init__(self) -> None:
        self._noted: list[Change[Record] | _Lease] = []
        self._namespaces: dict[str, Namespace] = {}
        self._nodes: dict[str, Node] = {}
        self._policies: dict[str, dict[PolicyRef, NetworkPolicy]] = {}
        self._cluster_policies: dict[PolicyRef, ClusterPolicy] = {}
        self._endpoints: dict[ObjectKey, LocalEndpoint] = {}
        self._pods_now: dict[ObjectKey, Pod] = {}
        self._pods_last: dict[ObjectKey, Pod] = {}
        self._at = Holders()
        self.revision = 0
        """Grows with every :meth:`advance` that brought changes."""

    def fold(self, change: Change[Record]) -> None:
        """Note a new, changed or deleted object."""
        self._noted.append(change)

    def attach(self, endpoint: LocalEndpoint, pod: Pod | None) -> None:
        """Note a new endpoint of this node, or new addresses of one. ``pod``: its pod's object, if known."""
        self._noted.append(_Lease(endpoint.key, endpoint, pod))

    def detach(self, key: ObjectKey) -> None:
        """Note that an endpoint of this node is gone."""
        self._noted.append(_Lease(key, None, None))

    def advance(self) -> None:
        """Let everything noted take effect."""
        noted, self._noted = self._noted, []
        self.revision += bool(noted)
        for note in noted:
            if isinstance(note, _Lease):
                self._set_endpoint(*note)
            else:
                self._set(note)

    def _set(self, change: Change[Record]) -> None:
        if pod := change.of(Pod):
            self._set_pod(pod.newest.key, pod.before, pod.after)
        elif policy := change.of(NetworkPolicy):
            ref = policy.newest.ref
            policies = self._policies.setdefault(ref.namespace, {})
            _put(policies, ref, policy.after)
            if not policies:
                del self._policies[ref.namespace]
        elif cluster_policy := change.of(ClusterPolicy):
            _put(self._cluster_policies, cluster_policy.newest.ref, cluster_policy.after)
        elif namespace := change.of(Namespace):
            _put(self._namespaces, namespace.newest.name, namespace.after)
        elif node := change.of(NodeRecord):
            _put(self._nodes, node.newest.name, node.after.as_peer() if node.after else None)

    def _set_pod(self, key: ObjectKey, before: Pod | None, after: Pod | None) -> None:
        endpoint = self._endpoints.get(key)
        if endpoint is not None:
            _put(self._pods_now, key, after)
            if after is not None and endpoint.stands_for(after):
                self._pods_last[key] = after
        self._at.claim(key, claimed(before, endpoint), claimed(after, endpoint), after)

    def _set_endpoint(self, key: ObjectKey, endpoint: LocalEndpoint | None, pod: Pod | None) -> None:
        before = self._endpoints.get(key)
        _put(self._endpoints, key, endpoint)
        if endpoint is None:
            pod = self._pods_now.pop(key, None)
        else:
            _put(self._pods_now, key, pod)
        if endpoint is None or (before is not None and before.uid != endpoint.uid):
            self._pods_last.pop(key, None)
        if endpoint is not None and pod is not None and endpoint.stands_for(pod):
            self._pods_last[key] = pod
        self._at.lease(key, before, endpoint)
        self._at.claim(key, claimed(pod, before), claimed(pod, endpoint), pod)

    # --- policy.oracle.evaluate.View -----------------------------------------------------------------

    def namespace(self, name: str) -> Namespace | None:
        return self._namespaces.get(name)

    def pod_at(self, address: str) -> Pod | None:
        """:mod:`policy.holders` decides if several pods claim the address."""
        return self._at.pod(address)

    def nodes(self) -> Iterable[Node]:
        return self._nodes.values()

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        return self._policies.get(namespace, {}).values()

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        return self._cluster_policies.values()

    # --- this node -----------------------------------------------------------------------------------

    def endpoints(self) -> Iterator[LocalEndpoint]:
        """The endpoints of this node."""
        yield from self._endpoints.values()

    def endpoint_addresses(self) -> frozenset[str]:
        """All addresses of this node's endpoints."""
        return frozenset(a for endpoint in self._endpoints.values() for a in endpoint.addresses)

    def endpoint_at(self, address: str) -> ObjectKey | None:
        """The pod of this node's endpoint with an address."""
        return self._at.endpoint(address)

    def subject_at(self, address: str) -> Pod | None:
        """The pod whose policy this node's rules apply to an address, or None if there is none or it is unknown.

        It differs from ``pod_at`` for endpoints that peers do not resolve to a pod any more: one whose pod has
        ended, or whose object was deleted (or replaced by a later pod's of its name) before its interface, keeps
        the policy of its last known object. Its named ports are then left out, as no set has them.
        """
        key = self.endpoint_at(address)
        taken_for = self.pod_at(address)
        if key is None:
            return taken_for
        pod = self._pods_last.get(key)
        if pod is None or pod.host_network:
            return None
        return pod if pod is taken_for else replace(pod, ports=())


class _Lease(NamedTuple):
    key: ObjectKey
    endpoint: LocalEndpoint | None  # None: it is gone
    pod: Pod | None


def _put(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
