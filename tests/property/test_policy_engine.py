"""The engine against the oracle, and against itself: state, not history."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.engine.interpret import direction_allowed
from policy.ir import Chain, ChainId, Delta, Program, SetId, SetKind
from policy.model import (
    ClusterPolicy,
    Direction,
    Family,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Node,
    ObjectKey,
    Pod,
    PolicyRef,
)
from policy.oracle.evaluate import verdict
from tests.support.clusters import Cluster, clusters, family, packets
from tests.support.thorough import examples
from tests.support.told import ToldEngine

PACKETS = packets()


class Mirror:
    """A Program made of nothing but deltas. It objects to a delta that changes nothing or comes out of order."""

    def __init__(self, of: Family) -> None:
        self.family = of
        self.chains: dict[ChainId, Chain] = {}
        self.sets: dict[SetId, SetKind] = {}
        self.members: dict[SetId, set[str]] = {}
        self.classes: dict[Direction, dict[str, ChainId]] = {direction: {} for direction in Direction}

    def apply(self, delta: Delta) -> None:
        for key, chain in delta.chains.items():
            assert self.chains.get(key) != chain
            if chain is None:
                del self.chains[key]
            else:
                self.chains[key] = chain
        for name, kind in delta.sets.items():
            assert self.sets.get(name) != kind
            if kind is None:
                del self.sets[name], self.members[name]
                assert name not in delta.members
            else:
                self.sets[name] = kind
                self.members[name] = set()
        for name, changed in delta.members.items():
            for member, is_in in changed.items():
                assert (member in self.members[name]) is not is_in
                (self.members[name].add if is_in else self.members[name].discard)(member)
        for (direction, address), chosen in delta.classes.items():
            assert self.classes[direction].get(address) != chosen
            if chosen is None:
                del self.classes[direction][address]
            else:
                self.classes[direction][address] = chosen

    def program(self) -> Program:
        members = {name: frozenset(found) for name, found in self.members.items()}
        return Program(self.family, self.chains, self.sets, members, self.classes)


@dataclass
class World:
    """Feeds an engine, and remembers what a node remembers: the last that was known of each endpoint's pod."""

    engine: ToldEngine = field(default_factory=ToldEngine)
    mirrors: dict[Family, Mirror] = field(default_factory=lambda: {f: Mirror(f) for f in Family})
    pods: dict[ObjectKey, Pod] = field(default_factory=dict)
    endpoints: dict[ObjectKey, LocalEndpoint] = field(default_factory=dict)
    remembered: dict[ObjectKey, Pod] = field(default_factory=dict)

    def do(self, event: Event) -> None:
        kind, key, record = event
        match kind, record:
            case "namespace", Namespace():
                self.engine.upsert(record)
            case "namespace", None:
                self.engine.told.remove(Namespace, key[1])
            case "node", Node():
                self.engine.upsert(record)
            case "node", None:
                self.engine.told.remove(Node, key[1])
            case "policy", NetworkPolicy() | ClusterPolicy():
                self.engine.upsert(record)
            case "policy", None:
                assert isinstance(key, PolicyRef)
                self.engine.told.remove(NetworkPolicy, key)
            case "pod", Pod():
                self.pods[key] = record
                self.engine.upsert(record)
            case "pod", None:
                self.pods.pop(key, None)
                self.engine.told.remove(Pod, key)
            case "endpoint", LocalEndpoint():
                if key in self.endpoints and self.endpoints[key].uid != record.uid:
                    self.remembered.pop(key, None)
                self.endpoints[key] = record
                self.engine.lease(record)
            case "endpoint", None:
                self.endpoints.pop(key, None)
                self.remembered.pop(key, None)
                self.engine.detach(key)
            case _:
                raise AssertionError(event)
        endpoint, pod = self.endpoints.get(key), self.pods.get(key)
        if endpoint is not None and pod is not None and endpoint.stands_for(pod):
            self.remembered[key] = pod

    def check_flush(self) -> None:
        for delta in self.engine.flush():
            assert delta
            self.mirrors[delta.family].apply(delta)
        for of, mirror in self.mirrors.items():
            assert mirror.program() == self.engine.program(of)


Record = Namespace | Pod | NetworkPolicy | ClusterPolicy | LocalEndpoint | Node
Event = tuple[str, Any, Record | None]
EMPTY = Cluster({}, {}, {}, {}, {})


def tables(cluster: Cluster) -> dict[tuple[str, Any], Record]:
    """Every object of a cluster by (kind, key)."""
    found: dict[tuple[str, Any], Record] = {}
    found.update({("node", ("", name)): node for name, node in cluster.nodes.items()})
    found.update({("namespace", ("", name)): namespace for name, namespace in cluster.namespaces.items()})
    found.update({("pod", key): pod for key, pod in cluster.pods.items()})
    found.update({("policy", key): policy for key, policy in cluster.policies.items()})
    found.update({("endpoint", key): endpoint for key, endpoint in cluster.endpoints.items()})
    return found


