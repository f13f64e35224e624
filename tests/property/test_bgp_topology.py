"""Sessions out of resources: against an oracle that joins every pair of nodes, and both ends agree on each."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.model import Peer
from bgp.resources import Bfd, BGPConfiguration, BGPFilter, BGPNode, BGPPeer, SecretKey, SourceAddress
from bgp.topology import topology
from tests.support.thorough import examples

SELECTORS: Mapping[str, Callable[[Mapping[str, str]], bool]] = {
    "": lambda labels: True,
    "all()": lambda labels: True,
    "has(rr)": lambda labels: "rr" in labels,
    "!has(rr)": lambda labels: "rr" not in labels,
    "rack == 'a'": lambda labels: labels.get("rack") == "a",
    "rack in {'b', 'c'}": lambda labels: labels.get("rack") in ("b", "c"),
}
PASSWORDS = {SecretKey("bgp", "one"): "first", SecretKey("bgp", "two"): "second", SecretKey("bgp", "bad"): "a b"}
SECRETS = st.sampled_from([None, None, *PASSWORDS, SecretKey("bgp", "lost")])
FILTERS = (BGPFilter(name="known"),)
ROUTERS = ("10.0.0.254", "fd00::254", "fe80::1")
NAMES = ("a", "b", "c", "d")
ADDRESSES = {name: (f"10.0.0.{i}", f"fd00::{i}") for i, name in enumerate(NAMES, 1)}
ASNS = st.sampled_from([None, 64512, 65001, 65002])


@st.composite
def nodes(draw: st.DrawFn) -> list[BGPNode]:
    return [
        BGPNode(
            name=name,
            addresses=draw(
                st.sampled_from([ADDRESSES[name], ADDRESSES[name], ADDRESSES[name][:1], ADDRESSES[name][1:], ()])
            ),
            labels=draw(st.sampled_from([{}, {"rr": ""}, {"rack": "a"}, {"rack": "b"}, {"rr": "", "rack": "a"}])),
            as_number=draw(ASNS),
            cluster_id=draw(st.sampled_from(["", "", "", "244.0.0.1", "244.0.0.2"])),
        )
        for name in NAMES[: draw(st.integers(1, 4))]
    ]


CONFIGURATION = st.builds(
    BGPConfiguration,
    name=st.sampled_from(["default", "default", "node.a", "node.b"]),
    as_number=ASNS,
    node_to_node_mesh_enabled=st.sampled_from([None, True, False]),
    node_mesh_password=SECRETS,
    listen_port=st.sampled_from([None, 179, 1790]),
)


@st.composite
def bgp_peer(draw: st.DrawFn, name: str) -> BGPPeer:
    by_address = draw(st.booleans())
    addresses = [*ROUTERS, *(address for both in ADDRESSES.values() for address in both)]
    peer_ip = draw(st.sampled_from(addresses)) if by_address else ""
    selector = draw(st.sampled_from([s for s in SELECTORS if s]))
    return BGPPeer(
        name=name,
        node=draw(st.sampled_from(["", "", "a", "b", "z"])),
        node_selector=draw(st.sampled_from(sorted(SELECTORS))),
        peer_ip=peer_ip,
        interface=draw(st.sampled_from(["eth0", "eth1"])) if peer_ip.startswith("fe80") else "",
        port=draw(st.sampled_from([179, 179, 1790])) if by_address else 179,
        peer_selector="" if by_address else selector,
        as_number=draw(ASNS) if by_address else None,
        local_as_number=draw(ASNS),
        password=draw(SECRETS),
        source_address=draw(st.sampled_from(SourceAddress)),
        filters=draw(st.sampled_from([(), (), ("known",), ("lost",)])),
        reverse_peering=draw(st.booleans()),
        families=draw(st.sampled_from([(), (), (4,), (6,), (4, 6)])),
        ttl_security=draw(st.sampled_from([0, 1])),
        bfd=draw(st.sampled_from([None, Bfd()])),
    )


@dataclass
class Cluster:
    nodes: list[BGPNode]
    configurations: list[BGPConfiguration]
    peers: list[BGPPeer]

    def sessions(self, name: str) -> dict[str, Peer]:
        """By the code: a node's sessions by name."""
        speaker = topology(name, self.nodes, self.configurations, self.peers, FILTERS, PASSWORDS).speaker
        found = speaker.peers if speaker else ()
        assert len({peer.key for peer in found}) == len(found)
        return {peer.key: peer for peer in found}

    def shuffled(self, by: random.Random) -> Cluster:
        every = self.nodes, self.configurations, self.peers
        return Cluster(*(by.sample(each, len(each)) for each in every))  # type: ignore[arg-type]


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    configurations = draw(st.lists(CONFIGURATION, max_size=3, unique_by=lambda c: c.name))
    peers = [draw(bgp_peer(f"p{i}")) for i in range(draw(st.integers(0, 4)))]
    return Cluster(draw(nodes()), configurations, peers)


