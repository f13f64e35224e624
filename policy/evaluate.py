"""The oracle: what the NetworkPolicy API says about one packet. Slow and obvious on purpose.

Written straight from the API's prose (networking.k8s.io/v1; "Network Policies" in the Kubernetes documentation).
It shares no code with the compiler, so that the two can be held against each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from policy.model import (
    Direction,
    IPBlock,
    Namespace,
    NetworkPolicy,
    ObjectKey,
    Packet,
    Peer,
    Pod,
    PodPeer,
    PolicyRule,
    Port,
)
from policy.selectors import matches


class Snapshot:
    """The cluster at one moment."""

    def __init__(
        self, namespaces: Iterable[Namespace], pods: Iterable[Pod], policies: Iterable[NetworkPolicy]
    ) -> None:
        self.namespaces = {namespace.name: namespace for namespace in namespaces}
        self.pods = {pod.key: pod for pod in pods}
        self.policies = {policy.key: policy for policy in policies}

    def pod_at(self, address: str) -> Pod | None:
        """The pod that policy means by an address.

        A host-network pod has its node's address and is not a pod to policy; a finished pod's address may already
        be another pod's.
        """
        for pod in self.pods.values():
            if address in pod.addresses and pod.active and not pod.host_network:
                return pod
        return None


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """One direction at one end. ``selected_by`` empty: not isolated, so everything is allowed.

    ``allowed_by`` is the policy and the index of its rule that allows, or None.
    """

    direction: Direction
    selected_by: tuple[ObjectKey, ...]
    allowed_by: tuple[ObjectKey, int] | None

    @property
    def allowed(self) -> bool:
        return not self.selected_by or self.allowed_by is not None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both ends of a packet; an end that is no pod has None."""

    egress: DirectionVerdict | None
    ingress: DirectionVerdict | None

    @property
    def allowed(self) -> bool:
        """ "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the
        source and the ingress policy on the destination need to allow it."""
        return all(end is None or end.allowed for end in (self.egress, self.ingress))


def verdict(snapshot: Snapshot, packet: Packet, node_addresses: frozenset[str] = frozenset()) -> Verdict:
    """What policy says about the first packet of a connection; replies always pass.

    ``node_addresses`` are those of the destination pod's own node, which reaches its pods always.
    """
    source, destination = snapshot.pod_at(packet.source), snapshot.pod_at(packet.destination)
    # "Pod cannot block access to itself."
    if source is not None and source is destination:
        return Verdict(None, None)
    egress = _evaluate(snapshot, packet, source, Direction.EGRESS) if source else None
    # "Traffic to and from the node where a Pod is running is always allowed."
    if destination is None or packet.source in node_addresses:
        return Verdict(egress, None)
    return Verdict(egress, _evaluate(snapshot, packet, destination, Direction.INGRESS))


def _evaluate(snapshot: Snapshot, packet: Packet, pod: Pod, direction: Direction) -> DirectionVerdict:
    """A pod is isolated in a direction if any policy both selects it and has the direction in its policyTypes;
    then only what one of those policies allows is allowed. Policies do not conflict; they are additive."""
    selected_by: list[ObjectKey] = []
    allowed_by: tuple[ObjectKey, int] | None = None
    for key, policy in sorted(snapshot.policies.items()):
        rules = policy.rules(direction)
        # A policy selects pods of its own namespace only; an empty podSelector selects all of them.
        if rules is None or policy.namespace != pod.namespace or not matches(policy.selector, pod.labels):
            continue
        selected_by.append(key)
        for number, rule in enumerate(rules):
            if allowed_by is None and _rule_allows(snapshot, packet, policy, rule, direction):
                allowed_by = (key, number)
    return DirectionVerdict(direction, tuple(selected_by), allowed_by)


def _rule_allows(
    snapshot: Snapshot, packet: Packet, policy: NetworkPolicy, rule: PolicyRule, direction: Direction
) -> bool:
    """Each rule allows traffic that matches both its peers and its ports."""
    far_end = packet.source if direction is Direction.INGRESS else packet.destination
    # "If this field is empty or missing, this rule matches all sources" (destinations; ports).
    peers_match = rule.peers is None or any(_peer_matches(snapshot, far_end, policy, p) for p in rule.peers)
    ports_match = rule.ports is None or any(_port_matches(snapshot, packet, port) for port in rule.ports)
    return peers_match and ports_match


def _peer_matches(snapshot: Snapshot, address: str, policy: NetworkPolicy, peer: Peer) -> bool:
    if isinstance(peer, IPBlock):
        # An ipBlock speaks of addresses, whoever has them; except takes away within its own block.
        return _inside(address, peer.cidr) and not any(_inside(address, hole) for hole in peer.excepts)
    pod = snapshot.pod_at(address)
    return pod is not None and _pod_peer_matches(snapshot, pod, policy, peer)


def _pod_peer_matches(snapshot: Snapshot, pod: Pod, policy: NetworkPolicy, peer: PodPeer) -> bool:
    if peer.namespaces is None:
        # podSelector alone: pods of the policy's own namespace.
        in_namespace = pod.namespace == policy.namespace
    else:
        # namespaceSelector: pods of the namespaces with such labels; an empty one takes all namespaces.
        namespace = snapshot.namespaces.get(pod.namespace)
        in_namespace = namespace is not None and matches(peer.namespaces, namespace.labels)
    return in_namespace and (peer.pods is None or matches(peer.pods, pod.labels))


def _port_matches(snapshot: Snapshot, packet: Packet, port: Port) -> bool:
    if port.protocol is not packet.protocol:
        return False
    if port.port is None:
        return True
    if isinstance(port.port, str):
        # A named port is the destination pod's own, by name and protocol.
        pod = snapshot.pod_at(packet.destination)
        return pod is not None and any(
            (named.name, named.protocol, named.port) == (port.port, packet.protocol, packet.port)
            for named in pod.ports
        )
    # endPort: the range from port to endPort, inclusive.
    return port.port <= packet.port <= (port.end_port if port.end_port is not None else port.port)


def _inside(address: str, cidr: str) -> bool:
    ip, network = ipaddress.ip_address(address), ipaddress.ip_network(cidr)
    return ip.version == network.version and ip in network
