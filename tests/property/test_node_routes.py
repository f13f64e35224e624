"""Routes from Node objects, against what the documents say of each podCIDR by itself; and which source counts."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bgp.prefixes import PrefixSet
from bgp.rib import Reached
from felix_py.agent.remote_routes import RemoteRoutes
from felix_py.desired.host_gateway import Claim, node_routes
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.records import NextHop, NodeRecord, Route
from felix_py.refs import RouteRef

HERE = "n0"
CIDRS = [
    *("10.244.1.0/24", "10.244.1.128/25", "10.244.2.0/24", "10.244.3.0/24", "10.244.0.0/16", "10.9.0.0/24"),
    *("172.16.1.0/24", "10.96.3.0/24", "0.0.0.0/0", "fd44:1::/64", "fd44:2::/64", "fd44::/32", "fd96::/112"),
]
ADDRESSES = ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.8.0.2", "10.244.3.7", "fd09::2", "fd09::3", "fd08::2"]
LINKS = {"eth0": ("10.9.0.0/24", "fd09::/64"), "eth1": ("10.244.3.0/26",)}
SERVICES = ("10.96.0.0/12", "fd96::/112")
BLOCKS = ["10.244.1.0/26", "10.244.1.64/26", "10.244.3.0/26", "10.244.9.7/32", "fd44:1::/122", "fd44:7::/122"]


def reach(address: str) -> Reached:
    """A node with two links, whose own address is 10.9.0.1."""
    if address == "10.9.0.1":
        return Reached(problem="it is an address of this node")
    for interface, networks in LINKS.items():
        for network in map(ipaddress.ip_network, networks):
            if ipaddress.ip_address(address) in network:
                return Reached(interface, network.prefixlen)
    return Reached(problem="it is on no link of this node")


def overlap(one: str, other: str) -> bool:
    first, second = ipaddress.ip_network(one), ipaddress.ip_network(other)
    return first.version == second.version and first.overlaps(second)


def inside(prefix: str, ranges: Collection[str]) -> bool:
    """Whether all addresses of a prefix are in one of the ranges."""
    network = ipaddress.ip_network(prefix)
    return any(
        network.version == found.version and network.subnet_of(found)  # type: ignore[arg-type]
        for found in map(ipaddress.ip_network, ranges)
    )


def expected(
    nodes: Collection[NodeRecord], own: Collection[str], within: Collection[str], never: Collection[str]
) -> tuple[dict[str, NextHop], set[Claim], set[Claim]]:
    """Routes, what is refused, and what is on another segment, as the documents have it."""
    routes: dict[str, NextHop] = {}
    refused: set[Claim] = set()
    apart: set[Claim] = set()
    everybodys = [(HERE, cidr) for cidr in own]
    everybodys += [(node.name, cidr) for node in nodes if node.name != HERE for cidr in node.pod_cidrs]
    for node in nodes:
        for cidr in node.pod_cidrs if node.name != HERE else ():
            claimed = any(name != node.name and overlap(cidr, other) for name, other in everybodys)
            addresses = [ipaddress.ip_address(address) for each in nodes for address in each.addresses]
            hijacks = any(address in ipaddress.ip_network(cidr) for address in addresses)
            if claimed or hijacks or not inside(cidr, within) or inside(cidr, never):
                refused.add(Claim(node.name, cidr))
                continue
            hops = [
                NextHop(address, reach(address).interface)
                for address in node.internal_addresses
                if (":" in address) == (":" in cidr) and not reach(address).problem
            ]
            if hops:
                routes[cidr] = hops[0]
            else:
                apart.add(Claim(node.name, cidr))
    return routes, refused, apart


some = st.lists(st.sampled_from(CIDRS), max_size=2, unique=True).map(tuple)


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeRecord]:
    nodes = []
    for number in range(draw(st.integers(1, 5))):
        addresses = tuple(draw(st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True)))
        internal = addresses[: draw(st.integers(0, 3))]
        nodes.append(NodeRecord(f"n{number}", "", addresses, draw(some), internal_addresses=internal))
    return draw(st.permutations(nodes))


@given(clusters(), some, st.lists(st.sampled_from(CIDRS), max_size=1))
def test_each_pod_cidr_is_judged_as_if_by_itself(nodes: list[NodeRecord], own: Any, strays: list[str]) -> None:
    within = ("10.244.0.0/16", "10.9.0.0/16", "10.96.0.0/12", "0.0.0.0/0", "fd44::/16", "fd96::/112")
    never = (*SERVICES, *strays)
    found = node_routes(HERE, nodes, reach, own=own, within=PrefixSet(within), never=PrefixSet(never))
    routes = {key.destination: route.next_hops for key, route in found.routes.items()}
    hops, refused, apart = expected(nodes, own, within, never)
    assert routes == {cidr: (hop,) for cidr, hop in hops.items()}
    assert (set(found.refused), set(found.apart)) == (refused, apart)
    assert {key.protocol for key in found.routes} <= {ROUTE_PROTOCOL_LEARNED}
    assert all(found.refused.values())
    assert all(found.apart.values())


@given(clusters(), st.lists(st.tuples(st.integers(0, 4), st.sampled_from(BLOCKS)), max_size=4))
def test_blocks_are_routed_besides_pod_cidrs_and_disturb_none(
    nodes: list[NodeRecord], claimed: list[tuple[int, str]]
) -> None:
    owners = {cidr: f"n{number}" for number, cidr in claimed}
    blocks = {node: tuple(c for c, owner in owners.items() if owner == node) for node in owners.values()}
    within, never = PrefixSet(("10.244.0.0/16", "fd44::/16")), PrefixSet(SERVICES)
    without = node_routes(HERE, nodes, reach, own=(), within=within, never=never)
    found = node_routes(HERE, nodes, reach, own=(), within=within, never=never, blocks=blocks)
    there = {node.name: node for node in nodes}
    expected = {}
    for cidr, owner in owners.items():
        addresses = [ipaddress.ip_address(address) for each in nodes for address in each.addresses]
        if owner == HERE or owner not in there or any(a in ipaddress.ip_network(cidr) for a in addresses):
            continue
        hops = [
            a for a in there[owner].internal_addresses if (":" in a) == (":" in cidr) and not reach(a).problem
        ]
        if hops:
            expected[cidr] = hops[0]
    more = {k: route for k, route in found.routes.items() if k not in without.routes}
    assert {key.destination: route.next_hops[0].gateway for key, route in more.items()} == expected
    assert {k: found.routes[k] for k in without.routes} == without.routes


# --- which source counts -------------------------------------------------------------------------------


def route(prefix: str, gateway: str) -> Route:
    return Route(RouteRef(prefix, ROUTE_PROTOCOL_LEARNED), next_hops=(NextHop(gateway),))


PREFIXES = CIDRS[:3]
tables = st.dictionaries(st.sampled_from(PREFIXES), st.sampled_from(["10.9.0.2", "10.9.0.3"]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("bgp"), st.dictionaries(st.sampled_from(PREFIXES), st.sampled_from(["", "10.9.0.9"]))),
        st.tuples(st.just("nodes"), tables),
        st.tuples(st.just("take"), st.integers(1, 3)),
    ),
    max_size=20,
)


@given(steps)
def test_a_prefix_of_both_sources_has_one_route_and_it_is_the_nodes(steps: list[tuple[str, Any]]) -> None:
    remote, kernel = RemoteRoutes(), dict[str, str]()
    bgp, nodes = dict[str, str](), dict[str, str]()

    def take(most: int) -> None:
        for key, found in remote.take(most).items():
            kernel.pop(key.destination, None)
            if found is not None:
                kernel[key.destination] = found.next_hops[0].gateway

    for what, given_now in steps:
        if what == "take":
            take(given_now)
        elif what == "bgp":
            changes: Mapping[str, str] = given_now
            remote.from_bgp({route(p, g).key: route(p, g) if g else None for p, g in changes.items()})
            bgp = {p: g for p, g in (bgp | dict(changes)).items() if g}
        else:
            nodes = given_now
            remote.from_nodes({route(p, g).key: route(p, g) for p, g in nodes.items()})
    while remote.undone:
        take(2)
    assert kernel == bgp | nodes
    assert {prefix: hop for prefix, (hop,) in remote.gateways().items()} == bgp | nodes
    assert remote.number == len(bgp | nodes)
    assert set(remote.bgp_prefixes()) == set(bgp)
