"""What happens to nodes: reboots, restarts of their daemons, a Node object that is made anew."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.leases import leases
from tests.cluster.machine import CommandFailed, wait_for
from tests.cluster.node import Node
from tests.cluster.places import Mesh
from tests.cluster.workloads import HTTP, Namespace, pod, policy

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


def test_daemons_end_and_the_agent_is_deleted_under_load(cluster: Cluster, namespace: Namespace) -> None:
    """containerd, kubelet and the agent die, and the agent's pod is deleted: no packet is lost."""
    mesh = Mesh(namespace)
    victim = cluster.nodes[0]
    with mesh.traffic() as traffic:
        cluster.kubectl(*agents.NAMESPACE, "delete", "pod", agents.pod_of(cluster, victim.name), "--wait=false")
        for service in ("containerd", "kubelet", "kube-proxy"):
            victim.machine.signal_service(service, signal.SIGKILL)
        wait_for("containerd", lambda: victim.machine.run("ctr", "version"), 60)
        agents.send(victim, signal.SIGKILL)
        namespace.apply(pod("after", {"app": "after"}, nodeName=victim.name))
        namespace.wait_ready("after", seconds=180)
    traffic.stop()
    print(
        f"\n[{cluster.shape}: containerd, kubelet, kube-proxy, agent killed, its pod deleted: {traffic.report()}]"
    )
    assert all(stream.well for stream in traffic.streams), traffic.report()


class Watched:
    """A pod that policy closes: whether anything reaches it at any moment, whatever its address is."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        self.reached: list[str] = []
        self.addresses: set[str] = set()
        self.tries = 0
        self._namespace = namespace
        self._name = name
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._look), threading.Thread(target=self._connect)]

    def __enter__(self) -> Watched:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        jsonpath = "jsonpath={.status.podIP}"
        while not self._ending.wait(0.2):
            try:
                self.addresses |= set(self._namespace.kubectl("get", "pod", self._name, "-o", jsonpath).split())
            except CommandFailed:
                continue

    def _connect(self) -> None:
        outside = self._namespace.cluster.machines["outside"]
        while not self._ending.wait(0.02):
            for address in sorted(self.addresses):
                self.tries += 1
                if outside.connects(address, HTTP, 0.2):
                    self.reached.append(address)


def test_reboot(cluster: Cluster, namespace: Namespace) -> None:
    """A power cut: /run and the kernel's state are gone, the disk and its leases are left.

    The other nodes notice nothing. The pods come back with addresses and policy, and nothing reaches one that is
    closed at any moment.
    """
    node = cluster.nodes[-1]
    mesh = Mesh(namespace, without=node.name)
    namespace.apply(
        policy("open", podSelector={"matchLabels": {"app": "open"}}, ingress=[{}]),
        *(pod(name, {"app": name}, nodeName=node.name) for name in ("open", "shut")),
    )
    namespace.wait_ready("open", "shut")
    before = {name: namespace.addresses(name) for name in ("open", "shut")}
    sandboxes = sandbox_ids(node, namespace)
    outside = cluster.machines["outside"]
    outside.connects_soon(before["open"][0], HTTP)
    with mesh.traffic() as traffic, Watched(namespace, "shut") as watched:
        cluster.reboot(node)
        wait_for(f"{node.name}'s pods anew", lambda: not sandbox_ids(node, namespace) & sandboxes, 120)
        cluster.wait_ready()
        namespace.wait_ready("open", "shut", seconds=180)
        (address,) = namespace.addresses("open")
        wait_for("the open pod", lambda: outside.connects(address, HTTP), 60)
        tried = watched.tries
        wait_for("some more tries", lambda: watched.tries > tried + 10, 30)
    traffic.stop()
    print(f"\n[{cluster.shape}: reboot of {node.name}, the others: {traffic.report()}]")
    print(f"[{watched.tries} tries to reach a closed pod of {node.name}, at {', '.join(watched.addresses)}]")
    assert all(stream.well for stream in traffic.streams), traffic.report()
    assert not watched.reached
    wait_for("leases of pods that are there, only", lambda: set(leases(node)) == pods_of(cluster, node), 60)


def sandbox_ids(node: Node, namespace: Namespace) -> set[str]:
    """Ids of the containers of a namespace's pods that the runtime runs on a node."""
    found = namespace.get("pods", "--field-selector", f"spec.nodeName={node.name}")["items"]
    statuses = [status for pod in found for status in pod["status"].get("containerStatuses", [])]
    return {status.get("containerID", "") for status in statuses if "running" in status.get("state", {})}


