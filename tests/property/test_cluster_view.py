"""The view that is kept up to date is the view that a fresh list of everything would give."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.agent.view import ClusterView
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import ClusterPolicy, LocalEndpoint, Namespace, NetworkPolicy, Node, ObjectKey, Pod
from policy.oracle.evaluate import Snapshot, verdict
from tests.property.test_policy_engine import EMPTY, Event, events, tables
from tests.support.clusters import NAMESPACES, NODE, NUMBERS, WORLD, Cluster, clusters, packets, v4, v6
from tests.support.thorough import examples

PACKETS = packets()
ADDRESSES = [*(v4(n) for n in NUMBERS), *(v6(n) for n in NUMBERS), *NODE, *WORLD]


class Fed:
    """Feeds a view, and remembers what a node remembers: the last that was known of each endpoint's pod."""

    def __init__(self) -> None:
        self.view = ClusterView()
        self.known: dict[tuple[str, Any], Any] = {}
        self.remembered: dict[ObjectKey, Pod] = {}

    def do(self, event: Event) -> None:
        kind, key, record = event
        place = (kind, key)
        match record:
            case LocalEndpoint():
                if place in self.known and self.known[place].uid != record.uid:
                    self.remembered.pop(key, None)
                self.view.attach(record, self.known.get(("pod", key)))
            case None if kind == "endpoint":
                self.view.detach(key)
                self.remembered.pop(key, None)
            case _:
                before = self.known.get(place)
                if before is not None or record is not None:
                    self.view.fold(Change(_stored(before), _stored(record)))
        if record is None:
            self.known.pop(place, None)
        else:
            self.known[place] = record
        endpoint, pod = self.known.get(("endpoint", key)), self.known.get(("pod", key))
        if endpoint is not None and pod is not None and endpoint.stands_for(pod):
            self.remembered[key] = pod

    def check(self) -> None:
        """Against plain lists of what is known now."""
        self.view.advance()
        for name in NAMESPACES:
            assert self.view.namespace(name) == self.known.get(("namespace", ("", name)))
            policies = [p for p in self.known.values() if isinstance(p, NetworkPolicy) and p.namespace == name]
            assert sorted(p.ref for p in self.view.network_policies(name)) == sorted(p.ref for p in policies)
            assert set(self.view.network_policies(name)) == set(policies)
        assert set(self.view.nodes()) == {node for node in self.known.values() if isinstance(node, Node)}
        cluster_policies = {p for (kind, key), p in self.known.items() if kind == "policy" and not key.namespace}
        assert set(self.view.cluster_policies()) == cluster_policies
        for address in ADDRESSES:
            assert self.view.pod_at(address) == self.pod_at(address)
            assert self.view.endpoint_at(address) == self.endpoint_at(address)
            assert self.view.subject_at(address) == self.subject_at(address)

    def holders(self, address: str) -> set[ObjectKey]:
        endpoints = [found for (kind, _), found in self.known.items() if kind == "endpoint"]
        return {endpoint.key for endpoint in endpoints if address in endpoint.addresses}

    def endpoint_at(self, address: str) -> ObjectKey | None:
        return min(self.holders(address), default=None)

    def pod_at(self, address: str) -> Pod | None:
        pods = [pod for (kind, _), pod in self.known.items() if kind == "pod"]
        endpoints = [endpoint for (kind, _), endpoint in self.known.items() if kind == "endpoint"]
        return Snapshot([], pods, [], [], endpoints).pod_at(address)

    def subject_at(self, address: str) -> Pod | None:
        key = self.endpoint_at(address)
        if key is None:
            return self.pod_at(address)
        pod = self.remembered.get(key)
        if pod is None or pod.host_network:
            return None
        return pod if pod == self.pod_at(address) else replace(pod, ports=())


def _stored(record: Any) -> Any:
    """As the informers have it."""
    if isinstance(record, Node):
        return NodeRecord(record.name, addresses=record.addresses, labels=record.labels)
    assert record is None or isinstance(record, Pod | Namespace | NetworkPolicy | ClusterPolicy)
    return record


def crowded(cluster: Cluster, choices: random.Random) -> Cluster:
    """The same with addresses that several pods claim, as when one is given on before the news of it came."""
    pods = {
        key: replace(pod, addresses=(v4(choices.choice(NUMBERS)), *pod.addresses))
        if choices.random() < 0.3 and not pod.host_network
        else pod
        for key, pod in cluster.pods.items()
    }
    return replace(cluster, pods=pods)


@settings(max_examples=examples(150), deadline=None)
@given(states=st.lists(clusters(), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_any_way_to_a_state_shows_that_state(states: list[Cluster], seed: int) -> None:
    choices = random.Random(seed)
    fed = Fed()
    before = EMPTY
    for state in states:
        after = crowded(state, choices)
        way = events(before, after)
        choices.shuffle(way)
        for event in way:
            if choices.random() < 0.3:
                detour = tables(choices.choice(states)).get((event[0], event[1]))
                fed.do((event[0], event[1], detour))
            fed.do(event)
            if choices.random() < 0.2:
                fed.check()
        fed.check()
        before = after


@settings(max_examples=examples(100), deadline=None)
@given(cluster=clusters(), seed=st.integers(0, 2**32))
def test_the_oracle_says_the_same_on_a_snapshot(cluster: Cluster, seed: int) -> None:
    fed = Fed()
    for event in events(EMPTY, cluster):
        fed.do(event)
    fed.view.advance()
    snapshot = cluster.snapshot()
    for packet in random.Random(seed).sample(PACKETS, 150):
        assert verdict(fed.view, packet) == verdict(snapshot, packet)


@settings(max_examples=examples(40), deadline=None)
@given(cluster=clusters())
def test_nothing_counts_before_the_view_steps_forward(cluster: Cluster) -> None:
    fed = Fed()
    for event in events(EMPTY, cluster):
        fed.do(event)
    assert not any(fed.view.pod_at(address) or fed.view.endpoint_at(address) for address in ADDRESSES)
    assert not any(fed.view.namespace(name) or [*fed.view.network_policies(name)] for name in NAMESPACES)
    assert not [*fed.view.nodes(), *fed.view.cluster_policies(), *fed.view.endpoints()]


@settings(max_examples=examples(40), deadline=None)
@given(cluster=clusters())
def test_going_back_leaves_nothing(cluster: Cluster) -> None:
    fed = Fed()
    for event in (*events(EMPTY, cluster), *events(cluster, EMPTY)):
        fed.do(event)
        fed.check()
    held = vars(fed.view) | vars(fed.view._at)
    del held["_at"], held["revision"]
    assert not [name for name, found in held.items() if found]


def test_an_address_that_a_pod_lists_twice_is_given_back_once() -> None:
    fed = Fed()
    twice, other = Pod("a", "twice", addresses=(v4(1), v4(1))), Pod("b", "other", addresses=(v4(1),))
    for event in (("pod", twice.key, twice), ("pod", other.key, other), ("pod", twice.key, None)):
        fed.do(event)
        fed.check()
    assert fed.view.pod_at(v4(1)) == other
