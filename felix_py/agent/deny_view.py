"""What the deny log asks of the cluster: whose an address is, and what cluster-scoped policies there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from felix_py.datastore.store import Event, Upserted
from felix_py.records import NodeRecord
from policy.model import ClusterPolicy, Namespace, NetworkPolicy, Node, ObjectKey, Pod, PolicyRef


class EventView:
    """A :class:`policy.evaluate.View` fed with the store's events. A subset: it follows no NetworkPolicies."""

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._addresses: dict[ObjectKey, tuple[str, ...]] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._nodes: dict[str, Node] = {}
        self._policies: dict[PolicyRef, ClusterPolicy] = {}

    def take(self, events: Sequence[Event]) -> None:
        """Objects came, changed or went."""
        for event in events:
            there = isinstance(event, Upserted)
            match event.record:
                case Pod() as pod:
                    self._pod(pod, there)
                case NodeRecord() as node:
                    self._nodes.pop(node.name, None)
                    if there:
                        self._nodes[node.name] = node.as_peer()
                case Namespace() as namespace:
                    self._namespaces.pop(namespace.name, None)
                    if there:
                        self._namespaces[namespace.name] = namespace
                case ClusterPolicy() as policy:
                    self._policies.pop(policy.ref, None)
                    if there:
                        self._policies[policy.ref] = policy

    def _pod(self, pod: Pod, there: bool) -> None:
        for address in self._addresses.pop(pod.key, ()):
            held = self._pods.get(address)
            # Another pod may have the address by now.
            if held is not None and held.key == pod.key:
                del self._pods[address]
        if there and pod.active and not pod.host_network and pod.addresses:
            self._addresses[pod.key] = pod.addresses
            self._pods |= dict.fromkeys(pod.addresses, pod)

    def namespace(self, name: str) -> Namespace | None:
        """See :class:`policy.evaluate.View`."""
        return self._namespaces.get(name)

    def pod_at(self, address: str) -> Pod | None:
        """See :class:`policy.evaluate.View`."""
        return self._pods.get(address)

    def nodes(self) -> Iterable[Node]:
        """See :class:`policy.evaluate.View`."""
        return self._nodes.values()

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        """None: nobody asks for them here."""
        return ()

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        """See :class:`policy.evaluate.View`."""
        return self._policies.values()
