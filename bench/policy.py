"""Compiled policy of one node: the time to compile, memory, and the CPU time of one event.

A cluster of 1k, 10k and 100k pods (dual stack, 1,000 in a namespace where there are as many) and 1,000 policies,
200 of which select the node's 110 pods. Each size runs in a process of its own. Memory is what the process grew
by: the pods' records and the engine, then with the compiled program. An event's time is the CPU time of handing it
to the engine and flushing; it is compared with finding out linearly what one pod's labels change: every selector
of every policy matched against them, as one would without an index. Decoding the same pod's JSON is shown for scale.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

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

LOCAL_PODS = 110
POLICIES, LOCAL_POLICIES = 1000, 200
LOCAL_NAMESPACES = 10
_TEAMS, _TIERS, _APPS = 10, ("web", "api", "db", "queue"), 20
_PORTS = (NamedPort("http", Protocol.TCP, 8080), NamedPort("metrics", Protocol.TCP, 9090))


def main(quick: bool) -> None:
    """Run every size, each in a process of its own."""
    times = 3 if quick else 15
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
    scan = _timed(lambda: [_linear(pod.labels, cluster) for pod in cluster.pods[:1000]])
    title = f"policy: {size:,} pods, {POLICIES:,} policies, {LOCAL_POLICIES} of them for {LOCAL_PODS} local pods"
    show(
        f"{title}: first compile, CPU",
        [
            Row("linear scan of all pods", [scan * size / 1000], base=True, note="from 1,000 pods"),
            Row("engine", [seconds], note=f"{_members(engine):,} set members"),
        ],
    )
    show(
        f"{title}: memory",
        [
            Row("the pods' records", [records], base=True),
            Row("records + engine", [whole]),
            Row("records + engine, peak", [peak], note="while it compiled"),
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
    batch = 100
    remote = cluster.pods[LOCAL_PODS : LOCAL_PODS + batch]
    remote = [pod for pod in remote if pod not in cluster.local]
    batch = len(remote)
    moved = [dataclasses.replace(pod, labels=(*pod.labels[:2], ("tier", "other"))) for pod in remote]
    serial = itertools.count()
    policy = cluster.policies[0]
    edited = dataclasses.replace(policy, ingress=(PolicyRule(policy.ingress[0].peers, None),))  # type: ignore[index]
    namespace = cluster.namespaces[1]
    renamed = dataclasses.replace(namespace, labels=(*namespace.labels[:1], ("team", "team-2")))
    document = json.dumps(pod_document(remote[0])).encode()
    fresh: list[Pod] = []

    def make_fresh() -> None:
        fresh[:] = [
            dataclasses.replace(
                pod, name=f"fresh-{next(serial)}", labels=(*pod.labels, ("uniq", f"{next(serial)}"))
            )
            for pod in remote
        ]

    def remove_fresh() -> None:
        for pod in fresh:
            engine.remove_pod(pod.key)
        engine.flush()

    ways = [
        Way("linear: all selectors, one pod", lambda: _linear(remote[0].labels, cluster), base=True),
        Way("JSON decode of one pod", lambda: PODS.convert(document), note=f"{len(document):,} bytes"),
        Way("pod, status only", _each(engine, remote), _copies(remote), share=batch),
        Way("pod of a peer, other label", _each(engine, moved), after=_each(engine, remote), share=batch),
        Way("new pod, fresh labels", lambda: _each(engine, fresh)(), make_fresh, remove_fresh, share=batch),
        Way("policy, edited", *_there_and_back(engine.upsert_policy, policy, edited, engine)),
        Way(
            "namespace, other label",
            *_there_and_back(engine.upsert_namespace, namespace, renamed, engine),
            note=f"{cluster.crowd:,} pods in it",
        ),
    ]
    return compare(ways, times, time.process_time)


def _each(engine: Engine, pods: Iterable[Pod]) -> Callable[[], None]:
    """Hand over pods one by one, each with a flush of its own: the dearest way."""

    def run() -> None:
        for pod in pods:
            engine.upsert_pod(pod)
            engine.flush()

    return run
