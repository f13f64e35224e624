"""The oracle: the verdict of the policy APIs on one packet. Slow and obvious on purpose.

It follows the APIs' prose (networking.k8s.io/v1 and "Network Policies" in the Kubernetes documentation;
policy.networking.k8s.io/v1alpha2) and shares no code with the compiler, so that the two can be compared.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    ClusterRule,
    Direction,
    IPBlock,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Node,
    NodePeer,
    ObjectKey,
    Packet,
    Pod,
    PodPeer,
    PolicyRef,
    PolicyRule,
    Port,
    RuleAction,
    Tier,
)
from policy.selectors import matches


class View(Protocol):
    """The cluster at one moment, as the oracle needs it."""

    def namespace(self, name: str) -> Namespace | None:
        """A namespace, if it is known."""

    def pod_at(self, address: str) -> Pod | None:
        """The pod with an address; host-network pods (to policy, their node) and finished pods have none."""

    def nodes(self) -> Iterable[Node]:
        """All nodes."""

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        """The NetworkPolicies of a namespace."""

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        """All policies of the Admin and the Baseline tier."""


class Snapshot:
    """A View on plain lists."""

    def __init__(
        self,
        namespaces: Iterable[Namespace],
        pods: Iterable[Pod],
        policies: Iterable[NetworkPolicy | ClusterPolicy],
        nodes: Iterable[Node] = (),
        endpoints: Iterable[LocalEndpoint] = (),
    ) -> None:
        """``endpoints``: the pod interfaces of this node, if any, which own their leased addresses."""
        self.namespaces = {namespace.name: namespace for namespace in namespaces}
        self.pods = {pod.key: pod for pod in pods}
        self.policies = {policy.ref: policy for policy in policies}
        self._nodes = list(nodes)
        self._at = _addresses(self.pods, {endpoint.key: endpoint for endpoint in endpoints})

    def namespace(self, name: str) -> Namespace | None:
        """See :class:`View`."""
        return self.namespaces.get(name)

    def pod_at(self, address: str) -> Pod | None:
        """See :class:`View`."""
        return self._at.get(address)

    def nodes(self) -> Iterable[Node]:
        """See :class:`View`."""
        return self._nodes

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        """See :class:`View`."""
        found = self.policies.values()
        return [p for p in found if isinstance(p, NetworkPolicy) and p.namespace == namespace]

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        """See :class:`View`."""
        return [policy for policy in self.policies.values() if isinstance(policy, ClusterPolicy)]


def _addresses(pods: Mapping[ObjectKey, Pod], endpoints: Mapping[ObjectKey, LocalEndpoint]) -> dict[str, Pod]:
    """The owner of each address: of two claimants the newer pod, but a lease on this node decides."""
    found: dict[str, Pod] = {}
    for pod in pods.values():
        endpoint = endpoints.get(pod.key)
        is_here = endpoint is not None and endpoint.stands_for(pod)
        for address in endpoint.addresses if endpoint is not None and is_here else pod.addresses:
            held = found.get(address)
            if pod.active and not pod.host_network and (held is None or held.claim(address) < pod.claim(address)):
                found[address] = pod
    for endpoint in sorted(endpoints.values(), key=lambda endpoint: endpoint.key, reverse=True):
        holder = pods.get(endpoint.key)
        for address in endpoint.addresses:
            found.pop(address, None)
            if holder and holder.active and not holder.host_network and endpoint.stands_for(holder):
                found[address] = holder
    return found


@dataclass(frozen=True, slots=True)
class RuleRef:
    """One rule of a policy by its index in the direction's list; ``name`` if it has one."""

    policy: PolicyRef
    index: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """The verdict of one direction at one end.

    ``selected_by``: the policies that select the pod in the direction, in order of evaluation. ``tier`` None: no
    tier decided, so the packet is allowed. ``decided_by`` None in the NetworkPolicy tier: the pod is isolated,
    and no rule allows. ``passed_by``: the Pass rules that matched.
    """

    direction: Direction
    selected_by: tuple[PolicyRef, ...]
    allowed: bool
    tier: Tier | None = None
    decided_by: RuleRef | None = None
    passed_by: tuple[RuleRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdicts at both ends of a packet; None at an end that is no pod."""

    egress: DirectionVerdict | None
    ingress: DirectionVerdict | None

    @property
    def allowed(self) -> bool:
        """ "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the
        source and the ingress policy on the destination need to allow it."""
        return all(end is None or end.allowed for end in (self.egress, self.ingress))


def verdict(view: View, packet: Packet, node_addresses: frozenset[str] = frozenset()) -> Verdict:
    """Policy's verdict on the first packet of a connection; replies always pass.

    ``node_addresses`` are those of the destination pod's own node, which always reaches its pods.
    """
    source, destination = view.pod_at(packet.source), view.pod_at(packet.destination)
    # "A Pod connecting to its own Pod IP is not subject to CNP." Nor to NetworkPolicy: see below.
    if source is not None and source is destination and not packet.by_service:
        return Verdict(None, None)
    egress = _evaluate(view, packet, source, Direction.EGRESS) if source else None
    # "Traffic to and from the node where a Pod is running is always allowed."
    if destination is None or packet.source in node_addresses:
        return Verdict(egress, None)
    return Verdict(egress, _evaluate(view, packet, destination, Direction.INGRESS))


@dataclass(frozen=True, slots=True)
class Selecting:
    """The policies that select a pod in a direction, by tier and in order of evaluation."""

    admin: tuple[ClusterPolicy, ...]
    network: tuple[NetworkPolicy, ...]
    baseline: tuple[ClusterPolicy, ...]

    @property
    def policies(self) -> tuple[NetworkPolicy | ClusterPolicy, ...]:
        """All of them."""
        return (*self.admin, *self.network, *self.baseline)


def selecting(view: View, pod: Pod, direction: Direction) -> Selecting:
    """The policies that select a pod in a direction."""
    # "CNPs with no ingress rules do not affect ingress traffic." (egress likewise)
    cluster = [p for p in view.cluster_policies() if p.rules(direction) and _is_meant(view, pod, p.subject, None)]
    # "Policies with lower priority values have higher precedence."
    cluster.sort(key=lambda policy: policy.precedence)
    # A policy selects pods of its own namespace only; an empty podSelector selects all of them. A pod is isolated
    # in a direction if any policy both selects it and has the direction in its policyTypes.
    isolating = [
        policy
        for policy in sorted(view.network_policies(pod.namespace), key=lambda policy: policy.key)
        if policy.rules(direction) is not None and matches(policy.selector, pod.labels)
    ]
    return Selecting(
        tuple(policy for policy in cluster if policy.tier is Tier.ADMIN),
        tuple(isolating),
        tuple(policy for policy in cluster if policy.tier is Tier.BASELINE),
    )


def _evaluate(view: View, packet: Packet, pod: Pod, direction: Direction) -> DirectionVerdict:
    """ "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy tier, Baseline tier." """
    found = selecting(view, pod, direction)
    selected_by = tuple(policy.ref for policy in found.policies)
    passed: list[RuleRef] = []
    for tier in Tier:
        match tier:
            case Tier.ADMIN:
                decided = _tier(view, packet, found.admin, direction, passed)
            case Tier.NETWORK:
                decided = _network_policies(view, packet, found.network, direction)
                # "Pod cannot block access to itself." The cluster can: "A Pod connecting to a Service IP that the
                # service proxy load-balances back to the same Pod is subject to ClusterNetworkPolicy."
                if decided == (False, None) and view.pod_at(packet.source) is view.pod_at(packet.destination):
                    decided = (True, None)
            case Tier.BASELINE:
                decided = _tier(view, packet, found.baseline, direction, passed)
        if decided is not None:
            allowed, rule = decided
            return DirectionVerdict(direction, selected_by, allowed, tier, rule, tuple(passed))
    # "If a given connection wasn't allowed or denied by any of the tiers, … all pods can communicate."
    return DirectionVerdict(direction, selected_by, True, None, None, tuple(passed))


_Decided = tuple[bool, RuleRef | None]
"""(allowed, deciding rule)."""


def _tier(
    view: View, packet: Packet, policies: Sequence[ClusterPolicy], direction: Direction, passed: list[RuleRef]
) -> _Decided | None:
    """The first rule that matches, by the precedence of the policies and then the order of their rules."""
    for policy in policies:
        for index, rule in enumerate(policy.rules(direction)):
            if not _matches(view, packet, policy, rule, direction):
                continue
            ref = RuleRef(policy.ref, index, rule.name)
            if rule.action is RuleAction.PASS:
                # "Skips all further ClusterNetworkPolicy rules in the current tier."
                passed.append(ref)
                return None
            return rule.action is RuleAction.ACCEPT, ref
    return None


def _network_policies(
    view: View, packet: Packet, policies: Sequence[NetworkPolicy], direction: Direction
) -> _Decided | None:
    """Only what one of the policies allows is allowed. Policies do not conflict; they are additive.

    "v1.NetworkPolicy always makes a final decision for selected pods."
    """
    for policy in policies:
        for index, rule in enumerate(policy.rules(direction) or ()):
            if _matches(view, packet, policy, rule, direction):
                return True, RuleRef(policy.ref, index)
    return (False, None) if policies else None


def _matches(
    view: View,
    packet: Packet,
    policy: NetworkPolicy | ClusterPolicy,
    rule: PolicyRule | ClusterRule,
    direction: Direction,
) -> bool:
    """A rule applies to traffic that matches both its peers and its ports."""
    return peers_match(view, packet, policy, rule, direction) and ports_match(view, packet, rule)


def peers_match(
    view: View,
    packet: Packet,
    policy: NetworkPolicy | ClusterPolicy,
    rule: PolicyRule | ClusterRule,
    direction: Direction,
) -> bool:
    """Whether the packet's far end is one of the rule's peers.

    "If this field is empty or missing, this rule matches all sources" (destinations).
    """
    far_end = packet.source if direction is Direction.INGRESS else packet.destination
    own_namespace = policy.namespace if isinstance(policy, NetworkPolicy) else None
    return rule.peers is None or any(_peer_matches(view, far_end, peer, own_namespace) for peer in rule.peers)


def ports_match(view: View, packet: Packet, rule: PolicyRule | ClusterRule) -> bool:
    """Whether the packet goes to one of the rule's ports; absent or empty: to any."""
    return rule.ports is None or any(_port_matches(view, packet, port) for port in rule.ports)


def _peer_matches(view: View, address: str, peer: ClusterPeer, own_namespace: str | None) -> bool:
    if isinstance(peer, NodePeer):
        # "It selects the nodeIPs as the peer type by matching on the IPs present in node.Status.Addresses."
        return any(address in node.addresses and matches(peer.nodes, node.labels) for node in view.nodes())
    if isinstance(peer, IPBlock):
        # An ipBlock matches addresses, also those of pods; except applies within its own block.
        return _inside(address, peer.cidr) and not any(_inside(address, hole) for hole in peer.excepts)
    pod = view.pod_at(address)
    return pod is not None and _is_meant(view, pod, peer, own_namespace)


def _is_meant(view: View, pod: Pod, peer: PodPeer, own_namespace: str | None) -> bool:
    if peer.namespaces is None:
        # podSelector alone: pods of the policy's own namespace.
        in_namespace = pod.namespace == own_namespace
    else:
        # namespaceSelector: pods of the namespaces with such labels; an empty one takes all namespaces.
        namespace = view.namespace(pod.namespace)
        in_namespace = namespace is not None and matches(peer.namespaces, namespace.labels)
    return in_namespace and (peer.pods is None or matches(peer.pods, pod.labels))


def _port_matches(view: View, packet: Packet, port: Port) -> bool:
    if port.protocol is not packet.protocol:
        return False
    if port.port is None:
        return True
    if isinstance(port.port, str):
        # A named port is the destination pod's own, by name and protocol.
        pod = view.pod_at(packet.destination)
        return pod is not None and any(
            (named.name, named.protocol, named.port) == (port.port, packet.protocol, packet.port)
            for named in pod.ports
        )
    # endPort: the range from port to endPort, inclusive.
    return port.port <= packet.port <= (port.end_port if port.end_port is not None else port.port)


def _inside(address: str, cidr: str) -> bool:
    ip, network = ipaddress.ip_address(address), ipaddress.ip_network(cidr)
    return ip.version == network.version and ip in network
