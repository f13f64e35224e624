"""Compiled policy of one node: the time to compile, memory, and the CPU time of one event.

A cluster of 1k, 10k and 100k pods (dual stack, 1,000 in a namespace where there are as many) and 1,000
policies, 200 of which select the node's 110 pods. Each size runs in a process of its own. Memory is what that
process grew by. An event's time is the CPU time of handing it to the engine and flushing. It is compared with
finding out linearly what one pod's labels mean: every selector of every policy matched against them, as one would
without an index. Decoding the same pod's JSON is shown for scale.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from bench.clusters import Cluster, even
from bench.harness import Row, Way, compare, megabytes, peak_resident, resident, show
from felix_py.datastore.kinds import PODS
from policy.model import (
    Family,
    Labels,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyRule,
    Selector,
)
from policy.selectors import matches
from tests.support.told import ToldEngine

T = TypeVar("T")

POLICIES, LOCAL_POLICIES = 1000, 200


def main(quick: bool) -> None:
    """Run every size, each in a process of its own."""
    times = 1 if quick else 15
    for size in (1000,) if quick else (1000, 10_000, 100_000):
        subprocess.run([sys.executable, "-m", "bench.policy", str(size), str(times)], check=True)


# --- one size ---------------------------------------------------------------------------------------------------


def _measure(size: int, times: int) -> None:
    gc.collect()
    empty = resident()
    cluster = Cluster(even(size, POLICIES, LOCAL_POLICIES))
    gc.collect()
    records = resident() - empty
    engine = ToldEngine()
    seconds = _timed(lambda: _compile(engine, cluster))
    gc.collect()
    whole = resident() - empty
    peak = peak_resident() - empty
    sample = cluster.pods[:100]
    scan = _timed(lambda: [_linear(pod.labels, cluster) for pod in sample]) / len(sample)
    title = f"policy, {size:,} pods"
    show(
        f"{title}: first compile, CPU",
        [
            Row("linear: all selectors, all pods", [scan * size], base=True, note="from 100 of them"),
            Row("engine", [seconds], note=f"{_members(engine):,} set members"),
        ],
    )
    show(
        f"{title}: memory",
        [
            Row("the pods' records", [records], base=True),
            Row("records + engine", [whole]),
            Row("records + engine, peak", [max(peak, whole)], note="while it compiled"),
        ],
        megabytes,
    )
    show(f"{title}: one event, CPU", _events(engine, cluster, times))


def _compile(engine: ToldEngine, cluster: Cluster) -> None:
    for namespace in cluster.namespaces:
        engine.upsert(namespace)
    for policy in cluster.policies:
        engine.upsert(policy)
    for pod in cluster.pods:
        engine.upsert(pod)
    for pod in cluster.local:
        engine.lease(LocalEndpoint(pod.namespace, pod.name, pod.addresses))
    engine.flush()


def _members(engine: ToldEngine) -> int:
    return sum(len(members) for family in Family for members in engine.program(family).members.values())


def _linear(labels: Labels, cluster: Cluster) -> int:
    """Match every selector there is against one pod's labels."""
    return sum(matches(selector, labels) for policy in cluster.policies for selector in _selectors(policy))


def _selectors(policy: NetworkPolicy) -> Iterable[Selector]:
    yield policy.selector
    for rule in (*(policy.ingress or ()), *(policy.egress or ())):
        for peer in rule.peers or ():
            if isinstance(peer, PodPeer) and peer.pods is not None:
                yield peer.pods


def _events(engine: ToldEngine, cluster: Cluster, times: int) -> list[Row]:
    remote = [pod for pod in cluster.of(1)[:120] if pod not in cluster.local]
    same = [dataclasses.replace(pod) for pod in remote]
    moved = [dataclasses.replace(pod, labels=(*pod.labels[:2], ("tier", "other"))) for pod in remote]
    fresh = [
        dataclasses.replace(
            pod,
            name=f"{pod.name}-fresh",
            labels=(*pod.labels, ("uniq", str(number))),
            addresses=(f"172.16.0.{number + 1}", f"fd16::{number + 1:x}"),
        )
        for number, pod in enumerate(remote)
    ]
    policy = cluster.policies[0]
    edited = dataclasses.replace(policy, ingress=(PolicyRule(None, None),))
    namespace = cluster.namespaces[1]
    relabelled = dataclasses.replace(namespace, labels=(namespace.labels[0], ("team", "team-2")))
    line = pod_event(remote[0])

    def upsert(pods: list[Pod]) -> Callable[[], None]:
        return lambda: _one_by_one(engine, engine.upsert, pods)

    def remove_fresh() -> None:
        _one_by_one(engine, engine.delete, fresh)

    def edit(policy: NetworkPolicy) -> Callable[[], None]:
        return lambda: _one_by_one(engine, engine.upsert, [policy])

    def relabel(namespace: Namespace) -> Callable[[], None]:
        return lambda: _one_by_one(engine, engine.upsert, [namespace])

    many = len(remote)
    ways = [
        Way(
            "linear: every selector, one pod",
            lambda: [_linear(pod.labels, cluster) for pod in remote[:10]],
            share=10,
            base=True,
        ),
        Way(
            "watch event (JSON) to a record",
            lambda: [PODS.change(line) for _ in range(many)],
            share=many,
            note=f"{len(line):,} bytes",
        ),
        Way("pod, only its status changed", upsert(same), share=many),
        Way("pod that is a peer, other label", upsert(moved), after=upsert(remote), share=many),
        Way("new pod, labels nobody has", upsert(fresh), after=remove_fresh, share=many),
        Way("policy, edited", edit(edited), after=edit(policy), note="for 1 local pod"),
        Way(
            "namespace, other label",
            relabel(relabelled),
            after=relabel(namespace),
            note=f"{len(cluster.of(1)):,} pods in it",
        ),
    ]
    return compare(ways, times, time.process_time)


def _one_by_one(engine: ToldEngine, hand_over: Callable[[T], object], things: Iterable[T]) -> None:
    """Each with a flush of its own: the dearest way, as events in a burst share one."""
    for thing in things:
        hand_over(thing)
        engine.flush()


def pod_event(pod: Pod) -> bytes:
    """A line of a watch: the pod as the API server sends it, about 6 KB of JSON with managedFields."""
    owned: dict[str, object] = {
        f"f:{name}": {".": {}, "f:value": {}, "f:valueFrom": {}} for name in map("FIELD_{}".format, range(60))
    }
    container = {
        "name": "main",
        "image": "registry.example/team/app:1.2.3",
        "ports": [{"name": p.name, "containerPort": p.port, "protocol": p.protocol.value} for p in pod.ports],
        "env": [{"name": f"FIELD_{n}", "value": f"value of {n}"} for n in range(30)],
    }
    document = {
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "resourceVersion": "1",
            "labels": dict(pod.labels),
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": owned}],
        },
        "spec": {"nodeName": pod.node, "containers": [container]},
        "status": {"phase": "Running", "podIPs": [{"ip": address} for address in pod.addresses]},
    }
    return json.dumps({"type": "MODIFIED", "object": document}).encode()


def _timed(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    _measure(int(sys.argv[1]), int(sys.argv[2]))
