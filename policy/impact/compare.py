"""The impact of a change of policies: pairs and ports that are newly denied or newly allowed.

Every answer is the oracle's (:mod:`policy.oracle.evaluate`), asked once for all parties that no policy can tell
apart:

1. Parties are put in cohorts (:mod:`policy.impact.cohorts`), pods by direction in classes
   (:mod:`policy.impact.answers`).
2. A pair's verdict combines the egress answer of the source's class and the ingress answer of the destination's.
   Only pairs with changed policies at one end are combined.
3. Pairs with the same change for the same reason become groups: each of some sources with each of some
   destinations.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from policy.impact.answers import Answer, Answers, Class, Decision, Stretch, Variant, decision
from policy.impact.cohorts import Cohorts, Mask, Party, Policy, World, bits, judged
from policy.model import Direction, Family, Node, Packet, PolicyRef, Protocol
from policy.oracle.evaluate import Snapshot, Verdict, verdict

Changes = Mapping[PolicyRef, Policy | None]
"""Changed policies; None: deleted."""


class Effect(enum.StrEnum):
    """New verdict on a connection."""

    DENIED = "denied"
    ALLOWED = "allowed"


@dataclass(frozen=True, slots=True, order=True)
class ProtocolPorts:
    """Ports of a protocol, ``first`` to ``last`` inclusive."""

    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One end whose verdict changes: the source in egress or the destination in ingress."""

    direction: Direction
    before: Decision
    after: Decision


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The same change for the same reason, from each of ``sources`` to each of ``destinations`` on ``ports``.

    ``family`` None: in every family in which both have an address. :meth:`pairs` leaves out pairs that policy
    does not judge: a pod and itself, a node and its own pods.
    """

    effect: Effect
    sources: tuple[Party, ...]
    destinations: tuple[Party, ...]
    ports: tuple[ProtocolPorts, ...]
    family: Family | None
    turns: tuple[Turn, ...]

    def pairs(self) -> Iterator[tuple[Party, Party]]:
        """Every pair that the change concerns."""
        for source in self.sources:
            for destination in self.destinations:
                if judged(source, destination):
                    yield source, destination


@dataclass(frozen=True, slots=True)
class Extent:
    """Size of one effect: pairs of two pods, pairs of a pod and a node, and pods with the world outside."""

    pod_pairs: int = 0
    node_pairs: int = 0
    world_pods: int = 0

    def __bool__(self) -> bool:
        return bool(self.pod_pairs or self.node_pairs or self.world_pods)


@dataclass(frozen=True, slots=True)
class Impact:
    """All changes. ``extents`` counts each pair once, even if it is in several groups. ``parties``: everybody."""

    groups: tuple[Group, ...]
    extents: Mapping[Effect, Extent]
    parties: tuple[Party, ...]


def policies_after(cluster: Snapshot, changes: Changes) -> dict[PolicyRef, Policy]:
    """The policies of a cluster once the changes are made."""
    policies = {**cluster.policies, **changes}
    return {ref: policy for ref, policy in policies.items() if policy is not None}


def impact(cluster: Snapshot, changes: Changes) -> Impact:
    """Compare before and after the changes: all pods, nodes and the world, all ports of all protocols.

    Pods without an address, and pods on the host network, which to policy are their node, do not take part.
    """
    would = policies_after(cluster, changes)
    cohorts = Cohorts(cluster, [*cluster.policies.values(), *(p for p in changes.values() if p is not None)])
    found = _Comparison(cohorts, Answers(cluster, cohorts, cluster.policies, would)).run()
    parties = tuple(sorted(cohorts.parties(cohorts.everybody), key=party_order))
    return Impact(tuple(_groups(found, cohorts)), _extents(found, cohorts), parties)


@dataclass(frozen=True, slots=True)
class Denial:
    """A packet that is allowed before and denied after, and the ends whose verdict changes."""

    packet: Packet
    turns: tuple[Turn, ...]


def newly_denied(cluster: Snapshot, changes: Changes, packets: Iterable[Packet]) -> list[Denial]:
    """The packets that the changes would newly deny, each once."""
    would = policies_after(cluster, changes)
    changed = {ref for ref in changes if cluster.policies.get(ref) != would.get(ref)}
    before, after = Variant(cluster, cluster.policies.values()), Variant(cluster, would.values())
    nodes = {node.name: frozenset(node.addresses) for node in cluster.nodes()}
    found: list[Denial] = []
    for packet in dict.fromkeys(packets):
        pod = cluster.pod_at(packet.destination)
        own = nodes.get(pod.node, frozenset()) if pod else frozenset()
        old, new = verdict(before, packet, own), verdict(after, packet, own)
        if old.allowed and not new.allowed:
            found.append(Denial(packet, _turns(old, new, changed)))
    return found


def _turns(old: Verdict, new: Verdict, changed: Container[PolicyRef]) -> tuple[Turn, ...]:
    ends = ((old.egress, new.egress), (old.ingress, new.ingress))
    return tuple(
        Turn(was.direction, decision(was, changed), decision(now, changed))
        for was, now in ends
        if was is not None and now is not None and was.allowed is not now.allowed
    )


# --- pairs put together ---------------------------------------------------------------------------------------

_Change = tuple[Effect, tuple[ProtocolPorts, ...], tuple[Turn, ...]]
_Pairs = dict[int, Mask]
"""Cohort of the destination -> cohorts of the sources."""


class _Comparison:
    """Finds the pairs of cohorts of each change."""

    def __init__(self, cohorts: Cohorts, answers: Answers) -> None:
        self._cohorts = cohorts
        self._answers = answers
        self._together: dict[tuple[Answer, Answer], list[_Change]] = {}
        self._found: dict[_Change, dict[Family, _Pairs]] = {}

    def run(self) -> dict[_Change, dict[Family, _Pairs]]:
        destinations = self._answers.classes(Direction.INGRESS)
        changed = [one for one in destinations if one.affected]
        for source in self._answers.classes(Direction.EGRESS):
            for destination in destinations if source.affected else changed:
                for family in Family:
                    self._compare(source, destination, family)
        return self._found

    def _compare(self, source: Class, destination: Class, family: Family) -> None:
        """Compare all pairs of two classes, by the parts that each is split into for the other."""
        for here in self._answers.parts(destination, family):
            sources = here.far & source.members
            if not sources:
                continue
            ingress = self._answers.answer(destination, here, family)
            if ingress is None or not (ingress.turns or source.affected):
                continue
            for there in self._answers.parts(source, family):
                destinations = there.far & destination.members
                if destinations:
                    egress = self._answers.answer(source, there, family)
                    if egress is not None and (egress.turns or ingress.turns):
                        self._note(sources, destinations, family, self._changes(egress, ingress))

    def _changes(self, egress: Answer, ingress: Answer) -> list[_Change]:
        key = (egress, ingress)
        if key not in self._together:
            self._together[key] = _together(egress, ingress)
        return self._together[key]

    def _note(self, sources: Mask, destinations: Mask, family: Family, changes: list[_Change]) -> None:
        for change in changes:
            pairs = self._found.setdefault(change, {}).setdefault(family, {})
            for number in bits(destinations):
                pairs[number] = pairs.get(number, 0) | sources


def _together(egress: Answer, ingress: Answer) -> list[_Change]:
    """ "Both the egress policy on the source and the ingress policy on the destination need to allow it." """
    found: dict[tuple[Effect, tuple[Turn, ...]], list[ProtocolPorts]] = {}
    for protocol, first, last, out, into in _overlaps(egress, ingress):
        before = out.before.allowed and into.before.allowed
        if before is (out.after.allowed and into.after.allowed):
            continue
        effect = Effect.DENIED if before else Effect.ALLOWED
        turns = tuple(
            Turn(direction, end.before, end.after)
            for direction, end in ((Direction.EGRESS, out), (Direction.INGRESS, into))
            if end.before.allowed is not end.after.allowed
        )
        ranges = found.setdefault((effect, turns), [])
        if ranges and (ranges[-1].protocol, ranges[-1].last) == (protocol, first - 1):
            ranges[-1] = ProtocolPorts(protocol, ranges[-1].first, last)
        else:
            ranges.append(ProtocolPorts(protocol, first, last))
    return [(effect, tuple(ranges), turns) for (effect, turns), ranges in found.items()]


def _overlaps(one: Answer, other: Answer) -> Iterator[tuple[Protocol, int, int, Stretch, Stretch]]:
    """The stretches of ports on which both answers are uniform. Both cover every port, in the same order."""
    a = b = 0
    while a < len(one.stretches):
        left, right = one.stretches[a], other.stretches[b]
        last = min(left.last, right.last)
        yield left.protocol, max(left.first, right.first), last, left, right
        a += left.last == last
        b += right.last == last


# --- groups ---------------------------------------------------------------------------------------------------


def _groups(found: Mapping[_Change, Mapping[Family, _Pairs]], cohorts: Cohorts) -> list[Group]:
    groups: list[Group] = []
    for (effect, ports, turns), by_family in found.items():
        for family, pairs in _by_families(by_family, cohorts):
            for sources, destinations in _rectangles(pairs):
                ends = _parties(cohorts, sources, destinations)
                if ends is not None:
                    groups.append(Group(effect, *ends, ports, family, turns))
    return sorted(groups, key=_group_order)


def _by_families(by_family: Mapping[Family, _Pairs], cohorts: Cohorts) -> Iterator[tuple[Family | None, _Pairs]]:
    """The pairs with a change in every family that they share (None), and the other pairs by family."""
    common: _Pairs = {}
    for number in sorted({number for pairs in by_family.values() for number in pairs}):
        everywhere = 0
        for pairs in by_family.values():
            everywhere |= pairs.get(number, 0)
        for family in cohorts.all[number].places:
            everywhere &= by_family.get(family, {}).get(number, 0) | ~cohorts.having[family]
        common[number] = everywhere
    yield None, {number: mask for number, mask in common.items() if mask}
    for family, pairs in by_family.items():
        rest = {number: mask & ~common[number] for number, mask in pairs.items()}
        yield family, {number: mask for number, mask in rest.items() if mask}


def _rectangles(pairs: _Pairs) -> list[tuple[Mask, Mask]]:
    """The pairs as (sources, destinations) products, by equal rows or by equal columns, whichever are fewer."""
    by_sources: dict[Mask, Mask] = {}
    for number, sources in pairs.items():
        by_sources[sources] = by_sources.get(sources, 0) | 1 << number
    by_destinations: dict[Mask, Mask] = {}
    to: dict[int, Mask] = {}
    for sources, destinations in by_sources.items():
        for number in bits(sources):
            to[number] = to.get(number, 0) | destinations
    for number, destinations in to.items():
        by_destinations[destinations] = by_destinations.get(destinations, 0) | 1 << number
    if len(by_sources) <= len(by_destinations):
        return list(by_sources.items())
    return [(sources, destinations) for destinations, sources in by_destinations.items()]


def _parties(
    cohorts: Cohorts, sources: Mask, destinations: Mask
) -> tuple[tuple[Party, ...], tuple[Party, ...]] | None:
    """Both sides of a rectangle, without parties that policy judges with no party of the other side."""
    here, there = cohorts.parties(sources), cohorts.parties(destinations)
    same = Counter(id(party.what) for party in there)
    local = Counter(party.pod.node for party in there if party.pod)
    kept = [p for p in here if len(there) > same[id(p.what)] + sum(local[node] for node in p.nodes)]
    same = Counter(id(party.what) for party in here)
    local = Counter(node for party in here for node in party.nodes)
    left = [p for p in there if len(here) > same[id(p.what)] + (local[p.pod.node] if p.pod else 0)]
    if not kept or not left:
        return None
    return tuple(sorted(kept, key=party_order)), tuple(sorted(left, key=party_order))


def party_order(party: Party) -> tuple[int, str, str]:
    """Sorts parties: pods, then nodes, then the world."""
    match party.what:
        case World(regions):
            return 2, "", regions[0].cidr
        case Node(name):
            return 1, "", name
    return 0, *party.what.key


def _group_order(group: Group) -> tuple[object, ...]:
    """Sorts newly denied first, then by destination, source and ports."""
    return (
        list(Effect).index(group.effect),
        [party_order(party) for party in group.destinations],
        [party_order(party) for party in group.sources],
        group.ports,
        group.family or 0,
        repr(group.turns),
    )


# --- how much -------------------------------------------------------------------------------------------------


def _extents(found: Mapping[_Change, Mapping[Family, _Pairs]], cohorts: Cohorts) -> dict[Effect, Extent]:
    extents: dict[Effect, Extent] = {}
    for effect in Effect:
        union: _Pairs = {}
        for (kind, _, _), by_family in found.items():
            for pairs in by_family.values() if kind is effect else ():
                for number, sources in pairs.items():
                    union[number] = union.get(number, 0) | sources
        extents[effect] = _extent(union, cohorts)
    return extents


def _extent(pairs: _Pairs, cohorts: Cohorts) -> Extent:
    pod_pairs = node_pairs = 0
    with_world: Mask = 0
    by_sources: dict[Mask, Mask] = {}
    for number, sources in pairs.items():
        by_sources[sources] = by_sources.get(sources, 0) | 1 << number
    for sources, destinations in by_sources.items():
        here, there = cohorts.parties(sources), cohorts.parties(destinations)
        pods, others = [p.pod for p in here if p.pod], [p.pod for p in there if p.pod]
        pod_pairs += len(pods) * len(others) - len({p.key for p in pods} & {p.key for p in others})
        node_pairs += len(pods) * len({p.what.name for p in there if isinstance(p.what, Node)})
        local = Counter(pod.node for pod in others)
        node_pairs += sum(len(others) - local[n] for n in {p.what.name for p in here if isinstance(p.what, Node)})
        if any(isinstance(p.what, World) for p in here):
            with_world |= destinations & cohorts.pods
        if any(isinstance(p.what, World) for p in there):
            with_world |= sources & cohorts.pods
    return Extent(pod_pairs, node_pairs, len(cohorts.parties(with_world)))
