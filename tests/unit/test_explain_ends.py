"""What people may call the two ends of a connection, and what they are told when that is nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from felix_py.agent.pooled import Pooled
from felix_py.datastore.fetch import Fetched
from felix_py.diagnose.ends import Place, WrongEnd, find, find_ports
from felix_py.ipam.resources import IPAMBlock, Loan
from felix_py.records import NodeRecord
from policy.model import (
    Family,
    IPBlock,
    LocalEndpoint,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Pod,
    PolicyRule,
    Protocol,
    Selector,
)

V4, V6 = Family
TCP, UDP = Protocol.TCP, Protocol.UDP
NAMED = (NamedPort("http", TCP, 8080), NamedPort("dns", UDP, 53), NamedPort("dns", TCP, 5353))
CLUSTER = Fetched(
    pods=[
        Pod("shop", "web-1", node="n1", addresses=("10.1.0.2", "fd00:1::2"), ports=NAMED),
        Pod("shop", "web-2", node="n2", addresses=("10.2.0.2",)),
        Pod("shop", "job", node="n1", addresses=("10.1.0.3",), active=False),
        Pod("shop", "new", node="n1"),
        Pod("shop", "newer"),
        Pod("kube-system", "proxy", node="n1", addresses=("192.0.2.1",), host_network=True),
        Pod("node", "n1", node="n2", addresses=("10.2.0.9",)),
    ],
    namespaces=[Namespace("shop"), Namespace("kube-system")],
    nodes=[
        NodeRecord("n1", addresses=("192.0.2.1", "2001:db8::1"), pod_cidrs=("10.1.0.0/24", "fd00:1::/64")),
        NodeRecord("n2", addresses=("192.0.2.2", "203.0.113.9"), pod_cidrs=("10.2.0.0/24",)),
        NodeRecord("n3"),
    ],
)


def place(text: str) -> Place:
    return find(text, "shop", CLUSTER)


@pytest.mark.parametrize("text", ["web-1", "shop/web-1"])
def test_pods_by_name(text: str) -> None:
    found = place(text)
    assert (found.name, found.node, found.pod) == ("shop/web-1", "n1", CLUSTER.pods[0])
    assert found.addresses == {V4: "10.1.0.2", V6: "fd00:1::2"}


def test_addresses_are_whoever_has_them() -> None:
    found = place("FD00:1:0::2")
    assert (found.name, found.pod, found.addresses) == ("shop/web-1", CLUSTER.pods[0], {V6: "fd00:1::2"})
    found = place("203.0.113.9")
    assert (found.name, found.pod, found.node) == ("node n2", None, "n2")
    found = place("10.1.0.3")  # of a pod that has ended
    assert (found.name, found.pod, found.node) == ("10.1.0.3", None, "")
    assert "one of n1's pod addresses, but no pod has it" in found.note
    assert "Service" in place("10.96.0.10").note


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "FF02::1", "fe80::1"]
)
def test_addresses_to_which_nothing_is_routed(text: str) -> None:
    """In a pod they mean the pod itself, its link or nobody; as a node's they were explained, and allowed."""
    with pytest.raises(WrongEnd, match="name one that is routed"):
        place(text)
    assert place("169.254.169.254").addresses == {V4: "169.254.169.254"}


def test_who_has_an_address_that_two_pods_list() -> None:
    """It is explained as the kernels have it: by the leases of this node, elsewhere by the newest claim."""
    web = replace(CLUSTER.pods[0], uid="w", since="2026-01-01T00:00:00Z")
    gone = Pod("dev", "gone", "g", "n1", addresses=web.addresses, since="2026-01-02T00:00:00Z", deleted=True)
    cluster = replace(CLUSTER, pods=[web, gone])
    with pytest.raises(WrongEnd, match=r"shop/web-1 has no address any more: 10\.1\.0\.2 is dev/gone's by now"):
        find("web-1", "shop", cluster)
    assert find("10.1.0.2", "shop", cluster).pod == gone
    cluster.endpoints = (LocalEndpoint("shop", "web-1", web.addresses, "w"),)
    with pytest.raises(WrongEnd, match=r"dev/gone has no address any more: 10\.1\.0\.2 is shop/web-1's by now"):
        find("dev/gone", "shop", cluster)
    assert find("10.1.0.2", "shop", cluster).pod == web
    # What the node has leased counts before the API server has heard of it.
    cluster.endpoints = (LocalEndpoint("shop", "web-1", ("10.1.0.77",), "w"),)
    assert find("web-1", "shop", cluster).addresses == {V4: "10.1.0.77"}
    # An interface that an earlier pod of that name has left is nobody's that is known.
    cluster.endpoints = (LocalEndpoint("shop", "web-1", ("10.1.0.2",), "earlier"),)
    assert find("10.1.0.2", "shop", cluster).pod is None
    assert find("fd00:1::2", "shop", cluster).pod == gone
    with pytest.raises(WrongEnd, match="is leased to another one on this node"):
        find("web-1", "shop", cluster)


