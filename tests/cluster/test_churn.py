"""Pods that come and go leave nothing behind on any node."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.leases import leases
from tests.cluster.machine import wait_for
from tests.cluster.node import Node
from tests.cluster.workloads import Namespace, deployment, policy

pytestmark = pytest.mark.root


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


def test_pods_that_come_and_go_leave_nothing(cluster: Cluster, make_namespace: Callable[..., Namespace]) -> None:
    """Also where the agent of one node is killed meanwhile."""
    before = {node.name: traces(node) for node in cluster.nodes}
    namespace = make_namespace()
    namespace.apply(
        policy("inside", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "churn"}}}]}]),
        deployment("churn", 4 * len(cluster.nodes)),
    )
    namespace.kubectl("rollout", "status", "deployment/churn", "--timeout=120s", timeout=130)
    assert all(sum(leases(node).values()) >= 4 for node in cluster.nodes)
    victim = cluster.nodes[1]
    for _ in range(2):
        namespace.kubectl("delete", "pods", "--all", "--wait=false")
        agents.send(victim, signal.SIGKILL)
        namespace.kubectl("rollout", "status", "deployment/churn", "--timeout=180s", timeout=190)
    namespace.delete(wait=True)

    def left() -> dict[str, dict[str, Counter[str]]]:
        now = {node.name: traces(node) for node in cluster.nodes}
        return {
            name: {what: now[name][what] - was for what, was in kinds.items()} for name, kinds in before.items()
        }

    wait_for("nothing to be left", lambda: not any(any(kinds.values()) for kinds in left().values()), 60)
