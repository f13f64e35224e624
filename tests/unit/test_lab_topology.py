"""The lab's addresses and names."""

from __future__ import annotations

import ipaddress
import itertools

import pytest

from lab import topology
from lab.topology import BadName, check_name, netns_prefix, nodes, pod_netns
from policy.model import Family

BOTH = (Family.V4, Family.V6)
MOST = nodes(topology.MOST_NODES, BOTH)


def test_every_node_has_its_own_addresses_and_as_number() -> None:
    addresses = [a for node in MOST for ends in (node.addresses, node.gateways) for a in ends.values()]
    assert len(set(addresses)) == len(addresses)
    assert len({node.asn for node in MOST} | {topology.TOR_ASN}) == len(MOST) + 1
    assert len({node.router_id for node in MOST} | {topology.ROUTER_ID}) == len(MOST) + 1
    assert all(64512 <= node.asn <= 65534 for node in MOST)


@pytest.mark.parametrize("family", BOTH)
def test_both_ends_of_a_link_share_its_network_and_no_other_link_does(family: Family) -> None:
    links = []
    for node in MOST:
        network = ipaddress.ip_network(f"{node.gateways[family]}/{node.link_prefix[family]}")
        assert ipaddress.ip_address(node.addresses[family]) in network
        links.append(network)
    assert not [pair for pair in itertools.combinations(links, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("family", BOTH)
def test_underlay_routes_cover_no_pod_and_no_service(family: Family) -> None:
    """What carries pods' packets is what BGP taught."""
    underlay = [ipaddress.ip_network(text[family]) for text in (topology.UNDERLAY, topology.WORLD_CIDRS)]
    cluster = ipaddress.ip_network(topology.CLUSTER_CIDRS[family])
    services = ipaddress.ip_network(topology.SERVICE_CIDRS[family])
    assert not [network for network in underlay if network.overlaps(cluster) or network.overlaps(services)]
    for node in MOST:
        assert ipaddress.ip_network(node.pod_cidrs[family]).subnet_of(cluster)  # type: ignore[arg-type]
        assert ipaddress.ip_address(node.addresses[family]) in underlay[0]
    assert ipaddress.ip_address(topology.API_ADDRESS[family]) in underlay[0]
    for addresses in topology.WORLD.values():
        assert ipaddress.ip_address(addresses[family]) in underlay[1]


def test_an_ipv6_node_has_nothing_of_ipv4_but_its_router_id() -> None:
    (node,) = nodes(1, (Family.V6,))
    assert set(node.addresses) == set(node.gateways) == set(node.pod_cidrs) == {Family.V6}
    assert ipaddress.ip_address(node.router_id).version == 4


@pytest.mark.parametrize("name", ["", "Lab", "1st", "a-b", "a.b", "a/b", "..", "x" * 21, "a b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(BadName, match="is no name for a lab"):
        check_name(name)


def test_no_labs_namespaces_look_like_anothers() -> None:
    names = ["a", "ab", "lab", "lab2", "x" * 20]
    for one, other in itertools.permutations(names, 2):
        assert not topology.machine_netns(one, "tor").startswith(netns_prefix(other))


def test_pod_namespaces_have_names_that_a_file_can_have_and_differ_by_uid() -> None:
    long = pod_netns("lab", "n" * 63, "p" * 253, "0123456789ab")
    assert len(long) <= 255
    assert long.endswith(".01234567")
    assert pod_netns("lab", "shop", "web", "aaaaaaaa-1") != pod_netns("lab", "shop", "web", "bbbbbbbb-1")
