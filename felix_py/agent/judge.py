"""Verdicts of this node's rules on the first packets of connections: the oracle's answers, cached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from felix_py.agent.view import ClusterView
from policy.model import (
    ClusterPolicy,
    Direction,
    Namespace,
    NetworkPolicy,
    Node,
    Packet,
    Pod,
    PolicyRef,
    Protocol,
)
from policy.oracle.evaluate import View, verdict


class Judge:
    """Asks the oracle for each end that is an endpoint of this node, as the rules do. On the event loop only.

    Its caches are of one revision of the view, and are cleared when the view advances.
    """

    def __init__(self, view: ClusterView, host: frozenset[str], *, host_closed: bool = False) -> None:
        """``host``: addresses of the host's interfaces, whose packets to local pods no rule denies.

        ``host_closed``: whether the rules drop connections of pods to the host (``--endpoint-to-host drop``).
        """
        self._closed = host if host_closed else frozenset()
        self._view = view
        self._host = host
        self._revision = view.revision
        self._subjects: dict[str, _Subject | None] = {}
        self._verdicts: dict[Packet, bool] = {}

    def allows(self, packet: Packet) -> bool:
        """Whether the policies of both ends allow the packet; an end that is no known endpoint here allows it."""
        if self._view.revision != self._revision:
            self._revision = self._view.revision
            self._subjects.clear()
            self._verdicts.clear()
        known = self._verdicts.get(packet)
        if known is None:
            known = self._verdicts[packet] = self._ask(packet)
        return known

    def _ask(self, packet: Packet) -> bool:
        if packet.source == packet.destination:
            packet = replace(packet, by_service=True)  # a pod's packets to its own address never leave it
        if packet.destination in self._closed and self._view.endpoint_at(packet.source) is not None:
            return False
        by_host = packet.source in self._host or packet.source.startswith("127.")
        return self._lets(packet, Direction.EGRESS, packet.source) and (
            by_host or self._lets(packet, Direction.INGRESS, packet.destination)
        )

    def _lets(self, packet: Packet, direction: Direction, end: str) -> bool:
        if end not in self._subjects:
            self._subjects[end] = self._subject(end)
        subject = self._subjects[end]
        if subject is None:
            return True
        found = verdict(subject, packet)
        decided = found.egress if direction is Direction.EGRESS else found.ingress
        return decided is None or decided.allowed

    def _subject(self, address: str) -> _Subject | None:
        if self._view.endpoint_at(address) is None:
            return None
        pod = self._view.subject_at(address)
        return None if pod is None else _Subject(self._view, address, pod)


class _Subject(View):
    """A view for questions about one endpoint's own policy only.

    Its address is the endpoint's pod even if peers do not resolve it to a pod any more. It has only the policies
    that select the pod, so that the oracle need not search all of them each time.
    """

    def __init__(self, view: ClusterView, address: str, pod: Pod) -> None:
        self._view = view
        self._address = address
        self._pod = pod
        self._policies: tuple[NetworkPolicy, ...] = tuple(view.network_policies(pod.namespace))
        self._cluster: tuple[ClusterPolicy, ...] = tuple(view.cluster_policies())
        selecting = self._selecting()
        self._policies = tuple(policy for policy in self._policies if policy.ref in selecting)
        self._cluster = tuple(policy for policy in self._cluster if policy.ref in selecting)

    def _selecting(self) -> set[PolicyRef]:
        """The policies that select the pod, according to the oracle."""
        nobody = "::" if ":" in self._address else "0.0.0.0"
        out = verdict(self, Packet(self._address, nobody, Protocol.TCP, 0)).egress
        into = verdict(self, Packet(nobody, self._address, Protocol.TCP, 0)).ingress
        return {ref for end in (out, into) if end for ref in end.selected_by}

    def namespace(self, name: str) -> Namespace | None:
        return self._view.namespace(name)

    def pod_at(self, address: str) -> Pod | None:
        return self._pod if address == self._address else self._view.pod_at(address)

    def nodes(self) -> Iterable[Node]:
        return self._view.nodes()

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        return self._policies if namespace == self._pod.namespace else ()

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        return self._cluster
