"""From ``kubectl apply`` to the first pod, beside the reference plugins; and what a removal leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.cluster import agents, snapshot
from tests.cluster.cluster import Cluster
from tests.cluster.installers import Baseline, Image, Installer
from tests.cluster.machine import CHECKOUT, wait_for
from tests.cluster.node import Node
from tests.cluster.places import Mesh
from tests.cluster.plan import Shape
from tests.cluster.workloads import Namespace, pod

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

CLEANUP = CHECKOUT / "manifests" / "cleanup.yaml"
NODES = 2


@pytest.fixture(scope="module")
def bare(start_cluster: Callable[[Shape, Installer], AbstractContextManager[Cluster]]) -> object:
    """A cluster without a network."""
    nothing = Installer()
    nothing.binds = Image().binds
    with start_cluster(Shape(nodes=NODES), nothing) as cluster:
        yield cluster


def first_pod(cluster: Cluster, install: Callable[[], object]) -> tuple[float, float]:
    """Install a network; seconds until all nodes are Ready, and until a pod that has waited for that runs."""
    namespace = Namespace(cluster)
    namespace.apply(pod("first"))
    began = time.monotonic()
    install()
    cluster.wait_ready()
    ready = time.monotonic() - began
    namespace.wait_ready("first", seconds=180)
    running = time.monotonic() - began
    namespace.delete(wait=True)
    # The runtime takes the pod's network away a little later, for which it needs the list of plugins.
    wait_for("an end of the pod's interface", lambda: all(bare_links(node) for node in cluster.nodes), 60)
    return ready, running


def not_ready(cluster: Cluster) -> bool:
    """Whether all nodes say that they have no network."""
    nodes = cluster.get("nodes")["items"]
    return all(
        one["status"] != "True"
        for node in nodes
        for one in node["status"]["conditions"]
        if one["type"] == "Ready"
    )


def bare_links(node: Node) -> bool:
    """Whether a node has no interface of a pod."""
    return len(node.machine.run("ip", "-o", "link").splitlines()) == 2


def test_install_policy_remove(bare: Cluster) -> None:
    """One life of a cluster's network, since each part stands on the one before."""
    reference, ours = Baseline(), Image()
    times = {"ptp and host-local": first_pod(bare, lambda: reference.install(bare))}
    reference.uninstall(bare)
    ours.prepare(bare)
    wait_for("nodes without a network", lambda: not_ready(bare), 120)
    before = {node.name: snapshot.of_node(node) for node in bare.nodes}
    times["felix-py, by kubectl apply"] = first_pod(bare, lambda: ours.apply(bare))
    for what, (ready, running) in times.items():
        print(
            f"[{NODES} nodes, {what}: all Ready after {ready:.1f} s, the first pod Running after {running:.1f} s]"
        )

    namespace = Namespace(bare)
    mesh = Mesh(namespace)
    with mesh.traffic() as traffic:
        ours.uninstall(bare)
        wait_for("an end of all agents", lambda: not bare.get(*agents.PODS)["items"], 60)
        gone = traffic.seconds
        # Policy stays, for connections that begin now, too; routes stay for as long as the router keeps them.
        wait_for("traffic without agents", lambda: traffic.seconds > gone + 10, 60)
    traffic.stop()
    print(f"[agents gone after {gone:.0f} s: {traffic.report()}]")
    assert all(stream.well for stream in traffic.streams), traffic.report()
    namespace.delete(wait=True)

    bare.kubectl("apply", "-f", "-", stdin=CLEANUP.read_text())
    rollout = ["-n", "kube-system", "rollout", "status", "daemonset/felix-py-cleanup", "--timeout=180s"]
    bare.kubectl(*rollout, timeout=190)
    bare.kubectl("delete", "-f", "-", stdin=CLEANUP.read_text(), timeout=120)
    wait_for("an end of all pods", lambda: not bare.get("pods", "-A")["items"], 60)
    left = {node.name: snapshot.differences(before[node.name], snapshot.of_node(node)) for node in bare.nodes}
    assert not any(left.values()), json.dumps(left, indent=1)
