"""What must work on each backend and in each family: packets between nodes, services, the outside, policy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_for
from tests.cluster.plan import MATRIX
from tests.cluster.pools import announced, load_balancer_pool
from tests.cluster.watching import last_success
from tests.cluster.workloads import HTTP, Namespace, policy, service, targets

pytestmark = [pytest.mark.root, pytest.mark.shapes(*MATRIX)]


def conditions(node: dict[str, Any]) -> dict[str, str]:
    return {found["type"]: found["status"] for found in node["status"]["conditions"]}


def test_nodes_are_ready_and_routes_come_by_bgp(cluster: Cluster) -> None:
    """Each node's pod CIDRs are in the router's kernel, and all others' in each node's."""
    for node in cluster.get("nodes")["items"]:
        found = conditions(node)
        assert (found["Ready"], found["NetworkUnavailable"]) == ("True", "False")
    sessions = len(cluster.nodes) * len(cluster.shape.families)

    def established() -> bool:
        return cluster.tor.birdc("show", "protocols").count("Established") == sessions

    wait_for("BGP sessions", established, 60)
    cidrs = {node.name: cluster.pod_cidrs(node.name) for node in cluster.nodes}
    for family in cluster.shape.families:
        everybodys = {found for of_node in cidrs.values() for found in of_node if (":" in found) == (family == 6)}

        def learned(machine: str, protocol: str) -> set[str]:
            routes = cluster.machines[machine].run("ip", f"-{family}", "route", "show", "proto", protocol)  # noqa: B023
            return {line.split()[0] for line in routes.splitlines()}

        wait_for("the router's routes", lambda: learned("tor", "bird") == everybodys, 60)  # noqa: B023
        for node, own in cidrs.items():
            others = everybodys - set(own)
            wait_for(f"{node}'s routes", lambda: learned(node, "89") == others, 60)  # noqa: B023


def test_pods_of_all_nodes_reach_each_other(cluster: Cluster, web: Namespace) -> None:
    pods = web.pods("-l", "app=web")
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {node.name for node in cluster.nodes}
    everybody = set().union(*(targets(web.addresses(pod)) for pod in pods))
    assert len(everybody) == len(pods) * len(cluster.shape.families)
    with ThreadPoolExecutor(len(pods)) as pool:
        for pod, reached in zip(
            pods, pool.map(lambda pod: web.reaches(pod, everybody, "http"), pods), strict=True
        ):
            assert reached == everybody, pod


def test_service_leads_to_pods(cluster: Cluster, web: Namespace) -> None:
    """kube-proxy's rules and ours stand in the same tables."""
    addresses = web.get("service", "web")["spec"]["clusterIPs"]
    assert len(addresses) == len(cluster.shape.families)
    for pod in web.pods("-l", "app=web"):
        assert web.reaches(pod, targets(addresses, 80)) == targets(addresses, 80)
    for node in cluster.nodes:
        assert all(node.machine.connects(address, 80) for address in addresses), f"from {node.name} itself"


def test_pods_and_node_ports_answer_the_outside(cluster: Cluster, web: Namespace) -> None:
    """The packets come by the router, which knows the pods' routes by BGP alone."""
    outside = cluster.machines["outside"]
    for pod in web.pods("-l", "app=web"):
        for address in web.addresses(pod):
            assert outside.connects(address, HTTP), f"{pod} at {address}"
    port = web.get("service", "web")["spec"]["ports"][0]["nodePort"]
    for node in cluster.nodes:
        for address in cluster.shape.addresses(node.name):
            assert outside.connects(address, port), f"node port of {node.name} at {address}"


def test_load_balancers_get_addresses_that_the_outside_reaches(cluster: Cluster, web: Namespace) -> None:
    """The agent that leads gives them, all announce them to the router, and kube-proxy serves them."""
    families = cluster.shape.families
    pools = [load_balancer_pool(f"balancers-{family}", family) for family in families]
    cluster.apply(*pools)
    balanced = service("web", families, "LoadBalancer")
    balanced["metadata"]["name"] = "balanced"
    web.apply(balanced)

    def given() -> list[str]:
        ingress = web.get("service", "balanced")["status"]["loadBalancer"].get("ingress", [])
        addresses = [entry["ip"] for entry in ingress]
        return addresses if len(addresses) == len(families) else []

    try:
        for address in wait_for("addresses of the load balancer", given, 120):
            cluster.machines["outside"].connects_soon(address, 80)
    finally:
        web.kubectl("delete", "service", "balanced")
        for pool in pools:
            cluster.kubectl("delete", "ippool", pool["metadata"]["name"])
    for family in families:
        wait_for("the end of the announcement", lambda: not announced(cluster, family), 60)  # noqa: B023


def test_default_deny_holds_at_once_and_an_allow_opens(cluster: Cluster, web: Namespace) -> None:
    pods = sorted(web.pods("-l", "app=web"))
    outside = cluster.machines["outside"]
    everybody = set().union(*(targets(web.addresses(pod)) for pod in pods))
    address = web.addresses(pods[0])[0]
    took = last_success(outside, address, HTTP, lambda: web.apply(policy("deny", policyTypes=["Ingress"])))
    print(f"[{cluster.shape}: denied {1000 * took:.0f} ms after kubectl apply had returned]")
    assert took < 5
    own = targets(web.addresses(pods[0]))
    assert web.reaches(pods[0], everybody) <= own, "a pod may reach itself"
    web.apply(policy("allow", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]))
    wait_for("pods of the label to pass", lambda: web.reaches(pods[0], everybody) == everybody, 30)
    assert not outside.connects(address, HTTP), "it has no label"
    web.kubectl("delete", "networkpolicy", "--all")
    wait_for("the end of policy", lambda: outside.connects(address, HTTP), 30)


def test_rules_are_in_the_backend_that_iptables_is(cluster: Cluster, web: Namespace) -> None:
    other = "legacy" if cluster.shape.backend == "nft" else "nft"
    for node in cluster.nodes:
        for tool in ("iptables", "ip6tables"):
            assert ":FELIX-" in node.machine.run(f"{tool}-{cluster.shape.backend}-save")
            assert ":FELIX-" not in node.machine.run(f"{tool}-{other}-save")
