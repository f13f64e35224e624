"""Objects of the group policy.networking.k8s.io: short ways to write and to parse them."""

from __future__ import annotations

from typing import Any

from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    ClusterRule,
    IPBlock,
    NodePeer,
    Operator,
    PodPeer,
    PolicyKind,
    Port,
    RuleAction,
    Selector,
)
from policy.parse_cluster import parse_admin_policy, parse_baseline_admin_policy, parse_cluster_policy

NAMESPACES: dict[str, Any] = {"namespaces": {}}
"""As a subject or a peer: all pods."""

ALL = PodPeer(Selector(), None)
DENY_ALL = ClusterRule(RuleAction.DENY, None, None)
ACCEPT_NOTHING = ClusterRule(RuleAction.ACCEPT, (), None)
META = {"name": "p", "uid": "u"}


def cluster(**spec: Any) -> ClusterPolicy:
    head = {"tier": "Admin", "priority": 10, "subject": NAMESPACES}
    return parse_cluster_policy({"metadata": META, "spec": {**head, **spec}})


def admin(**spec: Any) -> ClusterPolicy:
    return parse_admin_policy({"metadata": META, "spec": {"priority": 10, "subject": NAMESPACES, **spec}})


def baseline(**spec: Any) -> ClusterPolicy:
    metadata = {"name": "default", "uid": "u"}
    return parse_baseline_admin_policy({"metadata": metadata, "spec": {"subject": NAMESPACES, **spec}})


def rule(action: str = "Deny", /, **fields: Any) -> dict[str, Any]:
    return {"action": action, **fields}


PARSERS = {
    PolicyKind.CLUSTER: parse_cluster_policy,
    PolicyKind.ADMIN: parse_admin_policy,
    PolicyKind.BASELINE_ADMIN: parse_baseline_admin_policy,
}


def written(policy: ClusterPolicy) -> dict[str, Any]:
    """The object that parses to a policy. A rule of all ports of one protocol has no such object."""
    spec: dict[str, Any] = {"subject": _pods(policy.subject)}
    if policy.kind is PolicyKind.CLUSTER:
        spec["tier"] = policy.tier.value
    if policy.kind is not PolicyKind.BASELINE_ADMIN:
        spec["priority"] = policy.priority
    spec["ingress"] = [_rule(policy.kind, one, "from") for one in policy.ingress]
    spec["egress"] = [_rule(policy.kind, one, "to") for one in policy.egress]
    return {"metadata": {"name": policy.name, "uid": policy.uid}, "spec": spec}


def _rule(kind: PolicyKind, one: ClusterRule, far_end: str) -> dict[str, Any]:
    old = kind is not PolicyKind.CLUSTER
    action = "Allow" if old and one.action is RuleAction.ACCEPT else one.action.value
    found: dict[str, Any] = {"action": action, far_end: [_peer(peer) for peer in one.peers or ()]}
    if one.name:
        found["name"] = one.name
    if one.ports is not None:
        ports = [_v1alpha1(port) if old else _v1alpha2(port) for port in one.ports]
        found["ports" if old else "protocols"] = [port for n, port in enumerate(ports) if port not in ports[:n]]
    return found


def _peer(peer: ClusterPeer) -> dict[str, Any]:
    match peer:
        case PodPeer():
            return _pods(peer)
        case IPBlock(cidr):
            return {"networks": [cidr]}
        case NodePeer(nodes):
            return {"nodes": _selector(nodes)}


def _pods(peer: PodPeer) -> dict[str, Any]:
    namespaces = _selector(peer.namespaces or Selector())
    if peer.pods is None:
        return {"namespaces": namespaces}
    return {"pods": {"namespaceSelector": namespaces, "podSelector": _selector(peer.pods)}}


def _selector(selector: Selector) -> dict[str, Any]:
    """With matchLabels as far as they reach."""
    labels: dict[str, str] = {}
    expressions: list[dict[str, Any]] = []
    for one in selector.requirements:
        if one.operator is Operator.IN and len(one.values) == 1 and one.key not in labels:
            labels[one.key] = one.values[0]
        else:
            expressions.append({"key": one.key, "operator": one.operator.value, "values": list(one.values)})
    return {"matchLabels": labels, "matchExpressions": expressions}


def _v1alpha1(port: Port) -> dict[str, Any]:
    protocol = port.protocol.value
    if isinstance(port.port, str):
        return {"namedPort": port.port}
    if port.end_port is None:
        return {"portNumber": {"protocol": protocol, "port": port.port}}
    return {"portRange": {"protocol": protocol, "start": port.port, "end": port.end_port}}


def _v1alpha2(port: Port) -> dict[str, Any]:
    if isinstance(port.port, str):
        return {"destinationNamedPort": port.port}
    where: dict[str, Any] = {"number": port.port}
    if port.end_port is not None:
        where = {"range": {"start": port.port, "end": port.end_port}}
    return {port.protocol.lower(): {"destinationPort": where}}
