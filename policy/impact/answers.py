"""Verdicts at the pods' own end, before and after a change of policies: the oracle, asked once for many.

Pods that the same policies select in a direction are a *class*. Far ends that match the same peers of its
policies are one *part* to the class; so one packet for each part and each stretch of ports stands for all.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from policy.impact.cohorts import Cohorts, Mask, Party, Policy, bits, peers_of, port_names, ports_of
from policy.model import (
    ClusterPolicy,
    Direction,
    Family,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Node,
    Packet,
    Pod,
    PolicyKind,
    PolicyRef,
    Port,
    Protocol,
    Tier,
)
from policy.oracle.evaluate import DirectionVerdict, RuleRef, Snapshot, verdict

LAST_PORT = 65535


class Variant:
    """A fast View of the cluster under other policies than its own."""

    def __init__(self, cluster: Snapshot, policies: Iterable[Policy]) -> None:
        self._cluster = cluster
        self._cluster_policies: list[ClusterPolicy] = []
        self._network_policies: dict[str, list[NetworkPolicy]] = {}
        for policy in policies:
            if isinstance(policy, NetworkPolicy):
                self._network_policies.setdefault(policy.namespace, []).append(policy)
            else:
                self._cluster_policies.append(policy)

    def namespace(self, name: str) -> Namespace | None:
        """See :class:`policy.oracle.evaluate.View`."""
        return self._cluster.namespace(name)

    def pod_at(self, address: str) -> Pod | None:
        """See :class:`policy.oracle.evaluate.View`."""
        return self._cluster.pod_at(address)

    def nodes(self) -> Iterable[Node]:
        """See :class:`policy.oracle.evaluate.View`."""
        return self._cluster.nodes()

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        """See :class:`policy.oracle.evaluate.View`."""
        return self._network_policies.get(namespace, ())

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        """See :class:`policy.oracle.evaluate.View`."""
        return self._cluster_policies


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict of one end, and why.

    ``tier`` None: no policy decides, so it is allowed. ``rule`` None in the NetworkPolicy tier: denied, since
    ``isolated_by`` select the pod and no rule allows; if changed policies are among them, only those.
    """

    allowed: bool
    tier: Tier | None = None
    rule: RuleRef | None = None
    isolated_by: tuple[PolicyRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ports of a protocol, ``first`` to ``last`` inclusive, with the same verdict of one end."""

    protocol: Protocol
    first: int
    last: int
    before: Decision
    after: Decision


@dataclass(slots=True, eq=False)
class Answer:
    """A class's verdicts on one part of the far ends: stretches that cover every port of every protocol."""

    stretches: tuple[Stretch, ...]

    def __post_init__(self) -> None:
        self.turns = any(s.before.allowed is not s.after.allowed for s in self.stretches)

    turns: bool = field(init=False)
    """Whether a verdict changes."""


_ALLOWED = Decision(True)
ANYTHING = Answer(tuple(Stretch(protocol, 1, LAST_PORT, _ALLOWED, _ALLOWED) for protocol in Protocol))
"""The answer of an end that is no pod."""


@dataclass(frozen=True, slots=True)
class _Version:
    """A policy as it is before the change, after it, or both."""

    policy: Policy
    before: bool
    after: bool


@dataclass(slots=True, eq=False)
class Part:
    """Far ends that are the same to a class: by the ``peers`` and the named ``ports`` of its egress rules."""

    far: Mask
    peers: tuple[int, ...] = ()
    ports: tuple[NamedPort, ...] = ()


@dataclass(slots=True, eq=False)
class Class:
    """Pods that the same policies select in a direction; in ingress, with the same named ports, too.

    ``versions`` None: ends that are no pods, which policy never denies.
    """

    direction: Direction
    members: Mask
    versions: tuple[_Version, ...] | None
    parts: dict[Family, list[Part]] = field(default_factory=dict)
    answers: dict[tuple[tuple[int, ...], tuple[NamedPort, ...]], Answer] = field(default_factory=dict)

    @property
    def affected(self) -> bool:
        """Whether one of its policies changes."""
        return any(version.before is not version.after for version in self.versions or ())

    @property
    def policies(self) -> list[Policy]:
        """The policies before and after the change."""
        return [version.policy for version in self.versions or ()]


class Answers:
    """The classes of both directions, and their answers."""

    def __init__(
        self, cluster: Snapshot, cohorts: Cohorts, before: dict[PolicyRef, Policy], after: dict[PolicyRef, Policy]
    ) -> None:
        self._cluster = cluster
        self._cohorts = cohorts
        self._before, self._after = before, after
        self._changed = {ref for ref in {**before, **after} if before.get(ref) != after.get(ref)}

    # --- classes --------------------------------------------------------------------------------------

    def classes(self, direction: Direction) -> list[Class]:
        """Every class of a direction; the first one is that of all ends that are no pods."""
        cohorts = self._cohorts
        selecting: dict[int, list[int]] = {number: [] for number in bits(cohorts.pods)}
        versions = list(self._versions(direction))
        for place, version in enumerate(versions):
            for number in bits(cohorts.subjects(version.policy)):
                selecting[number].append(place)
        groups: dict[tuple[tuple[int, ...], tuple[NamedPort, ...]], Mask] = {}
        names: dict[tuple[int, ...], frozenset[str]] = {}
        for number, places in selecting.items():
            chosen = tuple(places)
            ports: tuple[NamedPort, ...] = ()
            if direction is Direction.INGRESS:
                if chosen not in names:
                    names[chosen] = port_names((versions[place].policy for place in chosen), direction)
                ports = cohorts.named_ports(number, names[chosen])
            groups[chosen, ports] = groups.get((chosen, ports), 0) | 1 << number
        no_pods = Class(direction, cohorts.everybody & ~cohorts.pods, None)
        made = (Class(direction, m, tuple(versions[p] for p in places)) for (places, _), m in groups.items())
        return [no_pods, *made]

    def _versions(self, direction: Direction) -> Iterator[_Version]:
        """The policies with effect on a direction; one with the same effect afterwards is unchanged there."""
        for ref in {**self._before, **self._after}:
            old, new = self._before.get(ref), self._after.get(ref)
            old = old if old is not None and _speaks(old, direction) else None
            new = new if new is not None and _speaks(new, direction) else None
            if old is not None and new is not None and _says(old, direction) == _says(new, direction):
                yield _Version(new, True, True)
                continue
            if old is not None:
                yield _Version(old, True, False)
            if new is not None:
                yield _Version(new, False, True)

    # --- parts ----------------------------------------------------------------------------------------

    def parts(self, chosen: Class, family: Family) -> list[Part]:
        """All far ends of a family, split into the parts of a class."""
        if family not in chosen.parts:
            chosen.parts[family] = self._split(chosen, family)
        return chosen.parts[family]

    def _split(self, chosen: Class, family: Family) -> list[Part]:
        parts = [Part(self._cohorts.having[family])]
        for place, (own, peer) in enumerate(peers_of(chosen.policies, chosen.direction)):
            meant = self._cohorts.peers(peer, own, family)
            inside = (Part(part.far & meant, (*part.peers, place)) for part in parts)
            outside = (Part(part.far & ~meant, part.peers) for part in parts)
            parts = [part for part in (*inside, *outside) if part.far]
        if chosen.direction is Direction.EGRESS:
            # Named ports belong to the class's pods in ingress, but to the far ends in egress.
            names = port_names(chosen.policies, chosen.direction)
            split = self._cohorts.by_named_ports(names).items() if names else ()
            parts = [Part(p.far & m, p.peers, ports) for p in parts for ports, m in split if p.far & m] or parts
        return parts

    # --- answers --------------------------------------------------------------------------------------

    def answer(self, chosen: Class, part: Part, family: Family) -> Answer | None:
        """The answer of a class to a part of its far ends. None: there is no pair of two different ends."""
        if chosen.versions is None:
            return ANYTHING
        key = (part.peers, part.ports)
        if key not in chosen.answers:
            pair = self._pair(chosen.members & self._cohorts.having[family], part.far)
            if pair is None:
                return None
            chosen.answers[key] = Answer(tuple(self._stretches(chosen, *pair, family)))
        return chosen.answers[key]

    def _pair(self, members: Mask, far: Mask) -> tuple[Party, Party] | None:
        subject = self._cohorts.first(members)
        other = self._cohorts.first(far, subject)
        if other is None:
            # The part may be that one pod; then another pod of its class is the subject.
            other = self._cohorts.first(far)
            subject = self._cohorts.first(members, other)
        return (subject, other) if subject is not None and other is not None else None

    def _stretches(self, chosen: Class, subject: Party, far: Party, family: Family) -> list[Stretch]:
        source, destination = (subject, far) if chosen.direction is Direction.EGRESS else (far, subject)
        versions = chosen.versions or ()
        before = Variant(self._cluster, [version.policy for version in versions if version.before])
        after = Variant(self._cluster, [version.policy for version in versions if version.after])
        pod = destination.pod
        found: list[Stretch] = []
        for protocol in Protocol:
            starts = _starts(ports_of(chosen.policies, chosen.direction), pod.ports if pod else (), protocol)
            for first, following in zip(starts, [*starts[1:], LAST_PORT + 1], strict=True):
                packet = Packet(source.addresses[family], destination.addresses[family], protocol, first)
                old = self._ask(before, packet, chosen.direction)
                new = self._ask(after, packet, chosen.direction) if chosen.affected else old
                last = found[-1] if found else None
                if last and (last.protocol, last.before, last.after) == (protocol, old, new):
                    found[-1] = Stretch(protocol, last.first, following - 1, old, new)
                else:
                    found.append(Stretch(protocol, first, following - 1, old, new))
        return found

    def _ask(self, view: Variant, packet: Packet, direction: Direction) -> Decision:
        both = verdict(view, packet)
        end = both.egress if direction is Direction.EGRESS else both.ingress
        return _ALLOWED if end is None else decision(end, self._changed)


def decision(end: DirectionVerdict, changed: Container[PolicyRef] = ()) -> Decision:
    """The oracle's verdict at one end as a Decision."""
    isolating: list[PolicyRef] = []
    if end.tier is Tier.NETWORK and end.decided_by is None:
        isolating = [ref for ref in end.selected_by if ref.kind is PolicyKind.NETWORK]
        isolating = [ref for ref in isolating if ref in changed] or isolating
    return Decision(end.allowed, end.tier, end.decided_by, tuple(isolating))


def _speaks(policy: Policy, direction: Direction) -> bool:
    """A NetworkPolicy without rules denies; a cluster-scoped policy without rules has no effect."""
    rules = policy.rules(direction)
    return rules is not None if isinstance(policy, NetworkPolicy) else bool(rules)


def _says(policy: Policy, direction: Direction) -> object:
    """All that decides a policy's effect on one direction."""
    if isinstance(policy, NetworkPolicy):
        return (policy.selector, policy.rules(direction))
    return (policy.precedence, policy.tier, policy.subject, policy.rules(direction))


def _starts(ports: Sequence[Port], own: Sequence[NamedPort], protocol: Protocol) -> list[int]:
    """The ports at which the oracle's verdict may change, from port 1 on."""
    starts = {1}
    for port in ports:
        if port.protocol is not protocol:
            continue
        if isinstance(port.port, int):
            starts |= {port.port, (port.end_port or port.port) + 1}
        elif port.port is not None:
            mine = (n.port for n in own if (n.name, n.protocol) == (port.port, protocol))
            starts |= {bound for number in mine for bound in (number, number + 1)}
    return sorted(start for start in starts if 1 <= start <= LAST_PORT)