# --- the oracle: every ordered pair of nodes, and every node with every router ------------------------------


class Oracle:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.configuration = {c.name: c for c in cluster.configurations}
        self.default = self.configuration.get("default", BGPConfiguration(name="default"))

    def asn(self, node: BGPNode) -> int:
        own = self.configuration.get(f"node.{node.name}", self.default)
        return node.as_number or own.as_number or self.default.as_number or 64512

    def port(self, node: BGPNode) -> int:
        own = self.configuration.get(f"node.{node.name}", self.default)
        return own.listen_port or self.default.listen_port or 179

    def selects(self, peer: BGPPeer, node: BGPNode) -> bool:
        return peer.node == node.name if peer.node else SELECTORS[peer.node_selector](node.labels)

    def is_peer(self, peer: BGPPeer, node: BGPNode) -> bool:
        if not peer.peer_ip:
            return SELECTORS[peer.peer_selector](node.labels)
        right_port = peer.port in (179, self.port(node))
        return peer.peer_ip in node.addresses and right_port and peer.as_number in (None, self.asn(node))

    def over(self, peer: BGPPeer, one: BGPNode, other: BGPNode) -> list[int]:
        """The IP versions over which a BGPPeer joins two nodes."""
        both = [v for v in (4, 6) if address(one, v) and address(other, v)]
        if peer.peer_ip:
            return [v for v in both if v == ip_address(peer.peer_ip).version]
        if peer.families and len(both) == 2:
            return [4] if 4 in peer.families else [6]
        return both

    def settings(self, one: BGPNode, other: BGPNode, ip: int) -> tuple[BGPPeer, bool] | None:
        """The BGPPeer with an end's settings, and whether it selects that end as the node."""
        candidates = []
        for peer in self.cluster.peers:
            specific = 0 if peer.node else 1 if peer.node_selector else 2
            if self.selects(peer, one) and self.is_peer(peer, other) and ip in self.over(peer, one, other):
                candidates.append((0, specific, peer.name, peer))
                continue
            reverse = self.selects(peer, other) and self.is_peer(peer, one) and ip in self.over(peer, other, one)
            if reverse and peer.reverse_peering:
                candidates.append((1, specific, peer.name, peer))
        if not candidates:
            return None
        best = min(candidates, key=lambda candidate: candidate[:3])
        return best[3], best[0] == 0

    def counting(self, one: BGPNode, other: BGPNode, ip: int) -> BGPPeer | None:
        ends = self.settings(one, other, ip), self.settings(other, one, ip)
        if ends[0] is None or ends[1] is None:
            return None
        return min(
            (end[0] for end in ends if end), key=lambda p: (0 if p.node else 1 if p.node_selector else 2, p.name)
        )

    def between(self, one: BGPNode, other: BGPNode) -> dict[str, tuple[object, ...]]:
        """Session -> what a node's end of each session with another is like."""
        found: dict[str, tuple[object, ...]] = {}
        covered: set[int] = set()
        for ip in (4, 6):
            peer = self.counting(one, other, ip)
            if peer is None:
                continue
            covered |= {ip, *peer.families}
            mine, theirs = self.settings(one, other, ip), self.settings(other, one, ip)
            assert mine
            assert theirs
            local_asn = (mine[1] and mine[0].local_as_number) or self.asn(one)
            asn = (theirs[1] and theirs[0].local_as_number) or self.asn(other)
            families = set(peer.families or (ip,))
            if ip == 4 and not (address(one, 6) and address(other, 6)):
                families -= {6}
            password = known(peer.password)
            if families and password is not None and "lost" not in (*mine[0].filters, *theirs[0].filters):
                client = asn == local_asn and one.cluster_id != other.cluster_id
                cluster_id = one.cluster_id if client else ""
                common = (password, tuple(sorted(families)), peer.ttl_security, peer.bfd)
                found[named(address(other, ip), self.port(other))] = (
                    mine[0].name,
                    asn,
                    local_asn,
                    self.port(other),
                    cluster_id,
                    *common,
                )
        mesh = self.default.node_to_node_mesh_enabled is not False and not one.cluster_id and not other.cluster_id
        password = known(self.default.node_mesh_password)
        for ip in {4, 6} - covered:
            if mesh and password is not None and address(one, ip) and address(other, ip):
                asns = self.asn(other), self.asn(one)
                at = named(address(other, ip), self.port(other))
                found[at] = (other.name, *asns, self.port(other), "", password, (ip,), 0, None)
        return found

    def with_routers(self, node: BGPNode) -> dict[str, tuple[object, ...]]:
        owned = {a for each in self.cluster.nodes for a in each.addresses}
        found: dict[str, tuple[object, ...]] = {}
        routers = {(p.peer_ip, p.port, p.interface) for p in self.cluster.peers if p.peer_ip not in {*owned, ""}}
        for router in routers:
            ip = ip_address(router[0]).version
            at = [p for p in self.cluster.peers if (p.peer_ip, p.port, p.interface) == router]
            mine = [peer for peer in at if self.selects(peer, node)]
            mine = [p for p in mine if address(node, ip) or p.interface or p.source_address is SourceAddress.NONE]
            if not mine:
                continue
            peer = min(mine, key=lambda p: (0 if p.node else 1 if p.node_selector else 2, p.name))
            families = set(peer.families or (ip,)) - ({6} if ip == 4 and not address(node, 6) else set())
            password = known(peer.password)
            if peer.as_number and families and password is not None and "lost" not in peer.filters:
                local_asn = peer.local_as_number or self.asn(node)
                cluster_id = node.cluster_id if local_asn == peer.as_number else ""
                common = (password, tuple(sorted(families)), peer.ttl_security, peer.bfd)
                found[named(*router)] = (peer.name, peer.as_number, local_asn, peer.port, cluster_id, *common)
        return found