def test_a_borrowed_address_is_said_to_be_out_of_another_nodes_block() -> None:
    loans = tuple(Loan(address, "n1", "u1", address) for address in ("10.64.0.5", "10.64.0.6"))
    blocks = [
        IPAMBlock(name="a", cidr="10.64.0.0/28", node="n2", node_uid="u2", lent=loans),
        IPAMBlock(name="b", cidr="10.64.0.16/28", node="n1", node_uid="u1"),
    ]
    pods = [Pod("shop", name, node="n1", addresses=(a,)) for name, a in (("a", "10.64.0.5"), ("b", "10.64.0.17"))]
    cluster, pooled = replace(CLUSTER, pods=pods), Pooled.of("", (), blocks)
    borrowed = "10.64.0.5 is out of block 10.64.0.0/28 of node n2, which has lent it to n1"
    assert [find(text, "shop", cluster, pooled).note for text in ("a", "10.64.0.5", "b")] == [
        borrowed,
        borrowed,
        "",
    ]
    assert [find(text, "shop", cluster, pooled).note for text in ("10.64.0.6", "10.64.0.7")] == [
        "10.64.0.6 is out of block 10.64.0.0/28 of node n2, which has lent it to n1, but no pod has it",
        "10.64.0.7 is in block 10.64.0.0/28 of node n2, but no pod has it",
    ]


def test_nodes_and_pods_on_their_network() -> None:
    found = place("node/n1")
    assert (found.name, found.pod, found.node) == ("node n1", None, "n1")
    assert found.addresses == {V4: "192.0.2.1", V6: "2001:db8::1"}
    found = place("kube-system/proxy")
    assert (found.pod, found.node, found.addresses) == (None, "n1", {V4: "192.0.2.1"})
    assert "to policy it is the node, not a pod" in found.note
    assert find("n1", "node", CLUSTER).name == "node/n1"  # a pod in a namespace of that name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web", "there is no pod shop/web; there is shop/web-1, shop/web-2"),
        ("proxy", "there is no pod shop/proxy; there is kube-system/proxy"),
        ("nobody", "there is no pod shop/nobody"),
        ("job", "has ended"),
        ("new", "has no address yet, on n1; see `kubectl describe pod`"),
        ("newer", "has no address yet, and is on no node"),
        ("node/n9", "there is no node n9; there is n1, n2, n3"),
        ("node/n3", "node n3 has no address"),
        ("10.0.0.999", "is not an IP address"),
        ("fd00::1::2", "is not an IP address"),
    ],
)
def test_what_is_not_there(text: str, message: str) -> None:
    with pytest.raises(WrongEnd, match=message.replace("(", r"\(")):
        place(text)


def test_the_world_is_nobody_s_address() -> None:
    found = place("world")
    assert found.addresses == {V4: "203.0.113.1", V6: "2001:db8:ffff::1"}
    assert (found.pod, found.node) == (None, "")
    assert found.note == "the world is 203.0.113.1 and 2001:db8:ffff::1 here"


def test_the_world_is_none_that_policies_speak_of() -> None:
    blocks = tuple(
        IPBlock(cidr, excepts)
        for cidr, excepts in (("203.0.113.0/24", ()), ("0.0.0.0/0", ("198.51.100.0/24",)), ("2001:db8::/32", ()))
    )
    policy = NetworkPolicy("shop", "p", Selector(), egress=(PolicyRule(blocks),))
    cluster = Fetched(policies=[policy])
    assert find("world", "shop", cluster).addresses == {V4: "192.0.2.1", V6: "2606:4700:4700::1111"}
    everything = NetworkPolicy(
        "shop", "q", Selector(), egress=(PolicyRule((IPBlock("128.0.0.0/1"), IPBlock("0.0.0.0/1"))),)
    )
    found = find("world", "shop", Fetched(policies=[policy, everything]))
    assert found.addresses[V4] in ("192.0.2.1", "1.1.1.1")
    assert "name an address to be sure" in found.note


def listed(_pod: Pod) -> list[tuple[Protocol, int]]:
    return [(TCP, 8080), (TCP, 9100)]


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [(TCP, 80)]),
        ("80/tcp", [(TCP, 80)]),
        ("53/UDP", [(UDP, 53)]),
        ("132/sctp", [(Protocol.SCTP, 132)]),
        ("http", [(TCP, 8080)]),
        ("http/tcp", [(TCP, 8080)]),
        ("dns", [(UDP, 53), (TCP, 5353)]),
        ("dns/udp", [(UDP, 53)]),
        ("", [(TCP, 8080), (TCP, 9100)]),
    ],
)
def test_ports(text: str, ports: list[tuple[Protocol, int]]) -> None:
    assert find_ports(text, place("web-1"), listed) == ports


@pytest.mark.parametrize(
    ("text", "destination", "message"),
    [
        ("", "node/n1", "node n1 is not a pod: say which --port"),
        ("http", "world", "world is not a pod, and only pods have named ports"),
        ("https", "web-1", "has no such port; it has http/tcp, dns/udp, dns/tcp"),
        ("http/udp", "web-1", "has no such port"),
        ("http", "web-2", "it has no named ports"),
        ("0", "web-1", "from 1 to 65535"),
        ("70000", "web-1", "from 1 to 65535"),
        ("80/icmp", "web-1", "must be tcp, udp or sctp"),
    ],
)
def test_ports_that_are_none(text: str, destination: str, message: str) -> None:
    with pytest.raises(WrongEnd, match=message):
        find_ports(text, place(destination), listed)


def test_a_pod_that_lists_no_ports() -> None:
    with pytest.raises(WrongEnd, match="list no ports: say which --port"):
        find_ports("", place("web-1"), lambda _pod: [])
