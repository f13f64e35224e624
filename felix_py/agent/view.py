"""The cluster as the kernel's rules see it, for questions that the oracle answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

from felix_py.records import NodeRecord
from policy.model import (
    ClusterPolicy,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Node,
    ObjectKey,
    Pod,
    PolicyRef,
)

K = TypeVar("K")
V = TypeVar("V")

Record = Pod | Namespace | NetworkPolicy | ClusterPolicy | NodeRecord


class ClusterView:
    """A :class:`policy.evaluate.View` that is kept up to date, at a cost that follows the change.

    It is fed from the same events as the engine. What is noted counts from the next :meth:`advance` on, which
    comes with the engine's flush: so the view is never ahead of what is being written to the kernel, and once an
    apply is done the two agree. On the event loop only.
    """

    def __init__(self) -> None:
        self._noted: list[Record | _Note] = []
        self._namespaces: dict[str, Namespace] = {}
        self._nodes: dict[str, Node] = {}
        self._policies: dict[str, dict[PolicyRef, NetworkPolicy]] = {}
        self._cluster_policies: dict[PolicyRef, ClusterPolicy] = {}
        self._endpoints: dict[ObjectKey, LocalEndpoint] = {}
        self._pods_now: dict[ObjectKey, Pod] = {}
        self._pods_last: dict[ObjectKey, Pod] = {}
        self._at = _Addresses()
        self.revision = 0
        """Grows with every step forward that brought something new."""

    # --- what is new ---------------------------------------------------------------------------------

    def upsert(self, record: Record, previous: Pod | None = None) -> None:
        """An object is new or has changed.

        ``previous``: what a pod was before, as it was last noted; the view keeps no list of pods of its own.
        """
        self._noted.append(record if previous is None else _Note(previous, record))

    def delete(self, record: Record) -> None:
        """An object is gone; ``record`` is what was last noted of it."""
        self._noted.append(_Note(record, None))

    def attach(self, endpoint: LocalEndpoint, pod: Pod | None) -> None:
        """A pod interface of this node is there, or has other addresses. ``pod``: its pod's object, if known."""
        self._noted.append(_Note(pod, endpoint))

    def detach(self, key: ObjectKey) -> None:
        """A pod interface of this node is gone."""
        self._noted.append(_Note(LocalEndpoint(*key, ()), None))

    def advance(self) -> None:
        """From now on everything noted counts."""
        noted, self._noted = self._noted, []
        self.revision += bool(noted)
        for note in noted:
            if isinstance(note, Pod):
                self._set_pod(None, note)
            elif isinstance(note, _Note):
                self._take(*note)
            else:
                self._set(note, there=True)

    def _take(self, before: Record | LocalEndpoint | None, after: Record | LocalEndpoint | None) -> None:
        if isinstance(after, LocalEndpoint):
            self._set_endpoint(after.key, after, before if isinstance(before, Pod) else None)
        elif isinstance(before, LocalEndpoint):
            self._set_endpoint(before.key, None, None)
        elif isinstance(before, Pod):
            self._set_pod(before, after if isinstance(after, Pod) else None)
        elif before is not None:
            self._set(before, there=False)

    def _set(self, record: Record, *, there: bool) -> None:
        match record:
            case NetworkPolicy():
                policies = self._policies.setdefault(record.namespace, {})
                _put(policies, record.ref, record if there else None)
                if not policies:
                    del self._policies[record.namespace]
            case ClusterPolicy():
                _put(self._cluster_policies, record.ref, record if there else None)
            case Namespace():
                _put(self._namespaces, record.name, record if there else None)
            case NodeRecord():
                node = Node(record.name, record.labels, record.addresses)
                _put(self._nodes, record.name, node if there else None)

    def _set_pod(self, before: Pod | None, after: Pod | None) -> None:
        key = (after or before).key  # type: ignore[union-attr]
        endpoint = self._endpoints.get(key)
        if endpoint is not None:
            _put(self._pods_now, key, after)
            if after is not None:
                self._pods_last[key] = after
        self._at.move(key, _addresses(before, endpoint), _addresses(after, endpoint), after)

    def _set_endpoint(self, key: ObjectKey, endpoint: LocalEndpoint | None, pod: Pod | None) -> None:
        before = self._endpoints.get(key)
        _put(self._endpoints, key, endpoint)
        if endpoint is None:
            pod = self._pods_now.pop(key, None)
            self._pods_last.pop(key, None)
        elif pod is not None:
            self._pods_now[key] = self._pods_last[key] = pod
        self._at.hold(key, before.addresses if before else (), endpoint.addresses if endpoint else ())
        self._at.move(key, _addresses(pod, before), _addresses(pod, endpoint), pod)

    # --- policy.evaluate.View ------------------------------------------------------------------------

    def namespace(self, name: str) -> Namespace | None:
        """See :class:`policy.evaluate.View`."""
        return self._namespaces.get(name)

    def pod_at(self, address: str) -> Pod | None:
        """See :class:`policy.evaluate.View`. Where two claim an address, an endpoint of this node comes first."""
        return self._at.pod(address)

    def nodes(self) -> Iterable[Node]:
        """See :class:`policy.evaluate.View`."""
        return self._nodes.values()

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        """See :class:`policy.evaluate.View`."""
        return self._policies.get(namespace, {}).values()

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        """See :class:`policy.evaluate.View`."""
        return self._cluster_policies.values()

    # --- this node -----------------------------------------------------------------------------------

    def endpoints(self) -> Iterator[LocalEndpoint]:
        """The pod interfaces of this node."""
        yield from self._endpoints.values()

    def endpoint_addresses(self) -> frozenset[str]:
        """All their addresses."""
        return frozenset(a for endpoint in self._endpoints.values() for a in endpoint.addresses)

    def endpoint_at(self, address: str) -> ObjectKey | None:
        """The pod whose interface on this node has an address."""
        return self._at.endpoint(address)

    def subject_at(self, address: str) -> Pod | None:
        """The pod whose own policy the rules of this node apply to an address; None: nobody's, or not known.

        This is ``pod_at``, but for endpoints that nobody else takes for a pod any more: one whose pod is
        finished, or is gone from the API server before its interface, stays under the policy of what was last
        known of it. Its named ports are then nobody's: no set holds them.
        """
        key = self.endpoint_at(address)
        taken_for = self.pod_at(address)
        if key is None:
            return taken_for
        pod = self._pods_last.get(key)
        if pod is None or pod.host_network:
            return None
        return pod if pod is taken_for else replace(pod, ports=())


