"""The API server is away, half dead, or back with another memory: enforcement goes on, and all catches up."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.leases import held
from tests.cluster.machine import wait_for
from tests.cluster.node import Node
from tests.cluster.places import Mesh
from tests.cluster.watching import last_success
from tests.cluster.workloads import HTTP, Namespace, pod, policy

pytestmark = [pytest.mark.root, pytest.mark.timeout(1500)]

NODE_GRACE = 50.0
"""Seconds of a kubelet's silence after which its node is NotReady (``--node-monitor-grace-period``)."""


def sandbox_of(namespace: Namespace, name: str) -> str:
    """The pid of a pod's sandbox on its machine."""
    found = namespace.get("pod", name)
    machine = namespace.cluster.machines[found["spec"]["nodeName"]]
    uid = found["metadata"]["uid"]
    asked = ["ctr", "-n", "k8s.io"]
    labels = [f'labels."io.kubernetes.pod.uid"=={uid}', 'labels."io.cri-containerd.kind"==sandbox']
    (container,) = machine.run(*asked, "containers", "ls", "-q", ",".join(labels)).split()
    tasks = [line.split() for line in machine.run(*asked, "tasks", "ls").splitlines()]
    return next(pid for task, pid, *_ in tasks if task == container)


def until_listed(cluster: Cluster) -> None:
    """Wait for the API server."""
    wait_for("the API server", lambda: cluster.kubectl("get", "--raw=/readyz", timeout=5) == "ok", 120)


@pytest.mark.parametrize("seconds", [30.0, pytest.param(600.0, marks=pytest.mark.heavy)])
def test_away(cluster: Cluster, namespace: Namespace, seconds: float) -> None:
    """Pods of namespaces that are known start anew, policy holds, and all catches up at its return.

    An agent that is started while the API server is away holds what is in the kernel.
    """
    namespace.apply(
        policy("shut", podSelector={"matchLabels": {"app": "shut"}}, policyTypes=["Ingress"]),
        policy("open", podSelector={"matchLabels": {"app": "open"}}, ingress=[{}]),
        *(pod(name, {"app": name}, nodeName=cluster.nodes[1].name) for name in ("open", "shut")),
    )
    mesh = Mesh(namespace)
    node = cluster.nodes[1]
    outside = cluster.machines["outside"]
    addresses = {name: namespace.addresses(name)[0] for name in ("open", "shut")}
    outside.connects_soon(addresses["open"], HTTP)
    victims = [sandbox_of(namespace, name) for name in ("open", "shut")]
    with mesh.traffic() as traffic:
        cluster.control_plane.end_apiserver()
        began = time.monotonic()
        for pid in victims:
            node.machine.run("kill", "-KILL", pid)
        # kubelet makes new sandboxes by itself: two CNI ADDs, for pods that the agent knows.
        again = wait_for("sandboxes anew", lambda: renewed(namespace, node, addresses), 60)
        wait_for("the open pod", lambda: outside.connects(again["open"], HTTP), 30)
        assert not outside.connects(again["shut"], HTTP)
        agents.send(cluster.nodes[0], signal.SIGKILL)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        cluster.control_plane.start_apiserver()
        until_listed(cluster)
        back = traffic.seconds
        took = last_success(outside, again["open"], HTTP, lambda: shut(namespace, "open"))
    traffic.stop()
    print(f"\n[{cluster.shape}: no API server until {back:.0f} s: {traffic.report()}]")
    print(f"[{cluster.shape}: a change of policy at its return is in force after {took:.0f} s]")
    assert took < 30
    assert all(stream.well for stream in traffic.streams), traffic.report()
    catches_up(cluster, namespace)


def shut(namespace: Namespace, name: str) -> None:
    """Have a policy let nobody in: kubelet has no part in that."""
    namespace.kubectl("patch", "networkpolicy", name, "--type=merge", "-p", '{"spec": {"ingress": []}}')


def renewed(namespace: Namespace, node: Node, before: Mapping[str, str]) -> dict[str, str]:
    """The pods' present addresses by their names, from the node alone; empty until none is as it was."""
    now = {pod: address for pod, address in held(node) if address not in before.values()}
    names = {name: now.get(f"{namespace.name}/{name}") for name in before}
    return {name: address for name, address in names.items() if address} if all(names.values()) else {}


