"""``routeSource: kubernetes``: the whole agent beside a node that only its Node object tells of, real packets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family, Packet, Protocol
from tests.support import kernel_state
from tests.support.bgp import NODE_ASN, TOR_ASN, Sidecar
from tests.support.bird import Bird
from tests.support.fakeapi import NODES
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import CIDRS, GATEWAY, NODE, LiveNode
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family
NEXT = {V4: "10.2.0.0/24", V6: "fd00:2::/64"}
"""podCIDRs of the node on the same segment, ``n2``; its pod has the addresses below."""
POD = {V4: "10.2.0.5", V6: "fd00:2::5"}
APART = {V4: "10.3.0.0/24", V6: "fd00:3::/64"}
"""podCIDRs of ``n3``, which is on another segment."""
ELSEWHERE = ("198.51.100.3", "2001:db8:3::3")
SECOND = {V4: "192.0.2.8", V6: "2001:db8::8"}
"""Further addresses of ``n2``, which its router announces as next hops."""


class Segment:
    """A node under test and its neighbour, the namespace ``world``."""

    def __init__(self, node: LiveNode) -> None:
        self.node = node
        for family in Family:
            node.world.run("ip", "address", "add", f"{POD[family]}/{family.bits}", "dev", "lo", "nodad")
            node.world.run("ip", f"-{int(family)}", "route", "add", CIDRS[family], "via", NODE[family])

    def start(self, *options: str) -> None:
        self.node.start("--route-source", "kubernetes", *options)
        self.node.ready()

    def set_node(self, name: str, cidrs: Sequence[str], addresses: Sequence[str], **status: object) -> None:
        found = [{"type": "InternalIP", "address": address} for address in addresses]
        meta = {"name": name, "uid": f"uid-{name}"}
        spec = {"podCIDRs": list(cidrs)}
        self.node.api.put(NODES, {"metadata": meta, "spec": spec, "status": {"addresses": found, **status}})

    def gateways(self, cidrs: dict[Family, str]) -> set[str]:
        """Where the kernel's routes of ours to these lead."""
        found: set[str] = set()
        for family, cidr in cidrs.items():
            lines = [line for line in kernel_state.routes(family) if f" {cidr} proto 89 " in line]
            assert len(lines) <= 1, "one route for a prefix"
            found |= {line.split()[4].partition("%")[0] for line in lines}
        return found

    def until_gateways(self, cidrs: dict[Family, str], *expected: str) -> None:
        eventually(lambda: self.gateways(cidrs) == set(expected), 60)

    def notices(self) -> dict[str, str]:
        """Said of nodes that no route leads to."""
        told = self.node.status()["notices"]
        return {notice["subject"]: notice["text"] for notice in told if notice["kind"] == "node-route"}

    def until_notices(self, **words: str) -> None:
        def told() -> bool:
            now = self.notices()
            return now.keys() == words.keys() and all(text in now[node] for node, text in words.items())

        eventually(told, 60)

    def reached(self) -> set[Family]:
        """In which families a pod of this node reaches the other node's, and is reached by it."""
        mine = self.node.addresses["web"]
        tries = [
            try_
            for family in Family
            for try_ in (
                (self.node.places["web"], Packet(mine[family], POD[family], Protocol.TCP, 80)),
                (self.node.world, Packet(POD[family], mine[family], Protocol.TCP, 80)),
            )
        ]
        servers = [
            (place, address, Protocol.TCP, 80)
            for place, addresses in ((self.node.places["web"], mine), (self.node.world, POD))
            for address in addresses.values()
        ]
        with serve(servers):
            answered = attempt([(place, packet) for place, packet in tries], 3)
        return {family for family in Family if sum((":" in p.source) == (family is V6) for p in answered) == 2}


@pytest.fixture
def segment(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Segment]:
    with LiveNode(tmp_path, Backend.NFT, make_netns) as node:
        yield Segment(node)


def test_nodes_of_the_segment_are_reached_without_bgp(segment: Segment) -> None:
    node, both = segment.node, tuple(GATEWAY.values())
    segment.start()
    node.add_pod("web")
    segment.set_node("n2", tuple(NEXT.values()), both)
    segment.until_gateways(NEXT, *both)
    assert segment.reached() == set(Family)
    assert node.status()["routes"] == {cidr: [GATEWAY[family]] for family, cidr in NEXT.items()}
    # Nothing is masqueraded on the way: both are in the cluster's CIDRs.
    assert NEXT[V4] in run("ipset", "save", "felix4-nomasq")
    # A node on another segment is said; one that is not ready keeps its routes.
    segment.set_node("n3", tuple(APART.values()), ELSEWHERE)
    segment.until_notices(n3="its address 198.51.100.3 is no next hop: it is on no link of this node")
    segment.set_node("n2", tuple(NEXT.values()), both, conditions=[{"type": "Ready", "status": "False"}])
    # What two nodes claim is no node's.
    segment.set_node("n4", ("10.2.0.128/25",), both)
    segment.until_gateways(NEXT, GATEWAY[V6])
    segment.until_notices(n2="overlaps 10.2.0.128/25", n3="no link", n4="overlaps 10.2.0.0/24")
    # Nor does one get what is ours.
    segment.set_node("n4", (CIDRS[V4],), both)
    segment.until_notices(n3="no link", n4="overlaps 10.1.0.0/24, a podCIDR of node n1")
    segment.until_gateways(NEXT, *both)
    node.api.delete(NODES, "", "n4")
    segment.until_notices(n3="no link")
    # A link that is down for a while.
    node.world.run("ip", "link", "set", "eth0", "down")
    segment.until_gateways(NEXT)
    segment.until_notices(n2="its link up0 is down or has no carrier", n3="no link")
    node.world.run("ip", "link", "set", "eth0", "up")
    segment.until_gateways(NEXT, *both)
    # What others take away comes back.
    run("ip", "route", "del", NEXT[V4], "proto", "89")
    segment.until_gateways(NEXT, *both)
    node.api.delete(NODES, "", "n2")
    segment.until_gateways(NEXT)


