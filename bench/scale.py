"""A cluster of 100,000 pods, on one node: first compile, memory, and what one event costs.

10,000 and 100,000 pods, dual stack, in 1,000 and 10,000 namespaces, one of them with 1,000 pods; as many
NetworkPolicies as namespaces, 200 of which select the node's 110 pods; 300 ClusterNetworkPolicies, 30 of which
do; a node for each 110 pods. Each size runs in a process of its own. Measured is the agent's own way from records
to what must be written: facts, policy engine and planner; the kernel is not in it. Memory is what the process
grew by, at its peak. The first compile is compared with a linear one: every selector there is, matched against
every pod's labels. Events are compared with the smaller cluster: a ratio of 1 means that the cost follows the
change, not the cluster.

Then a storm: 10,000 changes of pods' labels, as fast as they can be told, through the reconciler to a real
kernel, beside an apply for each of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bench.clusters import LOCAL_NAMESPACES, Cluster, Size
from bench.harness import Row, Way, compare, megabytes, peak_resident, resident, show
from felix_py.dataplane.kernel import Kernel
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.metrics import Metrics
from felix_py.pending import Pending
from felix_py.reconcile import Reconciler
from felix_py.records import Backend, Lease, NodeRecord
from policy.model import (
    ClusterPolicy,
    Family,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyRule,
)
from policy.selectors import matches
from tests.support.isolate import new_netns
from tests.support.told import ToldFacts

LIMIT_SECONDS, LIMIT_BYTES = 5.0, 250e6
CROWD = 1000
STORM = 10_000
_BATCH = 50
"""Events that an informer hands over at once."""

_NAMESPACE_OF_CROWD = LOCAL_NAMESPACES
"""The first namespace behind those of the node's own pods."""

Record = Pod | Namespace | NetworkPolicy | ClusterPolicy | NodeRecord