def address(node: BGPNode, ip: int) -> str:
    return next((a for a in node.addresses if ip_address(a).version == ip), "")


def named(at: str, port: int, interface: str = "") -> str:
    whole = at + (f"%{interface}" if interface else "")
    brackets = f"[{whole}]" if ":" in at else whole
    return whole if port == 179 else f"{brackets}:{port}"


def known(key: SecretKey | None) -> str | None:
    password = PASSWORDS.get(key) if key else ""
    return None if password and " " in password else password


def shown(peer: Peer) -> tuple[object, ...]:
    common = (peer.password, peer.families, peer.ttl_security, peer.bfd)
    return peer.name, peer.asn, peer.local_asn, peer.port, peer.cluster_id, *common


@settings(max_examples=examples(480), deadline=None)
@given(clusters())
def test_the_sessions_are_those_of_the_oracle(cluster: Cluster) -> None:
    oracle = Oracle(cluster)
    for node in cluster.nodes:
        expected: dict[str, tuple[object, ...]] = {}
        if cluster.configurations or cluster.peers:
            expected = oracle.with_routers(node)
            for other in cluster.nodes:
                if other is not node:
                    expected |= oracle.between(node, other)
        assert {at: shown(peer) for at, peer in cluster.sessions(node.name).items()} == expected


@settings(max_examples=examples(480), deadline=None)
@given(clusters())
def test_both_ends_agree_on_every_session(cluster: Cluster) -> None:
    every = {node.name: cluster.sessions(node.name).values() for node in cluster.nodes}
    sessions = {name: {peer.address: peer for peer in found} for name, found in every.items()}
    oracle = Oracle(cluster)
    for one, other in permutations(cluster.nodes, 2):
        for at in set(other.addresses) & sessions[one.name].keys():
            here = sessions[one.name][at]
            assert here.source_address in one.addresses
            there = sessions[other.name].get(here.source_address)
            assert there is not None, "one end waits for ever"
            assert there.source_address == at
            assert (here.asn, here.local_asn) == (there.local_asn, there.asn)
            assert here.port == oracle.port(other)
            assert here.passive is not there.passive, "exactly one end connects"
            for field in ("password", "families", "ttl_security", "bfd"):
                assert getattr(here, field) == getattr(there, field), field
            if here.cluster_id and there.cluster_id:
                assert here.cluster_id != there.cluster_id, "reflectors of one cluster are no clients"
            for peer in (here, there):
                assert {4, 6}.issuperset(peer.families)
                assert peer.families


@given(clusters(), st.randoms(use_true_random=False))
def test_the_order_of_the_objects_does_not_matter(cluster: Cluster, by: random.Random) -> None:
    other = cluster.shuffled(by)
    for node in cluster.nodes:
        every = [(c.nodes, c.configurations, c.peers, FILTERS, PASSWORDS) for c in (cluster, other)]
        assert topology(node.name, *every[0]) == topology(node.name, *every[1])
