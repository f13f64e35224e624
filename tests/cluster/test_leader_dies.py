"""The agent that leads dies while addresses are handed out: the next one goes on, and none is given twice."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.leases import leases
from tests.cluster.machine import wait_for
from tests.cluster.pools import FOR_PODS, announced, ip_pool, load_balancer_pool, pool, remove_blocks
from tests.cluster.witness import watching_kernels, watching_pods, watching_services
from tests.cluster.workloads import Namespace, deployment, service

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

SERVICES = 12
LEASE = ("-n", "kube-system", "lease", "felix-py-controllers")


def leader(cluster: Cluster) -> str:
    """``NODE_UUID`` of the process that leads."""
    return str(cluster.get(*LEASE)["spec"].get("holderIdentity", ""))


def balanced(namespace: Namespace) -> list[str]:
    """The addresses of all load balancers, once they have them."""
    found = [one["status"]["loadBalancer"].get("ingress", []) for one in namespace.get("services")["items"]]
    addresses = [entry["ip"] for ingress in found for entry in ingress]
    return addresses if len(addresses) == SERVICES else []


def test_the_agent_that_leads_is_killed_in_the_middle(
    cluster: Cluster, make_namespace: Callable[..., Namespace]
) -> None:
    """Twice. Load balancers and pods come before it dies and while nobody leads."""
    namespace = make_namespace()
    balancers = [service("web", (4,), "LoadBalancer") for _ in range(SERVICES)]
    for number, one in enumerate(balancers):
        one["metadata"]["name"] = f"balanced-{number}"
    names = [one["metadata"]["name"] for one in balancers]
    namespace.apply(deployment("web", 0))
    with (
        pool(cluster, load_balancer_pool("balancers", 4)),
        pool(cluster, ip_pool("pods", FOR_PODS, 29)),
        watching_services(cluster, namespace.name) as given,
        watching_pods(cluster, namespace.name) as told,
        watching_kernels(cluster) as routed,
    ):
        first = wait_for("an agent that leads", lambda: leader(cluster), 120)
        namespace.kubectl("scale", "deployment/web", "--replicas=18")
        namespace.apply(*balancers[: SERVICES // 2])
        wait_for("the first address", given.addresses, 120, 0.002)
        agents.send(cluster.node(first.partition("_")[0]), signal.SIGKILL)
        print(f"\n[killed when {len(given.addresses())} of {SERVICES // 2} addresses were given]")
        namespace.apply(*balancers[SERVICES // 2 :])
        wait_for("all addresses", lambda: balanced(namespace), 180)
        second = leader(cluster)
        assert second
        assert second != first
        agents.send(cluster.node(second.partition("_")[0]), signal.SIGKILL)
        namespace.kubectl("delete", "service", *names[::2])
        namespace.apply(*balancers[::2])
        addresses = wait_for("the addresses of those that are new", lambda: balanced(namespace), 180)
        assert len(set(addresses)) == SERVICES
        assert leader(cluster) not in ("", first, second)
        namespace.kubectl("rollout", "status", "deployment/web", "--timeout=180s", timeout=190)
        wait_for("all to say the same", lambda: told.addresses() <= routed.addresses(), 60)
        namespace.delete(wait=True)
    assert not given.twice
    assert not told.twice
    assert not routed.twice
    mine = f"{namespace.name}/"
    wait_for(
        "the end of leases",
        lambda: not any(pod.startswith(mine) for node in cluster.nodes for pod in leases(node)),
        60,
    )
    remove_blocks(cluster)
    wait_for("the end of the announcement", lambda: not announced(cluster, 4), 60)
