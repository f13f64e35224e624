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
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from bench.harness import Row, Way, compare, megabytes, show
from felix_py.datastore.decode import PODS
from policy.compile import Engine
from policy.model import (
    Family,
    IPBlock,
    Labels,
    LocalEndpoint,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PolicyRule,
    Port,
    Protocol,
    Requirement,
    Selector,
)
from policy.selectors import matches

T = TypeVar("T")

LOCAL_PODS = 110
POLICIES, LOCAL_POLICIES = 1000, 200
LOCAL_NAMESPACES = 10
_TEAMS, _TIERS, _APPS = 10, ("web", "api", "db", "queue"), 20
_PORTS = (NamedPort("http", Protocol.TCP, 8080), NamedPort("metrics", Protocol.TCP, 9090))


def main(quick: bool) -> None:
    """Run every size, each in a process of its own."""
    times = 1 if quick else 15
    for size in (1000,) if quick else (1000, 10_000, 100_000):
        subprocess.run([sys.executable, "-m", "bench.policy", str(size), str(times)], check=True)


# --- the cluster ------------------------------------------------------------------------------------------------


class Cluster:
    """Records of a synthetic cluster. Equal labels are one object, as the informers keep them."""

    def __init__(self, size: int) -> None:
        """``size`` pods."""
        self.crowd = min(1000, size // LOCAL_NAMESPACES)
        self.namespaces = [
            Namespace(f"ns-{n}", (("kubernetes.io/metadata.name", f"ns-{n}"), ("team", f"team-{n % _TEAMS}")))
            for n in range(size // self.crowd)
        ]
        shared: dict[Labels, Labels] = {}
        self.pods = [self._pod(number, shared) for number in range(size)]
        self.local = [
            self.pods[namespace * self.crowd + place]
            for namespace in range(LOCAL_NAMESPACES)
            for place in range(LOCAL_PODS // LOCAL_NAMESPACES)
        ]
        self.policies = list(self._policies())

    def _pod(self, number: int, shared: dict[Labels, Labels]) -> Pod:
        namespace, place = divmod(number, self.crowd)
        app = place % _APPS
        labels: Labels = (
            ("app", f"app-{app}"),
            ("pod-template-hash", f"{namespace:04x}{app:04x}"),
            ("tier", _TIERS[app % len(_TIERS)]),
        )
        addresses = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"fd00::{number + 1:x}")
        return Pod(
            self.namespaces[namespace].name,
            f"app-{app}-{place}",
            f"00000000-0000-0000-0000-{number:012}",
            f"node-{number // LOCAL_PODS}",
            shared.setdefault(labels, labels),
            addresses,
            _PORTS,
        )

    def _policies(self) -> Iterator[NetworkPolicy]:
        apps = LOCAL_PODS // LOCAL_NAMESPACES  # an app of its own for each local pod of a namespace
        for number in range(POLICIES):
            if number < LOCAL_POLICIES:
                namespace, app = number % LOCAL_NAMESPACES, number // LOCAL_NAMESPACES % apps
            else:
                namespace, app = number % len(self.namespaces), apps + number % (_APPS - apps)
            yield self._policy(number, self.namespaces[namespace].name, app)

    def _policy(self, number: int, namespace: str, app: int) -> NetworkPolicy:
        team, tier = f"team-{number % _TEAMS}", _TIERS[number % len(_TIERS)]
        near = PodPeer(None, _labelled("app", f"app-{(app + 1) % _APPS}"))
        far = PodPeer(_labelled("team", team), _labelled("tier", tier))
        ports = (Port(Protocol.TCP, 443), Port(Protocol.TCP, 8000, 8099))
        dns = PolicyRule((PodPeer(Selector(), _labelled("app", "app-0")),), (Port(Protocol.UDP, 53),))
        outside = PolicyRule((IPBlock("0.0.0.0/0", ("10.0.0.0/8",)), IPBlock("2000::/3")), ports)
        return NetworkPolicy(
            namespace,
            f"policy-{number}",
            _labelled("app", f"app-{app}"),
            ingress=(PolicyRule((near, far), ports), PolicyRule((far,), (Port(Protocol.TCP, "http"),))),
            egress=(dns, outside) if number % 2 else None,
        )


def _labelled(key: str, value: str) -> Selector:
    return Selector((Requirement(key, Operator.IN, (value,)),))


# --- one size ---------------------------------------------------------------------------------------------------


def _measure(size: int, times: int) -> None:
    gc.collect()
    empty = _resident()
    cluster = Cluster(size)
    gc.collect()
    records = _resident() - empty
    engine = Engine()
    seconds = _timed(lambda: _compile(engine, cluster))
    gc.collect()
    whole = _resident() - empty
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - empty
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


def _compile(engine: Engine, cluster: Cluster) -> None:
    for namespace in cluster.namespaces:
        engine.upsert_namespace(namespace)
    for policy in cluster.policies:
        engine.upsert_policy(policy)
    for pod in cluster.pods:
        engine.upsert_pod(pod)
    for pod in cluster.local:
        engine.upsert_endpoint(LocalEndpoint(pod.namespace, pod.name, pod.addresses))
    engine.flush()


def _members(engine: Engine) -> int:
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


def _events(engine: Engine, cluster: Cluster, times: int) -> list[Row]:
    remote = [pod for pod in cluster.pods[cluster.crowd : cluster.crowd + 120] if pod not in cluster.local]
    same = [dataclasses.replace(pod) for pod in remote]
    moved = [dataclasses.replace(pod, labels=(*pod.labels[:2], ("tier", "other"))) for pod in remote]
    fresh = [
        dataclasses.replace(pod, name=f"{pod.name}-fresh", labels=(*pod.labels, ("uniq", str(number))))
        for number, pod in enumerate(remote)
    ]
    policy = cluster.policies[0]
    edited = dataclasses.replace(policy, ingress=(PolicyRule(None, None),))
    namespace = cluster.namespaces[1]
    relabelled = dataclasses.replace(namespace, labels=(namespace.labels[0], ("team", "team-2")))
    line = pod_event(remote[0])

    def upsert(pods: list[Pod]) -> Callable[[], None]:
        return lambda: _one_by_one(engine, engine.upsert_pod, pods)

    def remove_fresh() -> None:
        _one_by_one(engine, engine.remove_pod, [pod.key for pod in fresh])

    def edit(policy: NetworkPolicy) -> Callable[[], None]:
        return lambda: _one_by_one(engine, engine.upsert_policy, [policy])

    def relabel(namespace: Namespace) -> Callable[[], None]:
        return lambda: _one_by_one(engine, engine.upsert_namespace, [namespace])

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
            note=f"{cluster.crowd:,} pods in it",
        ),
    ]
    return compare(ways, times, time.process_time)


def _one_by_one(engine: Engine, hand_over: Callable[[T], object], things: Iterable[T]) -> None:
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


def _resident() -> int:
    """Bytes of memory this process has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    _measure(int(sys.argv[1]), int(sys.argv[2]))