def size(pods: int) -> Size:
    """Ten namespaces with pods of the node, one of 1,000 pods, and the others with few."""
    namespaces = pods // 10
    own = min(100, pods // 20)
    crowd = min(CROWD, pods // 10)
    left, others = pods - LOCAL_NAMESPACES * own - crowd, namespaces - LOCAL_NAMESPACES - 1
    few = [left // others + (number < left % others) for number in range(others)]
    crowds = ((own,) * LOCAL_NAMESPACES, (crowd,), few)
    every = tuple(crowd for some in crowds for crowd in some)
    return Size(every, max(namespaces, 1000), 200, cluster_policies=300)


def main(quick: bool) -> None:
    """Every size, each in a process of its own; then the storm."""
    sizes = (1000, 2000) if quick else (10_000, 100_000)
    found = {pods: _in_a_process(pods, 1 if quick else 15) for pods in sizes}
    _show(found)
    storm(sizes[0], 500 if quick else STORM)


def _in_a_process(pods: int, times: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "bench.scale", str(pods), str(times)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _show(found: dict[int, dict[str, Any]]) -> None:
    """Tables of all sizes; the smallest is what an event's cost is compared with."""
    largest = max(found)
    whole = found[largest]
    note = "from 100 of them"
    rows = [Row("linear: all selectors, all pods", [whole["linear"] * largest], base=True, note=note)]
    for pods, one in found.items():
        note = f"{one['written']:,} objects to write" + (
            f"; aim: {LIMIT_SECONDS:.0f} s" if pods == largest else ""
        )
        rows.append(Row(f"felix-py, {pods:,} pods", [one["compile"]], note=note))
    show("scale: first compile, CPU", rows)
    show(
        f"scale: memory, {largest:,} pods",
        [
            Row("all records", [whole["records"]], base=True),
            Row("records + engine, peak", [whole["engine"]], note=f"aim: {megabytes(LIMIT_BYTES)}"),
            Row("records + engine + plan, peak", [whole["peak"]]),
        ],
        megabytes,
    )
    smallest = min(found)
    for event, note in found[smallest]["notes"].items():
        show(
            f"scale: {event}, CPU",
            [
                Row(f"felix-py, {pods:,} pods", one["events"][event], base=pods == smallest, note=note)
                for pods, one in found.items()
            ],
        )


# --- one size -------------------------------------------------------------------------------------------------


class _Agent:
    """The agent's way from records to what must be written."""

    def __init__(self) -> None:
        families = tuple(Family)
        self.facts = ToldFacts("node-0", families, cluster_cidrs=("10.0.0.0/8", "fd00::/16"))
        self.planner = Planner(families, StaticOptions(Marks.from_mask(0xFFFF0000)), {})

    def first(self, cluster: Cluster, nodes: Sequence[NodeRecord]) -> tuple[int, int]:
        """Everything there is, then one plan.

        Returns how many objects it is, and the most memory that the process had had before the planner's turn.
        """
        self.tell((*nodes, *cluster.namespaces, *cluster.policies, *cluster.cluster_policies, *cluster.pods))
        for number, pod in enumerate(cluster.local):
            addresses = dict(zip(Family, pod.addresses, strict=True))
            place = (pod.namespace, pod.name, pod.uid, f"felix{number:010x}")
            self.facts.attach(Lease(pod.uid, "eth0", "k8s", *place, addresses, created=0.0))
        deltas = self.facts.engine.flush()
        engine = peak_resident()
        while deltas:
            self.planner.policy(deltas.pop())
        return self.plan(), engine

    def tell(self, records: Iterable[Record]) -> None:
        """Note records."""
        for record in records:
            self.facts.upsert(record)

    def each(self, records: Iterable[Record]) -> None:
        """Records with a plan for each: the dearest way, as events in a burst share one."""
        for record in records:
            self.facts.upsert(record)
            self.plan()

    def plan(self) -> int:
        """Collect, take and confirm; how many objects are to be written."""
        self.facts.collect(self.planner)
        update = self.planner.take()
        self.planner.confirm()
        members = sum(len(members) for members in update.members.values())
        return members + len(update.sets) + len(update.chains) + len(update.hooks) + len(update.routes)


def _measure(pods: int, times: int) -> dict[str, Any]:
    gc.collect()
    empty = resident()
    cluster = Cluster(size(pods))
    nodes = [NodeRecord(node.name, node.name, node.addresses, (), node.labels) for node in cluster.nodes()]
    gc.collect()
    records = resident() - empty
    agent = _Agent()
    started = time.process_time()
    written, engine = agent.first(cluster, nodes)
    seconds = time.process_time() - started
    peak = max(peak_resident(), resident()) - empty
    sample = cluster.pods[:100]
    started = time.process_time()
    for pod in sample:
        _linear(pod, cluster)
    linear = (time.process_time() - started) / len(sample)
    events = {way.what: way for way in _events(agent, cluster, nodes)}
    rows = compare(list(events.values()), times, time.process_time)
    return {
        "records": records,
        "engine": engine - empty,
        "peak": peak,
        "compile": seconds,
        "written": written,
        "linear": linear,
        "events": {row.what: row.values for row in rows},
        "notes": {row.what: row.note for row in rows},
    }


def _linear(pod: Pod, cluster: Cluster) -> int:
    """Match every selector there is against one pod's labels."""
    found = 0
    policies: list[NetworkPolicy | ClusterPolicy] = [*cluster.policies, *cluster.cluster_policies]
    for policy in policies:
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            selectors = [peer.pods for peer in rule.peers or () if isinstance(peer, PodPeer) and peer.pods]
            found += sum(matches(selector, pod.labels) for selector in selectors)
    return found


def _events(agent: _Agent, cluster: Cluster, nodes: Sequence[NodeRecord]) -> list[Way]:
    remote = cluster.of(_NAMESPACE_OF_CROWD)[:100]
    moved = [dataclasses.replace(pod, labels=(*pod.labels[:2], ("tier", "other"))) for pod in remote]
    crowd = cluster.namespaces[_NAMESPACE_OF_CROWD]
    relabelled = dataclasses.replace(crowd, labels=(*crowd.labels[:2], ("team", "team-2")))
    own = cluster.policies[0]
    first = own.ingress[0] if own.ingress else PolicyRule()
    reported = dataclasses.replace(
        own, ingress=(dataclasses.replace(first, ports=first.ports and first.ports[:1]), *(own.ingress or ())[1:])
    )
    edited = dataclasses.replace(own, ingress=(PolicyRule(None, None),))
    foreign = cluster.policies[-1]
    other = dataclasses.replace(foreign, ingress=(PolicyRule(None, None),))
    guard = cluster.cluster_policies[0]
    turned = dataclasses.replace(guard, ingress=guard.ingress[:1])
    node = nodes[-1]
    rezoned = msgspec.structs.replace(node, labels=(("zone", "zone-other"),))

    def tell(*records: Record) -> Callable[[], None]:
        return lambda: agent.each(records)

    return [
        Way("pod of another node, only its status", tell(*(dataclasses.replace(p) for p in remote)), share=100),
        Way(
            "pod of another node, other label",
            tell(*moved),
            after=tell(*remote),
            share=100,
            note="in and out of peer sets",
        ),
        Way(
            "namespace, other label",
            tell(relabelled),
            after=tell(crowd),
            note=f"{len(cluster.of(_NAMESPACE_OF_CROWD)):,} pods in it",
        ),
        Way("NetworkPolicy, other ports", tell(reported), after=tell(own), note="for one pod of this node"),
        Way("NetworkPolicy, other peers", tell(edited), after=tell(own), note="each pod of its peer set counts"),
        Way("NetworkPolicy of other nodes, edited", tell(other), after=tell(foreign)),
        Way("ClusterNetworkPolicy, edited", tell(turned), after=tell(guard), note="for 11 pods of this node"),
        Way("node, other label", tell(rezoned), after=tell(node), note="a peer of cluster policies"),
    ]


# --- the storm ------------------------------------------------------------------------------------------------


def storm(pods: int, events: int) -> None:
    """Both ways, each on a kernel of its own."""
    some = events // 50
    together = asyncio.run(_storm(pods, events, one_by_one=False))
    apart = asyncio.run(_storm(pods, some, one_by_one=True))
    apart = {key: value * events / some for key, value in apart.items()}
    note = "{applies:,.0f} applies, {restores:,.0f} iptables-restore, {writes:,.0f} objects written"
    each = Row("an apply for each", [apart["seconds"]], base=True, note=note.format(**apart) + ", from a 50th")
    ours = Row("felix-py", [together["seconds"]], note=note.format(**together))
    show(f"scale: a storm of {events:,} events, {pods:,} pods", [each, ours])


async def _storm(pods: int, events: int, *, one_by_one: bool) -> dict[str, float]:
    cluster = Cluster(size(pods))
    nodes = [NodeRecord(node.name, node.name, node.addresses, (), node.labels) for node in cluster.nodes()]
    with new_netns(), Kernel(tuple(Family), Backend.NFT) as kernel:
        kernel.load()
        agent = _Agent()
        metrics = Metrics()
        pending = Pending()
        reconciler = Reconciler(
            pending, agent.planner, kernel, agent.facts.collect, metrics, refresh_interval=3600
        )
        agent.tell((*nodes, *cluster.namespaces, *cluster.policies, *cluster.cluster_policies, *cluster.pods))
        for pod in cluster.local:
            agent.facts.engine.attach(LocalEndpoint(pod.namespace, pod.name, pod.addresses), pod)
        running = asyncio.create_task(reconciler.run())
        await reconciler.settled()
        before = _counts(metrics)
        started = time.monotonic()
        for number, pod in enumerate(_changes(cluster, events)):
            agent.facts.upsert(pod)
            pending.note()
            if one_by_one:
                await reconciler.settled()
            elif number % _BATCH == 0:
                await asyncio.sleep(0)
        await reconciler.settled()
        seconds = time.monotonic() - started
        after = _counts(metrics)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return {"seconds": seconds, **{key: after[key] - before[key] for key in after}}


def _changes(cluster: Cluster, events: int) -> Iterable[Pod]:
    """Pods of the crowd get another label, and get it back, over and over."""
    crowd = cluster.of(_NAMESPACE_OF_CROWD)
    moved = [dataclasses.replace(pod, labels=(*pod.labels[:2], ("tier", "other"))) for pod in crowd]
    return itertools.islice(itertools.cycle((*moved, *crowd)), events)


def _counts(metrics: Metrics) -> dict[str, float]:
    names = {
        "applies": "felix_py_apply_seconds_count",
        "restores": "felix_py_iptables_restores_total",
        "writes": "felix_py_kernel_writes_total",
    }
    return {key: metrics.registry.get_sample_value(name) or 0.0 for key, name in names.items()}


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]))))