class _Note(NamedTuple):
    """What was there and what is there now; of an endpoint that is attached, its pod and it."""

    before: Record | LocalEndpoint | None
    after: Record | LocalEndpoint | None


class _Addresses:
    """Who has an address. Nearly always one pod; only where several claim one, more than that is kept."""

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._rivals: dict[str, dict[ObjectKey, Pod]] = {}
        self._endpoints: dict[str, set[ObjectKey]] = {}

    def pod(self, address: str) -> Pod | None:
        return self._pods.get(address)

    def endpoint(self, address: str) -> ObjectKey | None:
        """Of several the one whose class the engine takes."""
        holders = self._endpoints.get(address)
        return min(holders) if holders else None

    def move(self, key: ObjectKey, before: tuple[str, ...], after: tuple[str, ...], pod: Pod | None) -> None:
        """A pod that had some addresses now has others, or (None) is no pod to policy."""
        for address in set(before).difference(after):
            self._leave(address, key)
        if pod is not None:
            for address in after:
                self._claim(address, key, pod)

    def hold(self, key: ObjectKey, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        """An endpoint that had some addresses now has others."""
        for address in before:
            holders = self._endpoints[address]
            holders.discard(key)
            if not holders:
                del self._endpoints[address]
        for address in after:
            self._endpoints.setdefault(address, set()).add(key)
        for address in {*before, *after} & self._rivals.keys():
            self._choose(address)

    def _claim(self, address: str, key: ObjectKey, pod: Pod) -> None:
        held = self._pods.get(address)
        rivals = self._rivals.get(address)
        if rivals is None and held is not None and held.key != key:
            rivals = self._rivals[address] = {held.key: held}
        if rivals is None:
            self._pods[address] = pod
        else:
            rivals[key] = pod
            self._choose(address)

    def _leave(self, address: str, key: ObjectKey) -> None:
        rivals = self._rivals.get(address)
        if rivals is None:
            self._pods.pop(address, None)
            return
        del rivals[key]
        self._choose(address)
        if len(rivals) == 1:
            del self._rivals[address]

    def _choose(self, address: str) -> None:
        rivals, holders = self._rivals[address], self._endpoints.get(address, ())
        self._pods[address] = rivals[min(rivals, key=lambda key: (key not in holders, key))]


def _addresses(pod: Pod | None, endpoint: LocalEndpoint | None) -> tuple[str, ...]:
    """What a pod has as far as policy is concerned: also what its endpoint has leased already."""
    if pod is None or not pod.active or pod.host_network:
        return ()
    return pod.addresses if endpoint is None else tuple(dict.fromkeys((*pod.addresses, *endpoint.addresses)))


def _put(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
