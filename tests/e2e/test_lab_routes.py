"""Pod CIDRs at the router, and pods across nodes through it."""

from __future__ import annotations

import ipaddress
import json

import pytest

from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from lab.topology import CLUSTER_CIDRS, TOR
from tests.support.lab import LabUnderTest

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_router_has_each_pod_cidr_from_its_node(lab: LabUnderTest) -> None:
    for node in lab.nodes:
        for family, cidr in node.pod_cidrs.items():
            shown = lab.sh(TOR, "birdc", "show", "route", "for", cidr)
            assert f"{node.name}_ipv{int(family)}" in shown
            assert f"AS{node.asn}i" in shown
            assert f"via {node.addresses[family]} on {node.name}" in shown


def test_routers_kernel_sends_pods_packets_to_their_node(lab: LabUnderTest) -> None:
    pods = lab.get("pods")["items"]
    assert len(pods) >= 12
    by_name = {node.name: node for node in lab.nodes}
    for pod in pods:
        node = by_name[pod["spec"]["nodeName"]]
        for entry in pod["status"]["podIPs"]:
            (route,) = json.loads(lab.sh(TOR, "ip", "-json", "route", "get", entry["ip"]))
            assert route["dev"] == node.name
            assert route["gateway"] in node.addresses.values()


def test_nodes_reach_other_nodes_pods_by_learned_routes_only(lab: LabUnderTest) -> None:
    for node in lab.nodes:
        others = {cidr for other in lab.nodes if other is not node for cidr in other.pod_cidrs.values()}
        for family in lab.families:
            routes = json.loads(lab.sh(node.name, "ip", "-json", f"-{int(family)}", "route", "show"))
            cluster = ipaddress.ip_network(CLUSTER_CIDRS[family])
            assert not [route for route in routes if route["dst"] == "default"]
            covering = [
                route
                for route in routes
                if ipaddress.ip_network(route["dst"]).overlaps(cluster)
                and not any(ipaddress.ip_network(route["dst"]).subnet_of(ipaddress.ip_network(own))  # type: ignore[arg-type]
                            for own in node.pod_cidrs.values()
                            if (":" in own) == (family == 6))
            ]  # fmt: skip
            assert {route["dst"] for route in covering} == {
                cidr for cidr in others if (":" in cidr) == (family == 6)
            }
            assert {str(route["protocol"]) for route in covering} == {str(ROUTE_PROTOCOL_LEARNED)}


def test_everybody_reaches_everybody_without_policies(lab: LabUnderTest) -> None:
    cells, _ = lab.settle()
    assert all(cell.verdict.allowed for cell in cells)
    pods = {cell.attempt.source.name for cell in cells if "/" in cell.attempt.source.name}
    assert len(pods) >= 12
