"""Pods that come and go while agents die: no address is ever two pods', and nothing is left behind."""

from __future__ import annotations

import http.client
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_network

import pytest

from lab.namespaces import inside
from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.installers import ByHand, Installer
from tests.cluster.leases import held, leases
from tests.cluster.machine import Machine, wait_for
from tests.cluster.node import Node
from tests.cluster.plan import BEYOND, RACK, Shape
from tests.cluster.pools import FOR_PODS, blocks, ip_pool, no_block_is_left, pool, remove_blocks
from tests.cluster.witness import Holders, watching_kernels, watching_pods
from tests.cluster.workloads import HTTP, Namespace, deployment, policy

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

APP = ("-l", "app=churn")
POOL = ip_pool("churn", FOR_PODS, 28)
"""Blocks of fourteen addresses or so: nodes claim several, and no address rests for long."""


def traces(node: Node) -> dict[str, Counter[str]]:
    """All that a pod leaves in a node's kernel and files while it is there."""
    run = node.machine.run
    links = (line.split()[1] for line in run("ip", "-o", "link").splitlines())
    ports = run(f"iptables-{node.machine.shape.backend}-save", "-t", "nat").splitlines()
    return {
        "leases": leases(node),
        "interfaces": Counter(name.partition("@")[0] for name in links if name.startswith("felix")),
        "routes": Counter(run("ip", "route", "show", "proto", "88").splitlines()),
        "set members": Counter(line for line in run("ipset", "save").splitlines() if line.startswith("add")),
        "namespaces": Counter(run("ls", "/run/netns").split()),
        "host ports": Counter(line for line in ports if "CNI-DN" in line),
    }


def wait_for_the_same(cluster: Cluster, before: dict[str, dict[str, Counter[str]]]) -> None:
    def left() -> dict[str, dict[str, Counter[str]]]:
        now = {node.name: traces(node) for node in cluster.nodes}
        return {
            name: {what: now[name][what] - was for what, was in kinds.items()} for name, kinds in before.items()
        }

    wait_for("nothing to be left", lambda: not any(any(kinds.values()) for kinds in left().values()), 120)


class Killer:
    """Kills (-9) the agent of one node after the other, each of them as often, at random moments.

    Most of them have become ready before; some are about to start.
    """

    def __init__(self, nodes: list[Node], rng: random.Random, least: float, most: float) -> None:
        """``least``, ``most``: seconds between two kills."""
        self.kills = 0
        self._nodes = nodes
        self._rng = rng
        self._pause = (least, most)
        self._ending = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def check(self) -> None:
        """Raises what went wrong with it."""
        for error in self._failed:
            raise error

    def _work(self) -> None:
        try:
            for nodes in iter(lambda: self._rng.sample(self._nodes, len(self._nodes)), []):
                for node in nodes:
                    if self._ending.wait(self._rng.uniform(*self._pause)):
                        return
                    if self._rng.random() < 0.7:
                        agents.wait_ready(node)
                    agents.send(node, signal.SIGKILL)
                    self.kills += 1
        except BaseException as error:
            self._failed.append(error)


def churn(cluster: Cluster, namespace: Namespace, replicas: int, rounds: int, pause: tuple[float, float]) -> None:
    """From nothing to all replicas and back, so many times; every second time before the last ones are gone.

    ``pause``: seconds between two kills, at least and at most.
    """
    seed = random.randrange(2**32)
    print(f"\n[seed {seed}]")
    inside_only = policy("inside", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "churn"}}}]}])
    world = policy(
        "world", ingress=[{"from": [{"ipBlock": {"cidr": RACK[4]}}, {"ipBlock": {"cidr": BEYOND[4]}}]}]
    )
    namespace.apply(inside_only, world, deployment("churn", 0))
    with (
        watching_pods(cluster, namespace.name) as told,
        watching_kernels(cluster) as routed,
        Killer(cluster.nodes, random.Random(seed), *pause) as killer,
    ):
        for number in range(rounds):
            scale(namespace, replicas)
            namespace.kubectl("rollout", "status", "deployment/churn", "--timeout=900s", timeout=910)
            wait_for("all to say the same", lambda: agree(namespace, routed, replicas), 300)
            everybody_is_at_home(namespace)
            killer.check()
            print(f"[round {number + 1}: {len(pods(namespace))} pods, agents killed {killer.kills} times]")
            scale(namespace, 0)
            if number % 2 or number == rounds - 1:
                wait_for("the end of all pods", lambda: not namespace.pods(*APP), 600, 1)
    assert killer.kills
    assert not told.twice
    assert not routed.twice
    namespace.delete(wait=True)


