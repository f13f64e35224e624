"""A node's podCIDRs change under running pods: the whole agent, a real sidecar, ExaBGP and BIRD, real packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family, Packet, Protocol
from tests.support.bird import Bird
from tests.support.fakeapi import NODES
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import CIDRS, GATEWAY, NODE, LiveNode
from tests.support.peered_node import announced, peered_node, start
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family
OLD = tuple(CIDRS.values())
NEW = ("10.3.0.0/24", "fd00:3::/64")


@dataclass
class Rack:
    node: LiveNode
    tor: Bird

    def announced(self) -> set[str]:
        """What the router has from the node."""
        return announced(self.tor)

    def until_announced(self, *prefixes: str) -> None:
        eventually(lambda: self.announced() == set(prefixes), 30)

    def set_node(self, name: str, cidrs: Sequence[str]) -> None:
        """Write a Node object, as it is after it was deleted and made anew."""
        addresses = [{"type": "InternalIP", "address": a} for a in NODE.values()] if name == "n1" else []
        meta = {"name": name, "uid": f"uid-{name}-{cidrs[:1]}"}
        spec = {"podCIDRs": list(cidrs)} if cidrs else {}
        self.node.api.put(NODES, {"metadata": meta, "spec": spec, "status": {"addresses": addresses}})

    def notices(self) -> dict[str, str]:
        return {notice["kind"]: notice["text"] for notice in self.node.status()["notices"]}

    def reached(self, name: str) -> set[Family]:
        """In which families the router reaches a pod, through what it has learned."""
        node, packets = self.node, []
        for family, address in node.addresses[name].items():
            packets.append(Packet(GATEWAY[family], address, Protocol.TCP, 80))
        with serve([(node.places[name], packet.destination, Protocol.TCP, 80) for packet in packets]):
            answered = attempt([(node.world, packet) for packet in packets], 3)
        return {Family.V6 if ":" in packet.destination else Family.V4 for packet in answered}

    def hosts(self, name: str) -> set[str]:
        """A pod's addresses as prefixes."""
        return {f"{address}/{family.bits}" for family, address in self.node.addresses[name].items()}


@pytest.fixture
def rack(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Rack]:
    with peered_node(tmp_path, Backend.NFT, make_netns) as (node, tor):
        start(node)
        node.add_pod("web")
        rack = Rack(node, tor)
        rack.until_announced(*OLD)
        yield rack


def members(name: str) -> set[str]:
    """Members of an IP set."""
    return {line.split()[2] for line in run("ipset", "save", name).splitlines() if line.startswith("add ")}


def test_pods_of_the_old_pod_cidrs_stay_reachable_until_they_end(rack: Rack) -> None:
    node, both = rack.node, set(Family)
    assert rack.reached("web") == both
    assert rack.notices() == {}
    rack.set_node("n1", NEW)
    rack.until_announced(*NEW, *rack.hosts("web"))
    assert rack.reached("web") == both
    outside = "10.3.0.0/24, fd00:3::/64, and pod shop/web have addresses outside"
    eventually(lambda: outside in rack.notices().get("pods-outside-pod-cidr", ""))
    # What leaves the cluster is masqueraded still, what goes to it is not.
    wanted = {"10.3.0.0/24", node.addresses["web"][V4]}
    eventually(lambda: wanted <= members("felix4-pool") & members("felix4-nomasq"))
    # A new pod gets a new address, and the old one reaches it under its own.
    node.add_pod("new")
    assert node.addresses["new"][V4].startswith("10.3.0.")
    assert rack.reached("new") == both
    packet = Packet(node.addresses["web"][V4], node.addresses["new"][V4], Protocol.TCP, 80)
    with serve([(node.places["new"], packet.destination, Protocol.TCP, 80)]):
        assert attempt([(node.places["web"], packet)], 3) == {packet}
    # Somebody else gets the old prefix: ours stay, the rest is theirs.
    rack.set_node("n2", OLD)
    eventually(lambda: "at once, because n2 may give" in rack.notices().get("pods-outside-pod-cidr", ""))
    assert rack.announced() == {*NEW, *rack.hosts("web")}
    # A restart knows nothing but leases and objects.
    node.kill()
    start(node)
    eventually(lambda: "at once, because n2 may give" in rack.notices().get("pods-outside-pod-cidr", ""))
    assert rack.announced() == {*NEW, *rack.hosts("web")}
    assert rack.reached("web") == both
    assert rack.tor.withdrawals("node4") == 1  # the old prefix, as a whole
    node.delete_pod("web")
    rack.until_announced(*NEW)
    eventually(lambda: rack.notices() == {})


def test_a_node_object_that_is_gone_for_a_while_takes_nothing_along(rack: Rack) -> None:
    node, both = rack.node, set(Family)
    node.api.delete(NODES, "", "n1")
    eventually(lambda: node.status()["podCIDRs"] == [])
    assert "podCIDRs" in node.status()["unready"]
    assert rack.reached("web") == both
    assert "10.1.0.0/24" in members("felix4-pool") & members("felix4-nomasq")
    assert "blackhole 10.1.0.0/24" in run("ip", "route", "show", "type", "blackhole")
    # It comes again, but has no podCIDRs yet.
    rack.set_node("n1", ())
    assert rack.reached("web") == both
    assert rack.announced() == set(OLD)
    rack.set_node("n1", OLD)
    eventually(lambda: node.status()["unready"] is None)
    assert rack.announced() == set(OLD)
    assert rack.tor.withdrawals("node4") == 0
    assert rack.reached("web") == both
    # Gone again, and another node gets its podCIDRs: only the addresses of running pods stay ours.
    node.api.delete(NODES, "", "n1")
    rack.set_node("n2", OLD)
    rack.until_announced(*rack.hosts("web"))
    assert rack.reached("web") == both
    eventually(lambda: "blackhole 10.1.0.0/24" not in run("ip", "route", "show", "type", "blackhole"))


def test_a_pod_cidr_that_two_nodes_have_is_told(rack: Rack) -> None:
    rack.set_node("n2", ("10.1.0.0/16",))
    told = eventually(lambda: rack.notices().get("pod-cidr-shared"))
    assert told is not None
    assert told.startswith("10.1.0.0/24 is a podCIDR of this node, and 10.1.0.0/16 one of node n2")
    assert rack.announced() == set(OLD)
    rack.set_node("n2", ("10.2.0.0/16",))
    eventually(lambda: rack.notices() == {})


def test_another_machine_s_node_is_told(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> None:
    """As on a machine that was cloned, host name and all."""
    with LiveNode(tmp_path, Backend.NFT, make_netns) as node:
        status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.77"}]}
        node.api.put(NODES, {"metadata": {"name": "n1"}, "spec": {"podCIDRs": list(OLD)}, "status": status})
        node.start()
        node.ready()
        told = eventually(lambda: {notice["kind"]: notice["text"] for notice in node.status()["notices"]}, 30)
        assert told["node-elsewhere"].startswith("the Node object n1 has the addresses 192.0.2.77, and this host")
