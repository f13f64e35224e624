"""Compiles the rules of one policy of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from policy.cidr import merge
from policy.engine.peers import PeerSet, named_port_peers, named_port_subjects, peer_set
from policy.ir import Action, Allow, Deny, Match, Origin, Pass, PortRange, Rule, SetMatch, Side
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Direction,
    Family,
    NetworkPolicy,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
)

_ACTIONS: dict[RuleAction, Action] = {
    RuleAction.ACCEPT: Allow(),
    RuleAction.DENY: Deny(),
    RuleAction.PASS: Pass(),
}


class RuleCompiler:
    """One direction of one policy for one family: policy rules to ir rules."""

    def __init__(
        self,
        family: Family,
        policy: NetworkPolicy | ClusterPolicy,
        direction: Direction,
        use: Callable[[PeerSet], PeerSet],
    ) -> None:
        """``use`` is called with each set that a rule needs; it returns the kept set of equal content."""
        self._family, self._policy, self._direction = family, policy, direction
        self._keep = use

    def compile(self, number: int, rule: PolicyRule | ClusterRule) -> Iterator[Rule]:
        """The ir rules of one policy rule; none if no packet of this family can match."""
        action: Action = Allow()
        name = ""
        if isinstance(rule, ClusterRule):
            action, name = _ACTIONS[rule.action], rule.name
        origin = Origin(self._policy.ref, self._direction, number, name)
        for match in self._matches(rule):
            yield Rule(action, match, origin)

    def _matches(self, rule: PolicyRule | ClusterRule) -> Iterator[Match]:
        ports = rule.ports if rule.ports is not None else ()
        plain = [port for port in ports if not isinstance(port.port, str)]
        named = [port for port in ports if isinstance(port.port, str)]
        if (rule.ports is None or plain) and (peers := self._peers(rule)) is not None:
            for protocol, ranges in _ranges(plain) if rule.ports is not None else [(None, ())]:
                yield Match(protocol, ranges, peers)
        for port in dict.fromkeys(named):
            if (sets := self._named(rule, port)) is not None:
                yield Match(port.protocol, (), sets)

    def _peers(self, rule: PolicyRule | ClusterRule) -> tuple[SetMatch, ...] | None:
        """The set match of the rule's peers: () for any peer, None if no address of this family can match."""
        if rule.peers is None:
            return ()
        side = Side.SOURCE if self._direction is Direction.INGRESS else Side.DESTINATION
        return self._use(peer_set(self._family, self._policy, rule.peers), side)

    def _named(self, rule: PolicyRule | ClusterRule, port: Port) -> tuple[SetMatch, ...] | None:
        """A named port belongs to the destination: the peers in egress, the selected pods in ingress."""
        if self._direction is Direction.EGRESS:
            return self._use(named_port_peers(self._family, self._policy, rule.peers, port), Side.DESTINATION)
        peers = self._peers(rule)
        subjects = self._use(named_port_subjects(self._family, self._policy, port), Side.DESTINATION)
        return None if peers is None or subjects is None else (*peers, *subjects)

    def _use(self, wanted: PeerSet, side: Side) -> tuple[SetMatch, ...] | None:
        if wanted.empty:
            return None
        used = self._keep(wanted)
        return (SetMatch(used.id, used.kind, side),)


def _ranges(ports: Iterable[Port]) -> Iterator[tuple[Protocol, tuple[PortRange, ...]]]:
    """Ports by protocol, merged where they touch; () is every port of the protocol."""
    spans: dict[Protocol, list[tuple[int, int]]] = {}
    for port in ports:
        first = port.port if isinstance(port.port, int) else 0
        last = first if port.end_port is None else port.end_port
        spans.setdefault(port.protocol, []).append((first, last if port.port is not None else 65535))
    for protocol, found in sorted(spans.items()):
        merged = merge(found)
        whole = any(first == 0 for first, _ in merged)
        yield protocol, () if whole else tuple(PortRange(*span) for span in merged)
