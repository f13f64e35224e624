"""Services announced to a real BIRD by the whole agent, a real sidecar and ExaBGP, as the API declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from felix_py.layout import DRAIN
from felix_py.records import Backend
from policy.model import Family
from tests.support.bgp import NODE_ASN, TOR_ASN, Sidecar
from tests.support.bird import Bird
from tests.support.fakeapi import (
    BGP_CONFIGURATIONS,
    BGP_FILTERS,
    BGP_PEERS,
    NODE_STATUSES,
    NODES,
    SERVICES,
    SLICES,
    Json,
)
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import CIDRS, GATEWAY, NODE, LiveNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family
PODS = CIDRS[V4]
RANGE, BALANCED = "10.96.0.0/16", "192.0.2.128/25"
HOSTS = {"10.96.0.10/32", "192.0.2.200/32"}
BIRD = f"""
router id {GATEWAY[V4]};
protocol device {{ }}
template bgp node {{ local as {TOR_ASN}; graceful restart on; connect delay time 1; }}
protocol bgp node4 from node {{ neighbor {NODE[V4]} as {NODE_ASN}; ipv4 {{ import all; export none; }}; }}
"""
CONFIGURATION: Json = {
    "asNumber": NODE_ASN,
    "nodeToNodeMeshEnabled": False,
    "serviceClusterIPs": [{"cidr": RANGE}],
    "serviceLoadBalancerIPs": [{"cidr": BALANCED}],
}
SERVICE: Json = {
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10"],
    },
    "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.200"}]}},
}


@dataclass
class Rack:
    node: LiveNode
    tor: Bird

    def until_announced(self, *prefixes: str) -> None:
        eventually(lambda: self.tor.routes("node4") == set(prefixes), 60)

    def configure(self, **changed: Any) -> None:
        spec = {name: value for name, value in {**CONFIGURATION, **changed}.items() if value is not None}
        self.node.api.put(BGP_CONFIGURATIONS, {"metadata": {"name": "default", "uid": "c"}, "spec": spec})

    def endpoints(self, *nodes: str) -> None:
        """Ready endpoints of the Service, on these nodes."""
        found = [{"addresses": [f"10.9.0.{n}"], "nodeName": name} for n, name in enumerate(nodes, 1)]
        labels = {"kubernetes.io/service-name": "web"}
        meta = {"name": "web-1", "namespace": "shop", "labels": labels}
        self.node.api.put(SLICES, {"metadata": meta, "addressType": "IPv4", "endpoints": found})

    def mark_node(self, annotations: Json, *taints: str) -> None:
        node = self.node.api.objects[NODES, "", "n1"]
        spec = {**node["spec"], "taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}
        metadata = {**node["metadata"], "annotations": annotations}
        self.node.api.put(NODES, {**node, "metadata": metadata, "spec": spec})

    def drained(self) -> tuple[str, str]:
        """What the node's status says: the annotation, and the reason of the condition."""
        status = self.node.api.objects.get((NODE_STATUSES, "", "n1"), {}).get("status", {})
        found = {one["type"]: one["reason"] for one in status.get("conditions", ())}
        return status.get("drain", ""), found.get("Drained", "")

    def shut(self) -> int:
        """How many routes the router has with the community GRACEFUL_SHUTDOWN."""
        return self.tor.birdc("show", "route", "all", "protocol", "node4").count("(65535,0)")

    def rules(self) -> list[str]:
        """Our routing rules and blackholes."""
        rules = [line for line in run("ip", "rule").splitlines() if "proto 88" in line]
        tables = run("ip", "route", "show", "table", "all", "proto", "88", "type", "blackhole").splitlines()
        return rules + [line for line in tables if " table 88" in line]


@pytest.fixture
def rack(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Rack]:
    with Sidecar(tmp_path / "run" / "bgp"), LiveNode(tmp_path, Backend.NFT, make_netns) as node:
        for path in (BGP_CONFIGURATIONS, BGP_PEERS, BGP_FILTERS, NODE_STATUSES):
            node.api.install(path)
        for path in (SERVICES, SLICES):
            node.api.serve(path)
        peer = {"peerIP": GATEWAY[V4], "asNumber": TOR_ASN}
        node.api.put(BGP_PEERS, {"metadata": {"name": "tor", "uid": "p"}, "spec": peer})
        node.api.put(SERVICES, SERVICE)
        with Bird(node.world, tmp_path / "tor", BIRD) as tor:
            rack = Rack(node, tor)
            rack.configure()
            rack.endpoints("n1", "n2")
            yield rack


def test_services_come_and_go_with_their_endpoints_and_a_restart_is_not_seen(rack: Rack) -> None:
    node, tor = rack.node, rack.tor
    node.start()
    rack.until_announced(PODS, RANGE, BALANCED, *HOSTS)
    eventually(lambda: len(rack.rules()) == 1 + 3 * 2 + 4, 60)
    withdrawn = tor.withdrawals("node4")
    node.kill()
    rack.configure(staticPrefixes=[{"cidr": "203.0.113.0/24"}])
    node.start()
    rack.until_announced(PODS, RANGE, BALANCED, *HOSTS, "203.0.113.0/24")
    assert tor.withdrawals("node4") == withdrawn
    rack.endpoints("n2")
    rack.until_announced(PODS, RANGE, BALANCED, "203.0.113.0/24")
    rack.configure()
    rack.until_announced(PODS, RANGE, BALANCED)
    rack.endpoints("n1")
    rack.until_announced(PODS, RANGE, BALANCED, *HOSTS)
    # A range that is not announced any more takes all with it.
    rack.configure(serviceLoadBalancerIPs=None, staticPrefixes=[{"cidr": "203.0.113.0/24"}])
    rack.until_announced(PODS, RANGE, "10.96.0.10/32", "203.0.113.0/24")
    rack.configure(serviceClusterIPs=None, serviceLoadBalancerIPs=None)
    rack.until_announced(PODS)
    eventually(lambda: rack.rules() == [], 60)


def test_a_node_is_drained_and_comes_back(rack: Rack) -> None:
    """By a taint before the agent starts, so that nobody waits for the half minute of asking."""
    rack.mark_node({}, DRAIN)
    rack.node.start()
    rack.until_announced(PODS)
    eventually(lambda: rack.drained() == ("taint", "Withdrawn"), 60)
    assert rack.shut() == 1
    rack.mark_node({})
    rack.until_announced(PODS, RANGE, BALANCED, *HOSTS)
    eventually(lambda: not rack.shut(), 60)
    # The way of the command: first all is there, with the community.
    withdrawn = rack.tor.withdrawals("node4")
    rack.mark_node({DRAIN: "now"})
    eventually(lambda: rack.shut() == 5, 60)
    assert rack.tor.withdrawals("node4") == withdrawn
    eventually(lambda: rack.drained()[0] == "now", 60)
    rack.mark_node({})
    eventually(lambda: not rack.shut(), 60)
    rack.until_announced(PODS, RANGE, BALANCED, *HOSTS)
