"""The reasons of the oracle's verdict on a packet, for people.

The verdict comes from :mod:`policy.oracle.evaluate`. Added are the rules that were tried before one decided, and
the parts of them that did not match.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    ClusterRule,
    Direction,
    IPBlock,
    NetworkPolicy,
    NodePeer,
    Operator,
    Packet,
    Pod,
    PolicyRef,
    PolicyRule,
    Port,
    Requirement,
    RuleAction,
    Selector,
    Tier,
)
from policy.oracle.evaluate import (
    DirectionVerdict,
    RuleRef,
    Verdict,
    View,
    peers_match,
    ports_match,
    selecting,
    verdict,
)

_MOST_NAMED = 4
"""Peers or ports of one rule that are listed."""


class Free(enum.StrEnum):
    """Why no policy applies at one end."""

    NO_POD = "not a pod: policy does not speak of it"
    SELF = "a pod always reaches itself"
    OWN_NODE = "a node always reaches its own pods"


@dataclass(frozen=True, slots=True)
class Tried:
    """A rule that was tried and did not match. ``peers`` and ``ports``: why not, or empty where they matched."""

    rule: RuleRef
    action: RuleAction
    peers: str
    ports: str

    @property
    def reason(self) -> str:
        """The reasons in words."""
        return "; ".join(filter(None, (self.peers, self.ports)))


@dataclass(frozen=True, slots=True)
class Asked:
    """An evaluated policy and its rules that did not match: all, or those before one that matched.

    ``problems``: its parts that are not understood, which allow nothing.
    """

    policy: PolicyRef
    tier: Tier
    tried: tuple[Tried, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """One direction at one end of a packet. ``verdict`` None: no policy applies, for the reason ``free``.

    ``asked``: the evaluated policies in order; the last one decided.
    """

    direction: Direction
    verdict: DirectionVerdict | None
    free: Free | None = None
    asked: tuple[Asked, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether this end lets the packet through."""
        return self.verdict is None or self.verdict.allowed

    @property
    def not_asked(self) -> tuple[PolicyRef, ...]:
        """Policies that also select the pod, but come after the one that decided."""
        if self.verdict is None:
            return ()
        seen = {asked.policy for asked in self.asked}
        return tuple(ref for ref in self.verdict.selected_by if ref not in seen)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Both ends of one packet."""

    packet: Packet
    egress: End
    ingress: End

    @property
    def allowed(self) -> bool:
        """Whether policy allows the packet."""
        return self.egress.allowed and self.ingress.allowed


def explain(view: View, packet: Packet, node_addresses: frozenset[str] = frozenset()) -> Explanation:
    """Policy's verdict on a packet with its reasons. Arguments as of :func:`policy.oracle.evaluate.verdict`."""
    found = verdict(view, packet, node_addresses)
    source, destination = view.pod_at(packet.source), view.pod_at(packet.destination)
    if source is not None and source is destination:
        return Explanation(
            packet, End(Direction.EGRESS, None, Free.SELF), End(Direction.INGRESS, None, Free.SELF)
        )
    egress = _end(view, packet, source, Direction.EGRESS, found, Free.NO_POD)
    free = Free.NO_POD if destination is None else Free.OWN_NODE
    return Explanation(packet, egress, _end(view, packet, destination, Direction.INGRESS, found, free))


def _end(view: View, packet: Packet, pod: Pod | None, direction: Direction, found: Verdict, free: Free) -> End:
    said = found.egress if direction is Direction.EGRESS else found.ingress
    if said is None or pod is None:
        return End(direction, None, free)
    return End(direction, said, None, tuple(_asked(view, packet, pod, direction, said)))


