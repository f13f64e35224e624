"""Which next hops can be used, from what the kernel says; and which of its messages are a reason to ask again."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_py.dataplane.reach import Hosts, LinkChanges, Links
from felix_py.netlink import links, routes
from felix_py.netlink.routes import Connected, Destination
from felix_py.netlink.wire import attr
from policy.model import Family

UP = {1: ("lo", True), 2: ("eth0", True), 3: ("eth1", False)}


def net(cidr: str) -> Destination:
    network = ipaddress.ip_network(cidr)
    return Family(network.version), network.network_address.packed, network.prefixlen


def hosts(*connected: tuple[str, int, int], own: str = "10.9.0.1/32", never: tuple[str, ...] = ()) -> Hosts:
    """``connected``: CIDR, metric, interface."""
    known = tuple(Connected(net(cidr), metric, index) for cidr, metric, index in connected)
    return Hosts(Links(UP, known, (net(own),), (net("10.77.0.5/32"),)), never)


@pytest.mark.parametrize(
    ("hop", "ignored", "interface", "problem"),
    [
        ("10.9.0.2", ["eth0"], "", "its link eth0 is one of ignoredInterfaces"),
        ("10.9.0.2", ["et*", "vlan*"], "", "its link eth0 is one of ignoredInterfaces"),
        ("10.9.0.2", ["et", "eth0x", "*1"], "eth0", ""),
        ("10.7.0.2", ["eth1"], "eth0", ""),  # on both links
        ("10.7.0.2", ["eth0"], "", "its link eth1 is down or has no carrier"),
        ("fe80::2%eth0", ["eth0"], "", "its link eth0 is one of ignoredInterfaces"),
        ("192.0.2.1", ["*"], "", "it is on no link of this node"),
    ],
)
def test_ignored_interfaces(hop: str, ignored: list[str], interface: str, problem: str) -> None:
    connected = (("10.9.0.0/24", 2), ("10.7.0.0/24", 2), ("10.7.0.0/24", 3))
    known = tuple(Connected(net(cidr), 0, index) for cidr, index in connected)
    found = Hosts(Links(UP, known, (), ()), ignored=ignored)(hop)
    assert (found.interface, found.problem) == (interface, problem)


@pytest.mark.parametrize(
    ("hop", "interface", "problem"),
    [
        ("10.9.0.2", "eth0", ""),
        ("10.9.0.1", "", "it is an address of this node"),
        ("10.8.0.2", "", "its link eth1 is down or has no carrier"),
        ("10.7.0.2", "eth0", ""),  # on both links, and one carries
        ("10.77.0.5", "", "it is a pod's address"),
        ("10.244.1.9", "", "it is a pod's address"),
        ("192.0.2.1", "", "it is on no link of this node"),
        ("fd09::2", "eth0", ""),
        ("fd10::2", "", "it is on no link of this node"),
        ("fe80::2%eth0", "eth0", ""),
        ("fe80::2%eth1", "", "its link eth1 is down or has no carrier"),
        ("fe80::2%eth9", "", "its link eth9 is down or has no carrier"),
    ],
)
def test_next_hop(hop: str, interface: str, problem: str) -> None:
    reach = hosts(
        ("10.9.0.0/24", 0, 2),
        ("10.8.0.0/24", 0, 3),
        ("10.7.0.0/24", 0, 3),
        ("10.7.0.0/24", 100, 2),
        ("10.77.0.0/24", 0, 2),
        ("10.244.0.0/16", 0, 2),
        ("fd09::/64", 256, 2),
        never=("10.244.1.0/24",),
    )
    assert (reach(hop).interface, reach(hop).problem) == (interface, problem)


def test_the_longest_prefix_and_then_the_least_metric_decide() -> None:
    both = {1: ("lo", True), 2: ("eth0", True), 3: ("eth1", True)}
    connected = [("10.9.0.0/16", 0, 2), ("10.9.1.0/24", 200, 2), ("10.9.1.0/24", 100, 3)]
    known = tuple(Connected(net(cidr), metric, index) for cidr, metric, index in connected)
    reach = Hosts(Links(both, known, (), ()))
    assert (reach("10.9.1.2").interface, reach("10.9.1.2").length) == ("eth1", 24)
    assert (reach("10.9.2.2").interface, reach("10.9.2.2").length) == ("eth0", 16)


def test_what_may_never_be_one_must_be_a_cidr() -> None:
    with pytest.raises(ValueError, match="is not a CIDR"):
        hosts(never=("10.1.2",))


# --- messages --------------------------------------------------------------------------------------------


def datagram(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(name: str, index: int, flags: int, family: int = 0) -> bytes:
    return struct.pack("=BxHiII", family, 1, index, flags, 0) + attr(links.IFLA_IFNAME, name.encode() + b"\0")


def route(cidr: str, *, protocol: int = 2, gateway: str = "", index: int = 2) -> bytes:
    _, packed, length = net(cidr)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, 254, protocol, 253, 1, 0) + attr(1, packed)
    body += attr(4, struct.pack("=I", index))
    return body + (attr(5, socket.inet_aton(gateway)) if gateway else b"")


def address(index: int) -> bytes:
    return struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, index) + attr(2, socket.inet_aton("10.9.0.1"))


CARRIER, POD = 0x10001, "felix0123456789"


@pytest.mark.parametrize(
    ("what", "message", "concerns"),
    [
        ("carrier lost", datagram(links.RTM_NEWLINK, link("eth0", 2, 1)), True),
        ("set down", datagram(links.RTM_NEWLINK, link("eth0", 2, 0)), True),
        ("renamed", datagram(links.RTM_NEWLINK, link("wan0", 2, CARRIER)), True),
        ("nothing new", datagram(links.RTM_NEWLINK, link("eth0", 2, CARRIER)), False),
        ("promiscuous", datagram(links.RTM_NEWLINK, link("eth0", 2, CARRIER | 0x100)), False),
        ("bridge port", datagram(links.RTM_NEWLINK, link("eth0", 2, 1, socket.AF_BRIDGE)), False),
        ("deleted", datagram(links.RTM_DELLINK, link("eth0", 2, CARRIER)), True),
        ("new link", datagram(links.RTM_NEWLINK, link("eth7", 9, CARRIER)), True),
        ("new pod", datagram(links.RTM_NEWLINK, link(POD, 9, CARRIER)), False),
        ("pod up", datagram(links.RTM_NEWLINK, link(POD, 7, CARRIER)), False),
        ("pod renamed to something else", datagram(links.RTM_NEWLINK, link("eth5", 7, CARRIER)), True),
        ("pod gone", datagram(links.RTM_DELLINK, link(POD, 7, 0)), False),
        ("address", datagram(links.RTM_NEWADDR, address(2)), True),
        ("address gone", datagram(links.RTM_DELADDR, address(2)), True),
        ("address of a pod's end", datagram(links.RTM_NEWADDR, address(7)), False),
        ("connected", datagram(routes.RTM_NEWROUTE, route("10.5.0.0/24")), True),
        ("connected, gone", datagram(routes.RTM_DELROUTE, route("10.5.0.0/24")), True),
        ("by a gateway", datagram(routes.RTM_NEWROUTE, route("10.5.0.0/24", gateway="10.9.0.9")), False),
        ("learned by us", datagram(routes.RTM_NEWROUTE, route("10.5.0.0/24", protocol=89)), False),
        ("pod's", datagram(routes.RTM_NEWROUTE, route("10.5.0.1/32", protocol=88, index=7)), False),
        ("cut off", datagram(links.RTM_NEWLINK, link("eth0", 2, CARRIER))[:20], True),
        ("nonsense", struct.pack("=IHHII", 3, 16, 0, 0, 0), True),
        (
            "the second of two",
            datagram(links.RTM_NEWLINK, link("eth0", 2, CARRIER)) + datagram(links.RTM_NEWADDR, address(2)),
            True,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_message_that_concerns_next_hops(what: str, message: bytes, concerns: bool) -> None:
    changes = LinkChanges()
    changes.begin(Links({2: ("eth0", True), 7: (POD, False)}, (), (), ()))
    assert changes.concern_us(message) is concerns


@given(st.binary(max_size=200))
def test_no_message_raises(data: bytes) -> None:
    LinkChanges().concern_us(data)
