"""A cluster without routers, by the overlays for that: pods of two nodes, in both families, and policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.installers import HostGateway, Installer, Mesh
from tests.cluster.machine import wait_for
from tests.cluster.plan import FAMILIES, Shape
from tests.cluster.workloads import Namespace, pod, policy, service, targets

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


CONTAINERS: Mapping[type[Installer], list[str]] = {HostGateway: ["agent"], Mesh: ["agent", "bgp"]}


@pytest.fixture(scope="module", params=CONTAINERS, ids=lambda kind: kind.name)
def segment(
    request: pytest.FixtureRequest, start_cluster: Callable[[Shape, Installer], AbstractContextManager[Cluster]]
) -> Iterator[Cluster]:
    """Two nodes, dual stack."""
    with start_cluster(Shape(nodes=2, families=FAMILIES["dual"]), request.param()) as cluster:
        yield cluster


def routes(cluster: Cluster, node: str) -> set[str]:
    """``PREFIX GATEWAY`` of the routes to other nodes in a node's kernel."""
    machine = cluster.machines[node]
    lines = [
        line.split()
        for family in cluster.shape.families
        for line in machine.run("ip", f"-{family}", "route", "show", "proto", "89").splitlines()
    ]
    return {f"{words[0]} {words[words.index('via') + 1]}" for words in lines}


def test_nodes_of_a_segment_need_no_router(segment: Cluster) -> None:
    names = [node.name for node in segment.nodes]
    for agent in segment.get(*agents.PODS)["items"]:
        assert [one["name"] for one in agent["spec"]["containers"]] == CONTAINERS[type(segment.installer)]
    for node, other in (names, reversed(names)):
        hops = zip(segment.pod_cidrs(other), segment.shape.addresses(other), strict=True)
        expected = {f"{cidr} {address}" for cidr, address in hops}
        wait_for(f"{node}'s routes", lambda: routes(segment, node) == expected, 60)  # noqa: B023
    namespace = Namespace(segment)
    namespace.apply(
        *(pod(f"{kind}-{name}", {"app": kind}, nodeName=name) for kind in ("open", "closed") for name in names),
        service("open", segment.shape.families),
        policy("closed", podSelector={"matchLabels": {"app": "closed"}}, policyTypes=["Ingress"]),
    )
    namespace.wait_ready()
    addresses = {name: targets(namespace.addresses(name)) for name in namespace.pods()}
    services = targets(namespace.get("service", "open")["spec"]["clusterIPs"], 80)
    for node, other in (names, reversed(names)):
        asked = addresses[f"open-{other}"] | addresses[f"closed-{other}"] | services
        expected = addresses[f"open-{other}"] | services
        assert namespace.reaches(f"open-{node}", asked) == expected, f"{node} to {other}"
    namespace.delete(wait=True)