def scale(namespace: Namespace, replicas: int) -> None:
    namespace.kubectl("scale", "deployment/churn", f"--replicas={replicas}")


def pods(namespace: Namespace) -> dict[str, str]:
    """The address of each pod that runs, and is not about to end."""
    return {
        name: str(found["status"].get("podIP"))
        for name, found in namespace.pods(*APP).items()
        if "deletionTimestamp" not in found["metadata"]
    }


def agree(namespace: Namespace, routed: Holders, replicas: int) -> bool:
    """Whether all pods have addresses, each another one, and the nodes' stores and kernels have just these.

    Raises:
        ValueError: they do not; it says where.
    """
    told = pods(namespace)
    nodes = namespace.cluster.nodes
    prefix = f"{namespace.name}/"
    stored = Counter(lease for node in nodes for lease in held(node) if lease[0].startswith(prefix))
    kernel = Counter(address for node in nodes for address in local_routes(node))
    assert not [address for address, times in kernel.items() if times > 1]
    if len(set(told.values())) != replicas or len(told) != replicas:
        raise ValueError(f"pods: {told}")
    wanted = Counter((prefix + name, address) for name, address in told.items())
    if stored != wanted:
        raise ValueError(f"leases too many: {stored - wanted}, too few: {wanted - stored}")
    ours = {address for address in kernel if in_range(address)}
    if ours != set(told.values()):
        raise ValueError(f"routes and pods differ: {ours ^ set(told.values())}")
    if routed.addresses() != set(kernel):
        raise ValueError(f"what was seen and what there is differ: {routed.addresses() ^ set(kernel)}")
    return True


def no_more_leases(cluster: Cluster, before: dict[str, dict[str, Counter[str]]]) -> bool:
    """Whether the nodes have the leases of before. Raises ValueError: they do not; it says which."""
    left = {node.name: leases(node) - before[node.name]["leases"] for node in cluster.nodes}
    if any(left.values()):
        raise ValueError(f"leases too many: {left}")
    return True


def local_routes(node: Node) -> list[str]:
    """Where a node's kernel has a route to an interface of a pod."""
    lines = node.machine.run("ip", "route", "show", "proto", "88").splitlines()
    return [line.split()[0] for line in lines if " dev felix" in line]


def in_range(address: str) -> bool:
    return ip_address(address) in ip_network(FOR_PODS)


def everybody_is_at_home(namespace: Namespace) -> None:
    """At each pod's address that pod answers, asked from outside."""
    outside = namespace.cluster.machines["outside"]
    for name, address in pods(namespace).items():
        wait_for(f"{name} at {address}", lambda a=address, n=name: host_name(outside, a) == n, 60)  # type: ignore[misc]


def host_name(machine: Machine, address: str) -> str:
    """What a pod says its name is, asked from a machine."""
    with inside(machine.netns()):
        connection = http.client.HTTPConnection(address, HTTP, timeout=5)
        connection.connect()
    try:
        connection.request("GET", "/hostname")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_pods_that_come_and_go_leave_nothing(cluster: Cluster, make_namespace: Callable[..., Namespace]) -> None:
    """Also the blocks go when the pool and they are deleted."""
    before = {node.name: traces(node) for node in cluster.nodes}
    with pool(cluster, POOL):
        churn(cluster, make_namespace(), 8 * len(cluster.nodes), 2, (3.0, 8.0))
    # An agent makes up for DELs that came while it was away. What was there before may go as well: an earlier
    # test's pods.
    wait_for("the end of leases", lambda: no_more_leases(cluster, before), 120)
    remove_blocks(cluster)
    wait_for_the_same(cluster, before)


@pytest.mark.heavy
@pytest.mark.timeout(7200)
def test_a_hundred_replicas_ten_times(
    start_cluster: Callable[[Shape, Installer], AbstractContextManager[Cluster]],
) -> None:
    """Agents are services here, which start again after a second. The nodes give back all blocks."""
    with start_cluster(Shape(), ByHand()) as cluster:
        before = {node.name: traces(node) for node in cluster.nodes}
        with pool(cluster, POOL):
            churn(cluster, Namespace(cluster), 100, 10, (2.0, 20.0))
            wait_for("one block a node", lambda: all(count == 1 for count in blocks(cluster).values()), 900, 2)
        no_block_is_left(cluster)
        wait_for_the_same(cluster, before)