def pods_of(cluster: Cluster, node: Node) -> set[str]:
    """``NAMESPACE/NAME`` of the pods of a node that have an address of their own."""
    found = cluster.get("pods", "-A", "--field-selector", f"spec.nodeName={node.name}")["items"]
    return {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in found
        if not pod["spec"].get("hostNetwork") and pod["status"]["phase"] in ("Pending", "Running")
    }


def test_node_object_is_made_anew_with_another_pod_cidr(
    cluster: Cluster, make_namespace: Callable[..., Namespace]
) -> None:
    """Running pods keep their addresses and all their packets; new ones get addresses of the new range."""
    namespace = make_namespace()
    node = cluster.nodes[-1]
    mesh = Mesh(namespace)
    (old,) = cluster.pod_cidrs(node.name)
    with mesh.traffic() as traffic:
        cluster.kubectl("delete", "node", node.name)
        node.machine.signal_service("kubelet", signal.SIGKILL)  # it registers its node when it starts
        (new,) = wait_for("the node with pod CIDRs", lambda: cluster.pod_cidrs(node.name), 60)
        cluster.wait_ready()
        assert new != old
        namespace.apply(
            policy("new", podSelector={"matchLabels": {"app": "new"}}, ingress=[{}]),
            pod("new", {"app": "new"}, nodeName=node.name),
        )
        namespace.wait_ready("new", seconds=180)
        (address,) = namespace.addresses("new")
        wait_for("the new pod from outside", lambda: cluster.machines["outside"].connects(address, HTTP), 60)
        at_router = cluster.tor.birdc("show", "route")
    traffic.stop()
    print(f"\n[{cluster.shape}: {node.name} deleted and made anew, {old} became {new}: {traffic.report()}]")
    assert address.rpartition(".")[0] == new.rpartition(".")[0]
    assert new in at_router
    assert all(stream.well for stream in traffic.streams), traffic.report()


@pytest.mark.heavy  # the router keeps the routes for its restart time, two minutes
def test_drained_and_deleted_node_leaves_nothing_and_comes_back(cluster: Cluster, namespace: Namespace) -> None:
    """Its routes go from everywhere once its agent is gone, too; afterwards it is a node like any other."""
    node = cluster.nodes[-1]
    namespace.apply(pod("victim", nodeName=node.name))
    namespace.wait_ready("victim")
    cluster.kubectl(
        "drain",
        node.name,
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=100s",
        timeout=110,
    )
    wait_for("an end of all leases", lambda: not leases(node), 60)
    (old,) = cluster.pod_cidrs(node.name)
    cluster.kubectl("delete", "node", node.name)
    node.machine.halt()
    wait_for("an end of its route", lambda: old not in cluster.tor.birdc("show", "route"), 200)
    for other in cluster.nodes[:-1]:
        wait_for("the same on the nodes", lambda: old not in other.machine.run("ip", "route"), 60)  # noqa: B023
    cluster.reboot(node)
    wait_for("the node", lambda: cluster.pod_cidrs(node.name), 60)
    cluster.wait_ready()
    namespace.apply(pod("again", nodeName=node.name))
    namespace.wait_ready("again", seconds=180)
    (address,) = namespace.addresses("again")
    wait_for("the pod from outside", lambda: cluster.machines["outside"].connects(address, HTTP), 60)
