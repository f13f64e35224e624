"""What a change of policies would change: the groups, written out, are what the oracle finds packet by packet."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.impact.cohorts import Party, World
from policy.impact.compare import Changes, Effect, Group, impact, newly_denied, policies_after
from policy.model import Family, Packet, Pod, Protocol
from policy.oracle.evaluate import Snapshot, Verdict, verdict
from tests.support.clusters import (
    NODE,
    NODES,
    NUMBERS,
    PORTS,
    WORLD,
    cluster_policies,
    clusters,
    policies,
    v4,
    v6,
)
from tests.support.thorough import examples

PLACES = [*(v4(n) for n in NUMBERS), *(v6(n) for n in NUMBERS), *NODE, *NODES["n2"], *WORLD]
TRIED = (1, *PORTS, 83, 65535)

some_policies = st.lists(st.one_of(policies, policies, cluster_policies), min_size=1, max_size=4)


@dataclass(frozen=True)
class Case:
    """A cluster, and a change of its policies."""

    cluster: Snapshot
    changes: Changes


@st.composite
def cases(draw: st.DrawFn) -> Case:
    drawn = draw(clusters())
    pods = [replace(pod, node=draw(st.sampled_from((*NODES, "n3")))) for pod in drawn.pods.values()]
    there = [*drawn.policies.values(), *draw(some_policies)]
    changed = {policy.ref: policy for policy in draw(some_policies)}
    deleted = draw(st.sets(st.sampled_from([policy.ref for policy in there])))
    cluster = Snapshot(drawn.namespaces.values(), pods, there, drawn.nodes.values())
    return Case(cluster, {**dict.fromkeys(deleted), **changed})


Cell = tuple[str, str, Protocol, int]


def by_packets(case: Case) -> dict[Cell, tuple[Verdict, Verdict]]:
    """Every packet that is judged differently, with both verdicts."""
    before = case.cluster
    after = Snapshot(
        before.namespaces.values(),
        before.pods.values(),
        policies_after(before, case.changes).values(),
        before.nodes(),
    )
    addresses = {node.name: frozenset(node.addresses) for node in before.nodes()}
    found = {}
    for source in PLACES:
        for destination in PLACES:
            pod = before.pod_at(destination)
            if (":" in source) != (":" in destination) or (pod is None and before.pod_at(source) is None):
                continue
            for protocol in Protocol:
                for port in TRIED:
                    packet = Packet(source, destination, protocol, port)
                    own = addresses.get(pod.node, frozenset()) if pod else frozenset()
                    old, new = verdict(before, packet, own), verdict(after, packet, own)
                    if old.allowed is not new.allowed:
                        found[source, destination, protocol, port] = (old, new)
    return found


def places_of(cluster: Snapshot, party: Party, family: Family) -> list[str]:
    """Those of the addresses in question that are a party's."""
    if not isinstance(party.what, World):
        return [party.addresses[family]] if family in party.addresses else []
    nobodys = [
        a for a in PLACES if cluster.pod_at(a) is None and not any(a in n.addresses for n in cluster.nodes())
    ]
    return [a for a in nobodys if (":" in a) == (family is Family.V6) and party.what.covers(a)]


def written_out(cluster: Snapshot, group: Group) -> list[Cell]:
    return [
        (source, destination, ports.protocol, port)
        for one, other in group.pairs()
        for family in ((group.family,) if group.family else tuple(Family))
        for source in places_of(cluster, one, family)
        for destination in places_of(cluster, other, family)
        for ports in group.ports
        for port in TRIED
        if ports.first <= port <= ports.last
    ]


@settings(max_examples=examples(150), deadline=None)
@given(case=cases())
def test_the_groups_are_what_the_oracle_finds_packet_by_packet(case: Case) -> None:
    truth = by_packets(case)
    groups = impact(case.cluster, case.changes).groups
    told: dict[Cell, Group] = {}
    for group in groups:
        for cell in written_out(case.cluster, group):
            assert cell not in told, "one change, told twice"
            told[cell] = group
    assert told.keys() == truth.keys()
    for cell, group in told.items():
        old, new = truth[cell]
        assert (group.effect is Effect.ALLOWED) is new.allowed
        ends = [
            (was.direction, was.allowed, was.decided_by, now.allowed, now.decided_by)
            for was, now in ((old.egress, new.egress), (old.ingress, new.ingress))
            if was is not None and now is not None and was.allowed is not now.allowed
        ]
        assert ends == [
            (t.direction, t.before.allowed, t.before.rule, t.after.allowed, t.after.rule) for t in group.turns
        ]
    denials = newly_denied(case.cluster, case.changes, [Packet(*cell) for cell in truth])
    assert {denial.packet: denial.turns for denial in denials} == {
        Packet(*cell): group.turns for cell, group in told.items() if group.effect is Effect.DENIED
    }


@settings(max_examples=examples(100), deadline=None)
@given(case=cases())
def test_pairs_are_counted_once(case: Case) -> None:
    found = impact(case.cluster, case.changes)
    for effect in Effect:
        pairs = {
            (one.what if isinstance(one.what, World) else one.what.name, getattr(other.what, "name", other.what))
            for group in found.groups
            if group.effect is effect
            for one, other in group.pairs()
            if isinstance(one.what, Pod) and isinstance(other.what, Pod)
        }
        assert found.extents[effect].pod_pairs == len(pairs)