def catches_up(cluster: Cluster, namespace: Namespace) -> None:
    """A pod and a policy that are new are in force as ever."""
    began = time.monotonic()
    outside = cluster.machines["outside"]
    late = {"app": "late"}
    for node in cluster.nodes:
        namespace.apply(pod(f"late-{node.name}", late, nodeName=node.name))
    namespace.apply(
        policy("late-shut", podSelector={"matchLabels": late}, policyTypes=["Ingress"]),
        policy("late", podSelector={"matchLabels": late}, ingress=[{}]),
    )
    names = [f"late-{node.name}" for node in cluster.nodes]
    namespace.wait_ready(*names, seconds=180)
    addresses = [namespace.addresses(name)[0] for name in names]
    for address in addresses:
        wait_for(f"{address} to be open", lambda: outside.connects(address, HTTP), 60)  # noqa: B023
    print(f"[{cluster.shape}: new pods on all nodes answer after {time.monotonic() - began:.0f} s]")
    took = last_success(outside, addresses[0], HTTP, lambda: namespace.kubectl("delete", "networkpolicy", "late"))
    assert took < 30


@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [45.0, 150.0])
def test_half_dead(cluster: Cluster, namespace: Namespace, seconds: float) -> None:
    """It accepts connections and answers nothing; the longer time is longer than a watch may be silent."""
    mesh = Mesh(namespace)
    with mesh.traffic() as traffic:
        cluster.control_plane.machine.signal_service("kube-apiserver", signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            cluster.control_plane.machine.signal_service("kube-apiserver", signal.SIGCONT)
        until_listed(cluster)
        cluster.wait_ready()
    traffic.stop()
    print(f"\n[{cluster.shape}: an API server that did not answer for {seconds:.0f} s: {traffic.report()}]")
    # At its return Kubernetes takes pods of nodes that it has not heard of for long out of their Service for some
    # seconds (Event NodeNotReady), and kube-proxy forgets their UDP flows: what is on the way then is lost.
    to_pods = [stream for stream in traffic.streams if stream.to.startswith(("mesh-", "closed-"))]
    judged = traffic.streams if seconds < NODE_GRACE else to_pods
    assert all(stream.well for stream in judged), traffic.report()
    catches_up(cluster, namespace)


def test_returns_with_an_emptied_watch_cache(cluster: Cluster, namespace: Namespace) -> None:
    """An agent that stood still meanwhile finds its versions compacted: it lists anew, and misses nothing."""
    node = cluster.nodes[0]
    outside = cluster.machines["outside"]
    namespace.apply(
        policy("open", podSelector={"matchLabels": {"app": "web"}}, ingress=[{}]),
        pod("web", {"app": "web"}, nodeName=node.name),
    )
    namespace.wait_ready()
    (address,) = namespace.addresses("web")
    outside.connects_soon(address, HTTP)
    agents.send(node, signal.SIGSTOP)
    try:
        shut(namespace, "open")
        version = namespace.get("networkpolicy", "open")["metadata"]["resourceVersion"]
        for number in range(3):
            namespace.kubectl("label", "networkpolicy", "open", f"again={number}", "--overwrite")
        compact(cluster, int(version) + 1)
        cluster.control_plane.machine.signal_service("kube-apiserver", signal.SIGKILL)
        assert outside.connects(address, HTTP), "nobody has told the kernel"
    finally:
        agents.send(node, signal.SIGCONT)
    until_listed(cluster)
    wait_for("the policy's end", lambda: not outside.connects(address, HTTP), 60)
    catches_up(cluster, namespace)


def compact(cluster: Cluster, revision: int) -> None:
    """Have etcd forget what was before (its JSON gateway, ``/v3/kv/compaction``)."""
    body = json.dumps({"revision": str(revision), "physical": True})
    cluster.control_plane.machine.run("curl", "-sf", "-d", body, "http://127.0.0.1:2379/v3/kv/compaction")