def _asked(view: View, packet: Packet, pod: Pod, direction: Direction, said: DirectionVerdict) -> Iterator[Asked]:
    """The policies and rules that were tried up to the deciding rule. A Pass ends its tier."""
    selected = selecting(view, pod, direction)
    tiers: dict[Tier, tuple[NetworkPolicy | ClusterPolicy, ...]] = {
        Tier.ADMIN: selected.admin,
        Tier.NETWORK: selected.network,
        Tier.BASELINE: selected.baseline,
    }
    matched = {rule.policy: rule.index for rule in said.passed_by}
    if said.decided_by:
        matched[said.decided_by.policy] = said.decided_by.index
    for tier, policies in tiers.items():
        for policy in policies:
            tried = tuple(_tried(view, packet, policy, direction, matched.get(policy.ref)))
            yield Asked(policy.ref, tier, tried, policy.problems)
            if policy.ref in matched:
                break
        if tier is said.tier:
            return


def _tried(
    view: View, packet: Packet, policy: NetworkPolicy | ClusterPolicy, direction: Direction, end: int | None
) -> Iterator[Tried]:
    """The rules of a policy, up to the one that matched."""
    rules: Sequence[PolicyRule | ClusterRule] = policy.rules(direction) or ()
    for index, rule in enumerate(rules[:end]):
        named, action = (rule.name, rule.action) if isinstance(rule, ClusterRule) else ("", RuleAction.ACCEPT)
        peers = ports = ""
        if not peers_match(view, packet, policy, rule, direction):
            peers = f"peer does not match ({describe_peers(rule.peers)})"
        if not ports_match(view, packet, rule):
            ports = f"port does not match ({_describe_ports(view, packet, rule.ports)})"
        yield Tried(RuleRef(policy.ref, index, named), action, peers, ports)


# --- words -------------------------------------------------------------------------------------------


def describe_selector(selector: Selector) -> str:
    """A label selector as kubectl prints it; empty for everything."""
    return ",".join(map(_requirement, selector.requirements))


def _requirement(requirement: Requirement) -> str:
    key, values = requirement.key, requirement.values
    match requirement.operator:
        case Operator.IN:
            return f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({','.join(values)})"
        case Operator.NOT_IN:
            return f"{key}!={values[0]}" if len(values) == 1 else f"{key} notin ({','.join(values)})"
        case Operator.EXISTS:
            return key
        case Operator.DOES_NOT_EXIST:
            return f"!{key}"


def describe_peers(peers: Iterable[ClusterPeer] | None) -> str:
    """The peers of a rule in a few words."""
    if peers is None:
        return "anybody"
    return _list([_peer(peer) for peer in peers]) or "none of its peers could be understood"


def _peer(peer: ClusterPeer) -> str:
    match peer:
        case IPBlock(cidr, excepts):
            return f"{cidr} except {', '.join(excepts)}" if excepts else cidr
        case NodePeer(nodes):
            return f"nodes {describe_selector(nodes)}".rstrip() if nodes.requirements else "all nodes"
    pods = describe_selector(peer.pods) if peer.pods else ""
    words = f"pods {pods}" if pods else "all pods"
    if peer.namespaces is None:
        return f"{words} of its own namespace"
    if peer.namespaces.requirements:
        return f"{words} in namespaces {describe_selector(peer.namespaces)}"
    return f"{words} in any namespace"


def _describe_ports(view: View, packet: Packet, ports: Iterable[Port] | None) -> str:
    return _list([_port(view, packet, port) for port in ports or ()]) or "none of its ports could be understood"


def _port(view: View, packet: Packet, port: Port) -> str:
    if port.port is None:
        return f"any {port.protocol}"
    if port.end_port is not None:
        return f"{port.port}-{port.end_port}/{port.protocol}"
    text = f"{port.port}/{port.protocol}"
    if not isinstance(port.port, str):
        return text
    pod = view.pod_at(packet.destination)
    numbers = [n.port for n in pod.ports if (n.name, n.protocol) == (port.port, port.protocol)] if pod else []
    return f"{text}, there {' and '.join(map(str, numbers))}" if numbers else f"{text}, which it does not have"


def _list(parts: list[str]) -> str:
    if len(parts) > _MOST_NAMED:
        parts = [*parts[:_MOST_NAMED], f"and {len(parts) - _MOST_NAMED} more"]
    return "; ".join(dict.fromkeys(parts))
