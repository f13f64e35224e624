"""``felix-py plan``: what a change of policies would change, beside asking the oracle about every pair.

Clusters of 1,000 and 10,000 pods (dual stack, in namespaces of 100 and 1,000, 200 policies, a node for each 110
pods), and one change at a time. CPU time of the comparison, without reading the cluster. Brute force asks the
oracle, before and after, about every pair of different pods of which one end is selected by a changed policy, in
one family and on six ports, and knows nothing of nodes, the world and the other ports; its time is that of a
sample of the pairs. Of a cluster of 60 pods it is really done, and must find the same pairs.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from bench.clusters import Cluster, even, labelled
from bench.harness import Way, compare, show
from policy.impact.answers import Variant
from policy.impact.cohorts import Policy
from policy.impact.compare import Changes, Group, impact, policies_after
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    NetworkPolicy,
    Packet,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
    Selector,
    Tier,
)
from policy.oracle.evaluate import Snapshot, verdict
from policy.selectors import matches

POLICIES = 200
_TCP, _UDP, _SCTP = Protocol
_PORTS = ((_TCP, 1), (_TCP, 80), (_TCP, 443), (_TCP, 8080), (_UDP, 53), (_SCTP, 1))
_SAMPLE = 200
"""Pairs whose time stands for all."""

_BRUTE, _OURS = "brute force: the oracle, every pair", "felix-py plan"


def main(quick: bool) -> None:
    """A small cluster with real brute force, then the large ones."""
    _exact(60)
    for size in (200,) if quick else (1000, 10_000):
        cluster = _snapshot(size)
        for title, changes in _changes(cluster):
            _measure(f"plan, {size:,} pods: {title}", cluster, changes, 1 if quick else 3)


def _snapshot(pods: int) -> Snapshot:
    made = Cluster(even(pods, POLICIES, POLICIES // 2))
    return Snapshot(made.namespaces, made.pods, made.policies, made.nodes())


def _changes(cluster: Snapshot) -> Iterator[tuple[str, Changes]]:
    first = next(iter(cluster.policies.values()))
    if not isinstance(first, NetworkPolicy):
        raise TypeError(first)
    rule = PolicyRule(None, (Port(_TCP, 80),))
    deny = NetworkPolicy(first.namespace, "default-deny", Selector(), ingress=(), egress=())
    team = PodPeer(labelled("team", "team-3"), None)
    guard = ClusterPolicy(
        PolicyKind.CLUSTER,
        "guard",
        Tier.ADMIN,
        1,
        PodPeer(Selector(), None),
        ingress=(ClusterRule(RuleAction.DENY, (team,), (Port(_TCP, 443),)),),
    )
    yield "a policy edited", {first.ref: replace(first, ingress=(rule,))}
    yield "a namespace denied by default", {deny.ref: deny}
    yield "a policy deleted", {first.ref: None}
    yield "a ClusterNetworkPolicy for all pods", {guard.ref: guard}


def _exact(pods: int) -> None:
    cluster = _snapshot(pods)
    for title, changes in _changes(cluster):
        pairs = _Pairs(cluster, changes)
        note = f"{len(pairs):,} pairs, all asked"
        _compare(f"plan, {pods} pods: {title}", cluster, changes, list(pairs.all()), 1, note)
        if _written_out(impact(cluster, changes).groups) != _brute(cluster, changes, list(pairs.all())):
            raise RuntimeError(f"{title}: brute force finds something else")


def _measure(title: str, cluster: Snapshot, changes: Changes, times: int) -> None:
    pairs = _Pairs(cluster, changes)
    some = pairs.sample(_SAMPLE)
    note = f"{len(pairs):,} pairs, {len(some)} asked"
    _compare(title, cluster, changes, some, times, note, len(pairs) / len(some))


def _compare(
    title: str,
    cluster: Snapshot,
    changes: Changes,
    pairs: Sequence[tuple[Pod, Pod]],
    times: int,
    note: str,
    share: float = 1,
) -> None:
    """``share``: so many times as many pairs there are."""
    ways = [
        Way(_BRUTE, lambda: _brute(cluster, changes, pairs), base=True, note=note),
        Way(_OURS, lambda: impact(cluster, changes), note=f"{len(impact(cluster, changes).groups)} groups"),
    ]
    brute, ours = compare(ways, times, time.process_time)
    show(title, [replace(brute, values=[value * share for value in brute.values]), ours])


# --- brute force ----------------------------------------------------------------------------------------------

_Cell = tuple[tuple[str, str], tuple[str, str], Protocol, int]


class _Pairs:
    """All pairs of different pods of which one end is selected by a changed policy."""

    def __init__(self, cluster: Snapshot, changes: Changes) -> None:
        versions = [p for ref, new in changes.items() for p in (new, cluster.policies.get(ref)) if p is not None]
        pods = cluster.pods.values()
        self._selected = [pod for pod in pods if any(_selects(policy, pod) for policy in versions)]
        keys = {pod.key for pod in self._selected}
        self._others = [pod for pod in pods if pod.key not in keys]

    def __len__(self) -> int:
        selected, others = len(self._selected), len(self._others)
        return selected * (selected - 1) + 2 * selected * others

    def all(self) -> Iterator[tuple[Pod, Pod]]:
        """Each of them."""
        yield from itertools.permutations(self._selected, 2)
        for one, other in itertools.product(self._selected, self._others):
            yield one, other
            yield other, one

    def sample(self, size: int) -> list[tuple[Pod, Pod]]:
        """Some of them."""
        chosen = random.Random(1)
        pods = [*self._selected, *self._others]
        found = []
        for one in chosen.choices(self._selected, k=size):
            pair = [one, next(pod for pod in iter(lambda: chosen.choice(pods), None) if pod is not one)]
            chosen.shuffle(pair)
            found.append((pair[0], pair[1]))
        return found


def _selects(policy: Policy, pod: Pod) -> bool:
    if isinstance(policy, NetworkPolicy):
        return policy.namespace == pod.namespace and matches(policy.selector, pod.labels)
    return True  # the one that is used here is for all pods


def _brute(cluster: Snapshot, changes: Changes, pairs: Iterable[tuple[Pod, Pod]]) -> set[_Cell]:
    """What is judged differently. The views find a namespace's policies at once, or it would take days."""
    before = Variant(cluster, cluster.policies.values())
    after = Variant(cluster, policies_after(cluster, changes).values())
    found = set()
    for source, destination in pairs:
        for protocol, port in _PORTS:
            packet = Packet(source.addresses[0], destination.addresses[0], protocol, port)
            if verdict(before, packet).allowed is not verdict(after, packet).allowed:
                found.add((source.key, destination.key, protocol, port))
    return found


def _written_out(groups: tuple[Group, ...]) -> set[_Cell]:
    return {
        (source.pod.key, destination.pod.key, protocol, port)
        for group in groups
        for source, destination in group.pairs()
        if source.pod and destination.pod
        for protocol, port in _PORTS
        if any(r.protocol is protocol and r.first <= port <= r.last for r in group.ports)
    }