def events(before: Cluster, after: Cluster) -> list[Event]:
    """What leads from one state to another. Each event speaks of another object, so any order will do."""
    old, new = tables(before), tables(after)
    return [(*place, new.get(place)) for place in {**old, **new} if old.get(place) != new.get(place)]


def fed(cluster: Cluster) -> ToldEngine:
    engine = World()
    for event in events(EMPTY, cluster):
        engine.do(event)
    return engine.engine


def fresh(world: World, cluster: Cluster) -> ToldEngine:
    """An engine that has seen nothing but the end state, and what a node remembers of its endpoints."""
    engine = ToldEngine()
    for key, pod in world.remembered.items():
        engine.upsert(pod)
        engine.lease(cluster.endpoints[key])
        engine.told.remove(Pod, key)
    for event in events(EMPTY, cluster):
        World(engine).do(event)
    return engine


def undecided(cluster: Cluster, address: str) -> bool:
    """Whether what selects an endpoint is not known, as long as its namespace is not."""
    owner = cluster.snapshot().pod_at(address)
    tiers = any(isinstance(policy, ClusterPolicy) for policy in cluster.policies.values())
    return tiers and owner is not None and owner.namespace not in cluster.namespaces


@settings(max_examples=examples(400), deadline=None)
@given(cluster=clusters(), seed=st.integers(0, 2**32))
def test_the_compiled_program_does_what_the_oracle_says(cluster: Cluster, seed: int) -> None:
    engine = fed(cluster)
    programs = {of: engine.program(of) for of in Family}
    snapshot = cluster.snapshot()
    local = {address for endpoint in cluster.endpoints.values() for address in endpoint.addresses}
    judged = [p for p in PACKETS if p.source in local or p.destination in local]
    for packet in random.Random(seed).sample(judged, min(len(judged), 150)):
        truth = verdict(snapshot, packet)
        program = programs[family(packet.source)]
        if packet.source in local and truth.egress is not None:
            found = direction_allowed(program, packet, Direction.EGRESS)
            expected = truth.egress.allowed and not undecided(cluster, packet.source)
            assert found is expected, (packet, truth)
        if packet.destination in local and truth.ingress is not None:
            found = direction_allowed(program, packet, Direction.INGRESS)
            expected = truth.ingress.allowed and not undecided(cluster, packet.destination)
            assert found is expected, (packet, truth)


@settings(max_examples=examples(100), deadline=None)
@given(states=st.lists(clusters(), min_size=1, max_size=3), choices=st.randoms(use_true_random=False))
def test_any_way_to_a_state_ends_in_the_same_program(states: list[Cluster], choices: random.Random) -> None:
    world = World()
    before = EMPTY
    # The last step only takes away: whatever was counted twice on the way stays behind and shows.
    kept = {key: pod for key, pod in states[-1].pods.items() if choices.random() < 0.4}
    for after in [*states, replace(states[-1], pods=kept)]:
        way = events(before, after)
        choices.shuffle(way)
        for event in way:
            if choices.random() < 0.3:
                place = (event[0], event[1])
                there = tables(before).get(place)
                detour = choices.choice(
                    [None, there, tables(states[0]).get(place), tables(states[-1]).get(place)]
                )
                world.do((*place, detour))
            for _ in range(choices.choice((1, 1, 1, 2))):
                world.do(event)
            if choices.random() < 0.3:
                world.check_flush()
        before = after
    world.check_flush()
    other = fresh(world, before)
    for of in Family:
        assert world.engine.program(of) == other.program(of)


@settings(max_examples=examples(60), deadline=None)
@given(cluster=clusters())
def test_reversed_and_squashed_events_give_the_same_and_going_back_leaves_nothing(cluster: Cluster) -> None:
    forth = events(EMPTY, cluster)
    world, reverse = World(), World()
    for event in forth:
        world.do(event)
        world.check_flush()
    for event in reversed(forth):
        reverse.do(event)
    reverse.check_flush()
    for of in Family:
        assert world.engine.program(of) == reverse.engine.program(of)
    for event in events(cluster, EMPTY):
        world.do(event)
    world.check_flush()
    for of in Family:
        program = world.engine.program(of)
        assert program == Program(of, {}, {}, {}, {direction: {} for direction in Direction})


@settings(max_examples=examples(40), deadline=None)
@given(cluster=clusters())
def test_an_event_that_says_nothing_new_changes_nothing(cluster: Cluster) -> None:
    world = World()
    for event in events(EMPTY, cluster):
        world.do(event)
    world.check_flush()
    for event in events(EMPTY, cluster):
        world.do(event)
    for pod in cluster.pods.values():
        world.engine.upsert(replace(pod, node="another"))
    assert world.engine.flush() == []


@settings(max_examples=examples(40), deadline=None)
@given(cluster=clusters(), only=st.sampled_from(Family))
def test_a_node_of_one_family_has_that_family_s_half(cluster: Cluster, only: Family) -> None:
    world = World(ToldEngine((only,)))
    for event in events(EMPTY, cluster):
        world.do(event)
    assert [delta.family for delta in world.engine.flush()] in ([], [only])
    assert world.engine.program(only) == fed(cluster).program(only)
