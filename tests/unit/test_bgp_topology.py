"""Sessions out of resources, one situation each, as an administrator would write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from bgp.model import Peer, SpeakerConfig
from bgp.resources import (
    BGPConfiguration,
    BGPFilter,
    BGPNode,
    BGPPeer,
    PrefixAdvertisement,
    Problem,
    SecretKey,
    SourceAddress,
)
from bgp.topology import merged, topology

KEY = SecretKey("bgp", "tor")
DEFAULT = BGPConfiguration(name="default")
NO_MESH = BGPConfiguration(name="default", node_to_node_mesh_enabled=False)
TOR = BGPPeer(name="tor", peer_ip="10.0.0.254", as_number=65000)


def node(number: int, **labels: str) -> BGPNode:
    return BGPNode(name=f"node{number}", addresses=(f"10.0.0.{number}", f"fd00::{number}"), labels=labels)


def of(
    name: str,
    nodes: list[BGPNode],
    *resources: BGPConfiguration | BGPPeer | BGPFilter,
    passwords: Mapping[SecretKey, str] | None = None,
) -> tuple[SpeakerConfig, tuple[Problem, ...]]:
    configurations = [each for each in resources if isinstance(each, BGPConfiguration)]
    peers = [each for each in resources if isinstance(each, BGPPeer)]
    filters = [each for each in resources if isinstance(each, BGPFilter)]
    found = topology(name, nodes, configurations, peers, filters, passwords or {})
    assert found.speaker is not None
    return found.speaker, found.problems


def only(speaker: SpeakerConfig) -> Peer:
    (peer,) = speaker.peers
    return peer


def test_the_mesh_is_there_by_default_one_session_for_each_family() -> None:
    speaker, problems = of("node1", [node(1), node(2)], DEFAULT)
    assert problems == ()
    assert (speaker.asn, speaker.router_id, speaker.listen_port) == (64512, "10.0.0.1", 179)
    assert [(p.name, p.address, p.source_address, p.asn, p.families) for p in speaker.peers] == [
        ("node2", "10.0.0.2", "10.0.0.1", 64512, (4,)),
        ("node2", "fd00::2", "fd00::1", 64512, (6,)),
    ]


def test_an_as_number_by_annotation_makes_the_mesh_ebgp() -> None:
    nodes = [node(1), BGPNode(name="node2", addresses=("10.0.0.2",), as_number=65002)]
    peer = only(of("node1", nodes, DEFAULT)[0])
    assert (peer.asn, peer.external) == (65002, True)


def test_nothing_in_the_api_or_a_node_that_is_not_there_is_no_speaker() -> None:
    assert topology("node1", [node(1)], [], [], [], {}).speaker is None
    assert topology("node9", [node(1)], [DEFAULT], [TOR], [], {}).speaker is None


def test_route_reflectors_on_nodes_as_calico_documents_them() -> None:
    reflector = BGPNode(name="rr", addresses=("10.0.0.9",), labels={"rr": ""}, cluster_id="244.0.0.1")
    nodes = [node(1), node(2), reflector]
    peers = BGPPeer(name="to-rr", node_selector="!has(rr)", peer_selector="has(rr)")
    speaker, problems = of("rr", nodes, NO_MESH, peers)
    assert problems == ()
    assert [(p.address, p.cluster_id) for p in speaker.peers] == [
        ("10.0.0.1", "244.0.0.1"),
        ("10.0.0.2", "244.0.0.1"),
    ]
    client = only(of("node1", nodes, NO_MESH, peers)[0])
    assert (client.address, client.cluster_id) == ("10.0.0.9", "")


def test_an_as_per_rack_each_with_its_tor() -> None:
    nodes = [
        BGPNode(name=f"node{i}", addresses=(f"10.{i}.0.1",), labels={"rack": str(i)}, as_number=65000 + i)
        for i in (1, 2)
    ]
    tors = [
        BGPPeer(name=f"rack{i}", node_selector=f"rack == '{i}'", peer_ip=f"10.{i}.0.254", as_number=65100 + i)
        for i in (1, 2)
    ]
    for i in (1, 2):
        speaker, problems = of(f"node{i}", nodes, NO_MESH, *tors)
        assert problems == ()
        peer = only(speaker)
        assert (peer.address, peer.asn, peer.local_asn) == (f"10.{i}.0.254", 65100 + i, 65000 + i)


def test_dual_stack_over_one_session() -> None:
    both = BGPPeer(name="tor", peer_ip="fd00::254", as_number=65000, families=(4, 6))
    peer = only(of("node1", [node(1)], NO_MESH, both)[0])
    assert (peer.families, peer.next_hops, peer.source_address) == ((4, 6), ("10.0.0.1", "fd00::1"), "fd00::1")


def test_ipv4_by_ipv6_next_hops_over_a_link_local_session() -> None:
    there = BGPPeer(name="tor", peer_ip="fe80::1", interface="eth0", as_number=65000, families=(4, 6))
    six = BGPNode(name="node1", addresses=("fd00::1",), router_id="10.255.0.1")
    speaker, problems = of("node1", [six], NO_MESH, there)
    peer = only(speaker)
    assert problems == ()
    assert (peer.interface, peer.source_address, peer.next_hops) == ("eth0", "", ("fd00::1",))


def test_a_node_has_no_session_over_a_family_that_it_does_not_have() -> None:
    six = BGPNode(name="node1", addresses=("fd00::1",), router_id="10.255.0.1")
    assert of("node1", [six], NO_MESH, TOR)[0].peers == ()
    by_kernel = BGPPeer(name="t", peer_ip="10.0.0.254", as_number=1, source_address=SourceAddress.NONE)
    assert only(of("node1", [six], NO_MESH, by_kernel)[0]).source_address == ""


def test_a_node_without_ipv4_has_a_router_id_of_its_name() -> None:
    found = {of(name, [BGPNode(name=name, addresses=("fd00::1",))], DEFAULT)[0].router_id for name in ("a", "b")}
    assert len(found) == 2


def test_a_configuration_of_one_node_counts_field_by_field() -> None:
    default = BGPConfiguration(
        name="default",
        as_number=65001,
        listen_port=1790,
        communities={"local": "65001:1"},
        prefix_advertisements=(PrefixAdvertisement("10.244.0.0/16", ("local",)),),
        node_mesh_max_restart_time=30,
    )
    own = BGPConfiguration(name="node.node1", as_number=65002, prefix_advertisements=(), bind_mode="NodeIP")
    both = merged("node1", [own, default])
    assert (both.as_number, both.listen_port, both.prefix_advertisements) == (65002, 1790, ())
    assert both.communities == {"local": "65001:1"}
    speaker, _ = of("node1", [node(1), node(2)], default, own)
    assert (speaker.asn, speaker.listen_port, speaker.listen_addresses) == (65002, 1790, ("10.0.0.1", "fd00::1"))
    assert {(p.asn, p.port, p.max_restart_time) for p in speaker.peers} == {(65001, 1790, 30)}
    speaker, _ = of("node2", [node(1), node(2)], default, own)
    assert {(p.asn, p.passive) for p in speaker.peers} == {(65002, False)}


@pytest.mark.parametrize(("keepalive", "hold"), [(5, 90), (30, 90), (31, 93), (None, 90)])
def test_the_hold_time_has_room_for_three_keepalives(keepalive: int | None, hold: int) -> None:
    peer = BGPPeer(name="tor", peer_ip="10.0.0.254", as_number=65000, keepalive_time=keepalive)
    found = only(of("node1", [node(1)], NO_MESH, peer)[0])
    assert (found.hold_time, found.keepalive_time) == (hold, keepalive or 0)


OTHER = BGPPeer(name="other", peer_ip="10.0.0.254", as_number=65000)
BY_NODE = BGPPeer(name="zone", node="node1", peer_ip="10.0.0.254", as_number=65000)
WAY_OUT = BGPPeer(name="out", node="node1", peer_selector="all()", reverse_peering=False)


@pytest.mark.parametrize(
    ("resources", "peers", "problem"),
    [
        ([TOR, OTHER], ["other"], "BGPPeer tor: peerIP: BGPPeer other has the session with 10.0.0.254"),
        (
            [replace(TOR, port=1790), replace(OTHER, port=1790)],
            ["other"],
            "BGPPeer tor: peerIP: BGPPeer other has the session with 10.0.0.254:1790",
        ),
        ([TOR, BY_NODE], ["zone"], "BGPPeer tor: peerIP: BGPPeer zone has the session with 10.0.0.254"),
        (
            [BGPPeer(name="tor", peer_ip="10.0.0.254")],
            [],
            "BGPPeer tor: asNumber: is missing; 10.0.0.254 is no node's address",
        ),
        ([BGPPeer(name="tor")], [], "BGPPeer tor: peerIP: is missing, and so is peerSelector"),
        (
            [BGPPeer(name="tor", peer_ip="10.0.0.254", as_number=1, filters=("f", "g")), BGPFilter(name="f")],
            [],
            "BGPPeer tor: filters: there is no BGPFilter g",
        ),
        (
            [BGPPeer(name="tor", peer_ip="10.0.0.254", as_number=1, password=KEY)],
            [],
            "BGPPeer tor: password: there is no key tor in a Secret bgp",
        ),
        (
            [BGPPeer(name="two", peer_ip="10.0.0.2", as_number=1)],
            [],
            "BGPPeer two: asNumber: node node2 has AS number 64512",
        ),
        (
            [BGPPeer(name="two", peer_ip="10.0.0.2", port=1790)],
            [],
            "BGPPeer two: peerIP: node node2 listens on port 179",
        ),
        (
            [WAY_OUT],
            [],
            "BGPPeer out: reversePeering: is Manual, and a node that is a peer by it has no BGPPeer for it",
        ),
        (
            [BGPPeer(name="tor", peer_ip="10.0.0.254", as_number=1, hold_time=90, keepalive_time=40)],
            ["tor"],
            "BGPPeer tor: keepaliveTime: is 30 s, a third of the hold time",
        ),
        (
            [BGPConfiguration(name="node.node1", node_to_node_mesh_enabled=True)],
            [],
            "BGPConfiguration node.node1: nodeToNodeMeshEnabled: only BGPConfiguration default can say that",
        ),
    ],
)
def test_what_cannot_be_is_said(
    resources: list[BGPConfiguration | BGPPeer | BGPFilter], peers: list[str], problem: str
) -> None:
    speaker, problems = of("node1", [node(1), node(2)], NO_MESH, *resources)
    assert [peer.name for peer in speaker.peers] == peers
    assert [f"{p.kind} {p.name}: {p.field}: {p.reason}" for p in problems] == [problem]


def test_without_the_password_of_the_mesh_there_is_none() -> None:
    mesh = BGPConfiguration(name="default", node_mesh_password=KEY)
    nodes = [node(1), node(2)]
    speaker, problems = of("node1", nodes, mesh)
    assert speaker.peers == ()
    assert [(p.name, p.field) for p in problems] == [("default", "nodeMeshPassword")]
    speaker, problems = of("node1", nodes, mesh, passwords={KEY: "secret"})
    assert {peer.password for peer in speaker.peers} == {"secret"}


def test_a_selector_that_cannot_be_read_leaves_the_other_peers_alone() -> None:
    broken = BGPPeer(name="broken", node_selector="rack ==", peer_ip="10.0.0.253", as_number=1)
    speaker, problems = of("node1", [node(1)], NO_MESH, TOR, broken)
    assert [peer.name for peer in speaker.peers] == ["tor"]
    assert [(p.name, p.field) for p in problems] == [("broken", "nodeSelector")]


def test_two_nodes_with_one_router_id_are_named() -> None:
    nodes = [BGPNode(name=n, addresses=(f"fd00::{n}",), router_id="10.255.0.1") for n in ("1", "2")]
    _, problems = of("1", nodes, DEFAULT)
    assert problems == (Problem("Node", "1", "routerID", "node 2 has the router ID 10.255.0.1, too"),)