def test_ready_means_that_no_route_to_a_node_that_is_gone_is_left(segment: Segment) -> None:
    node, both = segment.node, tuple(GATEWAY.values())
    segment.set_node("n2", tuple(NEXT.values()), both)
    segment.set_node("n4", tuple(APART.values()), both)
    segment.start()
    node.add_pod("web")
    assert (segment.gateways(NEXT), segment.gateways(APART)) == (set(both), set(both)), "ready has them"
    node.kill()
    # Until the cluster is known, what was found stays.
    node.api.delete(NODES, "", "n4")
    node.api.refuse()
    node.start("--route-source", "kubernetes")
    eventually(lambda: node.ask("/readyz")[0] == 503, 60)
    assert segment.reached() == set(Family)
    assert (segment.gateways(NEXT), segment.gateways(APART)) == (set(both), set(both))
    node.api.listen()
    node.ready()
    assert (segment.gateways(NEXT), segment.gateways(APART)) == (set(both), set())
    assert segment.reached() == set(Family)


BIRD = f"""
router id {GATEWAY[V4]};
protocol device {{ }}
protocol static s4 {{ ipv4; route {NEXT[V4]} blackhole; route {APART[V4]} blackhole; }}
protocol static s6 {{ ipv6; route {NEXT[V6]} blackhole; route {APART[V6]} blackhole; }}
filter out4 {{ if proto != "s4" then reject; bgp_next_hop = {SECOND[V4]}; accept; }}
filter out6 {{ if proto != "s6" then reject; bgp_next_hop = {SECOND[V6]}; accept; }}
template bgp node {{ local as {TOR_ASN}; graceful restart on; connect delay time 1; }}
protocol bgp node4 from node {{
  neighbor {NODE[V4]} as {NODE_ASN}; ipv4 {{ import all; export filter out4; }};
}}
protocol bgp node6 from node {{
  neighbor {NODE[V6]} as {NODE_ASN}; ipv6 {{ import all; export filter out6; }};
}}
"""


def test_bgp_has_the_rest(segment: Segment, tmp_path: Path) -> None:
    """A node that is in both has one route, by its Node object; one on another segment has BGP's."""
    node, both = segment.node, tuple(GATEWAY.values())
    for family in Family:
        node.world.run("ip", "address", "add", f"{SECOND[family]}/{family.bits}", "dev", "eth0", "nodad")
    tor, sidecar = Bird(node.world, tmp_path / "tor", BIRD), Sidecar(tmp_path / "run" / "bgp")
    peers = [{"peerIP": address, "asNumber": TOR_ASN} for address in GATEWAY.values()]
    (tmp_path / "bgp.yaml").write_text(json.dumps({"asNumber": NODE_ASN, "routerID": NODE[V4], "peers": peers}))
    segment.set_node("n2", tuple(NEXT.values()), both)
    segment.set_node("n3", tuple(APART.values()), ELSEWHERE)
    with sidecar, tor:
        ranges = ("--cluster-cidr", "10.0.0.0/8", "--cluster-cidr", "fd00::/16")
        segment.start("--bgp-config", str(tmp_path / "bgp.yaml"), *ranges)
        node.add_pod("web")
        segment.until_gateways(APART, *SECOND.values())
        assert segment.gateways(NEXT) == set(both)
        assert segment.reached() == set(Family)
        assert node.status()["routes"] == {
            **{cidr: [GATEWAY[family]] for family, cidr in NEXT.items()},
            **{cidr: [SECOND[family]] for family, cidr in APART.items()},
        }
        # Without the Node object BGP's counts, and with it again the object's.
        node.api.delete(NODES, "", "n2")
        segment.until_gateways(NEXT, *SECOND.values())
        segment.set_node("n2", tuple(NEXT.values()), both)
        segment.until_gateways(NEXT, *both)
        assert segment.notices() == {}
        # A peer that withdraws everything takes nothing of the segment along.
        tor.write(BIRD.replace("bgp_next_hop", "reject; bgp_next_hop"))
        tor.birdc("configure")
        segment.until_gateways(APART)
        segment.until_notices(n3="it is on no link")
        assert segment.gateways(NEXT) == set(both)
